"""`patchloom stats`."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from patchloom.cli.declaring import command
from patchloom.cli.kinds import kind_of
from patchloom.cli.loudness import is_quiet
from patchloom.cli.options import engine_options, job_of, json_option, set_option
from patchloom.cli.tables import table
from patchloom.errors import ConfigError

if TYPE_CHECKING:
    from patchloom.cli.engine import Engine
    from patchloom.summaries.table import Statistics

__all__ = ["stats_command"]


_ROWS = 200
"""Rows of statistics that are printed."""


@command("stats")
@click.argument("what", type=click.Path())
@set_option
@click.option(
    "--percentiles",
    default="1,99",
    show_default=True,
    metavar="P,P",
    help="In percent, from 0 to 100.",
)
@click.option(
    "--over",
    metavar="PIXELS",
    help="image (all pixels, the default), mask (those under the mask), or, of a job or plan, "
    "patches. A store has those that its run has counted.",
)
@click.option("--mask", metavar="MASK", help="Mask of the images: a URL, a pattern, a label group.")
@click.option(
    "--by",
    metavar="COLUMN",
    help="One row a group: a metadata column, or all; by default an image.",
)
@click.option("--per-slice", is_flag=True, help="Tell the z-slices of images apart.")
@click.option(
    "--csv", metavar="FILE", help="Write a table: a row a channel and slice, two percentiles."
)
@click.option("--html", metavar="FILE", help="Write a page with histograms, and flag outliers.")
@engine_options
@json_option
def stats_command(
    what: str,
    changes: Sequence[str],
    percentiles: str,
    by: str | None,
    csv: str | None,
    html: str | None,
    engine: Engine,
    as_json: bool,
    over: str | None,
    **asked: Any,
) -> None:
    """Say how grey levels are spread: percentiles, mean, std, min, max, median, MAD.

    WHAT is the URL of images, of a saved plan, of a patch store or of saved statistics, a glob, or
    a job file. Each needed chunk is read once, those of types above 16 bits a few times if need
    be; of a store, or of saved statistics, only what was counted is read.
    """
    from patchloom.summaries.asked import check_low_high, check_percentiles

    given: Sequence[Any] = percentiles.split(",")
    q = check_percentiles(given)
    ends = (1.0, 99.0) if csv is None else check_low_high((min(q), max(q)) if len(q) > 1 else q)
    group = None if by == "all" else by or "image"
    _check_over(over)
    with engine.started():
        found = _statistics_of(
            what, changes, q, by=group, over=over, progress=not is_quiet(), **asked
        )
    table = found.dataset(q, by=group)
    if csv is not None:
        found.save_csv(csv, ends)
    if html is not None:
        from patchloom.location import Location

        found.to_html(html, q, by=group, title=f"Grey levels of {Location.of(what).shown}")
    _show_statistics(table, found.outliers(q).to_pylist(), as_json)


def _statistics_of(
    what: str,
    changes: Sequence[str],
    q: Sequence[float],
    *,
    over: str | None,
    mask: str | None,
    by: str | None,
    per_slice: bool,
    progress: bool,
) -> Statistics:
    """Statistics of what stands at a URL: counted now, or kept by a store."""
    from patchloom.location import Location

    place = Location.of(what)
    kind = "job" if what.endswith((".yaml", ".yml")) else kind_of(place)
    if changes and kind != "job":
        raise ConfigError(f"--set is of a job, but {place.shown!r} is a {kind}; leave it out")
    if kind != "image" and mask is not None:
        raise ConfigError(f"--mask is for images, but {place.shown!r} is a {kind}; leave it out")
    if kind == "store":
        return _kept_statistics(what, over, per_slice)
    if kind == "folder of saved statistics":
        return _saved_statistics(what, over, per_slice)
    from patchloom.run.surveying import summarize

    found: Any
    if kind == "plan":
        from patchloom.planning.plans import Plan

        found = Plan.load(what)
        found = found if over == "patches" else found.images
    elif kind == "job":
        from patchloom.run.jobs import images_of, plan_of

        loaded = job_of(what, changes)
        found = plan_of(loaded, progress=progress) if over == "patches" else images_of(loaded)
    else:
        from patchloom.sources.opening import open_images

        if over == "patches":
            raise ConfigError(
                "--over patches is of the patches that a job or a saved plan lays out, but "
                f"{place.shown!r} is an image; give one of those"
            )
        if over == "mask" and mask is None:
            raise ConfigError("--over mask needs a mask, but none was given; add --mask MASK")
        found = open_images(what, mask=mask)
    asked: Mapping[str, Any] = {"over": over or "image", "planes": per_slice, "by": by}
    return summarize(found, q, **asked, progress=progress)


def _kept_statistics(url: str, over: str | None, per_slice: bool) -> Statistics:
    """Statistics that a store's run has counted."""
    from patchloom.store.patch_store import open_patches

    store = open_patches(url)
    kept = store.attributes["job"]["over"]
    if per_slice:
        raise ConfigError(
            "--per-slice is for images: a store keeps no statistics of slices; give the images, "
            "or the job file that it was made from"
        )
    if over not in (None, kept):
        raise ConfigError(
            f"the statistics of this store are over {kept}, got --over {over}; leave it "
            "out, or give the images, or the job file that it was made from"
        )
    return store.summaries()


def _saved_statistics(url: str, over: str | None, per_slice: bool) -> Statistics:
    """Statistics that were saved as a folder."""
    from patchloom.summaries.table import Statistics

    found = Statistics.open(url)
    if per_slice and not found.planes:
        raise ConfigError(
            "--per-slice needs planes that were told apart when they were counted, but these "
            "saved statistics have none; leave it out, or give the images"
        )
    if over not in (None, found.over):
        raise ConfigError(
            f"these saved statistics are over {found.over}, got --over {over}; leave it out, or "
            "give the images, or their job file"
        )
    return found


def _check_over(name: str | None) -> None:
    """Refuse pixels that cannot be meant, before anything is read."""
    from patchloom.summaries.asked import OVER

    if name is not None and name not in OVER:
        near = difflib.get_close_matches(name, OVER, 1)
        raise ConfigError(
            f"--over is one of {list(OVER)}, got {name!r}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )


def _show_statistics(found: Any, outliers: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """The numbers of a Dataset of statistics and the images that stand out."""
    from patchloom.run.stats_rows import exactness, over_what, plain, rows_of, told

    rows = rows_of(found)
    if as_json:
        about = {name: value for name, value in found.attrs.items() if name != "provenance"}
        about["provenance"] = json.loads(found.attrs["provenance"])
        shown = {**about, "rows": plain(rows), "outliers": plain(outliers)}
        click.echo(json.dumps(shown, indent=1, allow_nan=False))
        return
    head, lines = told(rows[:_ROWS])
    over = over_what(found.attrs["over"], found.attrs["each"])
    table(f"Over {over}; {exactness(found)}", [tuple(line) for line in lines], tuple(head))
    if len(rows) > _ROWS:
        click.echo(f"\nThe first {_ROWS} of {len(rows):,} rows; --json, --csv or --html has all.")
    if outliers:
        names = sorted({str(row["image"]) for row in outliers})
        click.echo(f"\nFar from the rest: {', '.join(names[:10])}{', ...' * (len(names) > 10)}")
