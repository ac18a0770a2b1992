"""`patchloom stitch`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from patchloom.cli.declaring import command
from patchloom.cli.loudness import is_quiet
from patchloom.cli.options import engine_options, json_option, pixels
from patchloom.cli.tables import table

if TYPE_CHECKING:
    from patchloom.cli.engine import Engine

__all__ = ["stitch_command"]


@command("stitch")
@click.argument("store")
@click.argument("predictions")
@click.option("--output", required=True, metavar="URL", help="OME-Zarr image, or a folder of them.")
@click.option("--blend", metavar="HOW", help="hann or gaussian; by default tiles are cropped.")
@click.option("--dtype", metavar="TYPE", help="Of the images; by default of the predictions.")
@click.option("--channels", metavar="NAME,NAME", help="Names of the channels.")
@click.option("--chunks", metavar="N,N", help="Pixels of a chunk on each spatial axis, or on all.")
@click.option("--shards", metavar="N,N", help="Pixels of an object that holds several chunks.")
@click.option("--codec", metavar="NAME", help="blosc-zstd (default), blosc-lz4, zstd or none.")
@click.option(
    "--levels", type=click.IntRange(1), default=1, show_default=True, metavar="N",
    help="Resolutions: the further ones are means.",
)  # fmt: skip
@click.option("--model", metavar="TEXT", help="What made the predictions; recorded.")
@click.option("--memory", metavar="SIZE", help="Of one task, such as 2GiB.")
@click.option("--partial", is_flag=True, help="Stitch what there is of tiles that lack some.")
@engine_options
@json_option
def stitch_command(
    store: str,
    predictions: str,
    channels: str | None,
    chunks: str | None,
    shards: str | None,
    engine: Engine,
    as_json: bool,
    **asked: Any,
) -> None:
    """Put PREDICTIONS of the tiles of STORE together into OME-Zarr images.

    PREDICTIONS is the URL of an array with a row a tile. Run it again to finish what was
    interrupted.
    """
    from patchloom.run.stitching import stitch

    with engine.started():
        report = stitch(
            store,
            predictions,
            channels=None if channels is None else channels.split(","),
            chunks=pixels("--chunks", chunks),
            shards=pixels("--shards", shards),
            progress=not is_quiet(),
            **asked,
        )
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=1))
    elif not is_quiet():
        table("Stitch", report.rows())
