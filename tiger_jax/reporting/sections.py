"""What each section of the report says, as plain values for the template."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from tiger_jax.data.prepared import PreparedData
from tiger_jax.reporting import paper_rows, tables
from tiger_jax.reporting.workdir_parts import FOLDERS, WorkdirParts
from tiger_jax.semantic_ids.quality import MINIMUM_USE

SPLITS = {
    "test": "Test",
    "test_masked": "Test, seen items masked",
    "validation": "Validation",
}
IN_A_SENTENCE = {
    "popularity": "popularity",
    "item_cooccurrence": "item co-occurrence",
    "semantic_knn": "Semantic KNN",
    "sasrec": "SASRec",
}


def known_data(data: PreparedData | None) -> paper_rows.KnownData | None:
    """The public data set this is, if its statistics say so."""
    if data is None:
        return None
    return paper_rows.recognise(
        data.num_users, data.num_items, len(data.histories.items)
    )


def result_tables(parts: WorkdirParts) -> list[dict[str, Any]]:
    """One table a split, each a title, what it means, and its rows."""
    if parts.metrics is None:
        return []
    known = known_data(parts.data)
    published = paper_rows.PUBLISHED[known.name] if known else ()
    intervals = (parts.details or {}).get("baseline_intervals", {})
    meanings = {
        "test": "The headline. Every item of the catalogue competes, also those the "
        "user already has.",
        "test_masked": "Items that the user already has are taken out of the running.",
        "validation": "The item before the last, by which the checkpoint was chosen.",
    }
    found = []
    for split, title in SPLITS.items():
        if split not in parts.metrics:
            continue
        rows = tables.build_result_rows(
            parts.metrics,
            split,
            baseline_intervals=intervals,
            published=() if split == "validation" else published,
            fusion=parts.fusion,
        )
        found.append(
            {
                "split": split,
                "title": title,
                "meaning": meanings[split],
                "rows": rows,
                "is_published": split != "validation" and bool(published),
            }
        )
    return found


def differences(parts: WorkdirParts) -> list[dict[str, str]]:
    """Lines of the table that says which differences are real."""
    return [
        {
            "baseline": row["baseline"],
            "split": SPLITS[row["split"]],
            "difference": _signed(row["difference"]),
            "interval": f"{_signed(row['low'])} to {_signed(row['high'])}",
            "verdict": "better"
            if row["low"] > 0
            else "worse"
            if row["high"] < 0
            else "a draw",
        }
        for row in (parts.details or {}).get("differences", ())
    ]


def headline(parts: WorkdirParts) -> dict[str, Any] | None:
    """The one sentence and the few numbers that a hurried reader should take away."""
    if parts.metrics is None:
        return None
    metrics = parts.metrics
    ours = metrics["test"]["recall@10"]
    baselines = {
        name: splits["test"]["recall@10"]
        for name, splits in metrics["baselines"].items()
        if "test" in splits
    }
    cards = [
        _card("Recall@10", ours, metrics["intervals"].get("test", {}).get("recall@10")),
        _card(
            "NDCG@10",
            metrics["test"]["ndcg@10"],
            metrics["intervals"].get("test", {}).get("ndcg@10"),
        ),
    ]
    if popularity := baselines.get("popularity"):
        cards.append(
            {
                "title": "against popularity",
                "value": f"{ours / popularity:.1f} ×",
                "note": f"whose Recall@10 is {_short(popularity)}",
            }
        )
    if ceiling := (metrics.get("ceiling") or {}).get("recall@10"):
        cards.append(
            {
                "title": "of the best possible",
                "value": f"{ours / ceiling:.0%}",
                "note": f"whose Recall@10 is {_short(ceiling)}",
            }
        )
    sentence = (
        f"For {ours:.1%} of users the item they took next is among the ten that TIGER "
        "recommends from the whole catalogue."
    )
    if comparison := _compare(parts, ours, baselines):
        sentence += f" {comparison}"
    return {"sentence": sentence, "cards": cards}


def warnings(parts: WorkdirParts, quality: Mapping[str, Any] | None) -> list[str]:
    """What a reader must know before believing any number on the page.

    Args:
      parts: What the work directory holds.
      quality: Of the Semantic IDs, from `code_facts.describe_table`.
    """
    found = [
        guard["explanation"]
        for guard in (parts.details or {}).get("guards", ())
        if not guard["is_fine"]
    ]
    for level in quality["levels"] if quality else ():
        if level["use"] < MINIMUM_USE:
            found.append(
                f"level {level['level']} of the Semantic IDs uses "
                f"{level['codewords_used']} of {level['codebook_size']} codewords: "
                "the codebook has collapsed"
            )
    if parts.metrics and parts.metrics["invalid_ids"]:
        found.append(f"{parts.metrics['invalid_ids']:,} recommendations are no items")
    return found


def data_facts(data: PreparedData) -> list[tuple[str, str]]:
    """Names and values of the statistics table."""
    s = data.statistics
    facts = [
        ("Users", f"{data.num_users:,}"),
        ("Items", f"{data.num_items:,}"),
        ("Interactions", f"{len(data.histories.items):,}"),
        ("Density", f"{s['density']:.3%}"),
        (
            "History length",
            f"mean {s['mean_history']:.3f}, median {s['median_history']:g}, "
            f"longest {s['max_history']:,}",
        ),
        ("Training pairs", f"{s['training_pairs']:,} (prefix, next item)"),
        ("Test items never in training", f"{s['test_items_never_in_training']:,}"),
        (
            "Test users who had the target before",
            f"{s['test_users_who_had_the_target_before']:,}",
        ),
    ]
    known = known_data(data)
    facts.insert(
        0,
        (
            "Recognised as",
            f"{known.title}: users, items and interactions are the paper's"
            if known
            else "none of the paper's data sets",
        ),
    )
    return facts


def provenance(parts: WorkdirParts) -> list[dict[str, Any]]:
    """One line a stage: what it made, from what, when, how long it took."""
    rows = []
    for name in FOLDERS:
        manifest = parts.manifests.get(name)
        if manifest is None:
            rows.append({"folder": name, "is_there": False})
            continue
        made = manifest.made
        rows.append(
            {
                "folder": name,
                "is_there": True,
                "stage": manifest.stage,
                "hash": manifest.content_hash[:12],
                "inputs": {k: v[:12] for k, v in manifest.inputs.items()},
                "external": {k: v[:12] for k, v in manifest.external.items()},
                "finished": _day_and_time(made["finished"]),
                "seconds": _duration(made["seconds"]),
                "commit": made["commit"],
                "devices": made["devices"],
                "command": " ".join(made["command"]),
                "summary": manifest.summary,
                "gin": made.get("operative_gin") or made.get("gin", ""),
            }
        )
    return rows


def packages(parts: WorkdirParts) -> dict[str, str]:
    """Versions of what the last finished stage ran on."""
    for name in reversed(FOLDERS):
        if name in parts.manifests:
            made = parts.manifests[name].made
            return {"python": made["python"], **made["packages"]}
    return {}


def _card(title: str, value: float, interval: Sequence[float] | None) -> dict[str, str]:
    note = f"95 % interval {tables.format_interval(interval)}" if interval else ""
    return {"title": title, "value": _short(value), "note": note}


def _short(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−").replace("0.", ".")


def _compare(parts: WorkdirParts, ours: float, baselines: Mapping[str, float]) -> str:
    """Says what does better, worse, or no different within the interval."""
    draws = {
        row["baseline"]
        for row in (parts.details or {}).get("differences", ())
        if row["split"] == "test" and row["low"] <= 0 <= row["high"]
    }
    groups: dict[str, list[str]] = {"more than": [], "as much as": [], "less than": []}
    for key, theirs in baselines.items():
        title = tables.BASELINE_NAMES.get(key, key)
        if title in draws:
            relation = "as much as"
        else:
            relation = "more than" if ours > theirs else "less than"
        groups[relation].append(IN_A_SENTENCE.get(key, title))
    said = [f"{relation} {_join(names)}" for relation, names in groups.items() if names]
    if len(said) > 1:
        said = [", ".join(said[:-1]), said[-1]]
    return f"That is {', and '.join(said)}." if said else ""


def _join(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def _day_and_time(iso: str) -> str:
    return datetime.datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"
