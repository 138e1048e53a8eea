"""Takes the pictures of README from a demo's report, in headless Chromium.

make demo
PYTHONPATH=.:tests .venv/bin/python docs/site/pictures.py runs/demo
"""

import argparse
import base64
import io
from pathlib import Path

import browser
from PIL import Image

IMAGES = Path(__file__).resolve().parents[1] / "images"
WIDTH, MAX_BYTES, COLORS = 1280, 150_000, 160
BOX = """const box = document.querySelector(arguments[0]).getBoundingClientRect();
return {x: box.x + scrollX, y: box.y + scrollY, width: box.width, height: box.height}"""


def take(window: browser.Browser, name: str, box: dict[str, float]) -> None:
    """Writes a part of the page as PNG, in few colours."""
    shot = window.devtools(
        "Page.captureScreenshot", captureBeyondViewport=True, clip={"scale": 1, **box}
    )
    picture = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
    path = IMAGES / f"{name}.png"
    picture.quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    assert size <= MAX_BYTES, f"{path} has {size:,} bytes"
    print(f"{path.name}: {picture.width} x {picture.height}, {size:,} bytes")


def take_both(window: browser.Browser, page: Path, theme: str) -> None:
    """What the report says of the Semantic IDs, and their tree, gone into."""
    window.resize(WIDTH, 900, dark=theme == "dark")
    window.open(page.resolve().as_uri())
    window.run("document.querySelector('#codes figure:last-of-type').scrollIntoView()")
    first = window.run(BOX, "#codes")
    last = window.run(BOX, "#codes figure:last-of-type")
    height = last["y"] + last["height"] - first["y"] + 8
    take(window, f"report-{theme}", {**first, "height": height})
    window.run("document.getElementById('tree').scrollIntoView()")
    window.wait_for("window.shownTree")
    window.click(".tree-children button")
    window.type(".tree-bar input", "comfort")
    window.wait_for("shownTree.state.lit.found.length")
    window.run("document.activeElement.blur()")
    first, last = window.run(BOX, ".tree-bar"), window.run(BOX, ".tree-body")
    low = last["y"] + last["height"]
    around = {"x": first["x"] - 16, "y": first["y"] - 10, "width": first["width"] + 32}
    take(window, f"browser-{theme}", {**around, "height": low - first["y"] + 20})
    assert not window.log()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=Path)
    report = parser.parse_args().workdir / "report" / "index.html"
    with browser.open_browser() as opened:
        for scheme in ("light", "dark"):
            take_both(opened, report, scheme)
