"""Score and information of the complete data: what the certificate averages over draws.

Chapter 04. Fisher's identity: the gradient of log p(ratings) is the mean, over draws of the random
effects, of the gradient of log p(ratings, effects). Louis (1982): its negative Hessian is the mean
of the complete data's, minus the covariance of the gradients. Both hold in any `parametrisation` of
the effects.

With effects ``u = L x``, x standardised, a change by a tangent S (`local`) leaves ``x - G x`` of
effects that stay where they are. They may move besides, by a *flow* that is linear in x (`flows`).
`score` and `information` say what comes of both.
"""

from __future__ import annotations

from lmmbook.engine.arrays import Arrays, Layout, State
from lmmbook.engine.certificate.information import mean_information
from lmmbook.engine.certificate.local import dimension, turns
from lmmbook.engine.certificate.parametrisation import Parametrisation
from lmmbook.engine.certificate.score import complete_score, slopes
from lmmbook.engine.placement import SINGLE_DEVICE, Placement, either
from lmmbook.families.derivatives import zeros

import tensorflow as tf


def score_and_information(
    layout: Layout,
    arrays: Arrays,
    state: State,
    parametrisation: Parametrisation,
    placement: Placement = SINGLE_DEVICE,
    informed: tf.Tensor | bool = True,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Gradient ``[chains, coordinates]`` and mean negative Hessian ``[coordinates, coordinates]``,
    or zeros if not ``informed``.

    Of log p(ratings, effects), in this ``parametrisation``, at each chain's draw; the negative
    Hessian at the draws of the first `FEW` chains. float64.
    """
    given = zip(layout.factors, arrays.factors, state.parameters.scales, strict=True)
    turn = [turns(*of_factor) for of_factor in given]
    stay, (pulls, *by_rows) = placement.rows(slopes, (layout, placement.shared), arrays, state)
    pulls = [stay if k == placement.shared else pulls[k] for k in range(len(layout.factors))]
    information = either(
        informed,
        lambda: mean_information(layout, arrays, state, parametrisation, turn, pulls, placement),
        lambda: zeros(dimension(layout), dimension(layout)),
    )
    score = complete_score(layout, state, parametrisation, turn, pulls, by_rows, placement)
    return score, information
