"""Where every call in a formula passes: it is on the list of `functions`, or it is refused.

Chapters 01 and 08. A formula's syntax tree comes in, and expressions that may be evaluated go out;
here nothing is evaluated.
"""

from __future__ import annotations

from typing import Any

from lmmbook.formula.parse.expressions import Application, Operation
from lmmbook.formula.parse.functions import CONTRASTS, LARGEST, LISTED, Functions, Known, unknown

from formulae.categorical import ENCODINGS
from formulae.expr import Assign, Binary, Call, Grouping, Literal, QuotedName, Unary, Variable
from formulae.terms.call_resolver import CallResolver, LazyOperator, LazyValue, LazyVariable

DEEPEST = 100  # calls, operators and parentheses inside one another
SIGNS, OPERATORS = CallResolver.UNARY_OPERATORS, CallResolver.BINARY_OPERATORS  # by their kinds
ARITHMETIC = ("PLUS", "MINUS", "STAR", "SLASH", "STAR_STAR")
COMPARISONS = ("EQUAL_EQUAL", "BANG_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL")


def plain_name(node: Any) -> str | None:
    """The name that a node is, without quotes or brackets; None of anything else."""
    return node.name.lexeme if isinstance(node, Variable) and node.level is None else None


def column_name(node: Any) -> str | None:
    """The name of a column, which may be quoted; None of anything else."""
    return node.expression.lexeme[1:-1] if isinstance(node, QuotedName) else plain_name(node)


def written(node: Any) -> Any:
    """What an error calls a node that is out of place: its operator, its value, ``x[...]``."""
    if isinstance(node, Variable):
        return f"{node.name.lexeme}[...]"
    if isinstance(node, Literal):
        return node.value
    return node.operator.lexeme if hasattr(node, "operator") else "="


def call(node: Call, functions: Functions, depth: int = 0) -> Application:
    """A call that may be evaluated, of one in a syntax tree, ``depth`` deep in another.

    Raises
    ------
    ValueError
        If it, or anything in it, is a call of what is no function on the list nor among the
        ``functions``, or has arguments that the function does not take; or is none that can be
        read.

    Examples
    --------
    >>> import numpy as np
    >>> from formulae.parser import Parser
    >>> from formulae.scanner import Scanner
    >>> def read(text):
    ...     return call(Parser(Scanner(text).scan(add_intercept=False)).parse(), {})
    >>> frame = {"x": np.array([0, 255], np.uint8)}  # x + 1 would be 0
    >>> read("np.sqrt(x + 1)").eval(frame, None).tolist()
    [1.0, 16.0]
    >>> read("np.savetxt('file', x)")
    Traceback (most recent call last):
        ...
    ValueError: formula: expected functions that are known here, such as np.log or center, got \
np.savetxt; use a column, or a function of your own, as functions={'f': ...}
    """
    _check_depth(depth)
    name = plain_name(node.callee)
    if name is None:
        raise _odd("a call of something that has no plain name")
    if name not in functions and name not in LISTED:
        raise ValueError(f"formula: {unknown(name, functions)}")
    given, named = _arguments(node)
    if name in functions:
        args = [_expression(arg, functions, depth + 1) for arg in given]
        kwargs = {key: _expression(arg, functions, depth + 1) for key, arg in named.items()}
        return Application(name, Known(functions[name]), args, kwargs, own=True)
    known = LISTED[name]
    columns, constants = given[: known.columns], given[known.columns :]
    keys = known.constants[: len(constants)]
    asked = known.constants[: known.needed - known.columns]
    if (
        len(columns) < known.columns
        or len(constants) > len(known.constants)
        or named.keys() - {*known.constants[len(keys) :], *known.named}
        or {*asked} - {*keys, *named}
    ):
        raise _other_arguments(name, known)
    args = [_expression(arg, functions, depth + 1) for arg in columns]
    of_constants = zip(keys, constants, strict=True)
    args += [_constant(name, key, arg, functions, depth) for key, arg in of_constants]
    kwargs = {key: _constant(name, key, arg, functions, depth) for key, arg in named.items()}
    return Application(name, known, args, kwargs)


def _arguments(node: Call) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a call: those without a name, and those with one."""
    given = [arg for arg in node.args if not isinstance(arg, Assign)]
    last = node.args[len(given) :]
    named = {arg.name.name.lexeme: arg.value for arg in last if isinstance(arg, Assign)}
    if len(given) + len(named) < len(node.args):
        raise ValueError(
            f"formula: expected arguments of {plain_name(node.callee)} with a name after those "
            "without, each name once"
        )
    return given, named


def _expression(node: Any, functions: Functions, depth: int) -> Any:
    """Columns, literals, operators and calls, in an argument that may be made of columns."""
    _check_depth(depth)
    if isinstance(node, Grouping):
        return _expression(node.expression, functions, depth + 1)
    column = column_name(node)
    if column is not None:
        return LazyVariable(column)
    if isinstance(node, Call):
        return call(node, functions, depth + 1)
    literal = _literal(node)
    if literal is not None:
        return literal
    if isinstance(node, Unary) and node.operator.kind in SIGNS:
        return Operation(SIGNS[node.operator.kind], _operand(node.right, functions, depth))
    if isinstance(node, Binary) and node.operator.kind in ARITHMETIC:
        parts = (_operand(part, functions, depth) for part in (node.left, node.right))
        return Operation(OPERATORS[node.operator.kind], *parts)
    if isinstance(node, Binary) and node.operator.kind in COMPARISONS:
        parts = (_expression(part, functions, depth + 1) for part in (node.left, node.right))
        return LazyOperator(OPERATORS[node.operator.kind], *parts)
    raise _odd(f"{written(node)} in a call")


def _operand(node: Any, functions: Functions, depth: int) -> Any:
    """What may be computed with."""
    part = _expression(node, functions, depth + 1)
    if isinstance(part, LazyValue) and not isinstance(part.value, bool | int | float):
        raise ValueError(f"formula: expected numbers to compute with, got {part}")
    return part


def _literal(node: Any) -> LazyValue | None:
    """A literal, or a number with a sign such as the -1 in np.round(x, -1); None of others."""
    sign = SIGNS.get(node.operator.kind) if isinstance(node, Unary) else None
    of = node.right if sign else node
    if not isinstance(of, Literal) or (sign and type(of.value) not in (int, float)):
        return None
    if isinstance(of.value, int) and abs(of.value) > 2**1000:
        raise ValueError("formula: expected numbers that float64 has, got one with more digits")
    return LazyValue(sign(of.value), None) if sign else LazyValue(of.value, of.lexeme)


def _constant(name: str, key: str, node: Any, functions: Functions, depth: int) -> Any:
    """An argument that is not made of columns: it is the same for new rows."""
    _check_depth(depth)
    if isinstance(node, Grouping):
        return _constant(name, key, node.expression, functions, depth + 1)
    if key == "contrast":
        return _contrast(node)
    literal = _literal(node)
    if literal is not None:
        value, largest = literal.value, LARGEST.get(key)
        if largest and value is not None and not (type(value) is int and 0 < value <= largest):
            raise ValueError(
                f"formula: expected a {key} of {name} from 1 to {largest}, a whole number, got "
                f"{literal}"
            )
        return literal
    own = plain_name(node.callee) if isinstance(node, Call) else None
    if own is not None and own in functions:
        given, named = _arguments(node)
        for part in (*given, *named.values()):
            _constant(own, "", part, functions, depth + 1)
        return call(node, functions, depth + 1)
    raise ValueError(
        f"formula: expected {key or 'the arguments'} of {name} to be the same for all rows: a "
        "number, a string, or one that a function of your own gives"
    )


def _contrast(node: Any) -> Any:
    """``Treatment``, ``Sum``, ``Treatment('b')`` or ``Sum('b')``."""
    name = plain_name(node.callee if isinstance(node, Call) else node)
    given, named = _arguments(node) if isinstance(node, Call) else ([], {})
    args, kwargs = [_literal(arg) for arg in given], {k: _literal(v) for k, v in named.items()}
    found = [*args, *kwargs.values()]
    if (
        name not in CONTRASTS
        or len(found) > 1
        or None in found
        or kwargs.keys() - {CONTRASTS[name]}
    ):
        raise ValueError(
            "formula: expected a contrast of C such as Treatment, Sum, Treatment('a') or Sum('a')"
        )
    if not isinstance(node, Call):
        return LazyValue(ENCODINGS[name], name)
    return Application(name, Known(ENCODINGS[name], takes="labels"), args, kwargs)


def _other_arguments(name: str, known: Known) -> ValueError:
    columns = ["x", "z", "w"][: known.columns]
    optional = [f"{key}=..." for key in (*known.constants, *known.named)]
    return ValueError(
        f"formula: expected {name}({', '.join(columns + optional)}), got other arguments"
    )


def _odd(what: str) -> ValueError:
    return ValueError(f"formula: cannot be read: expected columns, numbers and calls, got {what}")


def _check_depth(depth: int) -> None:
    if depth > DEEPEST:
        raise ValueError(
            f"formula: cannot be read: expected at most {DEEPEST} calls, operators and parentheses "
            "inside one another; make a column of it"
        )
