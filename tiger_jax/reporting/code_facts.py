"""What a report says about Semantic IDs."""

from typing import Any

from tiger_jax.data.prepared import PreparedData
from tiger_jax.semantic_ids.quality import describe_codes
from tiger_jax.semantic_ids.table import SemanticIdTable


def describe_table(
    table: SemanticIdTable, data: PreparedData | None, seed: int = 0
) -> dict[str, Any]:
    """`describe_codes` of a table, with category purity where categories are known."""
    categories = None
    if data is not None and data.num_items == table.num_items:
        categories = data.category_of_items()
    return describe_codes(
        table.codes[:, : table.num_levels],
        table.codebook_sizes[: table.num_levels],
        categories=categories,
        seed=seed,
    )


def narrowest_categories(data: PreparedData) -> list[str]:
    """The last name on each item's first path; "" where it has none."""
    paths = data.items["categories"].to_pylist()
    return [path[0][-1] if path and path[0] else "" for path in paths]
