"""Drawings: scenes and histograms as SVG, to stand inside a page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt

from patchloom.run.pictures import blend, colour, data_uri, outline
from patchloom.run.scene import Scene

__all__ = ["coverage_legend", "field_drawing", "histogram_drawing", "plan_drawing"]

_BINS = 20


def field_drawing(scene: Scene, limits: Sequence[tuple[float, float]]) -> str:
    """The image with its mask: what lies outside is shaded, the border is drawn.

    Parameters
    ----------
    scene
        What to show.
    limits
        Grey levels of each channel that become black and full colour.
    """
    height, width = scene.shape
    pixels = blend(scene.pixels, [a for a, _ in limits], [b for _, b in limits])
    what = f"Image {scene.image.id}, {width} by {height} pixels"
    if scene.mask is not None:
        what += "; the border of the mask is drawn, what lies outside is shaded"
    return (
        f"{_open(scene, what)}"
        f'<image id="pixels" width="{width}" height="{height}" href="{data_uri(pixels)}"/>'
        f"{_mask_layer(scene)}</svg>"
    )


def plan_drawing(scene: Scene) -> str:
    """Chunks and patches over the dimmed image; it uses the picture of `field_drawing`."""
    kept, left = int(scene.kept.sum()), int((~scene.kept).sum())
    unread = int((~scene.needed).sum())
    what = (
        f"{kept} patches that are kept, coloured by coverage, and {left} that are left out, over "
        f"the chunk grid; {unread} chunks that nothing needs are hatched"
    )
    return (
        f"{_open(scene, what)}{_HATCH}"
        f'<use href="#pixels" class="dimmed"/>{_chunk_layer(scene)}{_patch_layer(scene)}</svg>'
    )


def coverage_legend() -> str:
    """The colours of coverage, from 0 to 1."""
    steps = ", ".join(colour(k / 8) for k in range(9))
    return (
        '<span class="legend"><span>0</span><i style="background:linear-gradient(90deg, '
        f'{steps})"></i><span>1</span></span>'
    )


def histogram_drawing(
    kept_shares: npt.NDArray[np.float64], left_shares: npt.NDArray[np.float64], threshold: float
) -> str:
    """How many candidates have which coverage; bars of what is left out are hollow.

    Parameters
    ----------
    kept_shares, left_shares
        Coverage of what is kept and of what is left out: float64[n], in [0, 1].
    threshold
        The plan's ``min_coverage``; a line marks it.
    """
    edges = np.linspace(0, 1, _BINS + 1)
    # Coverage of exactly 1 belongs to the last bin, as in numpy.histogram.
    kept = np.histogram(kept_shares, edges)[0]
    left = np.histogram(left_shares, edges)[0]
    tallest = max(1, int((kept + left).max()))
    width, high, foot, top = 600, 150, 28, 22
    step = width / _BINS
    bars = []
    for k, (n, m) in enumerate(zip(kept.tolist(), left.tolist(), strict=True)):
        x, tall = k * step + 2, high * (n + m) / tallest
        solid = high * n / tallest
        low = top + high
        label = f"coverage {edges[k]:.2f} to {edges[k + 1]:.2f}: {n} kept, {m} left out"
        bars.append(
            f"<g><title>{label}</title>"
            f'<rect class="hollow" x="{x:g}" y="{low - tall:g}" width="{step - 4:g}" '
            f'height="{tall - solid:g}"/>'
            f'<rect fill="{colour((k + 0.5) / _BINS)}" x="{x:g}" y="{low - solid:g}" '
            f'width="{step - 4:g}" height="{solid:g}"/>'
            + (
                f'<text x="{x + step / 2 - 2:g}" y="{low - tall - 5:g}">{n + m}</text>'
                * (n + m > 0)
            )
            + "</g>"
        )
    ticks = "".join(
        f'<text x="{min(max(t * width, 10), width - 10):g}" y="{top + high + 20}">{t:g}</text>'
        for t in (0, 0.25, 0.5, 0.75, 1)
    )
    at = threshold * width
    what = (
        f"Histogram of coverage: {int(kept.sum())} candidates kept, {int(left.sum())} left out, "
        f"threshold {threshold:g}"
    )
    return (
        f'<svg class="chart" viewBox="0 0 {width} {top + high + foot}" role="img" '
        f'aria-label="{escape(what)}">{"".join(bars)}'
        f'<line class="axis" x1="0" x2="{width}" y1="{top + high}" y2="{top + high}"/>'
        f'<line class="threshold" x1="{at:g}" x2="{at:g}" y1="0" y2="{top + high}"/>{ticks}</svg>'
    )


_HATCH = (
    '<defs><pattern id="hatch" width="8" height="8" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><rect width="3" height="8" fill="#fff" fill-opacity=".22"/>'
    "</pattern></defs>"
)


def _open(scene: Scene, what: str) -> str:
    height, width = scene.shape
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(what)}">'


def _mask_layer(scene: Scene) -> str:
    if scene.mask is None:
        return ""
    covered, origin, scale = scene.mask.covered, scene.mask.origin, scene.mask.scale
    shade = np.zeros((*covered.shape, 4), np.uint8)
    shade[~covered] = (8, 20, 30, 150)
    path = outline(covered, origin, scale)
    return (
        f'<g class="mask"><image x="{origin[1]:g}" y="{origin[0]:g}" '
        f'width="{covered.shape[1] * scale[1]:g}" height="{covered.shape[0] * scale[0]:g}" '
        f'preserveAspectRatio="none" href="{data_uri(shade)}"/>'
        f'<path class="under" d="{path}"/><path class="border" d="{path}"/></g>'
    )


def _chunk_layer(scene: Scene) -> str:
    height, width = scene.shape
    tall, wide = scene.chunk
    lines = "".join(f"M{x} 0V{height}" for x in range(wide, width, wide))
    lines += "".join(f"M0 {y}H{width}" for y in range(tall, height, tall))
    unread = "".join(
        f'<rect x="{x * wide}" y="{y * tall}" width="{min(wide, width - x * wide)}" '
        f'height="{min(tall, height - y * tall)}" fill="url(#hatch)"/>'
        for y, x in np.argwhere(~scene.needed).tolist()
    )
    return f'<g class="chunks">{unread}<path d="{lines}"/></g>'


def _patch_layer(scene: Scene) -> str:
    tall, wide = scene.patch
    radius = max(min(tall, wide) / 11, 1)
    layers: dict[bool, list[str]] = {False: [], True: []}
    for (y, x), share, kept in zip(
        scene.corner.tolist(), scene.coverage.tolist(), scene.kept.tolist(), strict=True
    ):
        paint = f' style="--c:{colour(share)}"' if kept else ""
        told = f"y {y}, x {x}: coverage {share:.3f}, {'kept' if kept else 'left out'}"
        # A little smaller than they are: neighbours that share an edge stay apart to the eye.
        layers[kept].append(
            f"<g{paint}><title>{told}</title>"
            f'<rect x="{x + 1}" y="{y + 1}" width="{max(wide - 2, 1)}" '
            f'height="{max(tall - 2, 1)}"/>'
            f'<circle cx="{x + wide / 2:g}" cy="{y + tall / 2:g}" r="{radius:g}"/></g>'
        )
    return (
        f'<g class="left">{"".join(layers[False])}</g><g class="kept">{"".join(layers[True])}</g>'
    )
