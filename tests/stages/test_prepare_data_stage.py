"""The stage: one work directory holds one shop, and is built again when it changes."""

import dataclasses
import re
import subprocess
import sys

import gin
import numpy as np
import pytest
from shops import INTERACTIONS_CSV, json_lines, write, write_csv_shop

from tiger_jax import cli
from tiger_jax.data import show
from tiger_jax.data.interactions import InteractionsConfig
from tiger_jax.data.prepared import PreparedData
from tiger_jax.data.readers.files import FilesConfig
from tiger_jax.data.synthetic import SyntheticShopConfig
from tiger_jax.errors import InputError
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.prepare_data import prepare_data
from tiger_jax.workdir import artifacts

SMALL = SyntheticShopConfig(
    num_items=60, num_users=80, max_history=12, items_per_series=5.0
)


@pytest.fixture(autouse=True)
def _no_gin():
    gin.clear_config()
    yield
    gin.clear_config()


def write_shop(folder, *, name="item", num_items=8, num_users=12):
    items = [
        {"item_id": f"{name}{n}", "title": f"Title {n}", "brand": "B"}
        for n in range(num_items)
    ]
    events = [
        {"user_id": f"u{u}", "item_id": f"{name}{(u + t) % num_items}", "timestamp": t}
        for u in range(num_users)
        for t in range(6)
    ]
    write(folder / "items.jsonl", json_lines(items))
    write(folder / "interactions.jsonl", json_lines(events))
    return folder


def contents(workdir):
    return {
        p.relative_to(workdir): p.read_bytes()
        for p in sorted(workdir.rglob("*"))
        if p.is_file()
    }


def test_a_folder_becomes_prepared_data(tmp_path, capsys):
    folder = write_shop(tmp_path / "my_shop")
    prepare_data(RunContext(tmp_path / "run", folder))
    data = PreparedData.load(tmp_path / "run" / "data")
    assert (data.name, data.num_users, data.num_items) == ("my_shop", 12, 8)
    manifest = artifacts.load_manifest(tmp_path / "run" / "data")
    assert manifest.summary["source"] == str(folder)
    assert set(manifest.external) == {"items.jsonl", "interactions.jsonl"}
    out = capsys.readouterr().out
    assert "my_shop: 12 users, 8 items, 72 interactions" in out
    assert "training pairs   36 (prefix, next item)" in out


def test_nothing_is_done_twice(tmp_path, capsys):
    folder = write_shop(tmp_path / "shop")
    context = RunContext(tmp_path / "run", folder)
    prepare_data(context)
    before = contents(context.workdir)
    capsys.readouterr()
    prepare_data(context)
    assert capsys.readouterr().out.startswith("prepare_data: up to date")
    assert contents(context.workdir) == before


def test_changed_options_seeds_and_files_build_again(tmp_path):
    folder = write_shop(tmp_path / "shop")
    context = RunContext(tmp_path / "run", folder)
    hashes = []
    for change in (
        lambda: prepare_data(context),
        lambda: prepare_data(context, seed=1),
        lambda: prepare_data(context, interactions=InteractionsConfig(k_core=2)),
        lambda: prepare_data(context, files=FilesConfig(brand="title", title="brand")),
        lambda: (write_shop(folder, num_users=13), prepare_data(context)),
        lambda: prepare_data(context, name="other name"),
    ):
        change()
        hashes.append(artifacts.load_manifest(context.workdir / "data").content_hash)
    assert len(set(hashes)) == len(hashes)


def test_the_same_command_gives_the_same_content(tmp_path):
    folder = write_shop(tmp_path / "shop")
    for run in ("one", "two"):
        prepare_data(RunContext(tmp_path / run, folder))
    one, two = (artifacts.load_manifest(tmp_path / r / "data") for r in ("one", "two"))
    assert one.content_hash == two.content_hash


def test_another_shop_is_refused_and_nothing_is_overwritten(tmp_path):
    context = RunContext(tmp_path / "run", write_shop(tmp_path / "first"))
    prepare_data(context)
    before = contents(context.workdir)
    for other in (write_shop(tmp_path / "second", name="thing"), None):
        with pytest.raises(InputError) as caught:
            prepare_data(RunContext(context.workdir, other))
        message = str(caught.value)
        assert str(tmp_path / "first") in message
        assert (str(other) if other else "the synthetic shop") in message
        assert "choose another --workdir, or delete" in message
    assert contents(context.workdir) == before


def test_a_shop_that_has_moved_is_the_same_shop(tmp_path, capsys):
    folder = write_shop(tmp_path / "here")
    prepare_data(RunContext(tmp_path / "run", folder))
    folder.rename(tmp_path / "there")
    capsys.readouterr()
    prepare_data(RunContext(tmp_path / "run", tmp_path / "there"))
    assert "up to date" in capsys.readouterr().out


def test_bad_data_leave_the_old_data_in_place(tmp_path):
    folder = write_shop(tmp_path / "shop")
    context = RunContext(tmp_path / "run", folder)
    prepare_data(context)
    before = contents(context.workdir / "data")
    write(folder / "interactions.jsonl", "{")
    with pytest.raises(InputError, match="interactions.jsonl, line 1"):
        prepare_data(context)
    assert contents(context.workdir / "data") == before


def test_without_a_folder_the_synthetic_shop_is_made(tmp_path):
    context = RunContext(tmp_path / "run")
    prepare_data(context, synthetic=SMALL)
    data = PreparedData.load(tmp_path / "run" / "data")
    assert data.num_items == 60
    assert data.num_users == 80
    assert set(data.ceiling) >= {"recall@1", "recall@10", "ndcg@10"}
    assert all(0 < value <= 1 for value in data.ceiling.values())
    other = dataclasses.replace(SMALL, num_items=70)
    prepare_data(context, synthetic=other)  # the same source: built again
    assert PreparedData.load(tmp_path / "run" / "data").num_items == 70


def test_a_reader_can_be_insisted_on(tmp_path):
    folder = write_shop(tmp_path / "shop")
    for source, expected in [
        ("movielens", "holds files data"),
        ("synthetic", "reads no files: leave out one"),
        ("books", "choose one of auto, synthetic, files"),
    ]:
        with pytest.raises(InputError, match=expected):
            prepare_data(RunContext(tmp_path / "run", folder), source=source)
    with pytest.raises(InputError, match="needs --data_dir"):
        prepare_data(RunContext(tmp_path / "run"), source="files")
    prepare_data(RunContext(tmp_path / "run", folder), source="amazon_beauty")
    assert (tmp_path / "run" / "data" / "manifest.json").exists()


def test_raw_amazon_files_must_be_of_the_category_asked_for(tmp_path):
    write(tmp_path / "raw" / "meta_Books.json.gz", b"")
    write(tmp_path / "raw" / "reviews_Books_5.json.gz", b"")
    with pytest.raises(InputError, match="holds no reviews"):
        prepare_data(RunContext(tmp_path / "run", tmp_path / "raw"))
    with pytest.raises(InputError, match="is not the metadata of Toys_and_Games"):
        prepare_data(
            RunContext(tmp_path / "run", tmp_path / "raw"), source="amazon_toys"
        )


def test_every_gin_file_of_a_data_set_binds_what_exists(tmp_path):
    folder = write_shop(tmp_path / "shop")
    for path in sorted((cli.GIN_CONFIGS / "datasets").glob("*.gin")):
        source = "prepare_data.source = 'auto'"
        own = [source] if "movielens" in path.name else []
        cli.parse_gin([str(path)], own)
        if "amazon" in path.name:  # which this tiny shop is not
            with pytest.raises(InputError, match="12 users where"):
                prepare_data(RunContext(tmp_path / path.stem, folder))
            cli.parse_gin([str(path)], ["prepare_data.expected = None"])
        prepare_data(RunContext(tmp_path / path.stem, folder))
        operative = gin.operative_config_str()
        for name in re.findall(r"^([\w.]+) = ", path.read_text(), re.MULTILINE):
            assert name.rpartition(".")[2] in operative, (path.name, name)


def test_a_single_field_can_be_set_by_gin(tmp_path):
    folder = write_csv_shop(
        tmp_path / "shop",
        items="asin,title\n" + "".join(f"i{n},t\n" for n in range(6)),
        interactions="user_id,asin,timestamp\n"
        + "".join(f"u{u},i{i},{i}\n" for u in range(6) for i in range(6)),
    )
    cli.parse_gin([], ["files.FilesConfig.item_id = 'asin'"])
    prepare_data(RunContext(tmp_path / "run", folder))
    assert PreparedData.load(tmp_path / "run" / "data").num_items == 6


def test_show_prints_users_and_items_as_text(tmp_path, capsys):
    prepare_data(RunContext(tmp_path / "run", write_shop(tmp_path / "shop")))
    data = PreparedData.load(tmp_path / "run" / "data")
    capsys.readouterr()
    show.main(["--workdir", str(tmp_path / "run"), "--user", "u3"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "user 3 (u3), 6 interactions"
    assert [line.split()[0] for line in lines[1:]] == ["train"] * 4 + [
        "validate",
        "test",
    ]
    assert lines[1].split(None, 1)[1].startswith("Title 3, B  #")
    show.main(["--workdir", str(tmp_path / "run"), "--item", "2"])
    text = capsys.readouterr().out
    assert f"  item_id      {data.item_ids[2]}\n" in text
    assert f"row {data.items_file_rows[2]} of the raw items" in text
    count = int(np.sum(data.histories.items == 2))
    assert f"  {count} interactions of" in text
    show.main(["--workdir", str(tmp_path / "run")])
    assert "shop: 12 users" in capsys.readouterr().out
    with pytest.raises(InputError, match="there is no user '99'"):
        show.main(["--workdir", str(tmp_path / "run"), "--user", "99"])


def test_show_is_a_command_that_fails_in_one_line(tmp_path):
    command = [sys.executable, "-m", "tiger_jax.data.show", "--workdir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "run --stage=prepare_data" in done.stderr


def test_a_folder_without_data_is_refused(tmp_path):
    """A folder that holds no data is refused before anything is written."""
    write(tmp_path / "empty" / "interactions.csv", INTERACTIONS_CSV)
    with pytest.raises(InputError, match="looked for items.csv"):
        prepare_data(RunContext(tmp_path / "run", tmp_path / "empty"))
    assert not (tmp_path / "run").exists()


def test_data_of_another_size_than_the_benchmarks_are_refused(tmp_path):
    folder = write_shop(tmp_path / "my_shop")
    context = RunContext(tmp_path / "run", folder)
    expected = {"users": 12, "items": 8, "interactions": 72}
    with pytest.raises(InputError, match="12 users where 13 are expected"):
        prepare_data(context, expected={**expected, "users": 13})
    assert not (tmp_path / "run" / "data").exists()
    prepare_data(context, expected=expected)
    before = contents(tmp_path / "run")
    with pytest.raises(InputError, match="8 items where 7 are expected"):
        prepare_data(context, expected={**expected, "items": 7})
    assert contents(tmp_path / "run") == before
