"""Overrides: single values of a job, given beside its file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from patchloom.errors import ConfigError

__all__ = ["VARIABLE", "Override", "overridden"]

VARIABLE = "PATCHLOOM_JOB__"
"""How the names of environment variables begin that override a job."""

_STEP = re.compile(r"""\.?([A-Za-z_][\w-]*)|\[(\d+)\]|\.?\[?"([^"]+)"\]?|\.?\[?'([^']+)'\]?""")


@dataclass(frozen=True)
class Override:
    """One value, where it goes, and who said so."""

    path: tuple[str | int, ...]
    """Keys and numbers of items, from the outside in."""
    value: Any = field(repr=False)
    """It may be a credential."""
    source: str
    """What to call it in a message, without the value."""

    @classmethod
    def parse(cls, text: str) -> Override:
        """An override from ``KEY=VALUE``, as ``--set`` takes it.

        Parameters
        ----------
        text
            KEY has dots between keys and the numbers of items in brackets; a key with a dot in it
            stands in quotes. VALUE is YAML.

        Raises
        ------
        ConfigError
            If it is none.

        Examples
        --------
        >>> found = Override.parse("patching.patch_size=[128, 128]")
        >>> found.path, found.value, found.source
        (('patching', 'patch_size'), [128, 128], '--set patching.patch_size')
        >>> Override.parse('mask."a.1"[0]=m.zarr').path
        ('mask', 'a.1', 0)
        """
        key, equals, value = text.partition("=")
        path = _path(key.strip())
        if not equals or not path:
            # Not the text itself: there may be a credential in it.
            raise ConfigError(
                f"--set takes KEY=VALUE such as patching.patch_size=[128,128], got {key!r}"
                + (" and no '='" if not equals else "")
            )
        source = f"--set {key.strip()}"
        return cls(path, _value(value, source), source)

    @classmethod
    def of_environment(cls, variables: Mapping[str, str]) -> list[Override]:
        """Those of environment variables, by their names.

        Two underscores stand between keys, whose case does not count.

        Raises
        ------
        ConfigError
            If a value is no YAML.

        Examples
        --------
        >>> [found] = Override.of_environment({"PATCHLOOM_JOB__PATCHING__N_PATCHES": "9"})
        >>> found.path, found.value
        (('patching', 'n_patches'), 9)
        """
        found = []
        for name in sorted(n for n in variables if n.startswith(VARIABLE)):
            keys = name.removeprefix(VARIABLE).lower().split("__")
            path = tuple(int(key) if key.isdigit() else key for key in keys)
            found.append(cls(path, _value(variables[name], name), name))
        return found


def overridden(document: Any, overrides: Iterable[Override]) -> Any:
    """A document with other values; it is not touched itself.

    Parameters
    ----------
    document
        Nested mappings and lists, as YAML gives them.
    overrides
        Later ones go before earlier ones.

    Raises
    ------
    ConfigError
        If there is no room for one: nothing goes into a text or number, or far beyond a list.

    Examples
    --------
    >>> given = {"images": ["a.zarr"], "patching": {"name": "tiled"}}
    >>> wanted = ["images[1]=b.zarr", "patching.name=random", "seed=3"]
    >>> overridden(given, map(Override.parse, wanted))
    {'images': ['a.zarr', 'b.zarr'], 'patching': {'name': 'random'}, 'seed': 3}
    """
    for override in overrides:
        document = _with(document, override.path, (), override)
    return document


def _with(inside: Any, path: Sequence[str | int], above: tuple[Any, ...], by: Override) -> Any:
    """A copy of what is inside a key with one value replaced; what else it holds is shared."""
    if not path:
        return by.value
    step, rest = path[0], path[1:]
    if inside is None:
        inside = [] if step == 0 and above else {}
    if isinstance(inside, list):
        if not isinstance(step, int) or step > len(inside):
            raise ConfigError(
                f"{by.source}: {_said(above)} is a list of {len(inside)}; give one of its items "
                f"by number, from {_said((*above, 0))} to {_said((*above, len(inside)))}, which "
                "is a further one, or all of it"
            )
        items = [*inside, None] if step == len(inside) else [*inside]
        items[step] = _with(items[step], rest, (*above, step), by)
        return items
    if not isinstance(inside, Mapping):
        kind = "text" if isinstance(inside, str) else "a single value"
        raise ConfigError(f"{by.source}: {_said(above)} is {kind} in the job; give all of it")
    return {**inside, step: _with(inside.get(step), rest, (*above, step), by)}


def _said(path: Sequence[str | int]) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return repr(text.lstrip(".")) if path else "a job"


def _path(text: str) -> tuple[str | int, ...]:
    """Steps of a dotted key; none if it is not one."""
    steps: list[str | int] = []
    at = 0
    while at < len(text):
        found = _STEP.match(text, at)
        if found is None or (text[at] == "." and not steps):
            return ()
        name, number, *quoted = found.groups()
        steps.append(int(number) if number else name or next(filter(None, quoted)))
        at = found.end()
        if at < len(text) and text[at] not in ".[":
            return ()
    return tuple(steps)


def _value(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # Not its text, which repeats the value.
        problem = getattr(error, "problem", None) or type(error).__name__
        raise ConfigError(f"{source}: the value is YAML, but this is not: {problem}") from None
