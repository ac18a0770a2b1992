"""What a worker does: read each block once, cut, count, encode and write whole shards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numcodecs.blosc
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from patchloom.errors import ChunkError
from patchloom.image import Image, Layout, Reads
from patchloom.location import Location
from patchloom.planning.identity import patch_ids
from patchloom.planning.incidence import Patches, touches
from patchloom.planning.plans import Plan
from patchloom.planning.runs import GATHER
from patchloom.run.blocks import BlockCache, Meter, Supplied
from patchloom.run.centers import goes_by_class
from patchloom.run.contents import Contents, Counted
from patchloom.run.masks import covered_share
from patchloom.run.normalizing import Scaling
from patchloom.run.reports import TaskReport
from patchloom.run.tiles import columns_of
from patchloom.run.union import union
from patchloom.store.manifest import check_columns, manifest_bytes, summary_bytes
from patchloom.store.schema import ArraySpec, manifest_name, shard_name, summary_name
from patchloom.store.shards import ShardBuilder
from patchloom.summaries import Summary, Tally

__all__ = ["Job", "cut_run", "score_run", "steps_of", "write_run"]

Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[Any]
ArrayKey = tuple[int, str]
"""Position of an image and the role of the array: "image", "labels" or "target"."""


@dataclass(frozen=True)
class Job:
    """What every task of a run needs besides the plan."""

    target: Location | None
    """Where shards go; None only counts (a survey)."""
    specs: Mapping[str, ArraySpec] = field(default_factory=dict)
    """Arrays of the store by name."""
    scaling: Scaling | None = None
    skip: bool = False
    """Whether a chunk that cannot be read costs its shards instead of the run."""
    contents: Contents | None = None
    """What a survey of contents asks of each patch."""
    folder: Location | None = None
    """Where such a survey keeps what it finds; None hands it back."""
    names: Mapping[int, str] = field(default_factory=dict)
    """The name there of each piece."""

    def arrays(self, image: Image) -> dict[str, Image]:
        """The arrays of an image that this job reads."""
        if self.target is not None:
            return image.cut_arrays
        # A survey of statistics looks at the image alone.
        wanted = {"image"} if self.contents is None else self.contents.arrays
        return {name: array for name, array in image.cut_arrays.items() if name in wanted}

    @property
    def cuts(self) -> bool:
        """Whether pixels of patches are wanted, and not only blocks."""
        return self.target is not None or self.contents is not None


@dataclass
class _Shard:
    """A shard in the making."""

    number: int
    parts: list[Patches]
    builders: dict[str, ShardBuilder]
    tallies: dict[tuple[int, int], Tally] = field(default_factory=dict)
    summaries: dict[tuple[int, int], Summary] = field(default_factory=dict)
    classes: list[Pixels] = field(default_factory=list)
    """Classes of the centre pixels, where the plan goes by them."""
    counted: Counted = field(default_factory=Counted)
    left: int = 0

    def settle(self, meter: Meter, image: int | None = None) -> None:
        """Turn tallies (of one image) into summaries, which are small."""
        for key in [k for k in self.tallies if image is None or k[0] == image]:
            tally = self.tallies.pop(key)
            meter.give(tally.nbytes)
            self.summaries[key] = tally.summary()


@dataclass
class _Run:
    """A task while it works."""

    plan: Plan
    job: Job
    supplied: Mapping[ArrayKey, Supplied]
    meter: Meter = field(default_factory=Meter)
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("chunk_reads", "role_reads", "bytes_read", "requests", "bytes_written"), 0
        )
    )


def write_run(
    plan: Plan,
    job: Job,
    shards: Sequence[int],
    supplied: Mapping[ArrayKey, Supplied] | None = None,
) -> TaskReport:
    """Write some shards of one run. Doing it twice is doing it once.

    Parameters
    ----------
    plan, job
        The same values in every task.
    shards
        Numbers of the shards, ascending.
    supplied
        Chunks of the arrays that only Dask can read.

    Raises
    ------
    ChunkError
        If a needed chunk cannot be read, with the patches that it costs.
    WriteError
        If the target refuses an object.
    """
    begun = time.perf_counter()
    # Blosc's own threads write blocks in the order in which they finish: bytes would differ
    # from run to run. Dask's threads are the parallelism here.
    numcodecs.blosc.use_threads = False
    report = _attempt(plan, job, list(shards), supplied or {})
    return TaskReport(**{**report, "seconds": time.perf_counter() - begun})


def cut_run(
    plan: Plan, shards: Sequence[int], supplied: Mapping[ArrayKey, Supplied] | None = None
) -> tuple[dict[tuple[int, int], Summary], Reads]:
    """Summarize the pixels of some shards' patches, each once, without writing."""
    run = _Run(plan, Job(None), supplied or {})
    found: dict[tuple[int, int], Summary] = {}
    for shard in _walk(run, _shards(plan, shards)):
        shard.settle(run.meter)
        for key, summary in shard.summaries.items():
            found[key] = found.get(key, Summary.empty()) + summary
        shard.summaries.clear()
    counts = run.counts
    return found, Reads(counts["chunk_reads"], counts["requests"], counts["bytes_read"])


def score_run(
    plan: Plan,
    job: Job,
    pieces: Mapping[int, tuple[int, int]],
    supplied: Mapping[ArrayKey, Supplied] | None = None,
) -> tuple[dict[int, bytes], Reads]:
    """What the patches of some pieces (rows [start, stop) by number) show.

    Each piece as `Counted.to_bytes`; none of it if the job has a folder, which then holds it.
    """
    contents, run = job.contents, _Run(plan, job, supplied or {})
    assert contents is not None
    found: dict[int, bytes] = {}
    for shard in _walk(run, {k: plan.patches(*rows) for k, rows in pieces.items()}):
        if contents.coverage:
            shares = [covered_share(plan, part) for part in shard.parts]
            shard.counted.columns["coverage"] = shares
        data = shard.counted.to_bytes()
        shard.counted = Counted()
        if job.folder is None:
            found[shard.number] = data
        else:
            job.folder.write(job.names[shard.number], data)
    counts = run.counts
    reads = counts["chunk_reads"] + counts["role_reads"]
    return found, Reads(reads, counts["requests"], counts["bytes_read"])


def _attempt(
    plan: Plan, job: Job, shards: list[int], supplied: Mapping[ArrayKey, Supplied]
) -> dict[str, Any]:
    run = _Run(plan, job, supplied)
    done: list[int] = []
    skipped: list[tuple[int, int, str]] = []
    try:
        for shard in _walk(run, _shards(plan, shards)):
            _commit(run, shard)
            done.append(shard.number)
    except ChunkError as error:
        if not job.skip:
            raise
        if len(shards) == 1:
            rows = sum(len(part) for part in _rows_of(plan, shards[0]))
            skipped.append((shards[0], rows, str(error)))
        else:
            # One at a time: only the shards that need the chunk are left out.
            for number in [n for n in shards if n not in done]:
                more = _attempt(plan, job, [number], supplied)
                skipped += more["skipped"]
                for name in run.counts:
                    run.counts[name] += more[name]
                done += [number] * more["n_shards"]
                run.meter.peak = max(run.meter.peak, more["peak_memory"])
    n_patches = sum(len(part) for number in done for part in _rows_of(plan, number))
    return {
        **run.counts,
        "n_patches": n_patches,
        "n_shards": len(done),
        "peak_memory": run.meter.peak,
        "skipped": tuple(skipped),
    }


def _rows_of(plan: Plan, shard: int) -> list[Patches]:
    start = shard * plan.rows_per_shard
    return plan.patches(start, min(start + plan.rows_per_shard, plan.n_patches))


def _shards(plan: Plan, shards: Sequence[int]) -> dict[int, list[Patches]]:
    return {number: _rows_of(plan, number) for number in shards}


def _walk(run: _Run, shards: Mapping[int, list[Patches]]) -> Iterator[_Shard]:
    """Cut the shards (their patches by number) in order, yielding each as soon as it is full."""
    job = run.job
    begun: dict[int, _Shard] = {}
    groups: list[tuple[int, list[tuple[int, Patches]]]] = []
    for number, parts in shards.items():
        builders = {
            name: ShardBuilder(spec, sum(len(part) for part in parts))
            for name, spec in job.specs.items()
        }
        begun[number] = _Shard(number, parts, builders, left=sum(len(part) for part in parts))
        for part in parts:
            if not groups or groups[-1][0] != part.image:
                groups.append((part.image, []))
            groups[-1][1].append((number, part))
    for image, pieces in groups:
        yield from _cut_image(run, image, pieces, begun)


def _cut_image(
    run: _Run, index: int, pieces: Sequence[tuple[int, Patches]], begun: dict[int, _Shard]
) -> Iterator[_Shard]:
    """Cut the patches that some shards take from one image."""
    plan, image = run.plan, run.plan.images[index]
    shard = np.concatenate([np.full(len(part), number) for number, part in pieces])
    sample = np.concatenate([part.sample for _, part in pieces])
    corner = np.concatenate([part.corner for _, part in pieces])
    cell = np.concatenate([part.cell for _, part in pieces])
    step = steps_of(cell, shard, plan)
    by_class = goes_by_class(plan.config)
    place = np.concatenate([part.place for _, part in pieces]) if by_class else None
    arrays = run.job.arrays(image)
    contents = run.job.contents or Contents.of(plan)
    # Labels or a target without samples of their own are the same for all samples.
    samples = {
        name: sample if array.layout.n_samples > 1 else np.zeros_like(sample)
        for name, array in arrays.items()
    }
    caches: dict[str, BlockCache] = {}
    for name, array in arrays.items():
        patch, block = touches(array.layout, samples[name], corner, plan.cut)
        counted = name == "image" and run.job.contents is None
        counter = _counter(run, index, image, np.unique(block), begun) if counted else None
        supplied = run.supplied.get((index, name))
        reader = supplied.reader() if supplied is not None else array.source.reader()
        caches[name] = BlockCache(array, step[patch], block, reader, run.meter, counter)
    bounds = np.flatnonzero(np.diff(step)) + 1
    starts = np.concatenate([[0], bounds])
    stops = np.concatenate([bounds, [len(step)]])
    try:
        for k, (a, b) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
            current = begun[int(shard[a])]
            for name, cache in caches.items():
                cache.enter(k)
                if run.job.cuts:
                    pixels = cache.windows(int(samples[name][a]), corner[a:b], plan.cut)
                    current.counted.add(contents, name, pixels, plan.cut)
                if run.job.target is not None:
                    if place is not None and name == "labels":
                        current.classes.append(_classes(image, pixels, corner[a:b], place[a:b]))
                    _store(run, current, name, index, pixels)
                cache.leave(k)
            current.left -= b - a
            if not current.left:
                yield current
                for builder in current.builders.values():
                    run.meter.give(builder.nbytes)
                current.builders.clear()
    except ChunkError as error:
        cost = ", ".join(f"{n}" for n in sorted({number for number, _ in pieces}))
        raise ChunkError(
            f"{error} (image {image.id!r}; {len(shard):,} patches of output shards {cost} wait for "
            "it; on_error='skip' goes on without the shards that need it)"
        ) from error
    finally:
        for shard_begun in begun.values():
            shard_begun.settle(run.meter, index)
        for name, cache in caches.items():
            reads = cache.reads
            run.counts["chunk_reads" if name == "image" else "role_reads"] += reads.chunks
            run.counts["bytes_read"] += reads.nbytes
            run.counts["requests"] += reads.requests


def _classes(image: Image, labels: Pixels, corner: Ints, place: Ints) -> Pixels:
    """The labels at the centre pixels of some patches, out of their label patches."""
    pixel = np.stack(np.unravel_index(place, image.layout.space.shape), -1)
    found: Pixels = labels[(np.arange(len(labels)), 0, *(pixel - corner).T)]
    return found


_ARRAY_NAMES = {"image": "images", "labels": "labels", "target": "targets"}


def steps_of(cell: Ints, shard: Ints, plan: Plan) -> Ints:
    """Number the steps of a walk: one cell of one shard, in pieces of bounded size."""
    change = np.ones(len(cell), np.bool_)
    change[1:] = (np.diff(cell) != 0) | (np.diff(shard) != 0)
    begin = np.maximum.accumulate(np.where(change, np.arange(len(cell)), 0))
    size = int(np.prod(plan.patch_shape)) * plan.dtype.itemsize
    limit = max(1, GATHER // max(1, size))
    change |= (np.arange(len(cell)) - begin) % limit == 0
    return np.cumsum(change) - 1


def _store(run: _Run, shard: _Shard, name: str, image: int, pixels: Pixels) -> None:
    if name == "image" and run.job.scaling is not None:
        pixels = run.job.scaling.apply(image, pixels)
    run.meter.take(pixels.nbytes)
    builder = shard.builders[_ARRAY_NAMES[name]]
    before = builder.nbytes
    builder.add(pixels)
    run.meter.take(builder.nbytes - before)
    run.meter.give(pixels.nbytes)


def _counter(
    run: _Run, index: int, image: Image, blocks: Ints, begun: dict[int, _Shard]
) -> Callable[[int, Pixels], None]:
    """A function that counts a block's pixels when it arrives, each pixel once.

    A block belongs to the shard of the first row that touches it, wherever that row is
    written; only that shard's task counts it, over the union of all patches of the plan.
    """
    plan = run.plan
    layout = image.layout
    [patches] = plan.owned_by(plan.touching(index, blocks))
    patch, block = touches(layout, patches.sample, patches.corner, plan.cut)
    order = np.lexsort((patch, block))
    patch, block = patch[order], block[order]
    begin = np.searchsorted(block, blocks)
    end = np.searchsorted(block, blocks, side="right")
    # Rows ascend with the position of a patch, so the first of each block is its first row.
    owner = patches.row[patch[begin]] // plan.rows_per_shard
    place = {int(b): k for k, b in enumerate(blocks)}

    def count(flat: int, pixels: Pixels) -> None:
        k = place[flat]
        shard = begun.get(int(owner[k]))
        if shard is None:
            return
        members = patch[begin[k] : end[k]]
        _tally(run, shard, index, layout, flat, pixels, patches.take(members))

    return count


def _tally(
    run: _Run,
    shard: _Shard,
    index: int,
    layout: Layout,
    block: int,
    pixels: Pixels,
    patches: Patches,
) -> None:
    size = run.plan.cut.size
    first, _ = layout.space.box(layout.space.unflat(block % layout.space.n_chunks).tolist())
    extent = pixels.shape[2:]
    _, samples = layout.samples_of(np.asarray([block]))
    low = np.clip(patches.corner - np.asarray(first), 0, extent)
    high = np.clip(patches.corner + np.asarray(size) - np.asarray(first), 0, extent)
    for inside, sample in enumerate(samples.tolist()):
        mine = patches.sample == sample
        if not mine.any():
            continue
        covered = union(low[mine], high[mine], extent)
        for channel in range(layout.n_channels):
            tally = shard.tallies.get((index, channel))
            if tally is None:
                tally = shard.tallies[index, channel] = Tally(pixels.dtype)
            plane = pixels[inside, channel]
            before = tally.nbytes
            tally.add(plane if covered is None else plane[covered])
            run.meter.take(tally.nbytes - before)


def _commit(run: _Run, shard: _Shard) -> None:
    """Write a full shard: pixels, its part of the statistics, then the manifest part."""
    plan, job = run.plan, run.job
    target = job.target
    assert target is not None
    for name, builder in shard.builders.items():
        data = builder.finish()
        run.meter.take(len(data))
        target.write(shard_name(job.specs[name], shard.number), data)
        run.counts["bytes_written"] += len(data)
        run.meter.give(len(data))
    shard.settle(run.meter)
    for name, data in (
        (summary_name(shard.number), summary_bytes(shard.summaries)),
        (manifest_name(shard.number), manifest_bytes(_manifest(plan, shard))),
    ):
        target.write(name, data)
        run.counts["bytes_written"] += len(data)
    shard.summaries.clear()


def _manifest(plan: Plan, shard: _Shard) -> dict[str, Any]:
    """The columns of one shard's part of the manifest."""
    parts = shard.parts
    axes = plan.spatial
    names = check_columns([image.metadata for image in plan.images])
    ids: list[str] = []
    image_ids: list[str] = []
    coverage: list[npt.NDArray[np.float64]] = []
    splits: list[str] = []
    metadata: dict[str, list[Any]] = {name: [] for name in names}
    known: list[pa.Table] = []
    for part in parts:
        image = plan.images[part.image]
        ids += patch_ids(plan, part)
        image_ids += [image.id] * len(part)
        coverage.append(covered_share(plan, part))
        splits += [plan.split_names[k] for k in plan.split_of(part).tolist()]
        for name in names:
            metadata[name] += [image.metadata.get(name)] * len(part)
        if (columns := columns_of(plan, part)) is not None:
            known.append(columns)
    corner = np.concatenate([part.corner for part in parts])
    row = np.concatenate([part.row for part in parts])
    return {
        "patch_id": ids,
        "image_id": image_ids,
        "sample": np.concatenate([part.sample for part in parts]),
        **{f"start_{a}": corner[:, k] for k, a in enumerate(axes)},
        "coverage": np.concatenate(coverage),
        "split": splits,
        "row": row,
        **metadata,
        **({"class": np.concatenate(shard.classes)} if shard.classes else {}),
        **shard.counted.named(plan.classes, plan.balance),
        **{
            name: table[name].combine_chunks()
            for table in ([pa.concat_tables(known)] if known else [])
            for name in table.column_names
        },
    }
