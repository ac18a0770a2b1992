"""Measuring: which statistics a store gets, and what passes they take beside the writing one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any

from patchloom.errors import ChunkError, ConfigError
from patchloom.image import Image, Reads
from patchloom.planning.plans import Plan
from patchloom.run.ground import Question
from patchloom.run.passes import look
from patchloom.run.surveying import refined
from patchloom.store.summed import Found
from patchloom.summaries import METHODS, Summary, targets
from patchloom.summaries.asked import EACH, check_method, check_percentiles, check_pixels
from patchloom.summaries.subjects import Cell

__all__ = ["Measuring", "told_job"]

_RIDDEN = "patches"
"""What is counted in the writing pass."""

_NORMALIZED = "what patches are normalised with needs every pixel; normalize=None does not"
_APART = "these statistics need every pixel that over= names; over='patches' needs those of patches"
_TARGETS = "numbers of targets need every pixel; normalize_targets=None does not"
_EXACT = "exact statistics need every pixel once more; exact=False does not"


@dataclass(frozen=True)
class Measuring:
    """What the statistics of a store are of, and how they are made."""

    percentiles: tuple[float, ...]
    over: str = _RIDDEN
    each: str = EACH[0]
    exact: bool = False
    method: str = METHODS[0]

    @classmethod
    def of(
        cls, percentiles: Sequence[float], over: str, each: str, exact: bool, method: str
    ) -> Measuring:
        """Checked settings.

        Raises
        ------
        ConfigError
            If one is none of its choices, or they do not go together.
        """
        check_pixels(over, each)
        if exact not in (False, True):
            raise ConfigError(f"exact= is one of [False, True], got {exact!r}")
        return cls(check_percentiles(percentiles), over, each, bool(exact), check_method(method))

    def check(self, plan: Plan) -> None:
        """Refuse a plan that what is asked for cannot be counted of.

        Raises
        ------
        ConfigError
            If an image has no mask, and statistics are over masks.
        """
        bare = [image.id for image in plan.images if image.mask is None]
        if self.over == "mask" and bare:
            raise ConfigError(
                f"over='mask' counts what lies under the mask of each image, but {len(bare):,} of "
                f"{len(plan.images):,} have none, for example {bare[0]!r}; open them with mask=, "
                "or count over='patches' or 'image'"
            )

    def to_document(self) -> dict[str, Any]:
        """As it stands in the job of a store."""
        return {**asdict(self), "percentiles": list(self.percentiles)}

    @property
    def is_ridden(self) -> bool:
        """Whether the writing pass counts what is asked for, as far as one pass can."""
        return self.over == _RIDDEN

    def before(
        self,
        plan: Plan,
        *,
        needed: bool,
        progress: bool,
        by: str | None = "image",
        role: str = "image",
    ) -> tuple[Found | None, Reads]:
        """What must be known before the first patch is written, or is of more than patches.

        Parameters
        ----------
        plan
            Of the images.
        needed
            Whether patches are normalised with it.
        progress
            Whether to show it.
        by
            What else is to be exact, if anything is: sums over groups of images, see `refined`.
        role
            Of the arrays whose pixels count.
        """
        if self.is_ridden and not needed:
            return None, Reads()
        begun = time.time()
        why = _NORMALIZED if self.is_ridden else _APART
        with _telling(why if role == "image" else _TARGETS):
            counted, under, reads = look(
                self._question(role), _arrays(plan, role), self._followed(plan), progress=progress
            )
        found = _by_channel(counted)
        # Decodes are those of images; bytes and requests are of their masks besides.
        reads += replace(under, chunks=0)
        # Groups may ask for more than any of their images.
        if not self.exact:
            return found, reads
        found, more = self.refined(plan, found, since=begun, progress=progress, by=by, role=role)
        return found, reads + more

    def refined(
        self,
        plan: Plan,
        found: Found,
        *,
        since: float,
        progress: bool,
        by: str | None = "image",
        role: str = "image",
    ) -> tuple[Found, Reads]:
        """What is asked for, from bounded counts, by as many passes as that takes.

        Parameters
        ----------
        plan
            Of the images.
        found
            What a first pass has counted.
        since
            When it began, in seconds since 1970: no image may be written after it.
        progress
            Whether to show it.
        by
            ``"image"``; a metadata column, or None for all images: their sums are exact, too.
        role
            Of the arrays whose pixels count.
        """
        with _telling(_EXACT):
            finer, reads = refined(
                self._question(role),
                _arrays(plan, role),
                self._followed(plan),
                {Cell(*key): summary for key, summary in found.items()},
                self.percentiles,
                method=self.method,
                by=by,
                since=since,
                progress=progress,
            )
        return _by_channel(finer), reads

    def asks(self, found: Found) -> bool:
        """Whether finer passes are needed."""
        q, method = self.percentiles, self.method
        wanted = (targets(s, q, method, median=True) for s in found.values())
        return self.exact and any(target is not None for target in wanted)

    def _question(self, role: str) -> Question:
        return Question(self.over, self.each, role=role)

    def _followed(self, plan: Plan) -> Plan | None:
        return plan if self.is_ridden else None


@contextmanager
def _telling(why: str) -> Iterator[None]:
    """Say why a pass needs a chunk that cannot be read."""
    try:
        yield
    except ChunkError as error:
        raise type(error)(f"{error}; {why}") from error


def _arrays(plan: Plan, role: str) -> list[Image]:
    """What is counted of each image, under its name."""
    return [
        replace(image.cut_arrays[role], id=image.id, metadata=image.metadata)
        for image in plan.images
    ]


def _by_channel(found: Mapping[Cell, Summary]) -> Found:
    return {(cell.image, cell.channel): summary for cell, summary in found.items()}


def told_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """The job of a store with what older versions had no choice about, and so did not tell."""
    known = {f.name: f.default for f in fields(Measuring) if f.default is not MISSING}
    return {**known, **job}
