"""What the catalogue becomes is kept on disk, whole, in order, and can be undone."""

import gc
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from joining import HISTORIES, new_items
from trained_workdir import make_trained_workdir

from tiger_jax.errors import InputError
from tiger_jax.recommending import versions as versions_module
from tiger_jax.recommending.bundle import Bundle
from tiger_jax.recommending.recommender import Recommender
from tiger_jax.recommending.versions import (
    CatalogueVersions,
    ConflictError,
    UnconfirmedError,
)
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.export import export
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.hashing import hash_file
from tiger_jax.workdir.json_files import read_json, write_json

CHANGE = {
    "add": new_items(4),
    "remove": ["item-7", "item-8"],
    "attributes": {"item-1": {"in_stock": False, "category": "Garden"}},
}


@pytest.fixture
def versions(folder, tmp_path):
    return CatalogueVersions.open(folder, tmp_path / "versions", keep=3)


@pytest.fixture
def live(recommender):
    """Shares the compiled programs with the other tests'."""
    return recommender.fork()


def test_a_version_reads_back_as_it_was(versions, live):
    report = live.update(versions, **CHANGE)
    again = live.fork(versions.load())
    assert (report.version, live.catalogue.version) == (1, 1)
    assert again.recommend(HISTORIES, k=20) == live.recommend(HISTORIES, k=20)
    one, other = live.catalogue, again.catalogue
    assert one.table.content_hash == other.table.content_hash
    assert one.items.equals(other.items)
    assert one.attributes == other.attributes
    for name in ("embeddings", "joined", "is_new", "popularity"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_changes_leave_nothing_in_memory(versions, live, count):
    used, pages = [], []
    for n in range(count + 1):
        live.update(versions, attributes={"item-1": {"in_stock": n % 2 == 0}})
        live.recommend(HISTORIES, k=3, filter={"in_stock": True})
        if n % (count // 4) == 0:
            gc.collect()
            used.append(sum(array.nbytes for array in jax.live_arrays()))
            pages.append(int(Path("/proc/self/statm").read_text().split()[1]))
    assert len(set(used)) == 1
    megabytes = [page * os.sysconf("SC_PAGE_SIZE") / 1e6 for page in pages]
    print(f"MB at each fourth of {count} changes: {megabytes}")
    assert megabytes[-1] - megabytes[1] < 20


def test_an_item_that_left_and_came_again_is_the_new_one(versions, live):
    """An exported item that left and came again is the new one."""
    anew = {"item_id": "item-7", "title": "Seventh anew", "embedding": [0.5] * 6}
    live.update(versions, remove=["item-7"])
    live.update(versions, add=[anew])
    catalogue = versions.load()
    assert catalogue.num_items == 50
    assert catalogue.titles[catalogue.number_of["item-7"]] == "Seventh anew"
    assert catalogue.table.content_hash == live.catalogue.table.content_hash


def test_going_back_gives_the_earlier_answers_under_a_new_number(versions, live):
    exported = live.recommend(HISTORIES, k=20)
    live.update(versions, **CHANGE)
    first = live.recommend(HISTORIES, k=20)
    live.update(versions, add=new_items(2, seed=5))
    for version, expected in ((1, first), (0, exported)):
        report = live.roll_back(versions, version)
        assert report.notes == (f"back to version {version}",)
        answers = [live, live.fork(versions.load())]
        for answer in (a.recommend(HISTORIES, k=20) for a in answers):
            assert [a.items for a in answer] == [a.items for a in expected]
    assert [info.version for info in versions.kept()] == [0, 2, 3, 4]
    assert versions.kept()[-1].what == "back to version 0"
    assert versions.kept()[1].what == "2 added"
    with pytest.raises(InputError, match="version 1 is not kept; there are 0, 2, 3, 4"):
        live.roll_back(versions, 1)


def test_a_change_is_made_to_what_another_process_left(versions, live, recommender):
    other = CatalogueVersions(versions.bundle, versions.folder)
    live.update(versions, add=new_items(1), remove=["item-2"])
    second = recommender.fork()
    with pytest.raises(ConflictError, match="version 1 by now.*no item 'item-2'"):
        second.update(other, remove=["item-2"])
    assert second.update(other, remove=["item-1"]).version == 2
    assert live.follow(versions)
    assert not live.follow(versions)
    for both in (live, second):
        assert both.catalogue.version == 2
        assert both.catalogue.num_items == 49


def test_a_version_put_in_anothers_place_is_noticed(versions, live):
    """Moved away, and another written under its number."""
    live.update(versions, remove=["item-1"])
    (versions.folder / "version_000001").rename(versions.folder / "away")
    other = CatalogueVersions(versions.bundle, versions.folder)
    other.change(other.load(), remove=["item-2", "item-3"])
    assert live.follow(versions)
    assert live.catalogue.num_items == 48


def test_old_versions_that_cannot_be_removed_stop_nothing(versions, live, monkeypatch):
    for n in range(3):
        live.update(versions, remove=[f"item-{n}"])
    # As NFS does with a file that another process has open.
    monkeypatch.setattr(versions_module.shutil, "rmtree", lambda *_, **__: None)
    for n in range(3, 7):
        assert live.update(versions, remove=[f"item-{n}"]).version == n + 1
    assert [info.version for info in versions.kept()] == [0, 5, 6, 7]
    monkeypatch.undo()
    live.update(versions, remove=["item-7"])
    assert not list(versions.folder.glob("*.gone"))

    def fail(*_):
        raise OSError("stale file handle")

    monkeypatch.setattr(Path, "rename", fail)
    versions.prune()


def test_a_failure_after_the_commit_is_told_as_such(versions, live, monkeypatch):
    real = artifacts.sync

    def broken(*_, **__):
        raise OSError(5, "Input/output error")

    def fail(path):
        if path == versions.folder:
            patched.setattr(os, "stat", broken)  # nor does the disk say what is there
            broken()
        real(path)

    with monkeypatch.context() as patched:
        patched.setattr(artifacts, "sync", fail)
        with pytest.raises(UnconfirmedError, match="version 1 is in force"):
            live.update(versions, remove=["item-1"])
    assert live.update(versions, remove=["item-2"]).version == 2
    assert live.catalogue.num_items == 48

    def stamps(first):
        yield first
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        found = stamps(versions._stamp())
        patched.setattr(versions, "_stamp", lambda: next(found))
        with pytest.raises(UnconfirmedError, match="version 3 is in force"):
            live.update(versions, remove=["item-3"])
    assert live.follow(versions)
    assert live.catalogue.num_items == 47


def test_a_version_pruned_while_they_are_listed_is_left_out(
    versions, live, monkeypatch
):
    for n in range(3):
        live.update(versions, remove=[f"item-{n}"])
    real = artifacts.load_manifest

    def load(path, **options):
        shutil.rmtree(versions.folder / "version_000001", ignore_errors=True)
        return real(path, **options)

    monkeypatch.setattr(artifacts, "load_manifest", load)
    assert [info.version for info in versions.kept()] == [0, 2, 3]


def test_reading_changes_nothing(versions, live):
    """Half-made and half-exchanged folders of a writer at work are left to it."""
    live.update(versions, remove=["item-1"])
    first = versions.folder / "version_000001"
    for suffix in (".partial", ".old"):
        shutil.copytree(first, first.with_name(first.name + suffix))
    before = sorted(versions.folder.rglob("*"))
    artifacts.load_manifest(first)
    versions.load()
    versions.kept()
    assert sorted(versions.folder.rglob("*")) == before


def test_a_link_is_no_lock(versions, live, tmp_path):
    versions.folder.mkdir()
    (tmp_path / "precious").write_text("precious")
    (versions.folder / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match="is a link"):
        live.update(versions, remove=["item-1"])
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_bundle_exported_anew_while_it_is_read_is_read_whole(folder, tmp_path):
    """The folder goes away and comes back between two of the reader's steps."""
    copy, away = tmp_path / "bundle", tmp_path / "away"
    shutil.copytree(folder, copy)
    real, looks = Bundle.load, []

    def load(path, expected):
        looks.append(path)
        if len(looks) == 1:
            copy.rename(away)
            try:
                return real(path, expected)
            finally:
                shutil.copytree(away, copy)
        return real(path)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Bundle, "load", load)
        assert Recommender.load(copy).catalogue.num_items == 50
    assert len(looks) == 2


def test_a_version_killed_before_its_renaming_was_never_there(versions, live):
    live.update(versions, add=new_items(1))
    shutil.copytree(
        versions.folder / "version_000001", versions.folder / "version_000002.partial"
    )
    assert versions.newest == 1
    live.update(versions, remove=["item-1"])
    assert versions.load().num_items == 50
    assert sorted(p.name for p in versions.folder.iterdir()) == [
        ".lock",
        "version_000001",
        "version_000002",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "version.json",
        "removed.parquet",
        "items.parquet",
        "codes.npy",
        "embeddings.npy",
        "joined.npy",
        "attributes.json",
    ],
)
def test_a_damaged_part_of_a_version_is_named(versions, live, name):
    live.update(versions, **CHANGE)
    path = versions.folder / "version_000001" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"version_000001/{name} is damaged"):
        versions.load()


def test_codes_of_another_version_are_refused(versions, live):
    """Codes of another version are refused even with their manifest."""
    live.update(versions, **CHANGE)
    live.update(versions, remove=["new-0-0"], add=new_items(1, seed=3))
    newer = versions.folder / "version_000002"
    shutil.copy(versions.folder / "version_000001" / "codes.npy", newer)
    manifest = read_json(newer / "manifest.json")
    sha = hash_file(newer / "codes.npy")
    manifest["files"]["codes.npy"]["sha256"] = sha
    manifest["seal"] = artifacts.seal(manifest)
    write_json(newer / "manifest.json", manifest)
    with pytest.raises(InputError, match="its parts are of several versions"):
        versions.load()


def test_a_version_of_another_bundle_is_named(folder, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(folder, copy)
    versions = CatalogueVersions.open(copy)
    versions.change(versions.load(), add=new_items(1))
    assert Recommender.load(copy).catalogue.num_items == 51
    bundle = Bundle.load(copy)
    other = type(bundle)(copy, bundle.parts, bundle.shapes, "f" * 64)
    assert CatalogueVersions(other).load().version == 0, "it has versions of its own"
    with pytest.raises(InputError, match="version_000001 belongs to the bundle"):
        CatalogueVersions(other, versions.folder).load()


@pytest.mark.slow
def test_versions_survive_an_export_with_more_room(tmp_path):
    workdir = make_trained_workdir(tmp_path, with_quantizer=True)
    context = RunContext(workdir)
    options = {"num_beams": 10, "batch_sizes": (1,)}
    export(context, room=1.1, **options)
    versions = CatalogueVersions.open(workdir / "bundle")
    live = Recommender.load(versions)
    live.update(versions, add=new_items(5))
    with pytest.raises(InputError, match="--gin.export.room="):
        live.update(versions, add=new_items(1, seed=1))
    before = live.recommend(HISTORIES, k=10)
    export(context, room=2.0, **options)
    after = Recommender.load(workdir / "bundle")
    assert (after.catalogue.version, after.catalogue.capacity) == (1, 100)
    for one, other in zip(before, after.recommend(HISTORIES, k=10), strict=True):
        assert [i.item_id for i in one.items] == [i.item_id for i in other.items]
