"""Values as JSON and arrays: what a file can hold of a fit.

Chapters 08 and 09. JSON knows strings, whole numbers and lists. `KINDS` says how all else is taken
apart, down to these, and put together again, bit by bit the same.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy.interpolate import PPoly


def pack(value: Any, arrays: list[np.ndarray]) -> Any:
    """A value as JSON has it. Arrays are appended to ``arrays``, and JSON says which one it is.

    What JSON does not know becomes ``{kind: parts}``, see `KINDS`. An array keeps the order of its
    axes in memory, on which the last bit of a sum depends.

    Raises
    ------
    ValueError
        If the value, or one inside it, is of no kind that is known here.

    Examples
    --------
    >>> pack({"distance": 0.1}, [])
    {'dict': {'distance': {'float': ['0x1.999999999999ap-4']}}}
    >>> unpack(pack((1, pd.Timestamp("2020-02-29")), []), [])
    (1, Timestamp('2020-02-29 00:00:00'))
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, list):
        return [pack(part, arrays) for part in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: pack(part, arrays) for key, part in value.items()}}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufcmMSU":
        axes = sorted(range(value.ndim), key=lambda axis: -abs(value.strides[axis]))
        arrays.append(value.transpose(axes))
        return {"array": [len(arrays) - 1, axes]}
    for kind, (of, parts, _) in KINDS.items():
        if isinstance(value, of):
            return {kind: pack(list(parts(value)), arrays)}
    raise ValueError(
        "expected numbers, strings, dates and what is made of them, which a file can hold, got "
        f"{type(value).__name__} {value!r}"
    )


def unpack(packed: Any, arrays: list[np.ndarray]) -> Any:
    """The inverse of `pack`."""
    if isinstance(packed, list):
        return [unpack(part, arrays) for part in packed]
    if not isinstance(packed, dict):
        return packed
    ((kind, parts),) = packed.items()
    if kind == "array":
        return arrays[parts[0]].transpose(np.argsort(parts[1]))
    if kind == "dict":
        return {key: unpack(part, arrays) for key, part in parts.items()}
    return KINDS[kind][2](*unpack(parts, arrays))


def _frame_parts(frame: pd.DataFrame) -> list[Any]:
    columns = [frame.iloc[:, j] for j in range(frame.shape[1])]
    return [frame.index, frame.columns, [pd.Index(c.array, dtype=c.dtype) for c in columns]]


def _frame(index: pd.Index, columns: pd.Index, values: list[pd.Index]) -> pd.DataFrame:
    by_place = {j: pd.Series(v, index, dtype=v.dtype) for j, v in enumerate(values)}
    return pd.DataFrame(by_place, index).set_axis(columns, axis=1)


def _timestamp(utc: np.datetime64, zone: str | None) -> pd.Timestamp:
    stamp = pd.Timestamp(utc)
    return stamp if zone is None else stamp.tz_localize("UTC").tz_convert(_no_path(zone))


def _index_parts(index: pd.Index) -> list[Any]:
    plain = isinstance(index.dtype, np.dtype) and index.dtype.kind != "O"
    return [index.to_numpy() if plain else index.tolist(), str(index.dtype), index.name]


def _index(values: Any, dtype: str, name: Any) -> pd.Index:
    return pd.Index(values, dtype=_no_path(dtype), name=name)


def _no_path(text: str) -> str:
    """pandas would read the file that ``dateutil/...`` names, in a time zone or a type."""
    if "/" in text and "dateutil" in text:
        raise ValueError(f"expected a time zone by its name, got {text!r}")
    return text


# Kind of value: its type, what it is made of, and how to make it of that. The first that fits.
KINDS: dict[str, tuple[type, Callable[[Any], Any], Callable[..., Any]]] = {
    "tuple": (tuple, list, lambda *parts: parts),
    "set": (set, list, lambda *parts: set(parts)),
    "map": (  # a dict whose keys are not all strings
        dict,
        lambda d: [list(d), list(d.values())],
        lambda keys, values: dict(zip(keys, values, strict=True)),
    ),
    "number": (  # of numpy; np.float64 is a float, too
        np.generic,
        lambda x: [x.dtype.str, x.tobytes().hex()],
        lambda dtype, digits: np.frombuffer(bytes.fromhex(digits), dtype)[0],
    ),
    "float": (float, lambda x: [x.hex()], float.fromhex),
    "timestamp": (pd.Timestamp, lambda t: [t.asm8, t.tz and str(t.tz)], _timestamp),
    "timedelta": (pd.Timedelta, lambda t: [t.asm8], pd.Timedelta),
    "period": (
        pd.Period,
        lambda p: [p.ordinal, p.freqstr],
        lambda ordinal, freq: pd.Period(ordinal=ordinal, freq=freq),
    ),
    "interval": (pd.Interval, lambda i: [i.left, i.right, i.closed], pd.Interval),
    "datetime": (datetime.datetime, lambda t: [t.isoformat()], datetime.datetime.fromisoformat),
    "date": (datetime.date, lambda d: [d.isoformat()], datetime.date.fromisoformat),
    "range": (
        pd.RangeIndex,
        lambda r: [r.start, r.stop, r.step, r.name],
        lambda start, stop, step, name: pd.RangeIndex(start, stop, step, name=name),
    ),
    "multi": (
        pd.MultiIndex,
        lambda index: [list(index), list(index.names)],
        lambda rows, names: pd.MultiIndex.from_tuples(rows, names=names),
    ),
    "index": (pd.Index, _index_parts, _index),
    "frame": (pd.DataFrame, _frame_parts, _frame),
    "spline": (PPoly, lambda s: [s.c, s.x, s.extrapolate, s.axis], PPoly),
}
