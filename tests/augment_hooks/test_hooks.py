"""Transforms of albumentations, MONAI, TorchIO and Kornia, with the packages themselves."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from patchloom.errors import ConfigError
from patchloom.load.augment import Augment, Chain
from patchloom.load.augment.hooks import (
    AlbumentationsHook,
    KorniaHook,
    MonaiHook,
    TorchIOHook,
)

albumentations = pytest.importorskip("albumentations")
kornia = pytest.importorskip("kornia.augmentation")
monai = pytest.importorskip("monai.transforms")
torch = pytest.importorskip("torch")
torchio = pytest.importorskip("torchio")

# Of these packages; none is ours to mend.
pytestmark = pytest.mark.filterwarnings("default")

NAMES = ["images", "labels", "targets", "weights"]
FAR = 2**60
"""Labels that no float holds."""


def batch_of(n: int, *extents: int) -> dict[str, npt.NDArray[Any]]:
    """All arrays tell where their pixels come from."""
    where = np.arange(1, 1 + np.prod(extents), dtype="uint64").reshape(1, 1, *extents).repeat(n, 0)
    scaled = (where / where.max()).astype("float32")
    return {"images": scaled, "labels": where + FAR, "targets": scaled, "weights": scaled}


HOOKS: dict[str, Callable[[], Any]] = {
    "albumentations": lambda: AlbumentationsHook(
        albumentations.Compose(
            [
                albumentations.D4(p=1),
                albumentations.Affine(rotate=(-40, 40), interpolation=0, p=0.7),
                albumentations.GridDistortion(interpolation=0, p=0.5),
            ]
        )
    ),
    "albumentations, one": lambda: AlbumentationsHook(albumentations.HorizontalFlip(p=0.5)),
    "monai": lambda: MonaiHook(
        monai.Compose(
            [
                monai.RandFlipd(keys=NAMES, prob=0.5, spatial_axis=0),
                monai.RandRotate90d(keys=NAMES, prob=0.5),
                monai.RandAffined(
                    keys=NAMES, prob=1, rotate_range=0.5, mode="nearest", padding_mode="zeros"
                ),
            ]
        )
    ),
    "torchio": lambda: TorchIOHook(
        torchio.Compose(
            [
                torchio.RandomFlip(axes=(0, 1)),
                torchio.RandomAffine(
                    degrees=(0, 0, 20), image_interpolation="nearest", default_pad_value=0
                ),
            ]
        )
    ),
    "kornia": lambda: KorniaHook(
        kornia.AugmentationSequential(
            kornia.RandomHorizontalFlip(p=0.5),
            kornia.RandomAffine(30.0, p=1.0, resample="nearest"),
            data_keys=["input", "mask"],
        )
    ),
}


@pytest.mark.parametrize("name", HOOKS)
def test_all_arrays_move_alike(name: str) -> None:
    """Every label is the one of the pixel that its image shows; types and shapes are kept."""
    batch = batch_of(12, 16, 16)
    found = HOOKS[name]()(batch, range(12), seed=0)
    assert {k: (a.dtype, a.shape) for k, a in found.items()} == {
        k: (a.dtype, a.shape) for k, a in batch.items()
    }
    labels = found["labels"]
    where = np.where(labels == 0, np.uint64(0), labels - np.uint64(FAR)).astype("float64")
    for other in ("images", "targets", "weights"):
        assert np.allclose(found[other] * 256, where, atol=1e-2)
    assert len({one.tobytes() for one in found["images"]}) > 1


@pytest.mark.parametrize("name", HOOKS)
def test_draws_are_by_address(name: str) -> None:
    """Alone or in a batch, in any order, after whatever else was drawn; by epoch and seed."""
    batch = batch_of(20, 16, 16)
    hook = HOOKS[name]()
    whole = hook(batch, range(20), seed=3)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    copy = pickle.loads(pickle.dumps(hook))
    for k in (4, 1):
        one = copy({m: a[k : k + 1] for m, a in batch.items()}, [k], seed=3)
        assert all(np.array_equal(one[m][0], whole[m][k]) for m in batch)
    assert not np.array_equal(hook(batch, range(20), seed=4)["images"], whole["images"])
    assert not np.array_equal(hook(batch, range(20), seed=3, epoch=1)["images"], whole["images"])


def test_the_chance_of_others_is_left_alone() -> None:
    """A training run draws the same with a hook in it, and a user's transform is not seeded."""
    for name in HOOKS:
        hook = HOOKS[name]()
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        hook(batch_of(2, 16, 16), range(2), seed=0)
        assert torch.equal(torch.rand(3), expected), name
    mine = albumentations.Compose([albumentations.D4(p=1)], seed=1)
    AlbumentationsHook(mine)(batch_of(2, 16, 16), range(2), seed=0)
    assert mine.seed == 1


@pytest.mark.parametrize(
    ("hook", "extents"),
    [
        (MonaiHook, (4, 8, 8)),
        (TorchIOHook, (4, 8, 8)),
        (AlbumentationsHook, (4, 8, 8)),
    ],
)
def test_volumes(hook: Any, extents: tuple[int, ...]) -> None:
    """3-D patches, in the order of axes that each package has."""
    transforms: dict[Any, Callable[[], Any]] = {
        MonaiHook: lambda: monai.RandFlipd(keys=NAMES, prob=1, spatial_axis=0),
        TorchIOHook: lambda: torchio.RandomFlip(axes=(2,), flip_probability=1),
        AlbumentationsHook: lambda: albumentations.HorizontalFlip(p=1),
    }
    axis = -1 if hook is AlbumentationsHook else 2
    batch = batch_of(2, *extents)
    found = hook(transforms[hook]())(batch, range(2), seed=0)
    assert all(np.array_equal(found[name], np.flip(a, axis)) for name, a in batch.items())


def test_labels_that_were_interpolated_are_refused() -> None:
    """MONAI interpolates all keys alike unless told; nobody trains on the result."""
    hook = MonaiHook(monai.RandAffined(keys=NAMES, prob=1, rotate_range=0.3))
    with pytest.raises(ConfigError, match="nearest"):
        hook(batch_of(2, 16, 16), range(2), seed=0)


def test_tensors_stay_tensors() -> None:
    """Of the same type."""
    batch = {name: torch.from_numpy(a.copy()) for name, a in batch_of(3, 8, 8).items()}
    found = HOOKS["kornia"]()(batch, range(3), seed=0)
    assert {k: a.dtype for k, a in found.items()} == {k: a.dtype for k, a in batch.items()}


def test_workers_draw_the_same() -> None:
    """In a DataLoader's processes as in this one."""
    batch = batch_of(8, 16, 16)
    for name in HOOKS:
        chain = Chain(Augment(flip="yx"), HOOKS[name]())
        rows = _Rows(batch, chain)
        loader = torch.utils.data.DataLoader(
            rows, batch_size=None, num_workers=2, multiprocessing_context="fork"
        )
        for expected, found in zip(map(rows.__getitem__, range(4)), loader, strict=True):
            assert np.array_equal(expected["images"], np.asarray(found["images"])), name


class _Rows:
    """Two patches an item."""

    def __init__(self, batch: dict[str, Any], augment: Any) -> None:
        self.batch, self.augment = batch, augment

    def __len__(self) -> int:
        return 4

    def __getitem__(self, k: int) -> dict[str, Any]:
        if k >= 4:
            raise IndexError(k)
        part = {name: a[2 * k : 2 * k + 2] for name, a in self.batch.items()}
        found = self.augment(part, [2 * k, 2 * k + 1], seed=0)
        return {"images": torch.from_numpy(np.ascontiguousarray(found["images"]))}
