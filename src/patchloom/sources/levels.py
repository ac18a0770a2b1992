"""Levels: the one array of an OME-Zarr image that is opened, and label images that fit it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from patchloom.errors import NotAnArrayError, SourceError, SourceMissingError
from patchloom.image import Image
from patchloom.sources.handles import image_of_node
from patchloom.sources.ome_zarr import Level, label_names, multiscales_of
from patchloom.sources.pyramids import ZarrPyramid
from patchloom.sources.zarrs import Node, ZarrSource, open_node, open_nodes

__all__ = ["array_of", "image_at", "label_group", "matching_level", "pick_level"]


def pick_level(node: Node, level: int | str) -> tuple[list[Level], int]:
    """The levels of the OME-Zarr image at a group, and the number of the one that is asked for.

    No levels where there is no OME-Zarr image.

    Parameters
    ----------
    node
        The group.
    level
        Its number, or its path, which may also tell which of several multiscales is meant.

    Raises
    ------
    SourceError
        If there is no such level, or several.
    """
    found = multiscales_of(node)
    paths = [[lv.path for lv in levels] for levels in found]
    if isinstance(level, str):
        named = [k for k, names in enumerate(paths) if level in names]
        if len(named) == 1:
            return found[named[0]], paths[named[0]].index(level)
    elif type(level) is int and len(found) == 1 and 0 <= level < len(paths[0]):
        _check_order(found[0], level, node)
        return found[0], level
    if not found:
        return [], 0
    if len(found) > 1:
        raise SourceError(
            f"a level is one array, but {node.location.shown!r} has {len(found)} multiscales, with "
            f"the levels {paths}, got {level!r}; give the path of one: level=..."
        )
    raise SourceError(
        f"level= is a number from 0 (finest) to {len(paths[0]) - 1}, or a path out of {paths[0]}, "
        f"got {level!r} for {node.location.shown!r}"
    )


def _check_order(levels: Sequence[Level], level: int, node: Node) -> None:
    """Numbers count from fine to coarse: a list that goes another way has none."""
    for fine, coarse in pairwise(levels):
        pairs = zip(fine.axes, fine.scale, coarse.scale, strict=False)
        if any(a in "zyx" and s > t * (1 + 1e-6) for a, s, t in pairs):
            raise SourceError(
                f"levels are numbered from fine to coarse, but {coarse.path!r} is finer than "
                f"{fine.path!r}, which stands before it, in {node.location.shown!r}, got "
                f"level={level!r}; name the level by its path"
            )


def image_at(
    node: Node, axes: str | None, level: int | str, name: str, array: Node | None = None
) -> Image | None:
    """The image that stands at an array or an OME-Zarr group; None for any other group.

    Parameters
    ----------
    node
        What was found.
    axes, level
        As in `open_images`.
    name
        The image's id.
    array
        The array of the level, if it is known already.

    Raises
    ------
    SourceError
        If levels do not fit.
    """
    levels, index = pick_level(node, level) if node.array is None else ([], 0)
    if not levels:
        if level != 0 and node.array is not None:
            raise SourceError(
                f"only an OME-Zarr image has levels, but {node.location.shown!r} is none, got "
                f"level={level!r}; leave level out, or name the array itself"
            )
        return None if node.array is None else image_of_node(node, axes, name, None, 0)
    chosen = levels[index]
    if array is None:
        [array] = open_nodes(node.location, [chosen.path], node.format)
    array = array_of(array, node, chosen.path)
    image = image_of_node(array, axes, name, chosen, index)
    is_only = len(multiscales_of(node)) == 1
    coarser = ZarrPyramid(node.location) if is_only and index + 1 < len(levels) else None
    return replace(image, pyramid=coarser)


def array_of(found: Node | None, group: Node, path: str) -> Node:
    """The array of a level, if it is there."""
    if found is None or found.array is None:
        what = "is no array" if found is not None else "is not there"
        kind = NotAnArrayError if found is not None else SourceMissingError
        raise kind(
            f"level {path!r} of {group.location.shown!r} is listed in its metadata but {what}; "
            "restore it, or open another level"
        )
    return found


def label_group(name: str, image: Image) -> Node | None:
    """The label image of an OME-Zarr image or a SpatialData store, if `name` is the name of one.

    Raises
    ------
    SourceMissingError
        If there are label images, but neither one of that name nor a file.
    """
    stray = "::" in name or "/" in name.strip("/") or name in (".", "..", "")
    source = getattr(image.source, "image", image).source  # of the whole, if channels were chosen
    if stray or not isinstance(source, ZarrSource):
        return None
    above = source.location
    # The image array lies one or more names below the group that holds "labels".
    for _ in range(3):
        above = above.parent
        try:
            [labels] = open_nodes(above, ["labels"], source.metadata.format)
        except SourceError:  # above an image nobody need have access
            continue
        if labels is None:
            continue
        listed = label_names(labels.attributes)
        if name in listed:
            return open_node(labels.location / name)
        if not listed:
            [found] = open_nodes(labels.location, [name], source.metadata.format)
            if found is not None:
                return found
        if not os.path.exists(name):
            raise SourceMissingError(
                f"{image.id!r} has the label groups {listed}, got {name!r}; name one of them, "
                "or give a path"
            )
    return None


def matching_level(group: Node, image: Image, level: int | str) -> Image | None:
    """The level of a label image on the image's own pixels, else the finest.

    None if the group is no OME-Zarr image.
    """
    levels, _ = pick_level(group, 0) if group.array is None else ([], 0)
    chosen = None
    order = list(range(len(levels)))
    if isinstance(level, int) and level < len(levels):
        order = [level, *(k for k in order if k != level)]
    for index in order:
        candidate = image_at(group, None, index, image.id)
        assert candidate is not None
        same = all(
            candidate.shape[candidate.axes.names.index(a)] == image.shape[image.axes.names.index(a)]
            for a in candidate.axes.spatial
            if a in image.axes.names
        )
        if same:
            return candidate
        chosen = chosen or candidate
    return chosen
