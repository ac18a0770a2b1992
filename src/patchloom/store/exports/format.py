"""Format: what turns parts of rows into objects that another tool reads."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from patchloom.configs import Strict
from patchloom.location import Location
from patchloom.store.exports.contents import Contents, Part
from patchloom.store.patch_store import PatchStore

__all__ = ["Body", "Format", "Objects", "numbered"]

Body = bytes | memoryview | Path
"""What an object holds: bytes, or a local file that is read when it is written elsewhere."""
Objects = Generator[tuple[str, Body], None, None]
"""Names and what they hold, one after the other."""


class Format(Strict, ABC):
    """One format with its options. Which objects it makes follows from them and the rows alone."""

    called: ClassVar[str]
    """What ``to=`` calls it."""
    column: ClassVar[str | None] = None
    """Name of the option with the column that tells sections apart."""
    arrays: ClassVar[tuple[str, ...] | None] = None
    """What it holds unless something else is asked for; None for all that the store has."""
    last: ClassVar[tuple[str, ...]] = ()
    """Names of the objects that are written last."""

    def rows(self, asked: int | None, given: int, n_patches: int) -> int:
        """Rows of a part.

        Parameters
        ----------
        asked
            What the user wants; None for no wish.
        given
            Rows of a shard of the store.
        n_patches
            That are exported.
        """
        return asked or given

    def check(self, contents: Contents) -> None:
        """Refuse what the format cannot hold, before anything is written.

        Raises
        ------
        ConfigError
            With the way out.
        """

    def opening(self, contents: Contents) -> Mapping[str, bytes]:
        """Objects that are written first, by name."""
        return {}

    @abstractmethod
    def n_objects(self, contents: Contents, part: int) -> int:
        """How many objects a part becomes."""

    @abstractmethod
    def part_of(self, contents: Contents) -> Callable[[str], int | None]:
        """Gives the part that an object of some name belongs to; None if to none."""

    @abstractmethod
    def objects(self, contents: Contents, part: Part) -> Objects:
        """The objects of a part, the same bytes each time. A file may be gone after the next."""

    def columns(self, contents: Contents, part: Part) -> Mapping[str, pa.Array]:
        """Further columns of its rows in the manifest."""
        return {}

    def closing(
        self, contents: Contents, target: Location, store: PatchStore
    ) -> Iterator[tuple[str, bytes]]:
        """Objects that are written last, when all parts are there."""
        yield from ()


def numbered(pattern: re.Pattern[str], rows: int = 1) -> Callable[[str], int | None]:
    """Gives the part of a name by a number in it, which counts parts, or rows of so many a part."""

    def part_of(name: str) -> int | None:
        found = pattern.fullmatch(name)
        return None if found is None else int(found[1]) // rows

    return part_of
