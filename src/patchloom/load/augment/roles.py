"""Roles: what the arrays of a batch are, and so how each is moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from patchloom.errors import ConfigError

__all__ = ["ROLES", "role_of"]

ROLES = ("image", "context", "target", "label", "weight", "still")
"""What an array can be."""

_BEGINNINGS = {
    "image": "image",
    "context": "context",
    "target": "target",
    "label": "label",
    "mask": "label",
    "weight": "weight",
}
"""How the names of a store's arrays begin."""


def role_of(name: str, array: Any, roles: Mapping[str, str]) -> str:
    """What an array is: told, or by its name.

    Parameters
    ----------
    name
        In the batch.
    array
        With fewer than three dimensions it is no picture, and stays still.
    roles
        Told by the user, by name.

    Returns
    -------
    str
        One of `ROLES`.

    Raises
    ------
    ConfigError
        If nothing tells.

    Examples
    --------
    >>> import numpy as np
    >>> patch = np.zeros((1, 1, 4, 4))
    >>> role_of("targets_cells", patch, {}), role_of("truth", patch, {"truth": "label"})
    ('target', 'label')
    """
    if name in roles:
        return roles[name]
    if getattr(array, "ndim", 0) < 3:
        return "still"
    for beginning, role in _BEGINNINGS.items():
        if name.startswith(beginning):
            return role
    raise ConfigError(
        f"an array moves by what it is, which the beginning of its name tells "
        f"({', '.join(_BEGINNINGS)}), but {name!r} does not; say it: "
        f"roles={{{name!r}: ...}} with one of {list(ROLES)}"
    )
