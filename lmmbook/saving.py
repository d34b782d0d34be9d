"""A fit in one file, which another process and another version can read.

Chapters 08 and 09. The file is a zip archive: ``fit.json`` describes the fit, and its arrays lie
beside it as ``0.npy``, ``1.npy``, ... Nothing is pickled, so reading runs no code of the file's.
(The functions in the formula are called when it predicts: look at the formula of a stranger's.)

The rows of the training data stay behind. What the columns of new rows need is what ``formulae``
remembers of them: the categories, and the numbers of ``center(x)`` and its like. That is written
down, and put into terms that are parsed from the formula again.
"""

from __future__ import annotations

import json
import os
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lmmbook import families, formula, syntax
from lmmbook.factors import Factor
from lmmbook.formula import Design
from lmmbook.packing import pack, unpack

import numpy as np
from formulae.categorical import ENCODINGS, ContrastMatrix
from formulae.environment import Environment
from formulae.matrices import CommonEffectsMatrix
from formulae.terms.call import Call
from formulae.terms.call_resolver import LazyCall, get_function_from_module
from formulae.terms.terms import Intercept, Term
from formulae.transforms import TRANSFORMS

FORMAT = 1  # of the file; a reader refuses what is newer than itself
DESCRIPTION = "fit.json"
PACKAGES = ("numpy", "pandas", "scipy", "tensorflow", "formulae")
FAMILIES = ("Gaussian", "Bernoulli", "Poisson", "Cumulative", "Categorical")


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
    target = Path(path).resolve()  # a link stays one
    beside = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
    try:
        with open(beside, "xb") as file:
            with zipfile.ZipFile(file, "w") as archive:  # draws are noise: they do not compress
                archive.writestr(DESCRIPTION, json.dumps(description), zipfile.ZIP_DEFLATED)
                for k, array in enumerate(arrays):
                    with archive.open(f"{k}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The attributes of a `Fit` that `write` wrote.

    Raises
    ------
    ValueError
        If the file is none that `write` wrote, is damaged, or has a newer format; or the formula
        has a function that is not known here.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            description = json.loads(archive.read(DESCRIPTION))
            found, fit = description["format"], description["fit"]
            if found == FORMAT:
                arrays = [_array(archive, k) for k in range(description["arrays"])]
    except (
        zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError, TypeError, ValueError
    ) as error:  # fmt: skip
        raise ValueError(f"{path}: expected a file that Fit.save wrote, got {error}") from error
    if found != FORMAT:
        raise ValueError(
            f"{path}: expected a fit in format {FORMAT}, got format {found!r}, written by "
            f"{description.get('written_by')}; a newer lmmbook may read it"
        )
    values = unpack(fit, arrays)
    return values | {"design": _design(values["design"])}


def _array(archive: zipfile.ZipFile, k: int) -> np.ndarray:
    with archive.open(f"{k}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _parts(design: Design) -> dict[str, Any]:
    """What `_design` takes: all but the rows."""
    name = type(design.family).__name__
    if name not in FAMILIES or type(design.family) is not getattr(families, name):
        raise ValueError(
            f"family: expected one of {', '.join(FAMILIES)} to save, got {name}: its Python "
            "functions cannot be put into a file"
        )
    matrices = [(design._common,), *(f._common for f in design.factors)]
    for description in _descriptions(design.formula, [f.columns for f in design.factors]):
        for part in description:
            _components(part)  # refuses what could not be told apart
    return {
        "formula": design.formula,
        "family": [name, vars(design.family)],
        "rows": design.rows,
        "fixed_names": design.fixed_names,
        "response": design._response,
        "columns": design._columns,
        "categories": design._categories,
        "factors": [[f.name, f.columns, f.labels, f.effects, f.blocks] for f in design.factors],
        "matrices": [[_remembered(matrix) for matrix in own] for own in matrices],
    }


def _design(parts: dict[str, Any]) -> Design:
    """A design without its rows: NaN stands in their place, and takes no memory."""
    rows, names, (family, of_family) = parts["rows"], parts["fixed_names"], parts["family"]
    parsed = _descriptions(parts["formula"], [group for _, group, *_ in parts["factors"]])
    (common,), *commons = (
        tuple(_recalled(*pair) for pair in zip(*own, strict=True))
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
        parts["formula"], getattr(families, family)(**of_family), _absent(rows), _absent(rows),
        _absent(rows, len(names)), names, factors, common, parts["response"], parts["columns"],
        parts["categories"],
    )  # fmt: skip


def _absent(*shape: int, of: Any = np.nan) -> np.ndarray:
    return np.broadcast_to(of, shape)


def _descriptions(text: str, groups: list[tuple[str, ...]]) -> list[list[Any]]:
    """What the formula says of the fixed effects, and of each term of each group; None of a lone
    intercept. As `lmmbook.formula.build_design` reads it."""
    description, bars = syntax.parse(text)
    of_groups = ([bar.effects for bar in bars if set(bar.group) == set(g)] for g in groups)
    return [[description], *of_groups]


def _components(description: Any) -> dict[str, Any]:
    """Name to variable or call, as parsed."""
    found: dict[str, Any] = {}
    for component in [] if description is None else description.common_components:
        if found.setdefault(component.name, component) != component:
            raise ValueError(
                f"formula: expected terms that are written differently, got {component.name} for "
                "two that differ; formulae drops parentheses, so make one a column of the data"
            )
    return found


def _remembered(matrix: CommonEffectsMatrix | None) -> list[Any] | None:
    """What a matrix knows of the training data, term by term; None of a lone intercept."""
    if matrix is None:
        return None
    terms = matrix.terms.values()
    return [[t.kind, [_state(c) for c in getattr(t, "components", [])]] for t in terms]


def _state(component: Any) -> dict[str, Any]:
    contrasts, calls = component.contrast_matrix, _calls(getattr(component, "call", None))
    return {
        "name": component.name,
        "kind": component.kind,
        "levels": component.levels,
        "contrasts": None if contrasts is None else [contrasts.matrix, contrasts.labels],
        "shape": component.value.shape[1:],
        "offset": component._intermediate_data.kind if component.kind == "offset" else None,
        # to_random() of a spline, which nothing here calls, has a matrix of all rows
        "transforms": [
            {k: v for k, v in vars(call.stateful_transform).items() if k != "_random_state"}
            if call.stateful_transform
            else None
            for call in calls
        ],
    }


def _recalled(terms: list[Any] | None, description: Any) -> CommonEffectsMatrix | None:
    """The inverse of `_remembered`: a matrix of no rows, that new ones can be put through."""
    if terms is None:
        return None
    parsed, built = _components(description), []
    for kind, states in terms:
        components = [_recall(deepcopy(parsed[state["name"]]), **state) for state in states]
        term = Term(*components) if components else Intercept()
        term.kind = kind
        built.append(term)
    matrix = CommonEffectsMatrix(built)
    matrix.design_matrix = np.zeros((0, sum(len(term.labels) for term in built)))
    matrix.evaluated = True
    return matrix


def _recall(
    component: Any, name: str, kind: str, levels: list[Any] | None, contrasts: list[Any] | None,
    shape: tuple[int, ...], offset: str | None, transforms: list[dict[str, Any] | None],
) -> Any:  # fmt: skip
    component.kind, component.levels, component.value = kind, levels, np.zeros((0, *shape))
    component.contrast_matrix = contrasts and ContrastMatrix(*contrasts)
    component._intermediate_data = SimpleNamespace(kind=offset)
    if isinstance(component, Call):
        component.env = Environment([{**TRANSFORMS, **ENCODINGS}, vars(formula)])
        for call, state in zip(_calls(component.call), transforms, strict=True):
            try:
                function = get_function_from_module(call.callee, component.env)
            except (KeyError, AttributeError) as error:
                raise ValueError(
                    f"formula: expected functions that are known here, got {call.callee} in {name}"
                ) from error
            if state is not None:
                call.stateful_transform = function()
                vars(call.stateful_transform).update(state)
    return component


def _calls(lazy: Any) -> Iterator[LazyCall]:
    """The calls in a call, itself the first."""
    if isinstance(lazy, LazyCall):
        yield lazy
    for part in [*getattr(lazy, "args", ()), *getattr(lazy, "kwargs", {}).values()]:
        yield from _calls(part)
