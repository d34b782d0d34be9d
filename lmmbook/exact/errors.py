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
from lmmbook.formula.invariances.coordinates import constrained, on_their_scales

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

    # The best fixed effects move with the point, and vary around that besides.
    # By REML, as lme4 has it, their errors are those at the estimated variances.
    of_beta = curvature.beta_jacobian * (not theta.reml)
    both = np.vstack([of_beta, np.eye(len(moves))])[:, moves]
    covariance = both @ np.linalg.inv(-curvature.hessian[np.ix_(moves, moves)]) @ both.T
    fixed = len(found.beta)
    covariance[:fixed, :fixed] += np.linalg.inv(found.fixed_information)
    known = ~table["at_boundary"].to_numpy()
    known[-1] &= theta.free
    point = theta.point(curvature.scales)

    def after(step: np.ndarray) -> np.ndarray:
        theta.move(point + step[fixed:], curvature.scales)
        return on_their_scales(*_point(theta, found.beta + step[:fixed]))[known]

    # In a fixed effect all are linear: a long step loses no digits beside a large intercept.
    changes = jacobian(after, np.repeat([1.0, STEP], [fixed, len(point)]))
    theta.move(point, curvature.scales)
    table.loc[known, "std_error"] = np.sqrt(np.diag(changes @ covariance @ changes.T))
    return table


def _point(
    theta: Theta, beta: np.ndarray
) -> tuple[Design, np.ndarray, list[np.ndarray], np.ndarray]:
    return theta.design, beta, theta.covariances, np.log([theta.residual_sd])
