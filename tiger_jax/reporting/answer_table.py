"""A list of recommendations as lines that fit a terminal."""

from rich.cells import cell_len

from tiger_jax.recommending.catalogue import Catalogue
from tiger_jax.recommending.histories_wanted import Wanted
from tiger_jax.recommending.requests import Answer
from tiger_jax.reporting.tables import shorten

HISTORY_SHOWN = 5
TITLE_WIDTH = 70
ID_WIDTH = 14


def format_answer(wanted: Wanted, answer: Answer, catalogue: Catalogue) -> str:
    """What a user had, is recommended and, where known, took next."""

    def show(item_id: str) -> str:
        number = catalogue.number_of[item_id]
        title = shorten(catalogue.titles[number], TITLE_WIDTH)
        category = catalogue.categories[number]
        if not category:
            return title
        gap = " " * (TITLE_WIDTH - cell_len(title))
        return f"{title}{gap}  {shorten(category, 24)}"

    lines = [shorten(wanted.user, TITLE_WIDTH)]
    lines += [f"  note: {note}" for note in wanted.notes]
    if answer.unknown_items:
        shown = ", ".join(shorten(i, 20) for i in answer.unknown_items[:5])
        more = len(answer.unknown_items) - 5
        lines.append(
            f"  left out, not in the catalogue: {shown}"
            f"{f', and {more} more' if more > 0 else ''}"
        )
    had = [item_id for item_id in wanted.history if item_id in catalogue.number_of]
    earlier = len(had) - HISTORY_SHOWN
    if had:
        lines.append(f"  had {earlier} earlier items, then" if earlier > 0 else "  had")
        lines += [f"         {show(item_id)}" for item_id in had[-HISTORY_SHOWN:]]
        lines.append("  TIGER recommends (score, item id, title)")
    else:
        lines.append("  no known item in the history: the most popular items instead")
    for place, item in enumerate(answer.items, 1):
        mark = "✓" if item.item_id == wanted.target else " "
        mark = "+" if item.is_new and mark == " " else mark
        item_id = shorten(item.item_id, ID_WIDTH)
        known_by = f"{item.score:8.3f}  {item_id}" + " " * (
            ID_WIDTH - cell_len(item_id)
        )
        lines.append(f"  {place:4d} {mark} {known_by}  {show(item.item_id)}")
    if any(item.is_new for item in answer.items):
        lines.append("  + an item that the training hasn't seen")
    if answer.merged == "share":
        lines.append(
            "  new items are spread through the list: their scores can't be compared "
            "with the others'"
        )
    if wanted.target is not None:
        found = any(item.item_id == wanted.target for item in answer.items)
        lines.append("  took next" + (" (found)" if found else " (not found)"))
        lines.append(f"         {show(wanted.target)}")
    return "\n".join(line.rstrip() for line in lines)
