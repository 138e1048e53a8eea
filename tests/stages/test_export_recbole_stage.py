"""RecBole's files say what the prepared data say."""

import pytest
from small_workdir import make_workdir
from trained_workdir import make_trained_workdir

from tiger_jax.data.prepared import PreparedData
from tiger_jax.data.readers.recbole import RecboleConfig
from tiger_jax.errors import InputError
from tiger_jax.recommending.result_files import write_atomic_file
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.export_recbole import export_recbole
from tiger_jax.workdir.artifacts import load_manifest


def test_the_files_read_back_as_the_prepared_shop(tmp_path):
    workdir = make_trained_workdir(tmp_path)
    export_recbole(RunContext(workdir))
    folder = workdir / "recbole" / "small"
    shop = RecboleConfig().read(folder)
    data = PreparedData.load(workdir / "data")
    assert shop.items["item_id"].to_pylist() == list(data.item_ids)
    assert shop.items["title"].to_pylist() == data.items["title"].to_pylist()
    assert shop.items["categories"][3].as_py() == [["All", "Shelf 3"]]
    histories = {user: [] for user in data.user_ids}
    rows = shop.interactions.sort_by("timestamp").to_pylist()
    for row in rows:
        histories[row["user_id"]].append(row["item_id"])
    assert list(histories.values()) == [
        [data.item_ids[i] for i in data.histories.of(user).tolist()]
        for user in range(data.num_users)
    ]
    codes = SemanticIdTable.load(workdir / "semantic_ids").codes
    shown = shop.items["semantic_id"].to_pylist()
    assert [text.split() for text in shown] == codes.astype(str).tolist()
    assert "dataset: small" in (folder.parent / "small.yaml").read_text()


def test_the_same_shop_elsewhere_has_the_same_content_hash(tmp_path):
    hashes = set()
    for place in ("here", "elsewhere"):
        workdir = make_workdir(tmp_path / place)
        export_recbole(RunContext(workdir))
        hashes.add(load_manifest(workdir / "recbole").content_hash)
    assert len(hashes) == 1


def test_a_data_set_s_name_leads_nowhere_else(tmp_path):
    workdir = make_workdir(tmp_path / "work", name="../../my: shop")
    export_recbole(RunContext(workdir))
    assert sorted(p.name for p in (workdir / "recbole").iterdir()) == [
        "manifest.json",
        "my_shop",
        "my_shop.yaml",
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["work"]


def test_an_id_with_a_tab_is_refused_and_a_title_loses_it(tmp_path):
    columns = {"item_id:token": ["a"], "title:token_seq": ["Red\tsoap\n1"]}
    write_atomic_file(tmp_path / "x.item", columns)
    assert (tmp_path / "x.item").read_text().endswith("\na\tRed soap 1\n")
    with pytest.raises(InputError, match="identifier 'a.tb'"):
        write_atomic_file(tmp_path / "x.item", {"item_id:token": ["a\tb"]})
