"""The table of an exact fit: estimates and their standard errors.

Chapter 04. The observed information is that of the point where the climb ended, in the entries of
roots. The slope is zero there, so the information carries over to the sds and correlations that
people read by their first derivatives alone.
"""

from __future__ import annotations

from lmmbook.exact.theta import Position
from lmmbook.formula.covariance import names_of_block, parameter_names
from lmmbook.formula.design import Design
from lmmbook.formula.invariances.coordinates import Inner, constrained, on_their_scales

import numpy as np
import pandas as pd

STEP = 1e-5  # of central differences, in units of about an sd


def parameter_table(position: Position) -> pd.DataFrame:
    """At a maximum, the ``parameters`` of `lmmbook.exact.ExactFit`: a row a parameter."""
    design, found, bend = position.design, position.evaluate(), position.bend()
    table = pd.DataFrame(
        {
            "estimate": constrained(*_point(position, found.beta)),
            "std_error": np.nan,
            "at_boundary": False,
        },
        index=pd.Index(parameter_names(design), name="parameter"),
    )
    moves: list[bool] = []  # [parameters of the point]: what is at a boundary is held fixed
    for block, root in zip(position.blocks, position.roots, strict=True):
        singular = root.shape[1] < len(root)
        names = names_of_block(design.factors[block.factor], block.columns)
        table.loc[names, "at_boundary"] = singular
        moves += [not singular] * len(np.tril_indices(len(root), 0, root.shape[1])[0])
    moves += [True] * position.free

    covariance = np.linalg.inv(-bend.curvature[np.ix_(moves, moves)])
    # The best fixed effects move with the point, and vary around that besides.
    follow = bend.follow[:, moves]
    fixed = np.linalg.inv(found.fixed_information) + follow @ covariance @ follow.T
    if isinstance(design, Inner):
        fixed = design.unit**2 * design.fixed_map @ fixed @ design.fixed_map.T
    table.loc[list(design.fixed_names), "std_error"] = np.sqrt(np.diag(fixed))

    free = ~table["at_boundary"].to_numpy()
    free[: len(design.fixed_names)] = False
    free[-1] &= position.free
    names = list(table.index[free])
    point = position.point(bend.units)
    changes = np.zeros((sum(moves), len(names)))
    for change, step in zip(changes, STEP * np.eye(len(point))[moves], strict=True):
        for sign in (1, -1):
            position.move(point + sign * step, bend.units)
            change += sign * on_their_scales(*_point(position, found.beta))[free] / (2 * STEP)
    position.move(point, bend.units)
    variances = np.einsum("in,ij,jn->n", changes, covariance, changes)
    table.loc[names, "std_error"] = np.sqrt(variances)
    return table


def _point(
    position: Position, beta: np.ndarray
) -> tuple[Design, np.ndarray, list[np.ndarray], np.ndarray]:
    return position.design, beta, position.covariances, np.log([position.residual_sd])
