"""The figures of a plan and its cost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from patchloom.cli.loudness import is_verbose
from patchloom.cli.tables import figures, table

if TYPE_CHECKING:
    from patchloom.config import Job
    from patchloom.planning.plans import Plan

__all__ = ["show_plan"]


_NOTHING = 0.01
"""Money below which a run is not worth a word about it."""
_DETAILS = {
    "money",
    "live_seconds",
    "store_seconds",
    "break_even_seconds",
    "prices",
    "notes",
}
"""Figures of a cost that a job for next to nothing can do without."""


def show_plan(
    plan: Plan, as_json: bool, job: Job | None = None, *, whole: bool = False, **more: Any
) -> None:
    """The figures of a plan and its cost; a saved plan does not know its job's output.

    Money, epochs and prices are left out where a run costs less than a hundredth, unless it is to
    be shown whole.
    """
    from patchloom.run.jobs import foreseen_of
    from patchloom.run.pricing import price

    if job is not None:
        more |= {"output_url": job.output, "normalize": job.normalize, "over": job.over}
        more |= {"normalize_targets": job.normalize_targets}
    cost, summary = price(plan, **more), plan.figures()
    standing = {} if job is None else foreseen_of(job, plan)
    if as_json:
        click.echo(json.dumps({**cost.to_dict(), **summary, **standing}, indent=1))
        return
    figures("Plan", summary)
    short = not whole and not is_verbose() and cost.money.total < _NOTHING
    hidden = {*summary, *(_DETAILS if short else ())}
    table("Cost", [(label, text) for key, label, text in cost.rows() if key not in hidden])
    if short:
        click.echo(
            f"Less than {_NOTHING} {cost.currency}; --verbose tells money, epochs and prices."
        )
    if not plan.n_patches:
        click.echo("\nThe plan is empty; what was left out, and why, stands above.")
    for line in standing.get("appends", ()):
        click.echo(f"\nRunning it {line}; the figures above are of all images.")
    if "refused" in standing:
        click.echo(f"\nRunning it would be refused: {standing['refused']}")
