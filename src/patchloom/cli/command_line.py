"""The command line: the same walk as in Python, from a job file.

What a command needs is imported inside it: Dask takes seconds, ``patchloom --help`` should not.
"""

from __future__ import annotations

import logging
from typing import Any

import click

from patchloom import __version__
from patchloom.cli.demo_command import demo_command
from patchloom.cli.endings import INTERRUPTED, WRONG
from patchloom.cli.export_command import export_command
from patchloom.cli.inspect_command import inspect_command
from patchloom.cli.plan_command import plan_command
from patchloom.cli.run_command import run_command
from patchloom.cli.schema_command import schema_command
from patchloom.cli.stats_command import stats_command
from patchloom.cli.stitch_command import stitch_command
from patchloom.cli.verify_command import verify_command
from patchloom.errors import PatchloomError

__all__ = ["main"]

_RESUMABLE = {"run", "demo", "export", "stitch"}


class _Commands(click.Group):
    """Commands whose mistakes and interrupts end in one clear sentence, never a stack trace."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PatchloomError as error:
            click.echo(f"patchloom: {error}", err=True)
            ctx.exit(WRONG)
        except KeyboardInterrupt:
            text = "patchloom: interrupted"
            if ctx.invoked_subcommand in _RESUMABLE:
                text += "; finished shards are kept: run the same command again to go on"
            click.echo(text, err=True)
            ctx.exit(INTERRUPTED)


class _Lines(logging.Handler):
    """Log records as lines on the standard error of the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(self.format(record), err=True)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="patchloom")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Turn chunked images too big for one machine into training patches."""
    handler = _Lines()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("patchloom")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)

    @ctx.call_on_close
    def _quiet() -> None:
        logger.removeHandler(handler)
        logger.setLevel(before)


for _command in (
    demo_command,
    plan_command,
    run_command,
    verify_command,
    export_command,
    stitch_command,
    inspect_command,
    stats_command,
    schema_command,
):
    main.add_command(_command)
