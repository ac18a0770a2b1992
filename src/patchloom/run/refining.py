"""Refining: from the candidates of a plan to its patches, by content, splits and quotas.

Candidates stream by a few times, with what a survey found of them; only counters, and one bit a
candidate where some are left out, are held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.errors import ConfigError
from patchloom.planning.classes import ClassCounts
from patchloom.planning.distance import split_distance
from patchloom.planning.draws import Draw
from patchloom.planning.filters import lucky
from patchloom.planning.incidence import Patches
from patchloom.planning.narrowing import Narrowing
from patchloom.planning.plans import Plan
from patchloom.planning.quotas import class_quotas, image_quotas
from patchloom.run.contents import Contents
from patchloom.run.scoring import Survey

__all__ = ["asked", "refined"]

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
_BATCH = 2**18
"""Candidates that are looked at together where no survey cut them into parts."""
_MEASURED = 2**20
"""Patches of one image, at most, between which distances are measured."""
_BORDER = "in a guard band, or across splits"
_CLASSLESS = "shows none of the classes"
_IMAGE_QUOTA = "beyond the quota of its image"
_CLASS_QUOTA = "beyond the quota of its class"


@dataclass(frozen=True, eq=False)
class _Batch:
    """Some candidates, in the plan's order."""

    parts: list[Patches]
    columns: Mapping[str, npt.NDArray[np.float64]]
    classes: ClassCounts | None

    @property
    def image(self) -> Ints:
        """Which image each is of: int64[n]."""
        return np.concatenate([np.full(len(part), part.image) for part in self.parts])


Rule = Callable[[_Batch, Flags], Flags]
"""Which of some candidates it keeps, given those that are left."""


def asked(plan: Plan) -> Contents:
    """What must be known of each candidate to refine a plan."""
    ndim = len(plan.patch_size)
    by_coverage = any(not item.scores(ndim) for item in plan.filters)
    scores = {score: None for item in plan.filters for score in item.scores(ndim)}
    return Contents(tuple(scores), plan.balance is not None, by_coverage)


def refined(plan: Plan, survey: Survey | None) -> Plan:
    """The same plan with only those patches that its filters, splits and quotas leave.

    Parameters
    ----------
    plan
        Its candidates.
    survey
        What `asked` asks for of them; None if that is nothing.
    """
    refining = _Refining(plan, survey)
    return refining.done()


@dataclass
class _Refining:
    plan: Plan
    survey: Survey | None
    rules: list[tuple[str, Callable[[], Rule]]] = field(default_factory=list)
    """Reason and rule; a rule that counts is made anew for each walk."""

    def done(self) -> Plan:
        plan = self.plan
        _check_splits(plan)
        for k, item in enumerate(plan.filters):
            self.rules.append((item.reason, partial(self._filtered, k)))
        if plan.split is not None:
            self.rules.append((_BORDER, lambda: self._split))
        if plan.balance is not None:
            self._classes()
            plan = self.plan
            self.rules.append((_CLASSLESS, lambda: self._classed))
        if plan.quota is not None:
            self._image_quotas()
        if plan.balance is not None:
            self._class_quotas()
        return self._narrowed()

    # -- walking ------------------------------------------------------------------------

    def batches(self) -> Iterator[_Batch]:
        """All candidates, some at a time."""
        if self.survey is not None:
            for parts, counted in self.survey.walk():
                classes = ClassCounts.join(counted.classes) if counted.classes else None
                yield _Batch(parts, counted.scores(), classes)
            return
        plan = self.plan
        for start in range(0, plan.n_patches, _BATCH):
            yield _Batch(plan.patches(start, min(start + _BATCH, plan.n_patches)), {}, None)

    def left(self, rejected: Counter[str] | None = None) -> Iterator[tuple[_Batch, Flags]]:
        """All candidates and which are left by the rules so far."""
        rules = [(reason, make()) for reason, make in self.rules]
        for batch in self.batches():
            flags = np.ones(sum(len(part) for part in batch.parts), np.bool_)
            for reason, rule in rules:
                before = int(flags.sum())
                flags &= rule(batch, flags)
                if rejected is not None:
                    rejected[reason] += before - int(flags.sum())
            yield batch, flags

    # -- rules --------------------------------------------------------------------------

    def _filtered(self, which: int) -> Rule:
        plan, item = self.plan, self.plan.filters[which]
        ndim = len(plan.patch_size)

        def rule(batch: _Batch, flags: Flags) -> Flags:
            keeps = item.keeps(batch.columns, ndim)
            return keeps | self._lucky(batch)[:, which] if item.filtered_patch_prob else keeps

        return rule

    def _lucky(self, batch: _Batch) -> Flags:
        """Which candidates each filter keeps even if it rejects them: bool[n, n_filters]."""
        plan = self.plan
        keys = plan.patching.keys
        found = [
            lucky(plan.filters, plan.seed, keys[part.image], [part.sample, *part.corner.T])
            for part in batch.parts
        ]
        return np.concatenate(found)

    def _split(self, batch: _Batch, flags: Flags) -> Flags:
        return np.concatenate([self.plan.split_of(part) >= 0 for part in batch.parts])

    def _place(self, batch: _Batch) -> Ints:
        """Position of the class of each candidate; -1 of none, -2 where none is asked."""
        plan, balance = self.plan, self.plan.balance
        assert balance is not None
        assert batch.classes is not None
        place = batch.classes.assigned(plan.classes, balance)
        if balance.splits is not None:
            split = np.concatenate([plan.split_of(part) for part in batch.parts])
            balanced = [k for k, name in enumerate(plan.split_names) if name in balance.splits]
            place[~np.isin(split, balanced)] = -2
        return place

    def _classed(self, batch: _Batch, flags: Flags) -> Flags:
        return np.asarray(self._place(batch) != -1, np.bool_)

    # -- what must be counted first -----------------------------------------------------

    def _classes(self) -> None:
        """Order the classes by how many candidates show them."""
        balance = self.plan.balance
        assert balance is not None
        shown: Counter[int] = Counter()
        for batch, flags in self.left():
            assert batch.classes is not None
            some = batch.classes.counting(balance.min_fraction)
            values, n = np.unique(some.value[flags[some.patch]], return_counts=True)
            shown.update(dict(zip(values.tolist(), n.tolist(), strict=True)))
        listed = balance.listed
        names = list(shown) if listed is None else listed
        order = sorted(names, key=lambda name: (shown[name], name))
        self.plan = replace(self.plan, classes=tuple(order))

    def _image_quotas(self) -> None:
        plan, quota = self.plan, self.plan.quota
        assert quota is not None
        available = np.zeros(len(plan.images), np.int64)
        for batch, flags in self.left():
            here, n = np.unique(batch.image[flags], return_counts=True)
            available[here] += n
        shared = plan.balance is None
        taken = image_quotas(quota, plan.images, available, plan.seed, shared=shared)
        keys = [("image", key) for key in plan.patching.keys]

        def make() -> Rule:
            draw = Draw(available, taken, seed=plan.seed, keys=keys)
            return lambda batch, flags: draw.next(np.where(flags, batch.image, -1))

        self.rules.append((_IMAGE_QUOTA, make))

    def _class_quotas(self) -> None:
        plan, balance = self.plan, self.plan.balance
        assert balance is not None
        available = np.zeros(len(plan.classes), np.int64)
        for batch, flags in self.left():
            place = self._place(batch)[flags]
            available += np.bincount(place[place >= 0], minlength=len(available))
        total = None if plan.quota is None else plan.quota.n_patches
        names = dict(zip(plan.classes, available.tolist(), strict=True))
        counts = class_quotas(balance, names, total)
        taken = np.array([counts.get(name, 0) for name in plan.classes], np.int64)
        keys = [("class", name) for name in plan.classes]

        def make() -> Rule:
            draw = Draw(available, taken, seed=plan.seed, keys=keys)

            def rule(batch: _Batch, flags: Flags) -> Flags:
                place = self._place(batch)
                taken: Flags = draw.next(np.where(flags, place, -1)) | (place == -2)
                return taken

            return rule

        self.rules.append((_CLASS_QUOTA, make))

    # -- the plan -----------------------------------------------------------------------

    def _narrowed(self) -> Plan:
        plan = self.plan
        base = plan if self.survey is None else self.survey.plan
        rejected = Counter(dict(plan.rejected))
        narrowing = Narrowing(plan.images, plan.patching, base.cells)
        by_class: Counter[str] = Counter()
        for batch, flags in self.left(rejected):
            narrowing.add(flags)
            if plan.balance is not None:
                place = self._place(batch)[flags]
                values, n = np.unique(place[place >= 0], return_counts=True)
                names = [str(plan.classes[k]) for k in values.tolist()]
                by_class.update(dict(zip(names, n.tolist(), strict=True)))
        cells, stood = narrowing.cells()
        if self.survey is not None:
            # The survey went through the cells in an order of its own.
            stood = self.survey.order[stood]
            image = np.repeat(np.arange(len(plan.images)), np.diff(cells.bounds))
            cells = cells.take(np.lexsort((stood, image)))
        reasons = {k: v for k, v in rejected.items() if v or k in plan.rejected}
        reads = plan.planning_reads + (0 if self.survey is None else self.survey.reads.chunks)
        found = replace(
            plan,
            cells=cells,
            rejected=reasons,
            class_counts={str(k): by_class[str(k)] for k in sorted(plan.classes)},
            planning_reads=reads,
        )
        if plan.split is None:
            return found
        arrived = plan.n_patches - sum(rejected[why] for why in {f.reason for f in plan.filters})
        kept = (arrived - rejected[_BORDER]) / arrived if arrived else 1.0
        return replace(found, split_report=_split_report(found, kept))


def _check_splits(plan: Plan) -> None:
    named = [] if plan.balance is None else plan.balance.splits or []
    unknown = sorted({*named} - {*plan.split_names})
    if unknown:
        raise ConfigError(
            f"balance.splits names splits of the plan, which are {list(plan.split_names)}, got "
            f"{unknown}"
        )


def _split_report(plan: Plan, kept: float) -> dict[str, Any]:
    """The share that guard bands leave, and the smallest gap between splits of one image."""
    assert plan.split is not None
    found: dict[str, Any] = {"kept_fraction": kept}
    nearest: list[int] = []
    if (
        plan.split.by != "blocks"
        or (np.diff(plan.cells.rows_of(plan.cells.bounds)) > _MEASURED).any()
    ):
        return found
    for index in range(len(plan.images)):
        boxes = [(*plan.shown(part), plan.split_of(part)) for part in plan.walk_image(index)]
        if boxes:
            gap = split_distance(*(np.concatenate(column) for column in zip(*boxes, strict=True)))
            nearest += [] if gap is None else [gap]
    return {**found, "smallest_distance": min(nearest, default=None)}
