"""The report: one HTML page that needs nothing but itself."""

import base64
import dataclasses
from typing import Any

from tiger_jax.reporting import code_facts, figures, paper_rows, sections, tables
from tiger_jax.reporting.pictures import draw_pictures
from tiger_jax.reporting.sample_users import choose_samples
from tiger_jax.reporting.workdir_parts import WorkdirParts


@dataclasses.dataclass(frozen=True)
class Report:
    """A finished page and its pictures.

    Attributes:
        html: The page; pictures are inside.
        pictures: The same pictures, to lie beside it as files.
    """

    html: str
    pictures: tuple[figures.Picture, ...]


def build_report(parts: WorkdirParts, *, shown_items: int, seed: int) -> Report:
    """Draws every picture that the parts allow and fills in the page.

    What a stage that hasn't run would have shown is named as not run. Titles and
    ids come from whoever made the data: the template escapes them, and the page
    forbids scripts and anything from outside.

    Args:
      parts: What the work directory holds.
      shown_items: Items of a history that the recommender sees.
      seed: Of the choice of sample users.
    """
    pictures = draw_pictures(parts, shown_items)
    by_name = {picture.name: picture for picture in pictures}
    known = sections.known_data(parts.data)
    quality = None
    if parts.table is not None:
        quality = code_facts.describe_table(parts.table, parts.data, seed)
    html = (
        make_environment()
        .get_template("report.html")
        .render(
            title=known.title
            if known
            else (parts.data.name if parts.data else "TIGER"),
            caveat=known.caveat if known else "",
            notes=parts.data.statistics.get("notes", ()) if parts.data else (),
            has=frozenset(parts.manifests),
            pictures=by_name,
            headline=sections.headline(parts),
            warnings=sections.warnings(parts, quality),
            result_tables=sections.result_tables(parts),
            columns=tables.COLUMNS,
            published_columns=paper_rows.METRICS,
            settings=(parts.metrics or {}).get("settings", {}),
            guards=(parts.details or {}).get("guards", ()),
            differences=sections.differences(parts),
            diversity=(parts.details or {}).get("diversity", {}),
            samples=choose_samples(parts, seed),
            quality=quality,
            errors=parts.reconstruction_errors,
            data_facts=sections.data_facts(parts.data) if parts.data else (),
            provenance=sections.provenance(parts),
            packages=sections.packages(parts),
        )
    )
    return Report(html, tuple(pictures))


def make_environment() -> Any:
    """What fills in the templates: escapes all, and is strict about names."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tiger_jax.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    environment.filters["metric_title"] = tables.metric_title
    environment.filters["interval"] = tables.format_interval
    environment.globals["format_value"] = tables.format_value
    return environment


def write_report(report: Report, folder: Any) -> None:
    """Writes ``index.html`` and one PNG a picture (the light one) into a folder."""
    (folder / "index.html").write_text(report.html, encoding="utf-8")
    for picture in report.pictures:
        (folder / f"{picture.name}.png").write_bytes(picture.light)
