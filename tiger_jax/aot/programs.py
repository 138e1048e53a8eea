"""A run's programs, lowered for devices that may not be here.

Nothing is computed: parameters are shapes, and so are the arrays of an update, which
an input draws on the host. The catalogue and the histories are drawn at random, of
the sizes that are asked for, so that no work directory is needed.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from tiger_jax.config import config
from tiger_jax.decoding.trie import Trie, make_plan, worst_case
from tiger_jax.histories import Histories
from tiger_jax.input_pipeline.microbatches import BucketedBatches
from tiger_jax.input_pipeline.packed_histories import PackedConfig
from tiger_jax.input_pipeline.resident import ResidentConfig
from tiger_jax.models.generator import build_model, init_params, needs_content
from tiger_jax.quantizers.residual_kmeans import ResidualKMeans
from tiger_jax.quantizers.rqvae_training import RqVaeTraining
from tiger_jax.recommending import searcher
from tiger_jax.recommending.programs import Shapes
from tiger_jax.recommending.recipe import Recipe
from tiger_jax.recommending.train_tiger import step_parts
from tiger_jax.recommending.training_inputs import make_resident
from tiger_jax.semantic_ids.collisions import (
    MAX_COLLISION_LEVEL_SIZE,
    add_collision_level,
    collision_level_size_for,
)
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.training.flops import count_microbatch_flops
from tiger_jax.training.loop import stack_updates
from tiger_jax.training.partitioning import MeshConfig, Partitioner
from tiger_jax.training.train_state import TrainState, state_shardings
from tiger_jax.training.train_step import StepParts, make_train_step

PyTree = Any


@config("aot")
class ShopSizes:
    """A shop that programs are compiled for; the defaults are Amazon Beauty's.

    Attributes:
        num_interactions: Of training: without the last two of each user.
        embedding_size: Of an item's text.
    """

    num_items: int = 12_101
    num_users: int = 22_363
    num_interactions: int = 153_776
    embedding_size: int = 768


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run's gin files say of the programs that it compiles.

    Attributes:
        quantizer: Only an RQ-VAE compiles a training.
        collaborative_dims: Beside the text, of what is quantized.
        rows: Histories that `evaluate` searches at a time.
        exported: The beams of a bundle's programs, and what makes logits
            log-probabilities there.
        requests: The most that one of them takes at once.
        room: Factor by which a bundle's catalogue can grow.
    """

    recipe: Recipe
    mesh: MeshConfig
    quantizer: Any
    collaborative_dims: int
    search: searcher.SearchConfig
    rows: int
    exported: searcher.SearchConfig
    requests: int
    max_excluded: int
    room: float


@dataclasses.dataclass(frozen=True)
class Program:
    """Lowered for some devices, not yet compiled.

    Attributes:
        lower: Makes what can be compiled.
        num_devices: It runs on so many.
        runs: What one call does: so many `unit`.
        flops: Floating-point operations of one call as written, on all devices.
        branch_shares: How often each length bucket is taken; or, of an RQ-VAE's
            training, codewords stay and are reset.
    """

    lower: Callable[[], Any]
    num_devices: int
    runs: int
    unit: str
    flops: float
    branch_shares: tuple[float, ...] = ()


def programs_of(
    run: Run, devices: Sequence[jax.Device], sizes: ShopSizes
) -> dict[str, Callable[[], Program]]:
    """What a run compiles, by name, on a slice's devices; made when it is called."""
    rng, recipe = np.random.default_rng(0), run.recipe
    num_items, width = sizes.num_items, sizes.embedding_size + run.collaborative_dims
    vectors = rng.random((num_items, width), np.float32)
    quantizer = run.quantizer
    if is_rqvae := isinstance(quantizer, RqVaeTraining):
        levels = quantizer.resolved(vectors).model.codebook_sizes
    elif isinstance(quantizer, ResidualKMeans):  # whose fit would take long
        levels = quantizer.resolved(vectors).codebook_sizes
    else:
        levels = quantizer.fit(vectors, seed=0).codebook_sizes
    codes = rng.integers(0, levels, (num_items, len(levels)))
    codes = add_collision_level(
        codes,
        [str(i) for i in range(num_items)],
        collision_level_size=MAX_COLLISION_LEVEL_SIZE,
    )
    last = collision_level_size_for(codes)
    layout = TokenLayout((*levels, last), recipe.num_user_tokens)
    takes_content = needs_content(recipe.model)
    shape = (num_items, width) if takes_content else (0, 0)
    model = build_model(recipe.model, layout, shape)
    whole = Partitioner(run.mesh, devices=list(devices))
    alone = Partitioner(MeshConfig(1, 1), devices=list(devices[:1]))

    def train_recommender() -> Program:
        own: Recipe = recipe
        examples: Any
        if isinstance(recipe.input[0], ResidentConfig | PackedConfig):
            lengths = 2 + rng.exponential(size=sizes.num_users)
            lengths *= sizes.num_interactions / lengths.sum()
            offsets = np.append(0, np.cumsum(lengths)).astype(np.int64)
            items = rng.integers(0, num_items, offsets[-1], dtype=np.int32)
            users = rng.integers(0, 1 << 32, sizes.num_users, dtype=np.uint32)
            content = vectors if takes_content else None
            examples = make_resident(
                Histories(items, offsets), codes, layout, recipe, users, content
            )
            own = recipe.for_examples(examples.num_rows)
        else:
            stream, buckets = recipe.input
            length = shapes(run.exported, 1).encoder_length
            batches = _streamed(stream.batch_size, length, layout, rng)
            examples = BucketedBatches(batches, buckets, max_length=length)
        steps = own.loop.steps_per_dispatch
        return training_program(step_parts(own, model, examples), whole, steps, "pairs")

    def train_rqvae() -> Program:
        parts = quantizer.step_parts(vectors)
        steps, resets = quantizer.steps_per_dispatch, 1 / quantizer.reset_every
        made = training_program(parts, alone, steps, "vectors")
        return dataclasses.replace(made, branch_shares=(1 - resets, resets))

    def shapes(search: searcher.SearchConfig, rows: int) -> Shapes:
        length = layout.semantic_id_length
        return Shapes(
            batch_sizes=(rows,),
            num_beams=search.num_beams,
            max_excluded=run.max_excluded,
            encoder_length=min(layout.num_user_tokens, 1) + recipe.max_items * length,
            semantic_id_length=length,
            normalize=search.normalize_for(recipe.model),
            content_items=recipe.max_items * takes_content,
        )

    def evaluate() -> Program:
        rows = -(-run.rows // len(devices)) * len(devices)
        own = shapes(run.search, rows)
        excluded = np.full((rows, recipe.max_items), -1, np.int32)
        queries = searcher.Queries(own.empty_queries(rows).inputs, excluded)
        trie = Trie.build(codes, layout.codebook_sizes)
        every = Partitioner(devices=list(devices))
        return search_program(model, trie, num_items, own.settings, queries, every)

    def serve() -> Program:
        own = shapes(run.exported, run.requests)
        capacity = math.ceil(round(num_items * run.room, 6))
        trie = Trie.build(
            codes,
            layout.codebook_sizes,
            plan=make_plan(worst_case(layout.codebook_sizes, capacity)),
            attributes=np.zeros(num_items, np.uint32),
        )
        queries = own.empty_queries(run.requests)
        return search_program(model, trie, capacity, own.settings, queries, alone)

    made = {"train_recommender": train_recommender}
    if is_rqvae:
        made["train_rqvae"] = train_rqvae
    return made | {"evaluate": evaluate, "serve": serve}


def training_program(
    parts: StepParts, partitioner: Partitioner, steps: int, unit: str
) -> Program:
    """The compiled step of the training loop: `steps` updates in one call."""
    updates = [next(parts.input) for _ in range(steps)]
    arrays, buckets, batch_axis = stack_updates(updates, partitioner)
    num_buckets = len(parts.input.buckets)
    params = nn.meta.unbox(jax.eval_shape(parts.init_fn, jax.random.key(0)))
    variables = parts.variables
    if callable(variables):
        variables = jax.eval_shape(variables, params)
    # FLOPs are counted before compiling, for a device that is here.
    here = Partitioner(MeshConfig(1, 1), devices=jax.devices()[:1])
    per_bucket = count_microbatch_flops(
        parts.loss_fn, parts.input, params, updates[0], here
    )

    def lower() -> Any:
        replicated = partitioner.replicated
        shardings = state_shardings(
            parts.init_fn, parts.optimizer, partitioner, parts.variables
        )
        step = make_train_step(
            parts.loss_fn,
            parts.optimizer,
            partitioner,
            shardings,
            make_batch=parts.input.make_batch,
            num_buckets=num_buckets,
            after_update=parts.after_update,
        )
        split = replicated
        if batch_axis is not None:
            axes = (*[None] * batch_axis, "data")
            split = NamedSharding(partitioner.mesh, PartitionSpec(*axes))
        state = TrainState(
            params,
            jax.eval_shape(parts.optimizer.init, params),
            jax.ShapeDtypeStruct((), jnp.int32),  # type: ignore[arg-type]
            variables,
        )
        shapes = (
            jax.tree.map(_shape, state, shardings),
            _shape(jax.random.key(0), replicated),
            _shapes(parts.input.constants, replicated),
            _shapes(arrays, split),
            _shapes(buckets, replicated),
        )
        with partitioner.context():  # whose devices need not be here
            return step.lower(*shapes)  # type: ignore[attr-defined]

    counts = np.bincount(buckets.ravel(), minlength=num_buckets)
    return Program(
        lower,
        num_devices=partitioner.mesh.size,
        # A packed row has a pair at each target, another example is one.
        runs=int(arrays["is_target"].sum())
        if "is_target" in arrays
        else sum(update.num_examples for update in updates),
        unit=unit,
        flops=float(counts @ np.asarray(per_bucket)),
        branch_shares=tuple((counts / counts.sum()).tolist()),
    )


def search_program(
    model: Any,
    trie: Trie,
    num_rows: int,
    settings: searcher.Settings,
    queries: searcher.Queries,
    partitioner: Partitioner,
) -> Program:
    """A search by beams, its requests split over the devices.

    Args:
        num_rows: Of the items' content, beside the trie.
    """
    params = nn.meta.unbox(
        jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
    )
    searched: Any = trie
    if needs_content(model.config):
        dims = model.content_shape[1]
        content = jax.ShapeDtypeStruct((num_rows, dims), jnp.float32)
        numbers = jax.ShapeDtypeStruct((num_rows,), jnp.int32)
        embed = functools.partial(model.apply, method="embed_items")
        vectors = jax.eval_shape(embed, {"params": params}, content, numbers)
        table = searcher.ItemTable(
            vectors,
            np.ones(num_rows, bool),
            np.zeros(num_rows, np.float32),
            np.float32(0),
        )
        searched = table.over(trie)
    run = jax.jit(functools.partial(searcher.run, "search", model, settings))
    rows = NamedSharding(partitioner.mesh, PartitionSpec("data"))
    written = run.lower(*_shapes((params, searched, queries)))

    def lower() -> Any:
        whole = _shapes((params, searched), partitioner.replicated)
        with partitioner.context():
            return run.lower(*whole, _shapes(queries, rows))

    return Program(
        lower,
        num_devices=partitioner.mesh.size,
        runs=len(jax.tree.leaves(queries)[0]),
        unit="requests",
        flops=float((written.cost_analysis() or {}).get("flops", 0.0)),
    )


def _streamed(
    batch_size: int, longest: int, layout: TokenLayout, rng: np.random.Generator
) -> Iterator[dict[str, np.ndarray]]:
    """Batches as seqio's converter makes them, of pairs; histories of every length."""
    length = layout.semantic_id_length
    while True:
        counts = np.minimum(longest, length * (1 + rng.exponential(5, batch_size)))
        is_token = np.arange(longest) < counts[:, None]
        targets = np.ones((batch_size, length), np.int32)
        names = ("input_tokens", "target_tokens", "loss_weights")
        yield {"encoder_input_tokens": is_token.astype(np.int32)} | {
            f"decoder_{name}": targets for name in names
        }


def _shape(x: Any, sharding: Any = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=sharding)


def _shapes(tree: PyTree, sharding: Any = None) -> PyTree:
    return jax.tree.map(lambda x: _shape(x, sharding), tree)
