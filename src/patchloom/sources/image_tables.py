"""Tables of images: a row an image, with its roles, its id and its metadata."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from patchloom.errors import SourceError
from patchloom.image import ROLES
from patchloom.location import Location
from patchloom.sources.arrays import is_array
from patchloom.sources.files import format_of
from patchloom.sources.tables import is_text, open_table

__all__ = ["ImageTable", "image_table"]

_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".pq")
_URLS = ("image", "url")
_LOCAL = {"file", "local"}
_SHOWN = 10


@dataclass(frozen=True)
class ImageTable:
    """What a table says, row by row."""

    what: str
    """What errors call it."""
    urls: list[str]
    ids: list[str] | None
    roles: dict[str, list[str | None]]
    """URLs of masks, labels and targets that have a column; None where the row has none."""
    metadata: list[dict[str, str | int | float | bool]]
    """The other columns; what a row lacks is left out."""


def is_table(urls: Any) -> bool:
    """Whether something is a table of images: by its suffix, or as a frame in memory."""
    if isinstance(urls, str | os.PathLike):
        shown = Location.of(urls).shown if os.fspath(urls) else ""
        return not set("*[") & set(shown) and shown.lower().endswith(_SUFFIXES)
    framed = hasattr(urls, "columns") or hasattr(urls, "__arrow_c_stream__")
    return framed and not is_array(urls) and not hasattr(urls, "dims")


def image_table(urls: Any, options: Mapping[str, Any]) -> ImageTable | None:
    """A table of images; None if something else is given.

    Parameters
    ----------
    urls
        A path or URL of a CSV, TSV or Parquet file, a DataFrame or a pyarrow Table.
    options
        For fsspec.

    Raises
    ------
    SourceError
        If columns or values are missing, twice, or of another type.
    """
    if not is_table(urls):
        return None
    table = open_table(urls, None, "id", options)
    twice = sorted({name for name in table.names if table.names.count(name) > 1})
    found = [name for name in _URLS if name in table.names]
    if twice or len(found) != 1:
        raise SourceError(
            "a table of images has one column 'image' (or 'url'), and each name once, but "
            f"{table.what} has " + (f"{twice} twice" if twice else f"{list(table.names)}")
        )
    columns = table.read(table.names)
    unread = [name for name in table.names if name not in columns]
    if unread:
        raise SourceError(
            f"columns of a table of images hold text, numbers and flags, but {unread} of "
            f"{table.what} do not; leave them out"
        )
    base = _Base.of(urls, table.what)
    known = (*_URLS, *ROLES, "id")
    urls_ = _texts(columns, found[0], table.what, gaps=False)
    rows: list[dict[str, Any]] = [{} for _ in urls_]
    for name in table.names:
        if name not in known:
            for row, value in zip(rows, columns[name].to_pylist(), strict=True):
                if value is not None:
                    row[name] = value
    if not urls_:
        raise SourceError(f"a table of images has a row an image, but {table.what} has none")
    ids = _ids(columns["id"], table.what) if "id" in columns else None
    return ImageTable(
        table.what,
        [base.url(value) for value in urls_ if value is not None],
        ids,
        {
            role: [base.role(value) for value in _texts(columns, role, table.what, gaps=True)]
            for role in ROLES
            if role in columns
        },
        rows,
    )


def _texts(columns: Mapping[str, Any], name: str, what: str, *, gaps: bool) -> Sequence[str | None]:
    values = columns[name]
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    found = [value or None for value in values.to_pylist()] if is_text(kind) else None
    if found is None and values.null_count == len(values):
        found = [None] * len(values)
    if found is None:
        raise SourceError(
            f"column {name!r} of {what} holds paths or URLs, got {kind}; write them as text"
        )
    empty = [k for k, value in enumerate(found) if value is None]
    if empty and not gaps:
        raise SourceError(
            f"every row of a table of images names one in {name!r}, but rows {empty[:_SHOWN]} of "
            f"{what} do not (counted from 0); fill or remove them"
        )
    return found


def _ids(values: Any, what: str) -> list[str]:
    found = values.to_pylist()
    empty = [k for k, value in enumerate(found) if value is None or value == ""]
    if empty:
        raise SourceError(
            f"every row of a table with a column 'id' has one, but rows {empty[:_SHOWN]} of {what} "
            "do not (counted from 0); fill it, or remove the column"
        )
    return [str(value) for value in found]


@dataclass(frozen=True)
class _Base:
    """Where the table stands: what paths in it are relative to."""

    folder: str | None
    """None for a table in memory."""
    is_local: bool
    what: str

    @classmethod
    def of(cls, urls: Any, what: str) -> _Base:
        if not isinstance(urls, str | os.PathLike):
            return cls(None, True, what)
        location = Location.of(urls)
        path = location.url.partition("?")[0] if "://" in location.url else location.url
        return cls(path.rsplit("/", 1)[0] or "/", location.is_local, what)

    def url(self, value: str) -> str:
        """A path or URL of the table, from where we stand."""
        given = "://" in value or "::" in value
        absolute = given or os.path.isabs(value) or value.startswith("~")
        if self.folder is None or (absolute and self.is_local):
            return value
        schemes = {part.split("://")[0] for part in value.split("::")}
        if absolute and (not given or schemes & _LOCAL):
            raise SourceError(
                f"a table from elsewhere names nothing on this machine, but {self.what} has "
                f"{value!r}; read it yourself, look at it, and pass the DataFrame"
            )
        return value if absolute else f"{self.folder.rstrip('/')}/{value}"

    def role(self, value: str | None) -> str | None:
        """What a role is: a path or URL, or the name of a label group, a bare word."""
        if value is None:
            return None
        bare = "/" not in value and "\\" not in value and "::" not in value
        if bare and not value.endswith(".zarr") and format_of(Location(value)) is None:
            return value
        return self.url(value)
