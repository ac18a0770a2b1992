"""Normalisation against plain NumPy in float64: of numbers, of patches, of whole stores."""

from __future__ import annotations

import itertools
import json
import pickle
import tracemalloc
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
from patchloom.errors import ConfigError, FingerprintError, IdentityError, StoreError
from patchloom.normalization import NORMALIZATIONS, Normalization, kind_of
from patchloom.store.additions import additions_of
from patchloom.summaries import summarize
from patchloom.summaries.table import Cell, Statistics, Subject

Pixels = npt.NDArray[Any]
DTYPES = [
    "bool",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "int32",
    "uint64",
    "float16",
    "float32",
    "float64",
]
IDS = ("a", "b", "c")
STAINS = ({"stain": "HE"}, {"stain": "DAPI"}, {"stain": "HE"})
PERS = ("image", "channel", "all", "stain")
Q = (2.0, 99.0)


def together(images: list[Pixels], per: str, image: int, channel: int) -> Pixels:
    """The pixels, as float64, that the numbers of a channel of an image go by."""
    mine = {
        "image": [image],
        "channel": [0, 1, 2],
        "all": [0, 1, 2],
        "stain": [k for k in range(3) if STAINS[k] == STAINS[image]],
    }[per]
    parts = [images[k] if per == "all" else images[k][channel] for k in mine]
    flat = np.concatenate([part.ravel() for part in parts]).astype(np.float64)
    return flat[~np.isnan(flat)]


def reference(kind: str, pixels: Pixels) -> tuple[float, float]:
    """Shift and span by NumPy."""
    if kind == "none":
        return 0.0, 1.0
    if not pixels.size:
        return 0.0, 0.0
    if pixels.min() == pixels.max():
        return float(pixels.min()), 0.0
    if kind == "mean-std":
        return float(pixels.mean()), float(pixels.std())
    low, high = np.percentile(pixels, Q if kind == "percentile" else (0, 100)).tolist()
    return low, high - low


def scaled(pixels: Pixels, shift: float, span: float, kind: str) -> Pixels:
    """What becomes of some pixels."""
    wide = pixels.astype(np.float64)
    with np.errstate(all="ignore"):
        found = np.where(np.isnan(wide), wide, 0) if not span else (wide - shift) / span
        if kind in ("percentile", "min-max"):
            found = np.clip(found, 0, 1)
        return found.astype(np.float32)


@st.composite
def three_images(draw: st.DrawFn) -> list[Pixels]:
    """Of two channels and few pixels, full of extremes, NaN and constants."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    elements = None
    if dtype.kind == "f":
        most = {2: 2.0**15, 4: 2.0**127, 8: 2.0**500}[dtype.itemsize]
        values = st.floats(-most, most, width=8 * dtype.itemsize) | st.just(float("nan"))  # type: ignore[arg-type]
        few = draw(st.lists(values, min_size=1, max_size=6))
        elements = st.sampled_from(few)
    shapes = st.tuples(st.just(2), st.integers(1, 12))
    return [draw(hnp.arrays(dtype, shapes, elements=elements)) for _ in IDS]


def summarized(images: list[Pixels]) -> dict[tuple[int, int], Any]:
    return {(i, c): summarize(images[i][c]) for i in range(3) for c in range(2)}


@pytest.mark.parametrize("per", PERS)
@pytest.mark.parametrize("kind", NORMALIZATIONS)
@settings(max_examples=15)
@given(images=three_images())
def test_equals_numpy(kind: str, per: str, images: list[Pixels]) -> None:
    """Every kind by every group: the numbers, the patches, and back; nothing is changed."""
    made = Normalization.of(kind, summarized(images), IDS, ("x", "y"), per=per, columns=STAINS, q=Q)
    for k, pixels in enumerate(images):
        patches = pixels.T[:, :, None]
        before = patches.copy()
        patches.flags.writeable = False
        found = made.apply(patches, IDS[k])
        assert found.dtype == np.float32
        back = made.invert(found, IDS[k])
        np.testing.assert_array_equal(patches, before)
        for channel in range(2):
            shift, span = reference(kind, together(images, per, k, channel))
            if kind == "mean-std" and span:
                # NumPy rounds sums on the way, ours are exact.
                whole = together(images, per, k, channel)
                group = made._group(IDS[k]) if per in ("image", "stain") else 0
                own = made.shift[group][channel], made.span[group][channel]
                size = max(np.abs(whole).max(), 5e-324)
                np.testing.assert_allclose(own, (shift, span), rtol=1e-6, atol=1e-12 * size)
                shift, span = own
            mine = patches[:, channel]
            want = scaled(mine, shift, span, kind)
            np.testing.assert_array_equal(found[:, channel], want)
            wide = mine.astype(np.float64)
            # NaN, and what was clipped, is lost; so is what no float32 holds.
            held = np.isfinite(want) & (span != 0)
            if made.clip:
                held &= (wide >= shift) & (wide <= shift + span)
            bound = np.abs(wide - shift) * 2.0**-23 + span * 2.0**-149 + 5e-324
            bound += (np.abs(wide) + abs(shift)) * 2.0**-51
            assert (np.abs(back[:, channel] - wide) <= bound)[held].all()
            assert np.isnan(back[:, channel][np.isnan(wide)]).all()
            if not span:
                assert (back[:, channel][~np.isnan(wide)] == shift).all()
            if mine.dtype.kind in "biu" and mine.dtype.itemsize <= 2:
                assert (np.rint(back[:, channel]) == wide)[held].all()


@settings(max_examples=15)
@given(images=three_images(), order=st.permutations([0, 1, 2, 0, 2]))
def test_patches_of_many_images_at_once(images: list[Pixels], order: list[int]) -> None:
    """A batch with an id a patch is its patches one by one; documents and pickles are the same."""
    shortest = min(image.shape[1] for image in images)
    patches = np.stack([images[k][:, :shortest] for k in order])
    ids = np.array([IDS[k] for k in order], object)
    for kind, per in itertools.product(NORMALIZATIONS, PERS):
        made = Normalization.of(
            kind, summarized(images), IDS, ("x", "y"), per=per, columns=STAINS, q=Q
        )
        batch = made.apply(patches, ids)
        for row, k in enumerate(order):
            np.testing.assert_array_equal(batch[row], made.apply(patches[[row]], IDS[k])[0])
        again = Normalization.from_document(json.loads(json.dumps(made.to_document())))
        assert again == made == pickle.loads(pickle.dumps(made))


def test_a_channel_without_contrast_is_zeros_and_a_flag() -> None:
    """One grey level that floats do not sum to, no pixel at all, NaN: no division, no warning."""
    flat = np.full((1, 999), 0.1, np.float32)
    one, none = summarize(flat), summarize(np.full(4, np.nan, np.float32))
    for kind in ("percentile", "mean-std", "min-max"):
        made = Normalization.of(kind, {(0, 0): one, (0, 1): none}, ["a"], ["x", "y"])
        assert made.constant.tolist() == [[True, True]]
        patch = np.stack([flat, flat], 1)
        patch[0, :, 5] = np.nan
        found = made.apply(patch, "a")
        assert np.isnan(found[0, :, 5]).all()
        assert not np.delete(found, 5, 2).any()
        assert made.invert(found, "a")[0, 0, 0] == flat[0, 0]
        assert made.to_document()["constant"] == [[True, True]]


def test_infinite_pixels() -> None:
    """They are clipped where the ends are finite; where not, the channel and image are named."""
    pixels = np.r_[np.arange(99.0), np.inf]
    made = Normalization.of("percentile", {(0, 0): summarize(pixels)}, ["a"], ["x"], q=(0, 50))
    assert made.apply(pixels[None, None]).ravel()[[0, 99]].tolist() == [0.0, 1.0]
    assert made.apply(-pixels[None, None]).ravel()[99] == 0
    for kind in ("mean-std", "min-max"):
        with pytest.raises(ConfigError, match=r"finite.*channel 'x' of 'a'.*normalize=None"):
            Normalization.of(kind, {(0, 0): summarize(pixels)}, ["a"], ["x"])


def test_percentiles_that_one_pass_cannot_tell_apart_are_refused() -> None:
    """A float image of little contrast over a high offset would become noise, or zeros."""
    noise = np.random.default_rng(0).normal(1000, 0.5, 100_000)
    found = summarize(noise)
    assert not found.exact
    with pytest.raises(ConfigError, match="told apart"):
        Normalization.of("percentile", {(0, 0): found}, ["a"], ["x"])
    made = Normalization.of("mean-std", {(0, 0): found}, ["a"], ["x"])
    np.testing.assert_allclose((made.shift[0][0], made.span[0][0]), (noise.mean(), noise.std()))
    assert made.exact
    wider = Normalization.of("percentile", {(0, 0): summarize(noise - 1000)}, ["a"], ["x"])
    assert not wider.exact


def test_tables_become_normalisations() -> None:
    """By image, by group, all together, and by the envelope of slices; the table stays as it is."""
    rng = np.random.default_rng(0)
    cells = {
        Cell(i, c, z): rng.integers(0, 1000 * (i + 1), 50).astype(np.uint16)
        for i in range(3)
        for c in range(2)
        for z in range(4)
    }
    subjects = [Subject(name, metadata=row) for name, row in zip(IDS, STAINS, strict=True)]
    found = Statistics({k: summarize(v) for k, v in cells.items()}, tuple(subjects), ("x", "y"))
    images = [
        np.stack([np.concatenate([cells[Cell(i, c, z)] for z in range(4)]) for c in range(2)])
        for i in range(3)
    ]
    for kind, (per, by) in itertools.product(
        NORMALIZATIONS, {"image": "image", "channel": None, "stain": "stain"}.items()
    ):
        table = found.pooled(Q, by=by)
        before = table.copy(deep=True)
        made = Normalization.from_statistics(table, kind, per=per).with_images(IDS, STAINS)
        same = Normalization.of(
            kind, summarized(images), IDS, ("x", "y"), per=per, columns=STAINS, q=Q
        )
        for k, name in enumerate(IDS):
            patch = images[k][None]
            np.testing.assert_array_equal(made.apply(patch, name), same.apply(patch, name))
        assert table.identical(before)
    wide = Normalization.from_statistics(found.envelope(Q), "percentile")
    low = min(np.percentile(cells[Cell(1, 0, z)], Q[0]) for z in range(4))
    high = max(np.percentile(cells[Cell(1, 0, z)], Q[1]) for z in range(4))
    assert (wide.shift[1][0], wide.span[1][0]) == (low, high - low)
    with pytest.raises(ConfigError, match="pooled"):
        Normalization.from_statistics(found.dataset(Q), "percentile")
    with pytest.raises(ConfigError, match="pooled afterwards"):
        Normalization.from_statistics(found.pooled(Q), "percentile", per="channel")


def test_mistakes_are_told() -> None:
    """What is wrong, and the way out."""
    found = {(0, 0): summarize(np.arange(9))}
    for name in ("quantile", "mean_std", "min_max"):
        assert kind_of(name) in NORMALIZATIONS
    with pytest.raises(ConfigError, match="normalize= is None or one of"):
        Normalization.of("zscore", found, ["a"], ["x"])
    with pytest.raises(ConfigError, match="low and a high"):
        Normalization.of("percentile", found, ["a"], ["x"], q=(5,))
    with pytest.raises(ConfigError, match=r"column.*'donor'.*\['stain'\]"):
        Normalization.of("min-max", found, ["a"], ["x"], per="donor", columns=[{"stain": 1}])
    made = Normalization.of("min-max", found, ["a", "b"], ["x"])
    with pytest.raises(ConfigError, match="no image"):
        made.apply(np.zeros((1, 1, 4)))
    with pytest.raises(ConfigError, match="'c'"):
        made.apply(np.zeros((1, 1, 4)), "c")
    with pytest.raises(ConfigError, match="channels"):
        made.apply(np.zeros((1, 2, 4)), "a")
    with pytest.raises(ConfigError, match="2 ids"):
        made.invert(np.zeros((3, 1, 4)), ["a", "b"])


def test_hostile_ids_and_percentiles() -> None:
    """Ids that differ in their last NUL alone have numbers of their own; equal ones are refused."""
    found = {(0, 0): summarize(np.array([1, 2])), (1, 0): summarize(np.array([5, 9]))}
    made = Normalization.of("min-max", found, ["a", "a\0"], ["x"])
    nine = np.full((2, 1, 1), 7.0)
    assert made.apply(nine, ["a", "a\0"]).ravel().tolist() == [1.0, 0.5]
    with pytest.raises(IdentityError, match="ids of their own"):
        Normalization.of("min-max", found, ["a", "a"], ["x"])
    for q in ((1, 1), (-5, 50), (50, 300), (float("nan"), 5)):
        with pytest.raises(ConfigError, match="from 0 to 100"):
            Normalization.of("percentile", found, ["a", "b"], ["x"], q=q)


@pytest.mark.parametrize("high", [0, 9])
def test_memory_beside_the_result_is_what_a_plan_reckons_with(high: int) -> None:
    """Nine bytes a pixel of a piece: one of float64, and which pixels are constant."""
    made = Normalization.of("min-max", {(0, 0): summarize(np.array([0, high]))}, ["a"], ["x"])
    pixels = np.zeros((1, 1, 1024, 1024), np.uint8)
    tracemalloc.start()
    found = made.apply(pixels, "a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - found.nbytes < 9 * pixels.size + 2**17


# -- whole stores -----------------------------------------------------------------------

GRID = {"name": "sequential", "patch_size": [12, 12], "overlaps": [5, 5]}
SHAPES = {"a": (2, 40, 33), "b": (2, 25, 50), "c": (2, 36, 36), "d": (2, 30, 30)}
ROWS = {"a": {"stain": "HE"}, "b": {"stain": "DAPI"}, "c": {"stain": "HE"}, "d": {"stain": "PAS"}}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of different brightness, their targets (other chunks), labels and masks."""
    folder = tmp_path_factory.mktemp("sources")
    rng = np.random.default_rng(6)
    for k, (name, shape) in enumerate(SHAPES.items()):
        image = rng.integers(100 * k, 3000 * (k + 1), shape, dtype=np.uint16)
        target = rng.normal(10.0 * k, 2 + k, (1, *shape[1:])).astype(np.float32)
        target[0, 3, 3] = np.nan
        labels = rng.integers(0, 9, shape[1:], dtype=np.uint8)
        mask = np.zeros(shape[1:], np.uint8)
        mask[: shape[1] // 2] = 1
        for role, pixels, chunks in (
            ("image", image, (1, 8, 8)),
            ("target", target, (1, 16, 10)),
            ("labels", labels, (9, 9)),
            ("mask", mask, (8, 8)),
        ):
            zarr.create_array(folder / f"{name}-{role}.zarr", data=pixels, chunks=chunks)
    return folder


def opened(folder: Path, names: str) -> list[patchloom.Image]:
    return patchloom.open_images(
        [str(folder / f"{n}-image.zarr") for n in names],
        axes="cyx",
        ids=list(names),
        sample=[ROWS[n] for n in names],
        **{
            role: [str(folder / f"{n}-{role}.zarr") for n in names]
            for role in ("target", "mask", "labels")
        },  # type: ignore[arg-type]
    )


def planned(folder: Path, names: str = "abc", **more: Any) -> patchloom.Plan:
    images = opened(folder, names)
    return patchloom.plan(
        images, GRID, min_coverage=0.5, edge="shift", **{"rows_per_shard": 7, **more}
    )


def covered(store: patchloom.PatchStore, folder: Path, role: str, name: str) -> Pixels:
    """The pixels of an image's kept patches, each once: [channels, n]."""
    pixels = np.asarray(zarr.open_array(folder / f"{name}-{role}.zarr")[...])
    inside = np.zeros(pixels.shape[1:], bool)
    for row in store.manifest.to_pylist():
        if row["image_id"] == name:
            inside[row["start_y"] :, row["start_x"] :][:12, :12] = True
    return pixels[:, inside]


@pytest.fixture(scope="module")
def plain(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> patchloom.PatchStore:
    """A store of the sources' own pixels."""
    out = tmp_path_factory.mktemp("plain") / "plain.zarr"
    patchloom.materialize(planned(sources), out, progress=False, percentiles=Q)
    return patchloom.open_patches(out)


@pytest.mark.parametrize("per", PERS)
@pytest.mark.parametrize("kind", ["percentile", "mean-std", "min-max"])
def test_a_store_is_numpy_on_the_pixels_of_its_patches(
    kind: str, per: str, sources: Path, plain: patchloom.PatchStore, tmp_path: Path
) -> None:
    """Images and targets by their own pixels, each once however patches overlap; labels stay."""
    plan = planned(sources)
    out = tmp_path / "out.zarr"
    report = patchloom.materialize(
        plan, out, normalize=kind, per=per, normalize_targets=kind, percentiles=Q, progress=False
    )
    store = patchloom.open_patches(out)
    assert store.images.dtype == store.targets.dtype == np.float32  # type: ignore[union-attr]
    assert report.peak_memory <= report.projected_memory
    ids = store.image_ids()
    for array, role, n_channels in (("images", "image", 2), ("targets", "target", 1)):
        parts = [covered(plain, sources, role, name) for name in IDS]
        pixels, found = plain.read(plain.manifest["row"], array), store.read(ids_rows(store), array)
        made = store.applied[array]
        for k, name in enumerate(IDS):
            for channel in range(n_channels):
                shift, span = reference(kind, together(parts, per, k, channel))
                at = made.groups.index(
                    {"image": name, "stain": ROWS[name]["stain"]}.get(per, "all")
                )
                own = made.shift[at][channel], made.span[at][channel]
                if kind == "mean-std":
                    np.testing.assert_allclose(own, (shift, span), rtol=1e-12)
                else:
                    assert own == (shift, span)
                mine = pixels[ids == name][:, channel]
                np.testing.assert_array_equal(
                    found[ids == name][:, channel], scaled(mine, *own, kind)
                )
    np.testing.assert_array_equal(plain.labels[...], store.labels[...])  # type: ignore[index]
    # The pass before reads what patches need, of both, and nothing else.
    targets = needed(plain, {"a": (16, 10), "b": (16, 10), "c": (16, 10)}, 1)
    assert targets < sum(-(-h // 16) * -(-w // 10) for _, h, w in (SHAPES[n] for n in IDS))
    assert report.chunks_needed == needed(plain, dict.fromkeys(IDS, (8, 8)), 2)
    assert report.survey_reads == report.chunks_needed + targets
    # The same numbers come from the plain store.
    later = plain.normalization(kind, per)
    np.testing.assert_array_equal(plain.read(ids_rows(plain), normalize=later), store[:])
    assert later.to_document()["shift"] == store.applied["images"].to_document()["shift"]
    check = patchloom.verify(out, plan, sample=999, progress=False)
    assert (check.ok, check.n_compared) == (True, plan.n_patches)


def needed(store: patchloom.PatchStore, chunks: dict[str, tuple[int, int]], n: int) -> int:
    """Distinct chunks that patches touch, `n` a place."""
    found = set()
    for row in store.manifest.to_pylist():
        high, wide = chunks[row["image_id"]]
        for y in range(row["start_y"], row["start_y"] + 12):
            for x in range(row["start_x"], row["start_x"] + 12):
                found.add((row["image_id"], y // high, x // wide))
    return n * len(found)


def ids_rows(store: patchloom.PatchStore) -> Pixels:
    rows: Pixels = store.manifest["row"].to_numpy()
    return rows


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_a_resume_goes_by_the_recorded_numbers(sources: Path, tmp_path: Path) -> None:
    """It reads nothing for them, and ends byte for byte as if nothing had happened."""
    plan, out = planned(sources), tmp_path / "out.zarr"
    job: dict[str, Any] = {
        "normalize": "percentile",
        "per": "stain",
        "normalize_targets": "min-max",
    }
    patchloom.materialize(plan, out, progress=False, **job)
    before = contents(out)
    for shard in (1, 4):
        (out / f"manifest/{shard:08d}.parquet").unlink()
    report = patchloom.materialize(plan, out, progress=False, **job)
    assert (report.survey_reads, report.n_shards) == (0, 2)
    assert contents(out) == before
    with pytest.raises(FingerprintError, match="per"):
        patchloom.materialize(plan, out, progress=False, **{**job, "per": "image"})
    assert contents(out) == before


@pytest.mark.parametrize("per", PERS)
def test_an_append_keeps_what_is_recorded(per: str, sources: Path, tmp_path: Path) -> None:
    """Images and groups that are known go by their numbers, unread; new ones get their own."""
    out, alone = tmp_path / "out.zarr", tmp_path / "alone.zarr"
    job: dict[str, Any] = {"normalize": "percentile", "per": per, "progress": False}
    patchloom.materialize(planned(sources, "ab"), out, **job)
    before, first = contents(out), patchloom.open_patches(out).applied["images"]
    report = patchloom.materialize(planned(sources, "abcd"), out, **job)
    store = patchloom.open_patches(out)
    found = store.applied["images"]
    n = len(first.groups)
    assert (found.groups[:n], found.shift[:n], found.span[:n]) == (
        first.groups,
        first.shift,
        first.span,
    )
    new = {"image": "cd", "channel": "", "all": "", "stain": "d"}[per]
    counted = 0
    if new:
        # What only these images would have had.
        own = patchloom.materialize(planned(sources, new), alone, **job)
        counted = own.survey_reads
        made = patchloom.open_patches(alone).applied["images"]
        assert (found.groups[n:], found.shift[n:], found.span[n:]) == (
            made.groups,
            made.shift,
            made.span,
        )
    assert report.survey_reads == counted
    after = contents(out)
    told = {"objects.parquet", *(name for name in before if name.endswith("zarr.json"))}
    assert all(after[name] == data for name, data in before.items() if name not in told)
    raw = tmp_path / "raw.zarr"
    patchloom.materialize(planned(sources, "cd"), raw, progress=False)
    source = patchloom.open_patches(raw)
    rows = np.flatnonzero(np.isin(store.image_ids(), ["c", "d"]))
    written = store.manifest["row"].to_numpy()[rows]
    want = source.read(ids_rows(source), normalize=found)
    np.testing.assert_array_equal(store.read(written), want)
    assert patchloom.verify(out, sample=999, progress=False).n_compared == len(store.manifest)


def test_an_append_that_was_killed_goes_on_with_its_numbers(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stand beside what is coming until it has come."""
    from patchloom.run import writing

    out, whole = tmp_path / "out.zarr", tmp_path / "whole.zarr"
    job: dict[str, Any] = {"normalize": "mean-std", "per": "stain", "progress": False}
    for path in (out, whole):
        patchloom.materialize(planned(sources, "ab"), path, **job)
    monkeypatch.setattr(writing, "record_sizes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        patchloom.materialize(planned(sources, "abcd"), out, **job)
    monkeypatch.undo()
    half = patchloom.open_patches(out)
    assert half.complete
    assert half.applied["images"].groups == ("HE", "DAPI")
    report = patchloom.materialize(planned(sources, "abcd"), out, **job)
    assert (report.survey_reads, report.chunk_reads) == (0, 0)
    patchloom.materialize(planned(sources, "abcd"), whole, **job)
    assert contents(out) == contents(whole)
    assert len(additions_of(patchloom.open_patches(out).attributes)) == 2


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_statistics_over_the_image(sources: Path, tmp_path: Path) -> None:
    """All pixels, of targets too."""
    out, raw = tmp_path / "out.zarr", tmp_path / "raw.zarr"
    job: dict[str, Any] = {"over": "image", "progress": False}
    report = patchloom.materialize(
        planned(sources), out, normalize="min-max", per="all", normalize_targets="mean-std", **job
    )
    store = patchloom.open_patches(out)
    images = [np.asarray(zarr.open_array(sources / f"{n}-image.zarr")[...]) for n in IDS]
    least = float(min(i.min() for i in images))
    most = float(max(i.max() for i in images))
    made = store.applied["images"]
    assert (made.shift, made.span) == (((least,) * 2,), ((most - least,) * 2,))
    target = np.concatenate(
        [np.asarray(zarr.open_array(sources / f"{n}-target.zarr")[...]).ravel() for n in IDS]
    ).astype(float)
    [[mean]] = store.applied["targets"].shift
    assert mean == pytest.approx(np.nanmean(target))
    per_image = sum(2 * -(-h // 8) * -(-w // 8) for _, h, w in (SHAPES[n] for n in IDS))
    per_target = sum(-(-h // 16) * -(-w // 10) for _, h, w in (SHAPES[n] for n in IDS))
    assert report.survey_reads == per_image + per_target
    patchloom.materialize(planned(sources), raw, **job)
    store = patchloom.open_patches(raw)
    made = store.normalization("percentile", per="channel")
    both = np.concatenate([image[0].ravel() for image in images]).astype(float)
    assert (made.over, made.shift[0][0]) == ("image", np.percentile(both, 1))


def test_targets_that_only_dask_has(tmp_path: Path) -> None:
    """Surveyed and scaled like others; an image without samples of its own is one for all."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 99, (3, 30, 30), dtype=np.uint8)
    target = rng.normal(5, 2, (30, 30))
    images = patchloom.open_images(pixels, axes="syx", target=da.from_array(target, chunks=11))
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [10, 10]})
    patchloom.materialize(plan, tmp_path / "o.zarr", normalize_targets="min-max", progress=False)
    store = patchloom.open_patches(tmp_path / "o.zarr")
    assert store.images.dtype == np.uint8
    assert {*store.applied} == {"targets"}
    made = store.applied["targets"]
    assert (made.shift[0][0], made.shift[0][0] + made.span[0][0]) == (target.min(), target.max())
    first = store.read([0], "targets")
    np.testing.assert_allclose(made.invert(first, "image-0")[0, 0], target[:10, :10], atol=1e-6)


@pytest.mark.parametrize("over", ["patches", "image"])
@pytest.mark.parametrize("n_samples", [1, 2])
def test_targets_go_by_their_own_pixels(over: str, n_samples: int, tmp_path: Path) -> None:
    """What is no data in an image is a grey level of its target; wide ones are exact if asked."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 9, (2, 280, 280), dtype=np.uint8)
    target = rng.normal(5, 2, (n_samples, 280, 280)).astype("float32")
    target[:, ::2] = 0
    paths = [tmp_path / "a.zarr", tmp_path / "t.zarr"]
    for path, some, chunks in zip(paths, (pixels, target), ((1, 70, 70), (1, 90, 41)), strict=True):
        zarr.create_array(path, data=some, chunks=chunks)
    column = {"stain": "x"}
    images = patchloom.open_images(paths[0], axes="syx", target=paths[1], nodata=0, sample=column)
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [40, 40]})
    how: dict[str, Any] = {"over": over, "percentiles": (30, 99), "exact": True, "progress": False}
    patchloom.materialize(
        plan, tmp_path / "o.zarr", normalize_targets="percentile", per="stain", **how
    )
    made = patchloom.open_patches(tmp_path / "o.zarr").applied["targets"]
    low, high = np.percentile(target.astype("float64"), (30, 99))
    assert (made.shift[0][0], made.span[0][0]) == (low, high - low)


def test_reading_rows(sources: Path, plain: patchloom.PatchStore) -> None:
    """Any rows in any order, as stored or scaled by the numbers of their images."""
    rows = [5, 0, 5, len(plain) - 1]
    np.testing.assert_array_equal(plain.read(rows), plain[:][rows])
    assert plain.read([]).shape == (0, 2, 12, 12)
    made = plain.normalization("mean-std")
    found = plain.read(rows, normalize=made)
    for k, row in enumerate(rows):
        name = plain.image_ids([row])[0]
        np.testing.assert_array_equal(found[k], made.apply(plain[row][None], name)[0])
    back = made.invert(found, plain.image_ids(rows))
    np.testing.assert_array_equal(np.rint(back), plain[:][rows])
    narrow = plain.normalization("percentile", percentiles=(10, 90))
    pixels = covered(plain, sources, "image", "a")[0].astype(float)
    assert narrow.shift[0][0] == np.percentile(pixels, 10)
    assert plain.normalization("none").apply(plain[:1], "a").dtype == np.float32
    with pytest.raises(IndexError):
        plain.read([len(plain)])
    with pytest.raises(ConfigError, match="labels"):
        plain.read([0], "labels", normalize=made)
    with pytest.raises(ConfigError, match="arrays"):
        plain.read([0], "masks")
    with pytest.raises(ConfigError, match="takes a Normalization"):
        plain.read([0], normalize="percentile")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="several"):
        plain.normalization("min-max", per="start_y")


def test_what_is_scaled_is_not_scaled_again(sources: Path, tmp_path: Path) -> None:
    """Nor is what cannot be asked for begun."""
    out = tmp_path / "out.zarr"
    plan = planned(sources, "a")
    for wrong, words in (
        ({"normalize": "percentile", "percentiles": (5,)}, "low and a high"),
        ({"normalize": "min-max", "per": "donor"}, "donor"),
        ({"per": "channel"}, "neither"),
    ):
        with pytest.raises(ConfigError, match=words):
            patchloom.materialize(plan, out, progress=False, **wrong)
    bare = patchloom.plan(patchloom.open_images(np.ones((24, 24))), GRID)
    with pytest.raises(ConfigError, match="targets"):
        patchloom.materialize(bare, out, normalize_targets="min-max", progress=False)
    assert not out.exists()
    patchloom.materialize(plan, out, normalize="quantile", progress=False)
    store = patchloom.open_patches(out)
    assert store.attributes["job"]["normalize"] == "percentile"
    with pytest.raises(StoreError, match="once"):
        store.normalization("mean-std")
    with pytest.raises(ConfigError, match="once"):
        store.read([0], normalize=store.applied["images"])


def test_none_is_the_source(sources: Path, plain: patchloom.PatchStore, tmp_path: Path) -> None:
    """Byte for byte."""
    out = tmp_path / "out.zarr"
    patchloom.materialize(planned(sources), out, percentiles=Q, normalize="none", progress=False)
    assert contents(out) == contents(Path(plain.url))


def test_a_changed_source_is_seen_through_bounded_statistics(tmp_path: Path) -> None:
    """The recorded numbers are those that were used, whatever they are worth."""
    pixels = np.random.default_rng(0).normal(0, 1, (300, 300))
    zarr.create_array(tmp_path / "a.zarr", data=pixels, chunks=(64, 64))
    plan = patchloom.plan(
        patchloom.open_images(tmp_path / "a.zarr"),
        {"name": "sequential", "patch_size": [60, 60]},
    )
    out = tmp_path / "out.zarr"
    patchloom.materialize(plan, out, normalize="percentile", progress=False)
    store = patchloom.open_patches(out)
    assert not store.applied["images"].exact
    assert patchloom.verify(out, progress=False).n_compared == 25
    zarr.open_array(tmp_path / "a.zarr", mode="r+")[0, 0] = 0.25
    report = patchloom.verify(out, progress=False)
    assert [damage.what for damage in report.damage] == ["row 0 differs from its source"]


@pytest.mark.parametrize("per", ["image", "channel", "stain"])
def test_exact_percentiles_of_floats(per: str, tmp_path: Path) -> None:
    """More different values than one pass tells apart: further ones, also of pooled images."""
    rng = np.random.default_rng(0)
    images = [rng.normal(1000, 0.1 + 0.1 * k, (1, 270, 270)) for k in range(3)]
    plan = patchloom.plan(
        patchloom.open_images(images, axes="cyx", ids=list(IDS), sample=list(STAINS)),
        {"name": "sequential", "patch_size": [90, 90]},
    )
    job: dict[str, Any] = {"normalize": "percentile", "per": per, "progress": False}
    with pytest.raises(ConfigError, match="exact=True"):
        patchloom.materialize(plan, tmp_path / "bounded.zarr", **job)
    assert not (tmp_path / "bounded.zarr").exists()
    patchloom.materialize(plan, tmp_path / "o.zarr", exact=True, percentiles=Q, **job)
    made = patchloom.open_patches(tmp_path / "o.zarr").applied["images"]
    assert made.exact
    for k, name in enumerate(IDS):
        want = reference("percentile", together(images, per, k, 0))
        group = made.groups.index({"image": name, "channel": "all"}.get(per, STAINS[k]["stain"]))
        assert (made.shift[group][0], made.span[group][0]) == want


def test_a_pool_may_ask_for_more_than_its_images(tmp_path: Path) -> None:
    """Each image's percentiles are values that one pass tells; that of both is not."""
    dark = np.random.default_rng(0).normal(500, 50, (400, 400)).astype("float32")
    dark.flat[:85_000] = 0
    images = [dark, np.full((400, 400), 1000, "float32")]
    plan = patchloom.plan(
        patchloom.open_images(images, axes="yx"), {"name": "sequential", "patch_size": [80, 80]}
    )
    job: dict[str, Any] = {"normalize": "percentile", "per": "all", "percentiles": (1, 40)}
    patchloom.materialize(plan, tmp_path / "o.zarr", exact=True, progress=False, **job)
    made = patchloom.open_patches(tmp_path / "o.zarr").applied["images"]
    assert made.exact
    low, high = np.percentile(np.concatenate(images).astype("float64"), (1, 40))
    assert (made.shift[0][0], made.span[0][0]) == (low, high - low)


def test_stores_that_recorded_nothing(sources: Path, tmp_path: Path) -> None:
    """Of an earlier version: they can be resumed and appended to, and say what they lack."""
    out = tmp_path / "out.zarr"
    plan = planned(sources, "ab")
    patchloom.materialize(plan, out, normalize="percentile", progress=False)
    before = contents(out)
    group = json.loads(before["zarr.json"])
    del group["attributes"]["patchloom"]["normalization"]
    (out / "zarr.json").write_text(json.dumps(group))
    report = patchloom.verify(out, progress=False)
    assert report.ok
    assert (report.n_compared, [*report.not_compared]) == (
        0,
        ["it was normalised, and the store does not tell by which numbers"],
    )
    (out / "manifest/00000001.parquet").unlink()
    patchloom.materialize(plan, out, normalize="percentile", progress=False)
    assert contents(out) == before


def test_numbers_of_an_older_version_are_not_mixed(tmp_path: Path) -> None:
    """A begun store without a record goes on only where the numbers are exact, so the same."""
    for dtype, exact in (("uint16", True), ("float32", False)):
        pixels = np.random.default_rng(0).normal(500, 90, (352, 352)).astype(dtype)
        zarr.create_array(tmp_path / f"{dtype}.in.zarr", data=pixels, chunks=(32, 32))
        images = patchloom.open_images(tmp_path / f"{dtype}.in.zarr")
        plan = patchloom.plan(
            images, {"name": "sequential", "patch_size": [32, 32]}, rows_per_shard=16
        )
        out = tmp_path / f"{dtype}.zarr"
        how: dict[str, Any] = {"normalize": "percentile", "progress": False}
        patchloom.materialize(plan, out, **how)
        whole = patchloom.open_patches(out)[:]
        document = json.loads((out / "zarr.json").read_text())
        told = document["attributes"]["patchloom"]
        del told["normalization"], told["statistics"]
        told["complete"] = False
        (out / "zarr.json").write_text(json.dumps(document))
        for part in sorted((out / "manifest").iterdir())[:3]:
            part.unlink()
        if exact:
            patchloom.materialize(plan, out, **how)
            assert (patchloom.open_patches(out)[:] == whole).all()
        else:
            before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
            with pytest.raises(FingerprintError, match="did not record"):
                patchloom.materialize(plan, out, **how)
            assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
