"""Collections: the fields of plates and wells, and the series of bioformats2raw."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from patchloom.errors import SourceError, SourceMissingError
from patchloom.image import Image
from patchloom.sources.levels import image_at, pick_level
from patchloom.sources.ome_zarr import ome_of
from patchloom.sources.zarrs import Node, open_nodes

__all__ = ["images_of_collection"]

Column = str | int
_SERIES = re.compile(rb"<(?:[A-Za-z_][\w.-]*:)?Image[\s>/]")
_SHOWN = 20


@dataclass(frozen=True)
class _Member:
    """One image of a collection."""

    path: str
    """Below the collection."""
    columns: Mapping[str, Column] = field(default_factory=dict)


def images_of_collection(
    node: Node, axes: str | None, level: int | str, name: str, alone: bool
) -> list[Image] | None:
    """All images of a plate, a well or what bioformats2raw wrote; None if a group is none of them.

    Their metadata are read in three batches, whatever their number.

    Parameters
    ----------
    node
        The group.
    axes, level
        As in `open_images`, for every image.
    name
        What the collection is called.
    alone
        Whether no other is opened with it: then the ids of fields need not begin with its name.

    Raises
    ------
    SourceError
        If metadata are wrong, or list what is not there.
    """
    ome = ome_of(node.attributes)
    try:
        if isinstance(ome.get("plate"), Mapping):
            members = _of_plate(node, ome["plate"])
            prefix = "" if alone else f"{name}/"
        elif isinstance(ome.get("well"), Mapping):
            members = _with_well(node, _of_well(node, ome["well"]))
            prefix = f"{members[0].columns['well']}/"
        elif "bioformats2raw.layout" in ome and not ome.get("multiscales"):
            members = _of_series(node, ome)
            prefix = f"{name}/"
        else:
            return None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(
            f"{node.location.shown!r} has OME-Zarr metadata that cannot be read: "
            f"{type(error).__name__}: {error}; mend them, or open the images inside one by one"
        ) from error
    return _images(node, members, axes, level, prefix)


def _images(
    node: Node, members: Sequence[_Member], axes: str | None, level: int | str, prefix: str
) -> list[Image]:
    groups = _all(node, [m.path for m in members], "image")
    paths = []
    for group in groups:
        levels, index = pick_level(group, level)
        if not levels:
            raise SourceError(
                f"every member of a collection is an OME-Zarr image, but {group.location.shown!r} "
                "has no multiscales; restore it, or open the others by a list"
            )
        paths.append(levels[index].path)
    arrays = _all(
        node, [f"{m.path}/{path}" for m, path in zip(members, paths, strict=True)], "array"
    )
    found = []
    for member, group, array in zip(members, groups, arrays, strict=True):
        image = image_at(group, axes, level, prefix + member.path, array)
        assert image is not None
        found.append(replace(image, metadata=dict(member.columns)))
    return found


def _all(node: Node, paths: Sequence[str], what: str) -> list[Node]:
    """The nodes that a collection lists, if all are there."""
    if len(set(paths)) < len(paths) or not all(map(_is_safe, paths)):
        raise SourceError(
            f"a collection lists every {what} once, by a path below it, got {list(paths[:_SHOWN])} "
            f"in {node.location.shown!r}; mend its metadata"
        )
    found = open_nodes(node.location, paths, node.format)
    missing = [path for path, child in zip(paths, found, strict=True) if child is None]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise SourceMissingError(
            f"a collection holds every {what} that its metadata list, but {node.location.shown!r} "
            f"lacks {len(missing)} of {len(paths)}: {missing[:_SHOWN]}{more}; restore them, or "
            "open what is there by a list or a glob"
        )
    return [child for child in found if child is not None]


def _is_safe(path: str) -> bool:
    return not {"", ".", ".."} & {*path.replace("\\", "/").split("/")} and "::" not in path


def _of_plate(node: Node, plate: Mapping[str, Any]) -> list[_Member]:
    listed = list(plate["wells"])
    paths = [str(well["path"]).strip("/") for well in listed]
    if not paths:
        raise SourceError(
            f"a plate has at least one well, but {node.location.shown!r} lists none; open the "
            "images inside it by a list"
        )
    wells = _all(node, paths, "well")
    known = {int(a["id"]): a for a in plate.get("acquisitions") or ()}
    members = []
    for path, well, told in zip(paths, wells, listed, strict=True):
        row, column = _place(plate, told, path)
        for inner in _of_well(well, ome_of(well.attributes)["well"]):
            acquisition = inner.columns.get("acquisition")
            if known and acquisition is not None and acquisition not in known:
                raise SourceError(
                    f"a field is of an acquisition of its plate, which are {sorted(known)}, got "
                    f"{acquisition} in well {path!r} of {node.location.shown!r}; mend its metadata"
                )
            own = {"well": path, "well_row": row, "well_column": column}
            members.append(_Member(f"{path}/{inner.path}", {**own, **inner.columns}))
    return members


def _place(plate: Mapping[str, Any], well: Mapping[str, Any], path: str) -> tuple[str, str]:
    """The names of a well's row and column."""
    found = []
    for side, key, k in (("rows", "rowIndex", 0), ("columns", "columnIndex", 1)):
        names = [str(item["name"]) for item in plate.get(side) or ()]
        index = well.get(key)
        found.append(path.split("/")[k] if index is None or not names else names[_index(index)])
    return found[0], found[1]


def _index(value: Any) -> int:
    index = int(value)
    if index < 0:
        raise IndexError(f"an index counts from 0, got {value}")
    return index


def _of_well(well: Node, told: Mapping[str, Any]) -> list[_Member]:
    members = []
    for image in told["images"]:
        path = str(image["path"]).strip("/")
        columns: dict[str, Column] = {"field": path}
        if image.get("acquisition") is not None:
            columns["acquisition"] = int(image["acquisition"])
        members.append(_Member(path, columns))
    if not members:
        raise SourceError(
            f"a well has at least one field, but {well.location.shown!r} lists none; leave the "
            "well out of the plate's metadata"
        )
    return members


def _with_well(node: Node, fields: Sequence[_Member]) -> list[_Member]:
    """The fields of a well by itself: its row and column are the last names of its URL."""
    row, column = node.location.parent.stem, node.location.stem
    own: dict[str, Column] = {"well": f"{row}/{column}", "well_row": row, "well_column": column}
    return [replace(member, columns={**own, **member.columns}) for member in fields]


def _of_series(node: Node, ome: Mapping[str, Any]) -> list[_Member]:
    """One image a series: as a list names them, else as many as the OME-XML describes."""
    if ome["bioformats2raw.layout"] != 3:
        raise SourceError(
            f"bioformats2raw's layout is read as of version 3, got "
            f"{ome['bioformats2raw.layout']!r} in {node.location.shown!r}; open the images inside "
            "by a list"
        )
    [described] = open_nodes(node.location, ["OME"], node.format)
    listed = None if described is None else ome_of(described.attributes).get("series")
    if listed is not None:
        return [_Member(str(path).strip("/")) for path in listed]
    xml = node.location.read("OME/METADATA.ome.xml")
    if xml is not None:
        # Only the number of images counts: nothing is expanded, so nothing can explode.
        return [_Member(str(k)) for k in range(len(_SERIES.findall(_uncommented(xml))))]
    found = _counted(node)
    if not found:
        raise SourceMissingError(
            "a collection of bioformats2raw lists its series under OME, or has images 0, 1, ..., "
            f"but {node.location.shown!r} has neither; restore them"
        )
    return found


def _uncommented(xml: bytes) -> bytes:
    return re.sub(rb"<!--.*?-->|<!\[CDATA\[.*?\]\]>", b"", xml, flags=re.DOTALL)


def _counted(node: Node) -> list[_Member]:
    """Series 0, 1, ... as far as they are there."""
    found: list[_Member] = []
    while True:
        paths = [str(k) for k in range(len(found), 2 * len(found) + 8)]
        there = open_nodes(node.location, paths, node.format)
        n = next((k for k, child in enumerate(there) if child is None), len(there))
        found += [_Member(path) for path in paths[:n]]
        if n < len(there):
            return found
