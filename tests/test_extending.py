"""docs/extending.md as it stands: every block is run through the stages."""

import json
import re
import sys
from pathlib import Path

import gin
import numpy as np
import pytest

from tiger_jax import cli
from tiger_jax.data.prepared import PreparedData
from tiger_jax.data.synthetic import SyntheticShopConfig
from tiger_jax.errors import InputError
from tiger_jax.recommending.item_encoder import ItemEncoder, freeze_encoder
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.embed_items import embed_items
from tiger_jax.stages.prepare_data import prepare_data

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```(\w+) ([\w.]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TEXT = (ROOT / "docs" / "extending.md").read_text()
BLOCKS = {name: body for _, name, body in FENCE.findall(TEXT)}
SMALL = SyntheticShopConfig(
    num_items=60, num_users=80, max_history=12, items_per_series=5.0
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The document's files, in a folder whose modules can be imported."""
    folder = tmp_path_factory.mktemp("extensions")
    for name, body in BLOCKS.items():
        (folder / name).write_text(body)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def extension(folder, tmp_path, monkeypatch):
    """Reads one of the document's gin files, as run.py does."""
    monkeypatch.chdir(folder)
    gin.clear_config()

    def read(name: str, *bindings: str) -> Path:
        cli.parse_gin([f"{name}.gin"], list(bindings))
        return tmp_path / "run"

    yield read
    gin.clear_config()


@pytest.mark.parametrize("name", [name for name in BLOCKS if name.endswith(".py")])
def test_every_extension_has_at_most_30_lines(name):
    code = [line for line in BLOCKS[name].splitlines() if line.strip()]
    assert len(code) <= 30


def test_reader(extension, tmp_path, monkeypatch):
    shop = tmp_path / "my_shop"
    shop.mkdir()
    skus = [f"sku {n}" for n in range(8)]
    products = [
        {"sku": sku, "name": f"Thing {sku}", "price": 499, "path": ["Things"]}
        for sku in skus
    ]
    orders = [
        {"customer": f"c{u}", "sku": skus[(u + t) % 8], "at": t}
        for u in range(12)
        for t in range(6)
    ]
    (shop / "products.json").write_text(json.dumps(products))
    workdir = extension("my_reader")
    with pytest.raises(InputError, match=r"products\.json but not what belongs to it"):
        prepare_data(RunContext(workdir, shop))
    (shop / "orders.json").write_text(json.dumps(orders))
    # The document's command, as far as a shop of this size goes.
    gin.clear_config()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_reader.gin").write_text(BLOCKS["my_reader.gin"])
    (command,) = re.findall(r"^```sh\n.*run\.py (.*)\n```$", TEXT, re.MULTILINE)
    assert cli.main(["run.py", *command.split(), "--stage=prepare_data"]) == 0
    data = PreparedData.load(tmp_path / "runs" / "mine" / "data")
    assert (data.name, data.num_users, data.num_items) == ("my_shop", 12, 8)
    assert set(data.items["price"].to_pylist()) == {4.99}


def test_encoder(extension, tmp_path, monkeypatch):
    workdir = extension("my_encoder")
    prepare_data(RunContext(workdir), synthetic=SMALL)
    embed_items(RunContext(workdir))
    vectors = np.load(workdir / "embeddings" / "embeddings.npy")
    items = PreparedData.load(workdir / "data").items
    assert vectors.shape == (items.num_rows, 24)
    # New items of a served catalogue are embedded by what the bundle keeps of it.
    freeze_encoder(workdir / "embeddings", vectors).save(tmp_path / "encoder")
    encoder = ItemEncoder.load(tmp_path / "encoder")
    np.testing.assert_array_equal(encoder.encode(items), vectors)
    monkeypatch.delitem(sys.modules, "my_encoder")
    with pytest.raises(InputError, match="add the line `import my_encoder`"):
        ItemEncoder.load(tmp_path / "encoder")


def test_quantizer(extension):
    from tiger_jax.semantic_ids.table import SemanticIdTable
    from tiger_jax.stages.assign_semantic_ids import assign_semantic_ids
    from tiger_jax.stages.train_rqvae import train_rqvae

    workdir = extension("my_quantizer", "encoders.TfidfEncoder.dims = 16")
    prepare_data(RunContext(workdir), synthetic=SMALL)
    for stage in (embed_items, train_rqvae, assign_semantic_ids):
        stage(RunContext(workdir))
    table = SemanticIdTable.load(workdir / "semantic_ids")
    assert table.codebook_sizes[:-1] == (8, 8)
    assert len(np.unique(table.codes[:, 0])) == 8


@pytest.mark.slow
def test_model_variant(extension, tmp_path):
    from small_workdir import make_workdir

    from tiger_jax.recommending.trained_model import load_recommender
    from tiger_jax.stages.train_recommender import train_recommender

    extension(
        "my_model",
        "my_model.GatedTigerConfig.d_model = 8",
        "my_model.GatedTigerConfig.num_encoder_layers = 1",
        "my_model.GatedTigerConfig.num_decoder_layers = 1",
        "my_model.GatedTigerConfig.num_heads = 2",
        "my_model.GatedTigerConfig.head_dim = 4",
        "my_model.GatedTigerConfig.mlp_dim = 16",
        "loop.LoopConfig.total_steps = 4",
        "loop.LoopConfig.evaluate_every = 4",
        "resident.ResidentConfig.batch_size = 32",
    )
    workdir = make_workdir(tmp_path / "work")
    train_recommender(RunContext(workdir))
    _, _, model, params = load_recommender(workdir / "recommender")
    assert type(model).__name__ == "GatedTiger"
    assert params["gate"].shape == (8,)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["my_baseline", "my_metric"])
def test_baseline_and_metric(extension, tmp_path, name):
    from trained_workdir import make_trained_workdir

    from tiger_jax.stages.evaluate import evaluate

    extension(
        name,
        "evaluate.EvaluateConfig.batch_size = 16",
        "evaluate.EvaluateConfig.guard_users = 16",
    )
    workdir = make_trained_workdir(tmp_path / "work")
    evaluate(RunContext(workdir))
    metrics = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    if name == "my_baseline":
        assert set(metrics["baselines"]) == {"popularity", "last_again"}
    else:
        assert 0 <= metrics["test"]["linear@10"] <= metrics["test"]["recall@10"]
