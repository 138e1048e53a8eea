"""The rules every test runs under."""

import ipaddress
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
from hypothesis import HealthCheck, settings

jax.config.update("jax_platforms", os.environ.get("TIGER_TEST_PLATFORM", "cpu"))
jax.config.update("jax_num_cpu_devices", 8)  # before any array exists
jax.config.update("jax_numpy_rank_promotion", "raise")

# No doctests are in them, and as modules all would be called conftest.
collect_ignore_glob = ["conftest.py", "*/conftest.py"]

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
