"""How a command of patchloom is declared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from patchloom.cli.loudness import quiet_option, verbose_option

__all__ = ["command"]


def command(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """A click command with the options that all commands have, which it is not handed.

    Parameters
    ----------
    name
        As the user types it.
    """

    def declare(function: Callable[..., Any]) -> click.Command:
        return click.command(name)(quiet_option(verbose_option(function)))

    return declare
