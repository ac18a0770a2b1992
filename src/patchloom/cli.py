"""The command line: the same walk as in Python, from a job file.

What a command needs is imported inside it: Dask takes seconds, ``patchloom --help`` should not.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect as signatures
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from patchloom import __version__
from patchloom.errors import ConfigError, PatchloomError, SchedulerLostError

if TYPE_CHECKING:
    from patchloom.config import Job
    from patchloom.image import Image
    from patchloom.planning.plans import Plan
    from patchloom.store.patch_store import PatchStore
    from patchloom.summaries.table import Statistics

__all__ = ["main"]

SCHEDULERS = ("threads", "synchronous", "processes")
"""What ``--scheduler`` takes besides the address of a cluster."""

_DAMAGED, _WRONG, _INTERRUPTED = 1, 2, 130
_ROWS = 200
"""Rows of statistics that are printed."""
_RESUMABLE = {"run", "demo", "export", "stitch"}


class _Commands(click.Group):
    """Commands whose mistakes and interrupts end in one clear sentence, never a stack trace."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PatchloomError as error:
            click.echo(f"patchloom: {error}", err=True)
            ctx.exit(_WRONG)
        except KeyboardInterrupt:
            text = "patchloom: interrupted"
            if ctx.invoked_subcommand in _RESUMABLE:
                text += "; finished shards are kept: run the same command again to go on"
            click.echo(text, err=True)
            ctx.exit(_INTERRUPTED)


class _Lines(logging.Handler):
    """Log records as lines on the standard error of the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(self.format(record), err=True)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="patchloom")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Turn chunked images too big for one machine into training patches."""
    handler = _Lines()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("patchloom")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)

    @ctx.call_on_close
    def _quiet() -> None:
        logger.removeHandler(handler)
        logger.setLevel(before)


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")


@main.command()
@click.option(
    "--output",
    default="patchloom-demo",
    show_default=True,
    metavar="DIR",
    help="Folder or URL for the job file, the store and the page.",
)
def demo(output: str) -> None:
    """Make training patches of a small real image that ships with patchloom.

    Needs no network. Writes a patch store and a page that shows the image, its mask, the planned
    patches and samples of them.
    """
    from patchloom.demo.walk import run_demo

    made = run_demo(output)
    done = made.report.already_done and not made.report.n_tasks
    click.echo("The store was complete already." if done else str(made.report))
    _table("Where it is", [("store", made.store), ("page", made.page), ("job", made.job)])
    click.echo("\nOpen the page in a browser, or look at the store:")
    click.echo(f"  patchloom inspect {made.store}")


@main.command("plan")
@click.argument("job", metavar="JOB.yaml")
@_json
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
    help="Write a page to look at it; reads less than 1 MB of each image that it shows.",
)
def plan_command(
    job: str, as_json: bool, save: str | None, workers: int, prices: str | None, html: str | None
) -> None:
    """Plan a job and say what it will take and cost.

    Reads masks; pixels only where filters or a class balance ask what they show.
    """
    from patchloom.config import load_job
    from patchloom.planning.prices import Prices
    from patchloom.run.jobs import plan_of

    loaded = load_job(job)
    table = Prices.load(prices)
    planned = plan_of(loaded, progress=not as_json)
    if save is not None:
        planned.save(save, storage_options=loaded.storage_options)
    if html is not None:
        planned.to_html(html, storage_options=loaded.storage_options)
    _show_plan(planned, as_json, loaded, workers=workers, prices=table)


@main.command()
@click.argument("job", metavar="JOB.yaml")
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Dask cluster (tcp://host:8786), or threads (default), processes or synchronous.",
)
@click.option("--dry-run", is_flag=True, help="Plan, say what it will take, write nothing.")
@click.option("--verify", is_flag=True, help="Check what is written already; mend what is damaged.")
@_json
def run(job: str, scheduler: str | None, dry_run: bool, verify: bool, as_json: bool) -> None:
    """Write the patch store of a job.

    Run it again to finish what was interrupted, or to append images that came since.
    """
    from patchloom.config import load_job

    loaded = load_job(job)
    _check_scheduler(scheduler)
    from patchloom.run.jobs import materialize_job, plan_of

    if dry_run:
        _show_plan(plan_of(loaded, progress=not as_json), as_json, loaded)
        return
    with _scheduler(scheduler):
        planned = plan_of(loaded, progress=not as_json)
        report = materialize_job(loaded, planned, verify=verify)
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=1))
        return
    _figures("Run", report.to_dict())
    if report.complete:
        nothing = "" if report.n_tasks else ", nothing was left to do"
        click.echo(f"\nThe store is complete{nothing}; look at it: patchloom inspect {report.url}")
    else:
        click.echo("\nThe store is not complete: some chunks could not be read (see skipped).")
        click.echo(f"The patches that need them are listed in {report.url}/skipped.parquet.")
        click.echo("Mend them and run the same command again; the rest is kept.")
    click.echo(f"Reports of all runs: {report.url}.report/")


@main.command("verify")
@click.argument("url")
@click.option("--job", metavar="JOB.yaml", help="Compare with the plan of this job too.")
@click.option(
    "--sample",
    type=click.IntRange(0),
    default=64,
    show_default=True,
    metavar="N",
    help="Patches to compare with their sources.",
)
@click.option("--repair", is_flag=True, help="Let the next run of the job remake what is damaged.")
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Dask cluster (tcp://host:8786), or threads (default), processes or synchronous.",
)
@_json
def verify_command(
    url: str, job: str | None, sample: int, repair: bool, scheduler: str | None, as_json: bool
) -> None:
    """Check every shard of the patch store at URL; exit status 1 if something is damaged."""
    from patchloom.config import load_job

    loaded = None if job is None else load_job(job)
    _check_scheduler(scheduler)
    from patchloom.run.jobs import output_options, plan_of
    from patchloom.run.verifying import verify

    with _scheduler(scheduler):
        planned = None if loaded is None else plan_of(loaded, progress=not as_json)
        report = verify(
            url,
            planned,
            sample=sample,
            repair=repair,
            storage_options=None if loaded is None else output_options(loaded),
        )
    click.echo(json.dumps(report.to_dict(), indent=1) if as_json else str(report))
    if report.repaired and not as_json:
        click.echo("The next run of its job makes them again: patchloom run JOB.yaml")
    if not report.ok:
        sys.exit(_DAMAGED)


@main.command("export")
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
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Dask cluster (tcp://host:8786), or threads (default), processes or synchronous.",
)
@_json
def export_command(
    store: str,
    url: str,
    where: Sequence[str],
    arrays: str | None,
    percentiles: str | None,
    options: Sequence[str],
    scheduler: str | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Write the patches of STORE to URL in a format that another trainer reads.

    Run it again to finish what was interrupted.
    """
    import yaml

    chosen: dict[str, list[str]] = {}
    for name, value in _pairs("--where", where):
        chosen.setdefault(name, []).append(value)
    of_format: dict[str, Any] = {}
    for name, value in _pairs("--option", options):
        try:
            of_format[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--option takes NAME=VALUE in YAML, got {name}={value}") from None
    _check_scheduler(scheduler)
    from patchloom.run.exporting import export

    own = signatures.signature(export).parameters
    if clash := sorted({*of_format} & {*own}):
        here = clash[0] in {*asked, "where", "arrays", "percentiles"}
        way = f"give --{clash[0]}" if here else "leave it out"
        raise ConfigError(f"--option is of the format, got {clash}; {way}")
    from patchloom.summaries.asked import check_percentiles

    ends: Sequence[Any] | None = None if percentiles is None else percentiles.split(",")
    with _scheduler(scheduler):
        report = export(
            store,
            output=url,
            where=chosen or None,
            arrays=None if arrays is None else arrays.split(","),
            percentiles=None if ends is None else check_percentiles(ends),
            progress=not as_json,
            **asked,
            **of_format,
        )
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=1))
    else:
        _table("Export", report.rows())


@main.command("stitch")
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
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Dask cluster (tcp://host:8786), or threads (default), processes or synchronous.",
)
@_json
def stitch_command(
    store: str,
    predictions: str,
    channels: str | None,
    chunks: str | None,
    shards: str | None,
    scheduler: str | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Put PREDICTIONS of the tiles of STORE together into OME-Zarr images.

    PREDICTIONS is the URL of an array with a row a tile. Run it again to finish what was
    interrupted.
    """
    _check_scheduler(scheduler)
    from patchloom.run.stitching import stitch

    with _scheduler(scheduler):
        report = stitch(
            store,
            predictions,
            channels=None if channels is None else channels.split(","),
            chunks=_pixels("--chunks", chunks),
            shards=_pixels("--shards", shards),
            progress=not as_json,
            **asked,
        )
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=1))
    else:
        _table("Stitch", report.rows())


def _pixels(option: str, given: str | None) -> list[int] | int | None:
    """One number for all axes, or one for each."""
    if given is None:
        return None
    try:
        each = [int(text) for text in given.split(",")]
    except ValueError:
        raise ConfigError(f"{option} takes numbers of pixels, N or N,N, got {given!r}") from None
    return each[0] if len(each) == 1 else each


def _pairs(option: str, given: Sequence[str]) -> list[tuple[str, str]]:
    """Names and values of an option that takes NAME=VALUE."""
    for text in given:
        if "=" not in text:
            raise ConfigError(f"{option} takes NAME=VALUE, got {text!r}")
    return [(name, value) for name, _, value in (text.partition("=") for text in given)]


@main.command()
@click.argument("url")
@_json
def inspect(url: str, as_json: bool) -> None:
    """Say what stands at URL: a patch store, a saved plan, or images."""
    from patchloom.location import Location

    kind = _kind_of(Location.of(url))
    if kind == "store":
        from patchloom.store.patch_store import open_patches

        _show_store(open_patches(url), as_json)
    elif kind == "plan":
        from patchloom.planning.plans import Plan

        _show_plan(Plan.load(url), as_json)
    else:
        from patchloom.sources.opening import open_images

        _show_images(open_images(url), as_json)


@main.command("stats")
@click.argument("what")
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
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Dask cluster (tcp://host:8786), or threads (default), processes or synchronous.",
)
@_json
def stats(
    what: str,
    percentiles: str,
    by: str | None,
    csv: str | None,
    html: str | None,
    scheduler: str | None,
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
    _check_scheduler(scheduler)
    with _scheduler(scheduler):
        found = _statistics_of(what, q, by=group, over=over, progress=not as_json, **asked)
    table = found.dataset(q, by=group)
    if csv is not None:
        found.save_csv(csv, ends)
    if html is not None:
        from patchloom.location import Location

        found.to_html(html, q, by=group, title=f"Grey levels of {Location.of(what).shown}")
    _show_statistics(table, found.outliers(q).to_pylist(), as_json)


@main.command()
def schema() -> None:
    """Print the JSON schema of a job file."""
    from patchloom.config import job_schema

    click.echo(json.dumps(job_schema(), indent=2))


def _statistics_of(
    what: str,
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
    kind = "job" if what.endswith((".yaml", ".yml")) else _kind_of(place)
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
        from patchloom.config import load_job
        from patchloom.run.jobs import images_of, plan_of

        loaded = load_job(what)
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


def _check_scheduler(name: str | None) -> None:
    """Refuse a scheduler that cannot be meant, before anything is read."""
    if name is None or name in SCHEDULERS or "://" in name:
        return
    near = difflib.get_close_matches(name, SCHEDULERS, 1)
    raise ConfigError(
        f"--scheduler is the address of a Dask cluster such as tcp://host:8786, or one of "
        f"{list(SCHEDULERS)}, got {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    )


@contextlib.contextmanager
def _scheduler(name: str | None) -> Iterator[None]:
    """Dask's scheduler for a while; None leaves what Dask's own configuration says."""
    if name is None:
        yield
        return
    if "://" not in name:
        import dask

        with dask.config.set(scheduler=name):
            yield
        return
    from distributed import Client

    try:
        client = Client(name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--scheduler is the address of a running Dask scheduler, but {name!r} does not "
            f"answer: {error}; start one (dask scheduler), or leave the option out"
        ) from None
    logger = logging.getLogger("distributed.client")
    before = logger.level
    try:
        with client:
            try:
                yield
            except SchedulerLostError:
                # A client that is closed while it looks for its scheduler logs a stack trace.
                logger.setLevel(logging.CRITICAL)
                raise
    finally:
        logger.setLevel(before)


def _kind_of(location: Any) -> str:
    """What stands there; what cannot be read is left to the opener of images to explain."""
    try:
        if location.read("plan.json") is not None:
            return "plan"
        group = json.loads(location.read("zarr.json") or b"{}")
        if "patchloom" in group.get("attributes", {}):
            return "store"
        saved = not group and location.read("statistics.json") is not None
        return "folder of saved statistics" if saved else "image"
    except (OSError, ValueError, AttributeError, TypeError):
        return "image"


def _show_plan(plan: Plan, as_json: bool, job: Job | None = None, **more: Any) -> None:
    """The figures of a plan and its cost; a saved plan does not know its job's output."""
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
    _figures("Plan", summary)
    rows = [(label, text) for key, label, text in cost.rows() if key not in summary]
    _table("Cost", rows)
    if not plan.n_patches:
        click.echo("\nThe plan is empty; what was left out, and why, stands above.")
    for line in standing.get("appends", ()):
        click.echo(f"\nRunning it {line}; the figures above are of all images.")
    if "refused" in standing:
        click.echo(f"\nRunning it would be refused: {standing['refused']}")


def _show_images(images: Sequence[Image], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([image.to_document() for image in images], indent=1))
        return
    for image in images:
        spacing = ", ".join(
            f"{a} {v:g} {image.unit.get(a, '')}".strip() for a, v in image.spacing.items()
        )
        rows = [
            ("url", image.uri),
            ("axes", str(image.axes)),
            ("shape", _times(image.shape)),
            ("data type", image.dtype.name),
            ("chunks", f"{_times(image.grid.chunks)} ({image.grid.n_chunks:,})"),
            ("shards", "none" if image.shards is None else _times(image.shards)),
            ("spacing", spacing or "unknown"),
            ("channels", ", ".join(image.channels) or "unnamed"),
            *([] if image.nodata is None else [("nodata", f"{image.nodata:g}")]),
        ]
        _table(f"Image {image.id}, level {image.level}", rows)


def _show_store(store: PatchStore, as_json: bool) -> None:
    told = store.attributes
    if as_json:
        click.echo(json.dumps({"url": store.url, **told}, indent=1))
        return
    job: Mapping[str, Any] = told["job"]
    rows = [
        ("url", store.url),
        ("complete", "yes" if store.complete else "no: run its job again to finish it"),
        ("patches", f"{told['n_patches']:,}"),
        ("patch", f"{_times(told['patch_shape'])} ({told['axes']})"),
        ("arrays", ", ".join(told["arrays"])),
        ("channels", ", ".join(told["channels"])),
        ("patches a shard", f"{told['rows_per_shard']:,}"),
        ("images", f"{len(told['images']):,}{_additions(told)}"),
        ("patching", ", ".join(f"{k} {v}" for k, v in job["patching"].items() if v is not None)),
        ("min_coverage", str(job["min_coverage"])),
        ("normalize", _scaled(job)),
        ("seed", str(told["seed"])),
        ("fingerprint", store.fingerprint),
        ("made by", f"patchloom {told['patchloom_version']}"),
    ]
    _table("Patch store", rows)
    found = told.get("statistics")
    if found:
        often = ", as often as they take it" if found.get("each") == "taken" else ""
        _table(f"Statistics over {found['over']}{often}", *_statistics(found))


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
    _table(f"Over {over}; {exactness(found)}", [tuple(line) for line in lines], tuple(head))
    if len(rows) > _ROWS:
        click.echo(f"\nThe first {_ROWS} of {len(rows):,} rows; --json, --csv or --html has all.")
    if outliers:
        names = sorted({str(row["image"]) for row in outliers})
        click.echo(f"\nFar from the rest: {', '.join(names[:10])}{', ...' * (len(names) > 10)}")


def _scaled(job: Mapping[str, Any]) -> str:
    """How the pixels of a store were scaled, and by whose numbers."""
    if job["normalize"] is None:
        return "no: pixels of the source"
    return f"{job['normalize']}, per {job.get('per', 'image')}"


def _additions(told: Mapping[str, Any]) -> str:
    """How a store came by its images, where some were appended."""
    numbers = [f"{item['n_images']:,}" for item in told.get("additions", ())]
    text = f" ({' + '.join(numbers)} appended)" if numbers else ""
    if (begun := told.get("pending")) is not None:
        text += f", {len(begun['images']):,} being appended: run its job again to finish it"
    return text


def _statistics(found: Mapping[str, Any]) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """Rows and headings of a store's statistics, at most 20 images."""
    names = ("count", "mean", "std", "min", "max")
    rows = []
    for i, image in enumerate(found["images"][:20]):
        for c, channel in enumerate(found["channels"]):
            numbers = [found[name][i][c] for name in names] + found["percentile"][i][c]
            text = ["-" if v is None else f"{float(v):,.6g}" for v in numbers[1:]]
            rows.append((image, channel, f"{numbers[0]:,}", *text))
    quantiles = (f"p{100 * q:g}" for q in found["quantiles"])
    return rows, ("image", "channel", *names, *quantiles)


def _figures(title: str, figures: Mapping[str, Any]) -> None:
    from patchloom.run.wording import worded

    _table(title, [(label, text) for _, label, text in worded(figures)])


def _table(title: str, rows: Sequence[tuple[str, ...]], head: tuple[str, ...] = ()) -> None:
    """A table: drawn on a terminal, aligned text elsewhere."""
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(
            title=title,
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD if head else box.SIMPLE,
            show_header=bool(head),
            pad_edge=False,
        )
        for k in range(len(head or rows[0])):
            # Where there is a heading, numbers follow after two names; they are never broken.
            number = bool(head) and k >= 2
            table.add_column(
                head[k] if head else "",
                overflow="fold",
                no_wrap=number,
                justify="right" if number else "left",
            )
        for row in rows:
            # Names and URLs may hold what rich would take for markup.
            table.add_row(*map(escape, row))
        Console().print(table)
        return
    lines = [head, *rows] if head else list(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    click.echo(title)
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  " + "  ".join(cells).rstrip())


def _times(extents: Sequence[int]) -> str:
    return " x ".join(str(n) for n in extents)
