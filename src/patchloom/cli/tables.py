"""Tables: drawn on a terminal, aligned text elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

__all__ = ["figures", "table", "times"]


def figures(title: str, found: Mapping[str, Any]) -> None:
    """A table of a plan's or a report's figures, in words."""
    from patchloom.run.wording import worded

    table(title, [(label, text) for _, label, text in worded(found)])


def table(title: str, rows: Sequence[tuple[str, ...]], head: tuple[str, ...] = ()) -> None:
    """A table: drawn on a terminal, aligned text elsewhere."""
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(
            title=title,
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD if head else box.SIMPLE,
            show_header=bool(head),
            pad_edge=False,
        )
        for k in range(len(head or rows[0])):
            # Where there is a heading, numbers follow after two names; they are never broken.
            number = bool(head) and k >= 2
            table.add_column(
                head[k] if head else "",
                overflow="fold",
                no_wrap=number,
                justify="right" if number else "left",
            )
        for row in rows:
            # Names and URLs may hold what rich would take for markup.
            table.add_row(*map(escape, row))
        Console().print(table)
        return
    lines = [head, *rows] if head else list(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    click.echo(title)
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  " + "  ".join(cells).rstrip())


def times(extents: Sequence[int]) -> str:
    """Extents in one text.

    >>> times((128, 64))
    '128 x 64'
    """
    return " x ".join(str(n) for n in extents)
