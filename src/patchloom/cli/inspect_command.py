"""`patchloom inspect`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from patchloom.cli.declaring import command
from patchloom.cli.kinds import kind_of
from patchloom.cli.options import json_option
from patchloom.cli.plan_figures import show_plan
from patchloom.cli.planes import axes_instead
from patchloom.cli.tables import table, times

if TYPE_CHECKING:
    from patchloom.image import Image
    from patchloom.store.patch_store import PatchStore

__all__ = ["inspect_command"]


@command("inspect")
@click.argument("url", type=click.Path())
@json_option
def inspect_command(url: str, as_json: bool) -> None:
    """Say what stands at URL: a patch store, a saved plan, or images."""
    from patchloom.location import Location

    kind = kind_of(Location.of(url))
    if kind == "store":
        from patchloom.store.patch_store import open_patches

        _show_store(open_patches(url), as_json)
    elif kind == "plan":
        from patchloom.planning.plans import Plan

        show_plan(Plan.load(url), as_json)
    else:
        from patchloom.sources.opening import open_images

        _show_images(open_images(url), as_json)


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
            ("shape", times(image.shape)),
            ("data type", image.dtype.name),
            ("chunks", f"{times(image.grid.chunks)} ({image.grid.n_chunks:,})"),
            ("shards", "none" if image.shards is None else times(image.shards)),
            ("spacing", spacing or "unknown"),
            ("channels", ", ".join(image.channels) or "unnamed"),
            *([] if image.nodata is None else [("nodata", f"{image.nodata:g}")]),
        ]
        table(f"Image {image.id}, level {image.level}", rows)
    if (other := axes_instead(images)) is not None:
        click.echo(f"\nAre the {other[1]} along z channels? Then say in the job: axes: {other[0]}")


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
        ("patch", f"{times(told['patch_shape'])} ({told['axes']})"),
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
    table("Patch store", rows)
    found = told.get("statistics")
    if found:
        often = ", as often as they take it" if found.get("each") == "taken" else ""
        table(f"Statistics over {found['over']}{often}", *_statistics(found))


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
