"""Where the pixels of an array come from, as a digest."""

from __future__ import annotations

from typing import Any

from patchloom.randomness import digest

__all__ = ["whereabouts"]


def whereabouts(source: Any) -> str:
    """128 bits, in hex, fixed by the whole URLs that a source reads; ``""`` if it reads none.

    What is shown of a URL lacks its query, which may say which array it is. A query may also be a
    secret, so that only the digest may be kept.
    """
    places = []
    while source is not None:
        stored = getattr(source, "stored", None)
        location = getattr(source, "location", None) or getattr(stored, "location", None)
        if location is not None:
            places.append(location.url)
        # What is made of another array comes from where that does.
        source = getattr(getattr(source, "image", None), "source", None)
    return digest("whereabouts", *places).hex() if places else ""
