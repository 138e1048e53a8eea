"""Takes the pictures of README from a demo's report and page, in headless Chromium.

make demo pictures
"""

import argparse
import base64
import io
from pathlib import Path

import browser
from PIL import Image
from served import run_in_thread

from tiger_jax.data.prepared import PreparedData
from tiger_jax.recommending.recommender import Recommender
from tiger_jax.recommending.versions import CatalogueVersions
from tiger_jax.reporting.page import build_demo_page

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


def take_report(window: browser.Browser, page: Path, theme: str) -> None:
    """What the report says of the Semantic IDs, and their tree, gone into."""
    window.open(page.resolve().as_uri())
    window.run("document.querySelector('#codes figure:last-of-type').scrollIntoView()")
    first = window.run(BOX, "#codes")
    last = window.run(BOX, "#codes figure:last-of-type")
    top, bottom = first["y"] + 1, last["y"] + last["height"] + 12
    inner = {"x": first["x"] + 1, "width": first["width"] - 2}
    take(window, f"report-{theme}", {**inner, "y": top, "height": bottom - top})
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


def take_page(
    window: browser.Browser, url: str, history: list[str], theme: str
) -> None:
    """The server's page: a history, five recommendations, how they were found."""
    window.open(url)
    window.wait_for("document.querySelectorAll('#results li').length", seconds=60)
    for place, item in enumerate(history, 1):
        window.run("call(`/items/${encodeURIComponent(arguments[0])}`).then(add)", item)
        window.wait_for(f"document.querySelectorAll('#history li').length === {place}")
    window.run("$('k').value = 5; $('k').dispatchEvent(new Event('input'))")
    window.wait_for("document.querySelectorAll('#recommended li').length === 5")
    window.click("#explained summary")
    window.wait_for("document.querySelectorAll('#beams g.on').length > 5", seconds=90)
    window.run("window.scrollTo(0, 0)")
    window.wait_for("document.querySelectorAll('#contributions tr').length > 5")
    top, card = (
        window.run(BOX, "main")["y"] + 10,
        window.run(BOX, "section:has(#explained)"),
    )
    height = card["y"] + card["height"] + 10 - top
    window.resize(WIDTH, round(height), dark=theme == "dark")  # the list is as tall
    take(window, f"page-{theme}", {"x": 0, "y": top, "width": WIDTH, "height": height})
    assert not window.log()


def main() -> None:
    """Serves the bundle of a work directory, and takes all pictures in both themes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=Path)
    workdir = parser.parse_args().workdir
    data = PreparedData.load(workdir / "data")
    history = [data.item_ids[n] for n in data.histories.of(0)[:3]]
    versions = CatalogueVersions.open(workdir / "bundle")
    recommender = Recommender.load(versions)
    with (
        run_in_thread((recommender, versions), page=build_demo_page()) as served,
        browser.open_browser() as window,
    ):
        for theme in ("light", "dark"):
            window.resize(WIDTH, 900, dark=theme == "dark")
            take_page(window, served.url, history, theme)
            window.resize(WIDTH, 900, dark=theme == "dark")
            take_report(window, workdir / "report" / "index.html", theme)


if __name__ == "__main__":
    main()
