"""`patchloom run`."""

from __future__ import annotations

import json

import click

from patchloom.cli.options import json_option, scheduler_option
from patchloom.cli.plan_figures import show_plan
from patchloom.cli.schedulers import check_scheduler, scheduled
from patchloom.cli.tables import figures

__all__ = ["run_command"]


@click.command("run")
@click.argument("job", metavar="JOB.yaml")
@scheduler_option
@click.option("--dry-run", is_flag=True, help="Plan, say what it will take, write nothing.")
@click.option("--verify", is_flag=True, help="Check what is written already; mend what is damaged.")
@json_option
def run_command(
    job: str, scheduler: str | None, dry_run: bool, verify: bool, as_json: bool
) -> None:
    """Write the patch store of a job.

    Run it again to finish what was interrupted, or to append images that came since.
    """
    from patchloom.config import load_job

    loaded = load_job(job)
    check_scheduler(scheduler)
    from patchloom.run.jobs import materialize_job, plan_of

    if dry_run:
        show_plan(plan_of(loaded, progress=not as_json), as_json, loaded)
        return
    with scheduled(scheduler):
        planned = plan_of(loaded, progress=not as_json)
        report = materialize_job(loaded, planned, verify=verify)
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=1))
        return
    figures("Run", report.to_dict())
    if report.complete:
        nothing = "" if report.n_tasks else ", nothing was left to do"
        click.echo(f"\nThe store is complete{nothing}; look at it: patchloom inspect {report.url}")
    else:
        click.echo("\nThe store is not complete: some chunks could not be read (see skipped).")
        click.echo(f"The patches that need them are listed in {report.url}/skipped.parquet.")
        click.echo("Mend them and run the same command again; the rest is kept.")
    click.echo(f"Reports of all runs: {report.url}.report/")
