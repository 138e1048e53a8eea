"""Pages of the site from outside docs/, and links that lead out of it."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "tasks/README.md": "tasks.md",
    "benchmarks/README.md": "benchmarks.md",
}
_LINK = re.compile(r"(?<!!)\[((?:!\[[^\]]*\]\([^)]*\)|[^\]])*)\]\(([^)\s]+)\)")
_NAMED_FENCE = re.compile(r"^( *```\w+) ([\w.]+)$", re.MULTILINE)
_SOURCE = re.compile(r"(?P<before>(?:src|srcset)=\"|!\[[^\]]*\]\()(?P<path>[^\"\s)]+)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that stand elsewhere in the repository."""
    for path, name in OUTSIDE.items():
        text = relink((ROOT / path).read_text(encoding="utf-8"), path, name)
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns a page's links out of docs/ into links to pages, or into text."""
    name = page.file.src_uri
    return (
        markdown if name in OUTSIDE.values() else relink(markdown, f"docs/{name}", name)
    )


def relink(text: str, path: str, name: str) -> str:
    """Rewrites what a document at `path` links to, for the page `name`."""

    def to_page(target: str) -> str | None:
        if re.match(r"\w+:|#", target):
            return target
        file, mark, anchor = target.partition("#")
        place = posixpath.normpath(posixpath.join(posixpath.dirname(path), file))
        page = OUTSIDE.get(place)
        if page is None and place.startswith("docs/") and not place.endswith(".jsonl"):
            page = place.removeprefix("docs/")
        if page is None:
            return None
        return posixpath.relpath(page, posixpath.dirname(name) or ".") + mark + anchor

    def link(found: re.Match[str]) -> str:
        target = to_page(found[2])
        return found[1] if target is None else f"[{found[1]}]({target})"

    def source(found: re.Match[str]) -> str:
        return found["before"] + (to_page(found["path"]) or found["path"])

    def title(found: re.Match[str]) -> str:
        return found[1] + f' title="{found[2]}"' * ("." in found[2])

    # Brackets and parentheses in fenced code are no links.
    parts = re.split(r"(^ *```.*?^ *```$)", text, flags=re.MULTILINE | re.DOTALL)
    parts[1::2] = [_NAMED_FENCE.sub(title, part, count=1) for part in parts[1::2]]
    parts[::2] = [_LINK.sub(link, _SOURCE.sub(source, part)) for part in parts[::2]]
    return "".join(parts)
