"""`patchloom run`."""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from patchloom.cli.declaring import command
from patchloom.cli.loudness import is_quiet
from patchloom.cli.options import engine_options, job_argument, job_of, json_option, set_option
from patchloom.cli.plan_figures import show_plan
from patchloom.cli.tables import figures
from patchloom.errors import ConfigError

if TYPE_CHECKING:
    from patchloom.cli.engine import Engine
    from patchloom.overrides import Override

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

    if page is not None:
        if dry_run:
            raise ConfigError("--report is of a run, but --dry-run makes none; leave one out")
        options = output_options(loaded) if "://" in page else None
        _check_page(page, options)
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
            storage_options=options,
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


def _check_page(page: str, options: Mapping[str, Any] | None) -> None:
    """Refuse a page that could not be written, before a run that may take hours."""
    from patchloom.doctor.places import written_beside
    from patchloom.location import Location

    if not page.endswith(".html"):
        raise ConfigError(f"--report takes the name of a page such as report.html, got {page!r}")
    written_beside(Location.of(page, options))


def _again(job: str, changes: Sequence[str]) -> str:
    """What to type to do it again, but for secrets; bytes are the same on any scheduler."""
    from patchloom.config import shown_values
    from patchloom.overrides import Override

    words = [
        f"{one.source}={shlex.quote(_shown(one, os.environ[one.source]))}"
        for one in Override.of_environment(os.environ)
    ]
    words += ["patchloom", "run", shlex.quote(shown_values(job))]
    for change in changes:
        key, _, value = change.partition("=")
        words += ["--set", shlex.quote(f"{key}={_shown(Override.parse(change), value)}")]
    return " ".join(words)


def _shown(override: Override, text: str) -> str:
    """The value of an override as it was given, or what of it may be shown."""
    from patchloom.config import SECRET, shown_values

    if override.path[0] in SECRET:
        return "..."
    shown = shown_values(override.value)
    return text if shown == override.value else json.dumps(shown, ensure_ascii=False, default=str)
