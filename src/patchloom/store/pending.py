"""Whose turn it is: which addition a store is being given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from patchloom.errors import ExistsError
from patchloom.location import Location
from patchloom.store.patch_store import read_attributes

__all__ = ["check_pending"]


def check_pending(target: Location, fingerprint: str) -> Mapping[str, Any] | None:
    """Refuse to go on with an addition that another call took from the store meanwhile.

    Parameters
    ----------
    target
        The store; one object of it is read.
    fingerprint
        Of the addition.

    Returns
    -------
    dict or None
        The attributes of the store, if another call of the same job has ended the addition.

    Raises
    ------
    ExistsError
        If the store is given other images by now.
    """
    now = read_attributes(target) or {}
    begun = now.get("pending", {}).get("fingerprint")
    has = [item["fingerprint"] for item in now.get("additions", ())]
    if fingerprint not in (begun, *has):
        raise ExistsError(
            f"a store is given images by one call at a time, but another one adds others to "
            f"{target.shown!r}; let it end, then run again with its images besides"
        )
    return now if fingerprint in has else None
