"""Stage `update_catalogue`: items join, leave or change -> `bundle.catalogue/`."""

from collections.abc import Mapping, Sequence
from typing import Any

import gin

from tiger_jax.data.readers.files import FilesConfig
from tiger_jax.errors import InputError, flag
from tiger_jax.progress import say
from tiger_jax.recommending import new_items, updates
from tiger_jax.recommending.bundle import BUNDLE
from tiger_jax.recommending.hub import bundle_at
from tiger_jax.recommending.versions import KEEP, CatalogueVersions
from tiger_jax.stages.context import RunContext
from tiger_jax.workdir.reading import path_of

_SHOWN = 5
_UNKNOWN = (None, "", [])


@gin.configurable(module="stages")
def update_catalogue(
    context: RunContext,
    *,
    add: str | None = None,
    remove: str | Sequence[Any] | None = None,
    attributes: str | Mapping[str, Any] | None = None,
    roll_back: int | None = None,
    bundle: str | None = None,
    keep: int = KEEP,
    files: FilesConfig = FilesConfig(),
) -> None:
    """Changes the catalogue of an exported bundle, without training or compiling.

    Writes a version beside the bundle, which `Recommender.load` takes from then on.
    Without anything to do, lists the versions that are kept.

    Args:
        add: A file of items, as in a shop's folder. With --embeddings, a vector for
            each in the file's order; otherwise the bundle's encoder embeds them.
        remove: Item ids, or a file with a column of them.
        attributes: A file of items whose further columns are set, empty cells left
            as they are; or {item id: {field: value}}, where None takes a value back
            and the item id "*" stands for all items without a value.
        roll_back: A version to go back to; 0 is the bundle's own.
        bundle: The bundle's folder; the work directory's if None.
        keep: Newest versions that stay on disk.
    """
    folder = context.workdir / BUNDLE
    if bundle:
        folder = bundle_at(bundle, to_change=True)
    versions = CatalogueVersions.open(folder, keep=keep)
    changes = (add, remove, attributes)
    if roll_back is not None and any(change is not None for change in changes):
        raise InputError("update_catalogue.roll_back and a change exclude each other")
    if context.embeddings is not None and add is None:
        raise InputError(
            "--embeddings are of the items in update_catalogue.add: name those too"
        )
    if roll_back is not None:
        _, report = versions.roll_back(versions.load(), roll_back)
    elif all(change is None for change in changes):
        _list(versions)
        return
    else:
        _, report = versions.change(
            versions.load(),
            add=(
                new_items.read_new_items(add, files, context.embeddings) if add else ()
            ),
            remove=_read_ids(remove or (), files),
            attributes=_read_attributes(attributes or {}, files),
        )
    versions.prune()
    _tell(report, versions)


def _list(versions: CatalogueVersions) -> None:
    for info in versions.kept():
        mark = "in force" if info.version == versions.newest else ""
        say(
            f"version {info.version:6d}  {info.num_items:9,} items  {info.what:24}  "
            f"{info.made:25}  {mark}".rstrip()
        )


def _tell(report: updates.UpdateReport, versions: CatalogueVersions) -> None:
    for item in report.added[:_SHOWN]:
        say(f"  {item.item_id} has the Semantic ID {item.semantic_id}: {item.title}")
    if len(report.added) > _SHOWN:
        say(f"  and {len(report.added) - _SHOWN:,} more")
    for note in report.notes:
        say(f"  note: {note}")
    say(
        f"update_catalogue: version {report.version} in {versions.folder}: "
        f"{len(report.added):,} items added, {len(report.removed):,} removed, "
        f"{report.attributes_set:,} attributes set; {report.num_items:,} items, room "
        f"for {report.capacity:,}"
    )


def _read_ids(remove: str | Sequence[Any], files: FilesConfig) -> Sequence[str]:
    if isinstance(remove, str):
        if not path_of(remove).exists():
            raise InputError(
                f"update_catalogue.remove: {remove} is not a file; an item's id is "
                f"written as {flag('update_catalogue.remove', [remove])}"
            )
        return new_items.read_items(remove, files)[0]["item_id"].to_pylist()
    if any(type(item_id) not in (int, str) for item_id in remove):
        raise InputError(
            "update_catalogue.remove is a file's name or a list of ids in quotes"
        )
    return [str(item_id) for item_id in remove]


def _read_attributes(
    attributes: str | Mapping[str, Any], files: FilesConfig
) -> Mapping[str, Any]:
    if not isinstance(attributes, str):
        return attributes
    return {
        row.pop("item_id"): {k: v for k, v in row.items() if v not in _UNKNOWN}
        for row in new_items.read_items(attributes, files)[0].to_pylist()
    }
