"""The page of a plan: what stands on it is the plan, and it is cheap to make."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import dask.array
import fsspec
import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.cli import main
from patchloom.demo.walk import demo_image
from patchloom.image import Image
from patchloom.planning.plans import Plan
from patchloom.planning.views import plane_view
from patchloom.run.masks import covered_share
from patchloom.run.plan_page import plan_page
from patchloom.run.thumbnails import BUDGET, budget_of, mask_look, thumbnail
from patchloom.run.view_drawing import view_drawing
from tests.truth import SHIPPED_ROOT

Box = tuple[int, int, int, int]
_MB = 1_000_000


class Reader(HTMLParser):
    """What a browser would meet."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.references: list[str] = []
        self.unnamed: list[str] = []
        self.tags: set[str] = set()
        self.tables: dict[str, list[list[str]]] = {}
        self.cell: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember it."""
        found = dict(attrs)
        self.tags.add(tag)
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)
        self.references += [str(v) for k, v in attrs if k in ("src", "href", "xlink:href")]
        silent = found.get("aria-hidden") == "true"
        if tag == "svg" and not silent and not (found.get("role") and found.get("aria-label")):
            self.unnamed.append(tag)
        if tag == "table":
            self.tables[str(found.get("aria-label"))] = []
        elif tag == "tr":
            [*self.tables.values()][-1].append([])
        elif tag in ("td", "th"):
            [*self.tables.values()][-1][-1].append("")
            self.cell = [*self.tables.values()][-1][-1]

    def handle_endtag(self, tag: str) -> None:
        """Close what was opened last."""
        assert self.open.pop() == tag, tag
        if tag in ("td", "th"):
            self.cell = None

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Self-closing SVG elements."""
        self.tags.add(tag)
        self.references += [str(v) for k, v in attrs if k in ("src", "href")]

    def handle_data(self, data: str) -> None:
        """Words; in a table by cell."""
        if self.open and self.open[-1] != "style":
            self.words.append(data)
        if self.cell is not None:
            self.cell[-1] += data


def read(html: str) -> Reader:
    """A page as a browser reads it; it stands alone."""
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open
    assert not reader.unnamed
    assert "script" not in reader.tags
    assert [r for r in reader.references if not r.startswith("data:image/png;base64,")] == []
    assert not re.search(r"@import|url\((?!#)", html)
    return reader


def drawn(html: str, kind: str) -> list[set[Box]]:
    """First and last-but-one pixel (y, x, y, x) of what is drawn, picture by picture."""
    found = []
    for picture in re.findall(r"<svg viewBox=.*?</svg>", html, re.S):
        boxes: set[Box] = set()
        for path in re.findall(rf'<path class="{kind}[ "][^>]*? d="([^"]*)"', picture):
            boxes |= path_boxes(path)
        for path in re.findall(rf'<path class="{kind}" d="([^"]*)"', picture):
            boxes |= path_boxes(path)
        found.append(boxes)
    return found


def path_boxes(path: str) -> set[Box]:
    """The rectangles of a path."""
    pattern = r"M(-?\d+) (-?\d+)h(\d+)v(\d+)h-(\d+)z"
    assert re.sub(pattern, "", path) == ""
    found = set()
    for x, y, wide, tall, back in (map(int, m) for m in re.findall(pattern, path)):
        assert wide == back
        found.add((y, x, y + tall, x + wide))
    return found


def flat(low: list[int], high: list[int]) -> Box:
    if len(low) == 1:
        return 0, low[0], 1, high[0]
    return low[-2], low[-1], high[-2], high[-1]


def wanted(plan: Plan, index: int, sample: int, plane: int | None) -> tuple[set[Box], set[Box]]:
    """What should be drawn, patch by patch: kept, and candidates that are left out."""
    context = plan.cut.context
    kept: set[tuple[int, ...]] = set()
    for row in plan.get_patch_indices(index):
        spec = plan.get_patch_spec(row)
        if spec["sample_idx"] == sample:
            kept.add(tuple(a + c for a, c in zip(spec["coords"], context, strict=True)))
    every = set()
    for k in plan.patching.get_patch_indices(index):
        spec = plan.patching.get_patch_spec(k)
        if spec["sample_idx"] == sample:
            every.add(tuple(spec["coords"]))
    assert kept <= every
    size = plan.cut.proper

    def boxes(corners: set[tuple[int, ...]]) -> set[Box]:
        return {
            flat(list(c), [a + p for a, p in zip(c, size, strict=True)])
            for c in corners
            if plane is None or c[0] <= plane < c[0] + size[0]
        }

    return boxes(kept), boxes(every - kept)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Small plans of one to three axes with masks of other resolutions."""
    ndim = draw(st.integers(1, 3))
    factor = draw(st.integers(1, 4))
    shape = tuple(factor * draw(st.integers(10, 12)) for _ in range(ndim))
    samples = draw(st.sampled_from([None, 3])) if ndim < 3 else None
    axes = ("t" if samples else "") + "zyx"[-ndim:]
    full = (samples, *shape) if samples else shape
    chunks = tuple(draw(st.integers(5, 20)) for _ in full)
    numbers = np.random.default_rng(draw(st.integers(0, 99)))
    array = dask.array.from_array(numbers.integers(0, 99, full, np.uint8), chunks=chunks)
    mask = None
    if draw(st.booleans()):
        mask = numbers.random(tuple(n // factor for n in shape)) > 0.4
    images = patchloom.open_images(array, axes=axes, mask=mask)
    size = [draw(st.integers(3, 9)) for _ in shape]
    config: dict[str, Any] = {"patch_size": size}
    if draw(st.booleans()):
        config |= {"name": "random", "n_patches": draw(st.integers(1, 40))}
    else:
        config |= {"name": "sequential", "overlaps": [draw(st.integers(0, p - 1)) for p in size]}
    if draw(st.booleans()):
        config["context"] = [draw(st.integers(0, 3)) for _ in size]
    edge: Any = draw(st.sampled_from(["drop", "shift", "pad"]))
    least = draw(st.sampled_from([0, 0.3, 0.7])) if mask is not None else 0
    return patchloom.plan(images, config, min_coverage=least, edge=edge)


@settings(max_examples=20, deadline=None)
@given(plans())
def test_each_patch_is_drawn_where_it_lies(plan: Plan) -> None:
    """Kept ones and those that are left out, as the plan says patch by patch."""
    view = plane_view(plan, 0)
    kept, left = wanted(plan, 0, view.sample, view.plane)
    if view.plane is not None and not kept:
        assert view.plane == plan.images[0].layout.space.shape[0] // 2
    shown = view_drawing(view, "image", "0")
    assert drawn(shown, "kept") == [kept]
    assert drawn(shown, "left") == [left]
    samples = [plan.get_patch_spec(row)["sample_idx"] for row in range(plan.n_patches)]
    most = np.bincount(samples).max() if samples else 0
    assert samples.count(view.sample) == most
    assert view.drawn
    assert view.n_kept == view.kept.sum()


@settings(max_examples=10, deadline=None)
@given(plans())
def test_any_plan_has_a_page(plan: Plan) -> None:
    """Lines, planes and stacks; samples, context, padding, empty plans."""
    html = plan_page(plan)
    read(html)
    view = plane_view(plan, 0)
    assert wanted(plan, 0, view.sample, view.plane)[0] in drawn(html, "kept")
    assert drawn(plan._repr_html_(), "kept")


@settings(max_examples=20, deadline=None)
@given(plans())
def test_density_counts_what_chunks_own(plan: Plan) -> None:
    """Where patches are too many to be drawn, chunk by chunk."""
    view = plane_view(plan, 0, most=1)
    space = plan.images[0].layout.space
    count = np.zeros_like(view.density)
    size = plan.cut.proper[0]
    for row in range(plan.n_patches):
        spec = plan.get_patch_spec(row)
        corner = [max(0, a + c) for a, c in zip(spec["coords"], plan.cut.context, strict=True)]
        chunk = [a // c for a, c in zip(corner, space.chunks, strict=True)]
        if view.plane is not None:
            first = max(0, (view.plane - size + 1) // space.chunks[0])
            if not first <= chunk[0] <= view.plane // space.chunks[0]:
                continue
        if spec["sample_idx"] == view.sample:
            count[tuple([0, *chunk][-2:])] += 1
    np.testing.assert_array_equal(view.density, count)
    assert view.drawn == (view.n_kept <= 1)
    assert view.kept.sum() <= 1


@settings(max_examples=20, deadline=None)
@given(plans())
def test_coverage_is_that_of_the_manifest(plan: Plan) -> None:
    """The histogram counts the same shares that a store would hold."""
    image = plan.images[0]
    view = plane_view(plan, 0)
    look, told, spent = mask_look(image, view)
    assert (told, spent) == ("", 0)
    if image.mask is None:
        assert look is None
        return
    assert look is not None
    share = look.share(view.low, view.high, image.layout.space.shape)
    expected = []
    for part in plan.walk():
        corner = part.corner + np.asarray(plan.cut.context)
        mine = part.sample == view.sample
        if view.plane is not None:
            mine &= (corner[:, 0] <= view.plane) & (view.plane < corner[:, 0] + plan.cut.proper[0])
        expected.append(covered_share(plan, part)[mine])
    np.testing.assert_array_equal(share[view.kept], np.concatenate([np.zeros(0), *expected]))


class Counted(MemoryFileSystem):  # type: ignore[misc]  # fsspec is untyped
    """Files in memory that count what leaves them."""

    protocol = "counted"
    nbytes = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        found: str = super()._strip_protocol(path.replace("counted://", "memory://"))
        return found

    def cat_file(self, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> bytes:
        """One read."""
        found: bytes = super().cat_file(path, start, end, **kwargs)
        if not path.endswith((".zarray", ".zattrs", ".zgroup", "zarr.json")):
            Counted.nbytes += len(found)
        return found


@pytest.fixture(scope="module", autouse=True)
def _counted() -> Iterator[None]:
    fsspec.register_implementation("counted", Counted, clobber=True)
    yield
    store = Counted.store
    for path in [p for p in store if p.startswith("/counted-")]:
        del store[path]


def counted(folder: Path, name: str) -> str:
    """A folder copied to where reads are counted."""
    for path in folder.rglob("*"):
        if path.is_file():
            to = f"/counted-{name}/{path.relative_to(folder).as_posix()}"
            Counted().pipe_file(to, path.read_bytes())
    return f"counted:///counted-{name}"


def fetched(plan: Plan) -> tuple[int, str]:
    """Bytes of chunks and shard indices that making the page of a plan takes, and the page."""
    Counted.nbytes = 0
    html = plan_page(plan)
    read(html)
    return Counted.nbytes, html


def noise(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return np.random.default_rng(5).integers(0, 60_000, shape, np.uint16)


def pyramid(path: Path, pixels: np.ndarray[Any, Any], chunk: int, **more: Any) -> Path:
    """An OME-Zarr 0.5 image (c, y, x) of four levels."""
    root = zarr.create_group(path, zarr_format=3)
    datasets: list[Any] = []
    for factor in (1, 2, 4, 8):
        part = pixels[:, ::factor, ::factor]
        array = root.create_array(
            f"s{factor}", shape=part.shape, chunks=(1, chunk, chunk), dtype=part.dtype, **more
        )
        array[...] = part
        scale = {"type": "scale", "scale": [1, factor, factor]}
        datasets.append({"path": f"s{factor}", "coordinateTransformations": [scale]})
    names = (("c", "channel"), ("y", "space"), ("x", "space"))
    axes: list[Any] = [{"name": n, "type": t} for n, t in names]
    scales = [{"axes": axes, "datasets": datasets}]
    root.attrs["ome"] = {"version": "0.5", "multiscales": scales}
    return path


GRID = {"name": "sequential", "patch_size": [64, 64]}


def test_a_real_pyramid_is_read_under_a_megabyte() -> None:
    """The demo's image with its mask, and the sets that ship with the tests."""
    url = counted(demo_image(), "demo")
    images = patchloom.open_images(url, mask="tissue")
    plan = patchloom.plan(images, GRID, min_coverage=0.5)
    nbytes, html = fetched(plan)
    assert 300_000 < nbytes < _MB
    assert "without pixels" not in html
    for path in sorted(SHIPPED_ROOT.glob("organoid_confocal/*.zarr")):
        images = patchloom.open_images(counted(path, path.name))
        plan = patchloom.plan(images, {"name": "sequential", "patch_size": [4, 32, 32]})
        nbytes, html = fetched(plan)
        assert 0 < nbytes < _MB
        assert "without pixels" not in html


@pytest.mark.parametrize("shards", [None, (1, 1024, 1024)])
def test_the_coarsest_level_that_suffices_is_read(tmp_path: Path, shards: Any) -> None:
    """Noise does not compress: only a level that is small enough can be read whole."""
    path = pyramid(tmp_path / "a.zarr", noise((2, 2048, 2048)), 128, shards=shards)
    images = patchloom.open_images(counted(path, f"pyramid-{shards is None}"))
    nbytes, html = fetched(patchloom.plan(images, GRID))
    # Level 2 has the pixels, but 1 MiB of them.
    assert re.findall(r"pixels of level (\d)", html) == ["3"]
    assert 2 * 256 * 256 < nbytes < _MB
    assert "chunks of this plane were read" not in html


@pytest.mark.parametrize("shards", [None, (1, 512, 512)])
def test_without_a_pyramid_a_part_is_read(tmp_path: Path, shards: Any) -> None:
    """Whole chunks, spread evenly, at their places; the rest stays blank."""
    pixels = noise((1, 1024, 1024))
    array = zarr.create_array(
        tmp_path / "b.zarr", shape=pixels.shape, chunks=(1, 128, 128), shards=shards, dtype="u2"
    )
    array[...] = pixels
    url = counted(tmp_path / "b.zarr", f"flat-{shards is None}")
    images = patchloom.open_images(url, axes="cyx")
    plan = patchloom.plan(images, GRID)
    nbytes, html = fetched(plan)
    assert 500_000 < nbytes < _MB
    n = int(unescape(html).split(" of the 64 chunks of this plane were read")[0].split(">")[-1])
    assert 15 <= n < 64
    look, _ = thumbnail(images[0], plane_view(plan, 0), side=512)
    assert look is not None
    blocks = look.known.reshape(8, 64, 8, 64)
    assert (blocks.all((1, 3)) == blocks.any((1, 3))).all()
    assert blocks.all((1, 3)).sum() == n
    # Spread: no two rows of chunks differ by more than two.
    assert np.ptp(blocks.all((1, 3)).sum(1)) <= 2
    mean = pixels[0].reshape(512, 2, 512, 2).mean((1, 3))
    np.testing.assert_allclose(look.pixels[0][look.known], mean[look.known])


def test_files_on_this_machine_are_read_whole(tmp_path: Path) -> None:
    """Chunks of plain files are large; nobody pays for reading them."""
    pixels = noise((1024, 1024))
    path = tmp_path / "near.zarr"
    zarr.create_array(path, shape=pixels.shape, chunks=pixels.shape, dtype="u2")[...] = pixels
    html = plan_page(patchloom.plan(patchloom.open_images(path), GRID))
    assert "without pixels" not in html
    assert "chunks of this plane were read" not in html
    [near] = patchloom.open_images(path)
    [far] = patchloom.open_images(counted(path, "far"))
    assert budget_of(far) == budget_of(far, 24) == BUDGET
    assert budget_of(near) > budget_of(near, 24) > 10 * BUDGET


def test_a_huge_chunk_is_left_alone(tmp_path: Path) -> None:
    """The plan is drawn without pixels, and says so."""
    pixels = noise((1024, 1024))
    zarr.create_array(tmp_path / "c.zarr", shape=pixels.shape, chunks=pixels.shape, dtype="u2")[
        ...
    ] = pixels
    images = patchloom.open_images(counted(tmp_path / "c.zarr", "huge"))
    nbytes, html = fetched(patchloom.plan(images, GRID))
    assert nbytes == 0
    assert "Drawn without pixels: one chunk is more" in html
    assert len([boxes for boxes in drawn(html, "kept") if len(boxes) == 256]) == 1


def test_a_mask_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    """Without it the page has no outline and no histogram, and says why."""
    zarr.create_array(tmp_path / "d.zarr", shape=(512, 512), chunks=(128, 128), dtype="u2")
    mask = noise((1200, 1200)) % 2
    zarr.create_array(
        tmp_path / "m.zarr", shape=mask.shape, chunks=(1200, 1200), dtype="u2", compressors=None
    )[...] = mask
    images = patchloom.open_images(
        counted(tmp_path / "d.zarr", "d"), mask=counted(tmp_path / "m.zarr", "m")
    )
    nbytes, html = fetched(patchloom.plan(images, GRID, min_coverage=0.1))
    assert nbytes < _MB
    assert "The mask is not drawn: it is more" in html
    assert "The masks are larger than what may be read" in html


def test_stored_sizes_are_those_of_the_objects(tmp_path: Path) -> None:
    """Absent chunks have none; of shards their index tells."""
    pixels = noise((64, 96))
    pixels[:32, :32] = 0
    for shards in (None, (64, 96)):
        path = tmp_path / f"s{shards is None}.zarr"
        zarr.create_array(path, shape=pixels.shape, chunks=(32, 32), shards=shards, dtype="u2")[
            ...
        ] = pixels
        [image] = patchloom.open_images(path)
        reader: Any = image.source.reader()
        index = np.stack(np.meshgrid(range(2), range(3), indexing="ij"), -1).reshape(-1, 2)
        found = reader.stored(index)
        assert found[0] == 0
        assert (found[1:] > 1000).all()
        files = [p.stat().st_size for p in path.rglob("c/**/*") if p.is_file()]
        more = 0 if shards is None else 16 * 6 + 4
        assert found.sum() + more == sum(files)
        assert reader.reads.chunks == 0


def test_counts_add_up() -> None:
    """By image, by reason and by split, on the page as in the plan."""
    numbers = np.random.default_rng(1)
    pixels = [numbers.integers(0, 99, (90 + k, 120), np.uint8) for k in range(5)]
    masks = [numbers.random((30, 40)) > 0.5 for _ in pixels]
    images = patchloom.open_images(pixels, mask=masks)
    config = {"name": "sequential", "patch_size": [16, 16]}
    plan = patchloom.plan(images, config, min_coverage=0.5)
    assert plan.rejected
    plan = replace(plan, class_counts={"cell": 7, "<b>rare": 1})
    reader = read(plan_page(plan, cost={"bytes": {"fetch": 3}, "money": None}))
    rows = reader.tables["Counts of all images"][1:]
    assert [r[0] for r in rows] == [image.id for image in images]
    for k, row in enumerate(rows):
        offered, kept, left = map(int, row[3:6])
        assert kept == len(plan.get_patch_indices(k))
        assert offered == len(plan.patching.get_patch_indices(k)) == kept + left
    assert sum(int(r[4]) for r in rows) == plan.n_patches
    reasons = {r[0]: int(r[1]) for r in reader.tables["Every candidate is counted once"][1:]}
    assert reasons.pop("candidates") == sum(reasons.values()) == sum(int(r[3]) for r in rows)
    assert reasons == {"kept": plan.n_patches, **plan.rejected}
    classes = reader.tables["Kept patches by class"]
    assert [(r[0], r[2]) for r in classes] == [("cell", "7"), ("<b>rare", "1")]
    [cost] = [t for name, t in reader.tables.items() if name.startswith("What it will take")]
    assert [r[1] for r in cost] == ["3", "not\xa0known"]
    # Its histogram is over what is listed: here that is everything.
    assert any("over all candidates" in word for word in reader.words)


class Halves(Plan):
    """A plan with two splits: left and right."""

    @property
    def split_names(self) -> tuple[str, ...]:
        """Their names."""
        return ("train", "val")

    def split_of(self, patches: Any) -> Any:
        """Right of the middle is for validation."""
        return (patches.corner[:, -1] >= 64).astype(np.int8)


def test_splits_are_told_apart() -> None:
    """By class, colour and dashes; counted by image and in all."""
    images = patchloom.open_images([np.zeros((64, 128), "u1")] * 2, ids=["a", "b"])
    made = patchloom.plan(images, {"name": "sequential", "patch_size": [32, 32]})
    plan = Halves(**{f.name: getattr(made, f.name) for f in fields(made)})
    html = plan_page(plan)
    reader = read(html)
    for name, left in (("split-0", 0), ("split-1", 64)):
        found = [boxes for boxes in drawn(html, f"kept {name}") if boxes]
        assert len(found) == 2
        assert found[0] == {(y, x, y + 32, x + 32) for y in (0, 32) for x in (left, left + 32)}
    dashes = re.findall(r'class="kept split-1"[^>]*stroke-dasharray="([^"]+)"', html)
    assert len(dashes) == 2
    assert [(r[0], r[2]) for r in reader.tables["Kept patches by split"]] == [
        ("train", "8"),
        ("val", "8"),
    ]
    assert [r[-2:] for r in reader.tables["Counts of all images"]] == [
        ["train", "val"],
        ["4", "4"],
        ["4", "4"],
    ]


def test_names_are_text() -> None:
    """What others wrote is shown, never run."""
    evil = '<script>alert(\'&amp;"1")</script>'
    images = patchloom.open_images(np.zeros((40, 40), "u1"), ids=[evil])
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [16, 16]})
    plan = replace(plan, class_counts={evil: 1}, rejected={evil: 0})
    html = plan_page(plan, title=evil, cost={evil: evil})
    assert "<script" not in html
    assert any(evil in word for word in read(html).words)
    assert "<script" not in plan._repr_html_()


def test_many_images_are_chosen_evenly(tmp_path: Path) -> None:
    """At most 24, the table counts all, and a page stays small."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    images = patchloom.open_images([pixels] * 100)
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [16, 16]})
    html = plan_page(plan)
    reader = read(html)
    assert len(drawn(html, "kept")) == 24
    assert any("24 of 100 images" in word and "76 are not shown" in word for word in reader.words)
    assert len(reader.tables["Counts of all images"]) == 101
    assert len(html) < 2 * _MB


def test_noise_makes_no_large_page() -> None:
    """Pictures that do not compress are made coarser."""
    images = patchloom.open_images([noise((3, 400, 400))] * 24, axes="cyx")
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [16, 16]})
    assert len(plan_page(plan)) < 5 * _MB


def test_a_plan_of_very_many_patches_is_cheap() -> None:
    """A hundred million: seconds, and a picture of how many each chunk keeps."""
    array = dask.array.zeros((100_000, 100_000), chunks=1_000, dtype="u1")
    images = patchloom.open_images(array)
    plan = patchloom.plan(images, {"name": "grid", "patch_size": [64, 64], "stride": [10, 10]})
    assert plan.n_patches > 99_000_000
    begin = time.perf_counter()
    html = plan_page(plan)
    shown = plan._repr_html_()
    assert time.perf_counter() - begin < 15
    assert any("too many to draw" in word for word in read(html).words)
    assert len(html) < 200_000
    assert len(shown) < 64 * 1024


def test_a_page_goes_to_any_url(tmp_path: Path) -> None:
    """Paths, path objects and URLs; what stood there is replaced."""
    images = patchloom.open_images(np.zeros((40, 40), "u1"))
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [16, 16]})
    plan.to_html(tmp_path / "new" / "p.html")
    plan.to_html(str(tmp_path / "new" / "p.html"), title="Again")
    assert "<h1>Again</h1>" in (tmp_path / "new" / "p.html").read_text("utf-8")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["p.html"]
    plan.to_html("memory://pages/p.html", storage_options={})
    assert MemoryFileSystem().cat_file("/pages/p.html").startswith(b"<!doctype html>")
    with pytest.raises(patchloom.errors.WriteError, match=r"p\.html.below \("):
        plan.to_html(tmp_path / "new" / "p.html" / "below")


def test_a_notebook_reads_no_pixel(tmp_path: Path) -> None:
    """Its picture is geometry; the page of a broken source says what is wrong."""
    pixels = noise((128, 128))
    path = tmp_path / "e.zarr"
    zarr.create_array(path, shape=pixels.shape, chunks=(64, 64), dtype="u2")[...] = pixels
    plan = patchloom.plan(patchloom.open_images(path), GRID)
    for chunk in (path / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"broken")
    shown = plan._repr_html_()
    assert "<image" not in shown
    assert len(drawn(shown, "kept")[0]) == 4
    html = plan_page(plan)
    assert "Drawn without pixels, they could not be read" in html
    assert len(drawn(html, "kept")[0]) == 4


def test_the_command_writes_it(tmp_path: Path) -> None:
    """``patchloom plan JOB.yaml --html PATH``."""
    (tmp_path / "job.yaml").write_text(
        f"images: {demo_image()}\nmask: tissue\noutput: {tmp_path / 'out.zarr'}\n"
        "patching: {name: sequential, patch_size: [64, 64]}\n"
    )
    page = tmp_path / "plan.html"
    told = CliRunner().invoke(
        main, ["plan", str(tmp_path / "job.yaml"), "--html", str(page)], catch_exceptions=False
    )
    assert told.exit_code == 0
    read(page.read_text("utf-8"))


@pytest.mark.parametrize("shape", [(3, 300, 250), (5, 5, 240, 241)])
def test_a_thumbnail_is_the_mean_of_pixels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Whatever the chunks, ragged ones included."""
    pixels = noise(shape)
    chunks = (2, 4, 70, 90) if len(shape) == 4 else (2, 90, 70)
    path = tmp_path / "f.zarr"
    zarr.create_array(path, shape=shape, chunks=chunks, dtype="u2")[...] = pixels
    [image] = patchloom.open_images(path, axes="cyx" if len(shape) == 3 else "czyx")
    assert isinstance(image, Image)
    plan = patchloom.plan([image], {"name": "sequential", "patch_size": [4] * (len(shape) - 1)})
    look, told = thumbnail(image, plane_view(plan, 0), nbytes=10**9, side=60)
    assert look is not None
    assert told == ""
    plane = pixels if len(shape) == 3 else pixels[:, shape[1] // 2]
    steps = [-(-n // 60) for n in plane.shape[1:]]
    tall, wide = (-(-n // s) for n, s in zip(plane.shape[1:], steps, strict=True))
    for y in range(0, tall, 7):
        for x in range(0, wide, 7):
            block = plane[:4, y * steps[0] : (y + 1) * steps[0], x * steps[1] : (x + 1) * steps[1]]
            np.testing.assert_allclose(look.pixels[:, y, x], block.mean((1, 2)))
    assert look.known.all()
    assert look.box == (0, 0, tall * steps[0], wide * steps[1])
