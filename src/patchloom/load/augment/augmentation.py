"""Augment: patches moved at random, with all that belongs to them, each by a draw of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from patchloom.errors import ConfigError, PatchSizeError
from patchloom.load.augment import numpy_pixels
from patchloom.load.augment.chance import Chance
from patchloom.load.augment.moves import Moves
from patchloom.load.augment.orientations import Orientation, rotations
from patchloom.load.augment.ranges import Ranges, by_axis, by_plane, ends, letters
from patchloom.load.augment.roles import ROLES, role_of
from patchloom.load.augment.sampling import FILL_MODES, ORDERS, Sampling
from patchloom.load.augment.splines import anchored
from patchloom.load.visit import ByAddress
from patchloom.randomness import below

__all__ = ["Augment"]

_SPACE = "zyx"

Floats = npt.NDArray[np.float64]
Range = float | tuple[float, float] | Mapping[str, Any] | Ranges


@dataclass(frozen=True)
class Augment(ByAddress):
    """Random flips, turns, shifts, rotation, shear, zoom, warp, crop and grey levels.

    Each patch has a draw of its own, addressed by seed, epoch and position: the same in any
    batch, on any worker, in any order. Images, labels, targets and weights are moved alike, and
    interpolated at most once; without rotation, shear, zoom, shift or warp every pixel is one of
    the source, bit for bit.

    A range is a number *r* for "between -r and r" (of zoom and intensity scale: between 1 - r and
    1 + r), a pair ``(low, high)``, or a mapping from axes or planes to either. Without a mapping
    it is meant for ``y`` and ``x``, or for the plane ``yx``.

    Parameters
    ----------
    flip
        Axes, such as ``"yx"``: each is flipped with probability 1/2.
    turn
        Axes that are turned by multiples of 90 degrees into each other, all turns equally often:
        two (4 turns) or ``"zyx"`` (24). They must have the same extent and spacing.
    rotation_range
        Degrees, by plane.
    shift_range
        Parts of the extent, by axis.
    shear_range
        Degrees below 90, by plane: in ``"yx"``, rows slide along x in proportion to y.
    zoom_range
        By axis: at a zoom of 1.2 contents are 1.2 times as large.
    zoom_alike
        Whether one draw tells how far along its range the zoom of every axis is.
    warp_sigma
        Standard deviation of the displacement of control points in pixels, by axis; 0 is no warp.
    warp_grid_size
        Cells of the grid of control points along each axis; points on its rim stay.
    crop
        Extents of the part that is kept, of all axes or of the last ones; every place in the patch
        is equally likely, the last one too. It is taken before turns and flips.
    intensity_shift_range
        Grey levels that are added, drawn by channel. Of images and context only.
    intensity_scale_range
        What grey levels are multiplied by before that, drawn by channel.
    intensity_clip
        Whether grey levels then stay between the least and the greatest of their patch.
    order
        Of the interpolation of images and targets: 0, 1 or 3 (3 not of tensors).
    fill_mode
        What lies beyond a patch: ``"nearest"``, ``"reflect"`` or ``"constant"``.
    cval, cval_target
        The constant of images, and of targets, labels and masks.
    spacing
        Size of a pixel along each spatial axis, for rotation and shear by true angles; None is
        the same for all.
    each_plane
        Whether each plane along z has a draw of its own; then nothing moves along z.
    roles
        What an array of a batch is, where the beginning of its name does not tell: ``"image"``,
        ``"context"`` (an image of another scale), ``"target"`` (moved as an image),
        ``"label"`` (nearest pixel), ``"weight"`` (moved as an image, 0 beyond the patch) or
        ``"still"`` (left as it is).

    Raises
    ------
    ConfigError
        If a parameter is out of its bounds.

    Examples
    --------
    >>> augment = Augment(flip="yx", turn="yx")
    >>> batch = {"images": np.arange(4, dtype="uint8").reshape(1, 1, 2, 2)}
    >>> augment(batch, [12], seed=0)["images"].tolist()
    [[[[0, 2], [1, 3]]]]
    >>> augment(batch, [12], seed=0, epoch=1)["images"].tolist()
    [[[[3, 2], [1, 0]]]]
    """

    flip: str = ""
    turn: str = ""
    rotation_range: Range = 0.0
    shift_range: Range = 0.0
    shear_range: Range = 0.0
    zoom_range: Range = 0.0
    zoom_alike: bool = False
    warp_sigma: float | Mapping[str, float] = 0.0
    warp_grid_size: int = 3
    crop: tuple[int, ...] | None = None
    intensity_shift_range: float | tuple[float, float] = 0.0
    intensity_scale_range: float | tuple[float, float] = 0.0
    intensity_clip: bool = False
    order: int = 1
    fill_mode: str = "nearest"
    cval: float = 0.0
    cval_target: float = 0.0
    spacing: tuple[float, ...] | None = None
    each_plane: bool = False
    roles: Mapping[str, str] | tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        sigma: Any = self.warp_sigma
        if isinstance(sigma, Mapping):
            sigma = tuple(sorted((axis, float(size)) for axis, size in sigma.items() if size))
        told = {
            "flip": letters("flip", self.flip),
            "turn": letters("turn", self.turn),
            "rotation_range": by_plane("rotation_range", self.rotation_range),
            "shift_range": by_axis("shift_range", self.shift_range),
            "shear_range": by_plane("shear_range", self.shear_range),
            "zoom_range": by_axis("zoom_range", self.zoom_range, middle=1),
            "warp_sigma": sigma,
            "crop": None if self.crop is None else tuple(map(int, self.crop)),
            "intensity_shift_range": ends("intensity_shift_range", self.intensity_shift_range),
            "intensity_scale_range": ends("intensity_scale_range", self.intensity_scale_range, 1),
            "spacing": None if self.spacing is None else tuple(map(float, self.spacing)),
            "roles": tuple(sorted(dict(self.roles).items())),
        }
        for name, value in told.items():
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        laws = {
            "turn= names two or three axes that are turned into each other": len(self.turn) != 1,
            f"order= is one of {list(ORDERS)}": self.order in ORDERS,
            f"fill_mode= is one of {list(FILL_MODES)}": self.fill_mode in FILL_MODES,
            "warp_grid_size= is at least 1 cell": self.warp_grid_size >= 1,
            "crop= is at least one pixel along each axis": self.crop is None
            or (len(self.crop) > 0 and min(self.crop) > 0),
            "spacing= is a positive size along each axis": all(
                0 < size < float("inf") for size in self.spacing or ()
            ),
            "zoom_range= keeps zooms above 0: a number below 1, or a pair of such": all(
                low > 0 for _, low, _ in self._of("zoom_range")
            ),
            "shear_range= is below 90 degrees": all(
                max(-low, high) < 90 for _, low, high in self._of("shear_range")
            ),
            f"roles= are among {list(ROLES)}": {role for _, role in self._roles} <= {*ROLES},
            "warp_sigma= is a number that is not negative, by axis": all(
                axis in _SPACE and size >= 0 for axis, size in self._sigmas
            ),
            "with each_plane=True nothing moves along z; leave z out": not self.each_plane
            or not ("z" in "".join(self._named) or len(self.crop or ()) > 2),
        }
        for law, holds in laws.items():
            if not holds:
                raise ConfigError(f"{law}; got {self!r}")

    # -- what was asked for, in one form ----------------------------------------------------

    def _of(self, name: str) -> Ranges:
        return cast(Ranges, getattr(self, name))

    @property
    def _roles(self) -> tuple[tuple[str, str], ...]:
        return cast("tuple[tuple[str, str], ...]", self.roles)

    @property
    def _sigmas(self) -> tuple[tuple[str, float], ...]:
        """Of the axes along which control points move."""
        if isinstance(self.warp_sigma, tuple):
            return cast("tuple[tuple[str, float], ...]", self.warp_sigma)
        size = float(cast(float, self.warp_sigma))
        return (("y", size), ("x", size)) if size else ()

    @property
    def _named(self) -> list[str]:
        """Axes and planes in which something happens."""
        names = ("rotation_range", "shift_range", "shear_range", "zoom_range")
        ranges = [key for name in names for key, _, _ in self._of(name)]
        return [self.flip, self.turn, *ranges, *(axis for axis, _ in self._sigmas)]

    @property
    def _resamples(self) -> bool:
        return bool(self._named[2:])

    @property
    def _scales(self) -> bool:
        return (self.intensity_shift_range, self.intensity_scale_range) != ((0, 0), (1, 1))

    @property
    def is_identity(self) -> bool:
        """Whether it leaves everything as it is."""
        return not ("".join(self._named) or self.crop or self._scales)

    # -- drawing ------------------------------------------------------------------------------

    def draw(
        self,
        positions: npt.ArrayLike,
        extents: tuple[int, ...],
        channels: int = 1,
        *,
        seed: int,
        epoch: int = 0,
        draw: npt.ArrayLike = 0,
    ) -> Moves:
        """What is drawn for patches, without moving one.

        Parameters
        ----------
        positions
            int[n]: positions of the patches.
        extents
            Of a patch along its spatial axes.
        channels
            How many it has.
        seed, epoch, draw
            See `__call__`.

        Returns
        -------
        Moves
            With `each_plane`, one row a plane, and the extents of a plane.

        Raises
        ------
        PatchSizeError
            If the patches do not allow what is asked for.

        Examples
        --------
        >>> Augment(rotation_range=90).draw([5, 6], (8, 8), seed=0).matrix[:, 0].round(3).tolist()
        [[0.384, 0.923], [0.999, -0.049]]
        """
        planes = 1
        if self.each_plane and len(extents) == 3:
            planes, extents = extents[0], extents[1:]
        chance = Chance.of(positions, seed=seed, epoch=epoch, draw=draw, planes=planes)
        axes = _SPACE[-len(extents) :]
        self._check_extents(extents, axes)
        window = self._window(extents)
        room = [a - b + 1 for a, b in zip(extents, window, strict=True)]
        n = len(chance.positions)
        corner = np.zeros((n, len(extents)), np.int64)
        if max(room) > 1:
            corner = below(room, chance.words("crop", len(extents)))
        drawn: dict[str, Any] = {}
        if self._resamples:
            drawn["matrix"] = self._matrix(chance, axes)
            drawn["shift"] = np.zeros((n, len(axes)))
            for axis, low, high in self._of("shift_range"):
                k = axes.index(axis)
                part = chance.between(f"shift {axis}", [low], [high])[:, 0]
                drawn["shift"][:, k] = part * extents[k]
        if self._sigmas:
            drawn["control"] = self._control(chance, axes)
        if self._scales:
            for name, key in (("bias", "intensity_shift_range"), ("gain", "intensity_scale_range")):
                low, high = getattr(self, key)
                drawn[name] = chance.between(name, [low] * channels, [high] * channels)
        kinds, orientation = self._orientations(chance, axes)
        return Moves(extents, window, corner, kinds, orientation, **drawn)

    def _orientations(
        self, chance: Chance, axes: str
    ) -> tuple[tuple[Orientation, ...], npt.NDArray[np.int64]]:
        """Those that occur, and which each patch has: int64[n]."""
        turns = rotations(len(axes), tuple(axes.index(axis) for axis in self.turn))
        turn = np.zeros(len(chance.positions), np.int64)
        if self.turn:
            turn = below(len(turns), chance.words("turn", 1)[:, 0])
        flips = np.zeros_like(turn)
        if self.flip:
            words = chance.words("flip", len(_SPACE))
            for axis in self.flip:
                bit = words[:, _SPACE.index(axis)] >> np.uint64(31)
                flips |= bit.astype(np.int64) << axes.index(axis)
        codes, which = np.unique(turn << len(axes) | flips, return_inverse=True)
        # A turn with flips may be another turn with others.
        places: dict[Orientation, int] = {}
        found = []
        for code in codes.tolist():
            flipped = [k for k in range(len(axes)) if code >> k & 1]
            kind = turns[code >> len(axes)].flipped(flipped)
            found.append(places.setdefault(kind, len(places)))
        return tuple(places), np.array(found, np.int64)[which]

    def _matrix(self, chance: Chance, axes: str) -> Floats:
        """Rotation, shear and zoom of coordinates, from the result's to the patch's."""
        d = len(axes)
        matrix = np.broadcast_to(np.eye(d), (len(chance.positions), d, d))
        size = np.array(self.spacing or [1.0] * d)
        for plane, low, high in self._of("rotation_range"):
            i, j = (axes.index(axis) for axis in plane)
            angle = np.deg2rad(chance.between(f"rotation {plane}", [low], [high])[:, 0])
            one = _eyes(len(angle), d)
            one[:, i, i] = one[:, j, j] = np.cos(angle)
            one[:, i, j] = np.sin(angle) * (size[j] / size[i])
            one[:, j, i] = -np.sin(angle) * (size[i] / size[j])
            matrix = matrix @ one
        for plane, low, high in self._of("shear_range"):
            i, j = (axes.index(axis) for axis in plane)
            angle = np.deg2rad(chance.between(f"shear {plane}", [low], [high])[:, 0])
            one = _eyes(len(angle), d)
            one[:, j, i] = -np.tan(angle) * (size[i] / size[j])
            matrix = matrix @ one
        for axis, low, high in self._of("zoom_range"):
            k = axes.index(axis)
            purpose = "zoom" if self.zoom_alike else f"zoom {axis}"
            one = _eyes(len(matrix), d)
            one[:, k, k] = 1 / chance.between(purpose, [low], [high])[:, 0]
            matrix = matrix @ one
        return np.ascontiguousarray(matrix)

    def _control(self, chance: Chance, axes: str) -> Floats:
        """Displacements of control points: float64[n, d, g + 3, ...]."""
        sizes = (self.warp_grid_size + 1,) * len(axes)
        inner = np.zeros((len(chance.positions), len(axes), *sizes))
        for axis, sigma in self._sigmas:
            drawn = chance.normal(f"warp {axis}", int(np.prod(sizes))) * sigma
            inner[:, axes.index(axis)] = drawn.reshape(-1, *sizes)
        return anchored(inner, len(axes))

    def _window(self, extents: tuple[int, ...]) -> tuple[int, ...]:
        crop = self.crop or ()
        if len(crop) > len(extents):
            raise PatchSizeError(
                f"crop= has at most one extent a spatial axis, got {crop} for patches of {extents}"
            )
        window = (*extents[: len(extents) - len(crop)], *crop)
        if any(a > b for a, b in zip(window, extents, strict=True)):
            raise PatchSizeError(
                f"a crop lies within its patch, but {crop} is larger than {extents}; "
                "ask for a smaller one, or plan larger patches"
            )
        return window

    def _check_extents(self, extents: tuple[int, ...], axes: str) -> None:
        if absent := {*"".join(self._named)} - {*axes}:
            raise PatchSizeError(
                f"these patches have the spatial axes {axes!r}, but something is to happen along "
                f"{sorted(absent)}; name axes that there are, as in {{'x': 0.1}}"
            )
        if self.spacing is not None and len(self.spacing) != len(axes):
            raise PatchSizeError(
                f"spacing= is a size along each of {axes!r}, got {list(self.spacing)}"
            )
        places = [axes.index(axis) for axis in self.turn]
        for what, values in (("extent", self._window(extents)), ("spacing", self.spacing)):
            if values is not None and len({values[k] for k in places}) > 1:
                raise PatchSizeError(
                    f"axes are turned into each other where they have the same {what}, but "
                    f"{self.turn!r} have {[values[k] for k in places]}; turn others, crop= to "
                    f"equal extents, or take flip={self.turn!r}, which has the half turns"
                )

    # -- moving -------------------------------------------------------------------------------

    def __call__(
        self,
        batch: Mapping[str, Any],
        positions: npt.ArrayLike,
        *,
        seed: int,
        epoch: int = 0,
        draw: npt.ArrayLike = 0,
    ) -> dict[str, Any]:
        """Move patches and what belongs to them.

        Parameters
        ----------
        batch
            Arrays by name: NumPy arrays, or tensors of PyTorch, which stay on their device. Of
            those that move [n, channels, *space], with one shape of space.
        positions
            int[n]: which patches they are, not negative.
        seed, epoch
            Whole numbers.
        draw
            Which of several draws of the same patch in one epoch, where one is seen more than
            once: a whole number, or int[n].

        Returns
        -------
        dict
            The same names; new arrays of the same types. What does not move is the same object.

        Raises
        ------
        ConfigError
            If arrays and positions do not fit together, or a name does not tell what its
            array is.
        PatchSizeError
            If the patches do not allow what is asked for.
        """
        told = {name: role_of(name, array, dict(self._roles)) for name, array in batch.items()}
        moving = {name: array for name, array in batch.items() if told[name] != "still"}
        if self.is_identity or not moving:
            return dict(batch)
        n, extents = self._shape(moving, np.size(positions))
        self._check_context(told)
        pixels, moving, restored = _pixels_of(moving)
        planes = self.each_plane and len(extents) == 3
        if planes:
            moving = {
                name: array.swapaxes(1, 2).reshape(n * extents[0], array.shape[1], *extents[1:])
                for name, array in moving.items()
            }
        channels = max(array.shape[1] for array in moving.values())
        moves = self.draw(positions, extents, channels, seed=seed, epoch=epoch, draw=draw)
        if moves.is_exact:
            found = [pixels.cropped(a, moves) if moves.is_cropped else a for a in moving.values()]
        else:
            found = pixels.resampled(
                [(array, self._sampling(told[name], array)) for name, array in moving.items()],
                moves,
            )
        out = dict(batch)
        for name, array in zip(moving, found, strict=True):
            moved = pixels.oriented(array, moves)
            if told[name] in ("image", "context") and "bool" not in str(array.dtype):
                moved = pixels.scaled(moved, moves, self.intensity_clip)
            if planes:
                moved = moved.reshape(n, extents[0], *moved.shape[1:]).swapaxes(1, 2)
            out[name] = restored(moved)
        return out

    def _sampling(self, role: str, array: Any) -> Sampling:
        if role == "weight":
            return Sampling(1 if "bool" not in str(array.dtype) else 0, "constant")
        order = 0 if role == "label" or "bool" in str(array.dtype) else self.order
        cval = self.cval if role in ("image", "context") else self.cval_target
        return Sampling(order, self.fill_mode, cval)

    def _shape(self, moving: Mapping[str, Any], n: int) -> tuple[int, tuple[int, ...]]:
        """Rows and spatial extents that all have."""
        shapes = {name: tuple(array.shape) for name, array in moving.items()}
        kinds = {(shape[0], *shape[2:]) for shape in shapes.values()}
        if len(kinds) != 1 or min(map(len, shapes.values())) < 3:
            raise ConfigError(
                "arrays that move together are [n, channels, *space] with the same n and space, "
                f"got {shapes}; leave others still: roles={{name: 'still'}}"
            )
        rows, *extents = kinds.pop()
        if rows != n:
            raise ConfigError(f"each patch has a position, got {n} for {rows} patches")
        return rows, tuple(extents)

    def _check_context(self, told: Mapping[str, str]) -> None:
        names = [name for name, role in told.items() if role == "context"]
        if names and (self._of("shift_range") or self._sigmas or self.crop):
            raise ConfigError(
                f"context is of another scale, so that it turns with its patch about their centre "
                f"but cannot be shifted, warped or cropped with it; got {names} with {self!r}; "
                "leave out shift_range, warp_sigma and crop, or the context"
            )


def _eyes(n: int, d: int) -> Floats:
    return np.tile(np.eye(d), (n, 1, 1))


def _pixels_of(moving: dict[str, Any]) -> tuple[Any, dict[str, Any], Callable[[Any], Any]]:
    """The module that moves these arrays, the arrays as it takes them, and the way back."""
    torch = sys.modules.get("torch")
    tensors = [torch is not None and isinstance(a, torch.Tensor) for a in moving.values()]
    if torch is None or not any(tensors):
        return numpy_pixels, moving, _same
    if not all(tensors):
        raise ConfigError(
            "arrays that move together are all NumPy arrays or all tensors, got "
            f"{ {name: type(array).__name__ for name, array in moving.items()} }"
        )
    if all(_is_array_too(a) for a in moving.values()):
        arrays = {name: a.detach().numpy() for name, a in moving.items()}
        return numpy_pixels, arrays, torch.from_numpy
    from patchloom.load.augment import torch_pixels

    return torch_pixels, moving, _same


def _is_array_too(tensor: Any) -> bool:
    """Whether NumPy sees the same memory."""
    return bool(tensor.device.type == "cpu" and "bfloat16" not in str(tensor.dtype))


def _same(array: Any) -> Any:
    return array
