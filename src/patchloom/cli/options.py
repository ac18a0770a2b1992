"""Options that several commands have, and how their values are read."""

from __future__ import annotations

from collections.abc import Sequence

import click

from patchloom.errors import ConfigError

__all__ = ["json_option", "pairs", "pixels", "scheduler_option"]

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
"""`as_json` of a command."""
scheduler_option = click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Dask cluster (tcp://host:8786), or threads (default), processes or synchronous.",
)
"""`scheduler` of a command."""


def pixels(option: str, given: str | None) -> list[int] | int | None:
    """One number for all axes, or one for each."""
    if given is None:
        return None
    try:
        each = [int(text) for text in given.split(",")]
    except ValueError:
        raise ConfigError(f"{option} takes numbers of pixels, N or N,N, got {given!r}") from None
    return each[0] if len(each) == 1 else each


def pairs(option: str, given: Sequence[str]) -> list[tuple[str, str]]:
    """Names and values of an option that takes NAME=VALUE."""
    for text in given:
        if "=" not in text:
            raise ConfigError(f"{option} takes NAME=VALUE, got {text!r}")
    return [(name, value) for name, _, value in (text.partition("=") for text in given)]
