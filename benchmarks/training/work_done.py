"""How much arithmetic a finished training was, and at what rate it was done."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.lib import read_rows
from tiger_jax.data.prepared import PreparedData
from tiger_jax.input_pipeline.resident import ResidentConfig, ResidentInput
from tiger_jax.models.generator import init_params, make_loss_fn
from tiger_jax.models.tiger import Tiger
from tiger_jax.recommending.trained_model import load_card_and_table
from tiger_jax.training.flops import count_microbatch_flops
from tiger_jax.training.partitioning import Partitioner
from tiger_jax.workdir import artifacts

UPDATES_LOOKED_AT = 200


def measure_work(workdir: Path) -> dict[str, float]:
    """Floating-point operations of an example, and in a second, of a recommender.

    The compiler counts the gradient of a microbatch of every length before it
    optimizes anything, padding included; how often each length comes is seen in the
    input's first updates, drawn as that training drew them. The rate is over the time
    that the training logged as spent on updates, without validation.

    Returns:
        `gflop_per_example` and `gflops_per_s`; nothing for the seqio input, whose
        stream isn't opened again.
    """
    folder = workdir / "recommender"
    manifest = artifacts.load_manifest(folder, verify=False)
    config = manifest.config.get("input", [{}])[0]
    if config.get("class") != ResidentConfig.__name__:
        return {}
    data = PreparedData.load(workdir / "data")
    card, table = load_card_and_table(workdir, data)
    names = {field.name for field in dataclasses.fields(ResidentConfig)}
    values: dict[str, Any] = {k: v for k, v in config.items() if k in names}
    values["bucket_items"] = tuple(values["bucket_items"])
    examples = ResidentInput(
        data.train,
        table.codes,
        card.layout,
        ResidentConfig(**values),
        user_hashes=data.user_hashes,
        seed=manifest.config["seed"],
        only_last=manifest.config.get("training_pairs") == "last",
    )
    updates = [next(examples) for _ in range(UPDATES_LOOKED_AT)]
    model = Tiger(card.config, card.layout)
    params = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    flops = count_microbatch_flops(
        make_loss_fn(model), examples, params, updates[0], Partitioner()
    )
    total = sum(flops[bucket] for update in updates for bucket in update.buckets)
    per_example = total / sum(update.num_examples for update in updates) / 1e9
    return {
        "gflop_per_example": float(f"{per_example:.3g}"),
        "gflops_per_s": float(f"{per_example * _examples_per_second(folder):.3g}"),
    }


def _examples_per_second(folder: Path) -> float:
    """Over all that the training logged."""
    logged = read_rows(folder / "metrics.jsonl")
    rows = [row for row in logged if "train/seconds" in row]
    seconds = np.array([row["train/seconds"] for row in rows])
    rates = np.array([row["train/examples_per_s"] for row in rows])
    return float(rates @ seconds / seconds.sum())
