"""The drawings of the guide, made of its own plan: ``python docs/draw.py``.

A test makes them again and compares, so they show what the planner does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import patchloom

HERE = Path(__file__).parent
DEMO = HERE.parent / "src" / "patchloom" / "demo" / "cardiomyocytes.ome.zarr"
INK, QUIET, GROUND, MASK = "#24292f", "#8c959f", "#ffffff", "#e6efe9"
SHARDS = ("#24938c", "#e4572e", "#4c6ef5", "#b8860b")
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#24292f}"
    ".n{font-size:10px;fill:#57606a;text-anchor:middle}.m{text-anchor:middle}"
)


def page(width: float, height: float, title: str, parts: list[str]) -> str:
    """An SVG on a ground of its own, so that it can be read on a dark page too."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{title}">'
        f"<title>{title}</title><style>{STYLE}</style>\n"
        + "\n".join([rect(0, 0, width, height, fill=GROUND), *parts])
        + "\n</svg>\n"
    )


def rect(x: float, y: float, w: float, h: float, **style: object) -> str:
    """A rectangle; ``_`` in the names of its attributes is a hyphen."""
    drawn = " ".join(f'{name.replace("_", "-")}="{value}"' for name, value in style.items())
    return f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" {drawn}/>'


def text(x: float, y: float, words: object, kind: str = "") -> str:
    """A line of text."""
    return f'<text x="{x:g}" y="{y:g}"{f" class={kind!r}" if kind else ""}>{words}</text>'.replace(
        "'", '"'
    )


def guide_plan() -> patchloom.Plan:
    """The plan of the guide."""
    images = patchloom.open_images(str(DEMO), mask="tissue", labels="nuclei")
    return patchloom.plan(
        images,
        {"name": "sequential", "patch_size": [96, 96], "overlaps": [32, 32]},
        min_coverage=0.5,
        rows_per_shard=16,
    )


def corners_of(plan: patchloom.Plan) -> np.ndarray:
    """First pixels of the patches, in the order of their rows: int64[n, 2]."""
    return np.array([plan.get_patch_spec(row)["coords"] for row in range(plan.n_patches)])


def halo(plan: patchloom.Plan) -> str:
    """The chunks of the image, a patch, and the blocks that it needs beside its owner."""
    image, corners = plan.images[0], corners_of(plan)
    (_, rows, columns), side, left, top = image.shape, image.grid.chunks[-1], 16, 16
    mask = np.asarray(image.mask.image.data).squeeze()
    owner = (3 * side, 4 * side)
    parts = [
        rect(left + 4 * x, top + 4 * y, 4 * n, 4, fill=MASK)
        for y, line in enumerate(mask != 0)
        for x, n in stretches(line)
    ]
    blocks = [(owner[0] + dy, owner[1] + dx) for dy in (0, side) for dx in (0, side)]
    for y, x in blocks:
        shade = "#f6c7ba" if (y, x) == owner else "#fbe9e4"
        parts.append(rect(left + x, top + y, side, side, fill=shade))
    for number in range(rows // side * (columns // side)):
        y, x = divmod(number, columns // side)
        parts.append(rect(left + x * side, top + y * side, side, side, fill="none", stroke=QUIET))
        parts.append(text(left + x * side + 12, top + y * side + 14, number, "n"))
    for y, x in corners.tolist():
        parts.append(f'<circle cx="{left + x + 5}" cy="{top + y + 22}" r="2.5" fill="{INK}"/>')
    assert owner in [tuple(corner) for corner in corners.tolist()]
    y, x = owner
    style = {"fill": "none", "stroke": SHARDS[1], "stroke_width": 3}
    parts.append(rect(left + x, top + y, *plan.patch_size[::-1], **style))
    low = top + rows + 22
    legend = (
        (MASK, "tissue: the mask, 4 x coarser"),
        ("#f6c7ba", "the block that owns it"),
        ("#fbe9e4", "its halo: three blocks"),
    )
    for k, (shade, words) in enumerate(legend):
        parts.append(rect(left + 215 * k, low - 11, 14, 14, fill=shade, stroke=QUIET))
        parts.append(text(left + 215 * k + 20, low, words))
    parts.append(rect(left, low + 11, 14, 14, **style))
    parts.append(text(left + 20, low + 22, "one patch of 96 x 96 pixels"))
    parts.append(f'<circle cx="{left + 222}" cy="{low + 18}" r="2.5" fill="{INK}"/>')
    parts.append(text(left + 235, low + 22, "a block that owns a kept patch"))
    return page(columns + 2 * left, rows + 84, "Chunks, a patch and its halo", parts)


def stretches(line: np.ndarray) -> list[tuple[int, int]]:
    """Where flags are set: begin and length of each stretch."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], line, [False]]).astype(int)))
    return [(int(a), int(b - a)) for a, b in edges.reshape(-1, 2)]


def shards(plan: patchloom.Plan) -> str:
    """Rows along the curve, coloured by shard; below, the shards as objects of the store."""
    corners, per, side, left, top = corners_of(plan), plan.rows_per_shard, 44, 16, 16
    _, rows, columns = plan.images[0].shape
    step = plan.images[0].grid.chunks[-1]
    high, wide = rows // step * side, columns // step * side
    parts = [
        rect(left + x * side, top + y * side, side, side, fill="none", stroke="#d0d7de")
        for y in range(rows // step)
        for x in range(columns // step)
    ]
    middle = corners // step * side + side / 2 + np.array([top, left])
    for shard in range(plan.n_shards):
        some = middle[shard * per : (shard + 1) * per + 1]
        line = " ".join(f"{x:g},{y:g}" for y, x in some.tolist())
        colour = SHARDS[shard % len(SHARDS)]
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for row, (y, x) in enumerate(middle.tolist()):
        colour = SHARDS[row // per % len(SHARDS)]
        parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="11" fill="{GROUND}" stroke="{colour}"/>')
        parts.append(text(x, y + 3.5, row, "n"))
    begin, each = left + wide + 40, 9
    parts.append(text(begin, top + 14, "rows"))
    parts.append(text(begin + 110, top + 14, "one object"))
    for shard in range(plan.n_shards):
        first, stop = shard * per, min(plan.n_patches, (shard + 1) * per)
        y, colour = top + 34 + shard * 80, SHARDS[shard % len(SHARDS)]
        for k in range(stop - first):
            box = (begin + 110 + k % 8 * (each + 3), y + k // 8 * (each + 3))
            parts.append(rect(*box, each, each, fill=colour))
        parts.append(text(begin, y + 14, f"{first} to {stop - 1}"))
        parts.append(text(begin + 110, y + 44, f"images/c/{shard}/0/0/0"))
    return page(begin + 290, high + 2 * top, "Rows along the curve, and their shards", parts)


def write(folder: Path) -> list[Path]:
    """Draw all of them into a folder."""
    plan = guide_plan()
    drawn = {"halo.svg": halo(plan), "shards.svg": shards(plan)}
    for name, svg in drawn.items():
        (folder / name).write_text(svg, encoding="utf-8")
    return [folder / name for name in drawn]


if __name__ == "__main__":
    for path in write(HERE / "images"):
        print(path)
