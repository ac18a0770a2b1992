"""Plan page: one self-contained HTML file to look at a plan before anything is written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.errors import SourceError
from patchloom.location import Location
from patchloom.planning.plans import Plan
from patchloom.planning.views import PlaneView, plane_view
from patchloom.run.drawing import histogram_drawing
from patchloom.run.markup import bars, document, many, named, pair, table, tiles, times
from patchloom.run.pricing import price
from patchloom.run.thumbnails import (
    MaskLook,
    Thumbnail,
    budget_of,
    mask_look,
    thumbnail,
)
from patchloom.run.view_drawing import LEFT_COLOUR, SPLITS, view_drawing
from patchloom.run.wording import as_bytes, worded
from patchloom.table import html_table

__all__ = ["glance", "plan_page", "write_plan_page"]

MOST_IMAGES = 24
"""Images that are drawn; of more than these a choice is, spread evenly."""

_PATCHES = 24_000
"""Patches that a page draws one by one."""
_PIXELS = 2_400_000
"""Characters of all pictures of pixels."""
_ROWS = 10_000
"""Images that the table of counts names."""
_COUNT = 2**22
"""Patches of a plan whose chunks are counted for the page."""
_GLANCE = 300
"""Patches that a notebook draws."""


def write_plan_page(
    plan: Plan,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    cost: Mapping[str, object] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Write `plan_page` to a path or any fsspec URL; what stood there is replaced.

    Raises
    ------
    WriteError
        If the target refuses.
    """
    if cost is None and plan.n_patches <= _COUNT:
        cost = _priced(plan)
    made = plan_page(plan, title=title, cost=cost)
    Location.of(path, storage_options).write("", made.encode())


def _priced(plan: Plan) -> dict[str, str] | None:
    """What a plan costs, in words; None if its stores cannot be asked now."""
    try:
        return {label: text for _, label, text in price(plan).rows()}
    except (SourceError, OSError):
        return None


def plan_page(
    plan: Plan, *, title: str | None = None, cost: Mapping[str, object] | None = None
) -> str:
    """A page with the images, and what the plan takes of them, drawn over coarse pixels.

    Of each image at most the bytes of `budget_of` are fetched, its mask included.

    Parameters
    ----------
    plan
        Any plan; also one over images that cannot be read now.
    title
        Its heading.
    cost
        Figures to show as its cost, by name; by default those of ``plan.figures()``.

    Returns
    -------
    str
        HTML without scripts that refers to nothing outside itself.
    """
    counts = _counts(plan)
    n = len(plan.images)
    shown = range(n) if n <= MOST_IMAGES else (np.arange(MOST_IMAGES) * n // MOST_IMAGES).tolist()
    most = min(2_000, _PATCHES // max(1, len(shown)))
    side = 640 if len(shown) == 1 else 480 if len(shown) <= 6 else 320
    budgets = [budget_of(plan.images[index], len(shown)) for index in shown]
    looks = [_look(plan, *each, most, side) for each in zip(shown, budgets, strict=True)]
    heading = title or "Plan of training patches"
    figures = plan.figures(count=plan.n_patches <= _COUNT)
    parts = [
        _head(heading, plan),
        _tiles(plan, counts, figures),
        _images(plan, looks, counts),
        pair(_coverage(plan, looks), _reasons(plan)),
        _classes(plan, counts),
        pair(_cost(figures if cost is None else cost, given=cost is not None), _settings(plan)),
        "</main>",
        f"<footer>Plan fingerprint <code>{escape(plan.fingerprint)}</code>. At most "
        f"{as_bytes(max(budgets, default=0))} of each image were fetched for this page, which "
        "refers to nothing outside itself.</footer>",
    ]
    return document(heading, parts)


def glance(plan: Plan) -> str:
    """What a notebook shows: key figures and the first image's patches; reads nothing."""
    rows = {label: text for _, label, text in worded(plan.figures(count=False))}
    shown = html_table("Plan", rows)
    if not plan.images:
        return shown
    image = plan.images[0]
    drawn = view_drawing(plane_view(plan, 0, _GLANCE), image.id, plan.fingerprint[:8])
    more = f", the first of {len(plan.images):,} images" if len(plan.images) > 1 else ""
    if len(plan.split_names) > 1:
        more += "; " + ", ".join(
            f'<span style="border-bottom:3px solid {SPLITS[k % len(SPLITS)][0]}">{escape(name)}'
            "</span>"
            for k, name in enumerate(plan.split_names)
        )
    return (
        f'<div style="display:flex;flex-wrap:wrap;gap:16px;align-items:flex-start">{shown}'
        f'<figure style="margin:0;width:320px;max-width:100%">{drawn}<figcaption>'
        f"{escape(image.id)}{more}; pixels are not read here: plan.to_html(path)"
        "</figcaption></figure></div>"
    )


# -- counting -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Counts:
    """Patches by image and by split."""

    kept: npt.NDArray[np.int64]
    """int64[images]"""
    left: npt.NDArray[np.int64]
    """Candidates that were left out: int64[images]."""
    split: npt.NDArray[np.int64]
    """int64[images, splits]"""
    counted: int
    """Patches whose split was asked for; fewer than all in a plan of very many."""


def _counts(plan: Plan) -> _Counts:
    cells, n = plan.cells, len(plan.images)
    kept = np.diff(cells.rows_of(cells.bounds)) if len(cells) else np.zeros(n, np.int64)
    offered = [len(plan.patching.get_patch_indices(k)) for k in range(n)]
    left = np.maximum(np.asarray(offered, np.int64) - kept, 0)
    names = plan.split_names
    if len(names) == 1:
        return _Counts(kept, left, kept[:, None], plan.n_patches)
    split = np.zeros((n, len(names)), np.int64)
    counted = 0
    for part in plan.walk():
        found = plan.split_of(part)
        split[part.image] += np.bincount(found[found >= 0], minlength=len(names))
        counted += len(part)
        if counted >= _COUNT:
            break
    return _Counts(kept, left, split, counted)


# -- looking ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Look:
    """One image of the page."""

    view: PlaneView
    pixels: Thumbnail | None
    mask: MaskLook | None
    notes: list[str]
    share: npt.NDArray[np.float64] | None
    """Coverage of each listed patch: float64[n]."""
    nbytes: int
    """Stored bytes that came back."""


def _look(plan: Plan, index: int, budget: int, most: int, side: int) -> _Look:
    image = plan.images[index]
    view = plane_view(plan, index, most)
    # The mask first: what it leaves goes to the pixels.
    mask, told_of_mask, spent = mask_look(image, view, budget // 3)
    pixels, told = thumbnail(image, view, budget - spent, side)
    share = None
    if mask is not None and mask.is_exact:
        share = mask.share(view.low, view.high, image.layout.space.shape)
    spent += 0 if pixels is None else pixels.nbytes
    notes = [note for note in (told, told_of_mask) if note]
    return _Look(view, pixels, mask, notes, share, spent)


# -- the parts ----------------------------------------------------------------------------


def _head(title: str, plan: Plan) -> str:
    from patchloom import __version__

    size = times(plan.patch_shape) if plan.images else ""
    return (
        f'<header><p class="brand">patchloom {escape(__version__)}</p><h1>{escape(title)}</h1>'
        f"<p>{plan.n_patches:,} patches of {size} ({escape(plan.dtype.name)}) from "
        f"{many(len(plan.images), 'image')}; nothing is written yet</p></header><main>"
    )


def _tiles(plan: Plan, counts: _Counts, figures: Mapping[str, Any]) -> str:
    left = sum(plan.rejected.values())
    offered = plan.n_patches + left
    empty = int((counts.kept == 0).sum())
    shown = [
        (f"{plan.n_patches:,}", "patches kept", f"of {offered:,} candidates"),
        (f"{left:,}", "left out", f"{left / offered:.1%} of the candidates" if offered else ""),
        (
            f"{len(plan.images):,}",
            "image" if len(plan.images) == 1 else "images",
            f"{empty:,} of them without a patch" if empty else "each with patches",
        ),
    ]
    if "chunks_needed" in figures:
        chunks = sum(image.grid.n_chunks for image in plan.images)
        shown.append(
            (f"{figures['chunks_needed']:,}", "chunks needed", f"of {chunks:,} in these images")
        )
        shown.append(
            (
                f"{figures['read_amplification']:.2f}",
                "decodes a needed chunk",
                f"{many(figures['chunk_reads'], 'decode')} in {many(plan.n_tasks, 'task')}",
            )
        )
    else:
        memory = as_bytes(plan.runs.peak_memory)
        shown.append((f"{plan.n_tasks:,}", "tasks", f"at most {memory} each"))
    shown.append(
        (
            as_bytes(figures["bytes_output"]),
            "output",
            f"before compression, in {many(plan.n_shards, 'shard')}",
        )
    )
    return tiles(shown)


def _images(plan: Plan, looks: Sequence[_Look], counts: _Counts) -> str:
    n = len(plan.images)
    hidden = n - len(looks)
    told = ""
    if hidden:
        told = (
            f"<p>{len(looks)} of {n:,} images, spread evenly over their order; {hidden:,} are not "
            "shown, the table below counts them all.</p>"
        )
    most = max(1, _PIXELS // max(1, len(looks)))
    figures = "".join(_figure(plan, look, k, most) for k, look in enumerate(looks))
    kind = "single" if len(looks) == 1 else "many" if len(looks) > 6 else "few"
    return (
        f'<section class="views"><h2>The images</h2>{told}{_legend(plan, looks)}'
        f'<div class="plates {kind}">{figures}</div>{_by_image(plan, counts)}</section>'
    )


def _legend(plan: Plan, looks: Sequence[_Look]) -> str:
    items = []
    drawn = [look for look in looks if look.view.drawn]
    for k, name in enumerate(plan.split_names if drawn else ()):
        colour, dashes = SPLITS[k % len(SPLITS)]
        broken = f' stroke-dasharray="{dashes}"' if dashes else ""
        items.append(
            (
                f"split-{k}",
                f'<svg class="swatch" aria-hidden="true" viewBox="0 0 26 16"><rect x="1.5" y="1.5" '
                f'width="23" height="13" fill="{colour}" fill-opacity=".25" stroke="{colour}" '
                f'stroke-width="2"{broken}/></svg>',
                f"{name}, kept",
            )
        )
    if len(drawn) < len(looks):
        items.append(("density", '<i class="heat"></i>', "kept, by chunk: few to many"))
    if any(look.view.n_left for look in drawn):
        items.append(
            (
                "left",
                '<svg class="swatch" aria-hidden="true" viewBox="0 0 26 16"><rect x="1" y="1" '
                f'width="24" height="14" fill="none" stroke="{LEFT_COLOUR}"/><path d="M4 15L14 1M10'
                f' 15L20 1M16 15L25 3" stroke="{LEFT_COLOUR}"/></svg>',
                "left out",
            )
        )
    if any(look.pixels is not None and not look.pixels.known.all() for look in looks):
        items.append(("pixels", '<i class="swatch blank"></i>', "not read"))
    items.append(("chunks", '<i class="swatch grid"></i>', "chunk borders"))
    if any(look.mask is not None for look in looks):
        items.append(("mask", '<i class="swatch border"></i>', "mask; outside is shaded"))
    if any(look.pixels is not None for look in looks):
        items.append(("pixels", '<i class="swatch photo"></i>', "pixels"))
    boxes = "".join(
        f'<label><input type="checkbox" class="show-{name}" checked>{sign} {escape(text)}</label>'
        for name, sign, text in items
    )
    return f'<p class="layers">{boxes}</p>'


def _figure(plan: Plan, look: _Look, position: int, most: int) -> str:
    view = look.view
    image = plan.images[view.image]
    drawn = view_drawing(
        view, image.id, str(position), pixels=look.pixels, mask=look.mask, most=most
    )
    facts = [f"{image.axes} {times(image.shape)}"]
    if image.layout.n_samples > 1:
        facts.append(f"sample {view.sample:,} of {image.layout.n_samples:,}")
    deep = view.plane is not None and image.layout.space.shape[0] > 1
    if deep:
        facts.append(f"plane z = {view.plane:,} of {image.layout.space.shape[0]:,}")
    listed = int(view.kept.sum())
    here = " here" if deep or image.layout.n_samples > 1 else ""
    if view.drawn:
        facts.append(f"{view.n_kept:,} kept{here}")
    else:
        facts.append(
            f"{view.n_kept:,} kept{here}, too many to draw one by one: the colour is how many each "
            f"chunk owns, at most {int(view.density.max(initial=0)):,}"
        )
    if view.n_left:
        n = len(view.kept) - listed
        part = f", {n:,} of them drawn" if view.drawn and n < view.n_left else ""
        facts.append(f"{view.n_left:,} left out{here}{part}")
    if look.pixels is not None and look.pixels.level != image.level:
        facts.append(f"pixels of level {look.pixels.level}")
    if look.mask is not None and not look.mask.is_exact:
        facts.append("mask of a coarser level")
    if look.nbytes:
        facts.append(f"{as_bytes(look.nbytes)} fetched")
    notes = "".join(f'<span class="note">{escape(note)}.</span>' for note in look.notes)
    return (
        f"<figure>{drawn}<figcaption><b>{escape(image.id)}</b> {escape('; '.join(facts))}."
        f"{notes}</figcaption></figure>"
    )


def _by_image(plan: Plan, counts: _Counts) -> str:
    names = plan.split_names if len(plan.split_names) > 1 else ()
    whole = counts.counted == plan.n_patches
    head = ["image", "shape", "chunks", "candidates", "kept", "left out", *(names if whole else ())]
    rows = []
    for k, image in enumerate(plan.images[:_ROWS]):
        kept, left = int(counts.kept[k]), int(counts.left[k])
        rows.append(
            [
                escape(image.id),
                times(image.shape),
                f"{image.grid.n_chunks:,}",
                f"{kept + left:,}",
                f"{kept:,}",
                f"{left:,}",
                *(f"{v:,}" for v in counts.split[k].tolist() if names and whole),
            ]
        )
    missing = len(plan.images) - len(rows)
    caption = "Counts of all images" if not missing else f"Counts of the first {len(rows):,} images"
    return (
        f"<details{' open' if 1 < len(rows) <= 8 else ''}><summary>Counts by image</summary>"
        f"{table(caption, rows, head)}</details>"
    )


def _coverage(plan: Plan, looks: Sequence[_Look]) -> str:
    found = [(look.view.kept, look.share) for look in looks if look.share is not None]
    if not found:
        if all(image.mask is None for image in plan.images):
            return ""
        return (
            "<section><h2>Coverage</h2><p>The masks are larger than what may be read for a page; "
            "the manifest of the store will hold the coverage of each patch.</p></section>"
        )
    none = np.zeros(0)
    kept = np.concatenate([none, *(share[taken] for taken, share in found)])
    left = np.concatenate([none, *(share[~taken] for taken, share in found)])
    everything = len(kept) == plan.n_patches and len(left) == sum(plan.rejected.values())
    over = (
        "all candidates"
        if everything
        else f"a sample: {len(kept):,} kept patches and {len(left):,} candidates that are left "
        f"out, those listed of {many(len(found), 'image')} above"
    )
    threshold = float(plan.min_coverage)
    line = (
        f"The line is the least that is kept, {threshold:g}. "
        if threshold
        else "No least coverage was asked for. "
    )
    least = plan.min_pixels
    also = f"At least {least:,} pixels were asked for besides. " if least else ""
    return (
        "<section><h2>Coverage</h2><figure>"
        f"{histogram_drawing(kept, left, threshold)}<figcaption>How much of each patch its mask "
        f"covers, over {over}; computed exactly, at the mask's own resolution. {line}{also}Hollow "
        "bars are left out.</figcaption></figure></section>"
    )


def _reasons(plan: Plan) -> str:
    left = sum(plan.rejected.values())
    offered = plan.n_patches + left

    def row(name: str, n: int) -> list[str]:
        return [name, f"{n:,}", f"{n / offered:.2%}" if offered else "-"]

    rows = [
        row("kept", plan.n_patches),
        *(row(escape(str(why)), int(n)) for why, n in plan.rejected.items()),
        row("<b>candidates</b>", offered),
    ]
    return (
        "<section><h2>Kept and left out</h2>"
        f"{table('Every candidate is counted once', rows, ['', 'patches', 'share'])}</section>"
    )


def _classes(plan: Plan, counts: _Counts) -> str:
    parts = []
    if len(plan.split_names) > 1 or plan.split_names != ("train",):
        sums = counts.split.sum(0).tolist()
        told = (
            "Kept patches by split"
            if counts.counted == plan.n_patches
            else f"By split, of the first {counts.counted:,} patches"
        )
        parts.append(bars("Splits", told, dict(zip(plan.split_names, sums, strict=True))))
    if plan.class_counts:
        parts.append(bars("Classes", "Kept patches by class", plan.class_counts))
    return pair(*parts)


def _cost(figures: Mapping[str, object], given: bool) -> str:
    rows = [[named(key, words), text] for key, words, text in worded(_unfolded(figures))]
    told = "What it will take, known before any pixel is read"
    if not given and "chunks_needed" not in figures:
        told += "; plan.figures() also counts chunks and decodes"
    return f"<section><h2>Cost</h2>{table(told, rows)}</section>"


def _unfolded(figures: Mapping[str, object]) -> dict[str, object]:
    """Figures inside figures, by both their names; reasons stay together."""
    found: dict[str, object] = {}
    for key, value in figures.items():
        if isinstance(value, Mapping) and key not in ("rejected", "skipped"):
            found.update({f"{key}_{name}": v for name, v in _unfolded(value).items()})
        elif value is None:
            found[key] = "not known"
        else:
            found[key] = value
    return found


def _settings(plan: Plan) -> str:
    rows = []
    for key, value in plan.settings.items():
        inner = value if isinstance(value, Mapping) else {"": value}
        for name, one in inner.items():
            if one is not None:
                words = f"{key} {name}".strip().replace("_", " ")
                text = times(one) if isinstance(one, list | tuple) else str(one)
                rows.append([escape(words), as_bytes(int(text)) if key == "memory" else text])
    return f"<section><h2>Settings</h2>{table('What was asked for', rows)}</section>"
