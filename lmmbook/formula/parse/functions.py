"""The functions that a formula may call: those on a list here, and those that the caller gives.

Chapters 01 and 08. A formula may come from a stranger, in a file or a form, so it can name no
function but these. They look at one row at a time, or remember what they took from the training
rows. None reads, writes, imports, changes what it is given, or makes more than a few columns of it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from formulae.transforms import TRANSFORMS, Offset

# The user's own, by the names that a formula has for them.
Functions: TypeAlias = Mapping[str, Callable[..., Any]]


class Known(NamedTuple):
    """A function on the list, and how a formula may call it.

    Attributes
    ----------
    function
        What is called; for a transform with memory its class.
    columns
        The most arguments that may be made of columns. They come first, and without a name.
    needed
        How many arguments there have to be, of both sorts.
    constants
        Names of the arguments after these, in order: literals, or calls of the user's functions.
    named
        More of these, which have to be given by name.
    takes
        ``"numbers"``, as float64; ``"values"``, numbers as float64 and others as they are; or
        ``"labels"``, everything as the data have it.
    """

    function: Any
    columns: int = 1
    needed: int = 1
    constants: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    takes: str = "numbers"

    @property
    def remembers(self) -> bool:
        """Whether it keeps, for new rows, what it took from the training rows."""
        return bool(getattr(self.function, "__stateful_transform__", False))


class Cut:
    """``pd.cut``, which remembers the edges that it chose from the training rows."""

    __stateful_transform__ = True

    def __init__(self) -> None:
        self.edges: Any = None

    def __call__(self, x: pd.Series, bins: int, right: bool = True) -> pd.Series:
        """An interval a row; raises a ValueError if a row lies beyond the outermost edges."""
        if self.edges is None:
            _, self.edges = pd.cut(x, bins, right=right, retbins=True)
        found = pd.Series(pd.cut(x, self.edges, right=right))
        if found.isna().any():
            low, high = self.edges[0], self.edges[-1]
            raise ValueError(f"expected values from {low:g} to {high:g}, the training rows'")
        return found


def _offset(x: Any) -> Offset:
    """formulae's, which takes no arrays."""
    return Offset(pd.Series(x) if isinstance(x, np.ndarray) and x.ndim else x)


def _binary(x: pd.Series, success: Any) -> np.ndarray:
    """1.0 where ``x`` is ``success``, else 0.0."""
    return np.where(x == success, 1.0, 0.0)


def _to_numeric(x: pd.Series) -> pd.Series:
    return pd.to_numeric(x).astype(float)


UNARY = """abs absolute fabs sign exp exp2 expm1 log log2 log10 log1p sqrt cbrt square reciprocal
negative positive sin cos tan arcsin arccos arctan sinh cosh tanh arcsinh arccosh arctanh degrees
radians deg2rad rad2deg floor ceil trunc rint isfinite isinf isnan logical_not"""
BINARY = """add subtract multiply divide true_divide floor_divide mod remainder fmod power
float_power maximum minimum fmax fmin arctan2 hypot logaddexp logaddexp2 copysign heaviside
logical_and logical_or logical_xor"""
COMPARISONS = "equal not_equal less less_equal greater greater_equal"

PAIRS = ("p", "prop", "proportion")  # for successes out of trials
# The largest values of constants that say how much is computed.
LARGEST = {"bins": 200, "df": 200, "degree": 50, "max_knots": 4000}
LISTED: dict[str, Known] = {
    **{f"np.{name}": Known(getattr(np, name)) for name in UNARY.split()},
    **{f"np.{name}": Known(getattr(np, name), 2, 2) for name in BINARY.split()},
    **{
        f"np.{name}": Known(getattr(np, name), 2, 2, takes="labels") for name in COMPARISONS.split()
    },
    "np.where": Known(np.where, 3, 3, takes="values"),
    "np.clip": Known(np.clip, 3, 3),
    "np.round": Known(np.round, constants=("decimals",)),
    "np.around": Known(np.around, constants=("decimals",)),
    "np.isin": Known(np.isin, 1, 2, ("test_elements",), takes="labels"),
    "pd.cut": Known(Cut, 1, 2, ("bins", "right")),
    "pd.to_numeric": Known(_to_numeric, takes="labels"),
    "I": Known(TRANSFORMS["I"], takes="labels"),
    "offset": Known(_offset),
    **{name: Known(TRANSFORMS[name]) for name in ("center", "scale", "standardize")},
    "poly": Known(TRANSFORMS["poly"], 1, 1, ("degree", "raw")),
    "bs": Known(
        TRANSFORMS["bs"], 1, 1, ("df", "knots", "degree"), ("lower_bound", "upper_bound", "center")
    ),
    "cr": Known(TRANSFORMS["cr"], 1, 1, ("df", "knots", "lower_bound", "upper_bound", "center")),
    "cc": Known(TRANSFORMS["cc"], 1, 2, ("period", "df", "knots", "lower_bound", "center")),
    "tp": Known(TRANSFORMS["tp"], 1, 1, ("df", "center", "max_knots", "seed")),
    "C": Known(TRANSFORMS["C"], 1, 1, ("contrast",), takes="labels"),
    "S": Known(TRANSFORMS["S"], 1, 1, ("omit",), takes="labels"),
    "T": Known(TRANSFORMS["T"], 1, 1, ("ref",), takes="labels"),
    **dict.fromkeys(("binary", "B"), Known(_binary, 1, 2, ("success",), takes="labels")),
    **dict.fromkeys(PAIRS, Known(TRANSFORMS["proportion"], 2, 2, takes="labels")),
}  # fmt: skip
CONTRASTS = {"Treatment": "reference", "Sum": "omit"}  # of C, and what they take

WHOLE = re.compile(  # functions that look at all rows
    "mean|average|median|std|var|sum|prod|a?min|a?max|ptp|cumsum|cumprod|diff|gradient|sort|argsort"
    "|rank|quantile|percentile|unique|qcut|digitize|histogram|bincount|roll|flip"
)
RESERVED = frozenset(["Intercept", "intercept", "sd", "cor", "score", "threshold", "np", "pd"])


def checked(functions: Functions | None) -> dict[str, Callable[..., Any]]:
    """The user's own functions, once their names are known to be free.

    Raises
    ------
    TypeError, ValueError
        If it is no mapping from names to what can be called; or a name is not a plain one, or is
        taken.

    Examples
    --------
    >>> list(checked({"double": lambda x: 2 * x}))
    ['double']
    >>> checked({"center": lambda x: x})
    Traceback (most recent call last):
        ...
    ValueError: functions: expected names that are free, got 'center', which is known here already
    """
    if functions is None:
        return {}
    if not hasattr(functions, "items"):
        got = type(functions).__name__
        raise TypeError(f"functions: expected a mapping from names to functions, got {got}")
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(f"functions: expected a function for {name!r}, got {function!r}")
        if not (str(name).isidentifier() and name[0].isalpha()):
            raise ValueError(
                "functions: expected plain names, of letters, digits and underscores, that begin "
                f"with a letter, got {name!r}"
            )
        if name in LISTED or name in CONTRASTS or name in RESERVED:
            raise ValueError(
                f"functions: expected names that are free, got {name!r}, which is known here "
                "already"
            )
    return dict(functions)


def unknown(name: str, given: Functions) -> str:
    """What to say of a function that is not on the list."""
    plain = name.rsplit(".", 1)[-1].removeprefix("nan")
    text = f"expected functions that are known here, such as np.log or center, got {name}"
    if WHOLE.fullmatch(plain):
        return (
            f"{text}, which looks at all rows, so that new rows would get other values; use "
            "center(x) or scale(x), which remember the training rows, or make it a column"
        )
    close = difflib.get_close_matches(name, [*LISTED, *given], 1, 0.8)
    instead = f"{close[0]}, or " if close else ""
    if name.isidentifier():
        return f"{text}; use {instead}a function of your own, as functions={{{name!r}: ...}}"
    return f"{text}; use {instead}a column, or a function of your own, as functions={{'f': ...}}"
