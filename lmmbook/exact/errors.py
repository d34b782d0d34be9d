"""The table of an exact fit: estimates and their standard errors.

Chapter 04. The observed information is that of the point where the ascent ended, in the entries of
roots. The slope is zero there, so the information carries over to the sds and correlations that
people read by their first derivatives alone.
"""

from __future__ import annotations

from lmmbook._numerics import jacobian
from lmmbook.exact.theta import Theta
from lmmbook.formula.covariance import names_of_block, parameter_names
from lmmbook.formula.design import Design
from lmmbook.formula.invariances.coordinates import Inner, constrained, on_their_scales

import numpy as np
import pandas as pd

STEP = 1e-5  # of central differences, in units of about an sd


def parameter_table(theta: Theta) -> pd.DataFrame:
    """At a maximum, the ``parameters`` of `lmmbook.exact.ExactFit`: a row a parameter."""
    design, found, curvature = theta.design, theta.evaluate(), theta.curvature()
    table = pd.DataFrame(
        {
            "estimate": constrained(*_point(theta, found.beta)),
            "std_error": np.nan,
            "at_boundary": False,
        },
        index=pd.Index(parameter_names(design), name="parameter"),
    )
    moves: list[bool] = []  # [parameters of the point]: what is at a boundary is held fixed
    for block, root in zip(theta.blocks, theta.roots, strict=True):
        singular = root.shape[1] < len(root)
        names = names_of_block(design.factors[block.factor], block.columns)
        table.loc[names, "at_boundary"] = singular
        moves += [not singular] * len(np.tril_indices(len(root), 0, root.shape[1])[0])
    moves += [True] * theta.free

    covariance = np.linalg.inv(-curvature.hessian[np.ix_(moves, moves)])
    # The best fixed effects move with the point, and vary around that besides.
    beta_jacobian = curvature.beta_jacobian[:, moves]
    fixed = np.linalg.inv(found.fixed_information) + beta_jacobian @ covariance @ beta_jacobian.T
    if isinstance(design, Inner):
        fixed = design.response_scale**2 * design.fixed_map @ fixed @ design.fixed_map.T
    table.loc[list(design.fixed_names), "std_error"] = np.sqrt(np.diag(fixed))

    free = ~table["at_boundary"].to_numpy()
    free[: len(design.fixed_names)] = False
    free[-1] &= theta.free
    names = list(table.index[free])
    point = theta.point(curvature.scales)

    def after(step: np.ndarray) -> np.ndarray:
        theta.move(point + step @ np.eye(len(point))[moves], curvature.scales)
        return on_their_scales(*_point(theta, found.beta))[free]

    changes = jacobian(after, np.full(sum(moves), STEP))
    theta.move(point, curvature.scales)
    table.loc[names, "std_error"] = np.sqrt(np.diag(changes @ covariance @ changes.T))
    return table


def _point(
    theta: Theta, beta: np.ndarray
) -> tuple[Design, np.ndarray, list[np.ndarray], np.ndarray]:
    return theta.design, beta, theta.covariances, np.log([theta.residual_sd])
