"""What a worker does: read each block once, cut, count, encode and write whole shards."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import google_crc32c
import numcodecs.blosc
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from patchloom.errors import ChunkError, SourceChangedError, WriteError
from patchloom.image import ChunkReader, Image, Layout
from patchloom.location import Location
from patchloom.normalization import Normalization
from patchloom.planning.incidence import Cut, Patches, touches
from patchloom.planning.lenses import around, is_context
from patchloom.planning.plans import Plan
from patchloom.planning.runs import GATHER, fetch_bytes
from patchloom.retrying import asked_again
from patchloom.run.allocating import keep_pages
from patchloom.run.blocks import BlockCache, Meter, Supplied
from patchloom.run.centers import goes_by_class
from patchloom.run.contents import Contents
from patchloom.run.gaps import Losses, lost_rows
from patchloom.run.manifest_rows import rows_of_manifest
from patchloom.run.nearby import Nearby
from patchloom.run.sharing import Share, Visit, legs_from_here, visit_to
from patchloom.run.task_report import TaskReport
from patchloom.run.union import counted
from patchloom.run.worksite import Worksite, most_resident
from patchloom.store.manifest import manifest_bytes
from patchloom.store.pending import check_pending
from patchloom.store.schema import (
    ArraySpec,
    array_of,
    gap_name,
    manifest_name,
    shard_name,
    summary_name,
)
from patchloom.store.shards import ShardBuilder
from patchloom.summaries import Summary, Tally
from patchloom.summaries.packed import summary_bytes

__all__ = ["Job", "steps_of", "write_run"]

Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[Any]
ArrayKey = tuple[int, str]
"""Position of an image and the role of the array, for example "image", "labels" or "target"."""


@dataclass(frozen=True)
class Job:
    """What every task of a run needs besides the plan."""

    target: Location
    """Where shards go."""
    specs: Mapping[str, ArraySpec] = field(default_factory=dict)
    """Arrays of the store by name."""
    scaling: Mapping[str, Normalization] = field(default_factory=dict)
    """What the arrays are normalised with that are, by role."""
    skip: bool = False
    """Whether a chunk that cannot be read costs its patches instead of the run."""
    suspect: frozenset[int] = frozenset()
    """Shards, by their number in the store, to make anew although a part of the manifest stands
    for them."""
    first_shard: int = 0
    """Number in the store of the plan's first shard."""
    first_image: int = 0
    """Position in the store of the plan's first image."""
    pending: str | None = None
    """Fingerprint of the addition that is being made, if it is one to a store."""
    each: str = "once"
    """How often a pixel counts in the statistics that ride along."""

    def arrays(self, image: Image) -> dict[str, Image]:
        """The arrays of an image that this job reads."""
        return image.cut_arrays


@dataclass
class _Shard:
    """A shard in the making."""

    number: int
    builders: dict[str, ShardBuilder] = field(default_factory=dict)
    """By array, from its first patch on."""
    parts: list[Patches] = field(default_factory=list)
    """Its patches, image by image."""
    tallies: dict[tuple[int, int], Tally] = field(default_factory=dict)
    summaries: dict[tuple[int, int], Summary] = field(default_factory=dict)
    told: dict[str, Pixels] = field(default_factory=dict)
    """What was found of each row beside its pixels, by columns of the manifest."""
    left: int = 0
    """Rows that are not stored yet."""
    due: int = 0
    """Turns to come of those whose blocks are counted here."""
    lost: list[tuple[Ints, Pixels]] = field(default_factory=list)
    """Slots of patches that cannot be cut, and why."""
    written: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Bytes and checksum of its objects."""
    uncounted: bool = False
    """Whether a block is missing in its statistics."""

    def tell(self, slots: Ints, columns: Mapping[str, Pixels]) -> None:
        """Set columns of some rows."""
        for name, values in columns.items():
            if name not in self.told:
                self.told[name] = np.zeros(sum(len(part) for part in self.parts), values.dtype)
            self.told[name][slots] = values

    def settle(self, meter: Meter, image: int | None = None) -> None:
        """Turn tallies (of one image) into summaries, which are small."""
        for key in [k for k in self.tallies if image is None or k[0] == image]:
            tally = self.tallies.pop(key)
            meter.give(tally.nbytes)
            # A task may come by an image more than once.
            self.summaries[key] = self.summaries.get(key, Summary.empty()) + tally.summary()


@dataclass
class _Run:
    """A task while it works."""

    plan: Plan
    job: Job
    supplied: dict[ArrayKey, Supplied]
    visit: Visit | None = None
    """Its place among the tasks that share blocks."""
    meter: Meter = field(default_factory=Meter)
    spare: dict[str, list[npt.NDArray[np.uint8]]] = field(default_factory=lambda: defaultdict(list))
    """Buffers of shards that are written, by array: the next shards take them."""
    codec_paths: Counter[str] = field(default_factory=Counter)
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            (
                "chunk_reads",
                "chunks_owned",
                "role_reads",
                "bytes_read",
                "requests",
                "bytes_written",
            ),
            0,
        )
    )

    def reader(self, image: int, name: str, array: Image) -> ChunkReader:
        """A reader of the chunks of an array."""
        supplied = self.supplied.get((image, name))
        if supplied is None:
            return array.source.reader()
        # Chunks that were handed over are counted once, however often the task comes by.
        self.supplied[image, name] = replace(supplied, fresh=frozenset())
        return supplied.reader()


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
        If a needed chunk cannot be read, with the patches that it costs, unless the job skips.
    WriteError
        If the target refuses an object.
    """
    begun, began, tries = time.perf_counter(), time.time(), asked_again()
    # Blosc's own threads write blocks in the order in which they finish: bytes would differ
    # from run to run. Dask's threads are the parallelism here.
    numcodecs.blosc.use_threads = False
    keep_pages()
    left = _left(job, list(shards))
    gone = {*shards} - {*left}
    run = _Run(plan, job, dict(supplied or {}))
    remote = not job.target.is_local
    gaps, lost = [], []
    waiting = list(left)
    try:
        scaled = tuple(job.scaling)
        for leg, some in legs_from_here(plan, left, normalized=scaled, remote=remote):
            with visit_to(plan, leg, normalized=scaled, remote=remote) as run.visit:
                for shard in _walk(run, some):
                    rows = _commit(run, shard)
                    waiting.remove(shard.number)
                    if rows is not None:
                        gaps.append(shard.number)
                        lost.append(rows)
    except WriteError as error:
        n_rows = sum(_n_rows(plan, number) for number in waiting)
        cost = ", ".join(f"{job.first_shard + number}" for number in waiting)
        raise WriteError(f"{error} ({n_rows:,} patches of output shards {cost} wait)") from error
    n_patches = sum(_n_rows(plan, number) for number in shards)
    site = Worksite.here()
    return TaskReport(
        **run.counts,
        n_patches=n_patches - sum(rows.num_rows for rows in lost),
        n_shards=len(shards),
        passed=tuple(sorted(gone)),
        peak_memory=run.meter.peak,
        codec_paths=dict(run.codec_paths),
        gaps=tuple(gaps),
        skipped=tuple(rows for rows in lost if rows.num_rows),
        seconds=time.perf_counter() - begun,
        began=began,
        where=site.process,
        thread=site.thread,
        retried=asked_again() - tries,
        resident=most_resident(),
    )


def _left(job: Job, shards: list[int]) -> list[int]:
    """The shards that no earlier execution of this task, or other client, has committed."""
    target = job.target
    first = job.first_shard
    fresh = [number for number in shards if first + number not in job.suspect]
    # One request: who comes first finds nothing.
    if not fresh or target.read(manifest_name(first + fresh[0])) is None:
        return shards
    there = {n for n in fresh[1:] if target.read(manifest_name(first + n)) is not None}
    return [number for number in shards if number not in {fresh[0], *there}]


def _n_rows(plan: Plan, shard: int) -> int:
    return min(plan.rows_per_shard, plan.n_patches - shard * plan.rows_per_shard)


def _walk(run: _Run, shards: Sequence[int]) -> Iterator[_Shard]:
    """Cut the shards, yielding each as soon as it is full and all it counts was counted."""
    plan = run.plan
    begun: dict[int, _Shard] = {}
    for number in shards:
        n = _n_rows(plan, number)
        begun[number] = _Shard(number, left=n, due=n)
    tour = plan.tour(shards)
    for part in tour:
        shard = part.row // plan.rows_per_shard
        order = np.argsort(shard, kind="stable")
        for some in np.split(order, np.flatnonzero(np.diff(shard[order])) + 1):
            found = begun.get(int(shard[some[0]]))
            if found is not None:
                found.parts.append(part.take(some))
    for part in tour:
        yield from _cut_image(run, part, begun)


def _cut_image(run: _Run, part: Patches, begun: dict[int, _Shard]) -> Iterator[_Shard]:
    """Cut patches of one image into the shards that they go to."""
    plan, index = run.plan, part.image
    image, sample, corner = plan.images[index], part.sample, part.corner
    rows = plan.rows_per_shard
    turn = plan.sequence.turns_of(part.rank)
    shard, slot = np.divmod(part.row, rows)
    asked = np.isin(shard, [*begun])
    step = steps_of(part.cell, turn // rows, plan)
    place = part.place if goes_by_class(plan.config) else None
    arrays, contents = run.job.arrays(image), Contents.of(plan)
    samples = {name: array.layout.own_samples(sample) for name, array in arrays.items()}
    caches: dict[str, BlockCache] = {}
    places: dict[str, Ints] = {}
    cuts: dict[str, Cut] = {}
    losses = Losses(len(corner))
    for name, array in arrays.items():
        places[name], cuts[name] = around(image, name, corner, plan.cut)
        pairs = partial(touches, array.layout, samples[name], places[name], cuts[name])
        patch, block = pairs()
        counter = missed = share = None
        shares = run.visit is not None and array.source.addressable and not is_context(name)
        if name == "image" or shares:
            near = Nearby.of(plan, index, array.layout, np.unique(block), sample, part)
        if name == "image":
            span = int(turn[0]), int(turn[-1])
            counter, missed = _counter(run, index, array.layout, near, span, begun)
        if run.visit is not None and shares:
            share = Share(run.visit, index, name, near.shared(plan))
        reader = run.reader(index, name, array)
        broken = losses.watch(pairs, missed) if run.job.skip else None
        caches[name] = BlockCache(
            array,
            step[patch],
            block,
            reader,
            run.meter,
            counter,
            broken,
            share,
            fetch_bytes(plan.memory),
        )
    bounds = np.flatnonzero(np.diff(step)) + 1
    starts = np.concatenate([[0], bounds])
    stops = np.concatenate([bounds, [len(step)]])
    try:
        for k, (a, b) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
            whole = some = a + np.flatnonzero(asked[a:b])
            into = _by_shard(begun, shard[some])
            for name, cache in caches.items():
                cache.enter(k)
                if losses.reasons:
                    some, _ = losses.split(whole)
                    into = _by_shard(begun, shard[some])
                if len(some):
                    pixels = cache.windows(int(samples[name][a]), places[name][some], cuts[name])
                    shown = contents.of_batch(plan, name, pixels)
                    for current, which in into:
                        current.tell(slot[some[which]], {k: v[which] for k, v in shown.items()})
                    if place is not None and name == "labels":
                        classes = _classes(image, pixels, corner[some], place[some])
                        for current, which in into:
                            current.tell(slot[some[which]], {"class": classes[which]})
                    _store(run, into, slot[some], name, index, pixels)
                    del pixels  # or they would be held beside the next ones
                cache.leave(k)
            if losses.reasons:
                into = _by_shard(begun, shard[whole])
                lost = losses.split(whole)[1]
                for current, which in _by_shard(begun, shard[lost]):
                    current.lost.append((slot[lost[which]], losses.told(lost[which])))
            for current, which in into:
                current.left -= len(which)
            counted = begun.get(int(turn[a]) // rows)
            if counted is not None:
                counted.due -= b - a
                if not counted.due:
                    _conclude(run, counted)
            ready = {current.number: current for current, _ in into}
            if counted is not None:
                ready[counted.number] = counted
            for number in sorted(ready):
                current = ready[number]
                if current.left or current.due:
                    continue
                yield current
                for name, builder in current.builders.items():
                    run.spare[name].append(builder.buffer)
                current.builders.clear()
    except (ChunkError, SourceChangedError) as error:
        waiting = sorted({*np.unique(shard[asked]).tolist(), *np.unique(turn // rows).tolist()})
        first = run.job.first_shard
        cost = ", ".join(f"{first + number}" for number in waiting if number in begun)
        out = "; on_error='skip' goes on without the patches that need it"
        raise type(error)(
            f"{error} (image {image.id!r}; {len(shard):,} patches of output shards {cost} wait for "
            f"it{out if isinstance(error, ChunkError) else ''})"
        ) from error
    finally:
        for shard_begun in begun.values():
            shard_begun.settle(run.meter, index)
        for name, cache in caches.items():
            reads = cache.reads
            run.counts["chunk_reads" if name == "image" else "role_reads"] += reads.chunks
            run.codec_paths[reads.codecs] += reads.chunks
            run.counts["bytes_read"] += reads.nbytes
            run.counts["requests"] += reads.requests


def _by_shard(begun: Mapping[int, _Shard], shard: Ints) -> list[tuple[_Shard, Ints]]:
    """The shards in the making that some patches go to, and which patches."""
    return [(begun[int(shard[which[0]])], which) for which in _equal(shard)]


def _equal(values: Ints) -> list[Ints]:
    """Positions of equal values, value by value."""
    if not len(values):
        return []
    if (values == values[0]).all():
        return [np.arange(len(values))]
    order = np.argsort(values, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(values[order])) + 1)


def _classes(image: Image, labels: Pixels, corner: Ints, place: Ints) -> Pixels:
    """The labels at the centre pixels of some patches, out of their label patches."""
    pixel = np.stack(np.unravel_index(place, image.layout.space.shape), -1)
    found: Pixels = labels[(np.arange(len(labels)), 0, *(pixel - corner).T)]
    return found


def steps_of(cell: Ints, shard: Ints, plan: Plan) -> Ints:
    """Number the steps of a walk: one cell of one shard, in pieces of bounded size."""
    change = np.ones(len(cell), np.bool_)
    change[1:] = (np.diff(cell) != 0) | (np.diff(shard) != 0)
    begin = np.maximum.accumulate(np.where(change, np.arange(len(cell)), 0))
    size = int(np.prod(plan.patch_shape)) * plan.dtype.itemsize
    limit = max(1, GATHER // max(1, size))
    change |= (np.arange(len(cell)) - begin) % limit == 0
    return np.cumsum(change) - 1


def _store(
    run: _Run,
    into: Sequence[tuple[_Shard, Ints]],
    slot: Ints,
    name: str,
    image: int,
    pixels: Pixels,
) -> None:
    """Put patches into the shards that they go to."""
    if (scaling := run.job.scaling.get(name)) is not None:
        pixels = scaling.apply(pixels, run.plan.images[image].id)
    run.meter.take(pixels.nbytes)
    for shard, which in into:
        builder = _builder(run, shard, array_of(name))
        builder.put(slot[which], (pixels[k] for k in which.tolist()))
    run.meter.give(pixels.nbytes)


def _builder(run: _Run, shard: _Shard, array: str) -> ShardBuilder:
    """What collects a shard of an array, in memory that a finished shard had where there is any."""
    if array not in shard.builders:
        spare = run.spare[array].pop() if run.spare[array] else None
        n_rows = _n_rows(run.plan, shard.number)
        builder = shard.builders[array] = ShardBuilder(run.job.specs[array], n_rows, spare)
        run.meter.take(builder.buffer.nbytes - (0 if spare is None else spare.nbytes))
    return shard.builders[array]


def _counter(
    run: _Run,
    index: int,
    layout: Layout,
    near: Nearby,
    span: tuple[int, int],
    begun: dict[int, _Shard],
) -> tuple[Callable[[int, Pixels], None], Callable[[int], None]]:
    """A function that counts a block's pixels when it arrives, each pixel once, and one to
    tell that it never will.

    A block belongs to the shard of the first turn that touches it, wherever that turn is
    written; only that shard's task counts it, when it comes by in that turn, over the union
    of all patches of the plan.
    """
    space, sample = layout.space, layout.own_samples(near.patches.sample)
    origin = space.unflat(near.blocks % space.n_chunks) * np.asarray(space.chunks)
    position, samples = layout.samples_of(near.blocks)
    first = np.searchsorted(position, np.arange(len(near.blocks) + 1))
    owner = near.turn[near.patch[near.begin]]
    here = (owner >= span[0]) & (owner <= span[1])
    owner //= run.plan.rows_per_shard
    place = {block: k for k, block in enumerate(near.blocks.tolist())}

    def count(flat: int, pixels: Pixels) -> None:
        k = place[flat]
        shard = begun.get(int(owner[k]))
        if shard is None or not here[k]:
            return
        run.counts["chunks_owned"] += layout.chunks_per_block
        members = near.patch[near.begin[k] : near.end[k]]
        corner = near.patches.corner[members] - origin[k]
        own = samples[first[k] : first[k + 1]]
        _tally(run, shard, index, pixels, own, sample[members], corner)

    def missed(flat: int) -> None:
        k = place[flat]
        shard = begun.get(int(owner[k]))
        if shard is not None and here[k]:
            shard.uncounted = True

    return count, missed


def _tally(
    run: _Run,
    shard: _Shard,
    index: int,
    pixels: Pixels,
    samples: Ints,
    own: Ints,
    corner: Ints,
) -> None:
    """Count a block: its samples, and the sample and corner in the block of each patch there."""
    size, image = np.asarray(run.plan.cut.size), run.plan.images[index]
    extent = np.asarray(pixels.shape[2:])
    low = np.minimum(np.maximum(corner, 0), extent)
    high = np.minimum(np.maximum(corner + size, 0), extent)
    for inside, sample in enumerate(samples.tolist()):
        mine = own == sample
        if not mine.any():
            continue
        for some, where, times in counted(run.job.each, low[mine], high[mine], pixels.shape[2:]):
            for channel in range(pixels.shape[1]):
                tally = shard.tallies.get((index, channel))
                if tally is None:
                    tally = shard.tallies[index, channel] = Tally(pixels.dtype, image.nodata)
                    run.meter.take(tally.nbytes)
                plane = pixels[inside, channel][some]
                before = tally.nbytes
                tally.add(plane if where is None else plane[where], times)
                run.meter.take(tally.nbytes - before)


def _commit(run: _Run, shard: _Shard) -> pa.Table | None:
    """Write a full shard whose part of the statistics is written: pixels, then the manifest.

    Returns the rows that it lacks, with reasons; None if nothing is missing.
    """
    plan, job = run.plan, run.job
    target, number = job.target, job.first_shard + shard.number
    first_row = job.first_shard * plan.rows_per_shard
    none = np.zeros(0, np.int64)
    lost = np.concatenate([none, *(slots for slots, _ in shard.lost)])
    reasons = np.concatenate([np.zeros(0, object), *(why for _, why in shard.lost)])
    row = lost + shard.number * plan.rows_per_shard
    if job.pending is not None:
        check_pending(target, job.pending)
    if number in job.suspect:
        # It stands for objects that are damaged, or that may soon hold fewer rows.
        target.remove([manifest_name(number)])
    try:
        table = pa.table(_manifest(plan, shard, first_row))
    except ChunkError as error:  # of a mask, which says how much of a patch is covered
        if not job.skip:
            raise
        row = shard.number * plan.rows_per_shard + np.arange(_n_rows(plan, shard.number))
        why = np.full(len(row), str(error), object)
        return lost_rows(plan, shard.parts, row, why, first_row)
    for name in job.specs:
        # Without a single row, too: what stands there may be of an earlier run.
        builder = _builder(run, shard, name)
        parts = builder.finish(lost)
        size = sum(len(part) for part in parts)
        copied = 0 if target.is_local else size
        run.meter.take(copied)
        shard.written[name] = size, builder.seal
        target.write(shard_name(job.specs[name], number), *parts)
        run.meter.give(copied)
        run.counts["bytes_written"] += size
    # The part of the manifest comes last: it says that all the others are there.
    if not len(lost) and not shard.uncounted:
        data = manifest_bytes(table, shard.written)
        target.write(manifest_name(number), data)
        run.counts["bytes_written"] += len(data)
        if number in job.suspect:
            target.remove([gap_name(number)])
        return None
    # A part of another name: it commits the rows that are there, and says that some are not.
    kept = ~np.isin(table["row"].to_numpy(), row + first_row)
    data = manifest_bytes(table.filter(pa.array(kept)), shard.written)
    target.write(gap_name(number), data)
    run.counts["bytes_written"] += len(data)
    target.remove([manifest_name(number)])
    return lost_rows(plan, shard.parts, row, reasons, first_row)


def _conclude(run: _Run, shard: _Shard) -> None:
    """Write what a shard adds to the statistics: nothing more will be counted for it."""
    shard.settle(run.meter)
    job = run.job
    if job.pending is not None:
        check_pending(job.target, job.pending)
    data = summary_bytes({(i + job.first_image, c): s for (i, c), s in shard.summaries.items()})
    shard.written["summary"] = len(data), google_crc32c.value(data)
    job.target.write(summary_name(job.first_shard + shard.number), data)
    run.counts["bytes_written"] += len(data)
    shard.summaries.clear()


def _manifest(plan: Plan, shard: _Shard, first_row: int) -> dict[str, Any]:
    """The columns of one shard's part of the manifest; the plan's rows begin at `first_row`."""
    row = np.concatenate([part.row for part in shard.parts])
    told = {name: column[row - row.min()] for name, column in shard.told.items()}
    columns = rows_of_manifest(plan, shard.parts, told, first_row)
    if (np.diff(row) > 0).all():
        return columns
    table = pa.table(columns).take(pa.array(np.argsort(row)))
    return {name: table[name] for name in table.column_names}
