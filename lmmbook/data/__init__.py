"""Data as they come: bundled tables, simulation, and columns out of whatever holds them.

Nothing here knows of formulas, models or TensorFlow.
"""

from lmmbook.data.flights import load_flights
from lmmbook.data.insteval import (
    COLUMNS,
    VERBAGG_PATH,
    download_insteval,
    load_insteval,
    train_test_split,
)

__all__ = [
    "COLUMNS",
    "VERBAGG_PATH",
    "download_insteval",
    "load_flights",
    "load_insteval",
    "train_test_split",
]
