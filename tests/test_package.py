"""The wheel holds what the package needs, and works away from the checkout."""

import configparser
import fnmatch
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TINY_RUN = """
synthetic.SyntheticShopConfig.num_items = 300
synthetic.SyntheticShopConfig.num_users = 400
synthetic.SyntheticShopConfig.max_history = 20
train_rqvae.quantizer = @quantizers.ResidualKMeans()
quantizers.ResidualKMeans.codebook_sizes = (8, 8, 8)
train_recommender.epochs = None
optimizers.OptimizerConfig.warmup_steps = 2
loop.LoopConfig.total_steps = 20
loop.LoopConfig.evaluate_every = 20
loop.LoopConfig.checkpoint_every = 20
evaluate.EvaluateConfig.max_users = 100
"""


def test_every_file_of_the_package_is_named_for_the_wheel():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = setup["options.package_data"]["tiger_jax"].split()
    package = ROOT / "tiger_jax"
    files = [p for p in package.rglob("*") if p.is_file() and p.suffix != ".py"]
    # `rglob` doesn't enter the link; what it leads to is packed under its name.
    files += (package / "gin_configs").rglob("*.gin")
    names = {path.relative_to(package).as_posix() for path in files}
    names = {name for name in names if "__pycache__" not in name}
    assert "gin_configs/base/train_rqvae.gin" in names
    for name in sorted(names):
        assert any(fnmatch.fnmatch(name, p.replace("**/", "*")) for p in patterns), name


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_wheel_runs_the_pipeline_outside_the_checkout(tmp_path):
    """In an environment of its own, whose dependencies are this one's."""
    source = tmp_path / "source"
    skip = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info")
    shutil.copytree(ROOT, source, symlinks=True, ignore=skip)
    build = ["wheel", "--no-deps", "--no-build-isolation", "-q", "-w", "."]
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, *build, str(source)], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {
        "tiger_jax/py.typed",
        "tiger_jax/gin_configs/t5x/tiger.gin",
        "tiger_jax/reporting/templates/report.html",
        "tasks/tiger.py",
    } <= names
    shutil.rmtree(source)

    fresh = tmp_path / "fresh"
    venv.create(fresh, with_pip=False)
    python = fresh / "bin" / "python"
    own = sysconfig.get_path("purelib", vars={"base": str(fresh)})
    install = ["install", "-q", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, "--python", str(python), *install], check=True)
    # Its .pth files, and with them an editable install of this one, are not followed.
    (Path(own) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    for name in ("seqio", "tensorflow", "torch"):  # as if not installed
        missing = f"raise ModuleNotFoundError('no {name}', name='{name}')"
        (Path(own) / f"{name}.py").write_text(missing)
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTHONPATH"
    }
    environment |= {"TIGER_GIN": TINY_RUN, "JAX_PLATFORMS": "cpu"}

    def run(*command: str | Path) -> str:
        options = {"cwd": tmp_path, "env": environment, "text": True}
        done = subprocess.run(command, capture_output=True, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    found = run(python, "-c", "import tiger_jax; print(tiger_jax.__file__)")
    assert Path(found.strip()).is_relative_to(fresh)
    command = fresh / "bin" / "tiger-jax"
    assert "TIGER (this run)" in run(command, "--workdir=runs/demo")
    assert (tmp_path / "runs" / "demo" / "report" / "index.html").is_file()
    # The blocks of the documents, on what this made.
    readme = run(python, "-c", _block("README.md", "python"))
    assert len(readme.splitlines()) >= 11  # a number, and ten items
    run(command, "--stage=export", "--workdir=runs/demo")
    guide = _block("docs/python.md", "python bundle").replace("my_shop", "demo")
    ids = "import tiger_jax; print(*tiger_jax.run('prepare_data').data.item_ids)"
    known = run(python, "-c", ids).splitlines()[-1]
    for written, item in zip(("1", "2", "7"), known.split(), strict=False):
        guide = guide.replace(f'"item {written}"', repr(item))
    run(python, "-c", guide)
    assert list((tmp_path / "runs" / "demo" / "bundle.catalogue").glob("version_*"))


def _block(name: str, kind: str) -> str:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.search(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[1]
