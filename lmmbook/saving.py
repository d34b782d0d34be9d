"""A fit in one file, which another process and another version can read.

Chapters 08 and 09. The file is a zip archive: ``fit.json`` describes the fit, and its arrays lie
beside it as ``0.npy``, ``1.npy``, ... Nothing is pickled, so reading runs no code of the file's.
(The functions in the formula are called when it predicts: look at the formula of a stranger's.)

The rows of the training data stay behind. What is kept of them, for the columns of new rows, is in
`formula_state`; how JSON and arrays hold it all is in `packing`.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from importlib.metadata import version
from itertools import chain
from typing import Any

from lmmbook import families
from lmmbook.design import Design
from lmmbook.factors import Factor
from lmmbook.formula_state import components, descriptions, restored, state_of
from lmmbook.packing import pack, unpack
from lmmbook.whole_file import writing

import numpy as np

FORMAT = 2  # of the file; a reader refuses any other
DESCRIPTION = "fit.json"
PACKAGES = ("numpy", "pandas", "scipy", "tensorflow", "formulae")
DAMAGED = (  # what reading says of a file that is none, or is none any more
    zipfile.BadZipFile, zlib.error, OSError, EOFError, KeyError, RuntimeError, TypeError, ValueError
)  # fmt: skip
FAMILIES: dict[str, type] = {
    name: getattr(families, name)
    for name in ("Gaussian", "Bernoulli", "Poisson", "Cumulative", "Categorical")
}


def write(path: str | os.PathLike[str], values: dict[str, Any]) -> None:
    """Write the attributes of a `Fit`; an interrupted one leaves an older file as it was.

    Raises
    ------
    ValueError
        Before anything is written, if there is a value among them that only Python knows, as the
        functions of `families.Custom` are.
    """
    from lmmbook import __version__  # not there yet when this module is imported

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


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The attributes of a `Fit` that `write` wrote.

    Raises
    ------
    ValueError
        If the file is none that `write` wrote, is damaged, or has a newer format; or the formula
        has a function that is not known here.
    """
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                description = json.loads(archive.read(DESCRIPTION))
                found, fit = description["format"], description["fit"]
                count = description["arrays"] if found == FORMAT else 0
                arrays = [_array(archive, k) for k in range(count)]
        except DAMAGED as error:
            raise ValueError(f"{path}: expected a file that Fit.save wrote, got {error}") from error
    if found != FORMAT:
        raise ValueError(
            f"{path}: expected a fit in format {FORMAT}, got format {found!r}, written by "
            f"{description.get('written_by')}; the lmmbook that wrote it reads it"
        )
    values = unpack(fit, arrays)
    return values | {"design": _design(values["design"])}


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
    for description in chain(*descriptions(design.formula, [f.columns for f in design.factors])):
        components(description)  # refuses what could not be told apart
    plain = ("formula", "rows", "fixed_names", "_response", "_columns", "_categories")
    return {name: getattr(design, name) for name in plain} | {
        "family": [family, vars(design.family)],
        "factors": [[f.name, f.columns, f.labels, f.effects, f.blocks] for f in design.factors],
        "matrices": [[state_of(matrix) for matrix in own] for own in matrices],
    }


def _design(parts: dict[str, Any]) -> Design:
    """A design without its rows: NaN stands in their place, and takes no memory."""
    rows, names, (family, of_family) = parts["rows"], parts["fixed_names"], parts["family"]
    parsed = descriptions(parts["formula"], [group for _, group, *_ in parts["factors"]])
    (common,), *commons = (
        tuple(restored(*pair) for pair in zip(*own, strict=True))
        for own in zip(parts["matrices"], parsed, strict=True)
    )
    factors = tuple(
        Factor(
            name, group, labels, _absent(rows, of=np.int32(-1)), effects,
            _absent(rows, len(effects)), blocks, own,
        )
        for (name, group, labels, effects, blocks), own in zip(
            parts["factors"], commons, strict=True
        )
    )  # fmt: skip
    return Design(
        parts["formula"], FAMILIES[family](**of_family), _absent(rows), _absent(rows),
        _absent(rows, len(names)), names, factors, common, parts["_response"], parts["_columns"],
        parts["_categories"],
    )  # fmt: skip


def _absent(*shape: int, of: Any = np.nan) -> np.ndarray:
    return np.broadcast_to(of, shape)
