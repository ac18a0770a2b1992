"""`patchloom export`."""

from __future__ import annotations

import inspect as signatures
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from patchloom.cli.declaring import command
from patchloom.cli.loudness import is_quiet
from patchloom.cli.options import engine_options, json_option, pairs, values
from patchloom.cli.tables import table
from patchloom.errors import ConfigError

if TYPE_CHECKING:
    from patchloom.cli.engine import Engine

__all__ = ["export_command"]


@command("export")
@click.argument("store")
@click.argument("url")
@click.option(
    "--to",
    required=True,
    metavar="FORMAT",
    help="zarr, hdf5, npy (phenocoder's layout), webdataset, litdata, mds, tiff, png, or classes.",
)
@click.option(
    "--where",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="Only patches with this value in the manifest; again for more columns or values.",
)
@click.option("--arrays", metavar="NAME,NAME", help="Some of those of the store.")
@click.option("--normalize", metavar="KIND", help="percentile, min-max or mean-std.")
@click.option(
    "--per",
    default="image",
    show_default=True,
    metavar="WHAT",
    help="Whose numbers: image, channel, all, or a metadata column.",
)
@click.option("--percentiles", metavar="P,P", help="For --normalize percentile.")
@click.option("--rows", type=click.IntRange(1), metavar="N", help="Patches that are made together.")
@click.option("--partial", is_flag=True, help="Export what there is of a store that lacks patches.")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="Of the format, such as chunk=16; see docs/export.md.",
)
@engine_options
@json_option
def export_command(
    store: str,
    url: str,
    where: Sequence[str],
    arrays: str | None,
    percentiles: str | None,
    options: Sequence[str],
    engine: Engine,
    as_json: bool,
    **asked: Any,
) -> None:
    """Write the patches of STORE to URL in a format that another trainer reads.

    Run it again to finish what was interrupted.
    """
    chosen: dict[str, list[str]] = {}
    for name, value in pairs("--where", where):
        chosen.setdefault(name, []).append(value)
    of_format = values("--option", options)
    from patchloom.run.exporting import export

    own = signatures.signature(export).parameters
    if clash := sorted({*of_format} & {*own}):
        here = clash[0] in {*asked, "where", "arrays", "percentiles"}
        way = f"give --{clash[0]}" if here else "leave it out"
        raise ConfigError(f"--option is of the format, got {clash}; {way}")
    from patchloom.summaries.asked import check_percentiles

    ends: Sequence[Any] | None = None if percentiles is None else percentiles.split(",")
    with engine.started():
        report = export(
            store,
            output=url,
            where=chosen or None,
            arrays=None if arrays is None else arrays.split(","),
            percentiles=None if ends is None else check_percentiles(ends),
            progress=not is_quiet(),
            **asked,
            **of_format,
        )
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=1))
    elif not is_quiet():
        table("Export", report.rows())
