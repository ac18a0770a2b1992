"""Our side: the loader over the store, and live over the image; opened anew in every run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

from batches import COUNTS, Asked, Load, serve
from delayed import delay

import patchloom

MEMORY = "256 MiB"
"""What a reader of images may hold."""
SMALL = "64 MiB"
"""What a reader of a store may hold, where it is given less than by default."""


def _store(shuffle: str, *, distant: bool = False, **options: Any) -> Load:
    def load(asked: Asked) -> Iterator[Any]:
        if distant:
            delay(asked.latency)
        store = patchloom.open_patches(f"delayed://{asked.store}" if distant else asked.store)
        loader = store.batches(
            asked.batch, shuffle=shuffle, seed=1, threads=asked.threads, **options
        )
        for batch in loader:
            yield batch["image"]

    return load


def _uncompressed(asked: Asked) -> Any:
    return _store("exact")(replace(asked, store=asked.raw))


def _live(asked: Asked) -> Iterator[Any]:
    overlap = asked.side - asked.stride
    config = {
        "name": "sequential",
        "patch_size": [asked.side] * 2,
        "overlaps": [overlap] * 2,
    }
    images = patchloom.open_images(f"{asked.source}/0", axes="yx")
    live = patchloom.stream(patchloom.plan(images, config, edge="drop"), memory=MEMORY)
    loader = live.batches(asked.batch, shuffle="window", seed=1, threads=asked.threads)
    for batch in loader:
        yield batch["image"]
    told = cast("Any", loader.course.recipe.reader).report()
    COUNTS["decodes_per_chunk"] = told["read_amplification"]
    COUNTS["held_mib"] = told["peak_memory"] / 2**20


WAYS = {
    "sequential": _store("none"),
    "window": _store("window"),
    "window, 64 MiB": _store("window", memory=SMALL),
    "shuffled": _store("exact"),
    "uncompressed": _uncompressed,
    "distant": _store("exact", distant=True),
    "distant, window": _store("window", distant=True),
    "live": _live,
}

if __name__ == "__main__":
    serve("patchloom", WAYS)
