"""A retrain takes over what the shop did to the catalogue."""

import dataclasses
import shutil

import numpy as np
import pytest
from joining import HISTORIES, new_items
from trained_workdir import make_trained_workdir

from tiger_jax.recommending.bundle import Bundle
from tiger_jax.recommending.carry import BEFORE, Predecessor, carry_over
from tiger_jax.recommending.parts import Parts
from tiger_jax.recommending.programs import Shapes
from tiger_jax.recommending.recommender import Recommender
from tiger_jax.recommending.searcher import SearchConfig
from tiger_jax.recommending.versions import CatalogueVersions
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.export import export
from tiger_jax.workdir import artifacts


def make_versions(folder, seed):
    """Two models of one shop, whose quantizers differ."""
    workdir = make_trained_workdir(folder, seed=seed, with_quantizer=True)
    parts = Parts.of_workdir(workdir, room=1.5)
    shapes = Shapes.for_parts(parts, SearchConfig(num_beams=20), (1,), 8)
    bundle = Bundle(folder / "bundle", parts, shapes, f"{seed}" * 64)
    return CatalogueVersions(bundle)


@pytest.fixture
def old(tmp_path):
    versions = make_versions(tmp_path / "old", 0)
    catalogue, _ = versions.change(
        versions.load(),
        add=new_items(3),
        remove=["item-7"],
        attributes={"item-1": {"category": "Garden"}, "*": {"in_stock": True}},
    )
    versions.change(catalogue, remove=["new-0-1"], attributes={"new-0-0": {"size": 3}})
    return versions


@pytest.fixture
def new(tmp_path):
    return make_versions(tmp_path / "new", 1)


def test_joined_items_get_the_codes_of_the_new_quantizer(old, new):
    report = carry_over(old, new)
    catalogue = new.load()
    assert (report.version, catalogue.version) == (1, 1)
    assert [item.item_id for item in report.added] == ["new-0-0", "new-0-2"]
    assert set(catalogue.item_ids) == {*old.load().item_ids}
    assert "item-7" not in catalogue.number_of
    vectors = np.array([new_items(3)[n].embedding for n in (0, 2)], np.float32)
    np.testing.assert_array_equal(
        catalogue.table.codes[-2:, :-1], new.bundle.parts.quantizer.encode(vectors)
    )
    before, number_of = old.load(), catalogue.number_of
    for field in ("title", "brand", "categories", "in_stock", "size"):
        values = dict(zip(before.item_ids, before.column(field), strict=True))
        for item_id, value in values.items():
            assert catalogue.column(field)[number_of[item_id]] == value, field


def test_what_the_new_training_knows_is_its_own(old, new, tmp_path):
    known = [
        {"item_id": "item-7", "title": "Seventh anew", "embedding": [0.5] * 6},
        *new_items(1, seed=4),
    ]
    old.change(old.load(), add=known)
    carry_over(old, new)
    catalogue = new.load()
    assert catalogue.titles[catalogue.number_of["item-7"]].endswith("number 7")
    assert "new-4-0" in catalogue.number_of


def test_nothing_is_carried_twice_nor_over_changes_made_since(old, new):
    first = carry_over(old, new)
    again = carry_over(old, new)
    assert (first.version, again.version) == (1, 2)
    ids = new.load().item_ids
    old.change(old.load(), remove=["item-9"])
    carry_over(old, new)
    assert set(new.load().item_ids) == {*ids} - {"item-9"}
    new.change(new.load(), remove=["item-10"])
    assert carry_over(old, new) is None
    assert new.newest == 4
    assert carry_over(make_versions(new.bundle.folder.parent / "x", 2), new) is None


def test_changes_of_the_bundle_before_are_caught_up_with(new, old, monkeypatch):
    """Servers that have it still answer, while others have the one after it."""
    bundle = new.bundle.folder
    kept = bundle.with_name(f"bundle-{'0' * 12}")
    kept.mkdir()
    old = CatalogueVersions(dataclasses.replace(old.bundle, folder=kept))
    monkeypatch.setattr(CatalogueVersions, "open", lambda at, trust: {kept: old}[at])
    old.change(old.load(), add=new_items(2), remove=["item-7"])
    run = artifacts.begin(bundle.parent, "bundle", stage="export", config={})
    run.commit(summary={BEFORE: old.bundle.content_hash})
    new = CatalogueVersions(new.bundle)
    before = Predecessor(new)
    assert before.catch_up().version == 1
    assert Predecessor(new).catch_up() is None
    old.change(old.load(), remove=["item-9"])

    def fail(*_, **__):
        raise OSError("a moment's fault")

    with monkeypatch.context() as patched:
        patched.setattr(new, "start_from", fail)
        with pytest.raises(OSError, match="moment"):
            before.catch_up()
    assert before.catch_up().removed == ("item-7", "item-9")
    assert before.catch_up() is None
    assert set(new.load().item_ids) == set(old.load().item_ids)
    new.change(new.load(), remove=["item-10"])  # from now on it goes its own way
    old.change(old.load(), remove=["item-11"])
    assert before.catch_up() is None
    assert "item-11" in new.load().number_of


@pytest.mark.slow  # four exports
def test_a_retrain_keeps_the_shops_changes_and_the_bundle_before(tmp_path, capsys):
    workdir = make_trained_workdir(tmp_path / "work", with_quantizer=True)
    options = {"num_beams": 10, "batch_sizes": (1,)}
    export(RunContext(workdir), **options)
    live = Recommender.load(workdir / "bundle")
    versions = CatalogueVersions.open(workdir / "bundle")
    live.update(versions, add=new_items(2), remove=["item-7"])
    before = live.recommend(HISTORIES, k=5)
    newer = make_trained_workdir(tmp_path / "newer", seed=1, with_quantizer=True)
    for name in ("data", "embeddings", "rqvae", "semantic_ids", "recommender"):
        shutil.rmtree(workdir / name)
        shutil.copytree(newer / name, workdir / name)
    export(RunContext(workdir), **options)
    assert "2 items joined, 1 removed" in capsys.readouterr().out
    retrained = Recommender.load(workdir / "bundle")
    assert retrained.model != live.model
    assert retrained.catalogue.version == 1
    assert set(retrained.catalogue.item_ids) == {*live.catalogue.item_ids}
    (kept,) = workdir.glob("bundle-*")
    assert kept.name == f"bundle-{live.model}"
    assert Recommender.load(kept).recommend(HISTORIES, k=5) == before
    live.update(versions, remove=["item-8"])  # by a server that goes on with it
    after = CatalogueVersions.open(workdir / "bundle")
    assert Predecessor(after).catch_up().version == 2
    assert set(after.load().item_ids) == {*live.catalogue.item_ids}
    export(RunContext(workdir), num_beams=11, batch_sizes=(1,))  # in another shape
    live.update(versions, remove=["item-9"])
    after = CatalogueVersions.open(workdir / "bundle")
    assert Predecessor(after).catch_up().version == 3
