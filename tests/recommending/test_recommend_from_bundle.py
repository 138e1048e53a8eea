"""Stage recommend over a bundle: no work directory, the newest catalogue."""

import json
import re

import pytest
from joining import new_items

from tiger_jax.errors import InputError
from tiger_jax.recommending.versions import CatalogueVersions
from tiger_jax.stages import recommend as stage
from tiger_jax.stages.context import RunContext


def test_new_items_are_recommended_and_marked(
    folder, recommender, tmp_path, capsys, monkeypatch
):
    versions = CatalogueVersions.open(folder, tmp_path)
    live = recommender.fork()
    live.update(versions, add=new_items(3))
    monkeypatch.setattr(stage.Recommender, "load", lambda path: live)
    context = RunContext(tmp_path)
    options = {"bundle": str(folder), "title": "thing number 41", "epsilon": 0.4}
    stage.recommend(context, output="jsonl", k=5, **options)
    line = json.loads(capsys.readouterr().out)
    found = [item["item_id"] for item in line["recommended"]]
    assert line["version"] == 1
    assert sum(item_id.startswith("new-0-") for item_id in found) == 2
    stage.recommend(context, k=5, **options)
    out = capsys.readouterr().out
    assert len(re.findall(r"^ +\d+ \+ .* Novelty", out, re.MULTILINE)) == 2
    assert "hasn't seen" in out
    with pytest.raises(InputError, match="no test users"):
        stage.recommend(context, bundle=str(folder))
