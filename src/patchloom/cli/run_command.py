"""`patchloom run`."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from patchloom.cli.declaring import command
from patchloom.cli.loudness import is_quiet
from patchloom.cli.options import engine_options, job_argument, job_of, json_option, set_option
from patchloom.cli.plan_figures import show_plan
from patchloom.cli.tables import figures

if TYPE_CHECKING:
    from patchloom.cli.engine import Engine

__all__ = ["run_command"]


logger = logging.getLogger("patchloom")


@command("run")
@job_argument
@set_option
@engine_options
@click.option("--dry-run", is_flag=True, help="Plan, say what it will take, write nothing.")
@click.option("--verify", is_flag=True, help="Check what is written already; mend what is damaged.")
@click.option(
    "--report", "page", metavar="FILE.html", help="Write a page about the run, and FILE.json."
)
@json_option
def run_command(
    job: str,
    changes: Sequence[str],
    engine: Engine,
    dry_run: bool,
    verify: bool,
    page: str | None,
    as_json: bool,
) -> None:
    """Write the patch store of a job.

    Run it again to finish what was interrupted, or to append images that came since.
    """
    loaded = job_of(job, changes)
    from patchloom.run.jobs import materialize_job, output_options, plan_of, shown_job

    if dry_run:
        show_plan(plan_of(loaded, progress=not is_quiet()), as_json, loaded)
        return
    with engine.started():
        planned = plan_of(loaded, progress=not is_quiet())
        logger.debug("%s", planned)
        report = materialize_job(loaded, planned, progress=not is_quiet(), verify=verify)
    if page is not None:
        report.save(
            page,
            job=shown_job(loaded),
            command=_again(job, changes),
            storage_options=output_options(loaded) if "://" in page else None,
        )
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=1))
        return
    if is_quiet():
        return
    figures("Run", report.to_dict())
    if report.complete:
        nothing = "" if report.n_tasks else ", nothing was left to do"
        click.echo(f"\nThe store is complete{nothing}; look at it: patchloom inspect {report.url}")
    else:
        click.echo("\nThe store is not complete: some chunks could not be read (see skipped).")
        click.echo(f"The patches that need them are listed in {report.url}/skipped.parquet.")
        click.echo("Mend them and run the same command again; the rest is kept.")
    if page is not None:
        from patchloom.location import Location

        click.echo(f"The report: {Location.of(page).shown}")
    click.echo(f"Reports of all runs: {report.url}.report/")


def _again(job: str, changes: Sequence[str]) -> str:
    """What to type to do it again, but for secrets; bytes are the same on any scheduler."""
    from patchloom.config import SECRET, shown_values

    words = ["patchloom", "run", job]
    for change in changes:
        key, mark, value = change.partition("=")
        hidden = key.partition(".")[0] in SECRET
        words += ["--set", f"{key}{mark}{'...' if hidden else shown_values(value)}"]
    return shlex.join(words)
