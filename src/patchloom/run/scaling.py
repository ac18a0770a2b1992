"""Scaling: what the arrays of an addition are normalised with, recorded or surveyed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from patchloom.errors import ConfigError
from patchloom.image import Reads
from patchloom.normalization import Normalization
from patchloom.planning.plans import Plan
from patchloom.planning.subsets import fixed_split, subset
from patchloom.run.measuring import Measuring
from patchloom.run.surveying import channel_names
from patchloom.store import normalized
from patchloom.store.summed import Found

__all__ = ["Scaling", "record", "recorded"]

_ARRAYS = {"image": "images", "target": "targets"}
"""Roles that can be normalised, and their arrays in a store."""


@dataclass(frozen=True)
class Scaling:
    """Which arrays of a store are normalised, and how."""

    kinds: Mapping[str, str]
    """By role."""
    per: str
    measuring: Measuring
    """Which statistics they go by."""

    @classmethod
    def of(
        cls,
        plan: Plan,
        normalize: str | None,
        targets: str | None,
        per: str,
        measuring: Measuring,
    ) -> Scaling:
        """As `materialize` is asked for it.

        Raises
        ------
        ConfigError
            If there are no targets, no such column, or too few percentiles.
        """
        asked = {"image": normalize, "target": targets}
        if targets is not None and plan.images[0].target is None:
            raise ConfigError(
                f"normalize_targets={targets!r} is for images with targets, but the plan's have "
                "none; open them with target=, or leave it out"
            )
        if targets is not None and measuring.over == "mask":
            raise ConfigError(
                f"normalize_targets={targets!r} goes by pixels of patches or of whole targets, got "
                "over='mask', which lies over images; take over='patches' or 'image'"
            )
        kinds = {role: kind for role, kind in asked.items() if kind is not None}
        if not kinds and per != "image":
            raise ConfigError(
                f"per={per!r} says what normalize= and normalize_targets= go by, but neither is "
                "given; give one, or leave per= out"
            )
        ids, columns = [i.id for i in plan.images], [i.metadata for i in plan.images]
        for kind in kinds.values():
            # Of no pixel: what cannot be made is told before anything is read.
            q = measuring.percentiles
            Normalization.of(kind, {}, ids, (), per=per, columns=columns, q=q)
        return cls(kinds, per, measuring)

    @property
    def beyond(self) -> dict[str, Any]:
        """What a job says of it beside ``normalize``, where it is not as by default."""
        told = {"per": self.per if self.per != "image" else None}
        told["normalize_targets"] = self.kinds.get("target")
        return {name: value for name, value in told.items() if value is not None}

    @property
    def roles(self) -> tuple[str, ...]:
        """Of the arrays that are written as float32."""
        return tuple(self.kinds)

    @property
    def by(self) -> str | None:
        """What images are pooled by."""
        return None if self.per in ("channel", "all") else self.per

    def numbers(
        self,
        plan: Plan,
        known: Mapping[str, Normalization],
        surveyed: Found | None,
        *,
        progress: bool,
    ) -> tuple[dict[str, Normalization], Found | None, Reads]:
        """What is known and what these images lack, by role.

        Recorded numbers are never made anew: what was written with them stays comparable. So only
        the images of a plan are read that have none, and none at all where all are pooled.

        Parameters
        ----------
        plan
            Of the images that are to be written.
        known
            What the store has recorded.
        surveyed
            Statistics of all images of the plan, if these were taken anyway.
        progress
            Whether to show it.

        Returns
        -------
        dict, Found or None, Reads
            The numbers; the statistics of all images, if they were taken now or before; and what
            was read now.
        """
        found, reads = dict(known), Reads()
        ids = [image.id for image in plan.images]
        columns = [image.metadata for image in plan.images]
        for role, kind in self.kinds.items():
            old = known.get(role)
            lacking = [*range(len(ids))] if old is None else old.lacks(ids, columns)
            parts = [] if old is None else [old]
            if lacking:
                part = _part(plan, lacking)
                if role == "image" and surveyed is not None:
                    place = {k: n for n, k in enumerate(lacking)}
                    mine = {(place[i], c): s for (i, c), s in surveyed.items() if i in place}
                else:
                    mine, counted = self._survey(part, role, progress)
                    reads += counted
                    if role == "image" and part is plan:
                        surveyed = mine
                made = Normalization.of(
                    kind,
                    mine,
                    [ids[k] for k in lacking],
                    channel_names([image.cut_arrays[role] for image in plan.images]),
                    per=self.per,
                    columns=[columns[k] for k in lacking],
                    q=self.measuring.percentiles,
                    method=self.measuring.method,
                    over=self.measuring.over,
                )
                parts.append(made)
            found[role] = reduce(Normalization.joined, parts).with_images(ids, columns)
        return found, surveyed, reads

    def _survey(self, plan: Plan, role: str, progress: bool) -> tuple[Found, Reads]:
        found, reads = self.measuring.before(
            plan, needed=True, progress=progress, by=self.by, role=role
        )
        return found or {}, reads


def recorded(attributes: Mapping[str, Any] | None) -> dict[str, Normalization]:
    """What a store has recorded of its normalisation, by role."""
    told = normalized.recorded(attributes or {})
    return {role: told[array] for role, array in _ARRAYS.items() if array in told}


def record(numbers: Mapping[str, Normalization]) -> dict[str, Any]:
    """As it stands in the attributes of a store."""
    return normalized.record({_ARRAYS[role]: found for role, found in numbers.items()})


def _part(plan: Plan, which: Sequence[int]) -> Plan:
    """The plan of some of the images."""
    if len(which) == len(plan.images):
        return plan
    return subset(plan, which, plan.rows_per_shard, fixed_split(plan, which))
