"""A tiny model on generated histories; also a program to be killed.

As a program: ``tiny_run.py FOLDER CONFIG_JSON`` trains in FOLDER and writes the last
parameters' hash to FOLDER/done.json. With ``"seqio": WORKDIR`` it trains on the seqio
stream of a work directory, in place of the resident input; with ``"model": "tiger"`` or
``"two_level"`` a real one. With ``"rows": true`` it leaves in FOLDER/rows.PROCESS.json
what each update's examples on its own devices were.
"""

import functools
import hashlib
import json
import sys
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tiger_jax import processes
from tiger_jax.errors import Preempted
from tiger_jax.histories import Histories
from tiger_jax.input_pipeline.packed_histories import PackedConfig, PackedHistories
from tiger_jax.input_pipeline.resident import ResidentConfig, ResidentInput
from tiger_jax.models import generator
from tiger_jax.models.tiger import TigerConfig
from tiger_jax.models.two_level import TwoLevelConfig
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.training import loop as training_loop
from tiger_jax.training.loop import LoopConfig, train
from tiger_jax.training.optimizers import OptimizerConfig, make_optimizer
from tiger_jax.training.partitioning import (
    MeshConfig,
    Partitioner,
    initialize_distributed,
)

# Every sharded axis is a multiple of 8: vocab 1 + 12 + 11 = 24, mlp 16.
LAYOUT = TokenLayout((4, 4, 4), num_user_tokens=11)


class Bag(nn.Module):
    """Predicts all target tokens at once from the mean of the input's embeddings.

    Compiles in a second, where a Transformer takes many.
    """

    width: int = 8
    hidden: int = 16
    vocab_size: int = LAYOUT.vocab_size
    levels: int = LAYOUT.semantic_id_length

    @nn.compact
    def __call__(self, tokens, *, is_training):
        init = nn.initializers.normal(0.3)

        def matrix(name, shape, axes):
            return self.param(name, nn.with_logical_partitioning(init, axes), shape)

        table = matrix("embeddings", (self.vocab_size, self.width), ("vocab", "embed"))
        wi = matrix("wi", (self.width, self.hidden), ("embed", "mlp"))
        wo = matrix("wo", (self.hidden, self.levels * self.width), ("mlp", "embed"))
        is_token = (tokens != 0)[:, :, None]
        mean = (table[tokens] * is_token).sum(1) / is_token.sum(1)
        hidden = nn.Dropout(0.1, deterministic=not is_training)(nn.relu(mean @ wi))
        states = (hidden @ wo).reshape(-1, self.levels, self.width)
        return states @ table.T


def make_init_fn(model):
    tokens = np.ones((1, 4), np.int32)  # no device yet: see `main`
    return lambda key: model.init(key, tokens, is_training=False)["params"]


def make_loss_fn(model):
    def loss_fn(params, batch, key):
        logits = model.apply(
            {"params": params},
            batch["encoder_input_tokens"],
            is_training=key is not None,
            rngs={} if key is None else {"dropout": key},
        )
        weights = batch["decoder_loss_weights"].astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, batch["decoder_target_tokens"]
        )
        return (losses * weights).sum(), {"weight": weights.sum()}

    return loss_fn


init_fn, loss_fn = make_init_fn(Bag()), make_loss_fn(Bag())


OPTIMIZER = OptimizerConfig(
    name="adamw", schedule="cosine", learning_rate=0.01, warmup_steps=5
)


def generate_histories(num_users: int = 40, seed: int = 0) -> Histories:
    """Users who walk around a ring of 64 items, with a hop now and then."""
    rng = np.random.default_rng(seed)
    lists = []
    for length in rng.integers(1, 9, num_users):
        start = rng.integers(64)
        hops = rng.integers(1, 3, length)
        lists.append(((start + np.cumsum(hops)) % 64).tolist())
    return Histories.from_lists(lists)


CODES = np.stack(np.unravel_index(np.arange(64), (4, 4, 4)), axis=1).astype(np.int32)


def make_input(
    *, buckets=(2,), batch_size=16, microbatch_size=8, seed=0
) -> ResidentInput:
    histories = generate_histories()
    config = ResidentConfig(
        batch_size=batch_size,
        microbatch_size=microbatch_size,
        max_items=4,
        bucket_items=buckets,
    )
    hashes = np.arange(histories.num_users, dtype=np.uint32) * 7
    return ResidentInput(
        histories, CODES, LAYOUT, config, user_hashes=hashes, seed=seed
    )


def make_seqio_input(workdir: str):
    """The stream of a work directory in buckets, and a model of its tokens."""
    from tasks.tiger import register_tiger_task
    from tiger_jax.input_pipeline.batches import SeqioBatches, SeqioConfig
    from tiger_jax.input_pipeline.microbatches import BucketConfig, BucketedBatches

    register_tiger_task("tiger_killed", workdir)
    stream = SeqioBatches(SeqioConfig("tiger_killed", batch_size=16), seed=0)
    buckets = BucketConfig(microbatch_size=8, lengths=(17, 41))
    input = BucketedBatches(stream, buckets, max_length=stream.max_length)
    layout = stream.layout
    model = Bag(vocab_size=layout.vocab_size, levels=layout.semantic_id_length)
    return input, model


SIZES = {"d_model": 8, "num_heads": 2, "mlp_dim": 16}


def make_real(name: str):
    """TIGER on prefixes, or the two-level model with its dense head on histories."""
    if name == "tiger":
        layers = {"num_encoder_layers": 1, "num_decoder_layers": 1, "head_dim": 4}
        return make_input(), TigerConfig(**SIZES, **layers).build(LAYOUT)
    content = np.random.default_rng(1).normal(size=(len(CODES), 6)).astype(np.float32)
    config = TwoLevelConfig(
        **SIZES, num_layers=1, num_depth_layers=1, reads_content=True, dense_head=True
    )
    layout = TokenLayout(LAYOUT.codebook_sizes, 0)
    input = PackedHistories(
        generate_histories(200),
        CODES,
        layout,
        PackedConfig(batch_size=16, microbatch_size=8, max_items=8, repeated_items=2),
        content=content,
        ranks_items=True,
    )
    return input, generator.build_model(config, layout, content.shape)


def evaluate_fn(params) -> dict[str, float]:
    """Some numbers that depend on the parameters."""
    size = float(_size(params))
    return {"loss": size, "size": size}


@jax.jit
def _size(params):
    return sum(jnp.abs(x).sum() for x in jax.tree.leaves(params))


def hash_of(tree) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(tree)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def run(
    folder: Path,
    *,
    mesh=None,
    optimizer=OPTIMIZER,
    devices=None,
    seqio=None,
    model=None,
    **loop,
):
    """Trains with a few defaults that suit tests."""
    if model:
        input, module = make_real(model)
        loss_fn = generator.make_loss_fn(module)
        init_fn = functools.partial(generator.init_params, module)
    else:
        input, module = make_seqio_input(seqio) if seqio else (make_input(), Bag())
        loss_fn, init_fn = make_loss_fn(module), make_init_fn(module)
    defaults = {
        "total_steps": 20,
        "log_every": 5,
        "evaluate_every": 10,
        "checkpoint_every": 5,
        "best_metric": "loss",
        "patience": None,
    }
    config = LoopConfig(**{**defaults, **loop})
    return train(
        loss_fn=loss_fn,
        init_fn=init_fn,
        optimizer=make_optimizer(optimizer, config.total_steps),
        input=input,
        evaluate_fn=evaluate_fn,
        partitioner=Partitioner(mesh, devices=devices),
        config=config,
        folder=folder,
    )


def note_rows() -> list:
    """A list that gets the examples of each update that this process's devices hold."""
    rows, to_devices = [], training_loop._to_devices

    def note(updates, partitioner):
        arrays, buckets = to_devices(updates, partitioner)
        shards = zip(*(x.addressable_shards for x in arrays.values()), strict=True)
        for same in shards:
            if same[0].replica_id == 0:
                parts = [np.asarray(s.data) for s in same]  # [U M B …]
                flat = [x.reshape(np.prod(x.shape[:3]), -1) for x in parts]
                rows.extend(np.concatenate(flat, axis=1).tolist())
        return arrays, buckets

    training_loop._to_devices = note
    return rows


def main(folder: str, settings: str) -> int:
    options = json.loads(settings)
    pace = options.pop("seconds_per_evaluation", 0)
    if pace:
        evaluate = globals()["evaluate_fn"]

        def slowly(params):
            time.sleep(pace)
            return evaluate(params)

        globals()["evaluate_fn"] = slowly
    initialize_distributed()
    if "mesh" in options:
        options["mesh"] = MeshConfig(*options.pop("mesh"))
    rows = note_rows() if options.pop("rows", False) else []
    try:
        result = run(Path(folder), **options)
    finally:
        if rows:
            name = f"rows.{jax.process_index()}.json"
            (Path(folder) / name).write_text(json.dumps(rows))
    params = result.state.params
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        params = multihost_utils.process_allgather(params, tiled=True)
    if jax.process_index() == 0:
        done = {"step": result.step, "hash": hash_of(params)}
        (Path(folder) / "done.json").write_text(json.dumps(done))
    return 0


def program() -> int:
    try:
        return main(*sys.argv[1:])
    except Preempted as error:
        print(f"Preempted: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(processes.run(program))
