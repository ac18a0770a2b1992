"""Page: one self-contained HTML file that shows what a plan took and what its store holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from patchloom.errors import StoreError
from patchloom.planning.plans import Plan
from patchloom.run.contact_sheet import (
    limits_by_image,
    limits_of,
    middle,
    picture,
    split_ends,
)
from patchloom.run.drawing import (
    coverage_legend,
    field_drawing,
    histogram_drawing,
    plan_drawing,
)
from patchloom.run.histograms import drawn_channels, histograms_section
from patchloom.run.markup import document, many, named, table, tiles, times
from patchloom.run.pictures import blend, grey_levels, label_colours
from patchloom.run.scene import Scene, decodes_patch_by_patch, scene_of
from patchloom.run.stats_rows import exactness, over_what, rows_of, told
from patchloom.run.wording import as_bytes, worded
from patchloom.store.patch_store import PatchStore

__all__ = ["page"]

_SAMPLES = 12
_RUNS = 4
_IMAGES = 20

Limits = list[tuple[float, float]]


def page(
    plan: Plan,
    store: PatchStore,
    reports: Sequence[Mapping[str, Any]],
    *,
    title: str = "Training patches",
    job: str = "",
    credit: str = "",
) -> str:
    """A page with the image, its mask, the planned patches, samples of them, and all figures.

    Parameters
    ----------
    plan
        What was asked for; its first image is shown.
    store
        The complete store that was made from it.
    reports
        `RunReport.to_dict()` of the runs that made it, in order.
    title
        Its heading.
    job
        Text of the job file, if there is one.
    credit
        Where the image comes from.

    Returns
    -------
    str
        HTML without scripts that refers to nothing outside itself.
    """
    scene = scene_of(plan)
    parts = [
        _head(title, plan, store),
        _tiles(plan, scene, reports),
        _image_section(scene, _limits(store, scene), credit),
        _plan_section(plan, scene),
        _patch_section(store, scene),
        _figures_section(plan, reports),
        _statistics_section(store),
        _next_section(store, job),
    ]
    return document(title, parts)


def _head(title: str, plan: Plan, store: PatchStore) -> str:
    size = " x ".join(str(n) for n in plan.patch_shape)
    return (
        f'<header><p class="brand">patchloom {escape(str(store.attributes["patchloom_version"]))}'
        f"</p><h1>{escape(title)}</h1><p>{plan.n_patches:,} patches of {size} "
        f"({escape(store.attributes['axes'])}, {escape(plan.dtype.name)}) from "
        f"{many(len(plan.images), 'image')}, in "
        f"<code>{escape(store.url)}</code></p></header><main>"
    )


def _tiles(plan: Plan, scene: Scene, reports: Sequence[Mapping[str, Any]]) -> str:
    # Runs that only finished what another began say less than the one that did most.
    did = max(reports, key=lambda r: int(r["n_patches"]), default={})
    left = sum(plan.rejected.values())
    chunks = sum(image.grid.n_chunks for image in plan.images)
    naive = decodes_patch_by_patch(plan)
    least = float(plan.min_coverage)
    asked = f"less than {least:.0%} under the mask" if least else "no coverage was asked for"
    shown = [
        (f"{plan.n_patches:,}", "patches kept", f"of {plan.n_patches + left:,} candidates"),
        (f"{left:,}", "left out", asked),
    ]
    if did:
        shown += [
            (
                f"{did['read_amplification']:.2f}",
                "decodes a needed chunk",
                f"{did['chunk_reads']:,} for {did['chunks_needed']:,} chunks; "
                f"cut one by one: {naive:,}",
            ),
            (
                f"{chunks - plan.chunks_needed:,}",
                "chunks never fetched",
                f"of {chunks:,}: no kept patch needs them",
            ),
            (
                as_bytes(did["bytes_written"]),
                "written",
                f"{many(did['n_shards'], 'shard')}; {as_bytes(did['bytes_read'])} read in "
                f"{many(did['requests'], 'request')}",
            ),
            (f"{did['seconds']:.2f} s", "for the run", many(did["n_tasks"], "Dask task")),
        ]
    return tiles(shown)


def _image_section(scene: Scene, limits: Limits, credit: str) -> str:
    image = scene.image
    facts = [
        f"axes {image.axes}, {times(image.shape)} pixels",
        f"{image.dtype.name}, chunks of {times(image.grid.chunks)}",
    ]
    if image.spacing:
        facts.append(
            ", ".join(f"{a} {v:g} {image.unit.get(a, '')}" for a, v in image.spacing.items())
        )
    if image.channels:
        facts.append("channels " + ", ".join(image.channels))
    if scene.plane is not None:
        facts.append(f"plane z = {scene.plane}")
    if scene.mask is not None:
        scale = times([f"{v:g}" for v in scene.mask.scale])
        facts.append(f"one mask pixel covers {scale} image pixels")
    note = f'<p class="credit">{escape(credit)}</p>' if credit else ""
    masked = scene.mask is not None
    return (
        f'<div class="pair"><section><h2>The image{" and its mask" if masked else ""}</h2><figure>'
        f"{field_drawing(scene, limits)}<figcaption><b>{escape(image.id)}</b>, "
        f"{escape('; '.join(facts))}.{' What lies outside the mask is shaded.' if masked else ''}"
        f"{note}</figcaption></figure></section>"
    )


def _plan_section(plan: Plan, scene: Scene) -> str:
    size = times(plan.patch_size)
    unread = int((~scene.needed).sum())
    layers = (
        ("kept", f"kept ({int(scene.kept.sum()):,})"),
        ("left", f"left out ({int((~scene.kept).sum()):,})"),
        ("chunks", "chunk grid"),
        ("dimmed", "image"),
    )
    boxes = "".join(
        f'<label><input type="checkbox" class="show-{name}" checked> {text}</label>'
        for name, text in layers
    )
    counted = "all candidates" if scene.whole else "the candidates in this picture"
    return (
        "<section><h2>The planned patches</h2><figure>"
        f"{plan_drawing(scene)}"
        f'<figcaption><p class="layers">{boxes}</p><p>One dot a patch, in the colour of its '
        f"coverage {coverage_legend()}; hollow ones are left out. A patch is {size} pixels, a "
        f"chunk {times(scene.chunk)}. Hatched: {unread:,} chunks that no kept patch needs; they "
        "are never fetched.</p></figcaption></figure></section></div>"
        f"<section><h2>Coverage</h2><figure>{_histogram(plan, scene)}"
        f"<figcaption>How much of each patch the mask covers, over {counted}; computed exactly, "
        "at the mask's own resolution. The line is the least that is kept, hollow bars are left "
        "out.</figcaption></figure></section>"
    )


def _histogram(plan: Plan, scene: Scene) -> str:
    kept, left = scene.coverage[scene.kept], scene.coverage[~scene.kept]
    return histogram_drawing(kept, left, float(plan.min_coverage))


def _patch_section(store: PatchStore, scene: Scene) -> str:
    manifest = store.manifest
    n, cards = manifest.num_rows, []
    # Of those that hold a patch: rows between what was appended and what was there may be empty.
    places = np.unique(np.linspace(0, n - 1, _SAMPLES).round().astype(int)) if n else ()
    for place in map(int, places):
        told = {name: manifest[name][place].as_py() for name in manifest.column_names}
        row = told["row"]
        starts = ", ".join(
            f"{name[6:]} {value}" for name, value in told.items() if name.startswith("start_")
        )
        covered = f"coverage {told['coverage']:.2f}"
        limits = limits_of(store, str(told["image_id"]), store[row])
        pictures = picture(
            blend(middle(store[row]), *split_ends(limits)),
            f"Patch {row} of {told['image_id']} at {starts}, {covered}",
        )
        if store.labels is not None:
            labels = middle(np.asarray(store.labels[row]))[0]
            pictures += picture(label_colours(labels), f"Labels of patch {row}")
        cards.append(
            f'<li><div class="pictures">{pictures}</div><p><b>row {row}</b> {starts}<br>{covered}'
            f'<br><code title="patch_id">{told["patch_id"]}</code></p></li>'
        )
    labelled = ", each with its labels" if store.labels is not None else ""
    return (
        f"<section><h2>Patches from the store</h2><p>{len(cards)} of {n:,}, read back "
        f"from the store{labelled}; contrast from the store's own percentiles.</p>"
        f'<ul class="sheet">{"".join(cards)}</ul></section>'
    )


def _figures_section(plan: Plan, reports: Sequence[Mapping[str, Any]]) -> str:
    last = reports[-_RUNS:]
    first = len(reports) - len(last) + 1
    head = ["", *(f"run {first + k}" for k in range(len(last)))] if len(last) > 1 else []
    columns = [worded({k: v for k, v in report.items() if k != "url"}) for report in last]
    texts = [{key: text for key, _, text in column} for column in columns]
    # Reports of older versions tell less.
    runs = [
        [named(key, label), *(text.get(key, "-") for text in texts)]
        for key, label, _ in (columns[-1] if columns else ())
    ]
    planned = [[named(key, label), value] for key, label, value in worded(plan.figures())]
    return (
        '<div class="pair"><section><h2>The plan</h2>'
        f"{table('What it takes and what it will cost, known before any pixel is read', planned)}"
        "</section><section><h2>The run</h2>"
        f"{table('What happened, counted on the workers', runs, head)}</section></div>"
    )


def _statistics_section(store: PatchStore) -> str:
    found = store.statistics
    over = f"Over {over_what(found.attrs['over'], found.attrs['each'])}"
    head, rows = told(rows_of(found.isel(image=slice(_IMAGES))))
    cells = [[escape(first), *rest] for first, *rest in rows]
    caption = f"{over}; {exactness(found)}"
    if found.attrs["over"] == "patches" and found.attrs["exact"]:
        caption += "; from the pass that cut the patches"
    return (
        f"{_histograms(store, over)}<section><h2>Statistics</h2>"
        f"{table(caption, cells, head)}</section>"
    )


def _histograms(store: PatchStore, over: str) -> str:
    """Of what the shards have counted; a store of an older version may have kept numbers only."""
    try:
        kept = store.summaries()
    except StoreError:
        return ""
    q = [float(f"{100 * q:.12g}") for q in store.statistics["quantile"].values.tolist()]
    return histograms_section(drawn_channels(kept, q, store.statistics.attrs["method"]), over)


def _next_section(store: PatchStore, job: str) -> str:
    code = (
        "import patchloom\n\n"
        f"store = patchloom.open_patches({store.url!r})\n"
        "store[0]          # pixels of row 0, channels first\n"
        "store.manifest    # one row a patch: id, image, position, coverage\n"
        "store.statistics  # percentiles, mean, std by image and channel"
    )
    told = f"<h3>The job file</h3><pre><code>{escape(job)}</code></pre>" if job else ""
    return (
        "<section><h2>Go on</h2><h3>Read it back</h3>"
        f"<pre><code>{escape(code)}</code></pre>{told}</section></main>"
        f"<footer>Plan fingerprint <code>{escape(store.fingerprint)}</code>. This page refers to "
        "nothing outside itself.</footer>"
    )


def _limits(store: PatchStore, scene: Scene) -> Limits:
    """Grey levels to stretch the image between: the store's percentiles, else its own."""
    if len(store) and store.statistics.sizes["quantile"]:
        return limits_by_image(store, scene.image.id)
    return [grey_levels(channel) for channel in scene.pixels]
