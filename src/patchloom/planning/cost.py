"""Cost: what a plan will take before it is run: counts, bytes, memory, time and money."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

from patchloom.planning.prices import Prices
from patchloom.planning.traffic import Traffic
from patchloom.table import as_bytes, html_table

__all__ = ["Cost", "Money", "Output", "break_even"]


@dataclass(frozen=True)
class Money:
    """What something costs, by what it is for."""

    requests: float = 0.0
    egress: float = 0.0
    storage: float = 0.0
    compute: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.requests + self.egress + self.storage + self.compute

    def to_dict(self) -> dict[str, float]:
        """Parts and total."""
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True)
class Output:
    """What a run writes."""

    nbytes: int
    """Pixels before compression."""
    compression: float
    """Bytes before over bytes after it."""
    n_patches: int
    n_shards: int
    n_arrays: int
    """Images, and labels and targets."""
    far: bool = False
    """Whether it goes over a network."""
    paid: bool = False
    """Whether requests, egress and storage cost money there."""

    @property
    def stored(self) -> int:
        """Bytes after compression, about."""
        return round(self.nbytes / self.compression)

    @property
    def objects(self) -> int:
        """Objects of the finished store: shards, their manifest and summary parts, the sizes of
        all these, metadata.
        """
        return self.n_shards * (self.n_arrays + 2) + 1 + self.n_arrays + 1

    @property
    def writes(self) -> int:
        """Objects sent: the group's metadata are written twice, first and last."""
        return self.objects + 1

    def epoch(self) -> Traffic:
        """Reading every patch once, one request a patch and one an index of a shard."""
        n = (self.n_patches + self.n_shards) * self.n_arrays
        reads = self.n_patches * self.n_arrays
        moved = Traffic(reads, n, self.stored, 0, self.nbytes, exact=False)
        return moved.over(far=self.far, paid=self.paid)


@dataclass(frozen=True)
class Cost:
    """What a plan will take. Counts are those that `RunReport` gives after an undisturbed run."""

    n_images: int
    n_candidates: int
    """Patches and rejected ones."""
    n_patches: int
    rejected: Mapping[str, int]
    """Candidates left out, by reason; they add up with the patches."""
    chunks_needed: int
    """Distinct chunks of the images that patches touch."""
    chunk_reads: int
    """Decodes of the images' chunks."""
    role_reads: int
    """Decodes of chunks of labels and targets."""
    survey_reads: int
    """Decodes by passes before the writing one."""
    mask_reads: int
    """Decodes of chunks of masks, for the coverage column; no report counts them."""
    requests: int
    """Requests of the images, labels, targets and surveys, as `RunReport.requests`."""
    requests_exact: bool
    bytes_read: int
    """Bytes that come back to them, as `RunReport.bytes_read`."""
    bytes_known: int
    """Those of them that the store told exactly."""
    mask_requests: int
    mask_bytes: int
    bytes_decoded: int
    """Pixels that are decoded, masks included."""
    bytes_output: int
    """Pixels that are written, before compression: images, labels and targets."""
    bytes_stored: int
    """The same after compression, estimated."""
    compression: float
    n_shards: int
    objects_written: int
    n_tasks: int
    peak_memory: int
    """Bytes of the largest task."""
    workers: int
    seconds: float
    """Estimated time of the run at that many workers."""
    currency: str
    months: float
    money: Money
    """Estimated, of the run and of keeping its output for so many months."""
    epochs: int
    live_seconds: float
    """Of one epoch that samples from the source: each needed chunk once."""
    store_seconds: float
    """Of one epoch that reads the store."""
    live_money: float
    store_money: float
    break_even_seconds: int | None
    """First number of epochs at which run and store take no longer than live; None: never."""
    break_even_money: int | None
    prices: str
    """Name and date of the table of prices."""
    notes: tuple[str, ...] = field(default=())
    """What is estimated, and why."""

    @classmethod
    def of(
        cls,
        figures: Mapping[str, Any],
        *,
        run: Traffic,
        masks: Traffic,
        live: Traffic,
        output: Output,
        prices: Prices,
        workers: int,
        epochs: int,
        months: float,
        survey_reads: int = 0,
        notes: tuple[str, ...] = (),
    ) -> Cost:
        """The cost of what is moved; plain arithmetic.

        Parameters
        ----------
        figures
            `Plan.figures()`.
        run
            What images, labels, targets and surveys move.
        masks
            What the coverage column moves.
        live
            What one epoch moves that reads each needed chunk of the source once.
        output
            What is written.
        prices
            Prices and speeds.
        workers
            Threads that work at a time, in the run and in training.
        epochs
            Epochs to tell totals of.
        months
            How long the output is kept.
        survey_reads
            Decodes of passes before the writing one; they are part of `run`.
        notes
            What is estimated, and why.
        """
        n_tasks = int(figures["n_tasks"])
        moved = run + masks
        sent = output.writes * output.far, output.stored * output.far
        work = _seconds(prices, moved) + prices.writing_seconds(output.nbytes, *sent)
        work += prices.speed.shard_s * output.n_shards
        # Tasks are alike: the last round of them may leave workers idle.
        rounds = -(-n_tasks // workers)
        seconds = work * rounds / n_tasks if n_tasks else work
        live_seconds = _seconds(prices, live) / workers
        store_seconds = _seconds(prices, output.epoch()) / workers
        reading = _money(prices, moved, seconds, workers)
        written = prices.writing(output.writes) if output.paid else 0.0
        kept = prices.keeping(output.stored, months) if output.paid else 0.0
        money = Money(reading.requests + written, reading.egress, kept, reading.compute)
        live_money = _money(prices, live, live_seconds, workers).total
        store_money = _money(prices, output.epoch(), store_seconds, workers).total
        return cls(
            n_images=figures["n_images"],
            n_candidates=figures["n_candidates"],
            n_patches=figures["n_patches"],
            rejected=dict(figures["rejected"]),
            chunks_needed=figures["chunks_needed"],
            chunk_reads=figures["chunk_reads"],
            role_reads=figures["role_reads"],
            survey_reads=survey_reads,
            mask_reads=masks.reads,
            requests=run.requests,
            requests_exact=run.exact,
            bytes_read=run.nbytes,
            bytes_known=run.known,
            mask_requests=masks.requests,
            mask_bytes=masks.nbytes,
            bytes_decoded=moved.decoded,
            bytes_output=output.nbytes,
            bytes_stored=output.stored,
            compression=output.compression,
            n_shards=figures["n_shards"],
            objects_written=output.objects,
            n_tasks=n_tasks,
            peak_memory=figures["peak_memory"],
            workers=workers,
            seconds=seconds,
            currency=prices.currency,
            months=months,
            money=money,
            epochs=epochs,
            live_seconds=live_seconds,
            store_seconds=store_seconds,
            live_money=live_money,
            store_money=store_money,
            break_even_seconds=break_even(seconds, live_seconds, store_seconds),
            break_even_money=break_even(money.total, live_money, store_money),
            prices=f"{prices.name} ({prices.dated})",
            notes=notes,
        )

    @property
    def read_amplification(self) -> float:
        """Decodes of the images' chunks over needed chunks; 1.0 is every chunk once."""
        return self.chunk_reads / self.chunks_needed if self.chunks_needed else 1.0

    @property
    def bytes_exact(self) -> bool:
        """Whether `bytes_read` is what an undisturbed run counts."""
        return self.bytes_known == self.bytes_read and self.requests_exact

    def to_dict(self) -> dict[str, Any]:
        """All figures, JSON-ready."""
        return {
            **asdict(self),
            "money": self.money.to_dict(),
            "notes": list(self.notes),
            "read_amplification": self.read_amplification,
            "bytes_exact": self.bytes_exact,
            "live_seconds_all": self.live_seconds * self.epochs,
            "store_seconds_all": self.seconds + self.store_seconds * self.epochs,
            "live_money_all": self.live_money * self.epochs,
            "store_money_all": self.money.total + self.store_money * self.epochs,
        }

    def rows(self) -> list[tuple[str, str, str]]:
        """Key, label and value of each figure, in words."""
        told = self.to_dict()
        about = "" if self.bytes_exact else "about "
        exact = ", exact" if self.bytes_exact else ""
        left = ", ".join(f"{n:,} {why}" if n else why for why, n in self.rejected.items())
        masks = f"{self.mask_reads:,} decodes, {self.mask_requests:,} requests"
        masks = f"about {masks}, {as_bytes(self.mask_bytes)}" if self.mask_reads else "none"
        parts = ", ".join(
            f"{name} {self._cash(part)}" for name, part in told["money"].items() if name != "total"
        )
        rows = [
            ("n_candidates", "candidate patches", f"{self.n_candidates:,}"),
            ("n_patches", "patches", f"{self.n_patches:,}"),
            ("rejected", "left out", left or "none"),
            ("chunks_needed", "distinct chunks needed", f"{self.chunks_needed:,}"),
            ("chunk_reads", "chunk decodes", f"{self.chunk_reads:,}"),
            ("read_amplification", "decodes a needed chunk", f"{self.read_amplification:.2f}"),
            ("role_reads", "label and target decodes", f"{self.role_reads:,}"),
            ("survey_reads", "decodes of passes before", f"{self.survey_reads:,}"),
            ("mask_reads", "masks, beside these", masks),
            ("requests", "requests", f"{self._about_requests}{self.requests:,}"),
            ("bytes_read", "to fetch", f"{about}{as_bytes(self.bytes_read)}{exact}"),
            ("bytes_output", "output before compression", as_bytes(self.bytes_output)),
            ("bytes_stored", "output stored", f"about {as_bytes(self.bytes_stored)}"),
            ("n_shards", "output shards", f"{self.n_shards:,}"),
            ("objects_written", "objects written", f"{self.objects_written:,}"),
            ("n_tasks", "tasks", f"{self.n_tasks:,}"),
            ("peak_memory", "most memory of a task", as_bytes(self.peak_memory)),
            ("seconds", "time", f"about {_time(self.seconds)}, {self._workers}"),
            ("money", "money", f"about {self._cash(self.money.total)} ({parts})"),
            (
                "live_seconds",
                "an epoch live",
                f"about {_time(self.live_seconds)}, {self._cash(self.live_money)}",
            ),
            (
                "store_seconds",
                "an epoch from the store",
                f"about {_time(self.store_seconds)}, {self._cash(self.store_money)}",
            ),
            (
                "break_even_seconds",
                "the store saves",
                f"time {_from(self.break_even_seconds)}, money {_from(self.break_even_money)}",
            ),
            ("prices", "prices", self.prices),
        ]
        return [*rows, *(("notes", "estimated", note) for note in self.notes)]

    @property
    def _about_requests(self) -> str:
        return "" if self.requests_exact else "about "

    @property
    def _workers(self) -> str:
        return "1 worker" if self.workers == 1 else f"{self.workers:,} workers"

    def _cash(self, amount: float) -> str:
        # Three digits of what is small: a cheap job is not free.
        digits = 2 if amount >= 1 or not amount else min(8, 2 - math.floor(math.log10(amount)))
        return f"{amount:,.{digits}f} {self.currency}" if amount else f"0 {self.currency}"

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(label) for _, label, _ in rows)
        return "\n".join(f"{label:<{width}}  {text}" for _, label, text in rows)

    def __repr__(self) -> str:
        return (
            f"<Cost {self.n_patches:,} patches, {self.chunk_reads:,} chunk decodes, "
            f"{self.requests:,} requests, {as_bytes(self.bytes_read)} to fetch, "
            f"{as_bytes(self.bytes_output)} of output, {_time(self.seconds)}, "
            f"{self._cash(self.money.total)}>"
        )

    def _repr_html_(self) -> str:
        return html_table("Cost", {label: text for _, label, text in self.rows()})


def break_even(once: float, live: float, stored: float) -> int | None:
    """The least number of epochs n >= 1 with ``once + n * stored <= n * live``.

    Parameters
    ----------
    once
        What it takes to make the store.
    live, stored
        What an epoch takes from the source and from the store.

    Returns
    -------
    int or None
        None where no number of epochs is enough.

    Examples
    --------
    >>> break_even(10, live=3, stored=1), break_even(10, live=1, stored=1)
    (5, None)
    """
    gain = Fraction(live) - Fraction(stored)
    if once <= 0 and gain >= 0:
        return 1
    return max(1, math.ceil(Fraction(once) / gain)) if gain > 0 else None


def _seconds(prices: Prices, moved: Traffic) -> float:
    return prices.reading_seconds(moved.far_requests, moved.far_bytes, moved.decoded)


def _money(prices: Prices, moved: Traffic, seconds: float, workers: int) -> Money:
    requests, egress = prices.reading(moved.paid_requests, moved.paid_bytes)
    return Money(requests, egress, 0.0, prices.computing(seconds, workers))


def _from(epochs: int | None) -> str:
    if epochs is None:
        return "never"
    return f"from {epochs:,} epoch{'' if epochs == 1 else 's'}"


def _time(seconds: float) -> str:
    """A duration, at most three digits of it.

    >>> _time(0.34), _time(75), _time(7200)
    ('0.34 s', '75 s', '2.0 h')
    """
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
