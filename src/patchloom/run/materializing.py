"""materialize: write a plan's patches, once, into a store that feeds training."""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
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
from patchloom.run.appending import (
    Stage,
    appended,
    image_documents,
    leftovers,
    pending,
    stages_of,
    told_of,
)
from patchloom.run.cutting import Job
from patchloom.run.executing import execute
from patchloom.run.graph import run_graph
from patchloom.run.normalizing import NORMALIZATIONS, Scaling
from patchloom.run.reports import RunReport, TaskReport
from patchloom.run.surveying import (
    Found,
    channel_names,
    merged,
    survey_images,
    survey_patches,
)
from patchloom.store.additions import n_rows_of
from patchloom.store.manifest import read_summaries
from patchloom.store.patch_store import read_attributes
from patchloom.store.pending import check_pending
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
from patchloom.store.statistics_view import check_percentiles, document, joined

__all__ = ["check_choices", "materialize"]

logger = logging.getLogger("patchloom")

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
    the store ends byte for byte as if nothing had happened. Run it with a plan of more images, and
    those are appended: what is there already stays as it is; see docs/append.md.

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
        Whether to go on with a store of the same plan, or append to it; False refuses one.
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
        If something else stands at `url`, or another call appends other images meanwhile.
    FingerprintError
        If a store of another plan or job stands there: it says which setting or image differs.
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
    begun = time.perf_counter()
    if not isinstance(plan, Plan):
        raise ConfigError(
            f"materialize takes a Plan, got {type(plan).__name__}; make one with plan"
        )
    if not isinstance(url, str | os.PathLike) or not os.fspath(url):
        raise ConfigError(f"materialize takes the path or URL of its store, got {url!r}")
    _check_sizes(plan)
    _check_memory(plan, normalize)
    target = Location.of(url, storage_options)
    q = check_percentiles(percentiles)
    check_choices(normalize, over, on_error)
    specs = _specs(plan, normalize, Codec(codec or CODECS[0]))
    attributes = _attributes(plan, specs, q, normalize, over)
    # Listed first: what another call begins to add meanwhile is not taken for a leftover.
    found = target.list()
    existing = _claim(target, found, attributes, _documents(specs, plan.n_patches), resume)
    stages = stages_of(plan, existing, target.shown)
    for stage in stages.new:
        _check_memory(stage.plan, normalize)
    if existing is not None and stages.every[0].plan is not plan:
        # The store's own: rows_per_shard, and what is told of its images.
        specs = _specs(stages.standing[0].plan, normalize, Codec(codec or CODECS[0]))
        attributes = {k: v for k, v in existing.items() if k != "statistics"} | {"complete": False}
    target.remove([name for name in found if PARTIAL.search(name)])
    if existing is not None:
        target.abort_uploads()
    work = _Work(target, specs, q, normalize, over, on_error == "skip", progress)
    outcomes, written = work.finish(stages.standing, existing, attributes, found)
    for stage in stages.new:
        if written is None:
            break
        outcome, written = work.append(stage, written, found)
        outcomes.append(outcome)
    return _report(outcomes, target, begun, written is not None, normalize)


@dataclass(frozen=True)
class _Outcome:
    """What was done for one addition."""

    stage: Stage
    done: frozenset[int]
    """Shards that were finished before, counted in the addition."""
    survey: Reads
    results: tuple[TaskReport, ...]
    statistics: Mapping[str, Any] | None
    """None if shards are missing still, or if it was not asked."""

    @property
    def written(self) -> list[int]:
        """Shards that were made, counted in the addition."""
        first = self.stage.addition.first_shard
        skipped = {shard - first for task in self.results for shard, _, _ in task.skipped}
        return [s for s in range(self.stage.plan.n_shards) if s not in self.done | skipped]


@dataclass(frozen=True)
class _Work:
    """What a call writes, and how; the same for all additions of a store."""

    target: Location
    specs: Mapping[str, ArraySpec]
    q: tuple[float, ...]
    normalize: str | None
    over: str
    skip: bool
    progress: bool

    def finish(
        self,
        standing: Sequence[Stage],
        existing: Mapping[str, Any] | None,
        attributes: Mapping[str, Any],
        found: Mapping[str, int],
    ) -> tuple[list[_Outcome], Mapping[str, Any] | None]:
        """Make what the additions that a store has lack; its attributes, if it is complete."""
        arrays = _documents(self.specs, n_rows_of(attributes))
        for name, array in arrays.items():
            if f"{name}/zarr.json" not in found:
                self.target.write(f"{name}/zarr.json", as_json(array))
        every = [_finished(found, s, self.specs) if existing else frozenset() for s in standing]
        lacks = any(len(d) < s.plan.n_shards for d, s in zip(every, standing, strict=True))
        if existing is not None and existing.get("complete") and not lacks:
            nothing = [
                _Outcome(s, d, Reads(), (), None) for d, s in zip(every, standing, strict=True)
            ]
            return nothing, existing
        looks = [self._survey(s, d) for s, d in zip(standing, every, strict=True)]
        if existing is None or lacks:
            # Not complete (any more): readers are told before anything else is written.
            self.target.write("zarr.json", as_json(group_document(attributes, arrays)))
        outcomes = [
            self._make(s, d, *look) for s, d, look in zip(standing, every, looks, strict=True)
        ]
        told = [outcome.statistics for outcome in outcomes if outcome.statistics is not None]
        if len(told) < len(outcomes):
            return outcomes, None
        # Statistics and the completion mark: one object, last.
        attributes = {**attributes, "complete": True, "statistics": joined(told)}
        self.target.write("zarr.json", as_json(group_document(attributes, arrays)))
        return outcomes, attributes

    def append(
        self, stage: Stage, attributes: Mapping[str, Any], found: Mapping[str, int]
    ) -> tuple[_Outcome, Mapping[str, Any] | None]:
        """Make an addition to a complete store; the attributes with it, if it is whole.

        Until the last write the store is what it was: readers of it look no further.
        """
        from patchloom import __version__

        if self.progress:
            logger.info("materialize: %s", told_of(stage, self.target))
        done = frozenset[int]()
        is_begun = attributes.get("pending", {}).get("fingerprint") == stage.addition.fingerprint
        if is_begun:
            done = _finished(found, stage, self.specs)
        else:
            self.target.remove(leftovers(found, attributes))
        survey, surveyed = self._survey(stage, done)
        if not is_begun:
            attributes = pending(attributes, stage)
            arrays = _documents(self.specs, n_rows_of(attributes))
            self.target.write("zarr.json", as_json(group_document(attributes, arrays)))
        outcome = self._make(stage, done, survey, surveyed, is_new=True)
        if outcome.statistics is None:
            return outcome, None
        check_pending(self.target, stage.addition.fingerprint)
        statistics = joined([attributes["statistics"], outcome.statistics])
        attributes = appended(attributes, stage, statistics, __version__)
        arrays = _documents(self.specs, n_rows_of(attributes))
        for name, array in arrays.items():
            self.target.write(f"{name}/zarr.json", as_json(array))
        # Rows, statistics and images: one object, last.
        self.target.write("zarr.json", as_json(group_document(attributes, arrays)))
        return outcome, attributes

    def _survey(self, stage: Stage, done: frozenset[int]) -> tuple[Reads, Found | None]:
        """What must be known before the first patch is written, or is of more than patches."""
        if self.over == "image":
            found, reads = survey_images(stage.plan.images, progress=self.progress)
        elif self.normalize is not None and len(done) < stage.plan.n_shards:
            found, reads = survey_patches(stage.plan, progress=self.progress)
        else:
            return Reads(), None
        return reads, found

    def _make(
        self,
        stage: Stage,
        done: frozenset[int],
        survey: Reads,
        surveyed: Found | None,
        *,
        is_new: bool = False,
    ) -> _Outcome:
        """Write the shards of an addition that are missing."""
        plan, addition = stage.plan, stage.addition
        scaling = None
        if self.normalize is not None:
            scaling = Scaling.of(self.normalize, surveyed or {}, self.q)
        first, image = addition.first_shard, addition.first_image
        coming = addition.fingerprint if is_new else None
        job = Job(self.target, self.specs, scaling, self.skip, first, image, coming)
        missing = [shard for shard in range(plan.n_shards) if shard not in done]
        graph = run_graph(plan, job, missing, uuid.uuid4().hex)
        results = [
            replace(task, skipped=tuple((first + k, n, why) for k, n, why in task.skipped))
            for task in execute(graph, progress=self.progress, label="materialize")
        ]
        statistics = None
        if not any(task.skipped for task in results):
            summaries = surveyed if self.over == "image" else _gathered(self.target, stage)
            channels = channel_names(plan.images)
            statistics = document(summaries or {}, stage.ids, channels, self.q, self.over)
        return _Outcome(stage, done, survey, tuple(results), statistics)


def _documents(specs: Mapping[str, ArraySpec], n_rows: int) -> dict[str, Any]:
    return {name: spec.document(n_rows) for name, spec in specs.items()}


def _check_memory(plan: Plan, normalize: str | None) -> None:
    projected = plan.peak_memory(normalized=normalize is not None)
    if projected > plan.memory:
        raise BudgetError(
            f"one task must fit into memory={plan.memory:,} bytes, but normalised patches are "
            f"float32, and a task holds {projected:,}; plan with more memory, fewer "
            f"rows_per_shard ({plan.rows_per_shard:,}), or without normalize="
        )


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
        "images": image_documents(plan.images),
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
    asked = json.loads(json.dumps({name: attributes[name] for name in ("job", "arrays")}))
    differs = [name for name, value in asked.items() if existing.get(name) != value]
    if differs:
        keys = sorted(k for k, v in asked["job"].items() if existing.get("job", {}).get(k) != v)
        raise FingerprintError(
            f"a store belongs to one plan and job, but the one at {target.shown!r} has another "
            f"{' and '.join(differs)}{' (' + ', '.join(keys) + ')' if keys else ''}; give another "
            "URL, or remove it yourself; nothing was touched"
        )
    if not resume:
        raise ExistsError(
            f"resume=False writes only where nothing is, but {target.shown!r} holds a store; call "
            "with resume=True to finish or extend it, or give another URL"
        )
    return existing


def _finished(
    found: Mapping[str, int], stage: Stage, specs: Mapping[str, ArraySpec]
) -> frozenset[int]:
    """The shards of an addition that are committed, from one listing."""
    first = stage.addition.first_shard
    return frozenset(
        shard
        for shard in range(stage.plan.n_shards)
        if all(
            found.get(name, 0) > 0
            for name in (
                manifest_name(first + shard),
                summary_name(first + shard),
                *(shard_name(spec, first + shard) for spec in specs.values()),
            )
        )
    )


def _gathered(target: Location, stage: Stage) -> Found:
    """The summaries of all shards of an addition, merged in shard order."""
    first, image = stage.addition.first_shard, stage.addition.first_image

    def read(shard: int) -> Found:
        data = target.read(summary_name(first + shard))
        if data is None:
            raise StoreError(
                f"shard {first + shard} of {target.shown!r} lost its summary; run the same call "
                "again"
            )
        return {(i - image, c): summary for (i, c), summary in read_summaries(data).items()}

    with ThreadPoolExecutor(8) as pool:
        return merged(list(pool.map(read, range(stage.plan.n_shards))))


def _report(
    outcomes: Sequence[_Outcome],
    target: Location,
    begun: float,
    complete: bool,
    normalize: str | None,
) -> RunReport:
    surveys = [outcome.survey for outcome in outcomes]
    plans = [outcome.stage.plan for outcome in outcomes]
    report = RunReport.of(
        [task for outcome in outcomes for task in outcome.results],
        url=target.shown,
        chunks_needed=sum(_needed(o.stage.plan, o.written) for o in outcomes),
        survey_reads=sum(survey.chunks for survey in surveys),
        seconds=0.0,
        projected_memory=max(p.peak_memory(normalized=normalize is not None) for p in plans),
        complete=complete,
        already_done=sum(len(outcome.done) for outcome in outcomes),
    )
    report = replace(
        report,
        bytes_read=report.bytes_read + sum(survey.nbytes for survey in surveys),
        requests=report.requests + sum(survey.requests for survey in surveys),
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
