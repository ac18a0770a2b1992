"""materialize: write a plan's patches, once, into a store that feeds training."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from patchloom.errors import (
    BudgetError,
    ConfigError,
    ExistsError,
    FingerprintError,
    PatchSizeError,
    StoreError,
    WriteError,
)
from patchloom.image import Reads
from patchloom.location import Location
from patchloom.planning.incidence import touches
from patchloom.planning.plans import Plan
from patchloom.run.cutting import Job
from patchloom.run.executing import execute
from patchloom.run.graph import run_graph
from patchloom.run.normalizing import NORMALIZATIONS, Scaling
from patchloom.run.reports import RunReport
from patchloom.run.surveying import (
    Found,
    channel_names,
    merged,
    survey_images,
    survey_patches,
)
from patchloom.sources.zarrs import reading_since
from patchloom.store.manifest import read_summaries
from patchloom.store.patch_store import read_attributes
from patchloom.store.schema import (
    CODECS,
    FORMAT,
    PARTIAL,
    ArraySpec,
    Codec,
    as_json,
    group_document,
    manifest_name,
    shard_name,
    summary_name,
)
from patchloom.store.statistics_view import check_percentiles, document

__all__ = ["check_choices", "materialize"]

_OVER = ("patches", "image")
_ON_ERROR = ("raise", "skip")


def materialize(
    plan: Plan,
    url: str | os.PathLike[str],
    *,
    percentiles: Sequence[float] = (1, 99),
    normalize: str | None = None,
    over: str = "patches",
    storage_options: Mapping[str, Any] | None = None,
    resume: bool = True,
    progress: bool = True,
    on_error: str = "raise",
    codec: str | None = None,
) -> RunReport:
    """Write the patches of a plan into a store, on the Dask scheduler that is set.

    Interrupt it at any point and run the same call again: only what is missing is made, and
    the store ends byte for byte as if nothing had happened.

    Parameters
    ----------
    plan
        From `patchloom.plan`.
    url
        Path or fsspec URL of the store. A report of each run goes beside it, into
        ``<url>.report/``.
    percentiles
        In percent; kept in the store's statistics.
    normalize
        None stores the source's pixels (normalise in the loader from the statistics).
        ``"percentile"`` scales the lowest to the highest of `percentiles` to [0, 1], clipped;
        ``"mean-std"`` to mean 0 and standard deviation 1; both per image and channel, as
        float32, after a pass of their own over the source.
    over
        What the statistics are of: ``"patches"`` (pixels of kept patches, each once, counted
        in the writing pass) or ``"image"`` (all pixels, in a pass of their own). Never padding.
    storage_options
        For fsspec, to write the store; never shown or saved.
    resume
        Whether to go on with a store of the same plan; False refuses one.
    progress
        Whether to show it.
    on_error
        ``"raise"`` stops at the first chunk that cannot be read; ``"skip"`` leaves out the
        shards that need it and lists them in the report; the same call fills them in later.
    codec
        ``"blosc-zstd"`` (default), ``"blosc-lz4"``, ``"zstd"`` or ``"none"``; each patch also
        carries a crc32c checksum.

    Returns
    -------
    RunReport
        What this call did, counted on the workers.

    Raises
    ------
    ExistsError
        If something else stands at `url`.
    FingerprintError
        If a store of another plan or job stands there.
    ChunkError
        If a chunk cannot be read.
    WriteError
        If the target refuses an object; finished shards are kept.

    Examples
    --------
    >>> import numpy as np, patchloom
    >>> images = patchloom.open_images(np.ones((64, 64), "uint8"))
    >>> plan = patchloom.plan(images, {"name": "sequential", "patch_size": [32, 32]})
    >>> report = patchloom.materialize(plan, "memory://doc.zarr", progress=False)
    >>> report.n_patches, report.read_amplification
    (4, 1.0)
    """
    begun, started = time.perf_counter(), time.time()
    if not isinstance(plan, Plan):
        raise ConfigError(
            f"materialize takes a Plan, got {type(plan).__name__}; make one with plan"
        )
    if not isinstance(url, str | os.PathLike) or not os.fspath(url):
        raise ConfigError(f"materialize takes the path or URL of its store, got {url!r}")
    _check_sizes(plan)
    projected = plan.peak_memory(normalized=normalize is not None)
    if projected > plan.memory:
        raise BudgetError(
            f"one task must fit into memory={plan.memory:,} bytes, but normalised patches are "
            f"float32, and a task holds {projected:,}; plan with more memory, fewer "
            f"rows_per_shard ({plan.rows_per_shard:,}), or without normalize="
        )
    target = Location.of(url, storage_options)
    q = check_percentiles(percentiles)
    check_choices(normalize, over, on_error)
    specs = _specs(plan, normalize, Codec(codec or CODECS[0]))
    arrays = {name: spec.document(plan.n_patches) for name, spec in specs.items()}
    attributes = _attributes(plan, specs, q, normalize, over)
    found = target.list()
    existing = _claim(target, found, attributes, arrays, resume)
    target.remove([name for name in found if PARTIAL.search(name)])
    if existing is not None:
        target.abort_uploads()
    done = _finished(found, plan, specs) if existing is not None else set()
    for name, array in arrays.items():
        if f"{name}/zarr.json" not in found:
            target.write(f"{name}/zarr.json", as_json(array))
    if existing is not None and existing.get("complete") and len(done) == plan.n_shards:
        return _report(plan, target, [], begun, Reads(), done, set(), True, normalize)
    survey, surveyed = Reads(), None
    if normalize is not None or over == "image":
        # The numbers must be known before the first patch is written, or are of more than patches.
        whole = over == "image"
        surveyed, survey = (
            survey_images(plan.images, progress=progress)
            if whole
            else survey_patches(plan, progress=progress)
        )
    scaling = None if normalize is None else Scaling.of(normalize, surveyed or {}, q)
    if existing is None or len(done) < plan.n_shards:
        # Not complete (any more): readers are told before anything else is written.
        target.write("zarr.json", as_json(group_document(attributes, arrays)))
    missing = [shard for shard in range(plan.n_shards) if shard not in done]
    job = Job(target, specs, scaling, skip=on_error == "skip")
    watched = plan.with_images([reading_since(image, started) for image in plan.images])
    token = uuid.uuid4().hex
    graph = run_graph(watched, job, missing, token)
    results = execute(graph, progress=progress, label="materialize")
    skipped = {shard for result in results for shard, _, _ in result.skipped}
    complete = not skipped
    if complete:
        target.sweep(PARTIAL)  # of workers that were killed in this run
        summaries = surveyed if over == "image" else _gathered(target, plan)
        # Statistics and the completion mark: one object, last.
        ids = [image.id for image in plan.images]
        found = document(summaries or {}, ids, attributes["channels"], q, over)
        attributes = {**attributes, "complete": True, "statistics": found}
        target.write("zarr.json", as_json(group_document(attributes, arrays)))
    return _report(plan, target, results, begun, survey, done, skipped, complete, normalize)


def _check_sizes(plan: Plan) -> None:
    sizes = plan.distinct_sizes()
    if not {*sizes} <= {plan.patch_size}:
        shown = ", ".join(str(list(size)) for size in sizes[:6]) + ", ..." * (len(sizes) > 6)
        raise PatchSizeError(
            f"the patches of one store have one size ({list(plan.patch_size)}), got {shown} from "
            "edge='shrink', which is for live loading; plan with edge='pad', which fills them up "
            "to one size and says which pixels are padding"
        )


def check_choices(normalize: str | None, over: str, on_error: str = "raise") -> None:
    """Refuse what is not one of the choices.

    Raises
    ------
    ConfigError
        Naming them.
    """
    for name, value, choices in (
        ("normalize", normalize, (None, *NORMALIZATIONS)),
        ("over", over, _OVER),
        ("on_error", on_error, _ON_ERROR),
    ):
        if value not in choices:
            raise ConfigError(f"{name}= is one of {list(choices)}, got {value!r}")


def _specs(plan: Plan, normalize: str | None, codec: Codec) -> dict[str, ArraySpec]:
    first = plan.images[0]
    axes = first.axes.canonical
    dtype = np.dtype(np.float32) if normalize is not None else plan.dtype
    specs = {
        "images": ArraySpec("images", plan.patch_shape, dtype, axes, plan.rows_per_shard, codec)
    }
    for name, role in (("labels", first.labels), ("targets", first.target)):
        if role is not None:
            shape = (role.image.layout.n_channels, *plan.patch_size)
            specs[name] = ArraySpec(name, shape, role.image.dtype, axes, plan.rows_per_shard, codec)
    return specs


def _attributes(
    plan: Plan,
    specs: Mapping[str, ArraySpec],
    q: tuple[float, ...],
    normalize: str | None,
    over: str,
) -> dict[str, Any]:
    from patchloom import __version__

    spec = specs["images"]
    return {
        "format": FORMAT,
        "complete": False,
        "patchloom_version": __version__,
        "fingerprint": plan.fingerprint,
        "seed": plan.seed,
        "n_patches": plan.n_patches,
        "rows_per_shard": plan.rows_per_shard,
        "axes": spec.axes,
        "patch_shape": list(spec.patch_shape),
        "arrays": sorted(specs),
        "channels": channel_names(plan.images),
        "job": {
            "patching": plan.config.model_dump(),
            "edge": plan.edge,
            "padding": plan.padding,
            "min_coverage": str(plan.min_coverage),
            "min_pixels": plan.min_pixels,
            "order": plan.order,
            "percentiles": list(q),
            "normalize": normalize,
            "over": over,
            "codec": spec.codec.name,
        },
        "images": [
            {
                "id": image.id,
                "uri": image.uri,
                "level": image.level,
                "axes": image.axes.names,
                "shape": list(image.shape),
                "dtype": image.dtype.name,
                "spacing": dict(image.spacing),
                "unit": dict(image.unit),
            }
            for image in plan.images
        ],
    }


def _claim(
    target: Location,
    found: Mapping[str, int],
    attributes: Mapping[str, Any],
    arrays: Mapping[str, Any],
    resume: bool,
) -> dict[str, Any] | None:
    """The attributes of a store of this very job, None where nothing stands, else an error."""
    try:
        existing = read_attributes(target)
    except StoreError as error:
        raise ExistsError(
            f"a store goes where nothing else is, but {error}; nothing was touched"
        ) from None
    if existing is None:
        # A run that was killed at once leaves array metadata; everything else is somebody's.
        ours = {f"{name}/zarr.json": as_json(array) for name, array in arrays.items()}
        left = [
            name
            for name in found
            if not PARTIAL.search(name) and (name not in ours or target.read(name) != ours[name])
        ]
        if left:
            raise ExistsError(
                f"a store goes where nothing else is, but {target.shown!r} holds "
                f"{sorted(left)[:3]}; give another URL, or remove it yourself; nothing was touched"
            )
        return None
    differs = [
        name
        for name in ("fingerprint", "job", "arrays")
        if existing.get(name) != json.loads(json.dumps(attributes[name]))
    ]
    if differs:
        raise FingerprintError(
            f"a store belongs to one plan and job, but the one at {target.shown!r} has another "
            f"{' and '.join(differs)} (there {str(existing.get('fingerprint'))[:8]}, here "
            f"{str(attributes['fingerprint'])[:8]}); give another URL, or remove it yourself; "
            "nothing was touched"
        )
    if not resume:
        raise ExistsError(
            f"resume=False writes only where nothing is, but {target.shown!r} holds a store of "
            "this plan; call with resume=True to finish it, or give another URL"
        )
    return existing


def _finished(found: Mapping[str, int], plan: Plan, specs: Mapping[str, ArraySpec]) -> set[int]:
    """The shards that are committed, from one listing."""
    return {
        shard
        for shard in range(plan.n_shards)
        if all(
            found.get(name, 0) > 0
            for name in (
                manifest_name(shard),
                summary_name(shard),
                *(shard_name(spec, shard) for spec in specs.values()),
            )
        )
    }


def _gathered(target: Location, plan: Plan) -> Found:
    """The summaries of all shards, merged in shard order."""

    def read(shard: int) -> Found:
        data = target.read(summary_name(shard))
        if data is None:
            raise StoreError(
                f"shard {shard} of {target.shown!r} lost its summary; run the same call again"
            )
        return read_summaries(data)

    with ThreadPoolExecutor(8) as pool:
        return merged(list(pool.map(read, range(plan.n_shards))))


def _report(
    plan: Plan,
    target: Location,
    results: Sequence[Any],
    begun: float,
    survey: Reads,
    done: set[int],
    skipped: set[int],
    complete: bool,
    normalize: str | None,
) -> RunReport:
    written = [s for s in range(plan.n_shards) if s not in done and s not in skipped]
    report = RunReport.of(
        results,
        url=target.shown,
        chunks_needed=_needed(plan, written),
        survey_reads=survey.chunks,
        seconds=0.0,
        projected_memory=plan.peak_memory(normalized=normalize is not None),
        complete=complete,
        already_done=len(done),
    )
    report = replace(
        report,
        bytes_read=report.bytes_read + survey.nbytes,
        requests=report.requests + survey.requests,
        seconds=time.perf_counter() - begun,
    )
    _save(report, target)
    return report


def _needed(plan: Plan, shards: Sequence[int]) -> int:
    """Distinct chunks that the patches of some shards touch."""
    if len(shards) == plan.n_shards:
        return plan.chunks_needed
    blocks: dict[int, list[Any]] = {}
    for shard in shards:
        start = shard * plan.rows_per_shard
        for part in plan.patches(start, min(start + plan.rows_per_shard, plan.n_patches)):
            layout = plan.images[part.image].layout
            found = touches(layout, part.sample, part.corner, plan.cut)[1]
            blocks.setdefault(part.image, []).append(np.unique(found))
    return sum(
        len(np.unique(np.concatenate(found))) * plan.images[image].layout.chunks_per_block
        for image, found in blocks.items()
    )


def _save(report: RunReport, target: Location) -> None:
    beside = target.beside(".report")
    try:
        number = len([n for n in beside.list() if n.endswith(".json")]) + 1
        text = json.dumps(report.to_dict(), indent=1)
        beside.write(f"run-{number:04d}.json", text.encode())
    except (OSError, WriteError):
        # The store is whole; a report that finds no room is no reason to fail.
        return
