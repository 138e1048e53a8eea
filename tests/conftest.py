"""The rules every test runs under."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
from hypothesis import HealthCheck, settings

jax.config.update("jax_platforms", os.environ.get("TIGER_TEST_PLATFORM", "cpu"))
jax.config.update("jax_num_cpu_devices", 8)  # before any array exists
jax.config.update("jax_numpy_rank_promotion", "raise")

_SLOW_MACHINE = [HealthCheck.too_slow]
settings.register_profile(
    "dev", deadline=None, max_examples=25, suppress_health_check=_SLOW_MACHINE
)
settings.register_profile(
    "ci",
    deadline=None,
    max_examples=50,
    derandomize=True,
    suppress_health_check=_SLOW_MACHINE,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
