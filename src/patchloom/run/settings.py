"""Settings: what Dask's configuration says below ``patchloom``."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import yaml
from dask.utils import parse_bytes

from patchloom.errors import ConfigError

__all__ = ["DEFAULTS", "Settings"]

DEFAULTS = Path(__file__).parents[1] / "patchloom.yaml"
"""The file with the defaults, each explained."""
_SHOW = ("auto", "bar", "lines", "nothing")


@dataclass(frozen=True)
class Settings:
    """The settings at one moment; `DEFAULTS` says what each is for.

    >>> with dask.config.set({"patchloom.retries": 5}):
    ...     Settings.now().retries
    5
    >>> with dask.config.set({"patchloom.retrys": 5}):
    ...     Settings.now()
    Traceback (most recent call last):
        ...
    patchloom.errors.ConfigError: unknown setting 'patchloom.retrys' in Dask's configuration; \
did you mean 'patchloom.retries'?
    """

    memory: int
    """Bytes."""
    retries: int
    priority: int
    tasks_at_once: int
    show: str
    seconds: float

    @classmethod
    def now(cls) -> Settings:
        """Read Dask's configuration.

        Raises
        ------
        ConfigError
            If a name below ``patchloom`` is unknown or a value is none of those allowed.
        """
        given = _flat(dask.config.get("patchloom", {}))
        for name in given:
            if name not in _READ:
                near = difflib.get_close_matches(name, _READ, 1)
                says = f"did you mean 'patchloom.{near[0]}'?" if near else f"there is {_all()}"
                raise ConfigError(
                    f"unknown setting 'patchloom.{name}' in Dask's configuration; {says}"
                )
        values = {**_DEFAULT, **given}
        return cls(*(_checked(name, values[name]) for name in _READ))


def _flat(settings: Any, above: str = "") -> dict[str, Any]:
    """Settings by dotted name, with dashes."""
    if not isinstance(settings, Mapping):
        raise ConfigError(
            f"'patchloom{above and '.' + above[:-1]}' in Dask's configuration is a mapping of "
            f"settings, got {settings!r}"
        )
    found: dict[str, Any] = {}
    for key, value in settings.items():
        name = above + str(key).replace("_", "-")
        nested = isinstance(value, Mapping) or any(k.startswith(f"{name}.") for k in _READ)
        found |= _flat(value, f"{name}.") if nested else {name: value}
    return found


def _checked(name: str, value: Any) -> Any:
    read, allowed = _READ[name]
    try:
        return read(value)
    except (ValueError, TypeError):
        raise ConfigError(
            f"'patchloom.{name}' in Dask's configuration is {allowed}, got {value!r}"
        ) from None


def _from(least: float, number: Callable[[Any], Any] = operator.index) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if isinstance(value, bool) or not (found := number(value)) >= least:
            raise ValueError
        return found

    return read


def _bytes(value: Any) -> int:
    return int(_from(1)(int(parse_bytes(value)) if isinstance(value, str) else value))


def _one_of(value: Any) -> str:
    if value not in _SHOW:
        raise ValueError
    return str(value)


_READ: dict[str, tuple[Callable[[Any], Any], str]] = {
    "memory": (_bytes, "a number of bytes or text like '512 MiB'"),
    "retries": (_from(0), "a whole number from 0 on"),
    "priority": (_from(float("-inf")), "a whole number"),
    "tasks-at-once": (_from(1), "a whole number from 1 on"),
    "progress.show": (_one_of, f"one of {list(_SHOW)}"),
    "progress.seconds": (_from(0, float), "a number of seconds from 0 on"),
}
"""How each setting is read, in the order of the fields, and what is allowed."""


def _all() -> str:
    return ", ".join(f"'patchloom.{name}'" for name in _READ)


_FILE: dict[str, Any] = yaml.safe_load(DEFAULTS.read_text(encoding="utf-8"))
_DEFAULT = _flat(_FILE["patchloom"])
dask.config.update_defaults(_FILE)
