"""Retrying: what is asked again, how often, and when it is given up.

File systems retry on their own, each in its way and within one another; here it is done once,
for whole reads and whole writes, which may be repeated at will.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

__all__ = ["RETRYING", "Retrying", "asked_again", "is_transient"]

Item = TypeVar("Item")
Found = TypeVar("Found")

_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP says: not now."""
_CODES = frozenset(
    {"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "TooManyRequests"}
    | {"Throttling", "ThrottlingException", "RequestLimitExceeded"}
    | {"BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"}  # broken on the way
)
_KINDS = frozenset(
    {"ConnectionError", "TimeoutError", "HTTPClientError", "ResponseParserError"}
    | {"ClientConnectionError", "ClientPayloadError", "IncompleteReadError"}
    | {"ChecksumError", "ServiceRequestError", "ServiceResponseError"}
)
"""Names of exceptions of a network that failed, as Python, botocore, aiohttp, gcsfs and Azure's
client call them: none of these packages has to be there."""
_NEVER = frozenset({"SSLError", "FileNotFoundError", "PermissionError"})


@dataclass(frozen=True)
class Retrying:
    """How often and how long something is tried: exponential pauses with jitter, both bounded."""

    attempts: int = 10
    """Tries in all: where each one fails with a chance of 30 %, one of 170,000 is given up."""
    first: float = 0.1
    """Longest pause after the first failure, in seconds; each next one may be twice as long."""
    longest: float = 5.0
    """No pause is longer."""
    total: float = 120.0
    """Seconds after which no further try begins."""

    def each(
        self, ask: Callable[[list[Item]], Sequence[Found | Exception]], items: Sequence[Item]
    ) -> list[Found | Exception]:
        """Ask for a batch, and again for those of it that failed for a while.

        Parameters
        ----------
        ask
            Gives one answer or one exception for each item, in order.
        items
            What to ask for.

        Examples
        --------
        >>> answers = iter([[1, TimeoutError()], [2]])
        >>> Retrying(first=0).each(lambda items: next(answers), ["a", "b"])
        [1, 2]
        """
        begun = time.monotonic()
        found = list(ask(list(items)))
        for tries in range(1, self.attempts + 1):
            again = [k for k, answer in enumerate(found) if _is_passing(answer)]
            if not again:
                break
            waited = time.monotonic() - begun
            if tries == self.attempts or waited > self.total:
                for k in again:
                    _note(found[k], f"tried {tries} times in {waited:.1f} s")
                break
            # Clients that were refused together must not come back together.
            _again.count += len(again)
            pause = min(self.longest, self.first * 2 ** (tries - 1))
            time.sleep(pause * random.uniform(0.5, 1.0))
            for k, answer in zip(again, ask([items[k] for k in again]), strict=True):
                found[k] = answer
        return found

    def call(self, function: Callable[[], Found]) -> Found:
        """The result of a function that may be called again; its last error if it has none.

        Examples
        --------
        >>> Retrying(attempts=2, first=0).call(lambda: 1 / 0)
        Traceback (most recent call last):
        ZeroDivisionError: division by zero
        """

        def ask(items: list[None]) -> list[Found | Exception]:
            try:
                return [function() for _ in items]
            except Exception as error:  # each file system has errors of its own
                return [error]

        [answer] = self.each(ask, [None])
        if isinstance(answer, Exception):
            raise answer
        return answer


class _Again(threading.local):
    """How often a thread asked again."""

    count = 0


_again = _Again()


def asked_again() -> int:
    """How many reads and writes the calling thread has tried again, since it began.

    >>> before = asked_again()
    >>> answers = iter([[TimeoutError()], [TimeoutError()], [1]])
    >>> Retrying(first=0).each(lambda items: next(answers), ["a"]), asked_again() - before
    ([1], 2)
    """
    return _again.count


RETRYING = Retrying()
"""What every read, write and listing of stored objects goes by."""


def is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed a little later.

    Throttling, errors of a server, and connections that broke, stalled or ended too early
    do; a missing object, a refused permission or a full disk do not.

    Examples
    --------
    >>> is_transient(ConnectionResetError()), is_transient(PermissionError())
    (True, False)
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & _NEVER:
        return False
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore
        code = response.get("Error", {}).get("Code")
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return code in _CODES or status in _STATUSES
    for name in ("status", "status_code", "code"):
        given = getattr(error, name, None)
        if isinstance(given, int | str) and str(given).isdigit():
            return int(given) in _STATUSES
    if names & _KINDS:
        return True
    # s3fs puts an OSError of its own in front of what was answered.
    return error.__cause__ is not None and is_transient(error.__cause__)


def _is_passing(answer: Any) -> bool:
    return isinstance(answer, Exception) and is_transient(answer)


def _note(answer: Any, text: str) -> None:
    if text not in getattr(answer, "__notes__", ()):
        answer.add_note(text)
