"""The command line as a stranger meets it: every call in a fresh process."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import gin
import pytest

from tiger_jax import cli
from tiger_jax.errors import InputError, LockedError, flag
from tiger_jax.stage_table import PIPELINE
from tiger_jax.workdir import artifacts, remote
from tiger_jax.workdir.lock import hold_workdir
from tiger_jax.workdir.store import Store

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


SMALL_SHOP = [
    "--gin.synthetic.SyntheticShopConfig.num_items=60",
    "--gin.synthetic.SyntheticShopConfig.num_users=80",
    "--gin.synthetic.SyntheticShopConfig.max_history=12",
    "--gin.synthetic.SyntheticShopConfig.items_per_series=5.0",
]


def _run_here(*arguments):
    try:
        return cli.main(["run.py", *arguments])
    finally:
        gin.clear_config()


def test_help_says_what_the_flags_are_and_exits_with_0():
    done = run("--help")
    assert done.returncode == 0
    for name in "stage workdir data_dir embeddings gin_file gin.NAME".split():
        assert f"--{name}" in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "tiger_jax", "--help"],
        ["run.py", "--stage=prepare_data", "--workdir={}"],
        ["-m", "benchmarks", "--help"],
        ["-m", "faults", "--list"],
    ],
)
def test_without_a_reader_it_ends_quietly_and_keeps_results(command, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    command = [word.replace("{}", str(tmp_path)) for word in command]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=writer,
        stderr=writer,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths},
        check=False,
    )
    os.close(writer)
    assert done.returncode == 0
    if "--stage=prepare_data" in command:
        assert (tmp_path / "data" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage=fly"], "there is no stage 'fly'"),
        (["--no_such_flag=1"], "no_such_flag"),
        (["extra"], "unexpected argument 'extra'"),
        (["--data_dir=nowhere"], "--data_dir=nowhere is not a folder"),
        (["--embeddings=nowhere.npy"], "--embeddings=nowhere.npy is not a file"),
        (["--stage=prepare_dta"], "'prepare_dta': did you mean prepare_data?"),
        (["--gin_file=nowhere.gin"], "--gin_file=nowhere.gin is neither a file"),
        (["--gin_file=experiments/own_dta.gin"], "mean experiments/own_data.gin?"),
        (["--gin.x"], "must read --gin.NAME=VALUE"),
        (["--gin.NoSuch.thing=1"], "NoSuch"),
        (["--gin.prepare_data.no_such_option=1"], "no_such_option"),
        (["--gin.prepare_data.seed=]"], "seed is ']': it must be of the type int"),
        (["--gin.prepare_data.seed=(1,"], "never closed in 'prepare_data.seed = (1,'"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(arguments, message, tmp_path):
    done = run(*arguments, f"--workdir={tmp_path / 'work'}")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    error = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert message in error[0]
    assert not (tmp_path / "work" / "data").exists()


def test_stages_may_have_spaces_between_them():
    names = "prepare_data, embed_items".split(",")
    assert cli.choose_stages(names) == ("prepare_data", "embed_items")


def test_a_stage_without_its_input_names_the_stage_to_run_first(tmp_path):
    done = run("--stage=embed_items", f"--workdir={tmp_path}")
    assert done.returncode == 2
    assert "--stage=prepare_data first" in done.stderr


def test_a_disk_that_fails_is_one_line(tmp_path):
    done = run("--stage=prepare_data", "--workdir=/dev/null/x", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "Not a directory" in done.stderr


def test_gin_bindings_on_the_command_line_are_split_off():
    bindings, rest = cli._take_gin_bindings(
        ["run.py", "--gin.a.B.c='x=1'", "--stage=evaluate", "-gin.SEED=3"]
    )
    assert bindings == ["a.B.c = 'x=1'", "SEED = 3"]
    assert rest == ["run.py", "--stage=evaluate"]
    assert cli._take_gin_bindings(["--gin.a.b=false"])[0] == ["a.b = False"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("recommend.title", "shampoo"),
        ("recommend.title", 'toy story; it\'s "A"'),
        ("recommend.title", "1984"),
        ("recommend.title", "[limited] mug (new)"),
        ("recommend.title", "[50% off] mug"),
        ("recommend.title", "'til dawn"),
        ("recommend.title", "@home"),
        ("recommend.title", "(1,"),
        ("recommend.title", "None"),
        ("recommend.histories", "/tmp/my files/a.jsonl"),
        ("files.FilesConfig.unknown_items", "drop"),
        ("rqvae.RqVaeConfig.codebook_sizes", (32, 32)),
        ("prepare_data.expected", None),
    ],
)
def test_a_flag_binds_what_it_says_through_a_shell(name, value):
    (argument,) = shlex.split(flag(name, value))
    bindings, _ = cli._take_gin_bindings([argument])
    try:
        cli.parse_gin([], bindings)
        assert gin.query_parameter(name) == value
    finally:
        gin.clear_config()


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        (["SEEED = 3"], "nothing refers to a macro 'SEEED': did you mean SEED?"),
        (["WIDTH = 3"], "nothing refers to a macro 'WIDTH'"),
        (
            ["train_sasrce/loop.LoopConfig.total_steps = 5"],
            "nothing refers to a scope 'train_sasrce': did you mean train_sasrec?",
        ),
        (["mine/loop.LoopConfig.total_steps = 5"], "refers to a scope 'mine'"),
        (["prepare_data.seed = %SEDE"], "for 'SEDE/gin.macro': did you mean SEED?"),
        (
            ["train_rqvae.quantizer = @quantizers.ResidualKmeans()"],
            "'@quantizers.ResidualKmeans': did you mean quantizers.ResidualKMeans?",
        ),
        (["SEED = 'three'"], ".seed is 'three': it must be of the type int"),
        (["SEED = 1.5"], ".seed is 1.5: it must be of the type int"),
        (["loop.LoopConfig.total_steps = 1e3"], "total_steps is 1000.0: it must be"),
        (["rqvae.RqVaeConfig.codebook_sizes = 32"], "codebook_sizes is 32: it must"),
        (["loop.LoopConfg.total_steps = 3"], "did you mean loop.LoopConfig.total_step"),
        (["loop.LoopConfig.totl_steps = 3"], "did you mean loop.LoopConfig.total_step"),
        (["recomend.k = 3"], "did you mean recommend.k?"),
        (["recommend.k = 'many'"], "recommend.k is 'many': it must be of the type int"),
        (["recommend.title = 1984"], "recommend.title is 1984: it must be"),
        (["train_rqvae.accept_poor_codebooks = 'false'"], "must be of the type bool"),
    ],
)
def test_a_misspelt_binding_names_what_was_meant(bindings, message):
    try:
        with pytest.raises(InputError, match=re.escape(message)):
            cli.parse_gin([], bindings)
    finally:
        gin.clear_config()


def test_a_files_own_macros_are_refused_only_as_near_misses(tmp_path):
    own = tmp_path / "own.gin"
    own.write_text("WIDTH = 3\nSEED = 5\n")
    try:
        cli.parse_gin([str(own)], [])
        own.write_text("SEDD = 3\n")
        with pytest.raises(InputError, match="did you mean SEED"):
            cli.parse_gin([str(own)], [])
    finally:
        gin.clear_config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"include 'experiments/own_dta.gin'\n", "mean experiments/own_data.gin?"),
        (b"recommend.exclude_seen = false\n", "token 'false': did you mean False?"),
        (b"\xef\xbb\xbfSEED = 3\n", "own.gin must be UTF-8 text without"),
        (b"recommend.title = 'Cr\xe8me'\n", "own.gin must be UTF-8 text without"),
    ],
)
def test_a_gin_files_fault_names_what_was_meant(tmp_path, text, message):
    own = tmp_path / "own.gin"
    own.write_bytes(text)
    try:
        with pytest.raises(InputError, match=re.escape(message)):
            cli.parse_gin([str(own)], [])
    finally:
        gin.clear_config()


def test_only_the_users_own_bindings_are_called_unused(tmp_path, capsys):
    own = tmp_path / "own.gin"
    own.write_text("LoopConfig.total_steps = 7\nloop.LoopConfig.patience = 3\n")
    files = ["experiments/own_data.gin", str(own)]
    bindings = ["recommend.k = 3", "files.FilesConfig.title = 'name'"]
    try:
        cli.parse_gin(files, bindings)
        named = cli._bound_by_user(files, bindings)
        cli._warn_of_unused_bindings(PIPELINE, named)
    finally:
        gin.clear_config()
    said = re.findall("the gin binding ([^ ]+)", capsys.readouterr().out)
    assert [name.rpartition(".")[2] for name in said] == [
        "title",
        "patience",
        "total_steps",
    ]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_output_of_any_encoding_takes_any_text(encoding):
    code = "from tiger_jax.progress import say; say('\\u5496\\xe9\\udc80 done')"
    for tqdm in ("", "import tqdm; "):
        done = subprocess.run(
            [sys.executable, "-c", tqdm + code],
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )
        assert "\\u5496" in done.stdout.decode(encoding)
        assert done.stdout.decode(encoding).endswith(" done\n")


@pytest.mark.parametrize(
    "name", ["lr:1", "~who is this", "lr=[1]", "ü*?", "{b}%s\n'q\" $x\\"]
)
def test_a_work_directory_may_have_any_name(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _run_here("--stage=prepare_data", f"--workdir={name}", *SMALL_SHOP) == 0
    assert (tmp_path / name / "data" / "manifest.json").is_file()


def test_a_name_that_is_no_utf_8_is_one_line(tmp_path, capsys):
    workdir = os.fsdecode(os.fsencode(tmp_path) + b"/n\xff")
    assert _run_here("--stage=prepare_data", f"--workdir={workdir}") == 2
    assert r"n\udcff' isn't UTF-8" in capsys.readouterr().err


def test_a_run_in_a_store_makes_what_it_makes_on_a_disk(tmp_path, monkeypatch, capsys):
    url, stages = f"memory://{tmp_path.name}/run", "--stage=prepare_data,embed_items"
    monkeypatch.setenv("TIGER_CACHE", str(tmp_path / "here"))
    assert _run_here(stages, f"--workdir={tmp_path / 'disk'}", *SMALL_SHOP) == 0
    assert _run_here(stages, f"--workdir={url}", *SMALL_SHOP) == 0
    monkeypatch.setenv("TIGER_CACHE", str(tmp_path / "another machine"))
    capsys.readouterr()
    assert _run_here(stages, f"--workdir={url}", *SMALL_SHOP) == 0
    assert capsys.readouterr().out.count("up to date") == 2
    copy = remote.RemoteWorkdir(url).local
    for name in ("data", "embeddings"):
        there = artifacts.load_manifest(copy / name).content_hash
        assert there == artifacts.load_manifest(tmp_path / "disk" / name).content_hash


def test_seeds_in_a_store_share_their_data_there(tmp_path, monkeypatch):
    url = f"memory://{tmp_path.name}/run"
    few = ["--gin.train_rqvae.quantizer=@quantizers.ResidualKMeans()"]
    few += ["--gin.quantizers.ResidualKMeans.codebook_sizes=(4, 4)"]
    few += ["--gin.train_rqvae.accept_poor_codebooks=True", *SMALL_SHOP]
    monkeypatch.setenv("TIGER_CACHE", str(tmp_path / "here"))
    first = "--stage=prepare_data,embed_items"
    assert _run_here(first, f"--workdir={url}", "--seeds=3,4", *few) == 0
    monkeypatch.setenv("TIGER_CACHE", str(tmp_path / "another machine"))
    last = "--stage=train_rqvae"
    assert _run_here(last, f"--workdir={url}", "--seeds=3,4", *few) == 0
    folders = {name.rpartition("/")[0] for name in Store(url).names()}
    made = {"data", "embeddings", "seeds/3/rqvae", "seeds/4/rqvae"}
    assert made <= folders
    assert not any(name.startswith("seeds/3/data") for name in folders)


def test_data_and_gin_files_may_lie_in_a_store(tmp_path, monkeypatch):
    monkeypatch.setenv("TIGER_CACHE", str(tmp_path / "here"))
    shop = Store(f"memory://{tmp_path.name}/shop")
    rows = [f"{u},{i},{u + i}" for u in range(8) for i in range(8)]
    shop.write(
        "interactions.csv", "\n".join(["user_id,item_id,timestamp", *rows]).encode()
    )
    items = [f"{i},Thing {i}" for i in range(8)]
    shop.write("items.csv", "\n".join(["item_id,title", *items]).encode())
    shop.write("own.gin", b"include 'experiments/own_data.gin'\nSEED = 5\n")
    workdir = tmp_path / "work"
    code = _run_here(
        "--stage=prepare_data",
        f"--data_dir={shop.url}",
        f"--gin_file={shop.url}/own.gin",
        f"--workdir={workdir}",
    )
    assert code == 0
    assert artifacts.load_manifest(workdir / "data").config["seed"] == 5


def test_several_processes_refuse_a_store(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TIGER_CACHE", str(tmp_path))
    monkeypatch.setattr("jax.distributed.is_initialized", lambda: True)
    assert _run_here("--stage=prepare_data", "--workdir=memory://bucket/run") == 2
    assert "for a run of one process" in capsys.readouterr().err


@pytest.mark.parametrize("is_worker", [False, True])
def test_a_server_holds_no_work_directory(tmp_path, monkeypatch, is_worker):
    """Nor what ran before it, which its workers don't run again."""
    found = []
    for stage in ("export", "serve"):

        def look(context, stage=stage):
            try:
                with hold_workdir(context.workdir):
                    found.append((stage, "free"))
            except LockedError:
                found.append((stage, "held"))

        monkeypatch.setattr(f"tiger_jax.stages.{stage}.{stage}", look)
    if is_worker:
        monkeypatch.setenv("TIGER_SERVE_LISTENER", "3")
    assert _run_here("--stage=export,serve", f"--workdir={tmp_path}") == 0
    assert found == [("export", "held")] * (not is_worker) + [("serve", "free")]


def test_a_missing_package_is_one_line(monkeypatch, capsys):
    def needs(argv):
        raise ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow.parquet")

    monkeypatch.setattr(cli, "_run", needs)
    assert cli.main(["run.py"]) == 2
    assert "pip install -e '.[data,serve]'" in capsys.readouterr().err


def test_what_storage_did_is_found_in_other_errors():
    from tiger_jax.errors import storage_problem

    full = OSError(28, "No space left on device", "somewhere")
    behind = RuntimeError("could not save")
    behind.__cause__ = full
    assert storage_problem(behind) == "No space left on device (somewhere)"
    quoted = ValueError("write failed: No space left on device [errno 28]")
    assert storage_problem(quoted) == "No space left on device (ValueError)"
    assert storage_problem(ValueError("no such item")) is None
