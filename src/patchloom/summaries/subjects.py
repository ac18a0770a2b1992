"""What statistics are of: images by name, and cells of a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from patchloom.errors import ConfigError, IdentityError
from patchloom.location import Location

__all__ = ["Cell", "Subject", "all_text", "groups_of", "provenance", "readable", "united"]

Value = str | int | float | bool | None


class Cell(NamedTuple):
    """What one summary is of: places in the lists of a `Statistics`."""

    image: int
    channel: int
    plane: int | None = None
    """Index of the z-slice, where slices are told apart."""
    label: int | None = None
    """Value of the labels over the pixels, where classes are told apart."""


@dataclass(frozen=True)
class Subject:
    """An image by name: what statistics need to know of it.

    >>> Subject("a06", "s3://key:secret@bucket/a06.ome.zarr", metadata={"stain": "HE"})
    Subject(id='a06', uri='s3://bucket/a06.ome.zarr', level=0, metadata={'stain': 'HE'})
    """

    id: str
    uri: str = ""
    """Where it came from; credentials are cut off. ``""`` for an array in memory."""
    level: int = 0
    metadata: Mapping[str, Value] = field(default_factory=dict)
    """One value a column; None (or NaN) is no value."""

    def __post_init__(self) -> None:
        if "://" in self.uri:
            object.__setattr__(self, "uri", Location(self.uri).shown)
        plain = {str(name): _plain(value) for name, value in self.metadata.items()}
        object.__setattr__(self, "metadata", plain)

    def to_document(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "id": self.id,
            "uri": self.uri,
            "level": self.level,
            "metadata": dict(self.metadata),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Subject:
        """Inverse of `to_document`.

        Raises
        ------
        TypeError or ValueError
            If it is of nothing that can be an image.
        """
        columns = document.get("metadata", {})
        plain = all(v is None or isinstance(v, str | int | float | bool) for v in columns.values())
        if not (plain and type(document["level"]) is int):
            raise ValueError("metadata and levels are plain values")
        if not all_text([document["id"], document["uri"]]):
            raise ValueError("an id and a URI are text")
        return cls(**document)


def readable(name: str) -> str:
    """A name as text that can be written: what in names of files is no Unicode, is escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def all_text(values: Any) -> bool:
    """Whether this is a list of text."""
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _plain(value: Any) -> Value:
    if isinstance(value, np.generic):
        value = value.item()
    # A table of metadata says NaN where it has no value.
    found: Value = None if value != value else value
    return found


def united(a: Sequence[Subject], b: Sequence[Subject]) -> tuple[Subject, ...]:
    """The images of both: in their order if they are the same, else by id.

    So the order does not depend on that of additions.

    Raises
    ------
    IdentityError
        If one id is of different images.
    """
    if tuple(a) == tuple(b):
        return tuple(a)
    found = {subject.id: subject for subject in a}
    for subject in b:
        known = found.setdefault(subject.id, subject)
        if known != subject:
            raise IdentityError(
                f"statistics that are added call each image by an id of its own, but "
                f"{subject.id!r} is both {known} and {subject}; open them with ids="
            )
    return tuple(found[name] for name in sorted(found))


def groups_of(subjects: Sequence[Subject], by: str | None) -> tuple[list[Any], list[int]]:
    """Groups of images: their names in ascending order, and the group of each image.

    Parameters
    ----------
    subjects
        Images.
    by
        ``"image"``: each its own, in their order; None: all one, called ``"all"``; else a
        metadata column.

    Raises
    ------
    ConfigError
        If not all images have that column, or its values are of several types.
    """
    if by is None:
        return ["all"], [0] * len(subjects)
    if by == "image":
        return [subject.id for subject in subjects], list(range(len(subjects)))
    for subject in subjects:
        if subject.metadata.get(by) is None:
            raise ConfigError(
                f"by= is 'image', None, or a metadata column that all images have, got {by!r}; "
                f"{subject.id!r} has {sorted(subject.metadata)}: give it with sample="
            )
    values: list[Any] = [subject.metadata[by] for subject in subjects]
    kinds = {"number" if isinstance(v, int | float) else "text" for v in values}
    if len(kinds) > 1:
        raise ConfigError(
            f"by= puts values in ascending order, but those of {by!r} are text and numbers; make "
            "them one type"
        )
    names = sorted(set(values))
    place = {name: k for k, name in enumerate(names)}
    return names, [place[value] for value in values]


def provenance(versions: Sequence[str], subjects: Sequence[Subject]) -> str:
    """Where numbers come from, as JSON: versions of patchloom, and the images without credentials.

    >>> provenance(["0.1.0"], [Subject("a06", "s3://key:secret@b/a06.zarr")])
    '{"patchloom": ["0.1.0"], "images": {"a06": {"uri": "s3://b/a06.zarr", "level": 0}}}'
    """
    # By id: the order of images makes no difference.
    images = {s.id: {"uri": s.uri, "level": s.level} for s in sorted(subjects, key=lambda s: s.id)}
    return json.dumps({"patchloom": list(versions), "images": images})
