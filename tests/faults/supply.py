"""Which packages are pinned, with which hashes, under which licences.

PYTHONPATH=.:tests python -m faults.supply      writes docs/licences.md's table
"""

import dataclasses
import importlib.metadata
import re

from packaging.markers import Marker

from benchmarks.lib import write_between
from faults.campaign import REPOSITORY

DOCUMENT = REPOSITORY / "docs" / "licences.md"
PYTHONS = ("3.11.0", "3.13.0")
# What users install, what only tests need, and what is installed on request.
HASHED = ("core", "demo", "build", "test", "text", "torch")
# Licences whose terms allow to depend on a package from code under Apache-2.0, by
# what packages call them. MPL-2.0 binds the package's own files alone.
_NAMES = {
    "Apache-2.0": (
        "Apache-2.0",
        "Apache Software License",
        "Apache License 2.0",
        "Apache 2.0 License",
    ),
    "Apache-2.0 WITH LLVM-exception": ("Apache-2.0 WITH LLVM-exception",),
    "MIT": ("MIT", "MIT License"),
    "MIT-0": ("MIT-0",),
    "ISC": ("ISC", "ISC License", "ISC License (ISCL)"),
    "BSL-1.0": ("BSL-1.0",),
    "CNRI-Python": ("CNRI-Python",),
    "BSD": ("BSD", "BSD License", "3-Clause BSD License"),
    "BSD-3-Clause": ("BSD-3-Clause", "BSD 3-Clause License"),
    "BSD-2-Clause": ("BSD-2-Clause", "BSD 2-Clause License"),
    "0BSD": ("0BSD",),
    "Zlib": ("Zlib",),
    "CC0-1.0": ("CC0-1.0",),
    "PSF-2.0": ("PSF-2.0", "Python Software Foundation License"),
    "HPND": ("HPND", "MIT-CMU"),
    "MPL-2.0": ("MPL-2.0", "Mozilla Public License 2.0 (MPL 2.0)"),
}
_SPDX = {name: spdx for spdx, names in _NAMES.items() for name in names}
# Whose metadata name none: what their own repository says.
_BY_HAND = {"namex": "Apache-2.0"}


@dataclasses.dataclass(frozen=True)
class Pin:
    """One line of requirements/*.txt."""

    name: str
    version: str
    hashes: tuple[str, ...]
    marker: str = ""

    def is_installed(self) -> bool:
        """On Linux, by the oldest or the newest Python that is pinned for."""
        return not self.marker or any(
            Marker(self.marker).evaluate(
                {"sys_platform": "linux", "python_full_version": python}
            )
            for python in PYTHONS
        )


def read_pins(name: str) -> list[Pin]:
    """The pins of ``requirements/NAME.txt``.

    Raises:
        ValueError: A line pins nothing.
    """
    text = (REPOSITORY / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    lines = text.replace("\\\n", " ").splitlines()
    pins = []
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        match = re.match(
            r"([\w.-]+)(?:\[[\w,-]+\])?==([\w.+!-]+)(?: *;(.*?)(?= +--hash|$))?", line
        )
        if match is None:
            raise ValueError(f"requirements/{name}.txt pins nothing with {line!r}")
        hashes = tuple(re.findall(r"--hash=sha256:([0-9a-f]{64})\b", line))
        pins.append(Pin(match[1], match[2], hashes, (match[3] or "").strip()))
    return pins


def licence_of(package: str) -> str:
    """An SPDX expression of known licences.

    Raises:
        ValueError: The package names none that is known.
    """
    if package in _BY_HAND:
        return _BY_HAND[package]
    metadata = importlib.metadata.metadata(package)
    named = metadata.get("License-Expression") or metadata.get("License") or ""
    first = (named.strip().splitlines() or [""])[0]
    parts = re.split(r" (AND|OR) ", first)
    if "OR" in parts and "AND" not in parts:  # the choice is ours
        parts = [part for part in parts[::2] if part in _SPDX][:1]
    if parts and all(part in _SPDX for part in parts[::2]):
        return " ".join(_SPDX.get(part, part) for part in parts)
    classifiers = metadata.get_all("Classifier") or []
    found = [c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License")]
    known = sorted({_SPDX[name] for name in found if name in _SPDX})
    if not known:
        raise ValueError(f"{package} has no licence that is known: {named!r}, {found}")
    return " AND ".join(known)


def build_table(*, is_whole: bool = True) -> str:
    """Markdown: every pinned package, its version and its licence.

    What isn't installed here (torch and what comes with it) keeps the licence that the
    document has, or "?".

    Raises:
        ValueError: A licence isn't known, and `is_whole` asks for all.
    """
    lines = ["| package | version | licence | needed by |", "|---|---|---|---|"]
    written, first = read_table(), {}
    for name in HASHED:
        for pin in filter(Pin.is_installed, read_pins(name)):
            first.setdefault((pin.name, pin.version), name)
    for (package, version), needed_by in sorted(first.items()):
        try:
            licence = licence_of(package)
        except importlib.metadata.PackageNotFoundError:
            licence = written.get(package, "?")
        if is_whole and not set(re.split(" AND | OR ", licence)) <= set(_NAMES):
            raise ValueError(f"{package} is under {licence!r}: run `make licences`")
        lines.append(f"| {package} | {version} | {licence} | {needed_by} |")
    return "\n".join(lines)


def read_table() -> dict[str, str]:
    """The licences that the document has, by package."""
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w.-]+) \| [\w.+!-]+ \| ([^|]+) \|", text, re.M)
    return dict(rows)


if __name__ == "__main__":
    write_between(DOCUMENT, "licences", build_table(is_whole=False))
