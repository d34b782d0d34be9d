"""The syntax of a formula: which part is fixed, and which effects vary between groups.

Chapters 01 and 09. ``formulae`` turns the text into a syntax tree. We take the ``(...|g)`` out of
the tree ourselves and hand the rest back, because its own matrix for them has a column per level.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from formulae.expr import Binary, Grouping, Literal, QuotedName, Variable
from formulae.parser import ParseError, Parser
from formulae.resolver import Resolver
from formulae.scanner import ScanError, Scanner
from formulae.terms.variable import Variable as Column
from formulae.token import Token

INDEPENDENT = "||"


class Bar(NamedTuple):
    """One ``(effects|group)``, written out: a term of the random part.

    Attributes
    ----------
    group
        Columns of the grouping factor: ``("g",)``, or ``("a", "b")`` for ``a:b``.
    effects
        ``formulae``'s description of ``response ~ effects``; None for a lone intercept.
    correlated
        False for ``(...||g)``: its effects vary independently of each other.
    """

    group: tuple[str, ...]
    effects: Any
    correlated: bool


class Columns(NamedTuple):
    """Columns of the data, and what a formula does with them besides taking them as they are.

    Attributes
    ----------
    names
        All columns, each once.
    called
        Those that a function takes, as in ``np.log(x)``: it has to be given what the data have.
    multiplied
        Those in products, as in ``x:z``: small integers would overflow there.
    groups
        Those that are labels of groups and nothing else: nobody computes with them.
    """

    names: tuple[str, ...]
    called: frozenset[str] = frozenset()
    multiplied: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()


def columns_of(terms: Iterable[Any], groups: Sequence[str] = ()) -> Columns:
    """The columns of some of ``formulae``'s terms, sorted, and after them those of ``groups``.

    Examples
    --------
    >>> columns = columns_of(parse("y ~ np.log(x) + z:w + (1|g)")[0].common_terms, ["g"])
    >>> columns.names, sorted(columns.called), sorted(columns.multiplied)
    (('w', 'x', 'z', 'g'), ['x'], ['w', 'z'])
    """
    called: set[str] = set()
    multiplied: set[str] = set()
    taken: set[str] = set()
    for term in terms:
        parts = getattr(term, "components", ())  # an intercept has none
        for part in parts:
            if not isinstance(part, Column):
                called |= part.var_names
            if len(parts) > 1:
                multiplied |= part.var_names
            taken |= part.var_names
    literal = {""}  # what formulae names a literal, as the 2 in poly(x, 2)
    taken, called, multiplied = taken - literal, called - literal, multiplied - literal
    names = dict.fromkeys([*sorted(taken), *groups])
    only = frozenset(groups) - taken
    return Columns(tuple(names), frozenset(called), frozenset(multiplied), only)


def parse(formula: str) -> tuple[Any, list[Bar]]:
    """Split a formula into ``formulae``'s description of its fixed part, and its random terms.

    Raises
    ------
    TypeError
        If ``formula`` is not a string.
    ValueError
        If it cannot be read; has no response, no fixed effect or no group; or has a group named
        ``residual``.

    Examples
    --------
    >>> [bar.group for bar in parse("y ~ x + (1|a/b)")[1]]
    [('a',), ('a', 'b')]
    """
    if not isinstance(formula, str):
        raise TypeError(f"formula: expected a string, got {type(formula).__name__}")
    try:
        tree = Parser(_join_bars(Scanner(formula).scan())).parse()
    except (ParseError, ScanError) as error:
        raise ValueError(f"formula {formula!r} cannot be read: {error}") from error
    found: list[Binary] = []
    fixed = _prune(tree, found)
    if fixed is None:
        raise ValueError(f"formula: expected 'response ~ terms', got {formula!r}")
    if _has_bar(fixed):
        raise ValueError(f"formula: expected each (1|group) to be added with +, got {formula!r}")
    if not found:
        raise ValueError(f"formula: expected at least one (1|group), got {formula!r}")
    description = Resolver(fixed).resolve()
    if getattr(description, "response", None) is None:
        raise ValueError(f"formula: expected 'response ~ terms', got {formula!r}")
    if not description.common_terms:
        raise ValueError(f"formula: expected at least one fixed effect, got {formula!r}")
    bars = [
        Bar(group, _effects(fixed, node.left), node.operator.lexeme != INDEPENDENT)
        for node in found
        for group in _groups(node.right)
    ]
    if any(bar.group == ("residual",) for bar in bars):
        raise ValueError("formula: 'residual' is not a legal group name; rename the column")
    return description, bars


def _join_bars(tokens: list[Token]) -> list[Token]:
    """``formulae`` reads ``||`` as two bars; make them one, which remembers that it was two."""
    joined: list[Token] = []
    for token in tokens:
        if joined and token.lexeme == joined[-1].lexeme == "|":
            joined[-1] = Token("PIPE", INDEPENDENT)
        else:
            joined.append(token)
    return joined


def _prune(node: Any, found: list[Binary]) -> Any:
    """Walk down sums, move each ``(...|g)`` into ``found``, and return what is left, or None."""
    inner = node.expression if isinstance(node, Grouping) else None
    if isinstance(inner, Binary) and inner.operator.kind == "PIPE":
        found.append(inner)
        return None
    if isinstance(node, Binary) and node.operator.lexeme in ("+", "-", "~"):
        left = _prune(node.left, found)
        # What is taken away stays as it is: a (1|g) there is refused by `parse`.
        right = node.right if node.operator.lexeme == "-" else _prune(node.right, found)
        if left is None or right is None:
            return left if right is None else right
        return Binary(left, node.operator, right)
    return node


def _effects(fixed: Any, left: Any) -> Any:
    """``formulae``'s description of ``response ~ 1 + left``, or None if left is a lone 1."""
    if isinstance(left, Literal) and left.value == 1:
        return None
    if _has_bar(left):
        raise ValueError("formula: expected one bar in (effects|group), got more")
    response = fixed.left if isinstance(fixed, Binary) else fixed
    tree = Binary(response, Token("TILDE", "~"), _with_intercept(left))
    description = Resolver(tree).resolve()
    if not description.common_terms:
        raise ValueError("formula: expected at least one effect in (effects|group), got none")
    return description


def _with_intercept(node: Any) -> Any:
    """``1 + node``, with the 1 as the first term of the sum, so that a later 0 takes it out."""
    if isinstance(node, Binary) and node.operator.lexeme in ("+", "-"):
        return Binary(_with_intercept(node.left), node.operator, node.right)
    return Binary(Literal(1), Token("PLUS", "+"), node)


def _has_bar(node: Any) -> bool:
    """Whether a ``|`` is left anywhere in the tree."""
    if isinstance(node, Binary):
        return node.operator.kind == "PIPE" or _has_bar(node.left) or _has_bar(node.right)
    return isinstance(node, Grouping) and _has_bar(node.expression)


def _groups(node: Any) -> list[tuple[str, ...]]:
    """Columns of each factor in a grouping expression: ``a/b`` gives ``[(a,), (a, b)]``."""
    if isinstance(node, Grouping):
        return _groups(node.expression)
    if isinstance(node, QuotedName):
        return [(node.expression.lexeme.strip("`"),)]
    if isinstance(node, Variable):
        return [(node.name.lexeme,)]
    if isinstance(node, Binary) and node.operator.lexeme in (":", "/"):
        left, right = _groups(node.left), _groups(node.right)
        if len(right) == 1 and (node.operator.lexeme == "/" or len(left) == 1):
            crossed = (*left[-1], *right[0])
            return [*left, crossed] if node.operator.lexeme == "/" else [crossed]
    raise ValueError("formula: expected a group of the form g, a:b or a/b inside (1|...)")
