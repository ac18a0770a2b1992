"""Automatic masks before their threshold is known: a plan finds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from patchloom.axes import Axes
from patchloom.errors import ConfigError, PlanError
from patchloom.image import ChunkReader, Image
from patchloom.mask_config import AutoMask
from patchloom.sources.derived import bare

__all__ = ["AutoSource", "automatic"]


@dataclass(frozen=True)
class AutoSource:
    """What is asked of an automatic mask. It has no pixels yet."""

    image: Image
    config: AutoMask
    only: int | None
    """The channel to look at; None for all."""

    @property
    def addressable(self) -> bool:
        """Whether a worker can read the image by itself."""
        return self.image.source.addressable

    def reader(self) -> ChunkReader:
        """None: there is nothing to read."""
        raise _unknown(self.image)

    def lazy(self, image: Image) -> Any:
        """None: there is nothing to read."""
        raise _unknown(self.image)

    def without_pixels(self) -> AutoSource:
        """The same without what the image holds in memory."""
        return self.filled(self.image.source.without_pixels())

    def filled(self, source: Any) -> AutoSource:
        """The same with the pixels of another source."""
        return replace(self, image=replace(self.image, source=source))

    def identity(self) -> dict[str, Any]:
        """What is asked."""
        return {"auto": self.config.model_dump(), "only": self.only}

    def to_document(self) -> dict[str, Any]:
        """The image and what is asked."""
        return {"kind": "auto", "image": self.image.to_document(), **self.identity()}

    @classmethod
    def from_document(cls, document: Mapping[str, Any], options: Mapping[str, Any]) -> AutoSource:
        """Inverse of `to_document`."""
        image = Image.from_document(document["image"], options)
        return cls(image, AutoMask(**document["auto"]), document["only"])


def automatic(image: Image, config: AutoMask) -> Image:
    """A mask whose threshold, and whose level, a plan finds; until then it has no pixels.

    Raises
    ------
    ConfigError
        If the image has no such channel, or no colours.
    """
    axes = Axes(image.axes.names.replace("c", ""))
    grid = image.grid.pick(image.axes.pick(axes.names))
    return Image(
        id=image.id,
        uri=image.uri,
        axes=axes,
        shape=grid.shape,
        dtype=np.dtype(np.bool_),
        grid=grid,
        source=AutoSource(bare(image), config, _channel(image, config)),
        level=image.level,
    )


def _channel(image: Image, config: AutoMask) -> int | None:
    n, asked = image.layout.n_channels, config.channel
    if config.of == "saturation" and (asked is not None or n not in (3, 4)):
        raise ConfigError(
            "saturation is of red, green and blue, the first 3 of 3 or 4 channels, got "
            f"{n} channels and channel={asked!r} for {image.id!r}; say of: brightness"
        )
    if isinstance(asked, str):
        if asked not in image.channels:
            raise ConfigError(
                f"channel= of a mask is a number or a name out of {list(image.channels)}, got "
                f"{asked!r} for {image.id!r}"
            )
        return image.channels.index(asked)
    if asked is not None and asked >= n:
        raise ConfigError(
            f"channel= of a mask is a number from 0 to {n - 1}, or a name out of "
            f"{list(image.channels)}, got {asked} for {image.id!r}"
        )
    return asked


def _unknown(image: Image) -> PlanError:
    return PlanError(
        f"an automatic mask has pixels when its threshold is known, but that of {image.id!r} is "
        "not yet; make the plan first, and take its images: plan.images"
    )
