"""docs/own_data.md is run as it stands: its commands, its files, its page."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pyarrow.parquet as pq
import pytest

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


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(DATA is None, reason="TIGER_DATA is not set")
def test_its_commands_lead_from_two_files_to_a_page(tmp_path):
    (tmp_path / "run.py").symlink_to(ROOT / "run.py")
    shop = Path(DATA) / "movielens_latest_small"
    (tmp_path / "ml-latest-small").symlink_to(shop)
    fences = _fences()
    for kind, name, body in fences:
        if kind == "csv":
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
        outputs.append(subprocess.run(shell, check=True, **options).stdout)
    assert "TIGER recommends" in outputs[2]
    lists = pq.read_table(tmp_path / "runs" / "films" / "lists.parquet")
    assert len(set(lists["user_id"].to_pylist())) == 610
    assert "new-1 has the Semantic ID (" in outputs[5]
    assert outputs[6].count(" + ") == 3  # two new films, and what the mark means
    assert (tmp_path / "runs" / "films" / "report" / "index.html").is_file()
    with subprocess.Popen(
        ["bash", "-c", setup + "exec " + commands[-1]], **options
    ) as s:
        try:
            _use_the_server(s.stdout)
        finally:
            s.terminate()
        assert s.wait(60) == 0


def _use_the_server(output) -> None:
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
        json.dumps({"history": ["1"], "k": 5, "epsilon": 0.4}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        items = json.load(answer)["items"]
    assert {"new-1", "new-2"} <= {item["item_id"] for item in items}
