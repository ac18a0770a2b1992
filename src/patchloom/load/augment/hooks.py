"""Hooks: transforms of other packages, applied to a patch and what belongs to it by our draws.

None of these packages is imported before it is used.
"""

from __future__ import annotations

import copy
import importlib
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.errors import ConfigError
from patchloom.load.augment.chance import Chance
from patchloom.load.augment.roles import role_of
from patchloom.load.visit import ByAddress

__all__ = ["AlbumentationsHook", "FunctionHook", "KorniaHook", "MonaiHook", "TorchIOHook"]

Pixels = npt.NDArray[Any]
_INTERPOLATED = ("image", "context", "target")


class _Turn:
    """One thread at a time: seeds belong to a transform, or to the whole process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        if hasattr(os, "register_at_fork"):
            # A lock that another thread held would stay locked in the child.
            os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        self.lock = threading.Lock()


_TURN = _Turn()


@dataclass(frozen=True)
class _Hook(ByAddress):
    """A transform that is called for one patch at a time, seeded by seed, epoch and position."""

    transform: Any
    roles: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    """See `Augment.roles`."""

    def __post_init__(self) -> None:
        # Seeding changes it; the user's stays as it is.
        object.__setattr__(self, "transform", copy.deepcopy(self.transform))

    def __call__(
        self,
        batch: Mapping[str, Any],
        positions: npt.ArrayLike,
        *,
        seed: int,
        epoch: int = 0,
        draw: npt.ArrayLike = 0,
    ) -> dict[str, Any]:
        """Transform each patch with what belongs to it.

        Parameters
        ----------
        batch
            Arrays or tensors by name [n, channels, *space]; those of fewer than three
            dimensions stay as they are.
        positions, seed, epoch, draw
            See `Augment.__call__`.

        Returns
        -------
        dict
            The same names and types.

        Raises
        ------
        ConfigError
            If labels come back mixed, or patches in different shapes.
        """
        told = {name: role_of(name, array, self.roles) for name, array in batch.items()}
        told = {name: role for name, role in told.items() if role != "still"}
        arrays = {name: _array(batch[name]) for name in told}
        chance = Chance.of(positions, seed=seed, epoch=epoch, draw=draw)
        words = chance.words(f"hook {type(self).__name__}", 2)
        seeds = (words[:, 0] << np.uint64(32) | words[:, 1]).tolist()
        if lengths := {name: len(a) for name, a in arrays.items() if len(a) != len(seeds)}:
            raise ConfigError(f"each patch has a position, got {len(seeds)} for {lengths} patches")
        found: dict[str, list[Pixels]] = {name: [] for name in told}
        for k, one in enumerate(seeds):
            coded = {name: _coded(a[k], told[name]) for name, a in arrays.items()}
            with _TURN.lock:
                moved = self._moved({name: c[0] for name, c in coded.items()}, told, one)
            for name, (_, values) in coded.items():
                found[name].append(_decoded(name, moved[name], values, arrays[name].dtype))
        out = dict(batch)
        for name, patches in found.items():
            if not patches:
                continue
            if shapes := {patch.shape for patch in patches[1:]} - {patches[0].shape}:
                raise ConfigError(
                    f"patches of a batch have one shape, but {name!r} came back as "
                    f"{[patches[0].shape, *sorted(shapes)]}; end the transform with a crop or "
                    "padding to one size"
                )
            out[name] = _like(np.stack(patches), batch[name])
        return out

    def _moved(self, patch: dict[str, Pixels], told: Mapping[str, str], seed: int) -> Any:
        """Arrays [channels, *space] of one patch, transformed, by name."""
        raise NotImplementedError


class FunctionHook(_Hook):
    """A function of one patch: called with its arrays by name and a generator of NumPy.

    ``transform(patch, rng)`` gives arrays by the same names. Labels come as float32 codes: 0
    is 0, and equal codes are equal labels.

    Examples
    --------
    >>> def darken(patch, rng):
    ...     return {**patch, "images": patch["images"] * rng.uniform(0.5, 1)}
    >>> hook = FunctionHook(darken)
    >>> batch = {"images": np.ones((2, 1, 2, 2), "float32")}
    >>> found = hook(batch, [3, 4], seed=0)["images"]
    >>> found[:, 0, 0, 0].astype(float).round(3).tolist()
    [0.945, 0.937]
    """

    def _moved(self, patch: dict[str, Pixels], told: Mapping[str, str], seed: int) -> Any:
        return self.transform(patch, np.random.Generator(np.random.Philox(key=seed)))


class AlbumentationsHook(_Hook):
    """A transform or ``Compose`` of albumentations.

    Images and targets go as images, labels and weights as masks; of 3-D patches as volumes. Images
    keep their type, of which albumentations takes uint8, and float32 in [0, 1].
    """

    def _moved(self, patch: dict[str, Pixels], told: Mapping[str, str], seed: int) -> Any:
        ndim = next(iter(patch.values())).ndim - 1
        image, mask = ("image", "mask") if ndim == 2 else ("volume", "mask3d")
        keys, extra = dict[str, str](), dict[str, str]()
        for name in patch:
            kind = image if told[name] in _INTERPOLATED else mask
            keys[name] = kind if kind not in keys.values() else f"patchloom{len(extra)}"
            if keys[name] != kind:
                extra[keys[name]] = kind
        if image not in keys.values():
            raise ConfigError(f"albumentations needs an image beside its masks, got {told}")
        compose = self.transform
        if not isinstance(compose, importlib.import_module("albumentations").BaseCompose):
            compose = importlib.import_module("albumentations").Compose([compose])
            object.__setattr__(self, "transform", compose)
        compose.add_targets(extra)
        compose.set_random_seed(seed % 2**32)
        moved = compose(**{keys[name]: np.moveaxis(a, 0, -1).copy() for name, a in patch.items()})
        return {name: np.moveaxis(moved[keys[name]], -1, 0) for name in patch}


class MonaiHook(_Hook):
    """A dictionary transform or ``Compose`` of MONAI, whose keys are the names of arrays.

    For labels say ``mode="nearest"`` in each transform that interpolates.
    """

    def _moved(self, patch: dict[str, Pixels], told: Mapping[str, str], seed: int) -> Any:
        if hasattr(self.transform, "set_random_state"):
            self.transform.set_random_state(seed=seed % 2**32)
        given = {name: _floating(a).copy() for name, a in patch.items()}
        moved = self.transform(given)
        return {name: _array(moved[name]) for name in patch}


class TorchIOHook(_Hook):
    """A transform of TorchIO: images and targets as ``ScalarImage``, labels as ``LabelMap``.

    Axes are TorchIO's (channels, x, y, z); a 2-D patch is one plane. Weights go as labels do,
    so that they are not interpolated.
    """

    def _moved(self, patch: dict[str, Pixels], told: Mapping[str, str], seed: int) -> Any:
        torch, torchio = map(importlib.import_module, ("torch", "torchio"))
        images = {}
        for name, a in patch.items():
            made = torchio.ScalarImage if told[name] in _INTERPOLATED else torchio.LabelMap
            turned = _floating(a).swapaxes(1, -1)
            turned = turned[..., None] if a.ndim == 3 else turned
            images[name] = made(tensor=torch.from_numpy(turned.copy()))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            moved = self.transform(torchio.Subject(**images))
        found = {name: moved[name].data.numpy() for name in patch}
        return {
            name: (found[name][..., 0] if a.ndim == 3 else found[name]).swapaxes(1, -1)
            for name, a in patch.items()
        }


class KorniaHook(_Hook):
    """An ``AugmentationSequential`` of Kornia: images and targets as input, labels as masks."""

    def _moved(self, patch: dict[str, Pixels], told: Mapping[str, str], seed: int) -> Any:
        torch = importlib.import_module("torch")
        keys = ["input" if told[name] in _INTERPOLATED else "mask" for name in patch]
        given = [torch.from_numpy(_floating(a)[None].copy()) for a in patch.values()]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            moved = self.transform(*given, data_keys=keys)
        moved = [moved] if len(given) == 1 and not isinstance(moved, list) else moved
        return {name: a.numpy()[0] for name, a in zip(patch, moved, strict=True)}


def _coded(patch: Pixels, role: str) -> tuple[Pixels, Pixels | None]:
    """Labels as small numbers that every package holds exactly, and what they stand for."""
    if role != "label" and patch.dtype != bool:
        return patch, None
    zero = np.zeros(1, patch.dtype)
    values = np.unique(np.concatenate([zero, patch.ravel()]))
    values = np.concatenate([zero, values[values != 0]])
    order = np.argsort(values)
    codes = order[np.searchsorted(values[order], patch.ravel())]
    return codes.reshape(patch.shape).astype(np.float32), values


def _decoded(name: str, found: Any, values: Pixels | None, dtype: np.dtype[Any]) -> Pixels:
    """In the type of the source."""
    found = np.asarray(found)
    if values is None:
        found = _whole(found, dtype) if dtype.kind in "iu" else found
        return np.asarray(found.astype(dtype))
    codes = found.astype(np.int64)
    if (codes != found).any() or codes.min(initial=0) < 0 or codes.max(initial=0) >= len(values):
        raise ConfigError(
            f"labels come from the nearest pixel, but {name!r} came back with values between "
            "labels, or new ones; tell the transform to take the nearest for them "
            "(mode='nearest'), and to fill with 0"
        )
    return np.asarray(values[codes])


def _whole(found: Pixels, dtype: np.dtype[Any]) -> Pixels:
    """Floats rounded; what is beyond the type to its end."""
    info = np.iinfo(dtype)
    low, high = info.min, info.max
    if found.dtype.kind == "f":
        # The greatest 64-bit integer is no float.
        last = high if info.bits < 64 else np.nextafter(float(high), 0)
        return np.clip(np.rint(found.astype(np.float64)), low, last)
    if found.dtype.kind in "iu":
        own = np.iinfo(found.dtype)
        return np.clip(found, max(low, own.min), min(high, own.max))
    return found


def _floating(a: Pixels) -> Pixels:
    return a if a.dtype in (np.float32, np.float64) else a.astype(np.float32)


def _array(given: Any) -> Pixels:
    """Of an array or a tensor on any device."""
    return np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)


def _like(found: Pixels, given: Any) -> Any:
    """As the kind that was given, on its device."""
    if not hasattr(given, "detach"):
        return found
    torch = importlib.import_module("torch")
    return torch.as_tensor(found, device=given.device)
