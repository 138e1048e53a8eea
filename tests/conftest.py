"""The rules every test runs under."""

import importlib.metadata
import ipaddress
import os
import shutil
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# What a test compiles runs for a moment: compiling it well would take longer.
_FLAGS = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # Newer XLA has no other emitters, and ends at a flag that it doesn't know.
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()
# A session compiles a program once, however many workers and other processes it has,
# which find the folder here; what compiles in a moment isn't worth a file.
_COMPILED = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _COMPILED = tempfile.mkdtemp(prefix="tiger_jax_compiled_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

if "PYTEST_XDIST_WORKER" in os.environ:
    # What jaxtyping's hook finds imported below the package's own modules, it
    # compiles from source: seqio brings TensorFlow, which takes a worker 10 seconds.
    import apache_beam  # noqa: F401
    import orbax.checkpoint  # noqa: F401
    import seqio  # noqa: F401
import jax
from hypothesis import HealthCheck, settings

jax.config.update("jax_platforms", os.environ.get("TIGER_TEST_PLATFORM", "cpu"))
jax.config.update("jax_num_cpu_devices", 8)  # before any array exists
jax.config.update("jax_numpy_rank_promotion", "raise")
# JAX may have been imported before this file.
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

_SLOW_MACHINE = [HealthCheck.too_slow]
settings.register_profile(
    "dev", deadline=None, max_examples=25, suppress_health_check=_SLOW_MACHINE
)
settings.register_profile(
    "ci",
    deadline=None,
    max_examples=25,
    derandomize=True,
    suppress_health_check=_SLOW_MACHINE,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def _refuse_the_world(event: str, arguments: tuple) -> None:
    """No test looks anything up, or sends anything, beyond this machine."""
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None  # or a Unix socket
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if isinstance(host, bytes):
        host = host.decode()
    if host and not _is_loopback(host):
        raise PermissionError(
            f"{event} to {host}: tests stay on the loopback interface"
        )


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_unspecified


sys.addaudithook(_refuse_the_world)


def pytest_unconfigure() -> None:
    """Removes the compiled programs when the session ends that made the folder."""
    if _COMPILED is not None:
        shutil.rmtree(_COMPILED, ignore_errors=True)
