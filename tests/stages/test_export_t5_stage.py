"""The exported folder is a T5 to Hugging Face, with the same logits."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from trained_workdir import make_trained_workdir

from tiger_jax.errors import InputError
from tiger_jax.models.tiger import Tiger
from tiger_jax.recommending.trained_model import load_recommender
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.stages import export_t5 as stage
from tiger_jax.stages.context import RunContext
from tiger_jax.workdir.json_files import read_json


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = make_trained_workdir(tmp_path_factory.mktemp("work"))
    stage.export_t5(RunContext(workdir))
    return workdir


def test_transformers_loads_the_folder_and_gives_the_same_logits(workdir):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(workdir / "t5")
    theirs = theirs.eval()
    config, layout, _, params = load_recommender(workdir / "recommender")
    model = Tiger(dataclasses.replace(config, output="vocabulary"), layout)
    tokens = read_json(workdir / "t5" / "tokens.json")
    user = tokens["first_user_token"] + 3
    items = [tokens["items"][name] for name in ("item-4", "item-7", "item-1")]
    history = np.array([[user, *items[0], *items[1]], [user, *items[2], 0, 0, 0, 0]])
    target = np.array([[0, *items[2][:-1]], [0, *items[0][:-1]]])
    ours = model.apply(
        {"params": params},
        jnp.array(history, jnp.int32),
        jnp.array(target, jnp.int32),
        is_training=False,
    )
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(history),
            attention_mask=torch.tensor(history != 0),
            decoder_input_ids=torch.tensor(target),
        ).logits.numpy()
    assert np.ptp(expected) > 0.1, "logits all alike would prove nothing"
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=1e-4)
    assert theirs.generation_config.eos_token_id is None
    assert theirs.generation_config.max_new_tokens == 4


def test_the_tokens_of_every_item_are_listed(workdir):
    tokens = read_json(workdir / "t5" / "tokens.json")
    table = SemanticIdTable.load(workdir / "semantic_ids")
    codes = np.array(list(tokens["items"].values())) - tokens["level_offsets"]
    np.testing.assert_array_equal(codes, table.codes)
    assert tuple(tokens["items"]) == table.item_ids


def test_a_model_with_parts_that_t5_lacks_is_refused(workdir, monkeypatch, tmp_path):
    def refuse(*_):
        raise ValueError("T5 has no name for ['item_structure/w']")

    monkeypatch.setattr(stage, "to_t5_weights", refuse)
    other = make_trained_workdir(tmp_path, seed=1)
    with pytest.raises(InputError, match=r"no T5.*item_structure.*beauty_paper"):
        stage.export_t5(RunContext(other))
    assert not (other / "t5").exists()
