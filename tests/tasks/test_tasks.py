import re
import subprocess
import sys
from pathlib import Path

import gin
import numpy as np
import pytest
from small_workdir import CODEBOOK_SIZES, make_workdir, small_histories, small_table

from tasks import show
from tasks.metrics import make_beam_metric_fn, ranking_metrics
from tasks.tiger import register_tiger_mixture, register_tiger_task
from tiger_jax import cli
from tiger_jax.data.prepared import hash_user_ids
from tiger_jax.errors import InputError
from tiger_jax.input_pipeline.batches import SeqioConfig
from tiger_jax.input_pipeline.quiet_tensorflow import seqio
from tiger_jax.input_pipeline.vocabulary import TigerVocabulary
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.workdir import artifacts

LENGTHS = {"inputs": 81, "targets": 4}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("small") / "work")


def _blocks(language: str, name: str = "tasks/README.md") -> list[str]:
    text = (Path(__file__).parents[2] / name).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def _examples(task: str, split: str, **arguments) -> list[tuple]:
    dataset = seqio.get_mixture_or_task(task).get_dataset(
        LENGTHS, split=split, **{"num_epochs": 1, **arguments}
    )
    return [
        (tuple(e["inputs"].tolist()), tuple(e["targets"].tolist()))
        for e in dataset.as_numpy_iterator()
    ]


def test_the_readme_adds_a_task_in_twenty_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_workdir(tmp_path / "runs" / "books")
    (code,) = (block for block in _blocks("python") if "TaskRegistry.add" in block)
    try:
        exec(compile(code, "books.py", "exec"), {})
        examples = _examples("tiger_books", "train", shuffle=False)
    finally:
        seqio.TaskRegistry.remove("tiger_books")
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    assert len(examples) == sum(small_histories().lengths - 3)
    assert max(len(inputs) for inputs, _ in examples) == 40  # ten items, no user


def test_the_readme_mixes_shops_over_one_codebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_workdir(tmp_path / "runs" / "books")
    make_workdir(tmp_path / "runs" / "films")
    (code,) = (block for block in _blocks("python") if "tiger_media" in block)
    try:
        exec(compile(code, "media.py", "exec"), {})
        mixture = seqio.get_mixture_or_task("tiger_media")
        dataset = mixture.get_dataset(LENGTHS, split="train", seed=1)
        assert len(list(dataset.take(10).as_numpy_iterator())) == 10
    finally:
        seqio.MixtureRegistry.remove("tiger_media")
        for name in ("tiger_books", "tiger_films"):
            seqio.TaskRegistry.remove(name)


@pytest.mark.slow
def test_the_readme_trains_on_its_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    make_workdir(tmp_path / "runs" / "books")
    (code,) = (block for block in _blocks("python") if "TaskRegistry.add" in block)
    (tmp_path / "books.py").write_text(code)
    (tmp_path / "books.gin").write_text(_blocks("gin books.gin")[0])
    words = _blocks("sh train")[0].replace("\\\n", "").split("run.py")[1].split()
    tiny = [
        "tiger.TigerConfig.d_model = 8",
        "tiger.TigerConfig.num_encoder_layers = 1",
        "tiger.TigerConfig.num_decoder_layers = 1",
        "tiger.TigerConfig.mlp_dim = 16",
        "loop.LoopConfig.total_steps = 4",
        "loop.LoopConfig.evaluate_every = 4",
        "loop.LoopConfig.checkpoint_every = 4",
        "optimizers.OptimizerConfig.warmup_steps = 2",
        "batches.SeqioConfig.batch_size = 32",
    ]
    monkeypatch.setenv("TIGER_GIN", "\n".join(tiny))
    try:
        assert cli.main(["run.py", *words]) == 0
        made = artifacts.load_manifest(tmp_path / "runs" / "books" / "recommender")
    finally:
        gin.clear_config()
        seqio.TaskRegistry.remove("tiger_books")
    assert made.stage == "train_recommender"


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("tasks/README.md", "import tiger_jax.input_pipeline.batches\n", ""),
        (
            "docs/t5x.md",
            "from __gin__ import dynamic_registration\nimport tasks.tiger\n"
            "from tiger_jax.input_pipeline import batches\n",
            "batches.SeqioConfig.task = %MIXTURE_OR_TASK_NAME",
        ),
    ],
)
def test_gin_of_the_documents_registers_a_task(
    tmp_path, monkeypatch, name, before, after
):
    monkeypatch.chdir(tmp_path)
    make_workdir(tmp_path / "runs" / "books")
    (block,) = _blocks("gin", name)
    try:
        gin.parse_config(before + block + after)
        assert gin.get_configurable(SeqioConfig)().task == "tiger_books"
        assert len(_examples("tiger_books", "train", shuffle=False)) == 850
    finally:
        gin.clear_config()
        seqio.TaskRegistry.remove("tiger_books")


def test_the_commands_of_the_readme_run(workdir, tmp_path):
    (command,) = _blocks("sh")
    words = command.split()[1:]
    words[words.index("runs/demo")] = str(workdir)
    output = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=True
    ).stdout
    assert "850 examples in train" in output
    assert "example 2" in output


def test_the_environment_names_the_work_directory(workdir, monkeypatch):
    """The work directory comes from the environment when a task is used."""
    monkeypatch.delenv("TIGER_WORKDIR", raising=False)
    with pytest.raises(InputError, match="set TIGER_WORKDIR"):
        _examples("tiger_demo", "train", shuffle=False)
    monkeypatch.setenv("TIGER_WORKDIR", str(workdir))
    assert len(_examples("tiger_demo", "train", shuffle=False)) == 850


def test_a_rebuilt_work_directory_is_read_again(tmp_path):
    register_tiger_task("tiger_rebuilt", str(make_workdir(tmp_path, seed=0)))
    before = _examples("tiger_rebuilt", "test", shuffle=False)
    make_workdir(tmp_path, seed=1)
    assert _examples("tiger_rebuilt", "test", shuffle=False) != before


def test_a_task_yields_exactly_the_pairs_of_the_histories(workdir):
    register_tiger_task("tiger_small", str(workdir))
    histories = small_histories()
    layout = TokenLayout(CODEBOOK_SIZES, 2000)
    tokens = layout.tokens_of(small_table().codes)
    hashes = hash_user_ids([f"user-{u}" for u in range(histories.num_users)])
    users = layout.user_tokens(hashes)

    def example(user: int, items: np.ndarray) -> tuple:
        inputs = [users[user], *tokens[items[-21:-1]].reshape(-1)]
        return tuple(map(int, inputs)), tuple(tokens[items[-1]].tolist())

    expected = {"train": [], "validation": [], "test": []}
    for user in range(histories.num_users):
        items = histories.of(user)
        for j in range(1, len(items) - 2):
            expected["train"].append(example(user, items[: j + 1]))
        expected["validation"].append(example(user, items[:-1]))
        expected["test"].append(example(user, items))
    for split, pairs in expected.items():
        assert _examples("tiger_small", split, shuffle=False) == pairs
    assert sorted(_examples("tiger_small", "train", seed=3)) == sorted(
        expected["train"]
    )


def test_a_mixture_needs_one_codebook(tmp_path):
    one = str(make_workdir(tmp_path / "one", quantizer=1))
    two = str(make_workdir(tmp_path / "two", quantizer=2))
    register_tiger_task("tiger_one", one)
    register_tiger_task("tiger_two", two)
    with pytest.raises(InputError, match=r"codebooks \w{12} and tiger_two \w{12}:"):
        register_tiger_mixture("tiger_both", {"tiger_one": 1, "tiger_two": 1})
    register_tiger_task("tiger_two", one, num_user_tokens=10)
    with pytest.raises(InputError, match="assign their Semantic IDs with one"):
        register_tiger_mixture("tiger_both", {"tiger_one": 1, "tiger_two": 1})
    with pytest.raises(InputError, match="names no tasks"):
        register_tiger_mixture("tiger_both", {})


def test_a_rate_of_zero_makes_all_examples_equally_likely(workdir):
    register_tiger_task("tiger_small", str(workdir))
    register_tiger_task("tiger_small_too", str(workdir))
    register_tiger_mixture("tiger_mixed", {"tiger_small": 0, "tiger_small_too": 0})
    mixture = seqio.get_mixture_or_task("tiger_mixed")
    assert [mixture.get_rate(task) for task in mixture.tasks] == [850.0, 850.0]


def test_ids_that_do_not_belong_to_the_data_are_refused(tmp_path):
    import shutil

    from tiger_jax.semantic_ids.table import SemanticIdTable
    from tiger_jax.workdir import artifacts

    workdir = make_workdir(tmp_path / "work")
    table = small_table()
    shutil.rmtree(workdir / "semantic_ids")
    run = artifacts.begin(
        workdir, "semantic_ids", stage="assign_semantic_ids", config={}
    )
    ids = tuple(f"other-{n}" for n in range(table.num_items))
    SemanticIdTable(table.codes, table.codebook_sizes, 3, ids).save(run.folder)
    run.commit()
    register_tiger_task("tiger_wrong", str(workdir))
    with pytest.raises(InputError, match="different items"):
        _examples("tiger_wrong", "train")


def test_beam_metrics_are_the_ranks_of_the_target():
    vocabulary = TigerVocabulary(TokenLayout((4, 4), 0))
    metric = make_beam_metric_fn(vocabulary, (1, 5))
    beams = np.zeros((2, 5, 2), np.int32)
    beams[0] = [[1, 5], [2, 5], [3, 5], [4, 5], [1, 6]]
    beams[1, :2] = [[3, 7], [3, 8]]  # then padding: fewer items than beams
    values = metric(["<a_2><b_0>", "<a_0><b_0>"], ["", ""], {"beams": beams})
    # ranks 2 and none: recall@5 = 1/2, ndcg@5 = (1 / log2(2 + 2)) / 2 = 1/4
    assert values == {"recall@1": 0.0, "recall@5": 0.5, "ndcg@5": 0.25}


def test_cutoffs_beyond_the_beams_are_not_reported():
    beams = np.ones((3, 4, 2), np.int32)
    metrics = ranking_metrics(beams, np.ones((3, 2), np.int32))
    assert metrics == {"recall@1": 1.0}


def test_seqio_recognises_the_metric_as_one_of_beams(workdir):
    register_tiger_task("tiger_small", str(workdir))
    task = seqio.get_mixture_or_task("tiger_small")
    assert len(task.predict_with_aux_metric_fns) == 1


def test_a_wrong_command_is_one_line(capsys, tmp_path):
    assert show.main(["--workdir", str(tmp_path), "--task", "tiger_demo"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "run --stage=prepare_data first" in error


def test_whole_histories_have_a_target_at_every_item(workdir):
    task = register_tiger_task(
        "tiger_whole",
        str(workdir),
        num_user_tokens=0,
        num_items=8,
        whole_histories=True,
    )
    source = seqio.TaskRegistry.get(task).source
    train, layout = source.shop.train, source.shop.layout
    tokens = layout.tokens_of(source.shop.table.codes)
    expected = []
    for user in range(train.num_users):
        if len(history := train.of(user)) > 1:
            read, wanted = history[:-1][-8:], history[1:][-8:]
            pair = (tokens[read].ravel().tolist(), tokens[wanted].ravel().tolist())
            expected.append(tuple(map(tuple, pair)))
    dataset = seqio.get_mixture_or_task(task).get_dataset(
        {"inputs": 32, "targets": 32}, split="train", num_epochs=1, shuffle=True, seed=1
    )
    found = [
        (tuple(e["inputs"].tolist()), tuple(e["targets"].tolist()))
        for e in dataset.as_numpy_iterator()
    ]
    assert sorted(found) == sorted(expected)
    assert source.num_pairs("train") == len(expected)
    held_out = seqio.get_mixture_or_task(task).get_dataset(
        {"inputs": 32, "targets": 4}, split="validation", num_epochs=1, shuffle=False
    )
    targets = [e["targets"].tolist() for e in held_out.as_numpy_iterator()]
    assert targets == tokens[source.shop.validation.targets].tolist()
    with pytest.raises(InputError, match="num_user_tokens = 0"):
        register_tiger_task("x", str(workdir), whole_histories=True)
