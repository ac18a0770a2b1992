"""`patchloom demo`."""

from __future__ import annotations

import json

import click

from patchloom.cli.declaring import command
from patchloom.cli.loudness import is_quiet
from patchloom.cli.options import json_option
from patchloom.cli.tables import table

__all__ = ["demo_command"]


@command("demo")
@click.option(
    "--output",
    default="patchloom-demo",
    show_default=True,
    metavar="DIR",
    help="Folder or URL for the job file, the store and the page.",
)
@json_option
def demo_command(output: str, as_json: bool) -> None:
    """Make training patches of a small real image that ships with patchloom.

    Needs no network. Writes a patch store, a page that shows the image, its mask, the planned
    patches and samples of them, and a report of the run.
    """
    from patchloom.demo.walk import run_demo

    made = run_demo(output, progress=not is_quiet())
    if as_json:
        places = {
            "store": made.store,
            "page": made.page,
            "run_report": made.report_page,
            "job": made.job,
        }
        click.echo(json.dumps({**places, "report": made.report.to_dict()}, indent=1))
        return
    if is_quiet():
        return
    done = made.report.already_done and not made.report.n_tasks
    click.echo("The store was complete already." if done else str(made.report))
    rows = (
        ("store", made.store),
        ("page", made.page),
        ("report", made.report_page),
        ("job", made.job),
    )
    table("Where it is", rows)
    click.echo("\nOpen the page in a browser, or look at the store:")
    click.echo(f"  patchloom inspect {made.store}")
