"""TPU slices that aren't here, described by the TPU's own compiler."""

import os

import jax
from jax.experimental import topologies

from tiger_jax.errors import InputError

# Cycles a second, by the start of jax.Device.device_kind, where it is published.
_CLOCKS = {"TPU v4": 1.05e9, "TPU v5 lite": 1.5e9, "TPU v5": 1.75e9, "TPU v5p": 1.75e9}


def describe_slice(name: str) -> list[jax.Device]:
    """The chips of a slice such as ``v5e:4x4``, to compile for.

    Raises:
        InputError: The TPU compiler isn't installed, or doesn't know the slice.
    """
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise InputError(
            "compiling for a TPU that isn't here needs its compiler: pip install "
            "'tiger_jax[tpu_compile]'"
        ) from error
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no metadata server to ask
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name)
        return list(found.devices)
    except Exception as error:  # the plugin's own kinds
        raise InputError(
            f"compile_for.topology {name!r}: the TPU compiler doesn't know it "
            f"({str(error).splitlines()[0][:200]}); it knows, for instance, "
            "'v4:2x2x1', 'v5e:4x4', 'v5p:2x2x1', 'v6e:2x4', 'tpu7x:2x2x1'"
        ) from error


def clock_of(device: jax.Device) -> float | None:
    """Cycles a second; None where that isn't published."""
    kinds = [kind for kind in _CLOCKS if device.device_kind.startswith(kind)]
    return _CLOCKS[max(kinds, key=len)] if kinds else None
