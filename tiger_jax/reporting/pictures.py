"""Every picture of the report, from whatever parts a work directory has."""

import re

import numpy as np

from tiger_jax.data.prepared import PreparedData
from tiger_jax.reporting import (
    code_facts,
    code_plots,
    data_plots,
    figures,
    result_plots,
    sections,
    tables,
    training_plots,
)
from tiger_jax.reporting.workdir_parts import WorkdirParts
from tiger_jax.semantic_ids.table import SemanticIdTable

# What is drawn of a stage's metrics: panel -> {name in metrics.jsonl: in the legend}.
RQVAE_PANELS = {
    "Loss": {r"train/loss": "loss"},
    "Reconstruction error": {r"train/reconstruction_error": "error"},
    "Codebook perplexity": {r"train/perplexity_(\d+)": r"level \1"},
    "Share of codewords used": {r"train/use_(\d+)": r"level \1"},
}
RECOMMENDER_PANELS = {
    "Loss": {r"train/loss": "training", r"validation/loss": "validation"},
    "Validation": {r"validation/(recall@10|ndcg@10)": r"\1"},
    "Codeword accuracy in training": {r"train/correct_level_(\d+)": r"level \1"},
    "Examples per second": {r"train/examples_per_s": "examples/s"},
}


def draw_pictures(parts: WorkdirParts, shown_items: int) -> list[figures.Picture]:
    """Draws what there is data for."""
    pictures = []
    if parts.data is not None:
        pictures += _data_pictures(parts.data, shown_items)
    if parts.table is not None:
        pictures += _code_pictures(parts.table, parts.data)
    pictures += _training_pictures(parts)
    if parts.metrics is not None:
        pictures += _result_pictures(parts)
    return pictures


def _data_pictures(data: PreparedData, shown_items: int) -> list[figures.Picture]:
    counts = np.bincount(data.histories.items, minlength=data.num_items)
    return [
        figures.render(
            "history_lengths",
            data_plots.history_lengths(data.histories.lengths, shown_items),
            alt="Histogram of the number of items in a user's history",
            caption=f"The recommender sees the last {shown_items} items of a history: "
            "orange bars are seen whole.",
        ),
        figures.render(
            "popularity",
            data_plots.popularity(counts),
            alt="Interactions by item rank, and the share held by popular items",
            caption="Left: how often the most, second most, … popular item occurs. "
            "Right: the share of all interactions that the most popular items hold.",
        ),
    ]


def _code_pictures(
    table: SemanticIdTable, data: PreparedData | None
) -> list[figures.Picture]:
    pictures = [
        figures.render(
            "codebook_use",
            code_plots.codebook_use(
                table.codes, table.codebook_sizes, table.num_levels
            ),
            alt="Items per codeword at each level, most used first",
            caption="Dashed: what every codeword would have if all were used alike.",
        )
    ]
    if data is None or data.num_items != table.num_items:
        return pictures
    categories = data.category_of_items()
    if not any(categories):
        return pictures
    pictures.append(
        figures.render(
            "categories_by_first_code",
            code_plots.categories_by_first_code(table.codes[:, 0], categories),
            alt="Stacked bars: the categories of the items behind each first code",
            caption="One bar is one first code. A bar of one colour is a code that "
            "stands for one category, though no category was ever given to the "
            "quantizer as such.",
        )
    )
    if table.num_levels > 1:
        deeper = code_facts.narrowest_categories(data)
        pictures.append(
            figures.render(
                "categories_by_second_code",
                code_plots.categories_by_second_code(
                    table.codes[:, 0], table.codes[:, 1], deeper
                ),
                alt="Stacked bars: the categories behind second codes",
                caption="The four fullest first codes; one bar is one of their second "
                "codes (the fullest ones), coloured by its items' narrowest category.",
            )
        )
    return pictures


def _training_pictures(parts: WorkdirParts) -> list[figures.Picture]:
    pictures = []
    if panels := _panels(parts.rqvae_curves, RQVAE_PANELS):
        pictures.append(
            figures.render(
                "rqvae_training",
                training_plots.curves(panels),
                alt="Training curves of the quantizer",
                caption="Perplexity: how many codewords would tell as much if all were "
                "used alike. A collapsing codebook shows as a falling one.",
            )
        )
    if panels := _panels(parts.recommender_curves, RECOMMENDER_PANELS):
        pictures.append(
            figures.render(
                "recommender_training",
                training_plots.curves(panels, mark_best=("recall@10", "ndcg@10")),
                alt="Training curves of the recommender",
                caption="Dots: the best on validation. Codeword accuracy: that of the "
                "likeliest codeword, given the true ones before it.",
            )
        )
    return pictures


def _panels(
    curves: dict[str, training_plots.Curve], panels: dict[str, dict[str, str]]
) -> list[tuple[str, dict[str, training_plots.Curve]]]:
    """Finds the curves of each panel by the patterns of their names."""
    found = []
    for title, patterns in panels.items():
        named = {}
        for pattern, label in patterns.items():
            for name in sorted(curves):
                if match := re.fullmatch(pattern, name):
                    named[match.expand(label)] = curves[name]
        if named:
            found.append((title, named))
    return found


def _result_pictures(parts: WorkdirParts) -> list[figures.Picture]:
    pictures = []
    for table in sections.result_tables(parts):
        if table["split"] == "validation":
            continue
        pictures.append(
            figures.render(
                f"results_{table['split']}",
                result_plots.comparison(table["rows"], "recall@10"),
                alt=f"Recall@10 of every method on {table['title']}",
                caption="Lines are 95 % bootstrap intervals over users.",
            )
        )
    groups = (parts.details or {}).get("by_target_count")
    if groups:
        names = [
            *(tables.BASELINE_NAMES.get(n, n) for n in groups["baselines"]),
            "TIGER",
        ]
        values = [*groups["baselines"].values(), groups["tiger"]]
        pictures.append(
            figures.render(
                "recall_by_popularity",
                result_plots.by_group(
                    names,
                    [
                        f"{name}\n({size:,} users)"
                        for name, size in zip(
                            groups["groups"], groups["sizes"], strict=True
                        )
                    ],
                    dict(zip(names, values, strict=True)),
                    title="Recall@10 by how often the target occurs in training",
                    x="training interactions of the target",
                ),
                alt="Recall@10 of each method for rare and for popular targets",
                caption="Rare items are where recommenders differ most.",
            )
        )
    return pictures
