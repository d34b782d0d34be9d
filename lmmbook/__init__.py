"""Linear mixed effects models by Monte Carlo EM: the package that the book builds."""

import sys

from lmmbook._tensorflow import quiet  # noqa: F401  (first: it keeps TensorFlow's start-up quiet)
from lmmbook import exact, families, plot
from lmmbook._version import __version__ as __version__
from lmmbook._tensorflow.device import describe_device
from lmmbook.book import checks, figures
from lmmbook.book.checks import check, exercise, say, versions
from lmmbook.book.figures import show, use_style
from lmmbook.core.model import LinearMixedEffectModel
from lmmbook.data import (
    COLUMNS,
    download_insteval,
    load_flights,
    load_insteval,
    simulate,
    train_test_split,
)
from lmmbook.engine.fit import fit
from lmmbook.engine.parallel import workers
from lmmbook.formula import design, factors
from lmmbook.formula.parse import functions
from lmmbook.inference import compare
from lmmbook.results import Fit, criticism, load

# Import paths that are shorter than the house is deep.
sys.modules |= {
    "lmmbook.checks": checks,
    "lmmbook.criticism": criticism,
    "lmmbook.design": design,
    "lmmbook.factors": factors,
    "lmmbook.functions": functions,
    "lmmbook.simulate": simulate,
    "lmmbook.workers": workers,
}

__all__ = [
    "COLUMNS",
    "Fit",
    "LinearMixedEffectModel",
    "check",
    "compare",
    "describe_device",
    "download_insteval",
    "exact",
    "exercise",
    "families",
    "figures",
    "fit",
    "load",
    "load_flights",
    "load_insteval",
    "plot",
    "say",
    "show",
    "simulate",
    "train_test_split",
    "use_style",
    "versions",
]
