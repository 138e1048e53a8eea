"""The README of a bundle tells what was measured of this very recommender."""

import re

import pytest
import yaml
from trained_workdir import make_trained_workdir

from tiger_jax.data.prepared import PreparedData
from tiger_jax.recommending.parts import Parts
from tiger_jax.reporting.model_card import build_model_card
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.json_files import write_json


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_trained_workdir(tmp_path_factory.mktemp("card"))


def evaluated(workdir, inputs):
    run = artifacts.begin(
        workdir, "evaluation", stage="evaluate", inputs=inputs, config={}
    )
    splits = {
        split: {"recall@10": value, "ndcg@10": value / 2}
        for split, value in (("test", 0.25), ("test_masked", 0.5))
    }
    settings = {"users": 1234, "catalogue": "all items"}
    measured = {**splits, "baselines": {"popularity": splits}, "settings": settings}
    write_json(run.folder / "metrics.json", measured)
    run.commit()


def test_the_card_has_what_a_reader_copies(workdir):
    card = build_model_card(workdir, Parts.of_workdir(workdir))
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "tiger_jax"
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(code, "card", "exec")
    data = PreparedData.load(workdir / "data")
    assert f'["{data.item_ids[0]}", "{data.item_ids[1]}"]' in code
    assert f"{data.num_users:,} users" in text


def test_only_its_own_measurements_are_told(workdir):
    parts = Parts.of_workdir(workdir)
    assert "Nothing has been measured." in build_model_card(workdir, parts)
    evaluated(workdir, ("recommender",))
    card = build_model_card(workdir, parts)
    assert "| TIGER (this run) | 0.2500 | 0.1250 | 0.5000 | 0.2500 |" in card
    assert "1,234 users; all items." in card
    evaluated(workdir, ("data",))  # of whatever recommender was there before
    assert "Nothing has been measured." in build_model_card(workdir, parts)
