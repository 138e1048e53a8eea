"""TensorFlow and seqio, imported so that they only feed data.

TensorFlow would take all memory of every GPU the moment it runs its first
operation, and log pages about the machine. The log level is read at import, so
this module is imported in place of `tensorflow` and `seqio`.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tiger_jax.errors import InputError

try:
    import seqio
    import tensorflow as tf
except ModuleNotFoundError as error:
    raise InputError(
        f"what this reads or streams goes through seqio, which needs {error.name}: "
        "pip install 'tiger_jax[seqio]'"
    ) from error

tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")

# TensorFlow rewrites the functions it traces, in case they hold Python loops and
# conditions over tensors. Ours don't; left as they are they trace faster, and
# without a warning where their source can't be had.
as_written = tf.autograph.experimental.do_not_convert

__all__ = ["as_written", "seqio", "tf"]
