"""Rules: what makes a pixel covered, as values that travel and are saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from patchloom.errors import SourceError

__all__ = ["ClassesRule", "NodataRule", "Rule", "ThresholdRule", "features", "rule_of"]

Flags = npt.NDArray[np.bool_]
Pixels = npt.NDArray[Any]
Feature = Literal["brightness", "saturation"]
LEVELS = 256
"""Steps of saturation."""


class Rule(Protocol):
    """Decides pixel by pixel; hashable, and small."""

    kind: ClassVar[str]

    @property
    def channel(self) -> int | None:
        """The one channel that it looks at; None for all."""

    @property
    def needs_planes(self) -> bool:
        """Whether it must see whole planes."""

    def covered(self, pixels: Pixels) -> Flags:
        """Which pixels are covered: [channels, ..., y, x] -> bool[..., y, x]."""

    def to_document(self) -> dict[str, Any]:
        """All of it, for JSON."""


@dataclass(frozen=True)
class _Rule:
    kind: ClassVar[str]

    @property
    def channel(self) -> int | None:
        """All channels."""
        return None

    @property
    def needs_planes(self) -> bool:
        """No: pixels are decided one by one."""
        return False

    def to_document(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class ClassesRule(_Rule):
    """Covered is what has one of some labels."""

    kind = "classes"
    classes: tuple[int, ...] | None
    """None for all but 0."""

    def covered(self, pixels: Pixels) -> Flags:
        """Which pixels have such a label."""
        found = pixels[0] != 0 if self.classes is None else np.isin(pixels[0], self.classes)
        return np.asarray(found, np.bool_)


@dataclass(frozen=True)
class NodataRule(_Rule):
    """Covered is what has data."""

    kind = "nodata"
    values: tuple[float, ...]
    nan: bool
    every: bool
    """Whether a pixel without data has none in any channel; else one is enough."""

    def covered(self, pixels: Pixels) -> Flags:
        """Which pixels have data."""
        missing = np.zeros(pixels.shape, np.bool_)
        for value in self.values:
            missing |= pixels == np.asarray(value).astype(pixels.dtype)
        if self.nan:
            missing |= np.isnan(pixels)
        found = ~(missing.all(0) if self.every else missing.any(0))
        return np.asarray(found, np.bool_)


@dataclass(frozen=True)
class ThresholdRule(_Rule):
    """Covered is what lies on one side of a threshold."""

    kind = "threshold"
    of: Feature
    only: int | None
    """The channel; None for all."""
    threshold: float | None
    """Above it is bright. None if there is nothing to tell apart: then nothing is covered."""
    bright: bool
    """Whether what is bright is covered, else what is not."""
    fill_holes: bool = False
    min_size: int = 0

    @property
    def channel(self) -> int | None:
        """The channel; None for all."""
        return self.only

    @property
    def needs_planes(self) -> bool:
        """Whether holes or small pieces matter."""
        return self.fill_holes or self.min_size > 1

    def covered(self, pixels: Pixels) -> Flags:
        """Which pixels are foreground."""
        if self.threshold is None:
            return np.zeros(pixels.shape[1:], np.bool_)
        values = features(pixels, self.of)
        # Not a number is on neither side.
        found = values > self.threshold if self.bright else values <= self.threshold
        if self.of == "saturation":
            found &= values >= 0
        # In one piece, so that its planes are views of it.
        found = np.ascontiguousarray(found, np.bool_)
        if self.needs_planes:
            for plane in found.reshape(-1, *found.shape[-2:]):
                plane[...] = self._mended(plane)
        return found

    def _mended(self, plane: Flags) -> Flags:
        from scipy import ndimage

        if self.fill_holes:
            plane = ndimage.binary_fill_holes(plane)
        if self.min_size > 1:
            pieces, _ = ndimage.label(plane)
            large = np.bincount(pieces.ravel()) >= self.min_size
            large[0] = False
            plane = large[pieces]
        return plane


def features(pixels: Pixels, of: Feature) -> Pixels:
    """What a threshold is put to: [channels, ...] -> [...].

    Brightness is the sum over channels: exact for integers of up to 32 bits, else float64.
    Saturation is that of the HSV model (Smith, "Color gamut transform pairs", SIGGRAPH 1978) in
    256 steps, as int64; what is below 0 counts as 0, and a pixel that is not finite has -1.
    """
    if of == "saturation":
        return _saturation(pixels[:3])
    if pixels.dtype.kind == "b":
        pixels = pixels.astype(np.uint8)
    if len(pixels) == 1:
        one: Pixels = pixels[0]
        return one
    total = np.zeros(pixels.shape[1:], np.float64 if _is_wide(pixels) else np.int64)
    # What leaves the range is infinite, and infinities that cancel out are not a number.
    with np.errstate(over="ignore", invalid="ignore"):
        for channel in pixels:
            # One after the other, so that floats are rounded alike everywhere.
            total += channel
    return total


def _is_wide(pixels: Pixels) -> bool:
    """Whether 64 bits do not hold sums, or multiples, of such pixels as whole numbers."""
    return pixels.dtype.kind == "f" or pixels.dtype.itemsize == 8


def _saturation(pixels: Pixels) -> npt.NDArray[np.int64]:
    finite = np.isfinite(pixels).all(0)
    if _is_wide(pixels):
        # A power of two is exact, and leaves room for the steps.
        pixels = np.where(finite, pixels, 0).astype(np.float64) / LEVELS
    else:
        pixels = pixels.astype(np.int64)
    pixels = np.maximum(pixels, 0)
    high = pixels.max(0)
    span = (high - pixels.min(0)) * (LEVELS - 1)
    steps = (span // np.where(high > 0, high, 1)).astype(np.int64)
    return np.where(finite, steps, -1)


_RULES: dict[str, type[Any]] = {
    rule.kind: rule for rule in (ClassesRule, NodataRule, ThresholdRule)
}


def rule_of(document: Mapping[str, Any]) -> Rule:
    """Inverse of `Rule.to_document`."""
    said = {k: tuple(v) if isinstance(v, list) else v for k, v in document.items()}
    kind = said.pop("kind")
    if kind not in _RULES:
        raise SourceError(f"a rule of a mask is one of {sorted(_RULES)}, got {kind!r}")
    found: Rule = _RULES[kind](**said)
    return found
