"""The report: one HTML page that needs nothing but itself."""

import base64
import dataclasses
import datetime
import hashlib
from typing import Any

from tiger_jax.reporting import figures, paper_rows, sections, tables
from tiger_jax.reporting.data_pictures import code_pictures, data_pictures
from tiger_jax.reporting.result_pictures import result_pictures, training_pictures
from tiger_jax.reporting.workdir_parts import FOLDERS, WorkdirParts


@dataclasses.dataclass(frozen=True)
class Report:
    """A finished page and its pictures."""

    html: str
    pictures: tuple[figures.Picture, ...]


def build_report(parts: WorkdirParts, *, shown_items: int, seed: int) -> Report:
    """Draws every picture that the parts allow and fills in the page.

    What a stage that hasn't run would have shown is named as not run. Titles and
    ids come from whoever made the data: the template escapes them, its script sets
    them as text, and the page forbids other scripts and anything from outside.

    Args:
        shown_items: Items of a history that the recommender sees.
    """
    data, table, details = parts.data, parts.table, parts.details or {}
    result_tables = sections.result_tables(parts)
    pictures = data_pictures(data, shown_items) if data is not None else []
    pictures += code_pictures(table, data) if table is not None else []
    pictures += training_pictures(parts.rqvae_curves, parts.recommender_curves)
    if parts.metrics is not None:
        groups = details.get("by_target_count")
        pictures += result_pictures(result_tables, parts.metrics, groups)
    known, _ = paper_rows.recognise_data(data)
    quality = None
    if table is not None:
        quality = sections.describe_table(table, data, seed)
    environment = make_environment()
    script, digest = inline_script(environment, "code_tree.js", "report.js")
    html = environment.get_template("report.html").render(
        script=script,
        script_hash=digest,
        tree=sections.pack_tree_of(parts),
        next_step=sections.next_step(parts),
        title=known.title if known else data.name if data else "TIGER",
        folders=FOLDERS,
        manifests=parts.manifests,
        known=known,
        data=data,
        pictures={picture.name: picture for picture in pictures},
        headline=sections.headline(parts),
        warnings=sections.warnings(parts, quality),
        result_tables=result_tables,
        settings=(parts.metrics or {}).get("settings", {}),
        details=details,
        splits=sections.SPLITS,
        samples=sections.choose_samples(parts, seed),
        quality=quality,
        errors=parts.reconstruction_errors,
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
    environment.filters |= {
        "base64": lambda data: base64.b64encode(data).decode(),
        "metric_title": tables.metric_title,
        "interval": tables.format_interval,
        "signed": lambda x: f"{x:+.4f}".replace("-", "−").replace("0.", "."),
        "day_and_time": lambda iso: f"{datetime.datetime.fromisoformat(iso):%F %H:%M}",
        "duration": _duration,
    }
    environment.globals["format_value"] = tables.format_value
    return environment


def build_demo_page() -> str:
    """The page at a server's `/`, which fetches from that server alone."""
    environment = make_environment()
    script, digest = inline_script(environment, "code_tree.js", "demo.js")
    template = environment.get_template("demo.html")
    return template.render(script=script, script_hash=digest)


def inline_script(environment: Any, *names: str) -> tuple[str, str]:
    """Scripts as one, and its hash, by which a page's policy lets it alone run."""
    sources = (environment.loader.get_source(environment, name)[0] for name in names)
    script = "\n".join(sources)
    digest = hashlib.sha256(script.encode()).digest()
    return script, base64.b64encode(digest).decode()


def write_report(report: Report, folder: Any) -> None:
    """Writes ``index.html`` and one SVG per picture (the light one) into a folder."""
    (folder / "index.html").write_text(report.html, encoding="utf-8")
    for picture in report.pictures:
        (folder / f"{picture.name}.svg").write_bytes(picture.light)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"
