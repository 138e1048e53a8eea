"""How much arithmetic an update takes, and how much the devices could do."""

from pathlib import Path
from typing import Any

import jax

from tiger_jax.training import inputs, train_step
from tiger_jax.training.partitioning import Partitioner
from tiger_jax.workdir.json_files import read_json

PyTree = Any

# Dense bfloat16 peak of one device, from the vendors' data sheets, by the start of
# jax.Device.device_kind. A chip of "TPU7x" is two devices.
_PEAK_TERAFLOPS: dict[str, float] = read_json(
    Path(__file__).with_name("peak_teraflops.json")
)


def peak_flops(device: jax.Device) -> float | None:
    """A device's peak in FLOP/s, or None where its kind isn't known."""
    kinds = [kind for kind in _PEAK_TERAFLOPS if device.device_kind.startswith(kind)]
    return 1e12 * _PEAK_TERAFLOPS[max(kinds, key=len)] if kinds else None


def count_microbatch_flops(
    loss_fn: train_step.LossFn,
    input: Any,
    params: PyTree,
    update: inputs.Update,
    partitioner: Partitioner,
) -> list[float]:
    """Floating-point operations of one microbatch's gradient, per bucket of the input.

    Counted by the compiler on the program as written, before any optimization:
    forward and backward, padding up to the bucket included.
    """
    microbatch = jax.tree.map(lambda x: x[0], update.arrays)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
        (params, input.constants, microbatch),
    )
    counts = []
    for bucket in range(len(input.buckets)):

        def gradient(
            params: PyTree, constants: PyTree, arrays: PyTree, bucket: int = bucket
        ) -> PyTree:
            batch = input.make_batch(constants, arrays, bucket)
            return jax.grad(lambda p: loss_fn(p, batch, None), has_aux=True)(params)

        with partitioner.context():
            cost = jax.jit(gradient).lower(*abstract).cost_analysis()
        counts.append(float((cost or {}).get("flops", 0.0)))
    return counts
