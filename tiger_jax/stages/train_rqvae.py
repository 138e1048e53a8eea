"""Stage `train_rqvae`: embeddings, in `embeddings/` or shards -> `rqvae/`."""

import dataclasses
import functools
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gin
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from tiger_jax.data.item_vectors import (
    COLLABORATIVE,
    load_embeddings,
    load_quantized_vectors,
)
from tiger_jax.data.prepared import PreparedData
from tiger_jax.embedding.collaborative import (
    CollaborativeConfig,
    embed_cooccurrence,
)
from tiger_jax.errors import InputError
from tiger_jax.input_pipeline.shuffled_rows import ShuffleConfig, ShuffledRows
from tiger_jax.progress import Progress, say
from tiger_jax.quantizers.quantizer import (
    ENCODE_CHUNK,
    Quantizer,
    QuantizerConfig,
    reconstruction_errors,
)
from tiger_jax.quantizers.rqvae_quantizer import save_quantizer
from tiger_jax.quantizers.rqvae_training import (
    DrawFn,
    RqVaeState,
    RqVaeTrainer,
    RqVaeTraining,
)
from tiger_jax.semantic_ids.quality import (
    MINIMUM_USE,
    check_use,
    describe_codes,
    format_quality,
)
from tiger_jax.stages.context import RunContext
from tiger_jax.training.metric_writers import MetricWriter
from tiger_jax.training.whole_checkpoints import open_manager, restore_newest_whole
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.arrays import save_whole
from tiger_jax.workdir.json_files import read_json, write_json
from tiger_jax.workdir.shards import Shards
from tiger_jax.workdir.vector_shards import VectorRows

_CHECKPOINTS = "checkpoints"


@gin.configurable(module="stages")
def train_rqvae(
    context: RunContext,
    *,
    seed: int = 0,
    quantizer: QuantizerConfig | None = None,
    collaborative: CollaborativeConfig | None = None,
    also_fitted_to: Sequence[str] = (),
    stream: ShuffleConfig | None = None,
    minimum_use: float = MINIMUM_USE,
    accept_poor_codebooks: bool = False,
    seconds_between_checkpoints: float = 10.0,
) -> None:
    """Fits what turns embeddings into codewords: an RQ-VAE, or another quantizer.

    Writes `quantizer.json` and `arrays/`, `quality.json`, for an RQ-VAE
    `metrics.jsonl`, and, with a collaborative signal, `collaborative.npy`. Killed
    while it trains an RQ-VAE, it goes on where it stopped, and ends with the very
    same quantizer.

    Args:
      context: The work directory.
      seed: Decides initialization, batches and k-means.
      quantizer: `RqVaeTraining` with its defaults if None.
      collaborative: Also quantizes which items follow one another in the training
        histories: the vectors that are made of that are joined to the text's. None
        quantizes the text alone, as in the paper.
      also_fitted_to: Other work directories whose items' embeddings the quantizer is
        fitted to as well: codes from a combined corpus (Rajput et al. 2023, appendix).
        Use, collisions and what else is measured is still of this shop's items.
      stream: Reads the embeddings in `shards/`, which the Beam pipelines made, and
        holds a part of them at a time: an RQ-VAE is trained on all, another
        quantizer is fitted to the sample. None reads `embeddings/` whole.
      minimum_use: The share of each codebook that must be used by some item.
      accept_poor_codebooks: Go on with less, knowingly. Neither of these two is
        part of what was made: a run that was refused needs no second training.
      seconds_between_checkpoints: How much time a kill may cost.

    Raises:
      InputError: The embeddings can't be quantized so, another shop's don't go with
        them, or too little of some codebook is used; then nothing is committed.
    """
    quantizer = quantizer or RqVaeTraining()
    config: dict[str, Any] = {"quantizer": quantizer, "seed": seed}
    inputs: tuple[str, ...] = ("data", "embeddings")
    external, shards = {}, None
    others = [Path(name).expanduser() for name in also_fitted_to]
    _check_combination(collaborative, others, stream)
    if collaborative is not None:
        config["collaborative"] = collaborative
    if others:
        config["also_fitted_to"] = [
            artifacts.load_manifest(other / "embeddings").content_hash
            for other in others
        ]
    if stream is not None:
        config["stream"] = stream
        shards = Shards.load(context.workdir / "shards" / "embedded" / "embeddings")
        inputs, external = (), {"shards/embeddings": shards.content_hash}
    run = artifacts.begin(
        context.workdir,
        "rqvae",
        stage="train_rqvae",
        inputs=inputs,
        config=config,
        external=external,
        resumable=True,
        opaque=("tensorboard",),
    )
    if run.is_current:
        quality = read_json(run.folder / "quality.json")
        _check_use(quality, minimum_use, accept_poor_codebooks)
        return
    if stream is not None and shards is not None:
        corpus = _open_shards(shards, stream, seed)
    else:
        corpus = _load_whole(context.workdir, run.folder, collaborative, others, seed)
    if isinstance(quantizer, RqVaeTraining):
        fitted = _train(
            quantizer, corpus, run.folder, seed, seconds_between_checkpoints
        )
    else:
        fitted = quantizer.fit(corpus.embeddings, seed=seed)
    quality = corpus.measure(fitted)
    say(format_quality(quality))
    _check_use(quality, minimum_use, accept_poor_codebooks)
    save_quantizer(fitted, run.folder)
    write_json(run.folder / "quality.json", quality)
    shutil.rmtree(run.folder / _CHECKPOINTS, ignore_errors=True)
    run.commit(
        summary={
            "quantizer": type(quantizer).__name__,
            "collaborative_dims": collaborative.dims if collaborative else 0,
            "codebook_sizes": fitted.codebook_sizes,
            "collision_rate": quality["collision_rate"],
            "category_purity": quality["levels"][0]["category_purity"],
        }
    )


@dataclasses.dataclass(frozen=True)
class _Corpus:
    """What a quantizer is fitted to, and how the result is measured.

    Attributes:
        embeddings: All vectors, or a sample of a stream.
        draw: The stream, if there is one.
        measure: Makes the quality report of a fitted quantizer.
    """

    embeddings: np.ndarray
    draw: DrawFn | None
    measure: Callable[[Quantizer], dict[str, Any]]


def _check_combination(
    collaborative: CollaborativeConfig | None,
    others: Sequence[Path],
    stream: ShuffleConfig | None,
) -> None:
    if others and collaborative is not None:
        raise InputError(
            "train_rqvae.also_fitted_to can't go with train_rqvae.collaborative: "
            "other shops' items have no histories in common with this one's"
        )
    if stream is not None and (others or collaborative is not None):
        raise InputError(
            "train_rqvae.stream can't go with train_rqvae.collaborative or "
            "also_fitted_to: these are made of whole histories and embeddings, which "
            "a stream of shards doesn't hold"
        )


def _open_shards(shards: Shards, stream: ShuffleConfig, seed: int) -> _Corpus:
    rows = VectorRows(shards)
    sample = rows.sample(stream.sample_rows, seed)
    say(
        f"train_rqvae: {rows.num_rows:,} embeddings in {shards.num_shards} shards, "
        f"k-means on {len(sample):,}"
    )
    return _Corpus(
        sample,
        ShuffledRows(rows, stream, seed=seed).draw,
        functools.partial(_measure_shards, sample=sample, rows=rows),
    )


def _load_whole(
    workdir: Path,
    folder: Path,
    collaborative: CollaborativeConfig | None,
    others: Sequence[Path],
    seed: int,
) -> _Corpus:
    data = PreparedData.load(workdir / "data")
    embeddings = load_embeddings(workdir / "embeddings", data.num_items)
    if collaborative is not None:
        say(
            f"train_rqvae: {collaborative.dims} collaborative dimensions from "
            f"{len(data.train.items):,} training interactions"
        )
        vectors = embed_cooccurrence(
            data.train, data.num_items, collaborative, seed=seed
        )
        save_whole(folder / COLLABORATIVE, collaborative.weight * vectors)
        embeddings = load_quantized_vectors(embeddings, folder)
    return _Corpus(
        np.concatenate([embeddings, *_load_others(others, embeddings.shape[1])]),
        None,
        functools.partial(
            _measure, embeddings=embeddings, categories=data.category_of_items()
        ),
    )


def _load_others(workdirs: Sequence[Path], width: int) -> list[np.ndarray]:
    """The embeddings of other shops, which must be of this shop's width."""
    found = []
    for workdir in workdirs:
        data = PreparedData.load(workdir / "data")
        found.append(load_embeddings(workdir / "embeddings", data.num_items))
        if found[-1].shape[1] != width:
            raise InputError(
                f"{workdir / 'embeddings'} has {found[-1].shape[1]} dimensions, this "
                f"shop's embeddings have {width}: embed both with one encoder"
            )
        say(f"train_rqvae: also fitted to {data.num_items:,} items of {data.name}")
    return found


def _train(
    config: RqVaeTraining,
    corpus: _Corpus,
    folder: Path,
    seed: int,
    seconds_between_checkpoints: float,
) -> Quantizer:
    """Trains from the newest checkpoint, or from the start."""
    trainer = RqVaeTrainer(config, corpus.embeddings, seed=seed, draw=corpus.draw)
    root = epath.Path(folder / _CHECKPOINTS)
    with open_manager(root, options={"max_to_keep": 2}) as checkpoints:
        state = restore_newest_whole(
            checkpoints,
            lambda step: root / str(step),
            lambda step: _restore(checkpoints, step, trainer.abstract_state()),
        )
        if state is None:
            say("train_rqvae: k-means on the untrained encoder's latents")
            state = trainer.init_state()
        start = int(state.step)
        writer = MetricWriter(folder, resume_from_step=start)
        last_save = time.monotonic()
        with Progress(
            config.num_steps, "Training the RQ-VAE", unit="step", start=start
        ) as bar:
            while trainer.num_steps_left(state):
                before = int(state.step)
                state, metrics = trainer.run_dispatch(state)
                step = int(state.step)
                writer.write(step, {f"train/{k}": v for k, v in metrics.items()})
                bar.advance(step - before, loss=metrics["loss"])
                is_done = not trainer.num_steps_left(state)
                waited = time.monotonic() - last_save
                if is_done or waited >= seconds_between_checkpoints:
                    checkpoints.save(step, args=ocp.args.StandardSave(state))
                    last_save = time.monotonic()
        writer.close()
    return trainer.finish(state)


def _restore(
    checkpoints: ocp.CheckpointManager, step: int, abstract: RqVaeState
) -> RqVaeState:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        abstract,
    )
    return checkpoints.restore(step, args=ocp.args.StandardRestore(target))


def _measure(
    quantizer: Quantizer, embeddings: np.ndarray, categories: list[str]
) -> dict[str, Any]:
    codes = quantizer.encode(embeddings)
    return describe_codes(
        codes,
        quantizer.codebook_sizes,
        categories=categories,
        reconstruction_errors=reconstruction_errors(quantizer, embeddings, codes),
    )


def _measure_shards(
    quantizer: Quantizer, sample: np.ndarray, rows: VectorRows
) -> dict[str, Any]:
    """The codes of all items; what codewords miss is measured on the sample."""
    starts = range(0, rows.num_rows, ENCODE_CHUNK)
    ends = (min(start + ENCODE_CHUNK, rows.num_rows) for start in starts)
    codes = [
        quantizer.encode(rows.read(s, e)) for s, e in zip(starts, ends, strict=True)
    ]
    return describe_codes(
        np.concatenate(codes),
        quantizer.codebook_sizes,
        reconstruction_errors=reconstruction_errors(
            quantizer, sample, quantizer.encode(sample)
        ),
    )


def _check_use(quality: dict[str, object], minimum: float, accept: bool) -> None:
    if warning := check_use(quality, accept=accept, minimum=minimum):
        say(f"WARNING: train_rqvae: {warning}")
