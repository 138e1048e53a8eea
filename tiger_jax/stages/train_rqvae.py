"""Stage `train_rqvae`: embeddings, in `embeddings/` or shards -> `rqvae/`."""

import shutil
from collections.abc import Sequence
from typing import Any

import gin

from tiger_jax.embedding.collaborative import CollaborativeConfig
from tiger_jax.errors import InputError
from tiger_jax.input_pipeline.shuffled_rows import ShuffleConfig
from tiger_jax.progress import say
from tiger_jax.quantizers.quantizer import QuantizerConfig, SizedConfig
from tiger_jax.quantizers.residual_kmeans import ResidualKMeans
from tiger_jax.quantizers.rqvae_training import RqVaeTraining
from tiger_jax.quantizers.store import save_quantizer
from tiger_jax.recommending.quantizer_corpus import (
    each_embedding,
    open_shards,
    read_embeddings,
)
from tiger_jax.semantic_ids.quality import MINIMUM_USE, check_use, format_quality
from tiger_jax.stages.context import RunContext
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.json_files import read_json, write_json
from tiger_jax.workdir.reading import path_of
from tiger_jax.workdir.shards import Shards


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
        seed: Decides initialization, batches and k-means.
        quantizer: `RqVaeTraining` with its defaults if None.
        collaborative: Also quantizes which items follow one another in the training
            histories: the vectors that are made of that are joined to the text's. None
            quantizes the text alone, as in the paper.
        also_fitted_to: Other work directories whose items' embeddings the quantizer is
            fitted to as well: codes from a combined corpus (Rajput et al. 2023,
            appendix). What is measured is still of this shop's items.
        stream: Reads the embeddings in `shards/`, which the Beam pipelines made, and
            holds a part of them at a time: an RQ-VAE is trained on all, another
            quantizer is fitted to the sample. None reads `embeddings/` whole.
        minimum_use: The share of each codebook that must be used by some item.
        accept_poor_codebooks: Go on with less, knowingly. Neither of these two is
            part of what was made: a run that was refused needs no second training.
        seconds_between_checkpoints: How much time a kill may cost.
    """
    quantizer = quantizer or RqVaeTraining()
    config: dict[str, Any] = {"seed": seed}
    others = [path_of(name) for name in also_fitted_to]
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
    if collaborative is not None:
        config["collaborative"] = collaborative
    if others:
        manifests = [artifacts.load_manifest(other / "embeddings") for other in others]
        config["also_fitted_to"] = [manifest.content_hash for manifest in manifests]
    inputs, external, shards = ["data", "embeddings"], {}, None
    if stream is not None:
        config["stream"] = stream
        shards = Shards.load(context.workdir / "shards" / "embedded" / "embeddings")
        inputs, external = [], {"shards/embeddings": shards.content_hash}
    else:
        artifacts.load_manifest(
            context.workdir / "embeddings", needed_by="train_rqvae", verify=False
        )
    if isinstance(quantizer, SizedConfig):
        quantizer = quantizer.resolved(each_embedding(context.workdir, shards))
    run = artifacts.begin(
        context.workdir,
        "rqvae",
        stage="train_rqvae",
        inputs=inputs,
        config={"quantizer": quantizer, **config},
        external=external,
        resumable=True,
        opaque=("tensorboard",),
    )
    if run.is_current:
        quality = read_json(run.folder / "quality.json")
        _check_use(quality, minimum_use, accept_poor_codebooks, quantizer)
        return
    if stream is not None and shards is not None:
        corpus = open_shards(shards, stream, seed)
    else:
        corpus = read_embeddings(
            context.workdir, run.folder, collaborative, others, seed
        )
    fitted = corpus.fit(quantizer, run.folder, seed, seconds_between_checkpoints)
    quality = corpus.measure(fitted)
    say(format_quality(quality))
    _check_use(quality, minimum_use, accept_poor_codebooks, quantizer)
    save_quantizer(fitted, run.folder)
    write_json(run.folder / "quality.json", quality)
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
    run.commit(
        summary={
            "quantizer": type(quantizer).__name__,
            "collaborative_dims": collaborative.dims if collaborative else 0,
            "codebook_sizes": fitted.codebook_sizes,
            "collision_rate": quality["collision_rate"],
            "category_purity": quality["levels"][0]["category_purity"],
        }
    )


def _check_use(
    quality: dict[str, object], minimum: float, accept: bool, config: QuantizerConfig
) -> None:
    named = {
        RqVaeTraining: "rqvae.RqVaeConfig.codebook_sizes",
        ResidualKMeans: "quantizers.ResidualKMeans.codebook_sizes",
    }
    warning = check_use(
        quality,
        accept=accept,
        minimum=minimum,
        sizes_name=named.get(type(config), ""),
    )
    if warning:
        say(f"WARNING: train_rqvae: {warning}")
