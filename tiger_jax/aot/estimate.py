"""Compiles a run's programs for a slice and says what each would cost there."""

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax

from tiger_jax.aot.hlo import read_cost
from tiger_jax.aot.programs import Program
from tiger_jax.aot.topologies import clock_of
from tiger_jax.training.flops import peak_flops

Row = dict[str, Any]
# Without a GPU to try on, products go to cuBLAS: Triton finds no tiles for some.
_OPTIONS = {"cuda": {"xla_gpu_enable_triton_gemm": False}}
_OPTIONS["gpu"] = _OPTIONS["cuda"]


def estimate(name: str, make: Callable[[], Program], chip: jax.Device) -> Row:
    """Compiles a program; where it doesn't fit or shard, the row says why."""
    row: Row = {"program": name}
    started = time.monotonic()
    try:
        program = make()
        row |= {"chips": program.num_devices}
        row |= {"runs": program.runs, "unit": program.unit}
        with warnings.catch_warnings():
            # A cache of programs can't give back one for devices that aren't here.
            warnings.filterwarnings("ignore", message="Error reading persistent comp")
            compiled = program.lower().compile(_OPTIONS.get(chip.platform))
        text = compiled.as_text()
    except Exception as error:  # XLA's, JAX's or ours: it can't run there
        return row | {"problem": str(error).strip().splitlines()[0][:300]}
    row["compile_s"] = round(time.monotonic() - started, 1)
    memory = compiled.memory_analysis()
    cost = read_cost(text, program.branch_shares)
    row |= {
        "arguments_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "flops_a_chip": program.flops / program.num_devices,
        "bytes_accessed": (compiled.cost_analysis() or {}).get("bytes accessed"),
        "cycles": cost.cycles,
        "cycles_by_layer": cost.cycles_by_layer,
        "kernels": cost.kernels,
        "kernel_bytes": cost.kernel_bytes,
        "host_reads": cost.host_reads,
        "collectives": [
            {"kind": kind, "bytes": size, "times": times}
            for (kind, size), times in cost.collectives.items()
        ],
    }
    clock, peak = clock_of(chip), peak_flops(chip)
    if clock and peak and cost.cycles:
        row["seconds"] = cost.cycles / clock
        row["utilisation"] = row["flops_a_chip"] / row["seconds"] / peak
    return row


def describe(row: Mapping[str, Any], layers: int = 8) -> str:
    """A row as a few lines for people."""
    if "problem" in row:
        return f"{row['program']}: does not compile: {row['problem']}"
    head = f"{row['program']} on {row['chips']} chips"
    time_of = ""
    if "seconds" in row:
        each = 1e6 * row["seconds"] / row["runs"]
        time_of = (
            f" ({1e3 * row['seconds']:.2f} ms, {each:.2f} µs for each of "
            f"{row['runs']:,} {row['unit']}; {row['utilisation']:.1%} of the peak)"
        )
    spent = f"{row['cycles']:,.0f} estimated cycles{time_of}"
    if not row["cycles"]:  # a GPU's compiler estimates none
        kinds = ", ".join(f"{n:,.0f} {kind}" for kind, n in row["kernels"].items())
        spent = (
            f"{sum(row['kernels'].values()):,.0f} kernels ({kinds}) over "
            f"{row['kernel_bytes'] / 1e9:,.2f} GB, {row['host_reads']:,.0f} waits of "
            "the host"
        )
    lines = [
        f"{head}: {row['arguments_bytes'] / 1e6:,.0f} MB of arguments and "
        f"{row['temporary_bytes'] / 1e6:,.0f} MB temporary a chip, "
        f"{row['flops_a_chip'] / 1e9:,.1f} GFLOP a chip, {spent}, "
        f"compiled in {row['compile_s']:.0f} s"
    ]
    for exchange in row["collectives"]:
        lines.append(
            f"  {exchange['times']:g} x {exchange['kind']} of "
            f"{exchange['bytes'] / 1e6:.2f} MB"
        )
    for layer, cycles in list(row["cycles_by_layer"].items())[:layers]:
        lines.append(f"  {cycles / max(row['cycles'], 1):5.1%}  {layer}")
    return "\n".join(lines)
