"""What a run was made by: commit, package versions, devices and the gin in force."""

import contextlib
import functools
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tiger_jax

_PACKAGES = (
    "jax jaxlib flax optax orbax-checkpoint numpy gin-config scikit-learn pyarrow "
    "tensorflow seqio sentence-transformers torch"
).split()
_devices: list[Any] = []  # that this process has said it computes on


def note_devices(devices: Sequence[Any]) -> None:
    """Remembers the JAX devices that this process computes on.

    Asking JAX for them only to write them down would start it where a stage doesn't
    use it, and take a device that another process is using.
    """
    _devices[:] = devices


def describe_environment() -> dict[str, Any]:
    """Commit, package versions, devices and the gin in force."""
    devices = f"{os.cpu_count()} CPU cores"
    if _devices:
        one = _devices[0]
        devices = f"{len(_devices)} × {one.device_kind} ({one.platform})"
    environment = {
        "commit": code_version(),
        "python": sys.version.split()[0],
        "packages": package_versions(),
        "devices": devices,
    }
    if gin := sys.modules.get("gin"):
        environment["gin"] = gin.config_str()
        environment["operative_gin"] = gin.operative_config_str()
    return environment


@functools.cache
def code_version() -> str:
    """The commit this code runs from (``+changes`` if edited), or the version."""
    root = Path(__file__).resolve().parents[2]
    version = tiger_jax.__version__
    if not (root / ".git").exists():
        return version
    try:
        git = ["git", "-C", str(root)]
        run = functools.partial(
            subprocess.run, capture_output=True, text=True, timeout=10, check=True
        )
        commit = run([*git, "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        changes = run([*git, "status", "--porcelain", "-uno"]).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{commit}+changes" if changes else commit


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that decide results, where installed."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
