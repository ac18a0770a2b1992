"""Files: images in single files, each opened and read by the module of its format.

A format is a module with two functions: ``open_file(location, wanted) -> Image``, which reads what
the file says of itself but no pixel, and ``reader(source) -> ChunkReader``, which reads chunks on
the worker. It is found by the suffix of a name, else by the first bytes of the file; modules are
loaded when they are needed, for their packages may be absent.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.metadata import entry_points
from typing import Any, Protocol

from patchloom.axes import Axes
from patchloom.errors import SourceError, SourceMissingError
from patchloom.image import ChunkReader, Image, Reads
from patchloom.location import Location
from patchloom.sources.fetching import Fetching
from patchloom.sources.handles import axes_of
from patchloom.sources.lazily import Sliceable
from patchloom.sources.roles import role_axes

__all__ = ["FileSource", "Wanted", "format_of", "open_file", "package", "sniffed", "without_levels"]


GROUP = "patchloom.formats"
"""The entry points by which other packages bring formats."""


@dataclass(frozen=True)
class Wanted:
    """What is asked of a file."""

    name: str
    """The id of the image."""
    axes: str | None = None
    """As given by the user; None if the file or the number of dimensions is to tell."""
    level: int | str = 0
    inside: str | None = None
    """Path of one array in a container that holds several."""
    role_of: Image | None = None
    """The image that it is a role of: unnamed dimensions are called like its own."""

    def level_of(self, n: int, shown: str) -> int:
        """The number of the level that is asked for, of a file whose levels have no other names.

        Raises
        ------
        SourceError
            If it is none of them.
        """
        names = {str(k): k for k in range(n)}
        found = None if isinstance(self.level, bool) else names.get(str(self.level))
        if found is None:
            raise SourceError(
                f"level= is a number from 0 (finest) to {n - 1}, also as text, got {self.level!r} "
                f"for {shown!r}"
            )
        return found

    def axes_for(self, named: str, ndim: int, what: str) -> Axes:
        """The axes of an array: as given, else as named in the file, else by their number."""
        if self.axes is None and not named and self.role_of is not None:
            return role_axes(self.role_of, ndim)
        return axes_of(self.axes, named, ndim, what)


class Format(Protocol):
    """What the module of a format has."""

    def open_file(self, location: Location, wanted: Wanted) -> Image:
        """The image in a file; reads no pixel."""

    def reader(self, source: FileSource) -> ChunkReader:
        """A fresh reader of its chunks."""


@dataclass(frozen=True)
class _Known:
    """Where a format is at home, and how its files are recognised."""

    module: str
    suffixes: tuple[str, ...]
    magic: tuple[bytes, ...] = ()
    """First bytes of its files."""


_FORMATS = {
    "bioio": _Known("patchloom.sources.bioio", (".czi", ".nd2", ".lif")),
    "hdf5": _Known(
        "patchloom.sources.hdf5", (".h5", ".hdf5", ".hdf", ".he5", ".ims"), (b"\x89HDF\r\n\x1a\n",)
    ),
    "nifti": _Known("patchloom.sources.nifti", (".nii", ".nii.gz")),
    "npy": _Known("patchloom.sources.npy", (".npy",), (b"\x93NUMPY",)),
    "npz": _Known("patchloom.sources.npz", (".npz",)),
    "pillow": _Known(
        "patchloom.sources.pillow",
        (".png", ".jpg", ".jpeg", ".bmp", ".webp"),
        (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF"),
    ),
    "tiff": _Known(
        "patchloom.sources.tiff",
        (".tif", ".tiff", ".btf", ".tf8", ".svs", ".ndpi", ".scn", ".bif", ".qptiff", ".lsm"),
        (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    ),
}
"""Formats by name. A saved plan names the format of each source: no other module is loaded."""


@dataclass(frozen=True)
class FileSource:
    """An array in a file: where it is, its format, and what that needs to find chunks."""

    location: Location
    format: str
    layout: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """What the format's reader needs, as JSON values: small, however large the image is."""
    since: float | None = field(default=None, compare=False)
    """When the run began that reads it, in seconds since 1970; see `reading_since`."""

    @property
    def addressable(self) -> bool:
        """Always: a worker opens it by itself."""
        return True

    @property
    def held_bytes(self) -> int:
        """What a reader holds besides the chunks that it gives, where these are whole images."""
        return int(self.layout.get("held", 0))

    def reader(self) -> ChunkReader:
        """A fresh reader."""
        return _module(self.format).reader(self)

    def fetching(self, reads: Reads) -> Fetching:
        """What reads ranges of bytes of the file, as one unchanged object (key ``""``)."""
        return Fetching(self.location, reads, self.since, in_parts=True)

    def without_pixels(self) -> FileSource:
        """Itself: it holds none."""
        return self

    def identity(self) -> dict[str, Any]:
        """Which of the arrays of a file it is, where a file can hold several."""
        return {key: self.layout[key] for key in ("inside", "series") if key in self.layout}

    def to_document(self) -> dict[str, Any]:
        """The shown URL, the format and the layout."""
        return {
            "kind": "file",
            "url": self.location.shown,
            "format": self.format,
            "layout": dict(self.layout),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any], options: Mapping[str, Any]) -> FileSource:
        """Inverse of `to_document`."""
        _known(document["format"])
        return cls(
            Location.of(document["url"], options), document["format"], dict(document["layout"])
        )

    def lazy(self, image: Image) -> Any:
        """A Dask array whose chunks are those of the file; each task opens by itself."""
        import dask.array as da

        return da.from_array(
            Sliceable(image), chunks=image.grid.chunks, inline_array=True, fancy=False
        )


def format_of(location: Location) -> str | None:
    """The format that the suffix of a name stands for; None if it is no file's that is known.

    Our own formats come first: packages that bring others are loaded if none of them fits.
    """
    name = location.shown.lower()
    found = _by_suffix(name, _FORMATS)
    return _by_suffix(name, _plugins()[0]) if found is None and ".zarr" not in name else found


def _by_suffix(name: str, formats: Mapping[str, _Known]) -> str | None:
    suffixes = ((s, kind) for kind, known in formats.items() for s in known.suffixes)
    found = max((pair for pair in suffixes if name.endswith(pair[0])), default=None, key=_length)
    return None if found is None else found[1]


def sniffed(location: Location) -> str | None:
    """The format of a file by its first bytes; None if nothing is there or it is not known."""
    try:
        head = location.head(16)
    except (OSError, ValueError):  # a folder, or nothing
        return None
    formats, broken = _plugins()
    known_formats = {**formats, **_FORMATS}
    kinds = (kind for kind, known in known_formats.items() if head.startswith(known.magic))
    found = next(kinds, None)
    if found is None and broken:
        raise SourceError(
            f"{location.shown!r} is of no known format, and packages that bring more cannot be "
            f"used: {'; '.join(broken)}; mend or uninstall them"
        )
    return found


def open_file(kind: str, location: Location, wanted: Wanted) -> Image:
    """The image in a file of a format.

    Raises
    ------
    SourceMissingError
        If nothing is there, or it cannot be read.
    NotAnArrayError
        If it is no such file, or holds no array of numbers, or several.
    """
    fs, path = location.open()
    try:
        exists = location.ask(partial(_is_file, fs, path))
    except OSError:
        exists = False
    if not exists:
        raise SourceMissingError(
            "what a URL names must exist and be readable, but no file was found at "
            f"{location.shown!r}; check the path, the credentials and the bucket"
        )
    return _module(kind).open_file(location, wanted)


def without_levels(location: Location, wanted: Wanted) -> None:
    """Refuse a level, or a path inside, of a file that has neither.

    Raises
    ------
    SourceError
        If one was asked for.
    """
    if wanted.level != 0 or wanted.inside is not None:
        asked = f"level={wanted.level!r}" if wanted.level != 0 else f"the array {wanted.inside!r}"
        raise SourceError(
            f"{location.shown!r} holds one array and no levels, got {asked}; leave it out"
        )


def package(name: str, extra: str, location: Location) -> Any:
    """A package that only some formats need.

    Raises
    ------
    SourceError
        If it is not installed, naming the extra that brings it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SourceError(
            f"{location.shown!r} is read with {name}, which is not installed ({error}); "
            f"pip install 'patchloom[{extra}]'"
        ) from None


def _is_file(fs: Any, path: str) -> bool:
    """Whether a file is there; HTTP's own way to tell asks for all of it."""
    if "http" in fs.protocol:
        return bool(fs.info(path)["type"] == "file")
    return bool(fs.isfile(path))


def _module(kind: str) -> Format:
    found: Format = importlib.import_module(_known(kind).module)
    return found


def _known(kind: str) -> _Known:
    if kind in _FORMATS:
        return _FORMATS[kind]
    formats, broken = _plugins()
    if kind not in formats:
        more = f" ({'; '.join(broken)})" if broken else ""
        raise SourceError(
            f"the format of a file is one of {sorted({*_FORMATS, *formats})}, got {kind!r}{more}; "
            "install the package that brings it"
        )
    return formats[kind]


@lru_cache(maxsize=1)
def _plugins() -> tuple[dict[str, _Known], list[str]]:
    """Formats of installed packages, and what is wrong with others.

    They are the entry points of the group ``patchloom.formats``: a name, and a module with
    ``SUFFIXES``, ``MAGIC``, ``open_file`` and ``reader``.
    """
    found: dict[str, _Known] = {}
    broken = []
    for point in entry_points(group=GROUP):
        try:
            module = point.load()
            suffixes, magic = tuple(module.SUFFIXES), tuple(getattr(module, "MAGIC", ()))
            if not all(callable(getattr(module, name)) for name in ("open_file", "reader")):
                raise TypeError("open_file and reader are functions")
            if not all(isinstance(s, str) and s.startswith(".") for s in suffixes):
                raise TypeError(f"SUFFIXES are texts that begin with a dot, got {suffixes}")
            if not all(isinstance(m, bytes) and m for m in magic):
                raise TypeError(f"MAGIC are bytes, got {magic}")
            if point.name in found or point.name in _FORMATS:
                raise ValueError("another format has this name")
        except Exception as error:  # it is another package's
            broken.append(f"{point.name} ({point.value}): {type(error).__name__}: {error}")
            continue
        found[point.name] = _Known(module.__name__, tuple(s.lower() for s in suffixes), magic)
    return found, broken


def _length(pair: tuple[str, str]) -> int:
    return len(pair[0])
