"""Vault: credentials stay in the process that was given them, and never in what is pickled.

What is pickled holds a name. Other processes of the same user on the same machine (Dask's
processes, workers of a local cluster, spawned loaders) find the value under that name in a private
file, which lies in memory where the system has such a folder, is written when something is first
pickled, and goes when its process ends. A cluster is handed what it needs beside the graph:
:mod:`patchloom.run.lending`.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import stat
import tempfile
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["borrow", "contents", "hand_over", "keep", "lend"]

_NAME = re.compile(r"(?P<folder>(?:.*/)?patchloom-[\w-]+)?:(?P<key>[0-9a-f]{32})")
_kept: dict[str, Any] = {}
_lent: dict[str, str] = {}
_folder: tuple[int, Path] | None = None
_lock = threading.RLock()


def keep(value: Any) -> str:
    """Keep a value in this process, once however often it is given; returns its key."""
    with _lock:
        for key, known in _kept.items():
            if type(known) is type(value) and known == value:
                return key
        key = uuid.uuid4().hex
        _kept[key] = value
        return key


def contents() -> dict[str, Any]:
    """All that is kept, by key: for `hand_over` in another process."""
    with _lock:
        return dict(_kept)


def hand_over(kept: Mapping[str, Any]) -> None:
    """Keep what another process had, under the same keys."""
    with _lock:
        _kept.update(kept)


def lend(key: str) -> str:
    """A name under which other processes of this user on this machine find what is kept."""
    with _lock:
        if key not in _lent or _owner() != os.getpid():
            _lent[key] = _written(key)
        return _lent[key]


def borrow(name: str) -> Any | None:
    """What a name stands for; None if it cannot be had here."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    folder, key = match["folder"], match["key"]
    with _lock:
        if key in _kept:
            return _kept[key]
    found = _read(Path(folder) / key) if folder else None
    if found is not None:
        hand_over({key: found})
    return found


def _forked() -> None:
    """In a child that was forked: no thread is here that could hold the lock."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _owner() -> int | None:
    return None if _folder is None else _folder[0]


def _written(key: str) -> str:
    global _folder
    try:
        text = json.dumps(_kept[key])
        if json.loads(text) != _kept[key]:
            raise TypeError("JSON changes it")
    except (TypeError, ValueError):
        return f":{key}"  # an object of some client: it serves this process, and clusters
    if _owner() != os.getpid():  # also after a fork: the folder is its parent's
        memory = Path("/dev/shm")
        root = memory if os.access(memory, os.W_OK) else None
        _folder = os.getpid(), Path(tempfile.mkdtemp(prefix="patchloom-", dir=root))
        _lent.clear()  # names in the folder of a parent, which may end first
        atexit.register(_remove, *_folder)
    assert _folder is not None
    path = _folder[1] / key
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    return f"{_folder[1].as_posix()}:{key}"


def _remove(owner: int, folder: Path) -> None:
    if owner == os.getpid():
        shutil.rmtree(folder, ignore_errors=True)


def _read(path: Path) -> Any | None:
    """A value, if nobody but this user can have written it."""
    try:
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))) as file:
            told = os.fstat(file.fileno())
            own = not hasattr(os, "getuid") or told.st_uid == os.getuid()
            private = os.name == "nt" or not stat.S_IMODE(told.st_mode) & 0o077
            return json.load(file) if own and private else None
    except (OSError, ValueError):
        return None
