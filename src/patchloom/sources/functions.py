"""Functions of the user's as sources: one that reads a file, or one that opens image stacks.

CAREamics' ``ReadFuncLoading`` and ``ImageStackLoading`` are known by their attributes. A function
travels to the workers by pickle; a saved plan does not hold it.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.errors import ChunkError, NotAnArrayError, PatchloomError, SourceError
from patchloom.grid import ChunkGrid
from patchloom.image import ChunkReader, Image, Ints, Reads
from patchloom.location import Location
from patchloom.sources.arrays import check_numeric, regular_chunks
from patchloom.sources.folders import in_order, names_in
from patchloom.sources.handles import axes_of, image_of
from patchloom.sources.lazily import Sliceable

__all__ = ["FunctionSource", "LoaderSource", "Reading", "reading_of"]

Pixels = npt.NDArray[Any]
_LOADED = 4
"""Calls of loaders whose stacks a process keeps."""


@dataclass(frozen=True)
class Reading:
    """What ``read=`` asks for."""

    function: Callable[..., Any]
    kwargs: Mapping[str, Any]
    extension: str = ""
    is_loader: bool = False
    token: str = field(default_factory=lambda: uuid.uuid4().hex, compare=False)
    """Of this opening: what a function reads is only known to be the same within it."""

    def identity(self) -> dict[str, Any]:
        """The name of the function, and a digest of its arguments but for credentials."""
        kept = {name: value for name, value in self.kwargs.items() if name != "storage_options"}
        told = json.dumps(kept, sort_keys=True, default=lambda value: str(type(value)))
        return {"read": self.name, "kwargs": hashlib.sha256(told.encode()).hexdigest()[:16]}

    @property
    def name(self) -> str:
        """What errors call the function."""
        return str(getattr(self.function, "__qualname__", type(self.function).__name__))

    def files(self, urls: Sequence[Any], options: Mapping[str, Any]) -> list[Location]:
        """The files to read: those given and those in folders, by their extension, in order.

        Raises
        ------
        SourceError
            If there is none, or something is no path.
        """
        found = []
        for url in urls:
            if not isinstance(url, str):
                raise SourceError(
                    f"read= takes paths and URLs, got {type(url).__name__}; an array needs none"
                )
            location = Location.of(url, options)
            names = names_in(location)
            if names is None:
                found.append(location)
            else:
                files = in_order([name for name, is_folder in names.items() if not is_folder])
                found += [location / name for name in files]
        pattern = self.extension if "*" in self.extension else f"*{self.extension}"
        kept = [one for one in found if fnmatch.fnmatchcase(one.shown.rsplit("/", 1)[-1], pattern)]
        if not kept:
            raise SourceError(
                f"read= is given at least one file, but none of {len(found)} is called like "
                f"{pattern!r}; check the folder and the extension"
            )
        return kept

    def image(self, location: Location, axes: str | None, name: str) -> Image:
        """The image in a file, which is read once to know its shape and type."""
        found = _called(self, location)
        dtype = check_numeric(found.dtype, f"what {self.name} read of {location.shown!r}")
        return image_of(
            name=name,
            uri=location.shown,
            axes=axes_of(axes, "", found.ndim, location.shown),
            shape=found.shape,
            dtype=dtype,
            chunks=found.shape,
            source=FunctionSource(location, self, found.shape, dtype.str),
        )

    def stacks(self, given: Any, axes: str | None, names: Sequence[str] | None) -> list[Image]:
        """The images of the stacks that a loader gives, whose axes are SCYX or SCZYX.

        Raises
        ------
        SourceError
            If it fails, or what it gives are no stacks.
        """
        call = _Call(self, given, axes)
        stacks = _loaded(call)
        if names is not None and len(names) != len(stacks):
            raise SourceError(f"ids= has one name an image, got {names!r} for {len(stacks)} images")
        images = []
        for k, stack in enumerate(stacks):
            shape = tuple(int(n) for n in stack.data_shape)
            origin = getattr(stack, "source", "")
            known = isinstance(origin, str | Path) and str(origin) not in ("", "array")
            location = Location.of(origin) if known else None
            dtype = check_numeric(np.dtype(stack.data_dtype), f"stack {k} of {self.name}")
            if len(shape) not in (4, 5):
                raise NotAnArrayError(
                    f"an image stack has the shape SCYX or SCZYX, got {shape} from {self.name}"
                )
            chunks = regular_chunks(SimpleNamespace(shape=shape, dtype=dtype), (0, 1))
            own = location.stem if location is not None else f"image-{k}"
            images.append(
                image_of(
                    name=own if names is None else names[k],
                    uri="" if location is None else location.shown,
                    axes=axes_of("SCYX" if len(shape) == 4 else "SCZYX", "", len(shape), own),
                    shape=shape,
                    dtype=dtype,
                    chunks=(1, *chunks[1:]),
                    source=LoaderSource(call, k, shape, (1, *chunks[1:]), dtype.str),
                )
            )
        return images


def reading_of(read: Any, kwargs: Mapping[str, Any] | None, extension: str) -> Reading | None:
    """What ``read=``, ``read_kwargs=`` and ``extension=`` ask for; None without ``read=``.

    Raises
    ------
    SourceError
        If it is no function and none of CAREamics' two, or arguments are given twice.
    """
    if read is None:
        if kwargs or extension:
            raise SourceError("read_kwargs= and extension= belong to read=, which is not given")
        return None
    for name, own_kwargs, is_loader in (
        ("read_source_func", "read_kwargs", False),
        ("image_stack_loader", "image_stack_loader_kwargs", True),
    ):
        if hasattr(read, name):
            filtered = getattr(read, "extension_filter", "") or ""
            if kwargs or extension:
                raise SourceError(
                    f"arguments of a {type(read).__name__} are its own, got read_kwargs= or "
                    "extension= besides; leave them out"
                )
            own = getattr(read, own_kwargs, None) or {}
            return Reading(getattr(read, name), dict(own), filtered, is_loader)
    if not callable(read):
        raise SourceError(
            "read= is a function of a path that gives an array, or CAREamics' ReadFuncLoading or "
            f"ImageStackLoading, got {type(read).__name__}"
        )
    return Reading(read, dict(kwargs or {}), extension)


def _called(reading: Reading, location: Location) -> Pixels:
    """What the function reads of a file."""
    given = Path(location.url) if location.is_local and "://" not in location.url else location.url
    try:
        return np.asarray(reading.function(given, **reading.kwargs))
    except PatchloomError:
        raise
    except Exception as error:  # it is the user's
        raise ChunkError(
            f"a function that is given as read= reads every file, but {reading.name} fails on "
            f"{location.shown!r}: {location.describe(error)}; mend one of both"
        ) from error


def _lost(what: str) -> SourceError:
    return SourceError(
        f"a saved plan holds no functions, and {what} is read by one; pass the images with it: "
        "Plan.load(url, images=[...])"
    )


def _lazy(image: Image) -> Any:
    import dask.array as da

    return da.from_array(Sliceable(image), chunks=image.grid.chunks, inline_array=True, fancy=False)


@dataclass(frozen=True)
class FunctionSource:
    """A file that a function reads as a whole: one chunk."""

    location: Location
    reading: Reading | None = field(repr=False, compare=False)
    """None after a plan was loaded."""
    shape: tuple[int, ...]
    dtype: str

    @property
    def addressable(self) -> bool:
        """Always: a worker calls the function."""
        return True

    def reader(self) -> ChunkReader:
        """A reader that calls the function."""
        if self.reading is None:
            raise _lost(repr(self.location.shown))
        return _FunctionReader(self, self.reading)

    def without_pixels(self) -> FunctionSource:
        """Itself: it holds none."""
        return self

    @property
    def token(self) -> str:
        """What tells it from what other functions read of the file, in names of Dask arrays."""
        return "" if self.reading is None else self.reading.token

    def identity(self) -> dict[str, Any]:
        """Which function reads it."""
        return {} if self.reading is None else self.reading.identity()

    def to_document(self) -> dict[str, Any]:
        """The file; no function is saved."""
        return {
            "kind": "function",
            "url": self.location.shown,
            "shape": list(self.shape),
            "dtype": self.dtype,
        }

    @classmethod
    def from_document(
        cls, document: Mapping[str, Any], options: Mapping[str, Any]
    ) -> FunctionSource:
        """A source without its function; a loaded plan needs the images themselves."""
        location = Location.of(document["url"], options)
        return cls(location, None, tuple(document["shape"]), document["dtype"])

    def lazy(self, image: Image) -> Any:
        """A Dask array of one chunk."""
        return _lazy(image)


class _FunctionReader:
    def __init__(self, source: FunctionSource, reading: Reading) -> None:
        self.reads = Reads(codecs="file")
        self._source, self._reading = source, reading

    def read(self, chunks: Ints) -> list[Pixels]:
        n = len(np.asarray(chunks))
        if not n:
            return []
        source = self._source
        found = _called(self._reading, source.location)
        self.reads.chunks += 1
        self.reads.requests += 1
        self.reads.nbytes += found.nbytes
        if found.shape != source.shape or found.dtype.newbyteorder("=").str != source.dtype:
            raise ChunkError(
                f"a function reads the same of a file each time, but {self._reading.name} gave "
                f"{found.dtype}{list(found.shape)} of {source.location.shown!r}, and before "
                f"{source.dtype}{list(source.shape)}"
            )
        return [found.astype(source.dtype, copy=False)] * n


@dataclass(frozen=True)
class _Call:
    """One call of a loader."""

    reading: Reading
    given: Any
    axes: str | None

    @property
    def token(self) -> str:
        """What a process knows it by: what is given may be large, or compare to nothing."""
        return self.reading.token


@dataclass(frozen=True)
class LoaderSource:
    """One of the stacks that a loader gives, cut by its own ``extract_patch``."""

    call: _Call | None = field(repr=False, compare=False)
    """None after a plan was loaded."""
    position: int
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str

    @property
    def addressable(self) -> bool:
        """Always: a worker calls the loader."""
        return True

    def reader(self) -> ChunkReader:
        """A reader that calls the loader, once a process."""
        if self.call is None:
            raise _lost(f"image {self.position}")
        return _LoaderReader(self, self.call)

    def without_pixels(self) -> LoaderSource:
        """Itself: what it holds, the loader was given."""
        return self

    @property
    def token(self) -> str:
        """What tells it from the stacks of other calls, in names of Dask arrays."""
        return "" if self.call is None else self.call.token

    def identity(self) -> dict[str, Any]:
        """Which stack it is, and of which loader."""
        made = {} if self.call is None else self.call.reading.identity()
        return {**made, "position": self.position}

    def to_document(self) -> dict[str, Any]:
        """Which stack it is; no loader is saved."""
        return {
            "kind": "loader",
            "position": self.position,
            "shape": list(self.shape),
            "chunks": list(self.chunks),
            "dtype": self.dtype,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any], options: Mapping[str, Any]) -> LoaderSource:
        """A source without its loader; a loaded plan needs the images themselves."""
        shape, chunks = tuple(document["shape"]), tuple(document["chunks"])
        return cls(None, document["position"], shape, chunks, document["dtype"])

    def lazy(self, image: Image) -> Any:
        """A Dask array in chunks of about 16 MiB."""
        return _lazy(image)


_stacks: OrderedDict[str, list[Any]] = OrderedDict()
_lock = threading.RLock()


def _loaded(call: _Call) -> list[Any]:
    """The stacks of a call, made once a process."""
    key = call.token
    with _lock:
        if key not in _stacks:
            reading = call.reading
            try:
                found = list(reading.function(call.given, call.axes, **reading.kwargs))
            except PatchloomError:
                raise
            except Exception as error:  # it is the user's
                raise SourceError(
                    f"a loader gives a list of image stacks, but {reading.name} fails: "
                    f"{type(error).__name__}: {error}"
                ) from error
            asked = ("data_shape", "data_dtype", "extract_patch")
            if not found or any(not hasattr(s, name) for s in found for name in asked):
                raise SourceError(
                    f"a loader gives a list of image stacks, with {', '.join(asked)}, but "
                    f"{reading.name} gave {[type(s).__name__ for s in found[:5]]}"
                )
            _stacks[key] = found
        _stacks.move_to_end(key)
        while len(_stacks) > _LOADED:
            _stacks.popitem(last=False)
        return _stacks[key]


class _LoaderReader:
    def __init__(self, source: LoaderSource, call: _Call) -> None:
        self.reads = Reads(codecs="file")
        self._source, self._call = source, call
        self._grid = ChunkGrid(source.shape, source.chunks)

    def read(self, chunks: Ints) -> list[Pixels]:
        source, found = self._source, []
        # A stack may not be made for several threads.
        with _lock:
            stack = _loaded(self._call)[source.position]
            for row in np.asarray(chunks).tolist():
                start, stop = self._grid.box(row)
                extent = [b - a for a, b in zip(start, stop, strict=True)]
                try:
                    pixels = np.asarray(
                        stack.extract_patch(
                            sample_idx=start[0],
                            channels=None,
                            coords=list(start[2:]),
                            patch_size=extent[2:],
                        )
                    )
                    pixels = pixels.reshape(extent).astype(source.dtype, copy=False)
                except Exception as error:  # it is the user's
                    raise ChunkError(
                        f"an image stack gives every patch of it, but that of "
                        f"{self._call.reading.name} fails for {list(start)} to {list(stop)}: "
                        f"{type(error).__name__}: {error}"
                    ) from error
                self.reads.chunks += 1
                self.reads.requests += 1
                self.reads.nbytes += pixels.nbytes
                found.append(pixels)
        return found
