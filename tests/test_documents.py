"""What the documents name is there: files, headings, flags, bindings, and numbers."""

import configparser
import csv
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import gin
import markdown
import pytest

from benchmarks.lib import read_rows
from tiger_jax import cli
from tiger_jax.stage_table import STAGES

ROOT = Path(__file__).resolve().parent.parent
TRACKED = subprocess.run(
    ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False
).stdout.split()
DOCUMENTS = TRACKED or [
    path.relative_to(ROOT).as_posix()
    for folder in (".", "docs", "docs/reference", "tasks", "benchmarks")
    for path in (ROOT / folder).glob("*.md")
]
FENCE = re.compile(r"^ *```([^\n]*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?:\]\(|(?:src|srcset|href)=\")([^)\"\s]+)[)\"]")


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def anchors(name):
    """Headings as GitHub turns them into anchors."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", read(name)), re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in words}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_somewhere(name):
    for link in LINK.findall(FENCE.sub("", read(name))):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), f"{name} links to {link}"
        if anchor and target.suffix == ".md":
            found = anchors(target.resolve().relative_to(ROOT).as_posix())
            assert anchor in found, f"{name} links to {link}"


@pytest.mark.parametrize("name", [d for d in DOCUMENTS if FENCE.search(read(d))])
def test_the_site_shows_every_block_as_one(name):
    hooks = runpy.run_path(str(ROOT / "docs" / "site" / "hooks.py"))
    text = hooks["relink"](read(name), name, Path(name).name)
    html = markdown.markdown(
        text, extensions=["pymdownx.superfences", "pymdownx.highlight"]
    )
    assert "```" not in html


def commands(text):
    """Arguments of each call of the command line in a shell block."""
    joined = text.replace("\\\n", " ")
    for line in joined.splitlines():
        found = re.search(r"(?:run\.py|tiger-jax)\s+(-.*)$", line)
        if found and "…" not in line:
            # The command may itself be quoted for a shell elsewhere.
            call = found[1].partition("; done")[0]
            if any(call.count(mark) % 2 for mark in "'\""):
                call = call.rstrip(" '\"")
            words = [
                word for word in shlex.split(call, comments=True) if "$" not in word
            ]
            yield [word for word in words if word.startswith("-")]


BLOCKS = [
    (name, words)
    for name in DOCUMENTS
    if name not in ("CHANGELOG.md",)
    for kind, body in FENCE.findall(read(name))
    if kind.strip() in ("", "sh")
    for words in commands(body)
]


def test_there_are_commands_to_check():
    assert len(BLOCKS) > 20, BLOCKS


@pytest.mark.parametrize(("name", "words"), BLOCKS, ids=str)
def test_a_documented_command_is_one_that_there_is(name, words):
    bindings, rest = cli._take_gin_bindings(["run.py", *words])
    given = cli._flags()
    if "--help" in rest:
        return
    left = given(list(rest))
    assert len(left) == 1
    stages = cli.choose_stages(given.stage.split(",") if given.stage else ())
    assert set(stages) <= set(STAGES)
    # A module of one's own stands beside the gin file that the document shows; a
    # gin file in a store is fetched before it is parsed.
    own = ("my_", "gs://")
    files = [file for file in given.gin_file if not file.startswith(own)]
    try:
        cli.parse_gin(files, bindings)
    finally:
        gin.clear_config()


@pytest.mark.parametrize("name", ["README.md", "docs/python.md", "docs/scale.md"])
def test_python_in_the_documents_compiles(name):
    kinds = [kind for kind, _ in FENCE.findall(read(name))]
    assert any(kind.startswith("python") for kind in kinds)
    for kind, body in FENCE.findall(read(name)):
        if kind.startswith("python"):
            compile(body, name, "exec")


def test_the_first_python_of_the_guide_runs(tmp_path):
    (body,) = (
        b for kind, b in FENCE.findall(read("docs/python.md")) if kind == "python"
    )
    done = subprocess.run(
        [sys.executable, "-c", body],
        cwd=tmp_path,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].endswith("['data', 'embeddings']")


def test_the_readme_is_one_that_is_read():
    assert len(read("README.md").splitlines()) <= 110
    for picture in re.findall(r"docs/images/[\w-]+\.\w+", read("README.md")):
        assert (ROOT / picture).stat().st_size <= 150_000, picture


def test_all_pipelines_show_the_same():
    drawn, words = set(), set()
    for width in ("", "narrow-"):
        for theme in ("light", "dark"):
            svg = read(f"docs/images/pipeline-{width}{theme}.svg")
            drawn.add(re.sub(r"<style>.*?</style>", "", svg))
            words.add(tuple(re.findall(r"<text[^>]*>([^<]+)</text>", svg)))
    assert (len(drawn), len(words)) == (2, 1)


def test_the_reference_shows_examples_as_code():
    """Under another heading, the site would take `>>>` for quotations."""
    for path in (ROOT / "tiger_jax").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^ *Example:$", text, re.MULTILINE), path


def test_the_reference_has_every_stage():
    named = re.findall(
        r"::: tiger_jax\.stages\.(\w+)\.\1$", read("docs/reference/stages.md"), re.M
    )
    assert named == list(STAGES)


# What was measured, by how it is written: .0402, 12,101, 71 %, 34 minutes, 12 ms.
MEASURED = re.compile(
    r"(?<![\w.,])(\d*\.\d{3,}|\d{1,3}(?:,\d{3})+"
    r"|\d*\.?\d+(?=(?:[–-]\d*\.?\d+)? ?(?:%|[kMG]B\b|ms\b|M parameters|min\b"
    r"|(?:CPU )?minutes|\w+ a second)))"
)
# What a paragraph's numbers come from: rows; or a setting, a publication, the command
# beside it.
CITED = re.compile(r"<!-- (rows|given):\s+(.*?) -->", re.DOTALL)
GENERATED = re.compile(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", re.DOTALL)


def cited_rows(words):
    """Rows of a file of docs/ by some of their fields, or published ones by data."""
    name, *fields = shlex.split(words)
    if name == "published":
        path = ROOT / "tiger_jax" / "reporting" / "published.csv"
        with open(path, encoding="utf-8") as file:
            found = [row for row in csv.DictReader(file) if row["data"] in fields]
        return [{k: float(v) for k, v in r.items() if v[:2] == "0."} for r in found]
    wanted = dict(field.split("=", 1) for field in fields)
    return [
        row
        for row in read_rows(ROOT / "docs" / f"{name}.jsonl")
        if all(str(row.get(key)) == value for key, value in wanted.items())
    ]


def numbers_in(value):
    """All numbers of a row, also those in its lists and by name."""
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return [number for part in parts for number in numbers_in(part)]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return [float(value)] if is_number else []


def means_of(rows):
    """What a table shows of several seeds."""
    by_split = {}
    for row in rows:
        key = tuple(map(row.get, ("data", "method", "experiment", "split")))
        by_split.setdefault(key, []).append(row.get("metrics", {}))
    return [
        sum(metrics[name] for metrics in own) / len(own)
        for own in by_split.values()
        for name in own[0]
        if all(name in metrics for metrics in own)
    ]


def unfounded(text):
    """Numbers of a document's prose that stand in no row that their paragraph cites."""
    text = re.sub(r"`[^`]*`|\]\([^)]*\)", "", FENCE.sub("", GENERATED.sub("", text)))
    for block in re.split(r"\n\s*\n", text):
        prose = re.sub(r"<!--.*?-->", "", block, flags=re.DOTALL)
        values, given = [], set()
        for kind, words in CITED.findall(block):
            if kind == "given":
                given |= set(words.split())
                continue
            for one in words.split(";"):
                rows = cited_rows(one)
                assert rows, f"no rows of {one!r}"
                values += [*numbers_in(rows), *means_of(rows)]
        for number in MEASURED.findall(prose):
            places = len(number.partition(".")[2])
            shown = {f"{v * f:.{places}f}" for v in values for f in (1, 100, 1e-6)}
            if (
                number not in given
                and f"{float(number.replace(',', '')):.{places}f}" not in shown
            ):
                yield number, " ".join(prose.split())[:80]


@pytest.mark.parametrize("name", [d for d in DOCUMENTS if d != "CHANGELOG.md"])
def test_numbers_in_the_prose_stand_in_rows_that_it_cites(name):
    assert list(unfounded(read(name))) == []


def test_a_number_without_a_row_is_found():
    cited = (
        "recall .0911, NDCG .0519 <!-- rows: results experiment=two_level_content -->"
    )
    assert list(unfounded(cited)) == []
    for number in ("0.0912", ".0911", "54 minutes", "71 %", "12,101", "12 ms"):
        bare = number.partition(" ")[0]
        assert [n for n, _ in unfounded(f"It has {number}.")] == [bare]
    assert [n for n, _ in unfounded(cited.replace(".0911", ".0912"))] == [".0912"]
    # Settings and counts of small things are no measurements.
    assert list(unfounded("3 × 256 codewords, 4 + 4 layers, Python 3.11")) == []


def test_the_installing_page_has_every_extra():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    installing = read("docs/configuration.md").partition("## Gin")[0]
    rows = re.findall(r"^\| (`.*?`) \|", installing, re.MULTILINE)
    named = {name.strip("`") for row in rows for name in row.split(", ")}
    assert named == set(setup["options.extras_require"]) - {"test", "dev"}
