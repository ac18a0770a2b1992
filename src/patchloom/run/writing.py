"""Writing: what one call of `materialize` does to a store, addition by addition."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import google_crc32c
import pyarrow as pa

from patchloom.errors import FingerprintError
from patchloom.image import Reads
from patchloom.location import Location
from patchloom.normalization import Normalization
from patchloom.planning.plans import Plan
from patchloom.run.appending import Stage, appended, leftovers, pending, told_of
from patchloom.run.cutting import Job
from patchloom.run.executing import execute
from patchloom.run.faults import Fault, faults_since
from patchloom.run.gaps import joined_losses
from patchloom.run.graph import run_graph
from patchloom.run.measuring import Measuring
from patchloom.run.scaling import Scaling, record, recorded
from patchloom.run.standing import Standing, record_sizes
from patchloom.run.surveying import channel_names
from patchloom.run.task_report import TaskReport
from patchloom.sources.lazily import reading_since
from patchloom.store.additions import n_rows_of, n_shards_of
from patchloom.store.manifest import skipped_bytes
from patchloom.store.patch_store import read_attributes
from patchloom.store.pending import check_pending
from patchloom.store.schema import (
    PARTIAL,
    SKIPPED,
    ArraySpec,
    as_json,
    group_document,
    summary_name,
    whole_name,
)
from patchloom.store.statistics_view import document, joined
from patchloom.store.summed import Found, summed
from patchloom.summaries.packed import summary_bytes

__all__ = ["Outcome", "Work", "documents"]

logger = logging.getLogger("patchloom")


@dataclass(frozen=True)
class Outcome:
    """What was done for one addition."""

    stage: Stage
    done: frozenset[int]
    """Shards that were finished before, counted in the addition."""
    survey: Reads
    surveyed: Found | None
    """What passes of their own have counted; once all is measured, what its statistics are of."""
    results: tuple[TaskReport, ...]
    apart: bool = False
    """Whether the summaries of its shards do not add up to that."""
    span: tuple[float, float] | None = None
    """When its tasks were begun and done, in seconds since 1970; None if there were none."""
    faults: tuple[Fault, ...] = ()
    """What went wrong meanwhile."""

    @property
    def written(self) -> list[int]:
        """Shards that were made, counted in the addition."""
        return [shard for shard in range(self.stage.plan.n_shards) if shard not in self.done]

    @property
    def read_for(self) -> list[int]:
        """Those of them for which this call's tasks read: others had not committed them."""
        passed = {shard for task in self.results for shard in task.passed}
        return [shard for shard in self.written if shard not in passed]

    @property
    def lost(self) -> list[pa.Table]:
        """The rows that are missing, with reasons."""
        return [table for task in self.results for table in task.skipped]


@dataclass(frozen=True)
class Work:
    """What a call writes, and how; the same for all additions of a store."""

    target: Location
    specs: Mapping[str, ArraySpec]
    measuring: Measuring
    scaling: Scaling
    skip: bool
    progress: bool
    since: float
    """When the call began, in seconds since 1970: a source must not be written after it."""

    def finish(
        self,
        standing: Sequence[Stage],
        existing: Mapping[str, Any] | None,
        attributes: Mapping[str, Any],
        found: Mapping[str, int],
    ) -> tuple[list[Outcome], Mapping[str, Any] | None]:
        """Make what the additions that a store has lack; its attributes, if it is complete.

        Parameters
        ----------
        standing
            The additions.
        existing
            Attributes of the store; None where nothing stands.
        attributes
            What they are to be, without statistics.
        found
            A listing of the store.
        """
        arrays = documents(self.specs, n_rows_of(attributes))
        n_shards = n_shards_of(attributes)
        there = Standing.of(self.target, found, self._ndims, n_shards)
        every = [_own(stage, there) for stage in standing]
        known = {} if existing is None else existing
        lacks = len(there.done) < n_shards or not {*known.get("summaries", ())} <= {*found}
        if known.get("complete") and not lacks:
            self._write_arrays(arrays, found)
            pairs = zip(standing, every, strict=True)
            return [Outcome(s, done, Reads(), None, ()) for s, done in pairs], known
        looks, numbers = [], recorded(existing)
        for stage, done in zip(standing, every, strict=True):
            look = self._survey(stage)
            if len(done) < stage.plan.n_shards:
                numbers, look = self._numbers(stage, numbers, *look)
            looks.append(look)
        if there.done:
            self._check_unrecorded({*recorded(existing)}, numbers)
        # Not earlier: what cannot be normalised leaves nothing behind.
        self._write_arrays(arrays, found)
        # Before the first shard: a resume goes by these numbers, and reads nothing for them.
        attributes = {**attributes, **record(numbers)}
        if existing is None or (known.get("complete") and lacks):
            # Not complete (any more): readers are told before anything else is written.
            self._write_group(attributes, arrays)
        outcomes = [
            self._make(s, d, there.suspect, numbers, *look)
            for s, d, look in zip(standing, every, looks, strict=True)
        ]
        found, n_done = self._settle(outcomes, n_shards)
        complete = n_done == n_shards
        now = read_attributes(self.target) or {}
        if complete and now.get("complete"):
            # Another call ended first, and may have appended to the store since.
            return outcomes, now
        outcomes = [self._measured(outcome, found, complete=complete) for outcome in outcomes]
        told = [self._statistics(outcome) for outcome in outcomes]
        # Statistics and the completion mark: one object, last.
        attributes = {**attributes, "complete": complete, "statistics": joined(told)}
        attributes |= self._write_summaries(outcomes)
        if not complete:
            n_lost = sum(table.num_rows for outcome in outcomes for table in outcome.lost)
            attributes["skipped"] = {"n_patches": n_lost, "n_shards": n_shards - n_done}
        self._write_group(attributes, arrays)
        return outcomes, attributes if complete else None

    def append(
        self, stage: Stage, attributes: Mapping[str, Any], found: Mapping[str, int]
    ) -> tuple[Outcome, Mapping[str, Any] | None]:
        """Make an addition to a complete store; the attributes with it, if it is whole.

        Until the last write the store is what it was: readers of it look no further.
        """
        from patchloom import __version__

        if self.progress:
            logger.info("materialize: %s", told_of(stage, self.target))
        done, suspect = frozenset[int](), frozenset[int]()
        n_shards = stage.addition.first_shard + stage.plan.n_shards
        is_begun = attributes.get("pending", {}).get("fingerprint") == stage.addition.fingerprint
        if is_begun:
            there = Standing.of(self.target, found, self._ndims, n_shards)
            done, suspect = _own(stage, there), there.suspect
        else:
            self.target.remove(leftovers(found, attributes))
        look, numbers = self._survey(stage), recorded(attributes)
        if is_begun:
            numbers |= recorded(attributes["pending"])
        numbers, look = self._numbers(stage, numbers, *look)
        if not is_begun:
            attributes = pending(attributes, stage)
            attributes["pending"] |= record(numbers)
            self._write_group(attributes, documents(self.specs, n_rows_of(attributes)))
        outcome = self._make(stage, done, suspect, numbers, *look, is_new=True)
        # Tasks may have passed over shards that another call made of other images.
        check_pending(self.target, stage.addition.fingerprint)
        found, n_done = self._settle([outcome], n_shards)
        if n_done < n_shards:
            return outcome, None
        if (now := check_pending(self.target, stage.addition.fingerprint)) is not None:
            # Whoever ended it may have appended more since.
            return outcome, now
        outcome = self._measured(outcome, found, complete=True)
        statistics = joined([attributes["statistics"], self._statistics(outcome)])
        kept = attributes.get("summaries", {})
        attributes = appended({**attributes, **record(numbers)}, stage, statistics, __version__)
        attributes |= self._write_summaries([outcome], kept)
        arrays = documents(self.specs, n_rows_of(attributes))
        for name, array in arrays.items():
            self.target.write(f"{name}/zarr.json", as_json(array))
        # Rows, statistics and images: one object, last.
        self._write_group(attributes, arrays)
        return outcome, attributes

    def _check_unrecorded(self, known: set[str], numbers: Mapping[str, Normalization]) -> None:
        """Refuse to go on with shards whose numbers are not recorded and cannot be had again."""
        if all(role in known or found.exact for role, found in numbers.items()):
            return
        raise FingerprintError(
            f"a store is normalised with one set of numbers, but the version that began "
            f"{self.target.shown!r} did not record them, and its bounded percentiles were others; "
            "give another URL, or finish it with that version; nothing was touched"
        )

    @property
    def _ndims(self) -> dict[str, int]:
        return {name: len(spec.patch_shape) for name, spec in self.specs.items()}

    def _write_arrays(self, arrays: Mapping[str, Any], found: Mapping[str, int]) -> None:
        for name, array in arrays.items():
            if f"{name}/zarr.json" not in found:
                self.target.write(f"{name}/zarr.json", as_json(array))

    def _write_group(self, attributes: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        self.target.write("zarr.json", as_json(group_document(attributes, arrays)))

    def _survey(self, stage: Stage) -> tuple[Found | None, Reads]:
        """What is of more than patches."""
        by = self.scaling.by
        return self.measuring.before(stage.plan, needed=False, progress=self.progress, by=by)

    def _numbers(
        self,
        stage: Stage,
        known: Mapping[str, Normalization],
        surveyed: Found | None,
        survey: Reads,
    ) -> tuple[dict[str, Normalization], tuple[Found | None, Reads]]:
        """What the patches of an addition are normalised with, and what was found beforehand."""
        numbers, found, reads = self.scaling.numbers(
            stage.plan, known, surveyed, progress=self.progress
        )
        return numbers, (found, survey + reads)

    def _make(
        self,
        stage: Stage,
        done: frozenset[int],
        suspect: frozenset[int],
        numbers: Mapping[str, Normalization],
        surveyed: Found | None,
        survey: Reads,
        *,
        is_new: bool = False,
    ) -> Outcome:
        """Write the shards of an addition that are missing."""
        plan, addition, measuring = stage.plan, stage.addition, self.measuring
        job = Job(
            self.target,
            self.specs,
            numbers,
            skip=self.skip,
            suspect=suspect,
            first_shard=addition.first_shard,
            first_image=addition.first_image,
            pending=addition.fingerprint if is_new else None,
            each=measuring.each,
        )
        missing = [shard for shard in range(plan.n_shards) if shard not in done]
        watched = plan.with_images([reading_since(image, self.since) for image in plan.images])
        graph, begun = run_graph(watched, job, missing, uuid.uuid4().hex), time.time()
        results = execute(
            graph,
            progress=self.progress,
            label="materialize",
            n_patches=_n_rows(plan, missing),
        )
        if not results:
            return Outcome(stage, done, survey, surveyed, ())
        span = begun, time.time()
        faults = faults_since(graph.keys[0][0], begun)
        return Outcome(stage, done, survey, surveyed, tuple(results), span=span, faults=faults)

    def _settle(self, outcomes: Sequence[Outcome], n_shards: int) -> tuple[Mapping[str, int], int]:
        """Write down what is there and what was lost; a listing, and the whole shards in it."""
        # Again: a run ends with what is there, not with what it believes to have written.
        found = self.target.list()
        there = Standing.of(self.target, found, self._ndims, n_shards, sized=False).done
        record_sizes(self.target, found, self._ndims, n_shards, there)
        # Of workers that were killed in this run.
        self.target.remove([name for name in found if PARTIAL.search(name)])
        lost = [table for outcome in outcomes for table in outcome.lost]
        if lost:
            self.target.write(SKIPPED, skipped_bytes(joined_losses(lost)))
        elif SKIPPED in found:
            self.target.remove([SKIPPED])
        return found, len(there)

    def _measured(self, outcome: Outcome, found: Mapping[str, int], *, complete: bool) -> Outcome:
        """An addition with the summaries that its statistics are made from."""
        stage, measuring = outcome.stage, self.measuring
        if not measuring.is_ridden:
            return replace(outcome, apart=True)
        bounded = _gathered(self.target, stage, found)
        # Where something could not be read, finer passes wait until it can.
        if not complete or not measuring.asks(bounded):
            return replace(outcome, surveyed=bounded)
        if outcome.surveyed is not None:
            return replace(outcome, apart=True)
        exact, reads = measuring.refined(
            stage.plan, bounded, since=self.since, progress=self.progress
        )
        return replace(outcome, surveyed=exact, survey=outcome.survey + reads, apart=True)

    def _statistics(self, outcome: Outcome) -> dict[str, Any]:
        """Of what could be read of an addition."""
        stage, measuring = outcome.stage, self.measuring
        channels = channel_names(stage.plan.images)
        return document(
            outcome.surveyed or {},
            stage.ids,
            channels,
            measuring.percentiles,
            measuring.over,
            each=measuring.each,
            method=measuring.method,
        )

    def _write_summaries(
        self, outcomes: Sequence[Outcome], kept: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Write the summaries that the shards' own do not add up to; the attribute that tells."""
        told = dict(kept or {})
        for outcome in outcomes:
            if not outcome.apart:
                continue
            addition = outcome.stage.addition
            known = (outcome.surveyed or {}).items()
            data = summary_bytes({(i + addition.first_image, c): s for (i, c), s in known})
            name = whole_name(addition.first_shard)
            self.target.write(name, data)
            told[name] = [len(data), google_crc32c.value(data)]
        return {"summaries": told} if told else {}


def documents(specs: Mapping[str, ArraySpec], n_rows: int) -> dict[str, Any]:
    """The metadata documents of the arrays of a store."""
    return {name: spec.document(n_rows) for name, spec in specs.items()}


def _own(stage: Stage, there: Standing) -> frozenset[int]:
    """The whole shards of an addition, counted in it."""
    first = stage.addition.first_shard
    return frozenset(shard for shard in range(stage.plan.n_shards) if first + shard in there.done)


def _n_rows(plan: Plan, shards: Sequence[int]) -> int:
    """Patches of some shards."""
    last = plan.n_shards - 1
    short = plan.n_shards * plan.rows_per_shard - plan.n_patches
    return len(shards) * plan.rows_per_shard - (short if shards and shards[-1] == last else 0)


def _gathered(target: Location, stage: Stage, found: Mapping[str, int]) -> Found:
    """The summaries of all shards of an addition that have one, added up."""
    first, image = stage.addition.first_shard, stage.addition.first_image
    names = [summary_name(first + shard) for shard in range(stage.plan.n_shards)]
    known = summed(target, [name for name in names if name in found])
    return {(i - image, c): summary for (i, c), summary in known.items()}
