"""What one asks of a fit afterwards: its log-likelihood, comparisons, tests and intervals.

It stands above the engine, and never changes an estimate.
"""

from lmmbook.inference.comparison import Comparison, compare
from lmmbook.inference.intervals import intervals
from lmmbook.inference.likelihood import LogLikelihood, log_likelihood
from lmmbook.inference.summary import contrasts, summary

__all__ = [
    "Comparison",
    "LogLikelihood",
    "compare",
    "contrasts",
    "intervals",
    "log_likelihood",
    "summary",
]
