"""`patchloom plan`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from patchloom.cli.declaring import command
from patchloom.cli.loudness import is_quiet
from patchloom.cli.options import job_argument, job_of, json_option, set_option
from patchloom.cli.plan_figures import show_plan

__all__ = ["plan_command"]


@command("plan")
@job_argument
@set_option
@json_option
@click.option("--save", metavar="URL", help="Save the plan there; `inspect` shows it again.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Threads that work at a time.",
)
@click.option("--prices", metavar="FILE", help="Prices and speeds, as YAML; see docs/cost.md.")
@click.option(
    "--html",
    metavar="PATH",
    help="Write a page to look at it; reads little of each image that it shows.",
)
def plan_command(
    job: str,
    changes: Sequence[str],
    as_json: bool,
    save: str | None,
    workers: int,
    prices: str | None,
    html: str | None,
) -> None:
    """Plan a job and say what it will take and cost.

    Reads masks; pixels only where filters or a class balance ask what they show.
    """
    from patchloom.planning.prices import Prices
    from patchloom.run.jobs import plan_of

    loaded = job_of(job, changes)
    table = Prices.load(prices)
    planned = plan_of(loaded, progress=not is_quiet())
    if save is not None:
        planned.save(save, storage_options=loaded.storage_options)
    if html is not None:
        planned.to_html(html, storage_options=loaded.storage_options)
    show_plan(planned, as_json, loaded, whole=prices is not None, workers=workers, prices=table)
