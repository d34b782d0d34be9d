"""Which device TensorFlow computes on, in words."""

from __future__ import annotations

import tensorflow as tf


def describe_device() -> str:
    """One sentence on which device TensorFlow computes, and that a CPU is fine. Chapter 03.

    Examples
    --------
    >>> describe_device().startswith(("GPU", "No GPU"))
    True
    """
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", gpus[0].name)
        return f"GPU found: {name}. The fit runs there."
    return "No GPU here, and that is fine: the fit runs on the CPU."
