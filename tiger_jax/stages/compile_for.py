"""A run's programs compiled for a slice or GPUs that aren't here; writes no folder."""

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import gin

from tiger_jax.aot.estimate import describe, estimate
from tiger_jax.aot.programs import Run, ShopSizes, programs_of
from tiger_jax.aot.topologies import describe_slice
from tiger_jax.errors import InputError
from tiger_jax.progress import say
from tiger_jax.quantizers.rqvae_training import RqVaeTraining
from tiger_jax.recommending.recipe import Recipe, choose_input
from tiger_jax.recommending.searcher import SearchConfig
from tiger_jax.stages.context import RunContext
from tiger_jax.training.partitioning import MeshConfig


@gin.configurable(module="stages")
def compile_for(
    context: RunContext,
    *,
    topology: str = "v5e:2x2",
    programs: tuple[str, ...] = (),
    sizes: ShopSizes | None = None,
    rows: str | None = None,
) -> None:
    """Says what the run of these gin files would take on a slice.

    Args:
        topology: A slice as the TPU's compiler names it, or GPUs of one machine such
            as ``gpu:h100:8``.
        programs: Some of ``train_recommender``, ``train_rqvae``, ``evaluate`` and
            ``serve``; empty for all that the run has.
        sizes: Of the shop.
        rows: A file that gets a line of JSON for each program.

    Raises:
        InputError: The compiler isn't installed or doesn't know the slice.
    """
    del context
    devices = describe_slice(topology)
    made = programs_of(run_as_bound(), devices, sizes or ShopSizes())
    if unknown := set(programs) - set(made):
        raise InputError(
            f"compile_for.programs names {sorted(unknown)}: this run has "
            f"{', '.join(made)}"
        )
    for name in programs or made:
        row = {"topology": topology, **estimate(name, made[name], devices[0])}
        say(describe(row))
        if rows is not None:
            with Path(rows).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def run_as_bound() -> Run:
    """What gin binds for the stages whose programs are compiled."""
    trains, searches, exports, quantizes = map(
        _settings, ("train_recommender", "evaluate", "export", "train_rqvae")
    )
    inputs = [trains.pop(name) for name in ("input", "resident", "seqio", "buckets")]
    names = {field.name for field in dataclasses.fields(Recipe)} - {"starts_from"}
    own = {name: v for name, v in trains.items() if name in names and v is not None}
    collaborative = quantizes["collaborative"]
    return Run(
        recipe=Recipe(**own, input=choose_input(*inputs)),
        mesh=trains["mesh"] or MeshConfig(),
        quantizer=quantizes["quantizer"] or RqVaeTraining(),
        collaborative_dims=collaborative.dims if collaborative else 0,
        search=searches["search"] or SearchConfig(),
        rows=searches["config"].batch_size,
        exported=SearchConfig(
            num_beams=exports["num_beams"], normalize=exports["normalize"]
        ),
        requests=max(exports["batch_sizes"]),
        max_excluded=exports["max_excluded"],
        room=exports["room"],
    )


def _settings(stage: str) -> dict[str, Any]:
    """A stage's arguments, as bound or else its defaults."""
    name = f"stages.{stage}"
    arguments = inspect.signature(gin.get_configurable(name)).parameters.values()
    return {one.name: one.default for one in arguments} | gin.get_bindings(name)
