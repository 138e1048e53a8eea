"""Under several seeds, what they share is made once."""

import pytest
from trained_workdir import make_trained_workdir

from tiger_jax import api, seeds
from tiger_jax.errors import InputError
from tiger_jax.stages.context import RunContext
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.json_files import read_json, write_json

SMALL = {
    "synthetic.SyntheticShopConfig.num_items": 200,
    "synthetic.SyntheticShopConfig.num_users": 300,
    "synthetic.SyntheticShopConfig.max_history": 20,
    "train_rqvae.quantizer": "@quantizers.ResidualKMeans()",
    "quantizers.ResidualKMeans.codebook_sizes": (8, 8),
}


def test_seeds_share_data_and_differ_in_what_is_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TIGER_GIN", "SEED = 7")  # the seeds asked for win
    stages = ["prepare_data", "embed_items", "train_rqvae"]
    api.run(stages, workdir=tmp_path, bindings=SMALL, seeds=(0, 1))
    runs = [api.RunResult(tmp_path / "seeds" / seed) for seed in "01"]
    first, second = (run.manifests for run in runs)
    assert first["data"] == second["data"]
    assert (tmp_path / "seeds" / "1" / "data").is_symlink()
    assert first["rqvae"].config["seed"] == 0
    assert second["rqvae"].config["seed"] == 1
    assert first["rqvae"].content_hash != second["rqvae"].content_hash
    capsys.readouterr()
    api.run(stages, workdir=tmp_path, bindings=SMALL, seeds=(0, 1))
    said = capsys.readouterr().out
    assert said.count("up to date") == 4  # data, embeddings, and two quantizers


@pytest.mark.parametrize(
    ("text", "message"),
    [("0,x", "must read"), ("1,1", "different"), ("-1", "from 0 on"), ("0,", "read")],
)
def test_what_is_no_list_of_seeds_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        seeds.parse_seeds(text)


def test_a_stage_that_answers_is_not_for_seeds(tmp_path):
    with pytest.raises(InputError, match="--stage=serve is not for --seeds"):
        list(seeds.plan(["serve"], RunContext(tmp_path), (0, 1)))


def test_the_summary_is_the_mean_over_the_seeds(tmp_path, capsys):
    for seed, recall in ((0, 0.10), (1, 0.12), (2, 0.14)):
        folder = tmp_path / "seeds" / str(seed) / "evaluation"
        folder.mkdir(parents=True)
        values = dict.fromkeys(seeds.REPORTED, recall)
        write_json(folder / "metrics.json", {split: values for split in seeds.SPLITS})
    seeds.summarize(tmp_path, (0, 1, 2, 3))  # the last has not been run yet
    # The half width is 4.303 * 0.02 / sqrt(3).
    assert ".1200 ± .0497" in capsys.readouterr().out
    written = read_json(tmp_path / "seeds" / "metrics.json")
    assert written["seeds"] == [0, 1, 2]
    assert written["values"]["test"]["recall@10"] == [0.10, 0.12, 0.14]


def test_a_linked_folder_is_an_input_like_any_other(tmp_path):
    workdir = make_trained_workdir(tmp_path / "work")
    ((_, own, bindings),) = seeds.plan(["evaluate"], RunContext(workdir), (3,))
    assert bindings == ["SEED = 3"]
    found = artifacts.load_manifest(own.workdir / "data")
    assert found == artifacts.load_manifest(workdir / "data")
