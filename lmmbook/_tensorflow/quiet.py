"""Import TensorFlow without its start-up chatter.

TensorFlow's C++ side writes to the process's standard error before Python can configure it, and a
chapter should open with its own words. So the first import happens here, with file descriptor 2
pointed at the null device. A failing import still raises as usual.
"""

import contextlib
import os
from collections.abc import Iterator

from lmmbook._tensorflow import compile_cache


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    saved = os.dup(2)
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with compile_cache.started(), _no_stderr():
    import tensorflow as tf
    import tensorflow_probability  # noqa: F401
    import tf_keras  # noqa: F401

    # The first use of a device prints too. Listing devices initialises none of them.
    tf.config.list_physical_devices()

# On an NVIDIA GPU, TensorFlow may round the inputs of matrix products to TF32's 10-bit mantissa.
# That is fine for neural networks, but the accept step of HMC looks at small differences of large
# log densities.
tf.config.experimental.enable_tensor_float_32_execution(False)


@contextlib.contextmanager
def quiet_log() -> Iterator[None]:
    """Hold TensorFlow's Python-side warnings back for a while; errors still come through."""
    logger = tf.get_logger()
    before = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(before)
