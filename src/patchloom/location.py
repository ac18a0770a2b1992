"""Location: a URL and how to reach it, without ever showing a secret.

All bytes go in and out through fsspec here: local paths, ``s3://``, ``gs://``,
``http(s)://``, ``memory://`` and the rest of its protocols, chained ones included.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Any, TypeVar

import fsspec
import fsspec.asyn
from fsspec.implementations.local import LocalFileSystem

from patchloom import vault
from patchloom.answers import Answer, ask
from patchloom.errors import AccessError, PatchloomError, SourceMissingError, WriteError
from patchloom.retrying import RETRYING

__all__ = ["CHAINED", "Location", "StorageOptions"]

# A password may hold "/" and "@": with one, all up to the last "@" goes; a port is no password.
_USERINFO = re.compile(r"(?<=://)(?:[^/@\s:]*:(?!\d+/)[^\s]*|[^/@\s]+)@")
_QUERY = re.compile(r"[?#].*$")
_QUOTED_QUERY = re.compile(r"(?<=://)([^\s?#'\"]*)[?#][^\s'\"<>]*")
"""Of a URL within a text."""
_ARCHIVES = ("zip", "tar", "libarchive")
CHAINED = frozenset(
    {"blockcache", "cached", "dir", "filecache", "reference", "simplecache", *_ARCHIVES}
    | {"async_wrapper", "asyncwrapper"}
)
"""Protocols of fsspec that lie over another URL, which follows after ``::``."""
_ATTEMPTS = 3
_PIECE = 2**17
"""Bytes that a local file is handed at a time: of more, each costs Linux several times as much
(measured on ext4; docs/benchmarks.md)."""
Found = TypeVar("Found")


class StorageOptions(dict[str, Any]):
    """Options for a file system: a dict that never prints its values, nor pickles them.

    What is pickled is a name in the :mod:`patchloom.vault`.
    """

    lost = False
    """Whether they came from another process, and are not to be had here."""

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(options or {})
        if self:
            vault.keep(dict(self))

    def __repr__(self) -> str:
        return f"StorageOptions({', '.join(f'{k}=...' for k in sorted(self))})"

    __str__ = __repr__

    def __reduce__(self) -> tuple[Any, ...]:
        if not self:
            return StorageOptions, ()
        return _options, (vault.lend(vault.keep(dict(self))),)


def _options(name: str) -> StorageOptions:
    found = StorageOptions(vault.borrow(name) or {})
    found.lost = not found
    return found


if hasattr(os, "register_at_fork"):
    # A process that was forked has no thread that serves requests, and perhaps a lock that nobody
    # opens. Older versions of fsspec start no such thread anew, and none makes the lock anew.
    os.register_at_fork(after_in_child=fsspec.asyn.reset_lock)


@dataclass(frozen=True, repr=False)
class Location:
    """One place that bytes come from or go to.

    >>> Location("s3://key:secret@bucket/a06.ome.zarr").shown
    's3://bucket/a06.ome.zarr'
    >>> [Location(p).stem for p in ("data/a06.ome.zarr/", "slide.001.zarr", "t1.nii.gz")]
    ['a06', 'slide.001', 't1']
    """

    url: str
    """URL or absolute path; without a trailing slash."""

    options: StorageOptions = field(default_factory=StorageOptions, compare=False)
    """Handed to fsspec; may hold credentials, so it is never shown or saved."""

    def __post_init__(self) -> None:
        url = os.fspath(self.url)
        if "://" not in url and "::" not in url:
            # A worker may stand in another folder: a path means the same everywhere.
            url = os.path.abspath(os.path.expanduser(url))
        object.__setattr__(self, "url", url.rstrip("/") or "/")
        if not isinstance(self.options, StorageOptions):
            object.__setattr__(self, "options", StorageOptions(self.options or {}))
        if self.url != self.shown:
            vault.keep(self.url)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.url == self.shown:
            return Location, (self.url, self.options)
        return _location, (self.shown, vault.lend(vault.keep(self.url)), self.options)

    @classmethod
    def of(cls, url: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> Location:
        """A location from a path or URL and storage options."""
        return cls(os.fspath(url), StorageOptions(options or {}))

    @property
    def shown(self) -> str:
        """The URL without user, password, token or query: fit for logs and manifests."""
        return _shown(self.url)

    def __repr__(self) -> str:
        return f"Location({self.shown!r})"

    def describe(self, error: BaseException) -> str:
        """Name and text of a foreign error, without what `shown` leaves out and without options."""
        if isinstance(error, PatchloomError) and error.__cause__ is not None:
            error = error.__cause__  # what went wrong, not what we made of it
        text = str(getattr(error, "strerror", None) or error)
        secrets = [match.group(0).rstrip("@") for match in _USERINFO.finditer(self.url)]
        if "://" in self.url:
            secrets += [match.group(0)[1:] for match in _QUERY.finditer(self.url)]
        secrets += [part for secret in secrets for part in re.split(r"[:&=]", secret)]
        secrets += _texts(self.options)
        for secret in sorted(set(secrets), key=len, reverse=True):
            if len(secret) > 3:
                text = text.replace(secret, "***")
        # Clients write a URL in their own way, "%2F" as "/": not as it was given.
        text = _QUOTED_QUERY.sub(r"\1?***", _USERINFO.sub("", text))
        notes = "; ".join(getattr(error, "__notes__", ()))
        return f"{type(error).__name__}: {text}" + (f" ({notes})" if notes else "")

    @property
    def stem(self) -> str:
        """The last name of the path without its suffix, ``.gz`` behind and ``.ome`` before it."""
        _, link, after = _linked(self.shown)
        path = PurePosixPath((after if link.endswith("://") else link).removesuffix(".gz"))
        return path.stem.removesuffix(".ome") or path.name

    @property
    def scheme(self) -> str:
        """The protocol in front of ``://``; ``file`` for a plain path."""
        return self.url.split("://")[0].split("::")[0] if "://" in self.url else "file"

    @property
    def is_local(self) -> bool:
        """Whether it is a path on a disk."""
        return isinstance(self.open()[0], LocalFileSystem)

    @property
    def place(self) -> str:
        """The same text for the same place, however it is written, for comparing; not for logs.

        What lies inside a place begins with its text and a slash.
        """
        fs, path = self.open()
        if isinstance(fs, LocalFileSystem):
            return os.path.realpath(path).replace(os.sep, "/")
        return f"{fs.protocol}:{re.sub('/+', '/', path)}"

    @property
    def tried_once(self) -> dict[str, Any]:
        """The options with botocore's own retries off, unless they are asked for: ours do."""
        config = dict(self.options.get("config_kwargs") or {})
        if self.scheme not in ("s3", "s3a") or "retries" in config:
            return dict(self.options)
        config["retries"] = {"total_max_attempts": 1, "mode": "standard"}
        return {**self.options, "config_kwargs": config}

    def leave_retries(self, fs: Any) -> None:
        """Turn off those of a file system opened with `tried_once`: by its options ours alone."""
        if self.tried_once != self.options:
            fs.retries = 1  # of s3fs

    @property
    def _by_protocol(self) -> dict[str, Any]:
        """The options as fsspec takes them: what lies in an archive is reached by the archive's."""
        links = [link.partition("://")[0] for link in self.url.split("::") if "://" in link]
        options = self.tried_once
        if not options or not links or links[0] not in _ARCHIVES or set(links) & set(options):
            return options
        return {links[-1] if len(links) > 1 else "file": options}

    def open(self) -> tuple[fsspec.AbstractFileSystem, str]:
        """The file system and the path in it. fsspec keeps one instance a process."""
        if self.options.lost:
            raise AccessError(
                "credentials stay with the process that they were given to, and those of "
                f"{self.shown!r} are not here; give storage_options= again in this process, or "
                "let every process find them by itself (environment, configuration, role)"
            )
        try:
            fs, path = fsspec.core.url_to_fs(self.url, **self._by_protocol)
            self.leave_retries(fs)
        except ImportError as error:
            extra = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure"}
            way = extra.get(self.scheme, "all")
            raise SourceMissingError(
                f"{self.scheme}:// needs a package that is not installed ({error}); "
                f"pip install 'patchloom[{way}]'"
            ) from None
        except (ValueError, TypeError) as error:
            raise SourceMissingError(
                f"a URL is a path or fsspec protocol://path, got {self.shown!r} "
                f"({self.describe(error)})"
            ) from None
        return fs, path.rstrip("/") if path != "/" else path

    def __truediv__(self, name: str) -> Location:
        before, path, after = _linked(self.url)
        return Location(before + self.inside(path, name) + after, self.options)

    @property
    def parent(self) -> Location:
        """The folder that it lies in; of a bucket, a host or a whole archive itself."""
        before, path, after = _linked(self.url)
        scheme, mark, name = path.rpartition("://")
        folder, _, _ = name.rstrip("/").rpartition("/")
        if not folder and scheme not in _ARCHIVES:
            folder = name if mark else "/"
        return Location(f"{before}{scheme}{mark}{folder}{after}", self.options)

    def inside(self, path: str, name: str) -> str:
        """The path of an object below a path of this location; a query stays at the end."""
        head, mark, tail = path.partition("?") if "://" in self.url else (path, "", "")
        between = "" if head.endswith("://") else "/"  # of an archive: all of it
        return f"{head if not between else head.rstrip('/')}{between}{name}{mark}{tail}"

    def beside(self, suffix: str) -> Location:
        """The location with `suffix` added to its last name."""
        return Location(self.url + suffix, self.options)

    def ask(self, call: Callable[[], Found], what: str = "") -> Found:
        """What a request gives that may be repeated at will, tried again for a while.

        Parameters
        ----------
        call
            Sends it; `FileNotFoundError` and its like are answers.
        what
            Name of the object below here that it is about.

        Raises
        ------
        AccessError
            If it is refused, or goes on failing.
        """
        try:
            return RETRYING.call(call)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, NotImplementedError):
            raise
        except PatchloomError:
            raise
        except Exception as error:  # each file system has errors of its own
            raise self._refused(error, what) from error

    def _refused(self, error: Exception, what: str) -> AccessError:
        shown = f"{self.shown}/{what}" if what else self.shown
        return AccessError(
            f"what a URL names must be within reach, but {shown} is not: "
            f"{self.describe(error)}; mend the network or the credentials, then run the same "
            "call again: nothing that was finished is lost"
        )

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        """Several whole objects below here, asked for together; None where one does not exist.

        Raises
        ------
        AccessError
            If one cannot be read.
        """
        fs, root = self.open()
        asked = [(self.inside(root, name), None, None) for name in names]
        found: list[bytes | None] = []
        for name, answer in zip(
            names, RETRYING.each(lambda items: ask(fs, items), asked), strict=True
        ):
            if isinstance(answer, Exception) and not isinstance(answer, IsADirectoryError):
                raise self._refused(answer, name) from answer
            found.append(bytes(answer.data) if isinstance(answer, Answer) else None)
        return found

    def read(self, name: str = "") -> bytes | None:
        """The whole object, or None if it does not exist.

        Raises
        ------
        AccessError
            If it cannot be read.
        """
        fs, path = self.open()
        path = self.inside(path, name) if name else path

        def get() -> bytes | None:
            [answer] = ask(fs, [(path, None, None)])
            if isinstance(answer, Exception):
                raise answer
            return bytes(answer.data) if isinstance(answer, Answer) else None

        try:
            return self.ask(get, name)
        except IsADirectoryError:
            return None

    def head(self, n: int) -> bytes:
        """The first bytes of the object that stands here, at most so many.

        Raises
        ------
        OSError
            If there is none (`FileNotFoundError`), or it cannot be read (`AccessError`).
        """
        fs, path = self.open()

        def get() -> bytes:
            [answer] = ask(fs, [(path, 0, n)])
            if isinstance(answer, Exception):
                raise answer
            if answer is None:
                raise FileNotFoundError(self.shown)
            return bytes(answer.data)

        return self.ask(get)

    def size(self) -> int:
        """Bytes of the object that stands here; -1 if the store does not tell.

        Raises
        ------
        OSError
            If there is none, or it cannot be asked for.
        """
        fs, path = self.open()
        found = self.ask(lambda: fs.info(path)).get("size")
        return -1 if found is None else int(found)

    def write(self, name: str, *parts: bytes | memoryview) -> None:
        """Write one whole object, without a name the location itself: entirely or not at all.

        Parts are written one after another; only a store that is not local joins them before.

        Raises
        ------
        WriteError
            If the target refuses (disk full, permission, network); what stood there stays.
        """
        fs, root = self.open()
        path = self.inside(root, name) if name else root
        try:
            if isinstance(fs, LocalFileSystem):
                _write_local(path, parts)
            else:
                _write_remote(fs, path, b"".join(parts))
        except Exception as error:  # each file system has errors of its own
            shown = f"{self.shown}/{name}" if name else self.shown
            size = sum(len(part) for part in parts)
            raise WriteError(
                f"every object of a store must be writable, but {shown} ({size:,} "
                f"bytes) was refused: {self.describe(error)}; free space or "
                "mend the permission, then run the same call again: finished shards are kept"
            ) from error

    def upload(self, name: str, path: str | os.PathLike[str]) -> None:
        """Write a local file as one whole object: entirely or not at all; it is never held whole.

        Raises
        ------
        WriteError
            If the target refuses; what stood there stays.
        """
        fs, root = self.open()
        there = self.inside(root, name)
        try:
            if isinstance(fs, LocalFileSystem):
                _write_local(there, _Pieces(path))
            else:
                RETRYING.call(lambda: fs.put_file(os.fspath(path), there))
        except Exception as error:  # each file system has errors of its own
            raise WriteError(
                f"every object must be writable, but {self.shown}/{name} "
                f"({os.path.getsize(path):,} bytes) was refused: {self.describe(error)}; free "
                "space or mend the permission, then run the same call again"
            ) from error

    def list(self, name: str = "") -> dict[str, int]:
        """Objects below a folder: path relative to it -> size in bytes. One listing."""
        fs, root = self.open()
        folder = f"{root}/{name}".rstrip("/") if name else root
        fs.invalidate_cache(folder)
        try:
            if _is_s3(fs):
                return self._list_s3(fs, folder, name)
            found = self.ask(lambda: fs.find(folder, detail=True), name)
        except (FileNotFoundError, NotADirectoryError, NotImplementedError):
            return {}
        skip = len(fs._strip_protocol(folder).rstrip("/")) + 1
        return {p[skip:]: int(info.get("size") or 0) for p, info in found.items() if len(p) > skip}

    def _list_s3(self, fs: Any, folder: str, name: str) -> dict[str, int]:
        """The same page by page: a page that is refused is asked for again, not all of them."""
        bucket, _, key = folder.partition("/")
        prefix, found, more = f"{key}/" if key else "", dict[str, int](), dict[str, str]()
        while True:
            where = {"Bucket": bucket, "Prefix": prefix, **more}
            page = self.ask(partial(fs.call_s3, "list_objects_v2", **where), name)
            for item in page.get("Contents", ()):
                if not item["Key"].endswith("/"):  # what some tools put for a folder
                    found[item["Key"][len(prefix) :]] = int(item["Size"])
            if not page.get("IsTruncated"):
                return found
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def remove(self, names: Sequence[str]) -> None:
        """Remove objects by their names."""
        fs, root = self.open()
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self.ask(partial(fs.rm_file, f"{root}/{name}"), name)

    def abort_uploads(self) -> int:
        """Abort multipart uploads that a killed writer left below here; returns how many.

        Only S3 keeps them; other stores forget an upload that nobody finishes. Who may not list
        them leaves them there: they cost room, and are in nobody's way.
        """
        fs, root = self.open()
        if not _is_s3(fs):
            return 0
        bucket, _, prefix = root.partition("/")
        where = {"Bucket": bucket, "Prefix": f"{prefix}/"}
        try:
            found = self.ask(lambda: fs.call_s3("list_multipart_uploads", **where))
        except AccessError:
            return 0
        stale = found.get("Uploads", ())
        for upload in stale:
            one = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
            with contextlib.suppress(FileNotFoundError):  # tried again, or another client's work
                self.ask(partial(fs.call_s3, "abort_multipart_upload", **one))
        return len(stale)


def _location(shown: str, name: str, options: StorageOptions) -> Location:
    url = vault.borrow(name)
    if url is None:
        options = StorageOptions()
        options.lost = True
    return Location(shown if url is None else url, options)


def _linked(url: str) -> tuple[str, str, str]:
    """Of a chain of protocols: what stands before, in and after the link with the path."""
    before, rest = "", url
    while True:
        link, mark, after = rest.partition("::")
        kind, _, path = link.partition("://")
        if not mark or kind not in CHAINED:  # a password may hold "::"
            return before, rest, ""
        if path or kind in _ARCHIVES:
            return before, f"{kind}://{path}", f"::{after}"
        before, rest = f"{before}{link}::", after


def _shown(url: str) -> str:
    link, mark, rest = url.partition("::")
    if mark and link.partition("://")[0] in CHAINED:  # else of a password
        return f"{link}::{_shown(rest)}"
    return _QUERY.sub("", _USERINFO.sub("", url)) if "://" in url else url


def _texts(value: Any) -> list[str]:
    """All texts in nested options."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for v in value.values() for text in _texts(v)]
    return [text for v in value for text in _texts(v)] if isinstance(value, list | tuple) else []


@dataclass(frozen=True)
class _Pieces:
    """The bytes of a local file, some at a time, from its beginning whenever they are asked for."""

    path: str | os.PathLike[str]

    def __iter__(self) -> Iterator[bytes]:
        with open(self.path, "rb") as file:
            yield from iter(partial(file.read, _PIECE), b"")


def _write_remote(fs: fsspec.AbstractFileSystem, path: str, body: bytes) -> None:
    # A whole object under one name: written twice is written once.
    for attempt in range(_ATTEMPTS):
        try:
            RETRYING.call(lambda: fs.pipe_file(path, body))
        except FileNotFoundError:
            # Another client that resumes the same store aborted our upload as a leftover.
            if attempt == _ATTEMPTS - 1:
                raise
        else:
            return


def _is_s3(fs: Any) -> bool:
    """Whether a file system is that of s3fs."""
    return "s3" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))


def _write_local(path: str, parts: Iterable[bytes | memoryview]) -> None:
    # A rename is atomic where a write is not: a killed process leaves a ".part" file,
    # which the next run removes, and never half an object under the final name.
    for attempt in range(_ATTEMPTS):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        partial = f"{path}.{uuid.uuid4().hex}.part"
        try:
            with open(partial, "wb") as file:
                for part in parts:
                    view = memoryview(part)
                    file.writelines(view[i : i + _PIECE] for i in range(0, len(view), _PIECE))
            os.replace(partial, path)
        except FileNotFoundError:
            # Another client that resumes the same store took ours for a leftover.
            if attempt == _ATTEMPTS - 1:
                raise
        except BaseException:
            if os.path.exists(partial):
                os.remove(partial)
            raise
        else:
            return
