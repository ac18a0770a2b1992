"""`patchloom init`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click

from patchloom.cli.declaring import command
from patchloom.cli.planes import axes_instead
from patchloom.cli.tables import times
from patchloom.errors import ConfigError, NotAnArrayError, PatchloomError

if TYPE_CHECKING:
    from patchloom.image import Image

__all__ = ["init_command"]

_ROLES = {
    "mask": ("mask", "masks"),
    "labels": ("labels", "label", "segmentation", "segmentations", "annotations"),
}
"""Folders beside the images that are tried, by what may lie in them."""
_IMAGES = ("images", "image", "imgs", "img", "raw", "data")
"""Folders of images that are tried inside a folder without."""
_EXTENTS = {1: (1024,), 2: (256, 256), 3: (32, 128, 128)}
"""Extents of a patch, by the number of spatial axes, where images are large enough."""


@command("init")
@click.argument("images", type=click.Path())
@click.option("--mask", metavar="MASK", help="Where patches may lie, as in a job.")
@click.option("--labels", metavar="LABELS", help="Label images to cut along, as in a job.")
@click.option("--output", metavar="URL", help="Of the store; by default beside the current folder.")
def init_command(images: str, mask: str | None, labels: str | None, output: str | None) -> None:
    """Print a job file to begin with, for the folder, glob or URL IMAGES.

    Opens the images, no pixel is read; says in comments what it found, suggests a size of patches,
    and takes masks and labels from folders of these names beside the images. Then change it:

    patchloom init FOLDER > job.yaml
    """
    url, found = _opened(images)
    given = {"mask": mask, "labels": labels}
    roles, notes = _roles(url, found, given)
    click.echo("\n".join(_lines(images, url, found, roles, notes, output)))


def _opened(images: str) -> tuple[str, list[Image]]:
    """The images, which may lie in a folder of the one that was named."""
    from patchloom.sources.opening import open_images

    try:
        return images, open_images(images)
    except NotAnArrayError:
        inside = [Path(images) / name for name in _IMAGES]
        for folder in filter(Path.is_dir, inside):
            if _is_zarr(Path(images)):
                break
            try:
                return folder.as_posix(), open_images(str(folder))
            except PatchloomError:
                continue
        raise


def _roles(
    url: str, found: Sequence[Image], given: dict[str, str | None]
) -> tuple[dict[str, str], dict[str, str]]:
    """What lies over the images, and why something that is there was left out."""
    from patchloom.sources.opening import open_images

    roles = {name: value for name, value in given.items() if value is not None}
    if roles:
        open_images(url, mask=roles.get("mask"), labels=roles.get("labels"))
    notes: dict[str, str] = {}
    for name, folders in _ROLES.items():
        if name in roles:
            continue
        for pattern in _beside(url, folders):
            tried: dict[str, Any] = {name: pattern}
            try:
                open_images(url, **tried)
            except PatchloomError as error:
                notes[name] = f"{pattern} does not fit: {error}"
                continue
            roles[name] = pattern
            notes.pop(name, None)
            break
    return roles, notes


def _beside(url: str, names: Sequence[str]) -> Iterator[str]:
    """Globs of the files in folders of some names beside the images."""
    if "://" in url or "::" in url:
        return
    parts = [p for p in PurePosixPath(url).parts if not any(c in p for c in "*?[")]
    folder = Path(*parts) if parts else Path()
    for root in dict.fromkeys((folder.parent, folder)):
        if _is_zarr(root):
            continue
        for name in names:
            inside = root / name
            if inside.is_dir() and inside != folder:
                files = [p for p in inside.iterdir() if not p.name.startswith(".")]
                suffixes = Counter("".join(p.suffixes[-2:]) for p in files)
                if suffixes:
                    yield (inside / f"*{suffixes.most_common(1)[0][0]}").as_posix()


def _is_zarr(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("zarr.json", ".zgroup", ".zattrs", ".zarray"))


def _patch_size(images: Sequence[Image]) -> list[int]:
    """A power of two on each spatial axis that fits into every image."""
    spaces = [image.layout.space.shape for image in images]
    usual = _EXTENTS.get(len(spaces[0]))
    if usual is None:
        raise ConfigError(f"space has 1 to 3 axes, got {len(spaces[0])} in {images[0].id!r}")
    least = [min(extents) for extents in zip(*spaces, strict=False)]
    return [
        min(n, 2 ** (max(int(m), 1).bit_length() - 1)) for n, m in zip(usual, least, strict=True)
    ]


def _lines(
    asked: str,
    url: str,
    images: Sequence[Image],
    roles: dict[str, str],
    notes: dict[str, str],
    output: str | None,
) -> Iterator[str]:
    """The job file."""
    from patchloom.config import MODELINE, Job
    from patchloom.location import Location

    size = _patch_size(images)
    stem = PurePosixPath(url.split("*")[0].rstrip("/")).name.split(".")[0] or "images"
    target = output or f"{stem}-patches.zarr"
    Job.model_validate(
        {
            "images": url,
            "output": target,
            "patching": {"name": "sequential", "patch_size": size},
            **roles,
        }
    )
    yield MODELINE
    begun = Location.of(asked).shown if "://" in asked else asked
    yield f"# Begun by: patchloom init {_line(begun)}"
    yield "# Look at it, then: patchloom plan job.yaml, patchloom run job.yaml"
    yield "#"
    yield from (f"# {_line(line)}" for line in _told(images))
    yield ""
    yield f"images: {_text(url)}"
    if (other := axes_instead(images)) is not None:
        yield f"# axes: {other[0]}  # if its {other[1]} are channels; patch_size then without z"
    ways = {
        "mask": "# where patches may lie; masks/{stem}.tif is the mask of each image",
        "labels": "# label images to cut along, such as labels/{stem}.tif",
    }
    for name, says in ways.items():
        if name in roles:
            yield f"{name}: {_text(roles[name])}  {says.partition(';')[0].partition(',')[0]}"
        else:
            yield f"# {name}:  {says}"
            if name in notes:
                yield f"#   {_line(notes[name])}"
    space = ", ".join(images[0].axes.spatial)
    yield "patching:"
    yield "  name: sequential  # docs/strategies.md has the others: random, stratified, points, ..."
    yield f"  patch_size: {size}  # pixels along {space}"
    yield f"  overlaps: {[0] * len(size)}"
    covered = "min_coverage: 0.5  # share of a patch that the mask must cover"
    yield covered if "mask" in roles else f"# {covered}"
    yield "# filters: [{name: max, threshold: 100}]  # what pixels must show; docs/filters.md"
    yield "# split: {shares: {train: 0.8, val: 0.2}}  # docs/splits.md"
    yield "# order: shuffled  # mixed in the store itself; docs/orders.md"
    yield "# normalize: percentile  # pixels are stored as they are, unless this scales them"
    yield f"output: {_text(target)}"


def _told(images: Sequence[Image]) -> Iterator[str]:
    """What was found, in words."""
    first = images[0]
    some = f"{len(images):,} image{'s' * (len(images) > 1)}"
    yield f"Found {some} with the axes {_counted(str(i.axes) for i in images)}."
    shapes = [image.shape for image in images]
    low, high = min(shapes), max(shapes)
    span = times(low) if low == high else f"{times(low)} to {times(high)}"
    yield f"Shape {span}, type {_counted(i.dtype.name for i in images)}."
    chunks = _counted(times(i.grid.chunks) for i in images)
    yield f"Decoded at once: {chunks} pixels."
    if first.channels:
        yield f"Channels: {', '.join(first.channels)}."
    if first.spacing:
        spacing = (f"{a} {v:g} {first.unit.get(a, '')}".strip() for a, v in first.spacing.items())
        yield f"Spacing: {', '.join(spacing)}."
    if first.levels:
        yield f"Levels besides this one: {len(first.levels)}; level: takes a coarser one."


def _counted(texts: Iterator[str]) -> str:
    """A text, or several with how often each occurs."""
    found = Counter(texts).most_common(4)
    if len(found) == 1:
        return found[0][0]
    return ", ".join(f"{text} ({n:,})" for text, n in found)


def _line(text: str) -> str:
    r"""A text that stays in the line of its comment, whatever names say.

    >>> _line("a\nb")
    'a b'
    """
    return "".join(c if c.isprintable() else " " for c in text)


def _text(value: str) -> str:
    """A text in YAML: quoted where it would mean something else.

    >>> _text("a.tif"), _text("2021-01-31")
    ('a.tif', '"2021-01-31"')
    """
    import yaml

    plain = all(c.isalnum() or c in "/._-" for c in value) and not value[:1].isdecimal()
    if plain and yaml.safe_load(value) == value:
        return value
    quoted: str = yaml.safe_dump(value, default_style='"', allow_unicode=True, width=2**20)
    return quoted.rstrip("\n")
