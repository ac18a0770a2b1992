"""Axes: the names of an array's dimensions, and what each one is for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from patchloom.errors import AxesError

__all__ = ["Axes"]

_SPATIAL = "zyx"
_SAMPLE = "st"
_KNOWN = _SAMPLE + "c" + _SPATIAL
_GUESS = {1: "x", 2: "yx", 3: "zyx", 4: "czyx", 5: "tczyx"}


@dataclass(frozen=True)
class Axes:
    """One letter a dimension, in the order in which the array is stored.

    ``z``, ``y``, ``x`` are spatial (patches extend along them), ``c`` is the channel
    (a patch takes all of it), ``s`` (sample) and ``t`` (time) count samples (each index is
    patched by itself).

    >>> axes = Axes.parse("YXC")
    >>> axes.names, axes.spatial, axes.canonical
    ('yxc', 'yx', 'cyx')
    """

    names: str
    """Lower-case letters out of ``stczyx``, each at most once."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.names) - set(_KNOWN))
        if unknown or len(set(self.names)) != len(self.names):
            raise AxesError(
                f"axes are distinct letters out of {_KNOWN!r} "
                f"(s sample, t time, c channel, z y x space), got {self.names!r}; "
                "name each dimension of the array once, for example axes='CZYX'"
            )
        if "x" not in self.names or ("z" in self.names and "y" not in self.names):
            raise AxesError(
                f"an image needs the axis x (and y if it has z), got {self.names!r}; "
                "name the dimensions along which patches extend, for example axes='YXC'"
            )

    @classmethod
    def parse(cls, text: str) -> Axes:
        """Axes from letters in either case."""
        return cls(str(text).lower())

    @classmethod
    def guess(cls, ndim: int) -> Axes:
        """The documented default for an array whose metadata do not name its axes.

        Raises
        ------
        AxesError
            If there is no default for so many dimensions.
        """
        if ndim not in _GUESS:
            raise AxesError(
                f"an array without named axes has 1 to 5 dimensions, got {ndim}; "
                "name them: axes=..."
            )
        return cls(_GUESS[ndim])

    @cached_property
    def spatial(self) -> str:
        """The spatial axes, in the order z, y, x."""
        return "".join(a for a in _SPATIAL if a in self.names)

    @cached_property
    def sample(self) -> str:
        """The axes that count samples, in stored order."""
        return "".join(a for a in self.names if a in _SAMPLE)

    @property
    def has_channel(self) -> bool:
        """Whether there is a channel axis."""
        return "c" in self.names

    @property
    def canonical(self) -> str:
        """The axes of one patch: ``c`` (always), then the spatial ones."""
        return "c" + self.spatial

    @cached_property
    def order(self) -> tuple[int, ...]:
        """Stored dimensions in canonical order: samples, channel (if any), space."""
        wanted = self.sample + ("c" if self.has_channel else "") + self.spatial
        return tuple(self.names.index(a) for a in wanted)

    def pick(self, letters: str) -> tuple[int, ...]:
        """The stored dimensions of `letters`."""
        return tuple(self.names.index(a) for a in letters)

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        return self.names.upper()
