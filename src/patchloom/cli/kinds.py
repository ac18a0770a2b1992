"""What stands at a URL."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["kind_of"]


def kind_of(location: Any) -> str:
    """What stands there; what cannot be read is left to the opener of images to explain."""
    try:
        if location.read("plan.json") is not None:
            return "plan"
        group = json.loads(location.read("zarr.json") or b"{}")
        if "patchloom" in group.get("attributes", {}):
            return "store"
        saved = not group and location.read("statistics.json") is not None
        return "folder of saved statistics" if saved else "image"
    except (OSError, ValueError, AttributeError, TypeError):
        return "image"
