"""Profiles: schedulers and clusters by name, in a file of the user's."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from patchloom.configs import Strict, parsed_as
from patchloom.errors import ConfigError

__all__ = ["Profile", "profile_names", "profiles_file", "read_profile"]


class Profile(Strict):
    """Where a job runs: what the options of the same names say."""

    scheduler: str | None = None
    """Address of a Dask cluster, or `threads`, `processes` or `synchronous`."""
    cluster: str | None = None
    """Kind of a cluster that is made for the job, or the dotted name of a class of one."""
    workers: int | str | None = None
    """How many, or from how few to how many: `2..16`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Of the cluster: arguments of its class."""
    dask: dict[str, Any] = Field(default_factory=dict)
    """Settings of Dask, by dotted name."""


def profiles_file(environment: Mapping[str, str] = os.environ) -> Path:
    """Where profiles are read from.

    >>> profiles_file({"PATCHLOOM_PROFILES": "lab.yaml"}).name
    'lab.yaml'
    """
    if given := environment.get("PATCHLOOM_PROFILES"):
        return Path(given).expanduser()
    home = environment.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()
    return Path(home) / "patchloom" / "profiles.yaml"


def profile_names(path: Path) -> list[str]:
    """Names of the profiles of a file; none if it cannot be read."""
    try:
        return [str(name) for name in _document(path)]
    except ConfigError:
        return []


def read_profile(name: str, path: Path) -> Profile:
    """A profile by its name.

    Parameters
    ----------
    name
        A key of the file.
    path
        A YAML file with a mapping of profiles.

    Raises
    ------
    ConfigError
        If there is none of the name, or a key of it is wrong.
    """
    found = _document(path)
    if name not in found:
        near = difflib.get_close_matches(name, map(str, found), 1)
        says = f"did you mean {near[0]!r}?" if near else f"it has {[*map(str, found)]}"
        raise ConfigError(f"a profile is a key of {str(path)!r}, got {name!r}; {says}")
    profile = parsed_as(Profile, f"profile {name!r} of {str(path)!r}", found[name] or {})
    return profile or Profile()


def _document(path: Path) -> dict[Any, Any]:
    try:
        found = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"profiles stand in {str(path)!r}, but it cannot be read: {error.strerror or error}; "
            "write it (docs/command-line.md), or name another file in PATCHLOOM_PROFILES"
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        # Not its text, which may repeat a credential.
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        raise ConfigError(f"{str(path)!r}{where}: not YAML") from None
    if not isinstance(found, dict):
        raise ConfigError(f"profiles are a mapping of names to settings, but {str(path)!r} is not")
    return found
