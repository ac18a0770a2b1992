"""Loudness: how much a command says besides its answer."""

from __future__ import annotations

import logging
from typing import Any

import click

__all__ = ["is_quiet", "is_verbose", "quiet_option", "say", "verbose_option"]

_KEY = "patchloom.loudness"


def _louder(level: int) -> Any:
    def remember(ctx: click.Context, _: click.Parameter, given: bool) -> None:
        if given:
            if ctx.meta.setdefault(_KEY, level) != level:
                raise click.UsageError("give --quiet or --verbose, not both")
            logging.getLogger("patchloom").setLevel(level)

    return remember


quiet_option = click.option(
    "-q",
    "--quiet",
    is_flag=True,
    expose_value=False,
    callback=_louder(logging.WARNING),
    help="No progress and no summary: answers and errors only.",
)
verbose_option = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    expose_value=False,
    callback=_louder(logging.DEBUG),
    help="Say where settings come from; with an error, where it arose.",
)


def _level() -> int:
    ctx = click.get_current_context(silent=True)
    return logging.INFO if ctx is None else int(ctx.meta.get(_KEY, logging.INFO))


def is_quiet() -> bool:
    """Whether progress and summaries are left out."""
    return _level() == logging.WARNING


def is_verbose() -> bool:
    """Whether details are told."""
    return _level() == logging.DEBUG


def say(text: str) -> None:
    """Print a line of a summary, unless the command is quiet."""
    if not is_quiet():
        click.echo(text)
