"""What a fit gives back: tables to read, predictions, criticism, a file.

Nothing here knows how the fit was made.
"""

from lmmbook.results.fit import Fit, load

__all__ = ["Fit", "load"]
