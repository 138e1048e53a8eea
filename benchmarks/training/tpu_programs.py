"""Compiles the programs of a few runs for TPU slices, and writes docs/tpu_pods.md.

    JAX_PLATFORMS=cpu python -m benchmarks.training.tpu_programs \
        --rows=docs/tpu_programs.jsonl --document=docs/tpu_pods.md

No TPU is needed, only its compiler (`tiger_jax[tpu_compile]`). What has a row already
is left out, so that the command may be stopped; --again takes it too, and
--slices=none only writes the table. With --gpus it is GPUs that are compiled for, by
JAX's CUDA plugin, for docs/gpu_clusters.md, and rows of other code are kept beside. A
run and a slice are a process of their own: `--stage=compile_for` with the gin files of
the run. What runs on one chip is compiled for one slice of each kind.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import lib
from benchmarks.lib import ROOT, Row
from tiger_jax.workdir.provenance import code_version

SLICES = {
    "v5litepod-4": "v5e:2x2",
    "v5litepod-16": "v5e:4x4",
    "v5litepod-256": "v5e:16x16",
    "v5p-8": "v5p:2x2x1",
    "v5p-128": "v5p:4x4x4",
    "v6e-8": "v6e:2x4",
    "v6e-256": "v6e:16x16",
    "v4-8": "v4:2x2x1",
    "tpu7x-8": "tpu7x:2x2x1",
}
GPUS = {"H100": "gpu:h100:1", "8 H100": "gpu:h100:8"}
RUNS = {
    "two-level": ("experiments/beauty_two_level.gin",),
    "paper d 128": ("experiments/beauty_paper.gin",),
    "paper d 384": ("experiments/beauty_paper.gin", "base/tiger_13m.gin"),
}
_UPDATES = 10  # of a call, in the files of hardware/
_QUANTIZED = "two-level"  # the run whose RQ-VAE stands for the others'


def hardware_of(name: str) -> str:
    """The gin file of a slice, or of GPUs."""
    if name in SLICES:
        return "hardware/tpu.gin"
    return f"hardware/gpu_{GPUS[name].rpartition(':')[2]}.gin"


def programs_of(run: str, name: str) -> list[str]:
    """What is compiled of a run for a slice, or for GPUs."""
    if name in GPUS:
        return ["train_recommender"]
    kind = SLICES[name].partition(":")[0]
    is_first = name == next(n for n in SLICES if SLICES[n].startswith(f"{kind}:"))
    one_chip = ["serve"] + ["train_rqvae"] * (run == _QUANTIZED)
    return ["train_recommender", "evaluate", *one_chip * is_first]


def compile_programs(run: str, name: str, programs: Sequence[str]) -> list[Row]:
    """The rows of some of a run's programs on one slice."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        command = [sys.executable, "run.py", "--stage=compile_for"]
        command += [f"--workdir={folder}"]
        command += [f"--gin_file={file}" for file in (*RUNS[run], hardware_of(name))]
        topology = (SLICES | GPUS)[name]
        command += [f"--gin.compile_for.topology={topology!r}"]
        command += [f"--gin.compile_for.programs={tuple(programs)!r}"]
        command += [f"--gin.compile_for.rows={str(rows)!r}"]
        subprocess.run(command, cwd=ROOT, check=False, stdout=sys.stderr)
        found = lib.read_rows(rows)  # of those that were done, if it was stopped
    return [{"run": run, "slice": name, "commit": code_version(), **r} for r in found]


def build_table(rows: Sequence[Row]) -> str:
    """Of each program on each slice: whether it fits, and the compiler's estimate."""
    titles = ["run", "program", "slice", "chips", "MB a chip", "of it temporary"]
    titles += ["GFLOP a chip", "exchanges", "cycles", "µs each", "of the peak"]
    order = list(SLICES)
    shown = sorted(
        rows,
        key=lambda row: (row["run"], row["program"], order.index(row["slice"])),
    )
    lines = lib.markdown_table(titles, map(_cells, shown), "|---|---|---|--:")
    layers = [
        f"- {row['run']}, `{row['program']}`, {row['slice']}: "
        + ", ".join(
            f"{layer} {cycles / row['cycles']:.0%}"
            for layer, cycles in list(row["cycles_by_layer"].items())[:6]
        )
        for row in shown
        if row["slice"].startswith("v5litepod-4") and row.get("cycles")
    ]
    return "\n".join(
        [
            *lines,
            "",
            "*MB a chip*: arguments and temporary arrays. *GFLOP*: as written, of one "
            "call: ten updates, a hundred of the RQ-VAE's, or one batch of requests. "
            "*Exchanges*: collective operations of a call, each as often as it runs. "
            "*Cycles*: the compiler's estimates of a call on each chip, loops times "
            "their trips and length buckets by their share; of an exchange it may "
            "give none. *µs each*: those cycles at the chip's clock, by pair of a "
            "history and its next item, by vector or by request of the whole slice; "
            "empty where no clock is published. *Of the peak*: the GFLOP in that "
            "time, against the chip's bfloat16 peak.",
            "",
            "Where the cycles go:",
            "",
            *layers,
        ]
    )


def build_gpu_table(rows: Sequence[Row]) -> str:
    """Of each training step: its memory, and what an update starts on a GPU."""
    kinds = ("fusions", "products", "copies", "collectives", "others")
    titles = ["run", "GPUs", "code", "MB a GPU", "kernels an update", *kinds]
    titles += ["GB an update", "waits of the host"]
    cells = []
    for row in sorted(rows, key=lambda row: (row["run"], row["slice"])):
        kernels = row["kernels"]
        cells.append(
            [
                row["run"],
                row["slice"],
                f"`{row['commit'][:7]}`",
                f"{(row['arguments_bytes'] + row['temporary_bytes']) / 1e6:,.0f}",
                f"**{sum(kernels.values()) / _UPDATES:,.0f}**",
                *(f"{kernels.get(kind, 0) / _UPDATES:,.0f}" for kind in kinds),
                f"{row['kernel_bytes'] / _UPDATES / 1e9:.2f}",
                f"{row['host_reads'] / _UPDATES:,.1f}",
            ]
        )
    return "\n".join(
        [
            *lib.markdown_table(titles, cells, "|---|---|---|--:"),
            "",
            "*Kernels*: what is started on the GPU, loops times their trips and "
            "length buckets by their share. *GB*: of the kernels' operands and "
            "results. *Waits*: the host is told which branch to take, or whether a "
            "loop goes on.",
        ]
    )


def _cells(row: Row) -> list[str]:
    cells = [row["run"], f"`{row['program']}`", row["slice"]]
    if "problem" in row:
        return [*cells, f"does not compile: {row['problem']}", *[""] * 7]
    each = share = ""
    if "seconds" in row:
        each = lib.format_short(1e6 * row["seconds"] / row["runs"])
        share = f"{row['utilisation']:.1%}"
    exchanges = sum(exchange["times"] for exchange in row["collectives"])
    size = sum(x["times"] * x["bytes"] for x in row["collectives"]) / 1e6
    return [
        *cells,
        f"{row['chips']}",
        f"{(row['arguments_bytes'] + row['temporary_bytes']) / 1e6:,.0f}",
        f"{row['temporary_bytes'] / 1e6:,.0f}",
        f"{row['flops_a_chip'] / 1e9:,.1f}",
        f"{exchanges:.0f}, {size:,.0f} MB" if exchanges else "none",
        f"{row['cycles'] / 1e6:,.2f}M",
        each,
        share,
    ]


def main() -> None:
    """Compiles what has no rows yet; writes rows and document."""
    parser = lib.make_parser(__doc__, "rows", "document")
    parser.add_argument("--slices", type=lib.words)
    parser.add_argument("--runs", type=lib.words, default=list(RUNS))
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--gpus", action="store_true")
    options = parser.parse_args()
    rows = lib.read_rows(options.rows) if options.rows else []
    names = options.slices or list(GPUS if options.gpus else SLICES)
    key = ("run", "slice", "program", *["commit"] * options.gpus)
    for name in [name for name in names if name != "none"]:
        for run in options.runs:
            known = [] if options.again else rows
            had = {r["program"] for r in known if (r["run"], r["slice"]) == (run, name)}
            if programs := [p for p in programs_of(run, name) if p not in had]:
                new = compile_programs(run, name, programs)
                rows = lib.merge_rows(rows, new, *key)
                if options.rows:
                    lib.write_rows(options.rows, rows)
                if len(new) < len(programs):
                    sys.exit(f"{run} on {name} did not end: see above")
    if options.gpus:
        lib.publish(options, "gpu_programs", rows, build_gpu_table)
    else:
        lib.publish(options, "tpu_programs", rows, build_table)


if __name__ == "__main__":
    lib.run(main)
