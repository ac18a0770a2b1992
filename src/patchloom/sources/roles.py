"""Roles: masks, labels and targets joined to their images, each on its own pixels."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import PurePath
from typing import Any

from patchloom.axes import Axes
from patchloom.coverage import Alignment
from patchloom.errors import AxesError, ConfigError, CoverageError, IdentityError, SourceError
from patchloom.image import Image, Role
from patchloom.location import Location
from patchloom.sources.arrays import is_array

__all__ = ["align", "further", "join", "named_for", "per_image", "role_axes"]

_ABREAST = 16
"""Roles whose metadata are asked for at a time: each waits for several answers in turn."""
_PRECISION = 4096
"""Ratios of spacings are rationals with a denominator up to this."""


_NAME = re.compile(r"[a-z][a-z0-9_]*")
_METRES = {
    "angstrom": 1e-10,
    "nanometer": 1e-9,
    "micrometer": 1e-6,
    "millimeter": 1e-3,
    "centimeter": 1e-2,
    "meter": 1.0,
    "kilometer": 1e3,
}
"""Length units of the NGFF specification that are in use, in metres."""


def join(
    items: Sequence[Any], images: Sequence[Image], name: str, make: Callable[[Any, Image], Role]
) -> list[Image]:
    """Give every image its role.

    Parameters
    ----------
    items
        What stands for the role of each image, or None; see `per_image`.
    images
        The images.
    name
        ``mask``, ``labels`` or ``target``.
    make
        Makes the role of one image.
    """
    asked = [(item, image) for image, item in zip(images, items, strict=True) if item is not None]
    if len(asked) > _ABREAST:
        with ThreadPoolExecutor(_ABREAST) as pool:
            roles = iter(list(pool.map(lambda pair: make(*pair), asked)))
    else:
        roles = iter([make(*pair) for pair in asked])
    return [
        image if item is None else image.with_role(name, next(roles))
        for image, item in zip(images, items, strict=True)
    ]


def per_image(
    given: Any,
    images: Sequence[Image],
    name: str,
    glob: Callable[[str], Sequence[str]] | None = None,
) -> list[Any]:
    """What is given for each image.

    Parameters
    ----------
    given
        One for all images; one per image in a list, or per image id in a mapping; a glob, whose
        files are matched to the images by id. Paths in a list go by id too, where each is called
        like one image; else by position.
    images
        The images.
    name
        ``mask``, ``labels``, ... for errors.
    glob
        Lists the files of a glob; None takes a glob as it is.

    Raises
    ------
    IdentityError
        If the list, mapping or files do not match the images one to one.
    """
    ids = [image.id for image in images]
    if isinstance(given, Mapping):
        if "from" in given and "from" not in ids:
            parts = per_image(given["from"], images, name, glob)
            return [None if part is None else {**given, "from": part} for part in parts]
        found = {str(key): item for key, item in given.items()}
        _check_both_sides([*found], ids, f"{name}= has one entry for each image id", "entries")
        return [found[i] for i in ids]
    if glob is not None and _is_glob(given):
        return _files_by_id(os.fspath(given), glob(os.fspath(given)), ids, name)
    if isinstance(given, list | tuple) and not is_array(given):
        if len(given) != len(images):
            raise IdentityError(
                f"{name}= is one for all or one for each image, got {len(given)} for "
                f"{len(images)} images {ids}"
            )
        if all(isinstance(item, str | os.PathLike) and os.fspath(item) for item in given):
            stems = {Location.of(item).stem: item for item in given}
            if stems.keys() == {*ids}:
                return [stems[i] for i in ids]
        return list(given)
    return [given] * len(images)


def _is_glob(given: Any) -> bool:
    if not isinstance(given, str | os.PathLike):
        return False
    text = os.fspath(given)
    web = text.startswith(("http://", "https://"))
    magic = set("*[" if web else "*?[") & set(text.partition("://")[2] or text)
    return bool(magic) and "{stem}" not in text and not os.path.exists(text)


def _files_by_id(pattern: str, paths: Sequence[str], ids: Sequence[str], name: str) -> list[str]:
    """The files of a glob, one for each image.

    What its one ``*`` stands for is the id, or a name whose stem that is; of a glob of other kind
    the stem of the path is.
    """
    parts = pattern.rstrip("/").split("/")
    starred = [k for k, part in enumerate(parts) if set("*?[") & set(part)]
    before, star, after = parts[starred[-1]].partition("*")
    one = len(starred) == 1 and star and not set("*?[") & set(before + after)
    back = starred[-1] - len(parts) if one else -1
    found: dict[str, list[str]] = {}
    for path in paths:
        text = path.rstrip("/").split("/")[back]
        if one:
            text = text[len(before) : len(text) - len(after)]
        stem = text if text in ids else Location.of(text).stem
        found.setdefault(stem, []).append(path)
    what = f"{name}={Location.of(pattern).shown!r} has one file for each image"
    _check_both_sides([*found], ids, what, "files for")
    twice = {i: [Location.of(p).shown for p in some] for i, some in found.items() if len(some) > 1}
    if twice:
        raise IdentityError(f"{what}, but several for these: {twice}; give a narrower pattern")
    return [found[i][0] for i in ids]


def _check_both_sides(found: Sequence[str], ids: Sequence[str], law: str, what: str) -> None:
    """Refuse what stands on one side only, of what is joined by id."""
    sides = (
        (what, sorted({*found} - {*ids}), "an image"),
        ("images", sorted({*ids} - {*found}), "one"),
    )
    alone = [f"{side} {some} without {other}" for side, some, other in sides if some]
    if alone:
        raise IdentityError(
            f"{law}, but these stand on one side only: {', '.join(alone)}; give one for each"
        )


def further(targets: Any, weights: Any) -> dict[str, Any]:
    """What is given for further arrays that are cut along, by their names in a store.

    Parameters
    ----------
    targets
        By names of the user's.
    weights
        As given.

    Raises
    ------
    ConfigError
        If a name could be no array's.
    """
    if targets is None:
        targets = {}
    names = [*targets] if isinstance(targets, Mapping) else [None]
    wrong = [n for n in names if not isinstance(n, str) or not _NAME.fullmatch(n)]
    if wrong:
        raise ConfigError(
            "targets= is a mapping from names (small letters, digits and _, a letter first) to "
            f"what target= takes, got {wrong[0] if isinstance(targets, Mapping) else targets!r}"
        )
    found = {f"targets_{name}": given for name, given in targets.items()}
    return found if weights is None else {**found, "weights": weights}


def named_for(item: Any, image: Image) -> Any:
    """A path or URL with the image's id in place of ``{stem}``; anything else as it is.

    Raises
    ------
    IdentityError
        If the id would lead out of the folder.
    """
    if not isinstance(item, str | os.PathLike):
        return item
    pattern = os.fspath(item)
    if "{stem}" not in pattern:
        return pattern
    found, own = pattern.replace("{stem}", image.id), _parts(image.id)
    if (
        ".." in own
        or _parts(found).count("..") > _parts(pattern).count("..")
        or own[0] == ""
        or (own[0][:1] == "~" and pattern.startswith("{stem}"))
        or "://" in image.id
        or "::" in image.id
        or PurePath(image.id).is_absolute()
    ):
        raise IdentityError(
            "an id in place of {stem} stays in the folder of the pattern: no '..' and no absolute "
            f"path or URL, got {image.id!r}; name the images otherwise: ids=[...]"
        )
    return found


def _parts(path: str) -> list[str]:
    return path.replace("\\", "/").split("/")


def align(image: Image, other: Image, name: str) -> Role:
    """Where the pixels of another array lie on the image's.

    Physical coordinates decide where both have them; else the ratio of the shapes.

    Raises
    ------
    AxesError
        If the other array has an axis that the image lacks.
    CoverageError
        If it does not reach over the whole image (one of its own pixels is tolerated).
    """
    spatial = other.axes.spatial
    if not set(spatial) <= set(image.axes.spatial) or set(image.axes.spatial) - set(spatial) - {
        "z"
    }:
        raise AxesError(
            f"a {name} has the spatial axes of its image ({image.axes.spatial!r}; z may be "
            f"missing), got {spatial!r} for {image.id!r}; pick the array that shows the same field"
        )
    n = other.layout.n_samples
    if n not in (1, image.layout.n_samples):
        raise AxesError(
            f"a {name} has one sample or as many as its image ({image.layout.n_samples}), got {n} "
            f"for {image.id!r}"
        )
    if name == "mask" and other.layout.n_channels != 1:
        raise AxesError(
            f"a mask has one channel, got {other.layout.n_channels} for {image.id!r}; "
            "reduce it first, for example mask.any(axis)"
        )
    shape = _extents(image, spatial)
    extents = _extents(other, spatial)
    physical = all(a in image.spacing and a in other.spacing for a in spatial)
    alignment = (
        _physical(image, other, spatial) if physical else Alignment.of_shapes(shape, extents)
    )
    if not physical:
        _check_aspect(image, shape, extents, spatial, name)
    for axis, s, o, have, need in zip(
        spatial, alignment.scale, alignment.offset, extents, shape, strict=True
    ):
        slack = max(s, Fraction(1))
        if o > slack or o + have * s < need - slack:
            raise CoverageError(
                f"a {name} covers its whole image, but along {axis} that of {image.id!r} reaches "
                f"from pixel {float(o):g} to {float(o + have * s):g} of 0 to {need}; "
                "pick the one of this image, or mend its scale and translation"
            )
    return Role(other, alignment, spatial)


def role_axes(image: Image, ndim: int) -> Axes:
    """The axes of a role's array that does not name them, from its image's."""
    axes = image.axes
    spatial = "".join(a for a in axes.names if a in axes.spatial)
    sampled = "".join(a for a in axes.names if a != "c")
    for names in (axes.names, spatial, sampled, spatial.replace("z", "")):
        if len(names) == ndim:
            return Axes(names)
    raise AxesError(
        f"a role has the axes of its image ({axes}) or its spatial ones ({spatial.upper()}), got "
        f"an array of {ndim} dimensions for {image.id!r}; give one with named axes"
    )


def _extents(image: Image, axes: str) -> list[int]:
    return [image.shape[image.axes.names.index(a)] for a in axes]


def _physical(image: Image, other: Image, spatial: str) -> Alignment:
    scale, offset = [], []
    # Many writers leave out the half-pixel shift of a coarser level: two arrays that both
    # declare no translation begin at the same edge.
    plain = not any(image.origin.get(a) or other.origin.get(a) for a in spatial)
    for a, have, need in zip(
        spatial, _extents(other, spatial), _extents(image, spatial), strict=True
    ):
        unit = _in_unit_of(image, other, a)
        ratio = other.spacing[a] * unit / image.spacing[a]
        if not ratio > 0:
            raise SourceError(f"a spacing is above 0, got {other.spacing[a]} along {a}")
        exact = Fraction(need, have)
        if abs(ratio - exact) > 1e-6 * ratio:
            exact = Fraction(ratio).limit_denominator(_PRECISION)
        shift = (other.origin.get(a, 0.0) * unit - image.origin.get(a, 0.0)) / image.spacing[a]
        begin = 0.0 if plain else shift - (float(exact) - 1) / 2
        scale.append(exact)
        offset.append(
            Fraction(0) if abs(begin) < 1e-3 else Fraction(begin).limit_denominator(_PRECISION)
        )
    return Alignment(tuple(scale), tuple(offset))


def _in_unit_of(image: Image, other: Image, axis: str) -> float:
    """One unit of the other array in units of the image."""
    here, there = image.unit.get(axis, ""), other.unit.get(axis, "")
    if here == there or not here or not there:
        return 1.0
    if here not in _METRES or there not in _METRES:
        raise SourceError(
            f"physical units are compared if both are one of {sorted(_METRES)}, got {there!r} for "
            f"{here!r} along {axis} of {image.id!r}; write the same unit into both"
        )
    return _METRES[there] / _METRES[here]


def _check_aspect(
    image: Image, shape: Sequence[int], extents: Sequence[int], spatial: str, name: str
) -> None:
    """Refuse arrays that cannot show the same field: their aspect ratio is another one."""
    if "y" not in spatial:
        return
    (h, m), (w, n) = ((shape[k], extents[k]) for k in (spatial.index("y"), spatial.index("x")))
    # Rounding moves each extent by less than one pixel.
    low = max(Fraction(h, m + 1), Fraction(w, n + 1))
    # One pixel may stand for any part of what a larger one would show.
    high = [Fraction(a, b - 1) for a, b in ((h, m), (w, n)) if b > 1]
    ratio = Fraction(h * n, m * w)
    if high and low > min(high) and not Fraction(4, 5) <= ratio <= Fraction(5, 4):
        raise CoverageError(
            f"a {name} covers its whole image, but {name} of {m} x {n} pixels has another aspect "
            f"ratio than {image.id!r} of {h} x {w} (y, x); pick the one of this image, or give it "
            "a physical scale (OME-Zarr)"
        )
