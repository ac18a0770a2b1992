"""Names: text from data as the name of a file, never as a path."""

from __future__ import annotations

import re

from patchloom.randomness import digest

__all__ = ["safe_name"]

_PLAIN = re.compile(r"[^A-Za-z0-9_\-]")
_LONGEST = 120


def safe_name(text: str) -> str:
    """A name of letters, digits, ``_``, ``-`` and ``=``: the same text only for the same text.

    Other characters stand as the hexadecimal digits of their UTF-8 after a ``=``; of a long name
    the end is a digest.

    >>> safe_name("A06-1"), safe_name("../up"), safe_name("a.b")
    ('A06-1', '=2E=2E=2Fup', 'a=2Eb')
    """
    made = _PLAIN.sub(
        lambda found: "".join(f"={b:02X}" for b in found[0].encode("utf-8", "surrogatepass")), text
    )
    if len(made) > _LONGEST:
        made = f"{made[: _LONGEST - 33]}={digest(text).hex()}"
    return made or "="
