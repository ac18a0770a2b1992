"""Traffic: what one reading of some arrays moves."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Traffic"]


@dataclass(frozen=True)
class Traffic:
    """What is asked for and comes back; sums of them are of both."""

    reads: int = 0
    """Chunks decoded; an absent one counts."""
    requests: int = 0
    nbytes: int = 0
    """Bytes that come back."""
    known: int = 0
    """Those of them that are exact, because the store told the sizes of its objects."""
    decoded: int = 0
    """Bytes of pixels."""
    exact: bool = True
    """Whether requests and bytes are what an undisturbed run counts."""
    far_requests: int = 0
    """Requests over a network."""
    far_bytes: int = 0
    paid_requests: int = 0
    """Requests that cost money."""
    paid_bytes: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.reads + other.reads,
            self.requests + other.requests,
            self.nbytes + other.nbytes,
            self.known + other.known,
            self.decoded + other.decoded,
            self.exact and other.exact,
            self.far_requests + other.far_requests,
            self.far_bytes + other.far_bytes,
            self.paid_requests + other.paid_requests,
            self.paid_bytes + other.paid_bytes,
        )

    def over(self, *, far: bool, paid: bool) -> Traffic:
        """The same to a place that is far, or that costs money."""
        return Traffic(
            self.reads,
            self.requests,
            self.nbytes,
            self.known,
            self.decoded,
            self.exact,
            self.requests * far,
            self.nbytes * far,
            self.requests * paid,
            self.nbytes * paid,
        )
