"""Stage `export`: everything a recommender needs -> `bundle/`, one folder to serve."""

import os
import shutil
from pathlib import Path
from typing import Any

import gin

from tiger_jax.errors import InputError
from tiger_jax.progress import say
from tiger_jax.recommending import bundle, programs, searcher
from tiger_jax.recommending.carry import BEFORE, carry_over
from tiger_jax.recommending.parts import Parts
from tiger_jax.recommending.trust import Signer
from tiger_jax.recommending.versions import CatalogueVersions
from tiger_jax.reporting.model_card import build_model_card
from tiger_jax.stages.context import RunContext
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.durable import sync


@gin.configurable(module="stages")
def export(
    context: RunContext,
    *,
    num_beams: int = 50,
    normalize: str = "auto",
    batch_sizes: tuple[int, ...] = (1, 4, 16),
    max_excluded: int = 64,
    room: float = 1.5,
    carry: bool = True,
    signing_key: str | None = None,
) -> None:
    """Writes the bundle that `Recommender.load` reads.

    Args:
        num_beams: Beams of the search, and the most items a list can have.
        normalize: See `recommendation.SearchConfig`.
        batch_sizes: Queries that a program takes at once; others are filled up.
        max_excluded: Excluded items per request that cost nothing extra.
        room: Factor by which the catalogue can grow before a new export is due.
        carry: Do again, to the new model's catalogue, what the shop did to that of the
            bundle before, which is kept as `bundle-HASH`.
        signing_key: A PEM file with an Ed25519 key, without a password, to sign the
            bundle by, also one that is up to date.
    """
    rising = sorted(set(batch_sizes))
    if not rising or rising[0] < 1 or list(batch_sizes) != rising:
        raise InputError(f"export.batch_sizes must rise from 1 on, not {batch_sizes}")
    if room < 1 or max_excluded < 1:
        raise InputError("export.room and export.max_excluded must be at least 1")
    signer = Signer(signing_key) if signing_key else None
    search = searcher.SearchConfig(num_beams=num_beams, normalize=normalize)
    names = ["data", "embeddings", "semantic_ids", "recommender"]
    if (context.workdir / "rqvae").exists():
        names.insert(2, "rqvae")
    run = artifacts.begin(
        context.workdir,
        bundle.BUNDLE,
        stage="export",
        inputs=names,
        config={
            "format": bundle.FORMAT,
            "search": search,
            "batch_sizes": batch_sizes,
            "max_excluded": max_excluded,
            "room": room,
        },
        opaque=(bundle.CARD,),
    )
    if run.is_current:
        if signer is not None:
            signer.sign(run.final)
        return
    parts = Parts.of_workdir(context.workdir, room=room)
    shapes = programs.Shapes.for_parts(parts, search, batch_sizes, max_excluded)
    say(f"export: {2 * len(batch_sizes)} programs for CPU, GPU and TPU")
    content_hash = bundle.save_bundle(run.folder, parts, shapes)
    card = build_model_card(context.workdir, parts)
    (run.folder / bundle.CARD).write_text(card, encoding="utf-8")
    new = bundle.Bundle(run.final, parts, shapes, content_hash)
    summary: dict[str, Any] = {"items": parts.table.num_items}
    if carry and run.final.exists():
        summary |= _carry_over(run.final, CatalogueVersions(new))
    manifest = run.commit(summary=summary)
    if signer is not None:
        signer.sign(run.final)
    size = sum(file["bytes"] for file in manifest.files.values())
    say(
        f"export: {run.final}, {size / 1e6:.1f} MB, {parts.table.num_items:,} items, "
        f"room for {parts.plan.item_capacity:,}"
    )


def _carry_over(folder: Path, new: CatalogueVersions) -> dict[str, str]:
    """Keeps the bundle before under a name of its own, and its shop's changes.

    Returns:
        What the new one's manifest says of it.
    """
    try:
        old = CatalogueVersions.open(folder)
    except InputError as error:
        say(f"note: nothing is carried over from the bundle before: {error}")
        return {}
    if old.bundle.content_hash == new.bundle.content_hash:  # in another shape
        was = artifacts.load_manifest(folder, verify=False).summary
        return {BEFORE: was[BEFORE]} if BEFORE in was else {}
    kept = folder.with_name(f"{folder.name}-{old.bundle.content_hash[:12]}")
    if not kept.exists():
        half = folder.with_name(f".{kept.name}.copy")
        shutil.rmtree(half, ignore_errors=True)
        shutil.copytree(folder, half, copy_function=os.link)
        for path in (*half.rglob("*"), half):
            sync(path)
        half.rename(kept)
        sync(kept.parent)
    say(f"export: the bundle before is kept, with its versions, as {kept}")
    report = carry_over(old, new)
    if report is not None:
        say(
            f"export: carried over, as version {report.version}: "
            f"{len(report.added):,} items joined, {len(report.removed):,} removed, "
            f"{report.attributes_set:,} values set"
        )
    return {BEFORE: old.bundle.content_hash}
