"""Real items that nothing was trained on join a real shop, and leave it again."""

import csv
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from tiger_jax.recommending.new_items import NewItem
from tiger_jax.recommending.recommender import Recommender
from tiger_jax.recommending.requests import Request
from tiger_jax.recommending.versions import CatalogueVersions

ROOT = Path(__file__).resolve().parent.parent.parent
DATA = os.environ.get("TIGER_DATA")
NUM_HELD_OUT = 500
SHORT = (
    "--gin_file=experiments/cpu_quick.gin",
    "--gin.train_recommender.epochs=1",
    "--gin.train_recommender.min_steps=100",
    "--gin.validation.ValidationConfig.num_users=100",
)
STAGES = (
    "prepare_data",
    "embed_items",
    "train_rqvae",
    "assign_semantic_ids",
    "train_recommender",
    "export",
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(DATA is None, reason="TIGER_DATA is not set"),
]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """A bundle made without 500 items, those items, and histories that they ended."""
    folder = tmp_path_factory.mktemp("beauty")
    shop = Path(DATA) / "amazon2014_beauty"
    vectors = np.load(Path(DATA) / "embeddings" / "beauty_minilm_f16.npy")
    lines = (shop / "items.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    rng = np.random.default_rng(0)
    is_out = np.zeros(len(records), bool)
    is_out[rng.choice(len(records), NUM_HELD_OUT, replace=False)] = True
    gone = {r["item_id"] for r, out in zip(records, is_out, strict=True) if out}
    (folder / "shop").mkdir()
    kept = [line for line, out in zip(lines, is_out, strict=True) if not out]
    (folder / "shop" / "items.jsonl").write_text("\n".join(kept) + "\n")
    np.save(folder / "vectors.npy", vectors[~is_out])
    histories: dict[str, list[str]] = defaultdict(list)
    with (
        open(shop / "interactions.csv", newline="") as source,
        open(folder / "shop" / "interactions.csv", "w", newline="") as target,
    ):
        rows = csv.DictReader(source)
        writer = csv.DictWriter(target, rows.fieldnames)
        writer.writeheader()
        for row in rows:
            histories[row["user_id"]].append(row["item_id"])
            if row["item_id"] not in gone:
                writer.writerow(row)
    for stage in STAGES:
        command = [sys.executable, "run.py", f"--stage={stage}", *SHORT]
        command += [f"--workdir={folder / 'work'}", f"--data_dir={folder / 'shop'}"]
        command += [f"--embeddings={folder / 'vectors.npy'}"]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        subprocess.run(command, cwd=ROOT, check=True, env=environment)
    items = [
        NewItem.from_json({**record, "embedding": vector})
        for record, vector, out in zip(records, vectors, is_out, strict=True)
        if out
    ]
    ended = [h[:-1] for h in histories.values() if h[-1] in gone and len(h) > 2]
    return folder / "work" / "bundle", items, ended


def test_held_out_items_join_are_found_and_leave_no_trace(held_out):
    bundle, items, histories = held_out
    versions = CatalogueVersions.open(bundle)
    live = Recommender.load(versions)
    exported = live.catalogue
    assert not {item.item_id for item in items} & set(exported.item_ids)
    histories = histories[:200]
    before = live.recommend(histories, k=50)

    report = live.update(versions, add=items)
    catalogue = live.catalogue
    assert len(report.added) == NUM_HELD_OUT
    assert catalogue.num_items == exported.num_items + NUM_HELD_OUT
    ids = [added.semantic_id for added in report.added]
    old_ids = set(map(tuple, exported.table.codes.tolist()))
    assert len(set(ids) | old_ids) == catalogue.num_items, "Semantic IDs are shared"
    sizes = np.array(catalogue.table.codebook_sizes)
    assert (np.array(ids) >= 0).all()
    assert (np.array(ids) < sizes).all()

    # Found: by title, and by the search at the end of their own path in the trie.
    numbers = [catalogue.number_of[item.item_id] for item in items]
    for item, number in zip(items, numbers, strict=True):
        if item.title:
            assert number in catalogue.search(item.title)
    everything = {"history": histories[0], "exclude_history": False}
    requests = [Request(k=1, prefix=codes, **everything) for codes in ids]
    found = [answer.items[0].item_id for answer in live.answer(requests)]
    assert found == [item.item_id for item in items]

    # Recommended as far as epsilon allows: nine old ones and one new one, or all new.
    for answer in live.recommend(histories, k=10, epsilon=0.1):
        assert [item.is_new for item in answer.items].count(True) == 1
    seen = set()
    for seed, history in enumerate(histories[:50]):
        options = {"epsilon": 1.0, "temperature": 1.0, "seed": seed}
        drawn = live.recommend(history, k=50, **options)
        seen |= {item.item_id for item in drawn.items}
    print(f"{len(seen)} new items drawn")
    assert len(seen) > NUM_HELD_OUT / 2, "draws find few of the new items"
    assert seen <= {item.item_id for item in items}
    request = Request(k=NUM_HELD_OUT, epsilon=1.0, exact=True, **everything)
    assert {i.item_id for i in live.answer([request])[0].items} == {
        item.item_id for item in items
    }

    # Their codes mean something: neighbours in the trie are of the same category.
    categories = np.array(catalogue.categories)
    same = [
        live.similar_items(item.item_id, k=1)[0].category == categories[number]
        for item, number in zip(items, numbers, strict=True)
    ]
    shares = np.unique(categories, return_counts=True)[1] / len(categories)
    by_chance = (shares**2).sum()
    print(f"same category: {np.mean(same):.3f}, by chance {by_chance:.3f}")
    assert np.mean(same) > 0.7 > 2 * by_chance

    live.update(versions, remove=[item.item_id for item in items])
    after = live.recommend(histories, k=50)
    assert [a.items for a in after] == [a.items for a in before]
    reloaded = live.fork(versions.load())
    assert [a.items for a in reloaded.recommend(histories, k=50)] == [
        a.items for a in before
    ]
