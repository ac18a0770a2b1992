"""Contact sheet: patches read back from a store, with their labels over them."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.run.pictures import blend, data_uri, grey_levels, label_colours
from patchloom.store.patch_store import PatchStore

__all__ = ["contact_sheet", "limits_by_image", "limits_of", "middle", "picture", "split_ends"]

Limits = list[tuple[float, float]]
Pixels = npt.NDArray[Any]

_SIDE = 192
"""Pixels of a picture, at most, along each side."""
_FILL, _EDGE = 70, 255
"""Opacity of labels, and of their borders."""


def contact_sheet(store: PatchStore, rows: Mapping[str, Any]) -> str:
    """A list of cards: each a patch, its labels over it, and what its row tells.

    Parameters
    ----------
    store
        What is read.
    rows
        Columns of its manifest for some rows: lists by name.
    """
    columns = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
    cards = "".join(_card(store, row) for row in columns)
    layers = (
        '<p class="layers"><label><input type="checkbox" class="show-over" checked>labels</label>'
        "</p>"
        if store.labels is not None
        else ""
    )
    return f'{layers}<ul class="sheet">{cards}</ul>'


def _card(store: PatchStore, told: Mapping[str, Any]) -> str:
    row, image = int(told["row"]), str(told["image_id"])
    starts = ", ".join(f"{k[6:]} {v:,}" for k, v in told.items() if k.startswith("start_"))
    pixels = store[row]
    low, high = split_ends(limits_of(store, image, pixels))
    what = f"Patch of row {row} of {image} at {starts}"
    shown = picture(_small(blend(middle(pixels), low, high)), what)
    if store.labels is not None:
        labels = _small(middle(np.asarray(store.labels[row]))[0])
        n = len(np.unique(labels[labels != 0]))
        over = _over(labels)
        shown += picture(over, f"Its labels: {n:,}", 'class="over" ')
    facts = [
        f"{name} {told[name]}" for name in ("split", "class") if told.get(name) not in (None, "")
    ]
    deep = f", plane {pixels.shape[1] // 2} of {pixels.shape[1]}" if pixels.ndim == 4 else ""
    return (
        f'<li><div class="stacked">{shown}</div><p><b>row {row:,}</b> {escape(", ".join(facts))}'
        f"<br>{escape(image)}<br>{escape(starts)}{deep}<br>coverage {told['coverage']:.2f}</p></li>"
    )


def _over(labels: Pixels) -> npt.NDArray[np.uint8]:
    """Labels as colours that let pixels through, with borders that do not: uint8[y, x, 4]."""
    edge = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        for step in (-1, 1):
            near = np.roll(labels, step, axis)
            side: list[slice | int] = [slice(None), slice(None)]
            side[axis] = -1 if step == -1 else 0
            near[tuple(side)] = labels[tuple(side)]
            edge |= near != labels
    opacity = np.where(labels != 0, np.where(edge, _EDGE, _FILL), 0).astype(np.uint8)
    return np.concatenate([label_colours(labels), opacity[..., None]], -1)


def _small(pixels: Pixels) -> Pixels:
    """Every so many pixels of a plane [y, x, ...], so that a page stays small."""
    step = max(1, -(-max(pixels.shape[:2]) // _SIDE))
    return pixels[::step, ::step]


def limits_of(store: PatchStore, image: str, pixels: Pixels) -> Limits:
    """Grey levels of each channel of a patch to stretch it between."""
    normalize = store.attributes["job"]["normalize"]
    if normalize is None:
        known = store.statistics.sizes["quantile"]
        found = limits_by_image(store, image) if known else []
        # Where the store knows one grey level only, or none, the patch knows better.
        usable = len(found) == len(pixels) and all(low < high for low, high in found)
        return found if usable else [grey_levels(channel) for channel in pixels]
    # Stored pixels were scaled already.
    ends = (-2.0, 4.0) if normalize == "mean-std" else (0.0, 1.0)
    return [ends] * len(pixels)


def limits_by_image(store: PatchStore, image: str) -> Limits:
    """The outermost percentiles of each channel of an image."""
    table = store.statistics["percentile"].sel(image=image)
    low, high = table.min("quantile").values.tolist(), table.max("quantile").values.tolist()
    return list(zip(low, high, strict=True))


def split_ends(limits: Limits) -> tuple[list[float], list[float]]:
    """Lows and highs apart."""
    return [low for low, _ in limits], [high for _, high in limits]


def middle(patch: Pixels) -> Pixels:
    """The plane in the middle of a patch: [c, y, x] from [c, (z, y,) x]."""
    if patch.ndim == 4:
        return patch[:, patch.shape[1] // 2]
    return patch[:, None] if patch.ndim == 2 else patch


def picture(pixels: npt.NDArray[np.uint8], alt: str, how: str = "") -> str:
    """An image that carries its pixels; `how` is further attributes."""
    height, width = pixels.shape[:2]
    return (
        f'<img {how}src="{data_uri(pixels)}" width="{width}" height="{height}" alt="{escape(alt)}">'
    )
