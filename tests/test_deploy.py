"""What is deployed names only what there is."""

import inspect
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tiger_jax.serving.metrics import Metrics
from tiger_jax.serving.settings import Limits
from tiger_jax.stages.serve import serve

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
FILES = [ROOT / "Dockerfile", ROOT / "SECURITY.md", ROOT / "docs" / "operations.md"]
FILES += sorted(DEPLOY.iterdir())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_flags_paths_and_limits_exist(path):
    text = path.read_text(encoding="utf-8")
    options = {*inspect.signature(serve).parameters}
    for name in re.findall(r"gin\.serve\.(\w+)", text):
        assert name in options, name
    for name in re.findall(r"\bLimits\.(\w+)", text):
        assert hasattr(Limits(), name), name
    for name in re.findall(r"`serve\.(\w+)", text):
        assert name in options, name
    for name in re.findall(r"\]\((?:\.\./)?([\w/]+\.md)\)", text):
        assert (ROOT / name).exists(), name


def test_rules_and_panels_ask_for_metrics_that_there_are():
    known = set()
    for family in Metrics().registry.collect():
        known |= {family.name} | {sample.name for sample in family.samples}
        suffixes = ("_total", "_bucket", "_sum", "_count")
        known |= {family.name + suffix for suffix in suffixes}
    text = (DEPLOY / "alerts.yml").read_text() + (DEPLOY / "dashboard.json").read_text()
    asked = set(re.findall(r"\b(?:tiger|process)_\w+", text)) - {"tiger_jax"}
    assert len(asked) > 12
    assert asked <= known
    rules = re.findall(r"alert: (\w+)", (DEPLOY / "alerts.yml").read_text())
    runbook = (ROOT / "docs" / "operations.md").read_text()
    assert [name for name in rules if name not in runbook] == []
    assert len(json.loads((DEPLOY / "dashboard.json").read_text())["panels"]) > 5


def test_the_image_is_of_a_user_without_rights_and_copies_what_there_is():
    """Docker isn't at hand everywhere; what a linter would say of the file is here."""
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(None, 1) for line in lines if line and line[0] not in " #"]
    kinds = [step[0] for step in steps]
    assert kinds[0] == "ARG"
    assert kinds.count("FROM") == 2
    last = len(kinds) - 1 - kinds[::-1].index("FROM")
    assert "USER" in kinds[last:], "it would run as root"
    assert kinds.index("HEALTHCHECK") > last
    ignored = (ROOT / ".dockerignore").read_text().split()
    for kind, rest in steps:
        if kind == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source.split('/')[0]}" in ignored, source
        if kind in ("ENTRYPOINT", "CMD"):
            assert json.loads(rest), "the form that passes signals on"
    (install,) = (rest for kind, rest in steps if "demo.txt" in rest and kind == "RUN")
    assert install.count("--require-hashes") == 2
    if shutil.which("hadolint"):
        subprocess.run(["hadolint", str(ROOT / "Dockerfile")], check=True)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_takes_the_unit(tmp_path):
    unit = (DEPLOY / "tiger-serve.service").read_text()
    unit = unit.replace("/opt/tiger_jax/.venv/bin/python", "/bin/true")
    path = tmp_path / "tiger-serve.service"
    path.write_text(unit)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if "tiger-serve" in line]
    assert not said, said
