"""Contents: what an export holds, and the parts that it is made of."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["STEP", "Contents", "Held", "Part", "Section"]

Pixels = npt.NDArray[Any]

STEP = 32 * 2**20
"""Bytes of decoded pixels that are taken at a time, at least one patch."""


@dataclass(frozen=True)
class Held:
    """One array of an export: what a row of it is."""

    name: str
    """Of the array in the store."""
    patch_shape: tuple[int, ...]
    """Channels, then space."""
    dtype: np.dtype[Any]
    axes: str
    """Axes of a patch, for example ``"czyx"``."""
    shares: bool = False
    """Whether the values were scaled to [0, 1]."""

    @property
    def patch_bytes(self) -> int:
        """Bytes of one patch before compression."""
        return int(np.prod(self.patch_shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True)
class Section:
    """Rows that stand together, numbered from 0: all of them, or those of one class."""

    value: Any
    """What its rows have in the column that tells sections apart; None if nothing does."""
    n_patches: int
    first_part: int
    n_parts: int


@dataclass(frozen=True)
class Contents:
    """What an export holds; the same on every machine.

    >>> image = Held("images", (1, 8, 8), np.dtype("uint8"), "cyx")
    >>> whole = Contents((image,), Contents.cut([None], [10], 4), 4, ("DAPI",), {}, "train")
    >>> whole.n_patches, whole.n_parts, whole.rows_of(2)
    (10, 3, (0, 8, 10))
    """

    arrays: tuple[Held, ...]
    sections: tuple[Section, ...]
    rows_per_part: int
    """Rows of a part: what is made as a whole. The last part of a section holds what is left."""
    channels: tuple[str, ...]
    store: Mapping[str, Any]
    """Attributes of the store."""
    name: str
    """The last name of the place where it is written."""

    @staticmethod
    def cut(values: list[Any], counts: list[int], rows_per_part: int) -> tuple[Section, ...]:
        """Sections of so many rows each."""
        found: list[Section] = []
        for value, count in zip(values, counts, strict=True):
            first = found[-1].first_part + found[-1].n_parts if found else 0
            found.append(Section(value, count, first, -(-count // rows_per_part)))
        return tuple(found)

    @property
    def n_patches(self) -> int:
        """Rows of all sections."""
        return sum(section.n_patches for section in self.sections)

    @property
    def n_parts(self) -> int:
        """Parts of all sections."""
        return sum(section.n_parts for section in self.sections)

    def rows_of(self, part: int) -> tuple[int, int, int]:
        """The section of a part, its first row there, and the row after its last one."""
        index = bisect_right(self.sections, part, key=lambda section: section.first_part) - 1
        section = self.sections[index]
        first = (part - section.first_part) * self.rows_per_part
        return index, first, min(first + self.rows_per_part, section.n_patches)


@dataclass(frozen=True)
class Part:
    """Some rows that follow one another, and how to get their pixels."""

    number: int
    section: int
    first: int
    """Row of the first one in its section."""
    table: pa.Table
    """Their rows of the manifest; ``row`` counts in the section, ``store_row`` in the store."""
    pixels: Callable[[str, int, int], Pixels]
    """Given the name of an array, and a stretch of the part's rows: their patches."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def steps(self, *arrays: Held) -> Iterator[tuple[int, int]]:
        """The part in stretches of `STEP` bytes of pixels of some arrays."""
        n = max(1, STEP // max(1, sum(held.patch_bytes for held in arrays)))
        for start in range(0, len(self), n):
            yield start, min(start + n, len(self))

    def patches(self, *arrays: Held) -> Iterator[tuple[int, dict[str, Pixels]]]:
        """One patch after another: its place in the part, and its pixels by array."""
        for start, stop in self.steps(*arrays):
            found = {held.name: self.pixels(held.name, start, stop) for held in arrays}
            for k in range(start, stop):
                yield k, {name: pixels[k - start] for name, pixels in found.items()}
