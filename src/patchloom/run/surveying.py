"""Surveys: the same walk without writing. Statistics of whole images, or of a plan's patches."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from dask.highlevelgraph import HighLevelGraph

from patchloom.errors import ConfigError, PlanError
from patchloom.grid import morton
from patchloom.image import Image, Ints, Reads
from patchloom.planning.plans import Plan
from patchloom.planning.runs import FETCH
from patchloom.run.blocks import Supplied, stored_chunks
from patchloom.run.executing import execute
from patchloom.run.graph import Graph, light, run_graph
from patchloom.store.statistics_view import check_percentiles, dataset
from patchloom.summaries import Summary, Tally

if TYPE_CHECKING:
    import xarray

__all__ = [
    "along_curve",
    "batch_chunks",
    "channel_names",
    "statistics",
    "survey_images",
    "survey_patches",
    "task_blocks",
]

_PER_TASK = 128 * 2**20
"""Bytes of decoded chunks that one task counts."""

Found = dict[tuple[int, int], Summary]


def statistics(
    images: Image | Sequence[Image],
    percentiles: Sequence[float] = (1, 99),
    *,
    over: str = "image",
    progress: bool = False,
) -> xarray.Dataset:
    """Statistics of whole images, each pixel once, in one pass.

    Parameters
    ----------
    images
        From `open_images`; the same number of channels each.
    percentiles
        In percent, from 0 to 100.
    over
        ``"image"``: all pixels of each image.
    progress
        Whether to show it.

    Returns
    -------
    xarray.Dataset
        ``percentile`` over (image, channel, quantile), where ``quantile`` is q / 100, and
        ``count``, ``nans``, ``mean``, ``std``, ``min``, ``max`` over (image, channel), in grey
        levels of the source. Exact for bool and integers of up to 16 bits, and for wider types
        of at most 65,536 distinct values; else percentiles are off by at most the attribute
        ``relative_error``. NaN is counted apart and left out.

    Raises
    ------
    ConfigError
        If `percentiles` or `over` is none of the above.
    ChunkError
        If a chunk cannot be read.

    Examples
    --------
    >>> import numpy as np, patchloom
    >>> [image] = patchloom.open_images(np.arange(100, dtype="uint8").reshape(10, 10))
    >>> found = patchloom.statistics(image, (1, 50))
    >>> found.percentile.sel(quantile=0.5).item()
    49.5
    """
    images = (images,) if isinstance(images, Image) else tuple(images)
    if not all(isinstance(image, Image) for image in images):
        raise ConfigError("statistics are of images; open them with open_images")
    q = check_percentiles(percentiles)
    if over != "image":
        raise ConfigError(f"statistics(over=) is 'image' in this version, got {over!r}")
    names = channel_names(images)
    found, _ = survey_images(images, progress=progress)
    return dataset(found, [image.id for image in images], names, q, over)


def channel_names(images: Sequence[Image]) -> list[str]:
    """Names of the channels of all images: their own, else their numbers.

    Raises
    ------
    PlanError
        If the images have different numbers of channels.
    """
    if not images:
        raise PlanError("statistics are of at least one image; open it with open_images")
    counts = {image.layout.n_channels for image in images}
    if len(counts) > 1:
        raise PlanError(
            f"images of one table have the same number of channels, got {sorted(counts)}; "
            "take them apart"
        )
    [n] = counts
    first = images[0].channels
    same = first and len(set(first)) == n and all(image.channels == first for image in images)
    return list(first) if same else [str(k) for k in range(n)]


def survey_images(images: Sequence[Image], *, progress: bool) -> tuple[Found, Reads]:
    """Count every pixel of some images."""
    token = uuid.uuid4().hex
    name = f"patchloom-survey-{token}"
    layer: dict[Any, Any] = {}
    keys: list[tuple[str, int]] = []
    lazies = []
    for index, image in enumerate(images):
        handle = f"patchloom-image-{index}-{token}"
        layer[handle] = light(image)
        lazy = None if image.source.addressable else image.source.lazy(image)
        if lazy is not None:
            lazies.append(lazy)
        for blocks in task_blocks(image):
            start = int(blocks[0])
            key = (name, len(keys))
            rows = [] if lazy is None else stored_chunks(image, blocks).tolist()
            dependencies = [] if lazy is None else [(lazy.name, *row) for row in rows]
            span = _Span(index, start, int(blocks[-1]) + 1)
            layer[key] = (_count_blocks, handle, span, dependencies)
            keys.append(key)
    graph = Graph(HighLevelGraph.from_collections(name, layer, dependencies=lazies), keys)
    return _collected(execute(graph, progress=progress, label="survey"))


def task_blocks(image: Image) -> Iterator[Ints]:
    """The blocks of an image, those of one task after the other."""
    layout = image.layout
    n = layout.samples.n_chunks * layout.space.n_chunks
    size = int(np.prod(layout.block_shape())) * image.dtype.itemsize
    step = max(1, _PER_TASK // max(1, size))
    for start in range(0, n, step):
        yield np.arange(start, min(start + step, n))


def along_curve(image: Image, blocks: Ints) -> Ints:
    """Blocks in the order of a survey: neighbours of a stored shard are fetched together."""
    space = image.layout.space
    ordered: Ints = blocks[np.argsort(morton(space.unflat(blocks % space.n_chunks)))]
    return ordered


def batch_chunks(image: Image) -> int:
    """Chunks that a survey asks for together."""
    size = int(np.prod(image.grid.chunks)) * image.dtype.itemsize
    return max(1, FETCH // max(1, size))


def survey_patches(plan: Plan, *, progress: bool) -> tuple[Found, Reads]:
    """Count every pixel of a plan's patches, each once."""
    graph = run_graph(plan, None, range(plan.n_shards), uuid.uuid4().hex)
    return _collected(execute(graph, progress=progress, label="survey"))


def _collected(parts: Sequence[tuple[Found, Reads]]) -> tuple[Found, Reads]:
    """What the tasks of a survey found, and what they read."""
    reads = Reads()
    for _, counted in parts:
        reads.chunks += counted.chunks
        reads.requests += counted.requests
        reads.nbytes += counted.nbytes
    return merged([found for found, _ in parts]), reads


class _Span:
    """Blocks [start, stop) of one image."""

    def __init__(self, index: int, start: int, stop: int) -> None:
        self.index, self.start, self.stop = index, start, stop


def _count_blocks(image: Image, span: _Span, supplied: list[Any]) -> tuple[Found, Reads]:
    blocks = np.arange(span.start, span.stop)
    chunks = stored_chunks(image, along_curve(image, blocks))
    if image.source.addressable:
        reader = image.source.reader()
    else:
        rows = [tuple(r) for r in stored_chunks(image, np.arange(span.start, span.stop)).tolist()]
        pixels = {r: np.asarray(b) for r, b in zip(rows, supplied, strict=True)}
        reader = Supplied(pixels, frozenset(rows)).reader()
    tallies: dict[int, Tally] = {}
    axes = image.axes
    step = batch_chunks(image)
    for start in range(0, len(chunks), step):
        some: Ints = chunks[start : start + step]
        for row, part in zip(some, reader.read(some), strict=True):
            begin = 0
            if axes.has_channel:
                at = axes.names.index("c")
                begin = int(row[at]) * image.grid.chunks[at]
                part = np.moveaxis(part, at, 0)
            else:
                part = part[None]
            for k, plane in enumerate(part):
                tallies.setdefault(begin + k, Tally(image.dtype)).add(plane)
    return {(span.index, c): t.summary() for c, t in tallies.items()}, reader.reads


def merged(parts: Sequence[Mapping[tuple[int, int], Summary]]) -> Found:
    """The sum of several tables of summaries, in the order given."""
    found: Found = {}
    for part in parts:
        for at, summary in part.items():
            found[at] = found.get(at, Summary.empty()) + summary
    return found
