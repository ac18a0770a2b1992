"""price: what a plan will take, before a pixel of its source is read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from patchloom.errors import ConfigError
from patchloom.image import Image
from patchloom.location import Location
from patchloom.planning.cost import Cost, Output
from patchloom.planning.plans import Plan
from patchloom.planning.prices import Prices, is_far
from patchloom.planning.traffic import Traffic
from patchloom.run.asked import KINDS, Asked, Reading, asked
from patchloom.run.blocks import stored_chunks
from patchloom.run.materializing import check_choices
from patchloom.run.stored import decoded_bytes, n_shards, stored
from patchloom.sources.zarrs import ZarrSource

__all__ = ["price"]

INDICES = 256
"""Indices of shards that are read for a price, at most; of more, their content is estimated."""


def price(
    plan: Plan,
    *,
    workers: int = 1,
    prices: Prices | str | os.PathLike[str] | None = None,
    output_url: str | os.PathLike[str] | None = None,
    compression: float | None = None,
    epochs: int = 100,
    months: float = 1,
    normalize: str | None = None,
    normalize_targets: str | None = None,
    over: str = "patches",
) -> Cost:
    """What a plan will take, from listings of its sources: no pixel is read.

    Parameters
    ----------
    plan
        From `patchloom.plan`.
    workers
        Threads that work at a time.
    prices
        A table, or the path of one; None takes the shipped example.
    output_url
        Where the store will stand; None: where the first image does.
    compression
        Bytes of output before over after compression; None: as much as the source compresses.
    epochs, months
        How long the store is used, and kept.
    normalize, normalize_targets, over
        As for `materialize`: what needs a pass of its own before.

    Returns
    -------
    Cost
        Decodes, and for Zarr without shards also requests and bytes, are those that an
        undisturbed run counts; the rest is estimated, and its `notes` say why.

    Raises
    ------
    ConfigError
        If an argument or the table of prices is not as above.

    Examples
    --------
    >>> import numpy as np, patchloom
    >>> images = patchloom.open_images(np.ones((64, 64), "uint8"))
    >>> plan = patchloom.plan(images, {"name": "sequential", "patch_size": [32, 32]})
    >>> cost = patchloom.price(plan)
    >>> cost.n_patches, cost.bytes_read, cost.money.egress
    (4, 4096, 0.0)
    """
    _check(plan, workers, epochs, months, compression)
    kinds = check_choices(normalize, over, normalize_targets=normalize_targets)
    normalized = [
        role
        for role, kind in zip(("image", "target"), kinds, strict=True)
        if kind and role in plan.images[0].cut_arrays
    ]
    table = prices if isinstance(prices, Prices) else Prices.load(prices)
    arrays = asked(plan, normalized=normalized, over=over)
    counted, notes = _counted(list(arrays.values()), table)
    total = {kind: sum((c[kind] for c in counted), Traffic()) for kind in KINDS}
    far, paid = _target(plan, output_url, table)
    output = Output(
        nbytes=_output_bytes(plan, normalized),
        compression=compression or _compression(total["live"]),
        n_patches=plan.n_patches,
        n_shards=plan.n_shards,
        n_arrays=len(plan.images[0].cut_arrays),
        far=far,
        paid=paid,
    )
    return Cost.of(
        {**plan.figures(), "peak_memory": plan.peak_memory(normalized=normalized)},
        run=total["image"] + total["role"] + total["survey"],
        masks=total["mask"],
        live=total["live"],
        output=output,
        prices=table,
        workers=workers,
        epochs=epochs,
        months=months,
        survey_reads=total["survey"].reads,
        notes=notes,
    )


def _check(plan: Any, workers: Any, epochs: Any, months: Any, compression: Any) -> None:
    if not isinstance(plan, Plan):
        raise ConfigError(f"price takes a Plan, got {type(plan).__name__}; make one with plan")
    for name, value in (("workers", workers), ("epochs", epochs)):
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name}= is an integer of at least 1, got {value!r}")
    if not isinstance(months, int | float) or not 0 <= months < float("inf"):
        raise ConfigError(f"months= is a number of at least 0, got {months!r}")
    ok = compression is None or (
        isinstance(compression, int | float) and 1e-6 <= compression <= 1e6
    )
    if not ok:
        raise ConfigError(
            f"compression= is bytes before over bytes after it, 1e-6 to 1e6, got {compression!r}"
        )


def _target(plan: Plan, url: str | os.PathLike[str] | None, prices: Prices) -> tuple[bool, bool]:
    """Whether the output goes over a network, and whether it costs money there."""
    if url is not None:
        location = Location.of(url)
    else:
        source = plan.images[0].source
        location = source.location if isinstance(source, ZarrSource) else Location("/")
    return is_far(location), prices.is_paid(location)


def _output_bytes(plan: Plan, normalized: Sequence[str]) -> int:
    pixels = int(np.prod(plan.patch_size, dtype=object))
    total = 0
    for name, array in plan.images[0].cut_arrays.items():
        wide = 4 if name in normalized else array.dtype.itemsize
        total += plan.n_patches * pixels * array.layout.n_channels * wide
    return total


def _compression(live: Traffic) -> float:
    """As the source compresses, where that is known."""
    return max(1.0, live.decoded / live.nbytes) if live.nbytes else 1.0


def _counted(
    arrays: Sequence[Asked], prices: Prices
) -> tuple[list[dict[str, Traffic]], tuple[str, ...]]:
    """Traffic of every array by kind, and what had to be estimated."""
    # Which indices may be read is settled beforehand: it must not hang on who comes first.
    sharded = np.array([n_shards(array) for array in arrays], np.int64)
    looks = np.cumsum(sharded) <= INDICES
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda array, look: _count(array, look, prices), arrays, looks))
    notes = dict.fromkeys(note for _, some in found for note in some)
    few, rest = [*notes][:5], len(notes) - 5
    return [counted for counted, _ in found], (
        *few,
        *([f"the same of {rest:,} more arrays"] if rest > 0 else []),
    )


def _count(array: Asked, look: bool, prices: Prices) -> tuple[dict[str, Traffic], list[str]]:
    image, source = array.image, array.image.source
    counted = dict.fromkeys(KINDS, Traffic())
    if not isinstance(source, ZarrSource):
        for kind, reading in array.readings.items():
            counted[kind] = _decoded(image, reading, is_mask=kind == "mask")
        notes = [] if not source.addressable else [f"{image.id}: bytes are decoded bytes"]
        return counted, notes
    told, notes = stored(array, source, look)
    far, paid = is_far(source.location), prices.is_paid(source.location)
    for kind, reading in array.readings.items():
        counted[kind] = told.traffic(reading).over(far=far, paid=paid)
    return counted, notes


def _decoded(image: Image, reading: Reading, *, is_mask: bool) -> Traffic:
    """What is known of an array that is no Zarr: its pixels."""
    blocks = np.concatenate(reading.queues)
    in_memory = not image.source.addressable
    if in_memory and not is_mask:
        # Dask makes each chunk once and hands it over.
        blocks = np.unique(blocks)
    nbytes = int(decoded_bytes(image, stored_chunks(image, blocks)).sum())
    reads = len(blocks) * image.layout.chunks_per_block
    requests = 0 if in_memory and is_mask else reads
    return Traffic(reads, requests, nbytes, nbytes * in_memory, nbytes, exact=in_memory)
