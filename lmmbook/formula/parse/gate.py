"""Where every call in a formula passes: it is on the list of `functions`, or it is refused.

Chapters 01 and 08. A formula's syntax tree comes in, and expressions that may be evaluated go out;
here nothing is evaluated.
"""

from __future__ import annotations

import operator
from typing import Any

from lmmbook.formula.parse.expressions import Application, Operation
from lmmbook.formula.parse.functions import CONTRASTS, LISTED, Functions, Known, unknown

from formulae.categorical import ENCODINGS
from formulae.expr import Assign, Binary, Call, Grouping, Literal, QuotedName, Unary, Variable
from formulae.terms.call_resolver import LazyOperator, LazyValue, LazyVariable

DEEPEST = 100  # calls, operators and parentheses inside one another
ARITHMETIC = {
    "PLUS": operator.add, "MINUS": operator.sub, "STAR": operator.mul, "SLASH": operator.truediv,
    "STAR_STAR": operator.pow,
}  # fmt: skip
COMPARISONS = {
    "EQUAL_EQUAL": operator.eq, "BANG_EQUAL": operator.ne, "LESS": operator.lt,
    "LESS_EQUAL": operator.le, "GREATER": operator.gt, "GREATER_EQUAL": operator.ge,
}  # fmt: skip
SIGNS = {"PLUS": operator.pos, "MINUS": operator.neg}


def call(node: Call, functions: Functions) -> Application:
    """A call that may be evaluated, of one in a syntax tree.

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
    return _call(node, functions, 0)


def _expression(node: Any, functions: Functions, depth: int) -> Any:
    """Columns, literals, operators and calls, in an argument that may be made of columns."""
    _check_depth(depth)
    if isinstance(node, Grouping):
        return _expression(node.expression, functions, depth + 1)
    if isinstance(node, Variable):
        if node.level is not None:
            raise _odd(f"{node.name.lexeme}[...]")
        return LazyVariable(node.name.lexeme)
    if isinstance(node, QuotedName):
        return LazyVariable(node.expression.lexeme[1:-1])
    if isinstance(node, Call):
        return _call(node, functions, depth + 1)
    if isinstance(node, Literal) or _is_signed(node):
        return _literal(node)
    if isinstance(node, Unary) and node.operator.kind in SIGNS:
        return Operation(SIGNS[node.operator.kind], _operand(node.right, functions, depth))
    if isinstance(node, Binary) and node.operator.kind in ARITHMETIC:
        parts = (_operand(part, functions, depth) for part in (node.left, node.right))
        return Operation(ARITHMETIC[node.operator.kind], *parts)
    if isinstance(node, Binary) and node.operator.kind in COMPARISONS:
        parts = (_expression(part, functions, depth + 1) for part in (node.left, node.right))
        return LazyOperator(COMPARISONS[node.operator.kind], *parts)
    raise _odd(getattr(getattr(node, "operator", None), "lexeme", "=") + " in a call")


def _operand(node: Any, functions: Functions, depth: int) -> Any:
    """What may be computed with."""
    part = _expression(node, functions, depth + 1)
    if isinstance(part, LazyValue) and not isinstance(part.value, bool | int | float):
        raise ValueError(f"formula: expected numbers to compute with, got {part}")
    return part


def _is_signed(node: Any) -> bool:
    """Whether it is a number with a sign, such as the -1 in np.round(x, -1)."""
    return (
        isinstance(node, Unary)
        and node.operator.kind in SIGNS
        and isinstance(node.right, Literal)
        and type(node.right.value) in (int, float)
    )


def _literal(node: Any) -> LazyValue:
    if isinstance(node, Unary):
        value = _literal(node.right).value
        return LazyValue(-value if node.operator.kind == "MINUS" else value, None)
    if isinstance(node.value, int) and abs(node.value) > 2**1000:
        raise ValueError("formula: expected numbers that float64 has, got one with more digits")
    return LazyValue(node.value, node.lexeme)


def _call(node: Call, functions: Functions, depth: int) -> Application:
    _check_depth(depth)
    if not isinstance(node.callee, Variable) or node.callee.level is not None:
        raise _odd("a call of something that has no plain name")
    name = node.callee.name.lexeme
    if name in functions:
        known = Known(functions[name])
        return Application(name, known, *_own_arguments(node, functions, depth), own=True)
    if name not in LISTED:
        raise ValueError(f"formula: {unknown(name, functions)}")
    known = LISTED[name]
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for place, arg in enumerate(node.args):
        if isinstance(arg, Assign):
            key = arg.name.name.lexeme
            taken = (*known.constants[: max(len(args) - known.columns, 0)], *kwargs)
            if key not in (*known.constants, *known.named) or key in taken:
                raise _arguments(name, known)
            kwargs[key] = _constant(name, known, key, arg.value, functions, depth)
        elif kwargs or place >= known.columns + len(known.constants):
            raise _arguments(name, known)
        elif place < known.columns:
            args.append(_expression(arg, functions, depth + 1))
        else:
            key = known.constants[place - known.columns]
            args.append(_constant(name, known, key, arg, functions, depth))
    asked = known.constants[: known.needed - known.columns]
    given = len(args) + sum(key in asked for key in kwargs)
    if len(args) < min(known.columns, known.needed) or given < known.needed:
        raise _arguments(name, known)
    return Application(name, known, args, kwargs)


def _constant(
    name: str, known: Known, key: str, node: Any, functions: Functions, depth: int
) -> Any:
    """An argument that is not made of columns: it is the same for new rows."""
    _check_depth(depth)
    if isinstance(node, Grouping):
        return _constant(name, known, key, node.expression, functions, depth + 1)
    if key == "contrast":
        return _contrast(node)
    if isinstance(node, Literal) or _is_signed(node):
        found = _literal(node)
        largest = known.sizes.get(key)
        if largest is not None and not (found.value is None or _fits(found.value, largest)):
            raise ValueError(
                f"formula: expected a {key} of {name} from 1 to {largest}, a whole number, got "
                f"{found}"
            )
        return found
    if isinstance(node, Call) and getattr(getattr(node, "callee", None), "level", "") is None:
        own = node.callee.name.lexeme
        if own in functions:
            parts = [part.value if isinstance(part, Assign) else part for part in node.args]
            for part in parts:
                _constant(own, Known(None), "", part, functions, depth + 1)
            return _call(node, functions, depth + 1)
    raise ValueError(
        f"formula: expected {key or 'the arguments'} of {name} to be the same for all rows: a "
        "number, a string, or one that a function of your own gives"
    )


def _fits(value: Any, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= largest


def _contrast(node: Any) -> Any:
    """``Treatment``, ``Sum``, ``Treatment('b')`` or ``Sum('b')``."""
    callee = node.callee if isinstance(node, Call) else node
    name = callee.name.lexeme if isinstance(callee, Variable) and not callee.level else None
    parts = node.args if isinstance(node, Call) else []
    values = [part.value if isinstance(part, Assign) else part for part in parts]
    keys = [part.name.name.lexeme for part in parts if isinstance(part, Assign)]
    literal = all(isinstance(v, Literal) or _is_signed(v) for v in values)
    right_key = not keys or keys == [CONTRASTS.get(str(name))]
    if name not in CONTRASTS or len(parts) > 1 or not literal or not right_key:
        raise ValueError(
            "formula: expected a contrast of C such as Treatment, Sum, Treatment('a') or Sum('a')"
        )
    if not isinstance(node, Call):
        return LazyValue(ENCODINGS[name], name)
    found = [_literal(v) for v in values]
    made = ([], dict(zip(keys, found, strict=True))) if keys else (found, {})
    return Application(name, Known(ENCODINGS[name], takes="labels"), *made)


def _own_arguments(
    node: Call, functions: Functions, depth: int
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a function of the user's."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for arg in node.args:
        if isinstance(arg, Assign) and arg.name.name.lexeme not in kwargs:
            kwargs[arg.name.name.lexeme] = _expression(arg.value, functions, depth + 1)
        elif isinstance(arg, Assign) or kwargs:
            raise ValueError(
                f"formula: expected arguments of {node.callee.name.lexeme} with a name after "
                "those without, each name once"
            )
        else:
            args.append(_expression(arg, functions, depth + 1))
    return args, kwargs


def _arguments(name: str, known: Known) -> ValueError:
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
