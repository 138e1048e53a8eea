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
matrix product take all cores as they like. One JSON row per case.

`ratio` is ours / theirs. `input_share` is the share of an update's seconds that its
input takes with nothing of it hidden behind the step.
`matmul_share` counts the operations that the model executes, `textbook_share` those of
the textbook Transformer, three forward passes' worth, as model-FLOP utilisation does;
the model executes fewer, because cross-attention needs neither keys nor values. By
CPU time (`matmul_share_by_cpu_time`), programs that run beside this one disturb less,
and cores that wait for each other aren't seen. The cases are `buckets` (as a training
runs), `padded` (every row to 20 items) and `each_bucket` (each length by itself,
against the matrix product alone).
"""

import importlib.util
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import lib
from tiger_jax.data.interactions import InteractionsConfig
from tiger_jax.data.prepare import prepare_shop
from tiger_jax.data.readers.files import FilesConfig
from tiger_jax.data.splits import SplitsConfig
from tiger_jax.histories import Histories
from tiger_jax.input_pipeline.resident import ResidentConfig, ResidentInput
from tiger_jax.models.generator import init_params, make_loss_fn
from tiger_jax.models.tiger import Tiger, TigerConfig
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.t5x_bridge.t5_weights import t5_config
from tiger_jax.training.flops import count_microbatch_flops
from tiger_jax.training.optimizers import OptimizerConfig, make_optimizer
from tiger_jax.training.partitioning import Partitioner, use_cpu_cores
from tiger_jax.training.train_state import init_train_state, split_seed
from tiger_jax.training.train_step import make_train_step

LAYOUT = TokenLayout((256,) * 4, num_user_tokens=2000)
BUCKETS = (2, 3, 5, 7, 10, 14)
MAX_ITEMS = 20
OPTIMIZER = OptimizerConfig(
    name="adamw", schedule="constant", learning_rate=1e-3, warmup_steps=0
)


def textbook_flops(config: TigerConfig, length: int) -> int:
    """Floating-point operations of one example's training step.

    Two for each weight and token, and for each pair of positions and feature; three
    times that with the backward pass. Norms, softmax and embeddings aren't counted.
    """
    joined = config.num_heads * config.head_dim
    attention, mlp = 4 * config.d_model * joined, 2 * config.d_model * config.mlp_dim
    targets = LAYOUT.semantic_id_length
    encoder = length * (attention + mlp + 2 * length * joined)
    decoder = targets * (attention + mlp + 2 * targets * joined)
    cross = (targets + length) * attention // 2 + 2 * targets * length * joined
    heads = config.d_model * sum(LAYOUT.codebook_sizes)
    blocks = config.num_encoder_layers * encoder
    blocks += config.num_decoder_layers * (decoder + cross)
    return 3 * 2 * (blocks + heads)


# A side, called, gives examples, and operations as executed and as in textbooks.


class Ours:
    """Our step on one input; called, it makes one update, drawing it included."""

    def __init__(
        self, config: TigerConfig, input: Any, lengths: Sequence[int], rows: int
    ) -> None:
        """Compiles nothing yet; the first call does. Lengths are in items."""
        model = Tiger(config, LAYOUT)
        self.input, self.partitioner = input, Partitioner()
        own = [textbook_flops(config, 1 + 4 * items) for items in lengths]
        self.textbook = rows * np.array(own, float)
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
        self.flops = count_microbatch_flops(
            loss_fn, input, self.state.params, next(input), self.partitioner
        )

    def __call__(self) -> tuple[int, float, float]:
        update, arrays, buckets = self._draw()
        self.state, metrics = self.step(
            self.state, self.key, self.constants, arrays, buckets
        )
        jax.block_until_ready(metrics)
        flops = sum(self.flops[bucket] for bucket in update.buckets)
        return update.num_examples, flops, self.textbook[update.buckets].sum()

    def time_input(self, updates: int) -> float:
        """Seconds to draw an update and bring it to the device, with nothing beside.

        What a stream holds ready beforehand is drawn first.
        """
        for _ in range(updates):
            self._draw()
        started = time.perf_counter()
        for _ in range(updates):
            jax.block_until_ready(self._draw()[1:])
        return (time.perf_counter() - started) / updates

    def _draw(self) -> tuple[Any, Any, Any]:
        update, put = next(self.input), self.partitioner.put
        one = jax.tree.map(lambda x: x[None], (update.arrays, update.buckets))
        return update, *put(one, batch_axis=None, is_global=True)


class HfT5:
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

    def __call__(self) -> tuple[int, float, float]:
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
        return self.num_examples, 0.0, 0.0


class MatmulPeak:
    """The rate of a large matrix product."""

    def __init__(self, dtype: str) -> None:
        self.size = 8192 if jax.default_backend() == "gpu" else 2048
        self.repeats = 5
        self.a = jnp.ones((self.size, self.size), dtype)
        self.matmul = jax.jit(lambda a: a @ a)

    def __call__(self) -> tuple[int, float, float]:
        for _ in range(self.repeats):
            self.matmul(self.a).block_until_ready()
        flops = 2.0 * self.size**3 * self.repeats
        return 0, flops, flops


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


def list_cases(options: Any) -> Iterator[tuple[str, str, str, tuple[int, ...], str]]:
    """Against, input, shape, its lengths in items, dtype."""
    inputs = ("resident", "seqio") if options.workdir else ("resident",)
    every = (*BUCKETS, MAX_ITEMS)
    for dtype in options.dtypes:
        if "buckets" in options.cases:
            yield from (("hf_t5", input, "buckets", every, dtype) for input in inputs)
        if "padded" in options.cases:
            yield "hf_t5", "resident", "padded", (MAX_ITEMS,), dtype
        if "each_bucket" in options.cases:
            for items in every:
                yield "matmul_peak", "resident", "one bucket", (items,), dtype


def main() -> None:
    """Measures all cases that the arguments leave."""
    parser = lib.make_parser(__doc__, "rows", "table")
    add = parser.add_argument
    add("--data_dir", type=Path, help="or amazon2014_beauty in $TIGER_DATA")
    add("--workdir", type=Path, help="a prepared one, for the seqio input")
    add("--batch_size", type=int, default=256)
    add("--microbatch_size", type=int)
    add("--d_model", type=int, default=128)
    add("--dropout", type=float, default=TigerConfig().dropout_rate)
    add("--rounds", type=int, default=7)
    add("--turn_seconds", type=float, default=3.0)
    add("--dtypes", type=lib.words, default=["float32", "bfloat16"])
    add("--cases", type=lib.words, default=["buckets", "padded", "each_bucket"])
    options = lib.parse(parser)
    data_dir = lib.find_data(options.data_dir, "amazon2014_beauty", "--data_dir")
    has_torch = all(map(importlib.util.find_spec, ("torch", "transformers")))
    if not has_torch:
        print("without hf_t5: torch or transformers isn't installed", file=sys.stderr)
    use_cpu_cores()
    microbatch = options.microbatch_size or (
        32 if jax.default_backend() == "cpu" else options.batch_size
    )
    histories, codes, hashes = load_histories(data_dir)

    def make_input(lengths: Sequence[int], rows: int) -> Any:
        *buckets, longest = lengths
        config = ResidentConfig(
            batch_size=options.batch_size,
            microbatch_size=rows,
            max_items=longest,
            bucket_items=tuple(buckets),
        )
        return ResidentInput(histories, codes, LAYOUT, config, user_hashes=hashes)

    for against, source, shape, lengths, dtype in list_cases(options):
        config = TigerConfig(
            d_model=options.d_model, dropout_rate=options.dropout, dtype=dtype
        )
        if source == "resident":
            input = make_input(lengths, microbatch)
        else:
            input = open_stream(options.workdir, options.batch_size, microbatch)
        ours = Ours(config, input, lengths, microbatch)
        sides = {"ours": ours, "matmul_peak": MatmulPeak(dtype)}
        if against == "hf_t5" and has_torch:
            whole = make_input((MAX_ITEMS,), options.batch_size)
            sides["hf_t5"] = HfT5(config, whole, dtype)
        started = time.perf_counter()
        turns = lib.race(sides, options.rounds, options.turn_seconds, weigh=tuple)
        rates, by_cpu = (  # of examples, operations, textbook operations
            {
                name: np.median(own[:, 2:] / own[:, [clock]], axis=0)
                for name, own in turns.items()
            }
            for clock in (0, 1)
        )
        peak = rates["matmul_peak"][1]
        theirs = float(rates["hf_t5"][0]) if "hf_t5" in rates else None
        examples_per_s, flops_per_s, textbook_per_s = map(float, rates["ours"])
        cpu_share = by_cpu["ours"][1] / by_cpu["matmul_peak"][1]
        input_seconds = ours.time_input(100)
        row = {
            "benchmark": "train_step",
            "case": {
                "input": source,
                "shape": shape,
                "items": list(lengths),
                "dtype": dtype,
                "d_model": options.d_model,
                "batch_size": options.batch_size,
                "microbatch_size": microbatch,
            },
            "against": against,
            "dropout": options.dropout,
            "examples_per_s": round(examples_per_s, 1),
            "theirs_examples_per_s": theirs and round(theirs, 1),
            "ratio": theirs and round(examples_per_s / theirs, 2),
            "matmul_share": round(flops_per_s / peak, 3),
            "matmul_share_by_cpu_time": round(float(cpu_share), 3),
            "textbook_share": round(textbook_per_s / peak, 3),
            "matmul_gflops_per_s": round(float(peak / 1e9), 1),
            "input_ms": round(1e3 * input_seconds, 3),
            "input_share": round(
                input_seconds * examples_per_s / options.batch_size, 4
            ),
            "seconds": round(time.perf_counter() - started, 1),
            "environment": lib.environment(),
        }
        lib.report(row, options.rows)
    if options.table:
        write_table(options.rows, options.table)


def write_table(rows_file: Path, table_file: Path) -> None:
    """Puts the newest row of every case between the marks of a Markdown file."""
    newest = lib.newest_rows(rows_file, lambda row: [row["case"], row["against"]])
    titles = ["input", "padded to", "dtype", "d_model", "microbatch", "examples/s"]
    titles += ["Hugging Face T5", "ratio", "share of matmul rate", "input's share"]
    cells = []
    for row in newest:
        case, theirs = row["case"], row["theirs_examples_per_s"]
        cells.append(
            [
                case["input"],
                f"{', '.join(map(str, case['items']))} items",
                *(case[name] for name in ("dtype", "d_model", "microbatch_size")),
                f"{row['examples_per_s']:.0f}",
                f"{theirs:.0f}" if theirs else "–",
                row["ratio"] or "–",
                f"{row['matmul_share']:.0%} of {row['matmul_gflops_per_s']:.0f} "
                "GFLOP/s",
                f"{row['input_share']:.2%}",
            ]
        )
    lines = lib.markdown_table(titles, cells, "|---|---|---|--:|")
    environments = {
        f"{e['processor'] if e['platform'] == 'cpu' else e['device']}, "
        f"{e['cores']} cores, commit {e['commit']}, jax {e['packages'].get('jax')}, "
        f"torch {e['packages'].get('torch')}"
        for e in (row["environment"] for row in newest)
    }
    lines += ["", *(f"{text}." for text in sorted(environments))]
    lib.write_between(table_file, "train_step", "\n".join(lines))


if __name__ == "__main__":
    lib.run(main)
