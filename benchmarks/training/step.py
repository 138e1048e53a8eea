"""Measures a training step against PyTorch's T5 and the machine's matmul rate.

    python -m benchmarks.training.step --data_dir=$TIGER_DATA/amazon2014_beauty \
        [--workdir=runs/beauty, to measure the seqio input on it too] \
        [--rows=rows.jsonl --table=benchmarks/README.md, to keep and to tabulate]

Each case is an update of the same number of real (prefix, next item) pairs: forward,
backward and AdamW. Ours runs through the engine's own input and compiled step. The
other side is Hugging Face's `T5ForConditionalGeneration` of the same size in PyTorch,
its batch padded to the longest row, as usual; bringing it there is not timed, while
our times hold the drawing of the batch. The two and a large matrix product are
run in turns, and medians are compared, so that a machine that slows down does so for
all. On a CPU, every core is a device of ours, as under run.py, and PyTorch and the
matrix product take all cores as they like. One JSON row a case:

    {"benchmark": "train_step", "case": {...}, "against": "hf_t5" | "matmul_peak",
     "examples_per_s": ..., "theirs_examples_per_s": ..., "ratio": ours / theirs,
     "matmul_share": our FLOP/s / the matrix product's,
     "input_share": seconds an update's input takes, nothing of it hidden behind the
                    step / seconds of an update, "environment": {...}}
"""

import argparse
import gc
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.lib import write_between
from tiger_jax.data.interactions import InteractionsConfig
from tiger_jax.data.prepare import prepare_shop
from tiger_jax.data.readers.files import FilesConfig
from tiger_jax.data.splits import SplitsConfig
from tiger_jax.histories import Histories
from tiger_jax.input_pipeline.resident import ResidentConfig, ResidentInput
from tiger_jax.models.t5_weights import t5_config
from tiger_jax.models.tiger import Tiger, TigerConfig, init_params, make_loss_fn
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.training.flops import count_microbatch_flops
from tiger_jax.training.optimizers import OptimizerConfig, make_optimizer
from tiger_jax.training.partitioning import Partitioner, use_cpu_cores
from tiger_jax.training.train_state import init_train_state, split_seed
from tiger_jax.training.train_step import make_train_step
from tiger_jax.workdir.artifacts import code_version, package_versions

LAYOUT = TokenLayout((256,) * 4, num_user_tokens=2000)
BUCKETS = (2, 3, 5, 7, 10, 14)
TURN_SECONDS = 3.0
OPTIMIZER = OptimizerConfig(
    name="adamw", schedule="constant", learning_rate=1e-3, warmup_steps=0
)


class Side:
    """One of the things that run in turns."""

    def prepare(self) -> None:
        """Does what is not to be timed."""

    def __call__(self) -> tuple[int, float]:
        """Runs once; returns its examples and floating-point operations."""
        raise NotImplementedError


class Ours(Side):
    """Our step on one input; called, it makes one update, drawing it included."""

    def __init__(self, model: Tiger, input: Any) -> None:
        """Compiles nothing yet; the first call does."""
        self.input, self.partitioner = input, Partitioner()
        loss_fn, optimizer = make_loss_fn(model), make_optimizer(OPTIMIZER)
        init_key, self.key = split_seed(0)
        self.state = init_train_state(
            lambda key: init_params(model, key), optimizer, self.partitioner, init_key
        )
        self.step = make_train_step(
            loss_fn,
            optimizer,
            self.partitioner,
            jax.tree.map(lambda x: x.sharding, self.state),
            make_batch=input.make_batch,
            num_buckets=len(input.buckets),
        )
        put = self.partitioner.put
        self.constants = put(input.constants, batch_axis=None, is_global=True)
        update = next(input)
        self.flops = count_microbatch_flops(
            loss_fn,
            input.make_batch,
            len(input.buckets),
            self.state.params,
            self.constants,
            jax.tree.map(lambda x: x[0], update.arrays),
            self.partitioner,
        )

    def __call__(self) -> tuple[int, float]:
        """Makes one update."""
        update, arrays, buckets = self._draw()
        self.state, metrics = self.step(
            self.state, self.key, self.constants, arrays, buckets
        )
        jax.block_until_ready(metrics)
        flops = sum(self.flops[bucket] for bucket in update.buckets)
        return update.num_examples, flops

    def time_input(self, updates: int) -> float:
        """Seconds an update takes to draw and to bring to the device.

        Nothing else runs meanwhile: this is what the input costs if none of it is
        hidden behind the step, threads of its own included. What a stream holds
        ready beforehand is drawn first.
        """
        for _ in range(updates):
            self._draw()
        started = time.perf_counter()
        for _ in range(updates):
            jax.block_until_ready(self._draw()[1:])
        return (time.perf_counter() - started) / updates

    def _draw(self) -> tuple[Any, Any, Any]:
        update, put = next(self.input), self.partitioner.put
        one = jax.tree.map(lambda x: x[None], update.arrays)
        arrays = put(one, batch_axis=None, is_global=True)
        return (
            update,
            arrays,
            put(update.buckets[None], batch_axis=None, is_global=True),
        )


class HfT5(Side):
    """PyTorch's T5 of the same size on whole batches of the same pairs."""

    def __init__(self, config: TigerConfig, input: ResidentInput, dtype: str) -> None:
        """Builds the model on the GPU if JAX has one too, else on the CPU."""
        import torch
        import transformers

        self.torch, self.input, self.dtype = torch, input, dtype
        self.constants = jax.device_put(input.constants)
        self.make_batch = jax.jit(input.make_batch, static_argnums=2)
        gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
        self.device = torch.device("cuda" if gpu else "cpu")
        torch.manual_seed(0)
        torch.set_num_threads(os.cpu_count() or 1)
        self.model = transformers.T5ForConditionalGeneration(
            transformers.T5Config(**t5_config(config, LAYOUT))
        ).to(self.device)
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)

    def prepare(self) -> None:
        """Draws the next batch and lays it on the device; not timed."""
        update = next(self.input)
        arrays = {k: v.reshape(-1) for k, v in update.arrays.items()}
        longest = len(self.input.buckets) - 1
        batch = jax.device_get(self.make_batch(self.constants, arrays, longest))
        tokens = batch["encoder_input_tokens"]
        tokens = tokens[:, : int((tokens != 0).sum(axis=1).max())]
        self.num_examples = update.num_examples
        self.tokens, self.labels = (
            self.torch.tensor(x, dtype=self.torch.long, device=self.device)
            for x in (tokens, batch["decoder_target_tokens"])
        )

    def __call__(self) -> tuple[int, float]:
        """Makes one update; its operations are not counted."""
        torch, tokens, labels = self.torch, self.tokens, self.labels
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"
        ):
            loss = self.model(
                input_ids=tokens, attention_mask=tokens != 0, labels=labels
            ).loss
        loss.backward()
        self.optimizer.step()
        loss.item()  # waits for the device
        return self.num_examples, 0.0


class MatmulPeak(Side):
    """The rate of a large matrix product."""

    def __init__(self, dtype: str) -> None:
        """Makes the factors."""
        self.size = 8192 if jax.default_backend() == "gpu" else 2048
        self.repeats = 5
        self.a = jnp.ones((self.size, self.size), dtype)
        self.matmul = jax.jit(lambda a: a @ a)

    def __call__(self) -> tuple[int, float]:
        """Multiplies a few times."""
        for _ in range(self.repeats):
            self.matmul(self.a).block_until_ready()
        return 0, 2.0 * self.size**3 * self.repeats


def measure(sides: dict[str, Side], rounds: int) -> dict:
    """Runs the sides in turns; medians of examples/s and FLOP/s, by side.

    A turn begins with an update that isn't timed, since a training doesn't stand idle
    between its updates, and goes on for `TURN_SECONDS`, since one draw of pairs is
    longer than another.
    """
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for side in sides.values():
        for _ in range(2):
            side.prepare()
            side()
    gc.collect()
    for _ in range(rounds):
        for name, side in sides.items():
            side.prepare()
            side()
            examples, flops, seconds = 0, 0.0, 0.0
            while seconds < TURN_SECONDS:
                side.prepare()
                started = time.perf_counter()
                more_examples, more_flops = side()
                seconds += time.perf_counter() - started
                examples, flops = examples + more_examples, flops + more_flops
            rates[name].append((examples / seconds, flops / seconds))
    return {name: np.median(values, axis=0) for name, values in rates.items()}


def load_histories(data_dir: Path) -> tuple[Histories, np.ndarray, np.ndarray]:
    """Training histories, an ID for each item, and each user's hash."""
    shop = FilesConfig().read(data_dir)
    data = prepare_shop(shop, InteractionsConfig(), SplitsConfig(), seed=0)
    # Which codes an item has makes no difference to the time a step takes.
    codes = np.random.default_rng(0).integers(0, 256, (data.num_items, 4))
    return data.train, codes.astype(np.int32), data.user_hashes


def open_stream(workdir: Path, batch_size: int, rows: int) -> Any:
    """The seqio input over a prepared work directory, in the same buckets."""
    os.environ["TIGER_WORKDIR"] = str(workdir)
    import tasks.tiger  # noqa: F401  registers the tasks
    from tiger_jax.input_pipeline.batches import SeqioBatches, SeqioConfig
    from tiger_jax.input_pipeline.microbatches import BucketConfig, BucketedBatches

    stream = SeqioBatches(SeqioConfig("tiger_own_data", batch_size), seed=0)
    lengths = tuple(1 + 4 * items for items in BUCKETS)
    return BucketedBatches(
        stream, BucketConfig(rows, lengths), max_length=stream.max_length
    )


def main() -> None:
    """Measures all cases that the arguments leave."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, default=None)
    parser.add_argument("--workdir", type=Path, default=None)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--microbatch_size", type=int, default=None)
    parser.add_argument("--d_model", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--cases", default="buckets,padded,each_bucket")
    parser.add_argument("--rows", type=Path, default=None)
    parser.add_argument("--table", type=Path, default=None)
    arguments = parser.parse_args()
    use_cpu_cores()
    data_dir = arguments.data_dir or Path(os.environ["TIGER_DATA"], "amazon2014_beauty")
    microbatch = arguments.microbatch_size or (
        32 if jax.default_backend() == "cpu" else arguments.batch_size
    )
    histories, codes, hashes = load_histories(data_dir)

    def make_input(buckets: tuple[int, ...], max_items: int, rows: int) -> Any:
        config = ResidentConfig(
            batch_size=arguments.batch_size,
            microbatch_size=rows,
            max_items=max_items,
            bucket_items=buckets,
        )
        return ResidentInput(histories, codes, LAYOUT, config, user_hashes=hashes)

    # (against, input, shape, buckets, longest history, dtype)
    cases: list[tuple[str, str, str, tuple[int, ...], int, str]] = []
    for dtype in arguments.dtypes.split(","):
        if "buckets" in arguments.cases.split(","):
            inputs = ("resident", "seqio") if arguments.workdir else ("resident",)
            cases += [("hf_t5", i, "buckets", BUCKETS, 20, dtype) for i in inputs]
        if "padded" in arguments.cases.split(","):
            cases.append(("hf_t5", "resident", "padded", (), 20, dtype))
        if "each_bucket" in arguments.cases.split(","):
            cases += [
                ("matmul_peak", "resident", "one bucket", (), n, dtype)
                for n in (*BUCKETS, 20)
            ]
    for against, source, shape, buckets, max_items, dtype in cases:
        config = TigerConfig(d_model=arguments.d_model, dtype=dtype)
        if source == "resident":
            input = make_input(buckets, max_items, microbatch)
        else:
            input = open_stream(arguments.workdir, arguments.batch_size, microbatch)
        ours = Ours(Tiger(config, LAYOUT), input)
        sides: dict[str, Side] = {"ours": ours, "matmul_peak": MatmulPeak(dtype)}
        if against == "hf_t5":
            rows = arguments.batch_size
            sides["hf_t5"] = HfT5(config, make_input((), max_items, rows), dtype)
        started = time.perf_counter()
        rates = measure(sides, arguments.rounds)
        examples_per_s, flops_per_s = rates["ours"]
        theirs = rates["hf_t5"][0] if against == "hf_t5" else None
        update_seconds = arguments.batch_size / examples_per_s
        input_seconds = ours.time_input(100)
        row = {
            "benchmark": "train_step",
            "case": {
                "input": source,
                "shape": shape,
                "items": [*buckets, max_items],
                "dtype": dtype,
                "d_model": arguments.d_model,
                "batch_size": arguments.batch_size,
                "microbatch_size": microbatch,
            },
            "against": against,
            "examples_per_s": round(float(examples_per_s), 1),
            "theirs_examples_per_s": theirs and round(float(theirs), 1),
            "ratio": theirs and round(float(examples_per_s / theirs), 2),
            "matmul_share": round(float(flops_per_s / rates["matmul_peak"][1]), 3),
            "matmul_gflops_per_s": round(float(rates["matmul_peak"][1] / 1e9), 1),
            "input_ms": round(1e3 * input_seconds, 3),
            "input_share": round(input_seconds / update_seconds, 4),
            "seconds": round(time.perf_counter() - started, 1),
            "environment": describe_environment(),
        }
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()
        if arguments.rows:
            with arguments.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    if arguments.rows and arguments.table:
        write_table(arguments.rows, arguments.table)


def write_table(rows_file: Path, table_file: Path) -> None:
    """Puts the newest row of every case between the marks of a Markdown file."""
    newest = {}
    for line in rows_file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        newest[json.dumps([row["case"], row["against"]])] = row
    lines = [
        "| input | padded to | dtype | d_model | microbatch | examples/s "
        "| Hugging Face T5 | ratio | share of matmul rate | input's share |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in newest.values():
        case, theirs = row["case"], row["theirs_examples_per_s"]
        items = ", ".join(map(str, case["items"]))
        lines.append(
            f"| {case['input']} | {items} items | {case['dtype']} | {case['d_model']} "
            f"| {case['microbatch_size']} | {row['examples_per_s']:.0f} "
            f"| {f'{theirs:.0f}' if theirs else '–'} "
            f"| {row['ratio'] or '–'} | {row['matmul_share']:.0%} of "
            f"{row['matmul_gflops_per_s']:.0f} GFLOP/s | {row['input_share']:.2%} |"
        )
    environments = {
        f"{e['device']}, {e['cores']} cores, commit {e['commit']}, jax "
        f"{e['packages'].get('jax')}, torch {e['packages'].get('torch')}"
        for e in (row["environment"] for row in newest.values())
    }
    lines += ["", *(f"{text}." for text in sorted(environments))]
    write_between(table_file, "train_step", "\n".join(lines))


def describe_environment() -> dict[str, Any]:
    """What a reader needs to judge the numbers."""
    device = jax.devices()[0]
    return {
        "commit": code_version(),
        "device": device.device_kind if device.platform != "cpu" else _cpu_name(),
        "cores": os.cpu_count(),
        "devices": jax.device_count(),
        "allocator": os.environ.get("GLIBC_TUNABLES", "default"),
        "packages": package_versions(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
