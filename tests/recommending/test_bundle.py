"""A bundle answers as the work directory does, and tells when a part isn't its own."""

import dataclasses
import re
import shutil

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from tiger_jax.errors import InputError
from tiger_jax.recommending.bundle import Bundle
from tiger_jax.recommending.recommender import Recommender
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.hashing import hash_file
from tiger_jax.workdir.json_files import read_json, write_json

HISTORY = ["item-1", "item-2"]


def test_a_bundles_files_can_be_read_by_whom_the_umask_lets(folder):
    modes = {p.name: p.stat().st_mode for p in folder.rglob("*") if p.is_file()}
    assert set(modes.values()) == {modes["bundle.json"]}


def test_compiling_says_how_far_it_is(tiny_recommender, capsys):
    tiny_recommender.warm_up()
    assert re.match(r"Compiling: (\d+)/\1 programs, ", capsys.readouterr().out)


def test_as_many_beams_as_items_equal_exact_scoring(recommender):
    """Beams as many as items find what scoring every item finds."""
    options = {"k": 10, "filter": {"category": ["Shelf 1", "Shelf 2"]}}
    found = recommender.recommend(HISTORY, **options)
    exact = recommender.recommend(HISTORY, exact=True, **options)
    assert [i.item_id for i in found.items] == [i.item_id for i in exact.items]
    scores = [[i.score for i in answer.items] for answer in (found, exact)]
    np.testing.assert_allclose(*scores, atol=1e-4)
    assert {i.category for i in found.items} == {"Shelf 1", "Shelf 2"}
    assert not {i.item_id for i in found.items} & set(HISTORY)


def test_a_filter_leaves_the_next_request_unchanged(recommender):
    """A filter leaves the next request with the same filter whole."""
    options = {"k": 10, "filter": {"category": "Shelf 1"}, "exclude_history": False}
    before = recommender.recommend(["item-2"], **options)
    everything = [f"item-{n}" for n in range(45)] * 2
    less = recommender.recommend(HISTORY, k=10, exclude=everything)
    assert {i.item_id for i in less.items} == {f"item-{n}" for n in range(45, 50)}
    assert recommender.recommend(["item-2"], **options) == before
    assert len(before.items) == 10


def test_a_batch_answers_as_its_requests_do_alone(recommender):
    histories = [HISTORY, ["item-3"], ["gone"], ["item-4", "gone"], []]
    together = recommender.recommend(histories, k=5)
    for history, answer in zip(histories, together, strict=True):
        alone = recommender.recommend(history, k=5)
        assert [i.item_id for i in alone.items] == [i.item_id for i in answer.items]
    assert [a.by for a in together] == ["tiger", "tiger", *["popularity", "tiger"]] + [
        "popularity"
    ]
    assert together[3].unknown_items == ("gone",)


def test_a_seed_decides_what_is_drawn(recommender):
    draw = [
        recommender.recommend(HISTORY, k=8, temperature=1.0, seed=s) for s in (1, 1, 2)
    ]
    assert draw[0] == draw[1] != draw[2]
    assert len({i.item_id for i in draw[0].items}) == 8


def test_programs_do_not_tell_where_the_code_lay(folder):
    programs = [path.read_bytes() for path in folder.glob("programs/*")]
    assert programs
    assert not any(b".py" in program for program in programs)


def test_every_damaged_file_is_named(folder, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(folder, copy)
    names = [p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()]
    assert len(names) > 30
    for name in names:
        whole = (copy / name).read_bytes()
        damaged = bytearray(whole)
        damaged[len(whole) // 2] ^= 1
        (copy / name).write_bytes(damaged)
        with pytest.raises(InputError, match=re.escape(name)):
            Bundle.load(copy)
        (copy / name).unlink()
        with pytest.raises(InputError, match=re.escape(name)):
            Bundle.load(copy)
        (copy / name).write_bytes(whole)
    (copy / "more.npy").write_bytes(b"")
    with pytest.raises(InputError, match="more.npy is no part of this bundle"):
        Bundle.load(copy)


def test_only_the_expected_bundle_is_read(folder, tmp_path):
    """Another's bundle may be whole, and have hashes that fit."""
    expected = hash_file(folder / "manifest.json")
    assert Recommender.load(folder, expected_hash=["0" * 64, expected]).model
    copy = shutil.copytree(folder, tmp_path / "bundle")
    manifest = read_json(copy / "manifest.json")
    manifest["made"]["by"] = "somebody else"
    write_json(copy / "manifest.json", {**manifest, "seal": artifacts.seal(manifest)})
    Bundle.load(copy)
    with pytest.raises(InputError, match="not the expected_hash"):
        Recommender.load(copy, expected_hash=expected)


def _change_array(path):
    array = np.load(path)
    np.save(path, ~array if array.dtype == bool else array + array.dtype.type(1))


def _change_params(path):
    params = load_file(path)
    name = sorted(params)[0]
    save_file({**params, name: params[name] + 1}, path)


def _change_titles(path):
    items = pq.read_table(path)
    titles = pa.array([f"{title}!" for title in items["title"].to_pylist()])
    place = items.column_names.index("title")
    pq.write_table(items.set_column(place, "title", titles), path)


def _exchange_programs(path):
    shutil.copy(path.with_name("sample_1.stablehlo"), path)


@pytest.mark.parametrize(
    ("name", "change", "part"),
    [
        ("params.safetensors", _change_params, "params.safetensors is .*another"),
        ("semantic_ids/codes.npy", _change_array, "semantic_ids|codeword"),
        ("trie/items.low.npy", _change_array, "trie is .*another"),
        ("items/items.parquet", _change_titles, "items is .*another"),
        ("items/is_new.npy", _change_array, "items is .*another"),
        ("items/popularity.npy", _change_array, "items is .*another"),
        ("user_hashes.npy", _change_array, "user_hashes.npy is .*another"),
        ("embeddings.npy", _change_array, "embeddings.npy is .*another"),
        ("quantizer/arrays/codebook_1.npy", _change_array, "quantizer is .*another"),
        ("programs/search_1.stablehlo", _exchange_programs, "search_1.* is not the"),
    ],
)
def test_a_part_of_another_bundle_is_named(folder, tmp_path, name, change, part):
    """A part of another bundle is named even with its manifest."""
    copy = tmp_path / "bundle"
    shutil.copytree(folder, copy)
    change(copy / name)
    seal_again(copy)
    with pytest.raises(InputError, match=part):
        Bundle.load(copy)


def _to_format_2(copy):
    """As it was written before the trie had a hash."""
    (copy / "occurrences.npy").unlink()
    facts = read_json(copy / "bundle.json")
    kept = "model layout max_items collaborative_dims shapes parts programs".split()
    old = {name: facts[name] for name in kept}
    del old["shapes"]["content_items"]
    del old["parts"]["occurrences.npy"]
    write_json(copy / "bundle.json", {"format": 2, **old})
    seal_again(copy)


def test_a_bundle_of_format_2_answers_as_it_did(folder, tmp_path, recommender):
    copy = shutil.copytree(folder, tmp_path / "bundle")
    _to_format_2(copy)
    found = Recommender.load(copy).recommend(HISTORY, k=10)
    expected = recommender.recommend(HISTORY, k=10)
    assert [i.item_id for i in found.items] == [i.item_id for i in expected.items]


def _of_an_older_convention(exported):
    return dataclasses.replace(exported, calling_convention_version=8)


def _of_a_newer_dialect(exported):
    return dataclasses.replace(exported, mlir_module_serialized=b"ML\xefR later")


@pytest.mark.parametrize("change", [_of_an_older_convention, _of_a_newer_dialect])
def test_programs_of_another_jax_are_compiled_anew(
    folder, tmp_path, recommender, capsys, change
):
    copy = shutil.copytree(folder, tmp_path / "bundle")
    facts = read_json(copy / "bundle.json")
    for path in (copy / "programs").iterdir():
        exported = change(jax.export.deserialize(bytearray(path.read_bytes())))
        path.write_bytes(exported.serialize())
        facts["programs"][path.stem] = hash_file(path)
    write_json(copy / "bundle.json", facts)
    seal_again(copy, jax="0.9.9")
    own = Recommender.load(copy)
    assert "exported under JAX 0.9.9, and this is" in capsys.readouterr().out
    found = own.recommend(HISTORY, k=10)
    expected = recommender.recommend(HISTORY, k=10)
    assert [i.item_id for i in found.items] == [i.item_id for i in expected.items]


def seal_again(copy, **packages):
    """Writes the manifest that fits what the folder holds."""
    manifest = read_json(copy / "manifest.json")
    for name in list(manifest["files"]):
        path = copy / name
        if not path.exists():
            del manifest["files"][name]
            continue
        size = path.stat().st_size
        manifest["files"][name] = {"sha256": hash_file(path), "bytes": size}
    manifest["made"]["packages"].update(packages)
    manifest["seal"] = artifacts.seal(manifest)
    write_json(copy / "manifest.json", manifest)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": 51}, "at least as many beams"),
        ({"temperature": float("nan")}, "temperature"),
        ({"epsilon": 2.0}, "epsilon"),
        ({"filter": {"colour": "red"}}, "no field 'colour'"),
        ({"prefix": [8]}, "codeword 8 at level 0"),
    ],
)
def test_a_senseless_request_is_refused(recommender, options, message):
    with pytest.raises(InputError, match=message):
        recommender.recommend(HISTORY, **options)
