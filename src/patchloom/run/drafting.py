"""plan: from images and a strategy to a Plan; reads masks, and what filters ask about."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from dask.utils import parse_bytes
from pydantic import BaseModel

from patchloom.configs import parsed_as
from patchloom.errors import ConfigError, IdentityError, PatchSizeError, PlanError
from patchloom.image import Image
from patchloom.location import Location
from patchloom.patching.config import Sized
from patchloom.patching.protocol import EDGES, Edge, GridPatching, Patching
from patchloom.planning.alignment import Align, aligned
from patchloom.planning.cells import Cells
from patchloom.planning.filters import parse_filters
from patchloom.planning.incidence import PADDINGS, Padding
from patchloom.planning.lenses import breadth, is_context
from patchloom.planning.plans import Plan
from patchloom.planning.quotas import BalanceConfig, QuotaConfig
from patchloom.planning.rows import ORDERS
from patchloom.planning.split_config import SplitConfig, parse_split
from patchloom.planning.strategies import patching_of
from patchloom.run.auto_masks import with_plain_masks
from patchloom.run.centers import check_labels, goes_by_class
from patchloom.run.mask_survey import survey_masks
from patchloom.run.placing import placed
from patchloom.run.refining import asked, refined
from patchloom.run.scoring import survey_contents
from patchloom.run.selecting import Selection
from patchloom.run.settings import Settings
from patchloom.scores import parse_scores
from patchloom.store.manifest import check_columns

__all__ = ["memory_of", "plan"]


def plan(
    images: Image | Sequence[Image],
    patching: Mapping[str, Any] | BaseModel | Patching,
    *,
    min_coverage: float | Fraction = 0.0,
    min_pixels: int = 0,
    edge: Edge = "drop",
    pad_mode: Padding = "constant",
    align: Align = "none",
    order: str = "spatial",
    seed: int = 0,
    rows_per_shard: int | None = None,
    window: int | None = None,
    group_by: str | None = None,
    memory: str | int | None = None,
    filters: Sequence[Mapping[str, Any] | BaseModel] = (),
    scores: Sequence[str | Mapping[str, Any]] = (),
    split: Mapping[str, Any] | SplitConfig | None = None,
    balance: Mapping[str, Any] | BalanceConfig | None = None,
    quota: Mapping[str, Any] | QuotaConfig | None = None,
    survey: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Plan:
    """Decide which patches to take.

    Masks are read; labels and pixels only where `balance` and `filters` look at them.

    Parameters
    ----------
    images
        From `open_images`. All have the same dtype, spatial axes and number of channels.
    patching
        A strategy, for example ``{"name": "sequential", "patch_size": [256, 256],
        "overlaps": [0, 0]}`` or ``{"name": "random", "patch_size": [64, 64], "n_patches": 500}``;
        docs/strategies.md draws all of them. Sizes are pixels of the opened level: one number,
        one for each of the axes (z,) y, x, or one for each by name. ``"context"`` reads so many
        pixels more on both sides of each patch. ``{"name": "points", "patch_size": ...,
        "points": ...}`` takes what `read_points` gives, or reads. Or any object with
        ``n_patches`` and ``get_patch_spec``, ours or CAREamics': each patch is asked for once.
    min_coverage
        Share of a patch that its mask must cover, in [0, 1]; 1 means wholly covered, 0 keeps
        all. The comparison is exact: 0.1 means one tenth.
    min_pixels
        Area of a patch that its mask must cover, in pixels of the image; asked besides.
    edge
        What happens at the border of an image: ``"drop"`` leaves out what does not fit,
        ``"shift"`` moves patches inward, ``"pad"`` lets them stick out, and ``"shrink"`` cuts
        off what would (for live loading: a store has patches of one size).
    pad_mode
        What patches show beyond the image, as `numpy.pad` names it: ``"constant"`` (0),
        ``"edge"``, ``"reflect"`` or ``"symmetric"``.
    align
        How patches lie to what is stored. ``"none"``: as the strategy places them. ``"chunk"``,
        ``"shard"``: none crosses the border of one; a grid begins anew in each. ``"auto"``: the
        grid is moved, and patches are grouped into shards, so that the fewest bytes are decoded
        per pixel that patches cover, and none is lost; see `patchloom.planning.alignment.aligned`
        for the rule, `alternatives` for what each costs. The plan's ``config`` says what was done.
    order
        ``"spatial"``: along a locality-keeping curve of chunks, image by image; ``"grouped"``:
        by the values of a column, and along the curve inside; ``"shuffled"``: groups of
        neighbouring chunks are dealt out at random to windows, and the patches of each window
        are mixed, so that any run of rows is a fair sample while chunks are still read once a
        window. docs/orders.md draws all of them.
    seed
        Fixes every random draw.
    rows_per_shard
        Patches of one output shard; by default near 32 MiB before compression, or fewer where
        such a shard does not fit into the memory.
    window
        Groups that are mixed with one another under ``"shuffled"``, about: one task holds
        them. By default as many as fit into the memory.
    group_by
        What ``"grouped"`` goes by, ascending and what has no value last: ``"image_id"``,
        ``"split"``, a metadata column of the images or a column of a table of points.
    memory
        Bytes that one task may use, as a number or text such as ``"512 MiB"``. None takes
        ``patchloom.memory`` of Dask's configuration, which is 1 GiB unless somebody changed it.
    filters
        What the pixels of a patch must show, for example ``[{"name": "shannon", "threshold":
        3}]``; docs/filters.md has all. They cost one pass over the candidates' chunks.
    scores
        Numbers that become columns of the manifest, besides those that `filters` look at.
    split
        How patches are dealt out to training and validation, for example ``{"by": "image",
        "shares": {"train": 0.8, "val": 0.2}}`` or ``{"by": "blocks", "block_size": 1024,
        "guard": 64}``; docs/splits.md has all. By default all are ``"train"``.
    balance
        Classes of the labels in given proportions, met exactly, for example ``{"classes": {1:
        0.5, 2: 0.5}}``; see `BalanceConfig`. It costs one pass over the labels.
    quota
        At most so many patches, spread evenly: ``n_patches``, ``n_images``, ``per_image``, or
        ``per_group`` with ``group``; see `QuotaConfig`.
    survey
        A folder that keeps what masks, labels and pixels were found to show: planning again,
        with other thresholds, more images or after an interruption, reads only what is new.
    storage_options
        For fsspec, to reach `survey`.
    progress
        Whether to show how far reading has come.

    Returns
    -------
    Plan
        Possibly empty, with the reasons in ``summary()["rejected"]``.

    Raises
    ------
    PatchSizeError
        If the patch does not fit the axes, or is larger than every image.
    ConfigError
        If a setting is none of the above.
    PlanError
        If the images cannot stand in one store.
    BudgetError
        If one shard, or window, does not fit into the memory.

    Examples
    --------
    >>> import numpy as np, patchloom
    >>> images = patchloom.open_images(np.zeros((100, 100), "uint8"))
    >>> patchloom.plan(images, {"name": "sequential", "patch_size": [32, 32]}).n_patches
    9
    """
    images = (images,) if isinstance(images, Image) else tuple(images or ())
    seed = _whole("seed", seed)
    min_pixels = _whole("min_pixels", min_pixels, least=0)
    if rows_per_shard is not None:
        rows_per_shard = _whole("rows_per_shard", rows_per_shard, least=1)
    asks = _asks(images, filters, scores, split, balance, quota)
    if window is not None:
        window = _whole("window", window, least=1)
    _check_order(order, window, group_by)
    coverage = _check(images, min_coverage, edge, pad_mode)
    folder = None if survey is None else Location.of(survey, storage_options)
    images, looked = with_plain_masks(images, progress=progress, folder=folder)
    config, places, left = placed(images, patching)
    config, rows_per_shard = aligned(
        align,
        images,
        config,
        rows_per_shard,
        lambda one, rows: plan(
            images,
            one,
            edge=edge,
            pad_mode=pad_mode,
            seed=seed,
            rows_per_shard=rows,
            memory=memory,
        ),
    )
    if not isinstance(config, Sized):
        _check_whole(images, edge)
    check_columns([image.metadata for image in images], None if places is None else places.columns)
    strategy = patching_of(images, config, edge, seed, places)
    size = strategy.patch_size
    _check_fits(images, size, strategy)
    if goes_by_class(config):
        check_labels(images)
        if balance is not None:
            raise ConfigError(
                "classes are those of centre pixels (patching 'pixels' with classes=) or those of "
                "whole patches (balance=), got both; leave one out"
            )
    selection = Selection(strategy, config, coverage, min_pixels, seed)
    rejected = Counter(left)
    if places is not None:
        rejected["not inside its image"] += len(places) - strategy.n_patches
    parts, out, reads = survey_masks(selection, images, progress=progress, folder=folder)
    rejected.update(out)
    too_small = [
        image.id for image in images if not strategy.may_stick_out and _is_smaller(image, size)
    ]
    reasons = {k: v for k, v in rejected.items() if v}
    if too_small:
        # Such an image offers no candidate; it is named so that an empty plan says why.
        reasons[f"image smaller than the patch: {', '.join(too_small[:20])}"] = 0
    cells = Cells.join(parts)
    if not len(cells) and not reasons:
        reasons["offered by the strategy"] = 0
    found = Plan(
        images=images,
        config=config,
        cells=cells,
        edge=edge,
        padding=pad_mode,
        min_coverage=coverage,
        min_pixels=min_pixels,
        seed=seed,
        memory=memory_of(memory),
        rejected=reasons,
        places=places,
        planning_reads=reads.chunks + looked.chunks,
        **asks,
    )
    _check_told(found)
    if found.splits is not None:
        found.splits.check(images, [breadth(image, found.cut) for image in images])
    if split is not None or balance is not None or quota is not None or filters:
        found = _refined(found, folder, progress)
    found = replace(found, order=order, window=window, group_by=group_by)
    return found.laid_out(rows_per_shard)


def _check_order(order: str, window: int | None, group_by: str | None) -> None:
    if order not in ORDERS:
        raise ConfigError(f"order= is one of {list(ORDERS)}, got {order!r}")
    if window is not None and order != "shuffled":
        raise ConfigError(f"window= belongs to order='shuffled', got {window!r} for {order!r}")
    if (group_by is None) == (order == "grouped"):
        raise ConfigError(
            f"group_by= names the column of order='grouped', and belongs to no other order; got "
            f"{group_by!r} for {order!r}"
        )


def _asks(
    images: Sequence[Image],
    filters: Sequence[Mapping[str, Any] | BaseModel],
    scores: Sequence[str | Mapping[str, Any]],
    split: Mapping[str, Any] | SplitConfig | None,
    balance: Mapping[str, Any] | BalanceConfig | None,
    quota: Mapping[str, Any] | QuotaConfig | None,
) -> dict[str, Any]:
    """What is asked of candidates, as values."""
    parsed = parse_filters(filters)
    ndim = len(images[0].axes.spatial) if images else 2
    every = [score for item in parsed for score in item.scores(ndim)] + [*parse_scores(scores)]
    columns = tuple(dict.fromkeys(every))
    bare = [image.id for image in images if image.mask is None]
    if bare and any(not item.scores(ndim) for item in parsed):
        raise ConfigError(
            f"a filter on coverage asks the mask of each image, but {bare[0]!r} has none; open "
            "the images with mask="
        )
    n_channels = min((image.layout.n_channels for image in images), default=1)
    for score in columns:
        if not 0 <= score.channel < n_channels:
            raise ConfigError(
                f"a score is of one of the image's {n_channels} channels, counted from 0, got "
                f"channel {score.channel} for {score.name!r}"
            )
    return {
        "filters": parsed,
        "scores": columns,
        "split": None if split is None else parse_split(split),
        "balance": parsed_as(BalanceConfig, "balance", balance),
        "quota": parsed_as(QuotaConfig, "quota", quota),
    }


def _check_told(found: Plan) -> None:
    """Refuse names that the manifest uses for what patches show, and sizes that differ."""
    if found.edge == "shrink" and (found.scores or found.balance is not None):
        raise ConfigError(
            "scores and classes are of patches of one size, got edge='shrink'; plan with "
            "edge='pad', 'shift' or 'drop'"
        )
    names = {name for image in found.images for name in image.metadata}
    names |= set() if found.places is None else {*found.places.columns.column_names}
    own = {score.column for score in found.scores}
    taken = sorted(names & own)
    if found.balance is not None:
        taken += sorted(n for n in names if n == "class" or n.startswith("fraction_"))
    if taken:
        raise ConfigError(
            f"what patches show becomes columns of the manifest, but the images or points have "
            f"columns called {taken}; rename these"
        )


def _refined(found: Plan, folder: Location | None, progress: bool) -> Plan:
    """The plan of candidates with only those that are taken."""
    contents, seen = asked(found), None
    if contents.is_asked:
        seen = survey_contents(found, contents, folder=folder, progress=progress)
    return refined(found, seen)


def _check(
    images: Sequence[Image],
    min_coverage: float | Fraction,
    edge: str,
    pad_mode: str,
) -> Fraction:
    if not images or not all(isinstance(image, Image) for image in images):
        raise PlanError("a plan is over at least one Image; open them with open_images")
    equal = sorted(name for name, n in Counter(i.id for i in images).items() if n > 1)
    if equal:
        raise IdentityError(
            f"every image of a plan has an id of its own, but several are called {equal}; name "
            "them when they are opened: ids=[...]"
        )
    if edge not in EDGES:
        raise ConfigError(f"edge= is one of {list(EDGES)}, got {edge!r}")
    if pad_mode not in PADDINGS:
        raise ConfigError(f"pad_mode= is one of {list(PADDINGS)}, got {pad_mode!r}")
    try:
        coverage = Fraction(str(min_coverage))
    except (ValueError, ZeroDivisionError):
        coverage = Fraction(-1)
    if not 0 <= coverage <= 1:
        raise ConfigError(
            f"min_coverage is a share from 0 to 1 (1: wholly covered), got {min_coverage!r}"
        )
    first = images[0]
    for image in images[1:]:
        for what, a, b in (
            ("dtype", first.dtype, image.dtype),
            ("spatial axes", first.axes.spatial, image.axes.spatial),
            ("number of channels", first.layout.n_channels, image.layout.n_channels),
            ("roles", _roles(first), _roles(image)),
        ):
            if a != b:
                raise PlanError(
                    f"the images of one plan have the same {what}, got {a} for {first.id!r} and "
                    f"{b} for {image.id!r}; plan them apart"
                )
    for image in images:
        for name, role in image.roles.items():
            if name == "mask" or is_context(name):
                continue
            same = role.image.layout.space.shape == image.layout.space.shape
            if not same or not role.alignment.is_identity or role.axes != image.axes.spatial:
                raise PlanError(
                    f"{name} are cut on the pixels of their image, got "
                    f"{role.image.layout.space.shape} for {image.layout.space.shape} in "
                    f"{image.id!r}; open the level that has its shape, or bring it there: "
                    "{'from': ..., 'resample': 'nearest'}"
                )
    return coverage


def _roles(image: Image) -> dict[str, tuple[Any, ...]]:
    return {
        name: (role.image.dtype, role.image.layout.n_channels)
        for name, role in image.roles.items()
        if name != "mask"
    }


def _is_smaller(image: Image, size: Sequence[int]) -> bool:
    return any(n < p for n, p in zip(image.layout.space.shape, size, strict=True))


def _check_fits(images: Sequence[Image], size: Sequence[int], strategy: GridPatching) -> None:
    spatial = images[0].axes.spatial
    if not strategy.may_stick_out and all(_is_smaller(image, size) for image in images):
        raise PatchSizeError(
            f"a patch fits into its image, got {list(size)} for {images[0].id!r} of "
            f"{dict(zip(spatial, images[0].layout.space.shape, strict=True))}"
            f"{' and all others' if len(images) > 1 else ''}; take a smaller patch, a finer level, "
            "or edge='pad'"
        )


def _whole(name: str, value: Any, least: int | None = None) -> int:
    """A setting that is an integer."""
    try:
        found = operator.index(value)
    except TypeError:
        found = None
    if found is None or (least is not None and found < least):
        bound = "" if least is None else f" of at least {least}"
        raise ConfigError(f"{name}= is an integer{bound}, got {value!r}")
    return found


def _check_whole(images: Sequence[Image], edge: str) -> None:
    shapes: dict[tuple[int, ...], str] = {}
    for image in images:
        shapes.setdefault(image.layout.space.shape, image.id)
    if edge not in ("pad", "shrink") and len(shapes) > 1:
        shown = ", ".join(f"{list(shape)} for {name!r}" for shape, name in [*shapes.items()][:5])
        raise PatchSizeError(
            f"the patches of one store have one size, got {len(shapes)} sizes of whole images "
            f"({shown}{', ...' if len(shapes) > 5 else ''}); take edge='pad', which gives all the "
            "largest extents, or plan the images of each size apart"
        )


def memory_of(memory: str | int | None) -> int:
    """Bytes that one task may use; None for what Dask's configuration says.

    Raises
    ------
    ConfigError
        If it is none.

    >>> memory_of("2 MiB")
    2097152
    """
    if memory is None:
        return Settings.now().memory
    try:
        found = int(parse_bytes(memory)) if isinstance(memory, str) else operator.index(memory)
    except (ValueError, TypeError):
        found = 0
    if found < 1:
        raise ConfigError(f"memory= is a number of bytes or text like '512 MiB', got {memory!r}")
    return found
