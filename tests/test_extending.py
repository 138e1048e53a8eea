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
BLOCKS = {
    name: body
    for _, name, body in FENCE.findall((ROOT / "docs" / "extending.md").read_text())
}
SMALL = SyntheticShopConfig(
    num_items=60, num_users=80, max_history=12, items_per_series=5.0
)


@pytest.fixture
def extension(tmp_path, monkeypatch):
    """Writes the document's files, and reads one of its gin files as run.py does."""
    for name, body in BLOCKS.items():
        (tmp_path / name).write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    gin.clear_config()

    def read(name: str, *bindings: str) -> Path:
        cli.parse_gin([f"{name}.gin"], list(bindings))
        return tmp_path / "run"

    yield read
    gin.clear_config()
    with gin.unlock_config():
        for name in (Path(name).stem for name in BLOCKS if name.endswith(".py")):
            sys.modules.pop(name, None)
            for known in [k for k in gin.config._REGISTRY if k.startswith(f"{name}.")]:
                gin.config._REGISTRY.pop(known)


@pytest.mark.parametrize("name", [name for name in BLOCKS if name.endswith(".py")])
def test_every_extension_has_at_most_30_lines(name):
    code = [line for line in BLOCKS[name].splitlines() if line.strip()]
    assert len(code) <= 30


def test_reader(extension, tmp_path):
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
    prepare_data(RunContext(workdir, shop))
    data = PreparedData.load(workdir / "data")
    assert (data.name, data.num_users, data.num_items) == ("my_shop", 12, 8)
    assert set(data.items["price"].to_pylist()) == {4.99}


def test_encoder(extension, tmp_path):
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
    del sys.modules["my_encoder"]
    with pytest.raises(InputError, match="add the line `import my_encoder`"):
        ItemEncoder.load(tmp_path / "encoder")
