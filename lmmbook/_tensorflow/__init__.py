"""How TensorFlow is started: quiet, in full single precision, with programs kept on disk.

Every room may use this one, and this one knows none of them.
"""

from lmmbook._tensorflow import quiet  # noqa: F401  (what TensorFlow is told before it starts)
