"""Linear mixed effects models by Monte Carlo EM: the package that the book builds."""

from lmmbook import _quiet  # noqa: F401  (first: it keeps TensorFlow's start-up quiet)
from lmmbook import exact, families, figures, simulate
from lmmbook.checks import check, exercise, say, versions
from lmmbook.data import COLUMNS, download_insteval, load_insteval, train_test_split
from lmmbook.device import describe_device
from lmmbook.figures import show, use_style
from lmmbook.mcem import fit
from lmmbook.model import LinearMixedEffectModel
from lmmbook.result import Fit, load

__version__ = "0.1.0"

__all__ = [
    "COLUMNS",
    "Fit",
    "LinearMixedEffectModel",
    "check",
    "describe_device",
    "download_insteval",
    "exact",
    "exercise",
    "families",
    "figures",
    "fit",
    "load",
    "load_insteval",
    "say",
    "show",
    "simulate",
    "train_test_split",
    "use_style",
    "versions",
]
