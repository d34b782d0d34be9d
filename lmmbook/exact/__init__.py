"""The oracle: the Gaussian marginal likelihood, computed exactly, and its maximum.

No code that fits may ask it.
"""

from lmmbook.exact.oracle import ExactFit, effects, fit, log_likelihood

__all__ = ["ExactFit", "effects", "fit", "log_likelihood"]
