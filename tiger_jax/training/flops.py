"""How much arithmetic an update takes, and how much the devices could do."""

from typing import Any

import jax

from tiger_jax.training.partitioning import Partitioner
from tiger_jax.training.train_step import LossFn, MakeBatchFn

PyTree = Any

# Dense bfloat16 peak of one device in FLOP/s, from the vendors' data sheets; found
# by the start of jax.Device.device_kind, longest first.
PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B100": 1750e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA B300": 2250e12,
    "NVIDIA GB200": 2500e12,
    "NVIDIA GB300": 2500e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12 / 2,  # a chip is two devices
}


def peak_flops(device: jax.Device) -> float | None:
    """The peak of a device kind that is known, or None."""
    for kind in sorted(PEAK_FLOPS, key=len, reverse=True):
        if device.device_kind.startswith(kind):
            return PEAK_FLOPS[kind]
    return None


def count_microbatch_flops(
    loss_fn: LossFn,
    make_batch: MakeBatchFn,
    num_buckets: int,
    params: PyTree,
    constants: PyTree,
    microbatch: PyTree,
    partitioner: Partitioner,
) -> list[float]:
    """Floating-point operations of one microbatch's gradient, for each bucket.

    Counted by the compiler on the program as written, before any optimization:
    forward and backward, padding up to the bucket included.
    """
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
        (params, constants, microbatch),
    )
    counts = []
    for bucket in range(num_buckets):

        def gradient(
            params: PyTree, constants: PyTree, arrays: PyTree, bucket: int = bucket
        ) -> PyTree:
            batch = make_batch(constants, arrays, bucket)
            return jax.grad(lambda p: loss_fn(p, batch, None), has_aux=True)(params)

        with partitioner.context():
            cost = jax.jit(gradient).lower(*abstract).cost_analysis()
        counts.append(float((cost or {}).get("flops", 0.0)))
    return counts
