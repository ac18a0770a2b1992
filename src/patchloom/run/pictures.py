"""Pictures: pixels as PNG files, colours and outlines, with nothing but NumPy and zlib."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.png_file import png_file

__all__ = ["blend", "colour", "data_uri", "grey_levels", "heat", "label_colours", "outline", "png"]

Pixels = npt.NDArray[np.uint8]

_GREY = ((1.0, 1.0, 1.0),)
_TWO = ((0.25, 1.0, 0.45), (1.0, 0.25, 0.9))
_MANY = (
    (0.00, 0.75, 1.00),
    (1.00, 0.10, 0.45),
    (1.00, 0.75, 0.00),
    (0.25, 0.95, 0.45),
    (0.65, 0.35, 1.00),
    (0.95, 0.95, 0.95),
)

# Every fourth entry or so of viridis (S. van der Walt, N. Smith, 2015): even to the eye, readable
# without colour vision.
_VIRIDIS = np.array(
    [
        (68, 1, 84),
        (71, 45, 123),
        (59, 82, 139),
        (44, 114, 142),
        (33, 145, 140),
        (40, 174, 128),
        (94, 201, 98),
        (173, 220, 48),
        (253, 231, 37),
    ],
    np.float64,
)


def png(pixels: Pixels) -> bytes:
    r"""Pixels as a PNG file (W3C Recommendation, third edition).

    Parameters
    ----------
    pixels
        uint8[y, x] grey, or uint8[y, x, 3 or 4] with colours and opacity.

    Examples
    --------
    >>> png(np.zeros((2, 3), np.uint8))[:4]
    b'\x89PNG'
    """
    rows = np.ascontiguousarray(pixels, np.uint8)
    height, width = rows.shape[:2]
    depth = 1 if rows.ndim == 2 else rows.shape[2]
    kind = {1: 0, 3: 2, 4: 6}[depth]
    return png_file(_filtered(rows.reshape(height, -1), depth), width, 8, kind, 9)


def _filtered(rows: Pixels, depth: int) -> Pixels:
    """Each row as the difference to its neighbours that leaves the smallest numbers."""
    here = rows.astype(np.int16)
    left, up, corner = np.zeros((3, *here.shape), np.int16)
    left[:, depth:] = here[:, :-depth]
    up[1:] = here[:-1]
    corner[1:, depth:] = here[:-1, :-depth]
    guess = left + up - corner
    a, b, c = (abs(guess - v) for v in (left, up, corner))
    paeth = np.where((a <= b) & (a <= c), left, np.where(b <= c, up, corner))
    choices = np.stack([here - other for other in (0 * here, left, up, (left + up) // 2, paeth)])
    # The heuristic of the specification: the smallest sum of absolute differences.
    cost = np.abs(choices.astype(np.int8).astype(np.int32)).sum(-1)
    best = cost.argmin(0)
    out = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
    out[:, 0] = best
    out[:, 1:] = choices[best, np.arange(len(rows))].astype(np.uint8)
    return out


def data_uri(pixels: Pixels) -> str:
    """A PNG file as the address of an image that carries itself."""
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode('ascii')}"


def blend(
    channels: npt.NDArray[Any], low: Sequence[float], high: Sequence[float], gamma: float = 1.2
) -> Pixels:
    """Channels as one picture in colours, each stretched from `low` to `high`.

    Parameters
    ----------
    channels
        Pixels [c, y, x].
    low, high
        Grey levels of each channel that become black and full colour.
    gamma
        Above 1 darkens the background.

    Returns
    -------
    uint8[y, x, 3]
    """
    n = len(channels)
    tints = _GREY if n == 1 else _TWO if n == 2 else _MANY
    out = np.zeros((*channels.shape[1:], 3))
    for k, pixels in enumerate(channels):
        span = high[k] - low[k]
        if not span > 0:
            continue
        # NaN is shown black, like the lowest grey level.
        level = np.nan_to_num((pixels.astype(np.float64) - low[k]) / span, nan=0.0)
        out += (np.clip(level, 0, 1) ** gamma)[..., None] * np.asarray(tints[k % len(tints)])
    # Where bright channels meet, keep the hue instead of running into white.
    return _as_bytes(out / np.maximum(out.max(-1, keepdims=True), 1))


def grey_levels(channel: npt.NDArray[Any]) -> tuple[float, float]:
    """Grey levels of one channel that become black and full colour: its own percentiles."""
    numbers = channel.astype(np.float64)
    numbers = numbers[np.isfinite(numbers)]
    if not numbers.size:
        return 0.0, 1.0
    low, high = np.percentile(numbers, (1, 99.8)).tolist()
    return low, high


def label_colours(labels: npt.NDArray[Any]) -> Pixels:
    """Label numbers as distinct colours; 0 is nearly black: uint8[y, x, 3]."""
    # Steps of the golden angle keep neighbouring numbers apart on the colour circle.
    hue = (labels.astype(np.float64) * 0.6180339887498949) % 1.0
    turn = (hue[..., None] * 6 + np.array([0.0, 4.0, 2.0])) % 6
    tint = np.clip(np.abs(turn - 3) - 1, 0, 1) * 0.65 + 0.3
    return _as_bytes(np.where(labels[..., None] != 0, tint, 0.08))


def _as_bytes(shares: npt.NDArray[np.float64]) -> Pixels:
    found: Pixels = np.rint(shares * 255).astype(np.uint8)
    return found


def colour(share: float) -> str:
    """The colour of a share in [0, 1], dark violet to yellow.

    >>> colour(0), colour(1)
    ('#440154', '#fde725')
    """
    at = min(max(float(share), 0.0), 1.0) * (len(_VIRIDIS) - 1)
    k = min(int(at), len(_VIRIDIS) - 2)
    red, green, blue = np.rint(_VIRIDIS[k] + (at - k) * (_VIRIDIS[k + 1] - _VIRIDIS[k])).astype(int)
    return f"#{red:02x}{green:02x}{blue:02x}"


def heat(shares: npt.NDArray[np.float64]) -> Pixels:
    """The colours of `colour` for many shares: uint8[..., 3]."""
    at = np.clip(shares, 0, 1) * (len(_VIRIDIS) - 1)
    steps = np.arange(len(_VIRIDIS))
    found = np.stack([np.interp(at, steps, _VIRIDIS[:, k]) for k in range(3)], -1)
    return np.rint(found).astype(np.uint8)


def outline(
    mask: npt.NDArray[np.bool_], origin: tuple[float, float], scale: tuple[float, float]
) -> str:
    """The borders between covered and other pixels as an SVG path.

    Parameters
    ----------
    mask
        bool[y, x]; the border of the array itself is not drawn.
    origin
        Where its first pixel begins (y, x), in units of the drawing.
    scale
        Extent of a pixel (y, x), in units of the drawing.

    Examples
    --------
    >>> outline(np.array([[True, True], [False, False]]), (0, 0), (4, 4))
    'M0 4H8'
    """
    parts = []
    for y, start, stop in _runs(mask[1:] != mask[:-1]):
        parts.append(f"M{_at(start, 1, origin, scale)} {_at(y + 1, 0, origin, scale)}")
        parts.append(f"H{_at(stop, 1, origin, scale)}")
    for x, start, stop in _runs((mask[:, 1:] != mask[:, :-1]).T):
        parts.append(f"M{_at(x + 1, 1, origin, scale)} {_at(start, 0, origin, scale)}")
        parts.append(f"V{_at(stop, 0, origin, scale)}")
    return "".join(parts)


def _at(pixel: int, axis: int, origin: tuple[float, float], scale: tuple[float, float]) -> str:
    return f"{origin[axis] + pixel * scale[axis]:g}"


def _runs(flags: npt.NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """Runs of set flags: row, first and last-but-one column of each."""
    edges = np.diff(flags.astype(np.int8), axis=1, prepend=0, append=0)
    row, start = np.nonzero(edges > 0)
    _, stop = np.nonzero(edges < 0)
    return list(zip(row.tolist(), start.tolist(), stop.tolist(), strict=True))
