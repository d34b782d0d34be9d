"""The syntax of a formula: which part is fixed, and which effects vary between groups.

Chapters 01 and 09. ``formulae`` turns the text into a syntax tree. We take the ``(...|g)`` out of
it, because its own matrix for them has a column per level; `algebra` makes terms of the rest, and
`gate` sees to it that nothing in them calls what it should not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from lmmbook.data.columns import Columns
from lmmbook.formula.parse.algebra import component, signed, terms_of
from lmmbook.formula.parse.expressions import columns_in, parts_of
from lmmbook.formula.parse.functions import Functions, checked
from lmmbook.formula.parse.gate import column_name
from lmmbook.formula.parse.response import check as check_response

from formulae.expr import Binary, Grouping
from formulae.parser import ParseError, Parser
from formulae.scanner import ScanError, Scanner
from formulae.terms import Intercept, Response, Term
from formulae.terms.variable import Variable as Column
from formulae.token import Token

INDEPENDENT = "||"
MAX_CHARACTERS = 200_000  # characters of a formula
SHOWN_CHARACTERS = 300  # characters of a formula that an error shows


class Bar(NamedTuple):
    """One ``(effects|group)``, written out: a term of the random part.

    Attributes
    ----------
    group
        Columns of the grouping factor: ``("g",)``, or ``("a", "b")`` for ``a:b``.
    effects
        The terms of its effects; None for a lone intercept.
    correlated
        False for ``(...||g)``: its effects vary independently of each other.
    """

    group: tuple[str, ...]
    effects: list[Any] | None
    correlated: bool


def columns_of(*parts: Iterable[Any], groups: Sequence[str] = ()) -> Columns:
    """The columns of some of ``formulae``'s terms, sorted part by part, and then of ``groups``.

    Examples
    --------
    >>> columns = columns_of(parse("y ~ np.log(x) + z:w + (1|g)")[1], groups=["g"])
    >>> columns.names, sorted(columns.called)
    (('w', 'x', 'z', 'g'), ['x'])
    """
    terms = [term for part in parts for term in part]
    called = [part for part in parts_of(terms) if not isinstance(part, Column)]
    taken = [name for part in parts for name in sorted(columns_in(*parts_of(part)))]
    names = tuple(dict.fromkeys([*taken, *groups]))
    of_groups = frozenset(groups) - {*taken}
    return Columns(names, columns_in(*called), of_groups)


def fixed_kinds(terms: Iterable[Any]) -> frozenset[str]:
    """The columns that have to be numbers, or the same categories, in new rows as at the fit."""
    return columns_in(*parts_of(terms), read=False)


def parse(formula: str, functions: Functions | None = None) -> tuple[Any, list[Any], list[Bar]]:
    """Split a formula into its response and its fixed terms, both ``formulae``'s, and its bars.

    Every formula passes here before anything of it is evaluated: also those of saved fits.

    Parameters
    ----------
    formula
        As in lme4.
    functions
        Name to function: those of the user's own that it may call, besides those of `functions`.

    Raises
    ------
    TypeError
        If ``formula`` is not a string.
    ValueError
        If it cannot be read; calls a function that is not on the list; has no response, no fixed
        effect or no group; or has a group named ``residual``.

    Examples
    --------
    >>> [bar.group for bar in parse("y ~ x + (1|a/b)")[2]]
    [('a',), ('a', 'b')]
    >>> [term.name for term in parse("y ~ x*z - z:x + (1|g)")[1]]
    ['Intercept', 'x', 'z']
    """
    if not isinstance(formula, str):
        raise TypeError(f"formula: expected a string, got {type(formula).__name__}")
    if len(formula) > MAX_CHARACTERS:
        raise ValueError(
            f"formula: expected at most {MAX_CHARACTERS:,} characters, got {len(formula):,}"
        )
    shown = formula if len(formula) <= SHOWN_CHARACTERS else f"{formula[:SHOWN_CHARACTERS]}..."
    try:
        tree, rest = _tree(formula, shown)
        return _described(tree, *_split(tree, rest, shown), checked(functions))
    except RecursionError as error:
        raise ValueError(
            f"formula {shown!r} cannot be read: expected fewer parentheses and operators inside "
            "one another"
        ) from error


def _tree(formula: str, shown: str) -> tuple[Any, Token]:
    """The syntax tree, and the token where it ends."""
    try:
        parser = Parser(_join_bars(Scanner(formula).scan()))
        return parser.parse(), parser.peek()
    except (ParseError, ScanError) as error:
        raise ValueError(f"formula {shown!r} cannot be read: {error}") from error
    except (AttributeError, IndexError, TypeError, ValueError) as error:  # formulae stumbled
        raise ValueError(
            f"formula {shown!r} cannot be read: expected 'response ~ terms' with names, numbers, "
            "strings, calls and quotes that are closed"
        ) from error


def _split(tree: Any, rest: Token, shown: str) -> tuple[list[tuple[str, Any]], list[Binary]]:
    """The summands of the fixed part with their signs, and each ``(effects|group)``."""
    is_model = isinstance(tree, Binary) and tree.operator.kind == "TILDE"
    summands, found = [], []
    for sign, node in signed(tree.right if is_model else tree):
        inner = node.expression if isinstance(node, Grouping) else None
        if isinstance(inner, Binary) and inner.operator.kind == "PIPE" and sign == "+":
            found.append(inner)
        elif _has_bar(node):
            raise ValueError(f"formula: expected each (1|group) to be added with +, got {shown!r}")
        else:
            summands.append((sign, node))
    if rest.kind not in ("EOF", "PIPE"):
        raise ValueError(
            f"formula {shown!r} cannot be read: expected + between terms, got {rest.lexeme!r}; a "
            "comparison is written in braces, as {x > 0}"
        )
    if not is_model:
        raise ValueError(f"formula: expected 'response ~ terms', got {shown!r}")
    check_response(tree.left)
    if not found or rest.kind == "PIPE":
        raise ValueError(f"formula: expected at least one (1|group), got {shown!r}")
    return summands, found


def _described(
    tree: Any, summands: list[tuple[str, Any]], found: list[Binary], functions: Functions
) -> tuple[Any, list[Any], list[Bar]]:
    """What is evaluated, of the parts of a syntax tree."""
    left, level = tree.left, getattr(tree.left, "level", None)  # a level as in y['yes']
    part = Column(left.name.lexeme, level.value) if level else component(left, functions)
    terms = terms_of(summands, functions)
    if not terms:
        raise ValueError("formula: expected at least one fixed effect, got none")
    bars = [
        Bar(group, _effects(node.left, functions), node.operator.lexeme != INDEPENDENT)
        for node in found
        for group in _groups(node.right)
    ]
    if any(bar.group == ("residual",) for bar in bars):
        raise ValueError("formula: 'residual' is not a legal group name; rename the column")
    return Response(Term(part)), terms, bars


def _join_bars(tokens: list[Token]) -> list[Token]:
    """``formulae`` reads ``||`` as two bars; make them one, which remembers that it was two."""
    joined: list[Token] = []
    for token in tokens:
        if joined and token.lexeme == joined[-1].lexeme == "|":
            joined[-1] = Token("PIPE", INDEPENDENT)
        else:
            joined.append(token)
    return joined


def _effects(left: Any, functions: Functions) -> list[Any] | None:
    """What varies between groups, or None if it is an intercept alone."""
    if _has_bar(left):
        raise ValueError("formula: expected one bar in (effects|group), got more")
    terms = terms_of(signed(left), functions)
    if not terms:
        raise ValueError("formula: expected at least one effect in (effects|group), got none")
    alone = len(terms) == 1 and isinstance(terms[0], Intercept)
    return None if alone else terms


def _has_bar(node: Any) -> bool:
    """Whether a ``|`` is left anywhere in the tree."""
    if isinstance(node, Binary):
        return node.operator.kind == "PIPE" or _has_bar(node.left) or _has_bar(node.right)
    return isinstance(node, Grouping) and _has_bar(node.expression)


def _groups(node: Any) -> list[tuple[str, ...]]:
    """Columns of each factor in a grouping expression: ``a/b`` gives ``[(a,), (a, b)]``."""
    if isinstance(node, Grouping):
        return _groups(node.expression)
    name = column_name(node)
    if name is not None:
        return [(name,)]
    if isinstance(node, Binary) and node.operator.lexeme in (":", "/"):
        left, right = _groups(node.left), _groups(node.right)
        if len(right) == 1 and (node.operator.lexeme == "/" or len(left) == 1):
            crossed = (*left[-1], *right[0])
            return [*left, crossed] if node.operator.lexeme == "/" else [crossed]
    raise ValueError("formula: expected a group of the form g, a:b or a/b inside (1|...)")
