"""Measures quantizers on real items: one JSON row each.

    python -m benchmarks.training.quantizers \
        --data_dir=$TIGER_DATA/amazon2014_beauty \
        --embeddings=$TIGER_DATA/embeddings/beauty_minilm_f16.npy [NAME ...]

Each row has the seconds of the whole stage, and per level the share of codewords
used, perplexity, distinct prefixes, reconstruction error and category purity beside
its value for shuffled categories. `collision_rate` is 1 - distinct codes / items.
"""

import dataclasses
import tempfile
import time
from pathlib import Path

from benchmarks import lib
from benchmarks.lib import Row
from tiger_jax.models.rqvae import RqVaeConfig
from tiger_jax.quantizers.hashing import Lsh, RandomCodes
from tiger_jax.quantizers.residual_kmeans import FlatVq, ResidualKMeans
from tiger_jax.quantizers.rqvae_training import RqVaeTraining
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.embed_items import embed_items
from tiger_jax.stages.prepare_data import prepare_data
from tiger_jax.stages.train_rqvae import train_rqvae
from tiger_jax.workdir.json_files import read_json
from tiger_jax.workdir.provenance import describe_environment

RQVAE = RqVaeTraining()
QUANTIZERS = {
    "rqvae": RQVAE,
    "rqvae_without_refresh": dataclasses.replace(RQVAE, refresh_at=()),
    "rqvae_falling": dataclasses.replace(
        RQVAE, model=RqVaeConfig(codebook_sizes=(512, 256, 128, 64))
    ),
    # The paper's optimizer, for as many steps as ours: enough to see what it does.
    "rqvae_adagrad": dataclasses.replace(
        RQVAE,
        optimizer="adagrad",
        learning_rate=0.4,
        schedule="constant",
        standardize=False,
        reset_share=0.0,
        refresh_at=(),
    ),
    "residual_kmeans": ResidualKMeans(),
    "flat_vq": FlatVq(),
    "lsh": Lsh(),
    "random": RandomCodes(),
}


def main() -> None:
    """Prepares the items once, then fits what was asked for."""
    parser = lib.make_parser(__doc__, "seed")
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--embeddings", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=" ".join(QUANTIZERS))
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(QUANTIZERS):
        parser.error(f"{sorted(unknown)} are none of {', '.join(QUANTIZERS)}")
    lib.find_data(arguments.data_dir, "data", "--data_dir")
    with tempfile.TemporaryDirectory() as folder:
        context = RunContext(Path(folder), arguments.data_dir, arguments.embeddings)
        prepare_data(context)
        embed_items(context)
        for name in arguments.names or QUANTIZERS:
            start = time.perf_counter()
            train_rqvae(
                context,
                quantizer=QUANTIZERS[name],
                seed=arguments.seed,
                accept_poor_codebooks=True,
            )
            seconds = time.perf_counter() - start
            lib.report(describe(context.workdir / "rqvae", name, seconds))


def describe(folder: Path, name: str, seconds: float) -> Row:
    """One row: what was measured, on what."""
    quality = read_json(folder / "quality.json")
    levels = quality.pop("levels")
    environment = describe_environment()
    row = {"quantizer": name, "seconds": round(seconds, 1), **quality}
    for key in levels[0]:
        values = [level[key] for level in levels]
        row[key] = [round(v, 4) if isinstance(v, float) else v for v in values]
    return row | {key: environment[key] for key in ("commit", "devices")}


if __name__ == "__main__":
    lib.run(main)
