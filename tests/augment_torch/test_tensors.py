"""Tensors are augmented as arrays are: by the same draws, on their device, to the same pixels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchloom.errors import ConfigError
from patchloom.load.augment import Augment, augmentation
from tests.test_augment import DIHEDRAL, EVERYTHING, augments, coordinates

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("default")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Move tensors of the CPU by what moves those of a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augmentation, "_is_array_too", lambda tensor: False)
        yield


def as_tensors(batch: dict[str, Any], device: str = "cpu") -> dict[str, Any]:
    return {name: torch.from_numpy(array.copy()).to(device) for name, array in batch.items()}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int16", "uint16", "uint32", "int64", "uint64", "float16", "float64"]
)
def test_exact_moves_are_the_same_bits(dtype: str, device: str) -> None:
    """Flips, turns and crops, of every type."""
    rng = np.random.default_rng(0)
    batch = {
        "images": rng.integers(0, 2, (9, 2, 3, 7, 7)).astype(dtype),
        "labels": rng.integers(0, 100, (9, 1, 3, 7, 7)).astype(dtype),
    }
    for augment in (
        Augment(flip="zyx", turn="yx"),
        Augment(flip="x", turn="yx", crop=(5, 5)),
        Augment(flip="yx", turn="yx", crop=(4, 4), each_plane=True),
    ):
        expected = augment(batch, range(9), seed=0)
        with as_on_a_gpu():
            found = augment(as_tensors(batch, device), range(9), seed=0)
        for name, array in expected.items():
            assert found[name].device.type == device
            assert found[name].cpu().numpy().dtype == array.dtype
            assert np.array_equal(found[name].cpu().numpy(), array)


@pytest.mark.parametrize("device", DEVICES)
def test_pixels_that_are_no_number_stay_alone(device: str) -> None:
    """They say nothing of the range of the others, as of arrays."""
    pixels = np.random.default_rng(0).random((3, 1, 4, 4), "float32")
    pixels[0, 0, 1, 1] = np.nan
    augment = Augment(intensity_scale_range=(0.5, 2), intensity_clip=True)
    expected = augment({"images": pixels}, range(3), seed=0)["images"]
    with as_on_a_gpu():
        found = augment(as_tensors({"images": pixels}, device), range(3), seed=0)["images"]
    np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@settings(deadline=None, max_examples=60)
@given(data=st.data(), ndim=st.sampled_from([2, 3]), seed=st.integers(0, 2**32))
def test_nearest_pixels_are_the_same(
    device: str, data: st.DataObject, ndim: int, seed: int
) -> None:
    """Labels are those of arrays, but where two pixels are as near."""
    augment = data.draw(augments(ndim))
    where = coordinates(3, *[4, 9, 9][-ndim:])
    batch = {"images": where.astype("float64"), "labels": where.astype("uint16")}
    expected = augment(batch, [3, 1, 2], seed=seed)
    with as_on_a_gpu():
        found = augment(as_tensors(batch, device), [3, 1, 2], seed=seed)
    for name, array in expected.items():
        wrong = ~np.isclose(found[name].cpu().numpy(), array, rtol=0, atol=1e-4)
        assert wrong.mean() <= 0.01


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", ["nearest", "reflect", "constant"])
@pytest.mark.parametrize("shape", [(32, 24), (5, 16, 16)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-9), ("float32", 2e-4), ("float16", 2e-3)]
)
def test_interpolation_is_scipys(
    dtype: str, tolerance: float, shape: tuple[int, ...], mode: str, device: str
) -> None:
    """To float64 rounding of float64 images; of float32 to 2e-4 of the range of grey levels."""
    augment = Augment(
        rotation_range=30, shear_range=10, zoom_range=0.2, shift_range=0.2, warp_sigma=2, flip="x",
        intensity_shift_range=0.1, intensity_scale_range=0.2, fill_mode=mode, cval=0.5,
        crop=(11, 12),
    )  # fmt: skip
    pixels = np.random.default_rng(0).random((6, 2, *shape)).astype(dtype)
    batch = {"images": pixels, "targets_a": pixels, "weights": pixels}
    expected = augment(batch, range(6), seed=5)
    with as_on_a_gpu():
        found = augment(as_tensors(batch, device), range(6), seed=5)
    for name, array in expected.items():
        assert found[name].cpu().numpy().dtype == dtype
        error = np.abs(found[name].cpu().numpy().astype("float64") - array.astype("float64"))
        assert error.max() <= tolerance


def test_whole_numbers_are_rounded_alike() -> None:
    """To the nearest one, within their type."""
    pixels = np.random.default_rng(0).integers(0, 2**16, (4, 1, 13, 13)).astype("uint16")
    expected = EVERYTHING({"images": pixels}, range(4), seed=0)["images"].astype(int)
    with as_on_a_gpu():
        found = EVERYTHING(as_tensors({"images": pixels}), range(4), seed=0)["images"].numpy()
    assert found.dtype == np.uint16
    assert np.abs(found.astype(int) - expected).max() <= 20  # of 65,536, computed as float32
    shift = Augment(intensity_shift_range=(300, 300))
    small = as_tensors({"images": np.full((1, 1, 2, 2), 7, "uint8")})
    with as_on_a_gpu():
        assert shift(small, [0], seed=0)["images"].unique().tolist() == [255]


def test_pieces_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that is resampled some patches at a time."""
    pixels = np.random.default_rng(0).random((7, 1, 13, 13))
    whole = EVERYTHING({"images": pixels}, range(7), seed=0)["images"]
    monkeypatch.setattr("patchloom.load.augment.torch_pixels.TOGETHER", 2 * 81)
    with as_on_a_gpu():
        found = EVERYTHING(as_tensors({"images": pixels}), range(7), seed=0)["images"]
    assert np.allclose(found.numpy(), whole, rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=20)
@given(data=st.data(), ndim=st.sampled_from([2, 3]), seed=st.integers(0, 2**32))
def test_tensors_on_the_cpu_are_arrays(data: st.DataObject, ndim: int, seed: int) -> None:
    """The same bits, and tensors in tensors out."""
    augment = replace(data.draw(augments(ndim)), order=1)
    pixels = np.random.default_rng(seed).random((3, 1, *[4, 9, 9][-ndim:]), "float32")
    batch = {"images": pixels, "labels": coordinates(3, *pixels.shape[2:], dtype="uint64")}
    expected = augment(batch, [3, 1, 2], seed=seed)
    given_ = as_tensors(batch)
    found = augment(given_, [3, 1, 2], seed=seed)
    assert all(found[name].numpy().tobytes() == a.tobytes() for name, a in expected.items())
    assert all(np.array_equal(given_[name].numpy(), a) for name, a in batch.items())


def test_bfloat16() -> None:
    """Which NumPy does not have."""
    pixels = torch.rand(2, 1, 13, 13)
    found = EVERYTHING({"images": pixels.bfloat16()}, [0, 1], seed=0)["images"]
    assert found.dtype == torch.bfloat16
    expected = EVERYTHING({"images": pixels}, [0, 1], seed=0)["images"]
    assert (found.float() - expected).abs().max() < 0.02


def test_what_tensors_do_not_have() -> None:
    """Cubic splines, and a batch of both kinds."""
    pixels = np.zeros((1, 1, 4, 4), "float32")
    with as_on_a_gpu(), pytest.raises(ConfigError, match="order="):
        Augment(rotation_range=5, order=3)(as_tensors({"images": pixels}), [0], seed=0)
    with pytest.raises(ConfigError, match="all NumPy arrays or all tensors"):
        DIHEDRAL({"images": pixels, "labels": torch.zeros(1, 1, 4, 4)}, [0], seed=0)
