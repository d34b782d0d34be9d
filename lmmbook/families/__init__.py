"""The likelihoods: how a response scatters around the linear predictor.

Chapters 02 and 06. A family knows nothing about random effects. It turns a response into numbers
and refuses one that does not fit; given a linear predictor, it is a distribution; and it has the
derivatives that the M-step and the certificate need.

Some families have parameters of their own besides the linear predictor, such as a residual standard
deviation or thresholds. The engine sees these *auxiliary* parameters as unconstrained numbers
``[auxiliary]``; people see them as `Family.constrain` gives them. `base` says what a family
is, `bernoulli` is for no or yes, `binomial` for how often yes, `counts` for how many, `cumulative`
and `categorical` are for a response with categories, `custom` is for your own.
"""

from __future__ import annotations

from lmmbook.families.base import Family
from lmmbook.families.bernoulli import Bernoulli
from lmmbook.families.binomial import Binomial
from lmmbook.families.categorical import Categorical
from lmmbook.families.counts import NegativeBinomial, Poisson
from lmmbook.families.cumulative import Cumulative
from lmmbook.families.custom import Custom
from lmmbook.families.gaussian import Gaussian
from lmmbook.families.ordered_logistic import OrderedLogistic

__all__ = [
    "Bernoulli",
    "Binomial",
    "Categorical",
    "Cumulative",
    "Custom",
    "Family",
    "Gaussian",
    "NegativeBinomial",
    "OrderedLogistic",
    "Poisson",
    "resolve",
]

# By the names that `resolve` takes. What a file of a fit can hold is one of them.
NAMED: dict[str, type[Family]] = {
    kind.__name__.lower(): kind
    for kind in (Gaussian, Cumulative, Bernoulli, Binomial, Poisson, NegativeBinomial, Categorical)
}


def resolve(family: str | Family) -> Family:
    """Turn the ``family`` argument of `lmmbook.fit` into a family object. Chapter 06.

    Raises
    ------
    ValueError
        If a name is not known.

    Examples
    --------
    >>> resolve("gaussian")
    Gaussian(sd=None)
    >>> resolve("gamma")
    Traceback (most recent call last):
        ...
    ValueError: family: expected one of 'gaussian', 'cumulative', 'bernoulli', 'binomial', \
'poisson', 'negativebinomial', 'categorical', or a family object, got 'gamma'
    """
    if isinstance(family, Family):
        return family
    if not isinstance(family, str) or family not in NAMED:
        expected = ", ".join(map(repr, NAMED))
        raise ValueError(f"family: expected one of {expected}, or a family object, got {family!r}")
    return NAMED[family]()
