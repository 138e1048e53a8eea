"""Generated parts of Markdown files, between a pair of marks."""

from pathlib import Path


def write_between(file: Path, name: str, text: str) -> None:
    """Replaces what stands between <!-- name --> and <!-- /name --> in a file.

    Raises:
        ValueError: The file has no such marks, or has them more than once.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    old = file.read_text(encoding="utf-8")
    if (
        old.count(begin) != 1
        or old.count(end) != 1
        or old.index(end) < old.index(begin)
    ):
        raise ValueError(f"{file} needs one {begin} and, after it, one {end}")
    before, _, rest = old.partition(begin)
    after = rest.partition(end)[2]
    file.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")
