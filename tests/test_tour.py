"""docs/tour.ipynb runs from top to bottom, and shows what it printed."""

import json
from pathlib import Path

import pytest

TOUR = Path(__file__).resolve().parent.parent / "docs" / "tour.ipynb"
CELLS = [
    cell
    for cell in json.loads(TOUR.read_text(encoding="utf-8"))["cells"]
    if cell["cell_type"] == "code"
]


def test_the_tour_is_short_and_has_its_outputs():
    assert len(CELLS) <= 10
    assert all(cell["outputs"] for cell in CELLS)
    assert [cell["execution_count"] for cell in CELLS] == [*range(1, len(CELLS) + 1)]
    assert "/tmp" not in TOUR.read_text(encoding="utf-8")
    assert TOUR.stat().st_size < 100_000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tour_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for cell in CELLS:
        exec("".join(cell["source"]), names)
    assert len(names["recommender"].recommend(names["taken"], k=3).items) == 3
