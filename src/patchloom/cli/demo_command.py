"""`patchloom demo`."""

from __future__ import annotations

import click

from patchloom.cli.tables import table

__all__ = ["demo_command"]


@click.command("demo")
@click.option(
    "--output",
    default="patchloom-demo",
    show_default=True,
    metavar="DIR",
    help="Folder or URL for the job file, the store and the page.",
)
def demo_command(output: str) -> None:
    """Make training patches of a small real image that ships with patchloom.

    Needs no network. Writes a patch store and a page that shows the image, its mask, the planned
    patches and samples of them.
    """
    from patchloom.demo.walk import run_demo

    made = run_demo(output)
    done = made.report.already_done and not made.report.n_tasks
    click.echo("The store was complete already." if done else str(made.report))
    table("Where it is", [("store", made.store), ("page", made.page), ("job", made.job)])
    click.echo("\nOpen the page in a browser, or look at the store:")
    click.echo(f"  patchloom inspect {made.store}")
