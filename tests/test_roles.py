"""Roles from other files, grids and scales are cut along with the pixels, each into its array."""

from __future__ import annotations

import json
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

import patchloom
from patchloom.errors import ConfigError, IdentityError, PlanError
from patchloom.planning.plans import Plan
from patchloom.sources.picks import Pick, Stretch

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 999, (2, 48, 40), dtype="uint16")
GRID = {"name": "sequential", "patch_size": [16, 16]}


def write(path: Path, pixels: npt.NDArray[Any], **options: Any) -> str:
    """An array in a Zarr store."""
    array = zarr.create_array(path, shape=pixels.shape, dtype=pixels.dtype, **options)
    array[...] = pixels
    return str(path)


def nearest(pixels: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Under each pixel of a shape, the one of the last axes that its middle is in."""
    for back, n in enumerate(reversed(shape), 1):
        have = pixels.shape[-back]
        index = [int((Fraction(k) + Fraction(1, 2)) * have / n) for k in range(n)]
        pixels = np.take(pixels, index, axis=pixels.ndim - back)
    return pixels


def test_all_roles_of_one_job(tmp_path: Path) -> None:
    """Labels, targets of several names and types, and weights: each an array of the store."""
    labels = RNG.integers(0, 5, (48, 40), dtype="int32")
    target = RNG.random((1, 48, 40), dtype="float32")
    edges = RNG.integers(0, 2, (3, 48, 40)).astype(bool)
    weights = RNG.random((48, 40))
    url = write(tmp_path / "a.zarr", PIXELS, chunks=(1, 16, 16))
    images = patchloom.open_images(
        url,
        axes="CYX",
        labels=write(tmp_path / "labels.zarr", labels, chunks=(20, 20)),
        target=target,
        targets={
            "edges": write(tmp_path / "edges.zarr", edges, chunks=(3, 7, 7)),
            "dapi": {"from": url, "channels": [1]},
        },
        weights=da.from_array(weights, chunks=(24, 40)),
    )
    plan = patchloom.plan(images, GRID, edge="pad", pad_mode="reflect", rows_per_shard=4)
    report = patchloom.materialize(plan, str(tmp_path / "out.zarr"), progress=False)
    store = patchloom.open_patches(str(tmp_path / "out.zarr"))
    names = ["images", "labels", "targets", "targets_dapi", "targets_edges", "weights"]
    assert store.attributes["arrays"] == names
    given: list[npt.NDArray[Any]] = [PIXELS, labels[None], target, PIXELS[1:], edges, weights[None]]
    for row in store.manifest.to_pylist():
        y, x = row["start_y"], row["start_x"]
        for name, whole in zip(names, given, strict=True):
            wide = np.pad(whole, ((0, 0), (0, 16), (0, 16)), "reflect")
            patch = wide[:, y : y + 16, x : x + 16]
            np.testing.assert_array_equal(store.read([row["row"]], name)[0], patch)
            assert store.read([row["row"]], name).dtype == whole.dtype
    assert 3 + 9 * 3 + 1 < report.role_reads <= plan.role_reads
    view = store.to_xarray()
    assert view["weights"].dims == ("patch", "c_weights", "y", "x")
    assert patchloom.verify(str(tmp_path / "out.zarr"), plan).ok
    # A run that lost a shard finds it by name, and makes the same bytes anew.
    lost = tmp_path / "out.zarr/targets_edges/c/1/0/0/0"
    data = lost.read_bytes()
    lost.unlink()
    again = patchloom.materialize(plan, str(tmp_path / "out.zarr"), progress=False)
    assert again.n_shards == 1
    assert lost.read_bytes() == data
    with pytest.raises(ConfigError, match="weights are no grey levels"):
        store.read([0], "weights", normalize=store.normalization("min-max"))


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_role_of_any_scale_is_brought_to_the_pixels_of_its_image(
    data: st.DataObject, tmp_path_factory: Any
) -> None:
    """Finer or coarser, by no whole number: patches have one shape, and the nearest pixels."""
    folder = tmp_path_factory.mktemp("scaled")
    shape = tuple(data.draw(st.integers(n // 3, 2 * n), label="extent") for n in (48, 40))
    aspect = Fraction(shape[0] * 40, shape[1] * 48)
    if not Fraction(4, 5) <= aspect <= Fraction(5, 4):
        shape = (shape[0], max(1, round(shape[0] * 40 / 48)))
    labels = RNG.integers(0, 2**31 - 1, shape, dtype="int32")
    chunks = tuple(data.draw(st.integers(5, 30)) for _ in shape)
    stored = write(folder / "labels.zarr", labels, chunks=chunks)
    crop = data.draw(st.integers(0, 9))
    for item in (stored, labels):
        [image] = patchloom.open_images(
            write(folder / f"{len(stored)}{type(item).__name__}.zarr", PIXELS, chunks=(1, 16, 16)),
            axes="CYX",
            labels={"from": item, "resample": "nearest"},
            isel={"y": slice(crop, None)},
        )
        plan = patchloom.plan(image, GRID)
        report = patchloom.materialize(plan, f"{folder}/{type(item).__name__}", progress=False)
        store = patchloom.open_patches(f"{folder}/{type(item).__name__}")
        expected = nearest(labels, (48, 40))[crop:]
        assert store.labels is not None
        for row in store.manifest.to_pylist():
            y, x = row["start_y"], row["start_x"]
            patch = expected[y : y + 16, x : x + 16]
            np.testing.assert_array_equal(np.asarray(store.labels[row["row"]])[0], patch)
        assert report.role_reads == plan.role_reads


def test_scale_and_place_come_from_the_metadata(tmp_path: Path) -> None:
    """Arrays with spacing and origin lie where these say, also when shifted by part of a pixel."""

    def ome(name: str, pixels: npt.NDArray[Any], spacing: float, origin: float) -> str:
        group: Any = zarr.create_group(tmp_path / name)
        array = group.create_array("0", shape=pixels.shape, chunks=(9, 9), dtype=pixels.dtype)
        array[...] = pixels
        axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "yx"]
        moves = [{"type": "scale", "scale": [spacing] * 2}]
        moves += [{"type": "translation", "translation": [origin] * 2}]
        levels = [{"path": "0", "coordinateTransformations": moves}]
        group.attrs["ome"] = {
            "version": "0.5",
            "multiscales": [{"axes": axes, "datasets": levels}],
        }
        return str(tmp_path / name)

    target = RNG.random((30, 30), dtype="float32")
    image_url = ome("a.ome.zarr", PIXELS[0, :40, :40], 0.4, 1.0)
    target_url = ome("t.ome.zarr", target, 0.56, 0.86)
    item = {"from": target_url, "resample": "nearest"}
    [image] = patchloom.open_images(image_url, target=item)
    assert image.target is not None
    index = [int((1.0 + 0.4 * k - (0.86 - 0.28)) / 0.56) for k in range(40)]
    np.testing.assert_array_equal(image.target.image.data, target[np.ix_(index, index)])
    assert image.target.image.spacing == image.spacing


def test_without_resample_other_pixels_are_refused() -> None:
    """What is brought to other pixels is asked for; else the error says how."""
    images = patchloom.open_images(PIXELS, axes="CYX", weights=np.ones((24, 20)))
    with pytest.raises(PlanError, match="'resample': 'nearest'"):
        patchloom.plan(images, GRID)
    with pytest.raises(ConfigError, match="'nearest', got 'cubic'"):
        patchloom.open_images(
            PIXELS, axes="CYX", target={"from": PIXELS, "resample": "cubic"}
        )  # fmt: skip
    for wrong in ({"../x": PIXELS}, {"A": PIXELS}, [PIXELS]):
        with pytest.raises(ConfigError, match="small letters"):
            patchloom.open_images(PIXELS, axes="CYX", targets=wrong)  # type: ignore[arg-type]


def test_images_of_one_plan_have_the_same_arrays() -> None:
    """A target that one image lacks, or has with other channels, is refused."""
    for item in ({"a": PIXELS, "b": None}, {"a": PIXELS, "b": PIXELS[:1]}):
        images = patchloom.open_images(
            [PIXELS, PIXELS], ids=["a", "b"], axes="CYX", targets={"x": item}
        )
        with pytest.raises(PlanError, match="the same roles"):
            patchloom.plan(images, GRID)
    with pytest.raises(IdentityError, match=r"targets_x= has one entry.*\['b'\] without one"):
        patchloom.open_images(
            [PIXELS, PIXELS], ids=["a", "b"], axes="CYX", targets={"x": {"a": PIXELS}}
        )


def test_a_column_is_not_called_like_an_array() -> None:
    """The xarray view of a store names both."""
    images = patchloom.open_images(
        PIXELS, axes="CYX", weights=np.ones((48, 40)), sample={"weights": 1}
    )
    with pytest.raises(ConfigError, match=r"other names than arrays, got \['weights'\]"):
        patchloom.materialize(
            patchloom.plan(images, GRID), "memory://roles-named.zarr", progress=False
        )


def test_saved_plans_keep_all_roles(tmp_path: Path) -> None:
    """By name, with arrays in memory taken from the images given."""
    arguments: dict[str, Any] = {
        "axes": "CYX", "weights": np.ones((48, 40), "float32"),
        "targets": {"low": {"from": PIXELS[:, ::2, ::2], "resample": "nearest"}},
    }  # fmt: skip
    plan = patchloom.plan(patchloom.open_images(PIXELS, **arguments), GRID)
    plan.save(str(tmp_path / "plan"))
    again = Plan.load(str(tmp_path / "plan"), images=patchloom.open_images(PIXELS, **arguments))
    assert again.fingerprint == plan.fingerprint
    patchloom.materialize(again, "memory://roles.zarr", progress=False)
    store = patchloom.open_patches("memory://roles.zarr")
    low = np.repeat(np.repeat(PIXELS[:, ::2, ::2], 2, 1), 2, 2)
    np.testing.assert_array_equal(store.read([0], "targets_low")[0], low[:, :16, :16])
    assert json.loads(json.dumps(again.images[0].to_document()))["roles"].keys() == {
        "targets_low", "weights"
    }  # fmt: skip


@settings(deadline=None)
@given(
    extent=st.integers(1, 30),
    scale=st.fractions(Fraction(1, 7), 7, max_denominator=9),
    offset=st.fractions(-4, 4, max_denominator=9),
    data=st.data(),
)
def test_part_of_a_stretch_is_a_stretch(
    extent: int, scale: Fraction, offset: Fraction, data: st.DataObject
) -> None:
    """Cut down, it names the same pixels; saved, too."""
    whole = Stretch(40, extent, scale, offset)
    some = range(40)[data.draw(st.slices(40).filter(lambda s: bool(range(40)[s]) and (s.step or 1) > 0))]  # noqa: E501  # fmt: skip
    every = np.asarray(whole)
    centres = [(Fraction(k) + Fraction(1, 2) - offset) / scale for k in range(40)]
    assert every.tolist() == [min(max(int(c // 1), 0), extent - 1) for c in centres]
    taken = Pick(whole).of(Pick(some))
    assert np.asarray(taken.indices).tolist() == every[some].tolist()
    assert Pick.from_document(json.loads(json.dumps(taken.to_document()))) == taken
