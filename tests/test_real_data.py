"""The whole job on every Zarr set, from local disk and from a real S3, against outside truth."""

from __future__ import annotations

import json
import math
import re
import uuid
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import patchloom
from patchloom.errors import NotAnArrayError, SourceMissingError
from patchloom.run.sharing import unshared
from patchloom.summaries import Summary, percentiles, summarize
from tests import truth
from tests.servers.s3 import S3Server
from tests.truth import ArrayTruth

# Channels and samples alike count as samples here, so that statistics pool all pixels as the
# truth does.
AXES = {1: "x", 2: "yx", 3: "zyx", 4: "szyx", 5: "stzyx"}
ZARRS = truth.all_truths(containers={"zarr"})


def whole_job(url: str, options: dict[str, Any], out: str, found: ArrayTruth) -> None:
    """Cut a set into patches that cover it, and find its truth in what was written."""
    entry = found.entry
    axes = AXES[len(entry.shape)]
    [image] = patchloom.open_images(url, axes=axes, storage_options=options)
    assert (image.shape, image.dtype) == (entry.shape, entry.dtype)
    for patch in entry.patches:
        start, stop = [s.start for s in patch.slices], [s.stop for s in patch.slices]
        assert truth.digest(image.read(start, stop)) == patch.sha256

    space = [n for a, n in zip(axes, entry.shape, strict=True) if a in "zyx"]
    size = [min(-(-n // 3), 192) for n in space]
    plan = patchloom.plan(
        image, {"name": "sequential", "patch_size": size}, edge="pad", memory="2 GiB"
    )
    with unshared():
        report = patchloom.materialize(
            plan, out, percentiles=(1, 50, 99), storage_options=options, progress=False
        )
    predicted = plan.summary()
    assert report.chunk_reads == predicted["chunk_reads"]
    assert report.chunks_needed == predicted["chunks_needed"] == image.grid.n_chunks
    assert report.peak_memory <= predicted["peak_memory"]

    store = patchloom.open_patches(out, storage_options=options)
    samples = math.prod(n for a, n in zip(axes, entry.shape, strict=True) if a in "st")
    copy = np.zeros((samples, *space), entry.dtype)
    for row in store.manifest.to_pylist():
        corner = [row[f"start_{a}"] for a in axes if a in "zyx"]
        inside = tuple(slice(c, min(c + p, n)) for c, p, n in zip(corner, size, space, strict=True))
        part = tuple(slice(0, s.stop - s.start) for s in inside)
        copy[row["sample"]][inside] = store[row["row"]][0][part]
    assert entry.matches(copy.reshape(entry.shape))

    table = store.statistics.isel(image=0, channel=0)
    assert table["count"].item() == copy.size
    for name in ("min", "max", "mean", "std"):
        assert math.isclose(table[name].item(), entry.raw[name], rel_tol=1e-6, abs_tol=1e-12), name
    if table.attrs["exact"]:
        np.testing.assert_allclose(
            table["percentile"], entry.raw["p1_p50_p99"], rtol=1e-6, atol=1e-12
        )


@pytest.mark.parametrize("found", ZARRS, ids=lambda t: t.id)
def test_truth_from_local_disk(found: ArrayTruth, tmp_path: Path) -> None:
    """Every readable Zarr array gives its truth, through patches."""
    whole_job(str(found.path), {}, str(tmp_path / "out.zarr"), found)


@pytest.fixture(scope="module")
def uploaded(s3_server: S3Server) -> Callable[[ArrayTruth], str]:
    """Puts a set into a bucket, once, and names an array in it."""
    import fsspec

    fs = fsspec.filesystem("s3", **s3_server.storage_options)
    bucket = s3_server.fresh_bucket()
    known: dict[Path, str] = {}

    def url(found: ArrayTruth) -> str:
        root = next(p for p in found.path.parents if p.name == found.set)
        if root not in known:
            known[root] = f"{bucket}/set-{len(known)}"
            inside = [p for p in root.rglob("*") if p.is_file()]
            targets = [f"{known[root]}/{p.relative_to(root).as_posix()}" for p in inside]
            fs.put([str(p) for p in inside], targets)
        return f"{known[root]}/{found.path.relative_to(root).as_posix()}"

    return url


@pytest.mark.parametrize("found", ZARRS, ids=lambda t: t.id)
def test_truth_from_s3(
    found: ArrayTruth, uploaded: Callable[[ArrayTruth], str], s3_server: S3Server
) -> None:
    """The same from a real S3 endpoint over HTTP, written back to it."""
    out = f"{s3_server.fresh_bucket()}/out.zarr"
    whole_job(uploaded(found), s3_server.storage_options, out, found)


def extra(root: Path) -> dict[str, Any]:
    """What a set's truth says beside its arrays."""
    found: dict[str, Any] = json.loads((root / "truth.json").read_text()).get("_extra", {})
    return found


def test_text_and_objects_are_refused_by_their_type() -> None:
    """What the truth has no numbers for is no image, and the error says what it is."""
    found = 0
    for root in truth.data_roots():
        document = root / "zarr_adversarial" / "truth.json"
        entries = json.loads(document.read_text()) if document.exists() else {}
        for key, entry in entries.items():
            if not entry.get("truth"):
                told = entry["metadata"].get("dtype") or entry["metadata"]["data_type"]
                name = {"|O": "json2|StringDType|object|O", "string": "StringDType|T"}.get(told)
                with pytest.raises(NotAnArrayError, match=name or re.escape(told)):
                    patchloom.open_images(document.parent / key)
                found += 1
    assert found >= 13


def test_groups_list_their_arrays_and_a_zip_file_of_one_opens(
    data_set: Callable[[str], Path],
) -> None:
    """Each array of a group by its path inside, and the same from the archive."""
    root = data_set("zarr_adversarial")
    archive = root / "zarrita/v3/data.zipped_from_parent.zarr.zip"
    containers = [archive] if archive.exists() else []
    for container in [root / "zarrita/v3/data.zarr", root / "zarrita/v2/data.zarr", *containers]:
        group = root / "zarrita" / container.parent.name / "data.zarr"
        with pytest.raises(NotAnArrayError, match=r"1d\.chunked\.i2"):
            patchloom.open_images(container)
        arrays = [t for t in ZARRS if t.path.parent == group]
        assert arrays
        for one in arrays:
            [image] = patchloom.open_images(f"{container}::{one.path.name}")
            assert one.entry.matches(image.read([0] * image.ndim, image.shape))


def test_hierarchies_without_arrays_say_what_is_missing(data_set: Callable[[str], Path]) -> None:
    """Real metadata of plates, series and images: the first thing that is not there is named."""
    folder = data_set("zarr_adversarial") / "ome_metadata_only/v05"
    if not folder.exists():
        pytest.skip("hierarchies without arrays are only in $PATCHLOOM_TEST_DATA")
    for path in sorted(folder.iterdir()):
        told = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]
        if "plate" in told:
            words = rf"lacks \d+ of {len(told['plate']['wells'])}: \['[A-Z]/\d+'"
        elif "multiscales" in told:
            words = f"level '{told['multiscales'][0]['datasets'][0]['path']}'.*is not there"
        else:
            words = "lists its series under OME, or has images 0, 1"
        with pytest.raises(SourceMissingError, match=words):
            patchloom.open_images(path)
    well = folder / "76-45.ome.zarr/A/1"
    with pytest.raises(SourceMissingError, match=r"array.*lacks 1 of 1: \['0/0'\]"):
        patchloom.open_images(well)


@pytest.mark.parametrize("well", ["A06", "G04"])
def test_organoid_grid_counts(well: str, data_set: Callable[[str], Path]) -> None:
    """Patches kept under real labels are as many as an independent count found."""
    root = data_set("organoid_confocal")
    known = extra(root).get(well)
    if known is None:
        pytest.skip("the organoids' full resolution is only in $PATCHLOOM_TEST_DATA")
    [image] = patchloom.open_images(root / f"{well}.ome.zarr", mask="nuclei")
    for name in ("grid", "grid2"):
        counts = known[name]
        config = {"name": "sequential", "patch_size": counts["patch"]}
        area = math.prod(counts["patch"])
        for share, key in (
            (0, "n_full_patches"),
            (Fraction(1, area), "n_any_fg"),
            (0.01, "n_fg_ge_1pct"),
            (0.5, "n_fg_ge_50pct"),
        ):
            assert patchloom.plan(image, config, min_coverage=share).n_patches == counts[key], key


def test_organoid_channels(data_set: Callable[[str], Path]) -> None:
    """Channel by channel, maxima and zeros equal the truth, in one pass."""
    root = data_set("organoid_confocal")
    if not extra(root):
        pytest.skip("the organoids' full resolution is only in $PATCHLOOM_TEST_DATA")
    images = patchloom.open_images(root / "*.ome.zarr")
    table = patchloom.statistics(images, (1, 50, 99))
    for image in images:
        known = extra(root)[image.id]
        row = table.sel(image=image.id)
        assert row["max"].values.tolist() == known["channel_max"]
        pooled = Summary.empty()
        for channel in range(4):
            pixels = image.data[channel].data.compute()
            pooled = pooled + summarize(pixels)
            assert math.isclose(
                (pixels == 0).mean(), known["channel_zero_frac"][channel], rel_tol=1e-9
            )
        assert percentiles(pooled, (1, 50, 99)).tolist()[:2] == [0.0, 0.0]


def test_cardio_levels_and_scale(data_set: Callable[[str], Path]) -> None:
    """One level is opened, by number or path, with its own physical scale and its labels."""
    root = data_set("cardio_ome_zarr_v04")
    [path] = root.glob("*.zarr")
    levels = json.loads((path / ".zattrs").read_text())["multiscales"][0]["datasets"]
    for number, level in enumerate(levels):
        scale = level["coordinateTransformations"][0]["scale"]
        for key in (number, level["path"]):
            [image] = patchloom.open_images(path, level=key, labels="nuclei")
            assert [image.spacing[a] for a in "zyx"] == scale[1:]
            assert image.unit["x"] == "micrometer"
            assert image.channels[0] == "DAPI"
            assert image.labels is not None
    known = extra(root).get("grid_lvl1")
    if known is None:
        pytest.skip("level 1 of the cardiomyocytes is only in $PATCHLOOM_TEST_DATA")
    [image] = patchloom.open_images(path, level=1, mask="nuclei", axes="CZYX")
    config = {"name": "sequential", "patch_size": [1, *known["patch"]]}
    assert patchloom.plan(image, config).n_patches == known["n_full_patches"]
    assert patchloom.plan(image, config, min_coverage=0.5).n_patches == known["n_fg_ge_50pct"]


def test_masked_aligned_plan_reads_only_what_it_keeps(
    data_set: Callable[[str], Path], tmp_path: Path
) -> None:
    """Chunk-aligned patches under a mask: every needed chunk once, and no other, as files tell."""
    import shutil

    root = data_set("em_fib25")
    copy = tmp_path / "raw.zarr"
    shutil.copytree(root / "raw.zarr", copy)
    [image] = patchloom.open_images(copy)
    mask = np.zeros([-(-n // 32) for n in image.shape], bool)
    mask[1, 1:3, 1:3] = True
    [masked] = patchloom.open_images(copy, mask=np.repeat(mask, 2, 0)[: mask.shape[0] * 2])
    plan = patchloom.plan(
        masked, {"name": "sequential", "patch_size": [32, 32, 32]}, min_coverage=0.9
    )
    report = patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    assert plan.n_patches > 0
    assert report.read_amplification == 1.0
    assert report.chunk_reads == report.chunks_needed == plan.n_patches


def test_chunks_outside_the_kept_patches_are_never_opened(tmp_path: Path) -> None:
    """With every other chunk damaged, a masked plan still runs: it reads none of them."""
    import zarr

    path = tmp_path / f"{uuid.uuid4().hex}.zarr"
    array = zarr.create_array(path, shape=(128, 128), dtype="uint16", chunks=(32, 32))
    array[...] = np.arange(128 * 128, dtype="uint16").reshape(128, 128)
    mask = np.zeros((4, 4), bool)
    mask[1, 2] = mask[3, 0] = True
    for chunk in (path / "c").rglob("*"):
        if chunk.is_file() and not mask[int(chunk.parent.name), int(chunk.name)]:
            chunk.write_bytes(b"damaged")
    [image] = patchloom.open_images(path, mask=mask)
    plan = patchloom.plan(image, {"name": "sequential", "patch_size": [16, 16]}, min_coverage=0.5)
    report = patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    assert (plan.n_patches, report.chunk_reads, report.read_amplification) == (8, 2, 1.0)
