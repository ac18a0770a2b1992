"""The demo works on a fresh machine: a store, a page and a job file, with no network."""

from __future__ import annotations

import io
import re
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import patchloom
from patchloom.demo.walk import DemoResult, demo_image, run_demo
from patchloom.errors import ExistsError
from patchloom.run.page import page
from patchloom.run.pictures import outline, png
from patchloom.run.scene import scene_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoResult]:
    """The demo's folder and result."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    return folder, run_demo(folder, progress=False)


class Reader(HTMLParser):
    """What a browser would meet: tags that balance, references, words that stand for images."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.references: list[str] = []
        self.images = 0
        self.unnamed: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember it."""
        found = dict(attrs)
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)
        self.references += [str(v) for k, v in attrs if k in ("src", "href", "xlink:href")]
        self.images += tag == "img"
        if (tag == "img" and not found.get("alt")) or (
            tag == "svg" and not (found.get("role") == "img" and found.get("aria-label"))
        ):
            self.unnamed.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close what was opened last."""
        assert self.open.pop() == tag, tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Self-closing SVG elements."""
        self.references += [str(v) for k, v in attrs if k in ("src", "href")]

    def handle_data(self, data: str) -> None:
        """Headings name the sections."""
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


def read(html: str) -> Reader:
    """A page as a browser reads it."""
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open
    return reader


def test_the_demo_makes_a_complete_store(made: tuple[Path, DemoResult]) -> None:
    """Every needed chunk was decoded once, others never."""
    folder, result = made
    store = patchloom.open_patches(folder / "patches.zarr")
    assert store.complete
    assert len(store) == result.plan.n_patches == result.report.n_patches == 109
    assert result.plan.rejected == {"outside the mask": 21}
    assert result.report.read_amplification == 1.0
    assert result.report.chunks_needed < result.plan.images[0].grid.n_chunks
    assert store.labels is not None


def test_patches_are_slices_of_the_shipped_image(made: tuple[Path, DemoResult]) -> None:
    """Bit for bit, read by zarr-python alone."""
    folder, _ = made
    pixels: Any = zarr.open_array(demo_image() / "0", mode="r")[:]
    labels: Any = zarr.open_array(demo_image() / "labels" / "nuclei" / "0", mode="r")[:]
    mask: Any = zarr.open_array(demo_image() / "labels" / "tissue" / "0", mode="r")[:]
    covered = np.kron(mask, np.ones((4, 4)))
    store = patchloom.open_patches(folder / "patches.zarr")
    assert store.labels is not None
    images: Any = store.images[:]
    cut: Any = store.labels[:]
    for row in store.manifest.to_pylist():
        y, x, k = row["start_y"], row["start_x"], row["row"]
        box = slice(y, y + 64), slice(x, x + 64)
        np.testing.assert_array_equal(images[k], pixels[:, *box])
        np.testing.assert_array_equal(cut[k, 0], labels[box])
        assert row["coverage"] == pytest.approx(covered[box].mean(), abs=1e-12)
        assert row["coverage"] >= 0.5


def test_the_page_shows_each_thing(made: tuple[Path, DemoResult]) -> None:
    """Image and mask, plan, coverage, patches, figures, statistics: sections that read well."""
    folder, result = made
    html = (folder / "index.html").read_text("utf-8")
    reader = read(html)
    for heading in (
        "patchloom demo: cardiomyocytes",
        "The image and its mask",
        "The planned patches",
        "Coverage",
        "Patches from the store",
        "The plan",
        "The run",
        "Statistics",
        "Go on",
    ):
        assert heading in reader.headings
    assert reader.unnamed == []
    assert "109 patches of 3 x 64 x 64" in html
    assert "kept (109)" in html
    assert "left out (21)" in html
    assert html.count("coverage 1.000, kept") > 50
    assert result.plan.fingerprint in html
    store = patchloom.open_patches(folder / "patches.zarr")
    shown = [i for i in store.manifest["patch_id"].to_pylist() if i in html]
    assert len(shown) == 12
    # Each with its labels.
    assert reader.images == 24


def test_the_page_stands_alone(made: tuple[Path, DemoResult]) -> None:
    """No script, and nothing that a browser would fetch."""
    html = (made[0] / "index.html").read_text("utf-8")
    outside = [
        r for r in read(html).references if not r.startswith(("data:image/png;base64,", "#"))
    ]
    assert outside == []
    assert "<script" not in html
    assert not re.search(r"@import|url\((?!#)", html)
    assert len(html) < 2_000_000


def test_a_second_run_finds_everything_done(tmp_path: Path) -> None:
    """No work, the same store; both runs stand on the page, and an edited job file stays."""
    run_demo(tmp_path, progress=False)
    store = tmp_path / "patches.zarr"
    before = {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}
    with (tmp_path / "job.yaml").open("a") as file:
        file.write("seed: 3\n")
    again = run_demo(tmp_path, progress=False)
    assert (again.report.n_tasks, again.report.chunk_reads, again.report.bytes_written) == (0, 0, 0)
    assert again.report.complete
    assert before == {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}
    html = (tmp_path / "index.html").read_text("utf-8")
    assert ">run 1</th>" in html
    assert ">run 2</th>" in html
    assert (tmp_path / "job.yaml").read_text().endswith("seed: 3\n")


def test_the_demos_job_is_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``patchloom run`` takes it, from any folder, and finds it done."""
    from patchloom.config import load_job
    from patchloom.run.jobs import materialize_job, plan_of

    monkeypatch.chdir(tmp_path)
    result = run_demo("here", progress=False)
    assert result.page == str(tmp_path / "here" / "index.html")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    job = load_job(tmp_path / "here" / "job.yaml")
    assert materialize_job(job, plan_of(job), progress=False).n_tasks == 0


@pytest.mark.parametrize("name", ["index.html", "job.yaml"])
def test_a_strangers_file_is_not_written_over(tmp_path: Path, name: str) -> None:
    """The demo refuses before it does anything."""
    (tmp_path / name).write_text("mine")
    with pytest.raises(ExistsError, match=f"has a {name} of another origin"):
        run_demo(tmp_path, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_the_shipped_image_is_small_and_licensed() -> None:
    """At most 2.5 MB, with its licence and origin beside it."""
    folder = demo_image().parent
    size = sum(p.stat().st_size for p in demo_image().rglob("*") if p.is_file())
    assert size < 2_500_000
    assert "BSD 3-Clause" in (folder / "LICENSE").read_text("utf-8")
    assert "fractal-ome-zarr-examples" in (folder / "README.md").read_text("utf-8")


def test_a_page_escapes_what_others_wrote() -> None:
    """Ids and channel names are text, not markup."""
    image = np.random.default_rng(0).integers(0, 9, (40, 40), np.uint8)
    images = patchloom.open_images(image, ids=["<script>alert(1)</script>"])
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [16, 16]})
    report = patchloom.materialize(plan, "memory://escaped.zarr", progress=False)
    store = patchloom.open_patches("memory://escaped.zarr")
    html = page(plan, store, [report.to_dict()], title="<b>", job="<i>", credit="<u>")
    assert read(html).images == 4
    for markup in ("<script", "<i>a", "<u>", "<b></"):
        assert markup not in html


@pytest.mark.parametrize(
    ("shape", "axes", "mask", "size", "more"),
    [
        ((20, 100, 90), "zyx", (20, 50, 45), (8, 32, 32), {"min_coverage": 0.3}),
        ((20, 100, 90), "zyx", (50, 45), (8, 32, 32), {"min_coverage": 0.3}),
        ((500,), "x", None, (50,), {}),
        ((3, 2, 300), "tcx", None, (50,), {}),
        ((64, 64), "yx", (64, 64), (32, 32), {"min_coverage": 1}),
        ((100, 100), "yx", None, (64, 64), {"edge": "pad"}),
        ((1500, 1100), "yx", None, (64, 64), {}),
    ],
)
def test_a_page_shows_any_plan(
    shape: tuple[int, ...], axes: str, mask: Any, size: tuple[int, ...], more: dict[str, Any]
) -> None:
    """Stacks, lines, padded and empty plans, images that are larger than the picture."""
    numbers = np.random.default_rng(2)
    image = numbers.integers(0, 200, shape, np.uint8)
    given = None if mask is None else numbers.random(mask) > 0.5
    images = patchloom.open_images(image, axes=axes, mask=given)
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": list(size)}, **more)
    url = f"memory://page-{plan.fingerprint}.zarr"
    report = patchloom.materialize(plan, url, progress=False)
    html = page(plan, patchloom.open_patches(url), [report.to_dict()])
    assert read(html).unnamed == []


def test_a_page_shows_what_was_appended() -> None:
    """Patches of all additions; reserved rows between them hold none."""
    url, reports = "memory://page-appended.zarr", []
    data = np.random.default_rng(4).integers(1, 200, (2, 40, 40), np.uint8)
    for n in (1, 2):
        images = patchloom.open_images([*data[:n]], ids=["one", "two"][:n])
        config = {"name": "sequential", "patch_size": [20, 20]}
        plan = patchloom.plan(images, config, rows_per_shard=5)
        reports.append(patchloom.materialize(plan, url, progress=False).to_dict())
    html = page(plan, patchloom.open_patches(url), reports)
    shown = re.findall(r"Patch (\d+) of (one|two)", html)
    assert shown == [(str(row), "one" if row < 5 else "two") for row in (0, 1, 2, 3, 5, 6, 7, 8)]
    assert "8 of 8, read back" in html


def test_a_scene_shows_what_the_plan_holds() -> None:
    """Its kept patches, coverages and needed chunks are those of the manifest."""
    numbers = np.random.default_rng(3)
    image = numbers.integers(0, 200, (200, 260), np.uint8)
    mask = np.zeros((50, 65), bool)
    mask[10:30, 5:30] = True
    chunked = dask.array.from_array(image, chunks=(32, 32), name="scene")
    images = patchloom.open_images(chunked, mask=mask, ids=["scene"])
    config = {"name": "sequential", "patch_size": [24, 40], "overlaps": [4, 10]}
    plan = patchloom.plan(images, config, min_coverage=0.25)
    patchloom.materialize(plan, "memory://scene.zarr", progress=False)
    manifest = patchloom.open_patches("memory://scene.zarr").manifest.to_pylist()
    scene = scene_of(plan)
    shown = {
        (*corner, round(share, 12))
        for corner, share, kept in zip(
            scene.corner.tolist(), scene.coverage.tolist(), scene.kept.tolist(), strict=True
        )
        if kept
    }
    assert shown == {(r["start_y"], r["start_x"], round(r["coverage"], 12)) for r in manifest}
    needed = np.zeros_like(scene.needed)
    for y, x, _ in shown:
        needed[y // 32 : (y + 23) // 32 + 1, x // 32 : (x + 39) // 32 + 1] = True
    np.testing.assert_array_equal(scene.needed, needed)
    assert int(needed.sum()) == plan.chunks_needed
    np.testing.assert_array_equal(scene.pixels[0], image)


def decoded(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A PNG file read by the letter of its specification."""
    file = io.BytesIO(data[8:])
    body, width, height, depth = b"", 0, 0, 0
    while head := file.read(8):
        length, name = struct.unpack(">I4s", head)
        part = file.read(length)
        assert struct.unpack(">I", file.read(4))[0] == zlib.crc32(name + part)
        if name == b"IHDR":
            width, height, _, kind = struct.unpack(">IIBB", part[:10])
            depth = {0: 1, 2: 3, 6: 4}[kind]
        elif name == b"IDAT":
            body += part
    raw = np.frombuffer(zlib.decompress(body), np.uint8).reshape(height, -1).astype(int)
    out = np.zeros((height + 1, (width + 1) * depth), int)
    for y in range(height):
        for k in range(width * depth):
            left, up, corner = out[y + 1, k], out[y, k + depth], out[y, k]
            near = min((left, up, corner), key=lambda v: abs(left + up - corner - v))
            guess = (0, left, up, (left + up) // 2, near)[raw[y, 0]]
            out[y + 1, k + depth] = (raw[y, k + 1] + guess) % 256
    found = out[1:, depth:].astype(np.uint8)
    return found if depth == 1 else found.reshape(height, width, depth)


@given(
    hnp.arrays(
        np.uint8,
        st.one_of(
            st.tuples(st.integers(1, 6), st.integers(1, 6)),
            st.tuples(st.integers(1, 6), st.integers(1, 6), st.sampled_from([3, 4])),
        ),
    )
)
def test_a_png_holds_its_pixels(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """Whatever filter was chosen for a row."""
    np.testing.assert_array_equal(decoded(png(pixels)), pixels)


@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 8), st.integers(1, 8))))
def test_an_outline_is_as_long_as_the_border(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
    """Each edge between different pixels is drawn once."""
    length = 0
    for x, y, way, stop in re.findall(r"M(\d+) (\d+)([HV])(\d+)", outline(mask, (0, 0), (1, 1))):
        length += int(stop) - int(x if way == "H" else y)
    edges = np.abs(np.diff(mask.astype(int), axis=0)).sum()
    assert length == edges + np.abs(np.diff(mask.astype(int), axis=1)).sum()
