"""Surveys: the same walk without writing. Statistics of images or of a plan's patches."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from patchloom.errors import ConfigError, PlanError
from patchloom.image import Image, Reads
from patchloom.planning.plans import Plan
from patchloom.run.auto_masks import with_plain_masks
from patchloom.run.counting import Found, check_classes
from patchloom.run.ground import Question
from patchloom.run.passes import look
from patchloom.sources.lazily import reading_since
from patchloom.summaries import Summary, pooled, targets
from patchloom.summaries.asked import check_method, check_percentiles, check_pixels
from patchloom.summaries.subjects import Cell, Subject, groups_of
from patchloom.summaries.table import Statistics

if TYPE_CHECKING:
    import xarray

__all__ = [
    "channel_names",
    "refined",
    "statistics",
    "subjects_of",
    "summarize",
    "surveyed",
]


def summarize(
    what: Image | Sequence[Image] | Plan,
    percentiles: Sequence[float] = (1, 99),
    *,
    over: str | None = None,
    each: str = "once",
    planes: bool = False,
    labels: bool = False,
    exact: bool = True,
    method: str = "linear",
    by: str | None = "image",
    progress: bool = False,
) -> Statistics:
    """Count the pixels of images, under their masks, or of a plan's patches.

    Each needed chunk is decoded once; what tasks count is added up in the graph. Pixels that lie
    nowhere but in padding never count.

    Parameters
    ----------
    what
        From `open_images`, with the same number of channels each, or from `plan`.
    percentiles
        In percent, from 0 to 100: those that are to be exact. Any others may be asked of the
        result, and are off by at most its stated error.
    over
        ``"image"``: all pixels (default of images). ``"mask"``: those of which the image's mask
        covers at least half, at whatever scale it lies. ``"patches"``: those of a plan's patches
        (its default), their context included.
    each
        Over patches: whether a pixel counts ``"once"``, or as often as it is ``"taken"``.
    planes
        Whether each z-slice is counted by itself.
    labels
        Whether the pixels of each value of the image's labels (that at their centre) are. At most
        256 values an image.
    exact
        Types of more than 16 bits with very many different values are counted in buckets first.
        True goes over the needed images again until percentiles and median are exact; False
        reads once and states the error.
    method
        How percentiles lie between pixels, as ``numpy.percentile`` calls it.
    by
        Groups of images whose pooled percentiles are to be exact as well: ``"image"``, a metadata
        column, or None for all images together.
    progress
        Whether to show it.

    Returns
    -------
    Statistics
        Take numbers from it with `dataset`; it can be added to others, and saved.

    Raises
    ------
    ConfigError
        If a choice is none of the above, or an image has no mask, labels or z axis that is asked
        for.
    ChunkError
        If a chunk cannot be read.
    SourceChangedError
        If an image is written to between two passes.

    Examples
    --------
    >>> import numpy as np, patchloom
    >>> pixels = np.arange(100, dtype="uint8").reshape(10, 10)
    >>> images = patchloom.open_images(pixels, mask=pixels.reshape(10, 10) >= 50)
    >>> patchloom.summarize(images, over="mask").dataset((0, 50))["percentile"].values.tolist()
    [[[50.0, 74.5]]]
    """
    found, _ = surveyed(
        what,
        percentiles,
        over=over,
        each=each,
        planes=planes,
        labels=labels,
        exact=exact,
        method=method,
        by=by,
        progress=progress,
    )
    return found


def statistics(
    what: Image | Sequence[Image] | Plan,
    percentiles: Sequence[float] = (1, 99),
    *,
    over: str | None = None,
    each: str = "once",
    planes: bool = False,
    labels: bool = False,
    exact: bool = True,
    method: str = "linear",
    by: str | None = "image",
    progress: bool = False,
) -> xarray.Dataset:
    """Statistics of images, under their masks, or of a plan's patches: ``summarize().dataset()``.

    Parameters
    ----------
    what, percentiles, over, each, planes, labels, exact, method, by, progress
        As of `summarize`.

    Returns
    -------
    xarray.Dataset
        As of `Statistics.dataset`: ``percentile`` over (image, channel, quantile), where
        ``quantile`` is q / 100; ``count``, ``nans``, ``nodata`` in pixels; ``mean``, ``std``,
        ``min``, ``max``, ``median``, ``mad`` in grey levels of the source. With `planes` also over
        ``z``, with `labels` over ``label``; with another `by` over ``group`` instead of ``image``.

    Raises
    ------
    ConfigError
        If a choice is none of the above.
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
    found = summarize(
        what,
        percentiles,
        over=over,
        each=each,
        planes=planes,
        labels=labels,
        exact=exact,
        method=method,
        by=by,
        progress=progress,
    )
    return found.dataset(percentiles, method=method, by=by)


def surveyed(
    what: Image | Sequence[Image] | Plan,
    percentiles: Sequence[float] = (1, 99),
    *,
    over: str | None = None,
    each: str = "once",
    planes: bool = False,
    labels: bool = False,
    exact: bool = True,
    method: str = "linear",
    by: str | None = "image",
    progress: bool = False,
) -> tuple[Statistics, Reads]:
    """As `summarize`, and what was read of the images, over all passes."""
    images = _images(what)
    q, method = check_percentiles(percentiles), check_method(method)
    question = _question(what, images, over, each, planes, labels)
    channels, subjects = channel_names(images), subjects_of(images)
    groups_of(subjects, by)
    if question.over == "mask":
        # An automatic mask is one once its threshold is found.
        images, _ = with_plain_masks(images, progress=progress)
    plan = what if question.over == "patches" and isinstance(what, Plan) else None
    begun = time.time()
    found, _, reads = look(question, images, plan, progress=progress)
    _check_classes(found, images)
    if exact:
        found, more = refined(
            question, images, plan, found, q, method=method, by=by, since=begun, progress=progress
        )
        reads += more
    table = Statistics(found, subjects, tuple(channels), over=question.over, each=each)
    return table, reads


def refined(
    question: Question,
    images: Sequence[Image],
    plan: Plan | None,
    found: Found,
    q: Sequence[float],
    *,
    method: str = "linear",
    by: str | None = "image",
    since: float,
    progress: bool = False,
) -> tuple[Found, Reads]:
    """Go over images again until percentiles and medians are exact.

    Parameters
    ----------
    question, images, plan
        What was counted: see `look`.
    found
        What a first pass found.
    q, method, by
        What is to be exact.
    since
        When the first pass began, in seconds since 1970: nothing may be written after it.
    progress
        Whether to show it.

    Returns
    -------
    dict, Reads
        The summaries, and what was read of the images for them. Images of which everything is
        exact already are not read.
    """
    reads = Reads()
    pools = _pools(found, subjects_of(images), by)
    watched = [reading_since(image, since) for image in images]
    if plan is not None and question.role == "image":
        plan = plan.with_images(watched)
    number = 1
    while asked := _asked(found, pools, q, method):
        number += 1
        more, _, seen = look(
            question,
            watched,
            plan,
            targets=asked,
            progress=progress,
            label=f"survey, pass {number}",
        )
        finer = {
            cell: found[cell].refined(more.get(cell, Summary.empty()), wanted)
            for cell, wanted in asked.items()
        }
        found = {**found, **finer}
        reads += seen
    return found, reads


def _asked(
    found: Mapping[Cell, Summary],
    pools: Iterable[Sequence[Cell]],
    q: Sequence[float],
    method: str,
) -> dict[Cell, Any]:
    """What the next pass counts closer, by cell; nothing if all that is asked is exact."""
    asked: dict[Cell, Any] = {}
    for cells in pools:
        if all(found[cell].exact for cell in cells):
            continue
        some = pooled([found[cell] for cell in cells], q, method, median=True)
        wanted = targets(some, q, method, median=True)
        if wanted is None:
            continue
        for cell in cells:
            if not found[cell].exact:
                asked[cell] = asked[cell] | wanted if cell in asked else wanted
    return asked


def _pools(
    found: Iterable[Cell], subjects: Sequence[Subject], by: str | None
) -> list[tuple[Cell, ...]]:
    """The cells whose sum is to be exact: each alone; of images and groups, each plane and all."""
    group = groups_of(subjects, by)[1]
    cells = sorted(found)
    pools: dict[Any, list[Cell]] = {}
    for cell in cells:
        pools.setdefault(("image", *cell._replace(plane=None)), []).append(cell)
        pools.setdefault(("group", group[cell.image], *cell[1:]), []).append(cell)
        pools.setdefault(("planes", group[cell.image], cell.channel, cell.label), []).append(cell)
    alone = [(cell,) for cell in cells]
    return list(dict.fromkeys([*alone, *map(tuple, pools.values())]))


def _images(what: Any) -> tuple[Image, ...]:
    if isinstance(what, Plan):
        return what.images
    images = (what,) if isinstance(what, Image) else what
    if isinstance(images, str) or not isinstance(images, Iterable):
        images = (None,)
    images = tuple(images)
    if not all(isinstance(image, Image) for image in images):
        raise ConfigError(
            f"statistics are of images or of a plan, got {type(what).__name__}; open images with "
            "open_images"
        )
    return images


def _question(
    what: Any, images: Sequence[Image], over: str | None, each: str, planes: bool, labels: bool
) -> Question:
    """What is asked, if all images can answer it."""
    is_plan = isinstance(what, Plan)
    over = over or ("patches" if is_plan else "image")
    check_pixels(over, each)
    if over == "patches" and not is_plan:
        raise ConfigError("over='patches' is of a plan, got images; make one with plan")
    question = Question(over, each, bool(planes), bool(labels))
    for name in question.roles:
        lacking = [image.id for image in images if getattr(image, name) is None]
        if lacking:
            asked = "over='mask'" if name == "mask" else "labels=True"
            raise ConfigError(
                f"{asked} needs images with {name}, but {lacking[:5]} have none; open them with "
                f"open_images(..., {name}=)"
            )
    flat = [image.id for image in images if planes and "z" not in image.axes.spatial]
    if flat:
        raise ConfigError(
            f"planes=True needs images with a z axis, but {flat[:5]} have none; open them with "
            "axes=, or leave it out"
        )
    for image in images if labels else ():
        assert image.labels is not None
        dtype = image.labels.image.dtype
        if dtype.kind not in "biu":
            raise ConfigError(
                f"labels are whole numbers, but those of {image.id!r} are {dtype}; give another "
                "array as labels=, or labels=False"
            )
    return question


def _check_classes(found: Iterable[Cell], images: Sequence[Image]) -> None:
    """Refuse labels that are no classes; no task may have seen all of them."""
    values: dict[int, set[int]] = {}
    for cell in found:
        if cell.label is not None:
            values.setdefault(cell.image, set()).add(cell.label)
    for index, some in values.items():
        check_classes(some, images[index])


def subjects_of(images: Sequence[Image]) -> tuple[Subject, ...]:
    """The images by name, as statistics keep them."""
    return tuple(Subject(i.id, i.uri, i.level, dict(i.metadata)) for i in images)


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
