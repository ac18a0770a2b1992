"""The command line: the same walk as in Python, from a job file.

What a command needs is imported inside it: Dask takes seconds, ``patchloom --help`` should not.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import click

from patchloom import __version__
from patchloom.cli.completion_command import completion_command
from patchloom.cli.demo_command import demo_command
from patchloom.cli.doctor_command import doctor_command
from patchloom.cli.endings import BROKEN, INTERRUPTED, TERMINATED, status_of
from patchloom.cli.export_command import export_command
from patchloom.cli.init_command import init_command
from patchloom.cli.inspect_command import inspect_command
from patchloom.cli.loudness import is_verbose
from patchloom.cli.plan_command import plan_command
from patchloom.cli.run_command import run_command
from patchloom.cli.schema_command import schema_command
from patchloom.cli.stats_command import stats_command
from patchloom.cli.stitch_command import stitch_command
from patchloom.cli.verify_command import verify_command
from patchloom.errors import PatchloomError

__all__ = ["main", "start"]

_RESUMABLE = {"run", "demo", "export", "stitch"}


class _Terminated(BaseException):
    """The signal TERM came; what is open is closed as after Ctrl-C."""


class _Commands(click.Group):
    """Commands whose mistakes and interrupts end in one clear sentence, never a stack trace."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _heeding_term():
                return super().invoke(ctx)
        except PatchloomError as error:
            click.echo(f"patchloom: {error}", err=True)
            if is_verbose():
                click.echo("".join(_frames(error)), err=True)
            ctx.exit(status_of(error))
        except (KeyboardInterrupt, _Terminated) as stop:
            ended = isinstance(stop, _Terminated)
            text = f"patchloom: {'terminated' if ended else 'interrupted'}"
            if ctx.invoked_subcommand in _RESUMABLE:
                text += "; finished shards are kept: run the same command again to go on"
            click.echo(text, err=True)
            ctx.exit(TERMINATED if ended else INTERRUPTED)


@contextlib.contextmanager
def _heeding_term() -> Iterator[None]:
    """Let the signal TERM unwind the command: a cluster that it has made is taken down."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: Any) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _frames(error: BaseException) -> Iterator[str]:
    """Where an error arose, and what made it; without foreign texts, which may hold secrets."""
    found: BaseException | None = error
    while found is not None:
        yield f"\n{type(found).__module__}.{type(found).__qualname__} arose here:\n"
        yield from traceback.format_tb(found.__traceback__)
        found = found.__cause__


class _Lines(logging.Handler):
    """Log records as lines on the standard error of the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(self.format(record), err=True)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="patchloom")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Turn chunked images too big for one machine into training patches.

    Exit status: 0 done, 1 a check failed, 2 a mistake in what was asked, 3 a store, network or
    cluster failed, 130 interrupted.
    """
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
    init_command,
    plan_command,
    run_command,
    verify_command,
    export_command,
    stitch_command,
    inspect_command,
    stats_command,
    schema_command,
    doctor_command,
    completion_command,
):
    main.add_command(_command)


def start() -> None:
    """The command as a process: what nobody foresaw is told as a mistake of patchloom."""
    try:
        main(prog_name="patchloom")
    except Exception:
        traceback.print_exc()
        print(
            "patchloom: this is a mistake of patchloom, not yours; please report it with the "
            f"lines above and your version, {__version__}. What was finished is kept.",
            file=sys.stderr,
        )
        sys.exit(BROKEN)
