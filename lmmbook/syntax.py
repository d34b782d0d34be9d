"""The syntax of a formula: which part is fixed, and which factors have random intercepts.

Chapter 01. ``formulae`` turns the text into a syntax tree. We take the ``(1|g)`` out of the tree
ourselves and hand the rest back, because its own matrix for them has a column per level.
"""

from __future__ import annotations

from typing import Any

from formulae.expr import Binary, Grouping, Literal, QuotedName, Variable
from formulae.parser import ParseError, Parser
from formulae.resolver import Resolver
from formulae.scanner import ScanError, Scanner

Group = tuple[str, ...]  # the columns of a grouping factor: ("g",), or ("a", "b") for a:b


def parse(formula: str) -> tuple[Any, list[Group]]:
    """Split a formula into ``formulae``'s description of its fixed part, and its groups.

    Raises
    ------
    TypeError
        If ``formula`` is not a string.
    ValueError
        If it cannot be read; has no response, no fixed effect or no group; or has a group twice, a
        group named ``residual``, or a random term other than ``(1|group)``.

    Examples
    --------
    >>> parse("y ~ x + (1|a/b)")[1]
    [('a',), ('a', 'b')]
    """
    if not isinstance(formula, str):
        raise TypeError(f"formula: expected a string, got {type(formula).__name__}")
    try:
        tree = Parser(Scanner(formula).scan()).parse()
    except (ParseError, ScanError) as error:
        raise ValueError(f"formula {formula!r} cannot be read: {error}") from error
    groups: list[Group] = []
    fixed = _prune(tree, groups)
    if fixed is None:
        raise ValueError(f"formula: expected 'response ~ terms', got {formula!r}")
    if _has_bar(fixed):
        raise ValueError(f"formula: expected each (1|group) to be added with +, got {formula!r}")
    if not groups:
        raise ValueError(f"formula: expected at least one (1|group), got {formula!r}")
    as_sets = [frozenset(group) for group in groups]
    for group, columns in zip(groups, as_sets, strict=True):
        if as_sets.count(columns) > 1:
            raise ValueError(f"formula: the group {':'.join(group)!r} occurs more than once")
        if group == ("residual",):
            raise ValueError("formula: 'residual' is not a legal group name; rename the column")
    description = Resolver(fixed).resolve()
    if getattr(description, "response", None) is None:
        raise ValueError(f"formula: expected 'response ~ terms', got {formula!r}")
    if not description.common_terms:
        raise ValueError(f"formula: expected at least one fixed effect, got {formula!r}")
    return description, groups


def _prune(node: Any, groups: list[Group]) -> Any:
    """Walk down sums, move each ``(1|g)`` into ``groups``, and return what is left, or None."""
    if isinstance(node, Grouping) and isinstance(node.expression, Binary):
        inner = node.expression
        if inner.operator.lexeme == "|":
            if not (isinstance(inner.left, Literal) and inner.left.value == 1):
                raise ValueError(
                    "formula: expected random intercepts (1|group) only; random slopes "
                    "such as (1 + x|group) are not supported"
                )
            groups.extend(_columns(inner.right))
            return None
    if isinstance(node, Binary) and node.operator.lexeme in ("+", "-", "~"):
        left = _prune(node.left, groups)
        # What is taken away stays as it is: a (1|g) there is refused by `parse`.
        right = node.right if node.operator.lexeme == "-" else _prune(node.right, groups)
        if left is None or right is None:
            return left if right is None else right
        return Binary(left, node.operator, right)
    return node


def _has_bar(node: Any) -> bool:
    """Whether a ``|`` is left anywhere in the tree."""
    if isinstance(node, Binary):
        return node.operator.lexeme == "|" or _has_bar(node.left) or _has_bar(node.right)
    return isinstance(node, Grouping) and _has_bar(node.expression)


def _columns(node: Any) -> list[Group]:
    """Columns of each factor in a grouping expression: ``a/b`` gives ``[(a,), (a, b)]``."""
    if isinstance(node, Grouping):
        return _columns(node.expression)
    if isinstance(node, QuotedName):
        return [(node.expression.lexeme.strip("`"),)]
    if isinstance(node, Variable):
        return [(node.name.lexeme,)]
    if isinstance(node, Binary) and node.operator.lexeme in (":", "/"):
        left, right = _columns(node.left), _columns(node.right)
        if len(right) == 1 and (node.operator.lexeme == "/" or len(left) == 1):
            crossed = (*left[-1], *right[0])
            return [*left, crossed] if node.operator.lexeme == "/" else [crossed]
    raise ValueError("formula: expected a group of the form g, a:b or a/b inside (1|...)")
