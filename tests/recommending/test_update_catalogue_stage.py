"""Stage update_catalogue: files in, a version beside the bundle out."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tiger_jax.data.readers.files import FilesConfig
from tiger_jax.errors import InputError
from tiger_jax.recommending.new_items import read_new_items
from tiger_jax.recommending.versions import CatalogueVersions
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.update_catalogue import update_catalogue

ITEMS = "item_id,title,categories,in_stock\nnew-1,Red soap,All > Shelf 1,true\n"


@pytest.fixture
def workdir(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "bundle")
    (tmp_path / "new.csv").write_text(ITEMS)
    np.save(tmp_path / "new.npy", np.ones((1, 6), np.float16))
    return tmp_path


def test_items_join_leave_change_and_come_back(workdir, capsys):
    context = RunContext(workdir, embeddings=workdir / "new.npy")
    update_catalogue(context, add=str(workdir / "new.csv"), remove=["item-3"])
    out = capsys.readouterr().out
    assert "new-1 has the Semantic ID (" in out
    assert "1 items added, 1 removed" in out
    (workdir / "stock.csv").write_text("item_id,in_stock,brand\nitem-1,false,\n")
    update_catalogue(RunContext(workdir), attributes=str(workdir / "stock.csv"))
    catalogue = CatalogueVersions.open(workdir / "bundle").load()
    assert catalogue.search("red soap") == [49]
    assert catalogue.values_of("in_stock") == {"true": 1, "false": 1}
    assert catalogue.column("brand")[1] == "Acme", "an empty cell changed something"
    update_catalogue(RunContext(workdir), roll_back=0)
    capsys.readouterr()
    update_catalogue(RunContext(workdir))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["0", "1", "2", "3"]
    assert "back to version 0" in lines[3]
    assert lines[3].endswith("in force")


def test_a_file_is_checked_as_a_shops_own(workdir, capsys):
    context = RunContext(workdir, embeddings=workdir / "new.npy")
    path = workdir / "new.csv"
    path.write_text("number;description\nnew-1;Red soap\n")
    with pytest.raises(InputError, match=r"no column 'item_id' .*--gin\.files"):
        update_catalogue(context, add=str(path))
    path.write_text("SKU,name\nnew-1,Red soap\n,\n")
    update_catalogue(context, add=str(path))
    said = capsys.readouterr().out
    assert "note: new.csv: item_id from 'SKU', title from 'name'" in said
    assert "note: new.csv: 1 rows of empty fields are left out" in said
    catalogue = CatalogueVersions.open(workdir / "bundle").load()
    assert catalogue.search("red soap") == [50]
    (workdir / "parts").mkdir()
    leaving = pa.table({"item_id": ["new-1"]})
    pq.write_table(leaving, workdir / "parts" / "part-0.parquet")
    update_catalogue(RunContext(workdir), remove=str(workdir / "parts"))
    assert not CatalogueVersions.open(workdir / "bundle").load().search("red soap")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.csv", 'item_id,title,price\nn,New soap,"4,50"\n', ("New soap", 4.5)),
        ("b.csv", "\ufeffitem_id;title\nn;New soap\n", ("New soap", None)),
        ("c.jsonl", '{"item_id":"n","title":NaN}\n', ("", None)),
        ("d.csv", "item_id,title\nn,\n", ("", None)),
        ("h.txt", "item_id,title\nn,Soap\n", ("Soap", None)),
        ("i.csv", ",item_id,title\n0,n,Red towel\n", ("Red towel", None)),
        (
            "j.tsv",
            "SKU\tProduct Name\tUnit Price\nn\tSoap\t1.299,00 €\n",
            ("Soap", 1299),
        ),
        ("k.csv", "sep=|\nid|name\nn|A &amp; B\n", ("A & B", None)),
        ("l.json", '{"product_id":"n","name":"Soap","price":2}\n', ("Soap", 2)),
    ],
)
def test_files_of_items_as_people_bring_them(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text, encoding="utf-8")
    (item,) = read_new_items(str(tmp_path / name), FilesConfig(), None)
    assert (item.item_id, item.title, item.price) == ("n", *expected)
    assert not item.attributes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"add": "new.csv", "roll_back": 0}, "exclude each other"),
        ({"add": "missing.csv"}, "missing.csv is not a file"),
        ({"add": "new.csv"}, "brings no embedding"),
        ({"remove": [1.5]}, "list of ids in quotes"),
        ({"remove": "item-1"}, r"id is written as --.*remove=.*\['item-1'\]"),
        ({"remove": [7]}, "no item '7'"),
        ({"remove": ["gone"]}, "no item 'gone'"),
        ({"roll_back": 4}, "version 4 is not kept; there are 0"),
        ({"add": "new.csv", "bundle": "nowhere"}, "nowhere is no bundle"),
    ],
)
def test_a_senseless_change_writes_nothing(workdir, change, message, monkeypatch):
    monkeypatch.chdir(workdir)
    with pytest.raises(InputError, match=message):
        update_catalogue(RunContext(workdir), **change)
    assert not list(workdir.glob("bundle.catalogue/version*"))


def test_vectors_that_do_not_fit_the_file_are_refused(workdir):
    np.save(workdir / "more.npy", np.ones((2, 6)))
    context = RunContext(workdir, embeddings=workdir / "more.npy")
    with pytest.raises(InputError, match="shape .2, 6., and .* has 1 items"):
        update_catalogue(context, add=str(workdir / "new.csv"))
    with pytest.raises(InputError, match="name those too"):
        update_catalogue(context, remove=["item-1"])
