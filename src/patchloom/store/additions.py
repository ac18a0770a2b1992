"""Additions: the images that one call added to a store, and where their rows stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from patchloom.randomness import digest

__all__ = [
    "Addition",
    "additions_of",
    "coming_rows_of",
    "fingerprint_of",
    "n_rows_of",
    "n_shards_of",
    "rows_of_shard",
]


@dataclass(frozen=True)
class Addition:
    """Some images of a store, whose patches stand in shards of their own.

    >>> first = Addition("ab", n_images=2, n_patches=10, rows_per_shard=4)
    >>> first.n_shards, first.stop_row
    (3, 10)
    >>> second = first.followed_by("cd", n_images=1, n_patches=5)
    >>> second.first_image, second.first_shard, second.first_row, second.stop_row
    (2, 3, 12, 17)
    """

    fingerprint: str
    """Of the plan of these images."""
    n_images: int
    n_patches: int
    rows_per_shard: int
    """Of the store."""
    first_image: int = 0
    """Position in the store's `images`."""
    first_row: int = 0

    @property
    def n_shards(self) -> int:
        """Shards that hold its patches."""
        return -(-self.n_patches // self.rows_per_shard)

    @property
    def first_shard(self) -> int:
        """Number of the first of them in the store."""
        return self.first_row // self.rows_per_shard

    @property
    def stop_row(self) -> int:
        """The row after its last one."""
        return self.first_row + self.n_patches

    def followed_by(self, fingerprint: str, n_images: int, n_patches: int) -> Addition:
        """The addition that comes next: it begins at a new shard."""
        return Addition(
            fingerprint,
            n_images,
            n_patches,
            self.rows_per_shard,
            self.first_image + self.n_images,
            (self.first_shard + self.n_shards) * self.rows_per_shard,
        )

    def to_document(self) -> dict[str, Any]:
        """As it stands in the attributes of a store."""
        return {
            "fingerprint": self.fingerprint,
            "n_images": self.n_images,
            "n_patches": self.n_patches,
            "first_row": self.first_row,
        }


def additions_of(attributes: Mapping[str, Any]) -> list[Addition]:
    """The additions of a store, in the order of their rows: one, if nothing was appended."""
    rows = int(attributes["rows_per_shard"])
    told = attributes.get("additions")
    if told is None:
        n = len(attributes["images"])
        return [Addition(attributes["fingerprint"], n, attributes["n_patches"], rows)]
    found: list[Addition] = []
    for item in told:
        begin = found[-1].first_image + found[-1].n_images if found else 0
        found.append(Addition(**item, rows_per_shard=rows, first_image=begin))
    return found


def n_rows_of(attributes: Mapping[str, Any]) -> int:
    """Rows of the arrays of a store, reserved ones between additions included."""
    return additions_of(attributes)[-1].stop_row


def coming_rows_of(attributes: Mapping[str, Any]) -> int:
    """Rows that the arrays of a store have once the addition that was begun is there, if any."""
    last, begun = additions_of(attributes)[-1], attributes.get("pending")
    if begun is None:
        return last.stop_row
    n_images, n_patches = len(begun["images"]), begun["n_patches"]
    return last.followed_by(begun["fingerprint"], n_images, n_patches).stop_row


def n_shards_of(attributes: Mapping[str, Any]) -> int:
    """Shards of a store; objects of later ones belong to an addition that is not finished."""
    last = additions_of(attributes)[-1]
    return last.first_shard + last.n_shards


def rows_of_shard(attributes: Mapping[str, Any], shard: int) -> tuple[int, int]:
    """The rows of a shard that hold patches: the first one, and the one after the last."""
    rows = int(attributes["rows_per_shard"])
    owner = [a for a in additions_of(attributes) if a.first_shard <= shard][-1]
    return shard * rows, min((shard + 1) * rows, owner.stop_row)


def fingerprint_of(additions: list[Addition]) -> str:
    """128 bits, in hex, of a store: its plan's, or of all additions in their order."""
    if len(additions) == 1:
        return additions[0].fingerprint
    return digest("additions", *(addition.fingerprint for addition in additions)).hex()
