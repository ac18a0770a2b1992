"""Drawings of views: a plane of a plan as SVG that carries its own colours."""

from __future__ import annotations

from html import escape

import numpy as np
import numpy.typing as npt

from patchloom.planning.views import PlaneView
from patchloom.run.pictures import blend, data_uri, grey_levels, heat, outline
from patchloom.run.thumbnails import MaskLook, Thumbnail

__all__ = ["LEFT_COLOUR", "SPLITS", "view_drawing"]

SPLITS = (
    ("#4cc3ff", ""),
    ("#ffb000", "7 3"),
    ("#ff6fb5", "2 2.5"),
    ("#7ee081", "9 3 2 3"),
    ("#c9a2ff", "12 4"),
    ("#f2f2f2", "4 4"),
)
"""Colour and dashes of each split: the blind to colours tell them by their dashes."""
LEFT_COLOUR = "#c3c9ce"

_LINES = 200
"""Chunk borders that are drawn along one axis."""
_FEW_LINES = 80
"""Chunk borders that are drawn strongly; more would hide what they divide."""
_MASK_SIDE = 400
"""Pixels along the longer side of a mask that is drawn."""
_OUTLINE = 60_000
"""Characters of the border of a mask."""
_STRETCH = 8
"""A picture is at most so many times as wide as it is high, or as high as wide."""

_Box = tuple[float, float, float, float]


def view_drawing(
    view: PlaneView,
    name: str,
    key: str,
    *,
    pixels: Thumbnail | None = None,
    mask: MaskLook | None = None,
    most: int = 300_000,
) -> str:
    """What a plane shows: pixels, mask, chunk grid, patches of each split, what is left out.

    Parameters
    ----------
    view
        What is drawn.
    name
        Of the image, for those who listen.
    key
        Makes names inside the drawing unique on its page.
    pixels, mask
        What was read of them, if anything.
    most
        Characters of the picture of the pixels.
    """
    box = _frame(view)
    top, left, bottom, right = box
    what = f"{name}: {view.n_kept:,} patches that are kept"
    if view.n_left:
        what += f" and {view.n_left:,} candidates that are left out"
    what += f", over a chunk grid of {view.chunk[0]} by {view.chunk[1]} pixels"
    height, width = bottom - top, right - left
    ratio = width / height
    # A line would be too thin to be seen: then pixels are not square.
    loose = ratio > _STRETCH or ratio < 1 / _STRETCH
    shape = f"{_STRETCH} / 1" if ratio > 1 else f"1 / {_STRETCH}"
    style = f' preserveAspectRatio="none" style="aspect-ratio:{shape}"' if loose else ""
    unit = max(height, width) / 90
    layers = [
        _ground(view, key),
        "" if pixels is None else _pixels(pixels, most),
        "" if mask is None else _mask(mask, view),
        "" if view.drawn else _density(view),
        _left(view, key) if view.drawn else "",
        _grid(view),
        _kept(view) if view.drawn else "",
    ]
    return (
        f'<svg viewBox="{left:g} {top:g} {width:g} {height:g}" role="img" '
        f'aria-label="{escape(what)}"{style}>{_patterns(key, unit)}'
        f"{''.join(layers)}</svg>"
    )


def _frame(view: PlaneView) -> _Box:
    """The image, and what sticks out of it."""
    boxes = view.boxes
    low = boxes[:, :2].min(0, initial=0)
    high = np.maximum(boxes[:, 2:].max(0, initial=0), view.extent)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _patterns(key: str, unit: float) -> str:
    """Hatchings: of what is left out, and where no pixel was read."""
    return (
        f'<defs><pattern id="left-{key}" width="{unit:g}" height="{unit:g}" '
        'patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        f'<rect width="{unit / 6:g}" height="{unit:g}" fill="{LEFT_COLOUR}" fill-opacity=".55"/>'
        f'</pattern><pattern id="blank-{key}" width="{2 * unit:g}" height="{2 * unit:g}" '
        'patternUnits="userSpaceOnUse" patternTransform="rotate(-45)">'
        f'<rect width="{unit / 4:g}" height="{2 * unit:g}" fill="#fff" fill-opacity=".13"/>'
        "</pattern></defs>"
    )


def _ground(view: PlaneView, key: str) -> str:
    height, width = view.extent
    size = f'width="{width}" height="{height}"'
    return f'<rect {size} fill="#10161b"/><rect {size} fill="url(#blank-{key})"/>'


def _image(pixels: npt.NDArray[np.uint8], box: _Box, more: str = "") -> str:
    y, x, bottom, right = box
    return (
        f'<image x="{x:g}" y="{y:g}" width="{right - x:g}" height="{bottom - y:g}" '
        f'preserveAspectRatio="none"{more} href="{data_uri(pixels)}"/>'
    )


def _pixels(shown: Thumbnail, most: int) -> str:
    while True:
        levels = [grey_levels(channel[shown.known]) for channel in shown.pixels]
        picture = blend(shown.pixels, [a for a, _ in levels], [b for _, b in levels], gamma=1.0)
        if not shown.known.all():
            opaque = np.where(shown.known, 255, 0).astype(np.uint8)
            picture = np.concatenate([picture, opaque[..., None]], -1)
        found = _image(picture, shown.box)
        if len(found) <= most or min(shown.known.shape) < 2:
            return f'<g class="pixels">{found}</g>'
        shown = shown.coarser()


def _mask(look: MaskLook, view: PlaneView) -> str:
    covered, box = look.of_plane(view.plane)
    while True:
        height, width = covered.shape
        scale = (box[2] - box[0]) / height, (box[3] - box[1]) / width
        path = outline(covered, box[:2], scale)
        if max(height, width) <= _MASK_SIDE and len(path) <= _OUTLINE:
            break
        covered, box = _halved(covered, box)
    shade = np.zeros((height, width, 4), np.uint8)
    shade[~covered] = (8, 20, 30, 140)
    line = f'd="{path}" fill="none" vector-effect="non-scaling-stroke"'
    return (
        f'<g class="mask">{_image(shade, box, " style=image-rendering:pixelated")}'
        f'<path {line} stroke="#000" stroke-opacity=".55" stroke-width="3.6"/>'
        f'<path {line} stroke="#d8ff5a" stroke-width="1.6"/></g>'
    )


def _halved(covered: npt.NDArray[np.bool_], box: _Box) -> tuple[npt.NDArray[np.bool_], _Box]:
    """Half the pixels along y and x; covered where at least half of each block is."""
    height, width = covered.shape
    tall, wide = min(2, height), min(2, width)
    padded = np.pad(covered, ((0, -height % tall), (0, -width % wide)), mode="edge")
    blocks = padded.reshape(-(-height // tall), tall, -(-width // wide), wide)
    y, x, bottom, right = box
    ends = (
        y + (bottom - y) * padded.shape[0] / height,
        x + (right - x) * padded.shape[1] / width,
    )
    return blocks.mean((1, 3)) >= 0.5, (y, x, *ends)


def _density(view: PlaneView) -> str:
    """How many patches each chunk keeps, as colours; of many chunks their mean."""
    number = view.density.astype(np.float64)
    tall, wide = (max(1, -(-n // _MASK_SIDE)) for n in number.shape)
    padded = np.pad(number, ((0, -len(number) % tall), (0, -number.shape[1] % wide)), mode="edge")
    mean = padded.reshape(len(padded) // tall, tall, padded.shape[1] // wide, wide).mean((1, 3))
    share = mean / max(1.0, float(mean.max()))
    opaque = np.where(mean > 0, 150, 0).astype(np.uint8)
    picture = np.concatenate([heat(share), opaque[..., None]], -1)
    extent = padded.shape[0] * view.chunk[0], padded.shape[1] * view.chunk[1]
    shown = _image(picture, (0, 0, *extent), " style=image-rendering:pixelated")
    return f'<g class="kept density">{shown}</g>'


def _grid(view: PlaneView) -> str:
    lines: list[str] = []
    height, width = view.extent
    for axis, (extent, chunk) in enumerate(zip(view.extent, view.chunk, strict=True)):
        step = chunk * -(-(extent // chunk) // _LINES) or chunk
        ats = range(step, extent, step)
        lines += [f"M0 {at}H{width}" if axis == 0 else f"M{at} 0V{height}" for at in ats]
    faint = ".42" if len(lines) <= _FEW_LINES else ".16"
    return (
        f'<path class="chunks" d="{"".join(lines)}" fill="none" stroke="#fff" '
        f'stroke-opacity="{faint}" stroke-width="1" vector-effect="non-scaling-stroke"/>'
    )


def _path(boxes: npt.NDArray[np.int64]) -> str:
    return "".join(
        f"M{x} {y}h{right - x}v{bottom - y}h{x - right}z" for y, x, bottom, right in boxes.tolist()
    )


def _left(view: PlaneView, key: str) -> str:
    boxes = view.boxes[~view.kept]
    if not len(boxes):
        return ""
    return (
        f'<path class="left" d="{_path(boxes)}" fill="url(#left-{key})" stroke="{LEFT_COLOUR}" '
        'stroke-opacity=".6" stroke-width=".7" vector-effect="non-scaling-stroke"/>'
    )


def _kept(view: PlaneView) -> str:
    found = []
    for split in np.unique(view.split[view.kept]).tolist():
        colour, dashes = SPLITS[split % len(SPLITS)] if split >= 0 else ("#ffffff", "1 3")
        boxes = view.boxes[view.kept & (view.split == split)]
        broken = f' stroke-dasharray="{dashes}"' if dashes else ""
        found.append(
            f'<path class="kept split-{split}" d="{_path(boxes)}" fill="{colour}" '
            f'fill-opacity=".09" stroke="{colour}" stroke-width="1.4"{broken} '
            'vector-effect="non-scaling-stroke"/>'
        )
    return "".join(found)
