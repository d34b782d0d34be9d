"""What a formula computes from columns: ``np.log(x)``, ``center(x)``, ``{x / z}``, ``C(k)``.

Chapters 01 and 08. `gate` makes these expressions. They hold their functions, and do not look them
up by name when they are evaluated. Arithmetic is in float64: products and powers of small integers
would wrap around.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lmmbook.formula.parse.functions import Known

import numpy as np
import pandas as pd
from formulae.environment import Environment
from formulae.terms.call_resolver import LazyCall, LazyOperator, LazyValue, LazyVariable
from formulae.terms.variable import Variable as Column

NOTHING = Environment([{}])  # expressions hold their functions: no name is looked up


class Operation(LazyOperator):
    """Arithmetic, of float64. (A comparison takes values as they are: so it is exact.)"""

    def eval(self, data_mask: Any, env: Any) -> Any:
        """What comes of it, ``[rows]``."""
        return self.op(*(as_numbers(part.eval(data_mask, env), part) for part in self.args))


class Application(LazyCall):
    """A call of a function, which it holds; ``known`` says what arguments it takes."""

    def __init__(
        self, callee: str, known: Known, args: list[Any], kwargs: dict[str, Any], own: bool = False
    ) -> None:
        super().__init__(callee, args, kwargs)
        self.stateful_transform: Any = None
        self.known, self.own = known, own

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LazyCall) and bool(super().__eq__(other))

    def eval(self, data_mask: Any, env: Any) -> Any:
        """What comes of it: ``[rows]``, ``[rows, columns]``, or something of formulae's."""
        if self.known.remembers and self.stateful_transform is None:
            self.stateful_transform = self.known.function()
        args = [part.eval(data_mask, env) for part in self.args]
        kwargs = {name: part.eval(data_mask, env) for name, part in self.kwargs.items()}
        if self.own:  # which gets its literals as they are: a lag is a whole number
            args = [self._given(*pair) for pair in zip(args, self.args, strict=True)]
            kwargs = {name: self._given(x, self.kwargs[name]) for name, x in kwargs.items()}
        elif self.known.takes != "labels":
            strict = self.known.takes == "numbers"
            for i in range(min(len(args), self.known.columns)):
                args[i] = as_numbers(args[i], self.args[i], strict)
        return (self.stateful_transform or self.known.function)(*args, **kwargs)

    @staticmethod
    def _given(value: Any, of: Any) -> Any:
        return value if isinstance(of, LazyValue) else as_numbers(value, of, strict=False)


def as_numbers(value: Any, of: Any, strict: bool = True) -> Any:
    """Numbers as float64, without a copy where they are; others as they are, unless ``strict``."""
    if isinstance(value, bool | int | float | np.number | np.bool_):
        return float(value)
    kind = getattr(value, "dtype", None)
    if kind is None or not pd.api.types.is_numeric_dtype(kind) or kind.kind == "c":
        if strict:
            raise ValueError(f"expected numbers, got {kind or type(value).__name__} in {of}")
        return value
    if isinstance(value, pd.Series):
        if kind == np.float64 and isinstance(kind, np.dtype):
            return value
        return pd.Series(value.to_numpy(float), value.index, name=value.name, copy=False)
    return np.asarray(value, float)


def parts_of(terms: Iterable[Any]) -> list[Any]:
    """The components of terms, columns and calls; an intercept has none."""
    return [part for term in terms for part in getattr(term, "components", ())]


def inside(part: Any, read: bool = True) -> Iterator[Any]:
    """An expression, or that of a component, and all that it is made of.

    Without ``read``, not what a function makes sense of, ``pd.to_numeric`` or one of the user's
    own: that may hold any text.
    """
    lazy = getattr(part, "call", part)
    if not read and isinstance(lazy, Application) and (lazy.own or lazy.callee == "pd.to_numeric"):
        return
    yield lazy
    for inner in (*getattr(lazy, "args", ()), *getattr(lazy, "kwargs", {}).values()):
        yield from inside(inner, read)


def calls(part: Any) -> list[Application]:
    """The calls `inside`, from the outermost on."""
    return [inner for inner in inside(part) if isinstance(inner, Application)]


def columns_in(*parts: Any, read: bool = True) -> frozenset[str]:
    """The columns `inside`."""
    found = (inner for part in parts for inner in inside(part, read))
    return frozenset(inner.name for inner in found if isinstance(inner, LazyVariable | Column))


def key_of(lazy: Any) -> tuple[Any, ...]:
    """What tells an expression from others, which may be printed like it: parentheses are not."""
    if isinstance(lazy, LazyValue):
        return "value", type(lazy.value).__name__, str(lazy.value)
    if isinstance(lazy, LazyVariable):
        return "column", lazy.name
    args = tuple(key_of(part) for part in lazy.args)
    if isinstance(lazy, LazyOperator):
        return "operator", lazy.symbol, *args
    kwargs = tuple((name, key_of(part)) for name, part in sorted(lazy.kwargs.items()))
    return "call", lazy.callee, args, kwargs


def computed(part: Any, compute: Callable[..., Any], *of: Any) -> Any:
    """``compute(*of)``, which evaluates a component; or an error that names it."""
    try:
        with np.errstate(all="ignore"):  # infinite values are refused, by name
            return compute(*of)
    except Exception as error:
        what = str(error) or type(error).__name__
        raise ValueError(
            f"formula: {part.name} cannot be computed from these data: {what}"
        ) from error
