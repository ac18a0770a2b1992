"""Statistics of images, under masks and labels, and of patches: what NumPy says of the pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import patchloom
from patchloom.coverage import Alignment
from patchloom.image import Image, Role
from tests import oracle

Pixels = npt.NDArray[Any]
Q = (0, 1, 30, 50, 99.9, 100)
DTYPES = [
    *("bool", "uint8", "int8", "uint16", "int16", "float16"),
    *("uint32", "int32", "int64", "float32", "float64"),
]
METHODS = ["linear", "lower", "higher", "nearest", "midpoint"]


@dataclass(frozen=True)
class Overlay:
    """Another array over an image, on some of its spatial axes."""

    pixels: Pixels
    """[sample, *space]; one sample or all."""
    axes: str
    scale: tuple[Fraction, ...]
    offset: tuple[Fraction, ...]

    def role(self, image: Image, chunks: tuple[int, ...]) -> Role:
        names = ("s" if len(self.pixels) > 1 else "") + self.axes
        pixels = self.pixels if len(self.pixels) > 1 else self.pixels[0]
        array = da.from_array(pixels, chunks=chunks[-pixels.ndim :])
        [found] = patchloom.open_images(array, axes=names)
        return Role(found, Alignment(self.scale, self.offset), self.axes)

    def overlaps(self, axis: int, extent: int) -> npt.NDArray[np.object_]:
        """How much of each pixel of the image each of its own pixels covers."""
        n = self.pixels.shape[1 + axis]
        found = np.full((extent, n), Fraction(0), object)
        for p in range(extent):
            for k in range(n):
                begin = self.offset[axis] + k * self.scale[axis]
                last = min(begin + self.scale[axis], Fraction(p + 1))
                found[p, k] = max(Fraction(0), last - max(begin, Fraction(p)))
        return found


def under(mask: Overlay, sample: int, spatial: str, space: tuple[int, ...]) -> Pixels:
    """Which pixels of one sample are covered to at least one half."""
    area: Any = (mask.pixels[sample if len(mask.pixels) > 1 else 0] != 0).astype(int).astype(object)
    for axis, name in enumerate(mask.axes):
        weights = mask.overlaps(axis, space[spatial.index(name)])
        area = np.moveaxis(np.tensordot(weights, area, (1, axis)), 0, axis)
    flags = np.asarray(area >= Fraction(1, 2), bool)
    missing = tuple(k for k, a in enumerate(spatial) if a not in mask.axes)
    return np.broadcast_to(np.expand_dims(flags, missing), space)


def named(labels: Overlay, sample: int, spatial: str, space: tuple[int, ...]) -> Pixels:
    """The label at each pixel's centre; None where there is none."""
    values = labels.pixels[sample if len(labels.pixels) > 1 else 0]
    found = np.full(space, None, object)
    for at in np.ndindex(*space):
        index = []
        for axis, name in enumerate(labels.axes):
            centre = at[spatial.index(name)] + Fraction(1, 2)
            index.append(math.floor((centre - labels.offset[axis]) / labels.scale[axis]))
        if all(0 <= k < n for k, n in zip(index, values.shape, strict=True)):
            found[at] = int(values[tuple(index)])
    return found


@dataclass(frozen=True)
class Case:
    """An image as the oracle knows it, and its overlays."""

    pixels: Pixels
    axes: str
    mask: Overlay | None
    labels: Overlay | None

    @property
    def canonical(self) -> Pixels:
        return oracle.canonical(self.pixels, self.axes)

    @property
    def spatial(self) -> str:
        return "".join(a for a in "zyx" if a in self.axes)


def elements(dtype: str) -> st.SearchStrategy[Any] | None:
    """Numbers that are hard: many equal ones, denormals, infinities, NaN, both zeros, extremes."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        tiny = float(np.finfo(kind).smallest_subnormal)
        hard = st.sampled_from([0.0, -0.0, 1.0, math.inf, -math.inf, math.nan, tiny, -tiny])
        return st.one_of(hard, hnp.from_dtype(kind, allow_nan=True))
    if kind.kind == "b":
        return None
    info = np.iinfo(kind)
    # Beyond 2^53 whole numbers are counted as the nearest float64.
    low, high = max(info.min, -(2**53)), min(info.max, 2**53)
    return st.one_of(st.sampled_from([0, 1, low, high]), st.integers(low, high))


@st.composite
def overlays(draw: st.DrawFn, image: tuple[int, str, tuple[int, ...]], values: int) -> Overlay:
    """The same pixels, coarser or finer ones, shifted or not."""
    samples, spatial, space = image
    axes = spatial[1:] if len(spatial) == 3 and draw(st.booleans()) else spatial
    kind = draw(st.sampled_from(["same", "coarse", "any"]))
    shape, scale, offset = [], [], []
    for name in axes:
        extent = space[spatial.index(name)]
        s, o = Fraction(1), Fraction(0)
        if kind == "coarse":
            s = Fraction(draw(st.integers(1, 3)))
        elif kind == "any":
            s = draw(st.fractions(min_value=Fraction(1, 2), max_value=3, max_denominator=4))
            o = draw(st.fractions(min_value=-2, max_value=2, max_denominator=4))
        shape.append(
            max(1, math.ceil(extent / s) + (draw(st.integers(-1, 1)) if kind == "any" else 0))
        )
        scale.append(s)
        offset.append(o)
    n = draw(st.sampled_from([1, samples]))
    pixels = draw(hnp.arrays("uint8", (n, *shape), elements=st.integers(0, values)))
    return Overlay(pixels, axes, tuple(scale), tuple(offset))


@st.composite
def cases(draw: st.DrawFn, dtype: str) -> Case:
    axes = draw(st.sampled_from(["yx", "zyx", "cyx", "tyx", "czyx", "zyxc", "tczyx", "yxc", "x"]))
    most = {"t": 2, "c": 2, "z": 3, "y": 5, "x": 6}
    shape = tuple(draw(st.integers(1, most[a])) for a in axes)
    pixels = draw(hnp.arrays(dtype, shape, elements=elements(dtype)))
    spatial = "".join(a for a in "zyx" if a in axes)
    space = tuple(shape[axes.index(a)] for a in spatial)
    samples = shape[axes.index("t")] if "t" in axes else 1
    mask = draw(overlays((samples, spatial, space), 1))
    labels = draw(overlays((samples, spatial, space), 3))
    return Case(pixels, axes, mask, labels)


def opened(draw: st.DrawFn, case: Case, name: str, column: str, stored: Path | None) -> Image:
    """The image as patchloom sees it: stored, or as a Dask array; cut anyhow."""
    chunks = tuple(draw(st.integers(1, n)) for n in case.pixels.shape)
    source: Any = da.from_array(case.pixels, chunks=chunks)
    if stored is not None:
        path = stored / f"{name}.zarr"
        array = zarr.create_array(
            path, shape=case.pixels.shape, chunks=chunks, dtype=case.pixels.dtype, overwrite=True
        )
        array[...] = case.pixels
        source = path
    [image] = patchloom.open_images(source, axes=case.axes, ids=[name])
    image = replace(image, metadata={"stain": column})
    for role in ("mask", "labels"):
        overlay: Overlay | None = getattr(case, role)
        if overlay is not None:
            sizes = tuple(draw(st.integers(1, max(1, n))) for n in overlay.pixels.shape)
            image = image.with_role(role, overlay.role(image, sizes))
    return image


def concatenated(
    case: Case, times: Pixels, *, planes: bool, labels: bool
) -> dict[tuple[Any, ...], Pixels]:
    """All pixels that count, by channel, plane and label; `times` is [sample, *space]."""
    found: dict[tuple[Any, ...], list[Any]] = {}
    image = case.canonical
    space = image.shape[2:]
    for sample in range(len(image)):
        name = None
        if labels:
            assert case.labels is not None
            name = named(case.labels, sample, case.spatial, space)
        for at in np.ndindex(*space):
            if name is not None and name[at] is None:
                continue
            key = (at[0] if planes else None, None if name is None else name[at])
            for channel in range(image.shape[1]):
                found.setdefault((channel, *key), []).extend(
                    [image[(sample, channel, *at)]] * int(times[(sample, *at)])
                )
    return {k: np.array(v, image.dtype) for k, v in found.items() if v}


def root(number: Fraction) -> float:
    """The square root, also of what is too small for a float."""
    if not number:
        return 0.0
    up = (number.denominator.bit_length() - number.numerator.bit_length()) // 2
    return math.ldexp(math.sqrt(number * Fraction(4) ** up), -up)


def check(row: Any, pixels: Pixels, q: tuple[float, ...], method: Any) -> None:
    """Numbers of one cell are those of NumPy."""
    wide = pixels.astype("float64")
    nans = int(np.isnan(wide).sum())
    wide = wide[~np.isnan(wide)] + 0.0
    assert row["count"].item() == len(wide)
    assert row["nans"].item() == nans
    if not len(wide):
        assert np.isnan(row["percentile"]).all()
        return
    assert (row["min"].item(), row["max"].item()) == (wide.min(), wide.max())
    with np.errstate(invalid="ignore", over="ignore"):
        want = np.percentile(wide, q, method=method)
    # From infinity to infinity NumPy says NaN; we say the limit.
    real = ~np.isnan(want)
    np.testing.assert_array_equal(row["percentile"].values[real], want[real])
    if np.isfinite(wide).all():
        exact = [Fraction(float(v)) for v in wide]
        mean = sum(exact, Fraction(0)) / len(exact)
        assert row["mean"].item() == float(mean)
        spread = sum(((v - mean) ** 2 for v in exact), Fraction(0)) / len(exact)
        top = float(np.abs(wide).max())
        if top < 1e150:
            assert math.isclose(row["std"].item(), root(spread), rel_tol=1e-12, abs_tol=0)
            assert row["median"].item() == np.median(wide)
            away = np.median(np.abs(wide - np.median(wide)))
            assert math.isclose(row["mad"].item(), away, rel_tol=1e-15, abs_tol=0)


def rows(table: Any, of: str) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every cell of a table by group, channel, plane and label."""
    for group in range(table.sizes[of]):
        for channel in range(table.sizes["channel"]):
            for z in table["z"].values.tolist() if "z" in table.dims else [None]:
                for label in table["label"].values.tolist() if "label" in table.dims else [None]:
                    row = table.isel({of: group, "channel": channel})
                    row = row if z is None else row.sel(z=z)
                    row = row if label is None else row.sel(label=label)
                    yield (group, channel, z, label), row


@pytest.mark.parametrize("kind", ["array", "stored"])
@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), method=st.sampled_from(METHODS))
def test_statistics_are_those_of_the_concatenated_pixels(
    data: st.DataObject,
    dtype: str,
    method: str,
    kind: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Any type, chunks, mask, labels, planes and grouping; of images and under masks."""
    first = data.draw(cases(dtype))
    n = data.draw(st.integers(1, 3))
    others = [
        data.draw(hnp.arrays(dtype, first.pixels.shape, elements=elements(dtype)))
        for _ in range(n - 1)
    ]
    all_cases = [first, *(Case(p, first.axes, first.mask, first.labels) for p in others)]
    columns = data.draw(st.lists(st.sampled_from("ab"), min_size=n, max_size=n))
    over = data.draw(st.sampled_from(["image", "mask"]))
    by = data.draw(st.sampled_from(["image", None, "stain"]))
    labels = data.draw(st.booleans())
    planes = "z" in first.axes and data.draw(st.booleans())
    folder = tmp_path_factory.mktemp("sources") if kind == "stored" else None
    images = [
        data.draw(st.composite(opened)(case, f"i{k}", columns[k], folder))
        for k, case in enumerate(all_cases)
    ]
    table = patchloom.statistics(
        images, Q, over=over, planes=planes, labels=labels, method=method, by=by
    )
    assert (table.attrs["exact"], table.attrs["over"]) == (True, over)

    groups = {
        "image": list(range(n)),
        None: [0] * n,
        "stain": [sorted(set(columns)).index(c) for c in columns],
    }[by]
    want: dict[tuple[Any, ...], list[Pixels]] = {}
    for group, case in zip(groups, all_cases, strict=True):
        image = case.canonical
        space = image.shape[2:]
        times = np.ones((len(image), *space), int)
        if over == "mask":
            assert case.mask is not None
            times = np.stack([under(case.mask, s, case.spatial, space) for s in range(len(image))])
        for key, pixels in concatenated(case, times, planes=planes, labels=labels).items():
            want.setdefault((group, *key), []).append(pixels)
    seen = set()
    for key, row in rows(table, "image" if by == "image" else "group"):
        if key in want:
            check(row, np.concatenate(want[key]), Q, method)
            seen.add(key)
        else:
            assert row["count"].item() == row["nans"].item() == 0
    assert seen == set(want)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(["uint8", "int16", "float32"]))
def test_statistics_of_patches_are_those_of_the_pixels_they_take(
    data: st.DataObject, dtype: str
) -> None:
    """Each pixel once, or as often as patches take it; never padding; by plane and label too."""
    axes = data.draw(st.sampled_from(["yx", "cyx", "tyx", "zyx", "czyx"]))
    most = {"t": 2, "c": 2, "z": 4, "y": 9, "x": 11}
    shape = tuple(data.draw(st.integers(1, most[a])) for a in axes)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    pixels = rng.integers(-9 if dtype != "uint8" else 0, 99, shape).astype(dtype)
    chunks = tuple(data.draw(st.integers(1, n)) for n in shape)
    spatial = "".join(a for a in "zyx" if a in axes)
    space = tuple(shape[axes.index(a)] for a in spatial)
    samples = shape[axes.index("t")] if "t" in axes else 1
    labels = Overlay(
        rng.integers(0, 3, (1, *space)).astype("uint8"),
        spatial,
        (Fraction(1),) * len(space),
        (Fraction(0),) * len(space),
    )
    case = Case(pixels, axes, None, labels)
    [image] = patchloom.open_images(da.from_array(pixels, chunks=chunks), axes=axes)
    image = image.with_role("labels", labels.role(image, space))
    edge: Any = data.draw(st.sampled_from(["pad", "shift", "drop"]))
    size = [data.draw(st.integers(1, 4 if edge == "pad" else min(4, n))) for n in space]
    overlaps = [data.draw(st.integers(0, s - 1)) for s in size]
    patching = {"name": "sequential", "patch_size": size, "overlaps": overlaps}
    mode: Any = data.draw(st.sampled_from(["constant", "reflect"]))
    more = {"pad_mode": mode} if edge == "pad" else {}
    plan = patchloom.plan(image, patching, edge=edge, **more)
    keep = np.array([data.draw(st.booleans()) for _ in range(plan.n_patches)], bool)
    plan = plan.refine(keep)
    each = data.draw(st.sampled_from(["once", "taken"]))
    planes = "z" in axes and data.draw(st.booleans())
    by_label = data.draw(st.booleans())
    table = patchloom.statistics(plan, Q, each=each, planes=planes, labels=by_label)
    assert (table.attrs["over"], table.attrs["each"]) == ("patches", each)

    times = np.zeros((samples, *space), int)
    corners = list(oracle.grid(space, size, overlaps, edge))
    everywhere = [(s, corner) for s in range(samples) for corner in corners]
    known = {(r["sample"], *r["corner"]) for r in placed(plan, spatial)}
    for sample, corner in everywhere:
        if (sample, *corner) in known:
            box = tuple(slice(c, c + p) for c, p in zip(corner, size, strict=True))
            times[sample][box] += 1
    if each == "once":
        times = np.minimum(times, 1)
    want = concatenated(case, times, planes=planes, labels=by_label)
    seen = set()
    for (_, *key), row in rows(table, "image"):
        if tuple(key) in want:
            check(row, want[tuple(key)], Q, "linear")
            seen.add(tuple(key))
        else:
            assert row["count"].item() == 0
    assert seen == set(want)


def placed(plan: patchloom.Plan, spatial: str) -> Iterator[dict[str, Any]]:
    """Where the patches of a plan of one image lie."""
    for patches in plan.walk():
        for sample, corner in zip(patches.sample.tolist(), patches.corner.tolist(), strict=True):
            yield {"sample": sample, "corner": corner}
