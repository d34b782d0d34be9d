"""From a formula and a data frame to a design, its parameters, and the scales to compute them on.

Nothing here knows of devices, of fitting, or of results.
"""

from lmmbook.formula.build import build_design
from lmmbook.formula.design import Design
from lmmbook.formula.factors import Factor

__all__ = ["Design", "Factor", "build_design"]
