"""TPU slices and GPUs that aren't here, as their compilers describe them."""

import os
import re

import jax
from jax.experimental import topologies

from tiger_jax.errors import InputError

# Cycles a second, by the start of jax.Device.device_kind, where it is published.
_CLOCKS = {"TPU v4": 1.05e9, "TPU v5 lite": 1.5e9, "TPU v5": 1.75e9, "TPU v5p": 1.75e9}
# What a GPU's compiler must know of it, as NVIDIA publishes it: multiprocessors,
# bytes a second, of memory, of the second cache, of a multiprocessor's shared memory,
# GHz, and its generation.
_GPUS = {
    "a100": (108, 2_039, 80, 40, 164, 1.41, 8),
    "h100": (132, 3_350, 80, 50, 228, 1.98, 9),
    "h200": (132, 4_800, 141, 50, 228, 1.98, 9),
}


def describe_slice(name: str) -> list[jax.Device]:
    """The chips of a slice such as ``v5e:4x4``, or of ``gpu:h100:8``, to compile for.

    Raises:
        InputError: The compiler isn't installed, or doesn't know the slice.
    """
    if name.startswith("gpu"):
        return _describe_gpus(name)
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


def _describe_gpus(name: str) -> list[jax.Device]:
    """GPUs of one machine."""
    found = re.fullmatch(r"gpu:(\w+):([1-9]\d*)", name)
    if found is None or found[1] not in _GPUS:
        raise InputError(
            f"compile_for.topology {name!r} names no GPUs that are known: "
            + ", ".join(f"'gpu:{kind}:8'" for kind in _GPUS)
        )
    cores, bandwidth, memory, cache, shared, clock, generation = _GPUS[found[1]]
    target = f"""
        gpu_device_info {{
          threads_per_block_limit: 1024 threads_per_warp: 32 fpus_per_core: 128
          threads_per_core_limit: 2048 core_count: {cores} clock_rate_ghz: {clock}
          shared_memory_per_block: 49152
          shared_memory_per_core: {shared << 10}
          shared_memory_per_block_optin: {(shared - 1) << 10}
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
          block_dim_limit_z: 65535 registers_per_core_limit: 65536
          registers_per_block_limit: 65536 memory_bandwidth: {bandwidth * 10**9}
          l2_cache_size: {cache << 20} device_memory_size: {memory * 10**9}
          cuda_compute_capability {{ major: {generation} }}
        }}
        platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }}
        device_description_str: "NVIDIA {found[1].upper()}" """
    try:
        topology = topologies.get_topology_desc(
            platform="cuda",
            topology_name="",
            target_config=target,
            topology=f"1x1x{found[2]}",
        )
        return list(topology.devices)
    except Exception as error:  # the plugin's own kinds
        raise InputError(
            "compiling for GPUs that aren't here needs JAX's CUDA plugin, and ptxas on "
            "the PATH: pip install --no-deps 'jax-cuda13-plugin=="
            f"{jax.__version__}' 'jax-cuda13-pjrt=={jax.__version__}' "
            f"({str(error).splitlines()[0][:200]})"
        ) from error


def clock_of(device: jax.Device) -> float | None:
    """Cycles a second; None where that isn't published."""
    kinds = [kind for kind in _CLOCKS if device.device_kind.startswith(kind)]
    return _CLOCKS[max(kinds, key=len)] if kinds else None
