"""What is installed: versions against the lowest that will do, extras, and codecs that work."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from patchloom import __version__
from patchloom.doctor.finding import Finding

__all__ = ["codecs", "extras", "versions"]

_PEOPLE = {"all", "test"}
"""Extras that bring no ability of their own."""


def versions() -> Iterator[Finding]:
    """Python, patchloom, and each package that it cannot do without."""
    machine = f"{platform.system()} {platform.machine()}"
    told = f"patchloom {__version__}, Python {platform.python_version()}, {machine}"
    yield Finding("ok", "version", told)
    wanted = _requirements()
    if wanted is None:
        yield Finding(
            "warn",
            "packages",
            "patchloom is not installed as a package, so nothing says what it needs",
            "pip install patchloom, or pip install -e . in a clone",
        )
        return
    mine = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    found = {one.name: version_of(one.name) for one in mine}
    good = [one for one in mine if _suits(one, found[one.name])]
    told = ", ".join(f"{one.name} {found[one.name]}" for one in good)
    yield Finding("ok", "packages", told)
    for one in mine:
        if one not in good:
            have = found[one.name]
            yield Finding(
                "fail",
                "packages",
                f"{one.name} is {'missing' if have is None else have}, but {one.specifier} is "
                "needed",
                f"pip install '{one.name}{one.specifier}'",
            )


def extras() -> Iterator[Finding]:
    """Which extras are there, and which are not: nothing that fails."""
    groups: dict[str, list[Any]] = {}
    for one in _requirements() or ():
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            for name in _names():
                if name not in _PEOPLE and one.marker.evaluate({"extra": name}):
                    groups.setdefault(name, []).append(one)
    there, absent = [], []
    for name, wanted in sorted(groups.items()):
        have = {one.name: version_of(one.name) for one in wanted}
        old = [one for one in wanted if have[one.name] and not _suits(one, have[one.name])]
        if old:
            yield Finding(
                "warn",
                "extras",
                f"{name}: {old[0].name} is {have[old[0].name]}, but {old[0].specifier} is needed",
                f"pip install 'patchloom[{name}]'",
            )
        elif all(have.values()):
            there.append(name)
        else:
            absent.append(name)
    if there or absent:
        absent_told = f"; not installed: {', '.join(absent)}" if absent else ""
        yield Finding("ok", "extras", f"{', '.join(there) or 'none'}{absent_told}")


def codecs() -> Iterator[Finding]:
    """Each codec that stores are written with, tried on a few bytes; others by name."""
    import numcodecs
    import numpy as np

    from patchloom.store.schema import CODECS, Codec

    data = np.arange(4096, dtype=np.uint16)
    for name in CODECS:
        config = Codec(name).config
        if config is None:
            continue
        try:
            codec = numcodecs.get_codec(config)
            back = np.frombuffer(codec.decode(codec.encode(data)), np.uint16)
        except Exception as error:  # each codec has errors of its own
            told = f"{name} does not work: {type(error).__name__}: {error}"
            yield Finding("fail", "codecs", told, "pip install --force-reinstall numcodecs")
            continue
        if not np.array_equal(back, data):
            told = f"{name} does not give back what it was given"
            yield Finding("fail", "codecs", told, "pip install --force-reinstall numcodecs")
    ours = ", ".join(name for name in CODECS if name != "none")
    more = {"imagecodecs": "TIFF", "pcodec": "pcodec", "zfpy": "zfp"}
    there = [what for module, what in more.items() if importlib.util.find_spec(module)]
    absent = [what for what in more.values() if what not in there]
    told = f"{ours} work; also for {', '.join(there) or 'nothing more'}"
    yield Finding("ok", "codecs", told + (f", not for {', '.join(absent)}" if absent else ""))


def version_of(package: str) -> str | None:
    """The version of a package; None if it is not installed.

    >>> version_of("patchloom-of-the-moon") is None
    True
    """
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _names() -> list[str]:
    return metadata.metadata("patchloom").get_all("Provides-Extra") or []


def _requirements() -> list[Any] | None:
    """What patchloom asks for; None if it is not known."""
    from packaging.requirements import Requirement

    try:
        found = metadata.requires("patchloom") or []
    except metadata.PackageNotFoundError:
        return None
    return [one for one in map(Requirement, found) if one.name != "patchloom"]


def _suits(wanted: Any, have: str | None) -> bool:
    return have is not None and bool(wanted.specifier.contains(have, prereleases=True))
