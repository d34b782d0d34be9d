"""The algebra of a formula's terms: ``a*b`` is ``a + b + a:b``, and ``a/b`` is ``a + a:b``.

Chapter 01. As in R. A term is a set of components, so that ``a:b`` and ``b:a`` are one term, and
``x:x`` is ``x``. The intercept is the term that has none.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any, NamedTuple

from lmmbook.formula.parse.expressions import columns_in, key_of
from lmmbook.formula.parse.functions import Functions
from lmmbook.formula.parse.gate import call, column_name, written

from formulae.expr import Binary, Call, Grouping, Literal, Unary
from formulae.terms import Call as Calculated
from formulae.terms import Intercept, Term
from formulae.terms import Variable as Column

MAX_TERMS, MAX_INTERACTION = 2000, 8  # terms of a formula, and components of an interaction
ZERO = "a 0 or a -1, which takes the intercept away, to be added to other terms"


Terms = dict[frozenset[tuple[Any, ...]], tuple[Any, ...]]  # components, by their keys
INTERCEPT: Terms = {frozenset(): ()}


class Sum(NamedTuple):
    """Terms, and whether a 0 among them takes the intercept away from what they are added to."""

    terms: Terms
    without: bool = False


def signed(node: Any) -> list[tuple[str, Any]]:
    """The summands of a sum, with their signs, from left to right."""
    found: list[tuple[str, Any]] = []
    while isinstance(node, Binary) and node.operator.kind in ("PLUS", "MINUS"):
        found.append((node.operator.lexeme, node.right))
        node = node.left
    return [("+", node), *reversed(found)]


def terms_of(summands: Iterable[tuple[str, Any]], functions: Functions) -> list[Any]:
    """``formulae``'s terms of an intercept and what is added, each with its own components."""
    terms = _sum([("+", Literal(1)), *summands], functions).terms
    intercept_first = sorted(terms.values(), key=bool)
    return [_term(parts) for parts in intercept_first]


def component(node: Any, functions: Functions) -> Any:
    """A column, or a call, with a ``key`` that tells it from others."""
    name = column_name(node)
    if name is not None:
        part = Column(name)
        part.key = ("column", name)
    elif isinstance(node, Call):
        lazy = call(node, functions)
        if not columns_in(lazy) and lazy.callee != "offset":
            raise ValueError(f"formula: expected a column in each term, got none in {lazy}")
        part = Calculated(lazy)
        part.key = key_of(lazy)
    else:
        raise ValueError(
            "formula: cannot be read: expected columns and calls, with + - : * / or ** between "
            f"them, got {written(node)!r}; arithmetic is written in braces, as {{2 * x}}"
        )
    return part


def _sum(summands: list[tuple[str, Any]], functions: Functions) -> Sum:
    total: Terms = {}
    without = False
    for sign, node in summands:
        part = _terms(node, functions)
        if sign == "+":
            total |= {key: parts for key, parts in part.terms.items() if key not in total}
            if part.without:
                total.pop(frozenset(), None)
            without = part.without or (without and frozenset() not in part.terms)
        elif part.without:
            total |= INTERCEPT
        else:
            for key in part.terms:
                total.pop(key, None)
            without = without or frozenset() in part.terms
    _check_number(len(total))
    return Sum(total, without)


def _terms(node: Any, functions: Functions) -> Sum:
    """The terms of a node of the syntax tree."""
    if isinstance(node, Grouping):
        return _terms(node.expression, functions)
    if isinstance(node, Literal) and type(node.value) is int and node.value in (0, 1):
        return Sum({}, True) if node.value == 0 else Sum(INTERCEPT)
    if isinstance(node, Unary):
        inner = _terms(node.right, functions)
        if node.operator.kind == "PLUS":
            return inner
        if inner.without != (inner.terms == INTERCEPT):  # 0, or 1
            return Sum(INTERCEPT) if inner.without else Sum({}, True)
        raise ValueError("formula: cannot be read: expected a term before -, or -1")
    if isinstance(node, Binary) and node.operator.kind in ("PLUS", "MINUS"):
        return _sum(signed(node), functions)
    if isinstance(node, Binary) and node.operator.kind == "STAR_STAR":
        return Sum(_power(_plain(node.left, functions), node.right))
    if isinstance(node, Binary) and node.operator.kind in ("COLON", "STAR", "SLASH"):
        left, right = _plain(node.left, functions), _plain(node.right, functions)
        if node.operator.kind == "SLASH":
            every = {part.key: part for parts in left.values() for part in parts}
            return Sum(left | _product({frozenset(every): tuple(every.values())}, right))
        product = _product(left, right)
        return Sum(product if node.operator.kind == "COLON" else left | right | product)
    part = component(node, functions)
    return Sum({frozenset([part.key]): (part,)})


def _plain(node: Any, functions: Functions) -> Terms:
    found = _terms(node, functions)
    if found.without or found.terms == INTERCEPT:
        raise ValueError(f"formula: cannot be read: expected {ZERO}")
    return found.terms


def _product(left: Terms, right: Terms) -> Terms:
    """``left:right``: each term of one with each of the other."""
    _check_number(len(left) * len(right))
    found: Terms = {}
    for one in left.values():
        for other in right.values():
            parts = {part.key: part for part in (*one, *other)}
            if len(parts) > MAX_INTERACTION:
                raise ValueError(
                    f"formula: expected interactions of at most {MAX_INTERACTION}, got more"
                )
            found.setdefault(frozenset(parts), tuple(parts.values()))
    return found


def _power(base: Terms, exponent: Any) -> Terms:
    """``base**n``: all interactions of up to n of the terms."""
    n = exponent.value if isinstance(exponent, Literal) else None
    if type(n) is not int or n < 1:
        raise ValueError("formula: cannot be read: expected a whole number after **")
    if len(base) == 1 and n > 1:
        [name] = (":".join(part.name for part in parts) for parts in base.values())
        raise ValueError(f"formula: expected {{{name}**{n}}}, in braces, for a power of numbers")
    total = base
    for _ in range(n - 1):
        more = total | _product(total, base)
        _check_number(len(more))
        if len(more) == len(total):
            break
        total = more
    return total


def _check_number(terms: int) -> None:
    if terms > MAX_TERMS:
        raise ValueError(f"formula: expected at most {MAX_TERMS} terms, got more")


def _term(parts: tuple[Any, ...]) -> Any:
    """One of ``formulae``'s, of copies, for evaluating a component depends on its term."""
    try:
        return Term(*map(deepcopy, parts)) if parts else Intercept()
    except TypeError as error:  # formulae knows no interactions of splines
        names = ":".join(part.name for part in parts)
        raise ValueError(
            f"formula: expected no spline in an interaction, got {names}; add it as a term, or use "
            "poly(x, 3)"
        ) from error
