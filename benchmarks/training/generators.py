"""Measures the two-level generator against the encoder-decoder, in turns.

    python -m benchmarks.training.generators --workdir=runs/beauty [--rounds=9]
        [--rows=rows.jsonl --document=benchmarks/README.md]

Both train on the work directory's own histories and Semantic IDs as their experiments
do (`encoder_decoder_best.gin`, `own_data_best.gin`), through the engine's inputs and
compiled step, and then search the catalogue with 50 beams for 32 users. A pair is a
history's prefix and its next item: the encoder-decoder reads a prefix for each, the
two-level generator a whole history. Medians of turns; one JSON row per model, the ratio
to the encoder-decoder in it.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from benchmarks import lib
from tiger_jax.decoding.trie import Trie
from tiger_jax.input_pipeline.packed_histories import PackedConfig
from tiger_jax.input_pipeline.resident import ResidentConfig
from tiger_jax.models.generator import build_model, init_params, make_loss_fn
from tiger_jax.models.tiger import TigerConfig
from tiger_jax.models.two_level import TwoLevelConfig
from tiger_jax.recommending.recipe import Recipe
from tiger_jax.recommending.searcher import DenseWeights, Queries, Searcher, Settings
from tiger_jax.recommending.training_inputs import TrainingInputs, open_histories
from tiger_jax.training.optimizers import OptimizerConfig, make_optimizer
from tiger_jax.training.partitioning import Partitioner, use_cpu_cores
from tiger_jax.training.train_state import averaging, init_train_state, split_seed
from tiger_jax.training.train_step import make_train_step

USERS, BEAMS = 32, 50
RECIPES = {
    "encoder-decoder": Recipe(
        model=TigerConfig(encoder_positions="items", label_smoothing=0.1),
        optimizer=OptimizerConfig(warmup_steps=100),
        input=(ResidentConfig(microbatch_size=16),),
    ),
    "two-level, codes alone": Recipe(
        model=TwoLevelConfig(),
        num_user_tokens=0,
        average_decay=0.998,
        optimizer=OptimizerConfig(name="adamw", weight_decay=0.05, decay_all=True),
        input=(PackedConfig(),),
    ),
    "two-level, content and dense head": Recipe(
        model=TwoLevelConfig(reads_content=True, dense_head=True),
        num_user_tokens=0,
        average_decay=0.998,
        optimizer=OptimizerConfig(name="adamw", weight_decay=0.05, decay_all=True),
        input=(PackedConfig(),),
    ),
    "two-level, as base/two_level.gin": Recipe(
        model=TwoLevelConfig(
            reads_content=True, dense_head=True, item_embeddings=True, filter_share=0.7
        ),
        num_user_tokens=0,
        average_decay=0.998,
        optimizer=OptimizerConfig(
            name="adamw", weight_decay=0.05, decay_all=True, clip_norm=0.25
        ),
        input=(PackedConfig(),),
    ),
}


def make_update(
    recipe: Recipe, inputs: TrainingInputs, partitioner: Partitioner
) -> tuple[Callable[[], float], Callable[[], object], int]:
    """An update that gives its pairs, a search, and the number of parameters."""
    model = build_model(recipe.model, inputs.layout, inputs.content_shape)
    optimizer, loss_fn = make_optimizer(recipe.optimizer), make_loss_fn(model)
    kept = averaging(recipe.average_decay) if recipe.average_decay else {}
    init_key, key = split_seed(0)
    state = init_train_state(
        lambda key: init_params(model, key),
        optimizer,
        partitioner,
        init_key,
        kept.get("variables", ()),
    )
    step = make_train_step(
        loss_fn,
        optimizer,
        partitioner,
        jax.tree.map(lambda x: x.sharding, state),
        make_batch=inputs.examples.make_batch,
        num_buckets=len(inputs.examples.buckets),
        after_update=kept.get("after_update"),
    )
    put = partitioner.put
    constants = put(inputs.examples.constants, batch_axis=None, is_global=True)
    params = jax.device_get(state.params)  # the state itself is donated

    def update() -> float:
        nonlocal state
        drawn = next(inputs.examples)
        one = jax.tree.map(lambda x: x[None], (drawn.arrays, drawn.buckets))
        arrays, buckets = put(one, batch_axis=None, is_global=True)
        state, metrics = step(state, key, constants, arrays, buckets)
        return float(metrics["weight"][0]) / inputs.layout.semantic_id_length

    searcher = Searcher(model, params, Settings(BEAMS, recipe.model.normalize))
    trie = jax.device_put(Trie.build(inputs.table.codes, inputs.table.codebook_sizes))
    if inputs.content is not None:
        items = searcher.embed_items(
            inputs.content,
            occurrences=inputs.occurrences,
            weights=DenseWeights(0.5, 0.25),
        )
        trie = items.over(trie)
    queries = Queries(jax.tree.map(lambda x: x[:USERS], inputs.sample.inputs))
    count = sum(x.size for x in jax.tree.leaves(params))
    return update, lambda: jax.block_until_ready(searcher.search(trie, queries)), count


def measure(workdir: Path, rounds: int) -> list[lib.Row]:
    """Medians over rounds in which every model takes its turn."""
    partitioner = Partitioner()
    made = {
        name: make_update(recipe, open_histories(workdir, recipe), partitioner)
        for name, recipe in RECIPES.items()
    }
    pairs: dict[str, list[float]] = {name: [] for name in made}
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for number in range(rounds + 2):  # the first two compile
        for name, (update, search, _) in made.items():
            started = time.perf_counter()
            done = sum(update() for _ in range(3))
            trained = time.perf_counter()
            search()
            if number >= 2:
                pairs[name].append(done / (trained - started))
                seconds[name].append(time.perf_counter() - trained)
    first = next(iter(made))

    def row(name: str) -> lib.Row:
        rate, search = np.median(pairs[name]), np.median(seconds[name])
        return {
            "benchmark": "training.generators",
            "model": name,
            "parameters": made[name][2],
            "pairs_per_second": round(float(rate), 1),
            "pairs_ratio": round(float(rate / np.median(pairs[first])), 2),
            "search_ms": round(1e3 * float(search), 2),
            "search_ratio": round(float(np.median(seconds[first]) / search), 2),
            "rounds": rounds,
            **lib.environment(),
        }

    return [row(name) for name in made]


def format_table(rows: Sequence[lib.Row]) -> str:
    """The rows as a table, times as ratios to the first model's."""
    titles = ["model", "parameters", "pairs/s", "×", "search, ms", "× faster"]
    names = ["pairs_per_second", "pairs_ratio", "search_ms", "search_ratio"]
    return "\n".join(
        lib.markdown_table(
            titles,
            (
                [row["model"], f"{row['parameters']:,}", *(row[n] for n in names)]
                for row in rows
            ),
            "|---|--:",
        )
    )


def main() -> None:
    """Measures, prints the rows, and writes their table where that is asked for."""
    parser = lib.make_parser(__doc__, "workdir", "rows", "document")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    use_cpu_cores()
    rows = measure(options.workdir, options.rounds)
    for row in rows:
        lib.report(row, options.rows)
    if options.document:
        lib.write_between(options.document, "generators", format_table(rows))


if __name__ == "__main__":
    lib.run(main)
