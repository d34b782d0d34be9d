"""A fit in one file, which another process and another version can read.

Chapters 08 and 09. The file is a zip archive: ``fit.json`` describes the fit, and its arrays lie
beside it as ``0.npy``, ``1.npy``, ... Nothing is pickled, so reading runs no code of the file's.
Its formula passes the same gate as any other: it can call what is on the list of `functions`, and
what the reader gives.

The rows of the training data stay behind. What is kept of them, for the columns of new rows, is in
`state`; how JSON and arrays hold it all is in `packing`.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Callable
from importlib.metadata import version
from itertools import chain
from typing import Any, cast

from lmmbook import families
from lmmbook._version import __version__
from lmmbook.data.labels import from_text
from lmmbook.formula.dependence import LeftOut
from lmmbook.formula.design import Design
from lmmbook.formula.factors import Factor
from lmmbook.formula.parse.functions import Functions, checked
from lmmbook.formula.state import components, descriptions, restored, state_of, used
from lmmbook.formula.terms import Terms
from lmmbook.results.packing import pack, unpack
from lmmbook.results.whole_file import writing

import numpy as np

FORMAT = 4  # of the file
READ = (2, 3, 4)  # formats that are read; any other is refused, in words
DESCRIPTION = "fit.json"
PACKAGES = ("numpy", "pandas", "scipy", "tensorflow", "formulae")
DAMAGED = (  # what reading says of a file that is none, or is none any more
    zipfile.BadZipFile, zlib.error, OSError, EOFError, KeyError, RuntimeError, TypeError, ValueError
)  # fmt: skip
ODD = (AttributeError, IndexError, KeyError, MemoryError, OverflowError, TypeError)  # as a value
FAMILIES = {kind.__name__: kind for kind in families.NAMED.values()}


def write(path: str | os.PathLike[str], values: dict[str, Any]) -> None:
    """Write the attributes of a `Fit`; an interrupted one leaves an older file as it was.

    Raises
    ------
    ValueError
        Before anything is written, if there is a value among them that only Python knows, as the
        functions of `families.Custom` are.
    """
    arrays: list[np.ndarray] = []
    fit = pack(values | {"design": _parts(values["design"])}, arrays)
    versions = {"lmmbook": __version__} | {name: version(name) for name in PACKAGES}
    description = {"format": FORMAT, "written_by": versions, "arrays": len(arrays), "fit": fit}
    # Draws are noise: they do not compress.
    with writing(path) as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr(DESCRIPTION, json.dumps(description), zipfile.ZIP_DEFLATED)
        for k, array in enumerate(arrays):
            with archive.open(f"{k}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def read(
    path: str | os.PathLike[str], functions: Functions | None = None
) -> dict[str, Any]:  # fmt: skip
    """The attributes of a `Fit` that `write` wrote.

    ``functions`` are those of the user's own that its formula calls, by name.

    Raises
    ------
    ValueError
        If the file is none that `write` wrote, is damaged, or has a newer format; or the formula
        has a function that is not known here and not given.
    """
    own = checked(functions)
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                description = json.loads(archive.read(DESCRIPTION))
                found, fit = description["format"], description["fit"]
                count = description["arrays"] if found in READ else 0
                arrays = [_array(archive, k) for k in range(count)]
        except DAMAGED as error:
            raise ValueError(f"{path}: expected a file that Fit.save wrote, got {error}") from error
    if found not in READ:
        raise ValueError(
            f"{path}: expected a fit in format 2, 3 or 4, got format "
            f"{found!r}, written by {description.get('written_by')}; the lmmbook that wrote it "
            "reads it"
        )
    try:
        values = unpack(fit, arrays)
        return values | {"design": _design(values["design"], own)}
    except ODD as error:
        raise ValueError(
            f"{path}: expected a file that Fit.save wrote, got another description: {error!r}"
        ) from error


def _array(archive: zipfile.ZipFile, k: int) -> np.ndarray:
    with archive.open(f"{k}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _parts(design: Design) -> dict[str, Any]:
    """What `_design` takes: all but the rows."""
    family = type(design.family).__name__
    if FAMILIES.get(family) is not type(design.family):
        raise ValueError(
            f"family: expected one of {', '.join(FAMILIES)} to save, got {family}: its Python "
            "functions cannot be put into a file"
        )
    matrices = [(design._common,), *(f._common for f in design.factors)]
    groups = [f.columns for f in design.factors]
    for description in chain(*descriptions(design.formula, groups, design._functions)):
        components(description)  # refuses what could not be told apart
    plain = ("formula", "rows", "fixed_names", "_response", "_columns", "_categories")
    return {name: getattr(design, name) for name in plain} | {
        "family": [family, vars(design.family)],
        "left_out": design._left_out and list(design._left_out),
        "functions": sorted(used(design.formula, design._functions)),
        "factors": [
            [f.name, f.columns, f.labels, f.effects, f.blocks, f.keys, f._by_text]
            for f in design.factors
        ],
        "matrices": [[state_of(matrix) for matrix in own] for own in matrices],
    }


def _design(parts: dict[str, Any], own: dict[str, Callable[..., Any]]) -> Design:
    """A design without its rows: NaN stands in their place, and takes no memory."""
    missing = [name for name in parts.get("functions", ()) if name not in own]
    if missing:
        text = ", ".join(f"{name!r}: ..." for name in missing)
        raise ValueError(
            f"functions: expected those of the fit's formula, {missing}, got {sorted(own)}; give "
            f"them as lmmbook.load(path, functions={{{text}}})"
        )
    rows, names, (family, of_family) = parts["rows"], parts["fixed_names"], parts["family"]
    groups = [group for _, group, *_ in parts["factors"]]
    parsed = descriptions(parts["formula"], groups, own)
    (common,), *commons = (
        tuple(restored(*pair) for pair in zip(*pairs, strict=True))
        for pairs in zip(parts["matrices"], parsed, strict=True)
    )
    factors = tuple(
        Factor(
            name, group, labels, _absent(rows, of=np.int32(-1)), effects,
            _absent(rows, len(effects)), blocks, matrices,
            *(keys or (from_text(labels, group), len(group) > 1)),
        )
        for (name, group, labels, effects, blocks, *keys), matrices in zip(
            parts["factors"], commons, strict=True
        )
    )  # fmt: skip
    return Design(
        parts["formula"], FAMILIES[family](**of_family), _absent(rows), _absent(rows),
        _absent(rows, len(names)), names, factors, cast(Terms, common), parts["_response"],
        parts["_columns"], parts["_categories"], own,
        LeftOut(*parts["left_out"]) if parts.get("left_out") else None,
    )  # fmt: skip


def _absent(*shape: int, of: Any = np.nan) -> np.ndarray:
    return np.broadcast_to(of, shape)
