"""docs/own_data.md is run as it stands: its commands, its files, its page."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import tiger_jax

ROOT = Path(__file__).resolve().parent.parent
DATA = os.environ.get("TIGER_DATA")
FENCE = re.compile(r"^```(\w+) ?([\w.]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _fences() -> list[tuple[str, str, str]]:
    text = (ROOT / "docs" / "own_data.md").read_text(encoding="utf-8")
    return FENCE.findall(text)


def test_the_document_needs_fewer_than_ten_commands():
    commands = [
        line
        for kind, name, body in _fences()
        if kind == "sh" and name != "rehearsal"
        for line in body.splitlines()
    ]
    assert len(commands) < 10
    assert "--stage=serve" in commands[-1]


def _write_messy_shop(folder: Path) -> None:
    """300 articles as a spreadsheet writes them down, under names of its own."""
    rng = np.random.default_rng(0)
    themes = ("Toy Story", "Star Wars", "J\u00fcrgen&#39;s Farm", "Dinos &amp; Co")
    things = ("mug", "poster", "figure", "puzzle", "shirt", "lamp")
    items = ["SKU;Product Name;Vendor;Category;Unit Price;Colour;"]
    for number in range(300):
        theme, thing = themes[number % 4], things[number // 4 % 6]
        price = f"{number / 7:.2f}".replace(".", ",")
        if number % 50 == 0:
            price = f"1.{number:03},00 \u20ac"
        items.append(
            f'{number:06};"{theme} {thing}; no. {number}";Maker {number % 9};'
            f'"Fans > {theme} | Home > {thing}";{price};;'
        )
    bought = np.concatenate([rng.permutation(300) for _ in range(10)])
    rows = ["Customer No;SKU;Order Date;Quantity;;"]
    for place, number in enumerate(bought):
        day, month = rng.integers(1, 29), rng.integers(1, 13)
        rows.append(
            f"{place // 12};{number:06};{day}.{month}.2024 9:{place % 60:02};1;;"
        )
    folder.mkdir()
    for name, lines in (("items", items), ("interactions", rows)):
        text = "\r\n".join(lines) + "\r\n"
        (folder / f"{name}.csv").write_bytes(text.encode("utf-8-sig"))


def test_a_messy_shop_is_read_whole_and_says_how(tmp_path, capsys):
    _write_messy_shop(tmp_path / "shop")
    stages = ["prepare_data", "embed_items"]
    made = tiger_jax.run(stages, workdir=tmp_path, data_dir=tmp_path / "shop")
    data, said = made.data, capsys.readouterr().out
    assert (data.num_items, data.num_users, len(data.histories.items)) == (
        300,
        250,
        3000,
    )
    assert "item_id from 'SKU', title from 'Product Name', brand from 'Vendor'" in said
    assert "user_id from 'Customer No', item_id from 'SKU', timestamp from 'Or" in said
    row = data.items.to_pylist()[data.item_ids.index("000002")]
    assert row["title"] == "J\u00fcrgen's Farm mug; no. 2"
    assert row["categories"] == [["Fans", "J\u00fcrgen's Farm"], ["Home", "mug"]]
    prices = dict(zip(data.item_ids, data.items["price"].to_pylist(), strict=True))
    assert (prices["000050"], prices["000007"]) == (1050.0, 1.0)
    assert None not in prices.values()


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("shop", ["MovieLens", "messy"])
def test_its_commands_lead_from_two_files_to_a_page(tmp_path, shop):
    (tmp_path / "run.py").symlink_to(ROOT / "run.py")
    folder = tmp_path / "ml-latest-small"
    if shop == "messy":
        _write_messy_shop(folder)
    elif DATA is None:
        pytest.skip("TIGER_DATA is not set")
    else:
        folder.symlink_to(Path(DATA) / "movielens_latest_small")
    num_users, liked = (250, "000001") if shop == "messy" else (610, "1")
    fences = _fences()
    for kind, name, body in fences:
        if kind == "csv":
            if shop == "messy":
                body = body.replace("item_id,title", "Sku;Product name").replace(
                    ",", ";"
                )
            (tmp_path / name).write_text(body, encoding="utf-8")
    (rehearsal,) = (body for _, name, body in fences if name == "rehearsal")
    setup = f'{rehearsal}\nexport TIGER_GIN="$TIGER_GIN\nserve.port = 0"\n'
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    options = {
        "cwd": tmp_path,
        "env": {**os.environ, "PATH": path, "JAX_PLATFORMS": "cpu"},
        "text": True,
        "stdout": subprocess.PIPE,
    }
    commands = [body for kind, name, body in fences if (kind, name) == ("sh", "")]
    outputs = []
    for command in commands[:-1]:
        shell = ["bash", "-c", setup + command]
        done = subprocess.run(shell, check=True, stderr=subprocess.PIPE, **options)
        assert done.stderr == ""  # no library's warning
        outputs.append(done.stdout)
    assert "TIGER recommends" in outputs[2]
    lists = pq.read_table(tmp_path / "runs" / "films" / "lists.parquet")
    assert len(set(lists["user_id"].to_pylist())) == num_users
    assert "new-1 has the Semantic ID (" in outputs[5]
    assert outputs[6].count(" + ") == 3  # two new films, and what the mark means
    assert (tmp_path / "runs" / "films" / "report" / "index.html").is_file()
    with subprocess.Popen(
        ["bash", "-c", setup + "exec " + commands[-1]], **options
    ) as s:
        try:
            _use_the_server(s.stdout, liked)
        finally:
            s.terminate()
        assert s.wait(60) == 0


def _use_the_server(output, liked: str) -> None:
    address = None
    for line in output:
        address = address or re.search(r"http://[\w.]+:\d+", line)
        if address and "ready" in line:
            break
    assert address, "the server said no address"
    with urllib.request.urlopen(address[0] + "/", timeout=60) as page:
        assert b"<html" in page.read()
    request = urllib.request.Request(
        address[0] + "/recommend",
        json.dumps({"history": [liked], "k": 5, "epsilon": 0.4}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        items = json.load(answer)["items"]
    assert {"new-1", "new-2"} <= {item["item_id"] for item in items}
