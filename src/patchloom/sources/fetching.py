"""Fetching: bytes of stored objects in batches, counted, tried again, and of one state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from patchloom.answers import Answer, ask
from patchloom.errors import ChunkError, SourceChangedError
from patchloom.image import Reads
from patchloom.location import Location
from patchloom.retrying import RETRYING

__all__ = ["GAP", "Fetching", "merged"]

Bytes = bytes | memoryview
GAP = 64 * 1024
"""Ranges of one object that lie closer than this are fetched as one."""


class Fetching:
    """Reads objects below a location, or the one object that stands there.

    Parameters
    ----------
    location
        Where they are.
    reads
        Where requests and bytes are counted.
    since
        When the run began, in seconds since 1970: what is written later is refused, where the
        store tells it.
    in_parts
        Whether objects are read part by part, so that all parts must be of one state.
    """

    def __init__(
        self, location: Location, reads: Reads, since: float | None, *, in_parts: bool
    ) -> None:
        self.location, self.reads = location, reads
        self.fs, self.root = location.open()
        self._since, self._in_parts = since, in_parts
        self._tags: dict[str, str] = {}

    def path(self, key: str) -> str:
        """The path of an object; ``""`` is the location itself."""
        return self.location.inside(self.root, key) if key else self.root

    def get(
        self, ranges: Sequence[tuple[str, int | None, int | None]], same: bool = True
    ) -> list[Bytes | None]:
        """One batch of reads; None where the object does not exist.

        Parameters
        ----------
        ranges
            Object below the location, first byte and last byte + 1 of each.
        same
            Whether an object that was written since the run began is refused.

        Raises
        ------
        ChunkError
            If one cannot be read.
        SourceChangedError
            If one was written meanwhile.
        """

        def fetch(items: list[Any]) -> Sequence[Any]:
            self.reads.requests += len(items)
            return ask(self.fs, items)

        asked = [(self.path(key), a, b) for key, a, b in ranges]
        answers = RETRYING.each(fetch, asked)
        keys = [key for key, _, _ in ranges]
        found = [self._checked(*pair, same) for pair in zip(answers, keys, strict=True)]
        self.reads.nbytes += sum(len(data) for data in found if data is not None)
        return found

    def spans(self, spans: Sequence[tuple[str, int, int]]) -> list[Bytes]:
        """Ranges of objects that exist; those that lie close together are fetched as one.

        Parameters
        ----------
        spans
            Object, first byte and last byte + 1 of each.

        Raises
        ------
        ChunkError, SourceChangedError
            As `get`; also if an object is gone.
        """
        wanted: dict[str, list[tuple[int, int, int]]] = {}
        for position, (key, start, stop) in enumerate(spans):
            wanted.setdefault(key, []).append((start, stop, position))
        ranges, members = [], []
        for key, parts in wanted.items():
            for start, stop, some in merged(sorted(parts)):
                ranges.append((key, start, stop))
                members.append((start, some))
        found: list[Bytes] = [b""] * len(spans)
        for data, (start, some), (key, _, _) in zip(self.get(ranges), members, ranges, strict=True):
            if data is None:
                raise self.changed(key, "vanished while it was read")
            view = memoryview(data)
            for a, b, position in some:
                found[position] = view[a - start : b - start]
        return found

    def state(self, key: str) -> str:
        """What tells one state of an object from another; ``""`` if the store does not.

        Its first byte is read: whatever is read after it must be of the same state.

        Raises
        ------
        ChunkError, SourceChangedError
            As `get`; also if there is no object.
        """
        self.spans([(key, 0, 1)])
        if self._in_parts and key in self._tags:
            return self._tags[key]
        try:
            return str(self.fs.checksum(self.path(key)))
        except Exception:  # each file system has errors of its own
            return ""

    def named(self, key: str) -> str:
        """An object, in an error."""
        return f"{key} of {self.location.shown}" if key else self.location.shown

    def changed(self, key: str, how: str) -> SourceChangedError:
        """The error of an object that did not stay as it was."""
        return SourceChangedError(
            f"an image stays as it is while it is read, but {self.named(key)} {how}; let "
            "its writer finish, then run the same call again, or into a new store if shards that "
            "are finished show what was there before"
        )

    def _checked(self, answer: Answer | Exception | None, key: str, same: bool) -> Bytes | None:
        if isinstance(answer, Exception):
            raise ChunkError(
                f"every chunk that a patch needs must be readable, but {self.named(key)} is "
                f"not: {self.location.describe(answer)}; mend the access and run the same call "
                "again"
            ) from answer
        if answer is None:
            return None
        if same:
            self._check_same(key, answer)
        return answer.data

    def _check_same(self, key: str, answer: Answer) -> None:
        tag, written = answer.tag, answer.written
        if self._in_parts and tag and self._tags.setdefault(key, tag) != tag:
            raise self.changed(key, "became another object while it was read")
        if self._since is not None and written is not None and written > self._since:
            late = written - self._since
            raise self.changed(key, f"was written {late:.1f} s after the run began")


def merged(
    spans: Sequence[tuple[int, int, int]],
) -> list[tuple[int, int, list[tuple[int, int, int]]]]:
    """Join spans (first byte, last byte + 1, position) of one object that lie close together."""
    found: list[tuple[int, int, list[tuple[int, int, int]]]] = []
    for span in spans:
        if found and span[0] - found[-1][1] <= GAP:
            start, stop, parts = found[-1]
            found[-1] = (start, max(stop, span[1]), [*parts, span])
        else:
            found.append((span[0], span[1], [span]))
    return found
