"""The workloads: seeded images like those of the field, their masks, and the patches asked of them.

An image is Gaussian blobs on an even background under camera noise, so that it compresses about
twofold, as real microscopy does, and not as pure noise or a flat field would.  It is a pure
function of ``(seed, channel, position)``: chunks are drawn one by one, in any order, and no more
than one chunk a thread is ever in memory.
"""

from __future__ import annotations

import itertools
import math
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec

BACKGROUND = 300.0
"""Grey level without a blob."""
NOISE = 10.0
"""Standard deviation of the camera noise, in grey levels."""
AMPLITUDES = (100.0, 1000.0)
"""Smallest and largest peak of a blob above the background."""
REACH = 3.0
"""A blob is cut off this many widths from its centre."""
STAINS = ((0.65, 0.07), (0.70, 0.99), (0.29, 0.11))
"""How strongly haematoxylin and eosin absorb red, green and blue."""
GENERATION = 1
"""Changes whenever the pixels of an equal :class:`Dataset` would; part of the cache's names."""


@dataclass(frozen=True)
class Dataset:
    """An image with its mask, described but not drawn.

    Parameters
    ----------
    name
        First part of the folder's name in the cache.
    axes
        One letter an axis, slowest first; ``c`` is the channel, the others are spatial.
    shape, chunks
        Pixels of the image and of one storage chunk along each axis.
    blob_width
        Standard deviation of a blob, in pixels.
    blob_spacing
        There is one blob in so many pixels along each spatial axis.
    mask_width
        Width of the mask's smoothing, in cells of the mask: larger values give larger islands.
    mask_factor
        Pixels a cell of the mask spans along each spatial axis.
    mask_fraction
        Share of the cells that are set.
    seed
        Seeds everything drawn.
    dtype
        Of the pixels.
    base
        Where the pixels come from if the image is one that was repeated: chunk ``i`` along an
        axis is chunk ``i % n`` of the base, which has ``n``.
    """

    name: str
    axes: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    blob_width: float
    blob_spacing: int
    mask_width: float
    mask_factor: int = 16
    mask_fraction: float = 0.4
    seed: int = 7
    dtype: str = "uint16"
    base: Dataset | None = None

    @property
    def spatial(self) -> tuple[int, ...]:
        """Positions of the spatial axes."""
        return tuple(i for i, axis in enumerate(self.axes) if axis != "c")

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """Cells of the mask along each spatial axis."""
        return tuple(-(-self.shape[i] // self.mask_factor) for i in self.spatial)

    def repeated(self, name: str, times: tuple[int, ...]) -> Dataset:
        """Return this image side by side with itself, under a mask drawn for the whole.

        Parameters
        ----------
        name
            First part of the new folder's name.
        times
            How often along each axis.

        Returns
        -------
        Dataset
            The same chunks, in a larger grid.
        """
        shape = tuple(n * t for n, t in zip(self.shape, times, strict=True))
        return replace(self, name=name, shape=shape, base=self)

    def scaled(self, scale: float) -> Dataset:
        """Shrink the spatial axes; chunks stay, and at least two of them along each axis.

        Parameters
        ----------
        scale
            Factor on the length of each spatial axis, at most 1.

        Returns
        -------
        Dataset
            The same kind of image, whole chunks long.
        """
        if not 0 < scale <= 1:
            raise ValueError(f"scale must lie in (0, 1], got {scale}")
        shape = list(self.shape)
        for i in self.spatial:
            n_chunks = max(2, round(self.shape[i] * scale / self.chunks[i]))
            shape[i] = min(self.shape[i], n_chunks * self.chunks[i])
        if self.base is None:
            return replace(self, shape=tuple(shape))
        times = tuple(n // m for n, m in zip(self.shape, self.base.shape, strict=True))
        return self.base.scaled(scale).repeated(self.name, times)

    def chunk(self, index: tuple[int, ...]) -> npt.NDArray[Any]:
        """Draw one storage chunk, cut at the image's border.

        Parameters
        ----------
        index
            Position of the chunk in the grid of chunks.

        Returns
        -------
        numpy.ndarray
            The chunk's pixels.
        """
        start = [i * c for i, c in zip(index, self.chunks, strict=True)]
        shape = [min(c, n - s) for s, c, n in zip(start, self.chunks, self.shape, strict=True)]
        rng = np.random.default_rng([self.seed, 0, *index])
        pixels = rng.standard_normal(shape, dtype=np.float32)
        pixels *= np.float32(NOISE)
        pixels += np.float32(BACKGROUND)
        channels = range(shape[0]) if self.axes[0] == "c" else range(1)
        for channel in channels:
            plane = pixels[channel] if self.axes[0] == "c" else pixels
            first = start[0] + channel if self.axes[0] == "c" else 0
            self._add_blobs(plane, first, [start[i] for i in self.spatial])
        return np.clip(np.rint(pixels), 0, np.iinfo(np.uint16).max).astype(np.uint16)

    def _add_blobs(self, plane: npt.NDArray[np.float32], channel: int, start: list[int]) -> None:
        """Add to `plane`, which begins at `start`, every blob that reaches into it.

        The blobs of one chunk-sized cell are drawn from that cell's own generator, and a plane
        asks its own cell and those around it, so blobs run across chunk borders unbroken.
        """
        cell = np.array([self.chunks[i] for i in self.spatial])
        reach = math.ceil(REACH * self.blob_width)
        if reach > cell.min():
            raise ValueError(f"blobs reach {reach} pixels, further than a chunk ({cell.tolist()})")
        n_blobs = max(1, math.prod(cell.tolist()) // self.blob_spacing**cell.size)
        here = np.array(start) // cell
        for step in itertools.product((-1, 0, 1), repeat=cell.size):
            at = here + step
            if (at < 0).any():
                continue
            rng = np.random.default_rng([self.seed, 1, channel, *at.tolist()])
            centres = rng.integers(0, cell, size=(n_blobs, cell.size)) + at * cell - start
            peaks = rng.uniform(*AMPLITUDES, size=n_blobs).astype(np.float32)
            for centre, peak in zip(centres, peaks, strict=True):
                low = np.maximum(centre - reach, 0)
                high = np.minimum(centre + reach + 1, plane.shape)
                if (low >= high).any():
                    continue
                blob: npt.NDArray[np.float32] = np.array(peak)
                for a, b, c in zip(low, high, centre, strict=True):
                    offset = (np.arange(a, b, dtype=np.float32) - c) / np.float32(self.blob_width)
                    blob = blob[..., np.newaxis] * np.exp(-(offset**2) / 2)
                plane[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] += blob

    def mask(self) -> npt.NDArray[np.uint8]:
        """Draw the mask: smooth noise cut at the level that sets the wanted share of cells.

        Returns
        -------
        numpy.ndarray
            1 inside, 0 outside; one cell is `mask_factor` pixels along each spatial axis.
        """
        rng = np.random.default_rng([self.seed, 2])
        spectrum = np.fft.fftn(rng.standard_normal(self.mask_shape))
        for i, n in enumerate(self.mask_shape):
            along = [n if j == i else 1 for j in range(len(self.mask_shape))]
            damping = np.exp(-2 * (np.pi * self.mask_width * np.fft.fftfreq(n)) ** 2)
            spectrum *= damping.reshape(along)
        field = np.fft.ifftn(spectrum).real.ravel()
        n_set = round(self.mask_fraction * field.size)
        mask = np.zeros(field.size, dtype=np.uint8)
        mask[np.argsort(field, kind="stable")[field.size - n_set :]] = 1
        return mask.reshape(self.mask_shape)

    def write(self, cache: Path) -> Sources:
        """Write image and mask below `cache`, chunk by chunk, unless they are there.

        Parameters
        ----------
        cache
            Folder that keeps data sets from run to run.

        Returns
        -------
        Sources
            Where they lie.
        """
        shape = "x".join(map(str, self.shape))
        fingerprint = f"{self.name}-{shape}-seed{self.seed}-v{GENERATION}"
        final = cache / fingerprint
        names = "image.zarr", "mask.zarr"
        sources = Sources(image=final / names[0], mask=final / names[1])
        if final.exists():
            return sources
        cache.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{fingerprint}-", dir=cache))
        try:
            if self.base is None:
                self._write_image(draft / names[0])
            else:
                self._link_image(draft / names[0], self.base.write(cache).image)
            self._write_mask(draft / names[1])
            draft.rename(final)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        return sources

    def _create_image(self, path: Path) -> zarr.Array[Any]:
        return zarr.create_array(
            store=path,
            shape=self.shape,
            chunks=self.chunks,
            dtype=self.dtype,
            compressors=BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"),
            dimension_names=tuple(self.axes),
            fill_value=0,
        )

    def _link_image(self, path: Path, base: Path) -> None:
        """Give each chunk the file of the base's chunk, by a hard link where there can be one."""
        link_chunks(self._create_image(path), path, base)

    def _write_image(self, path: Path) -> None:
        array = self._create_image(path)

        def write(index: tuple[int, ...]) -> None:
            box = tuple(
                slice(i * c, min(n, (i + 1) * c))
                for i, c, n in zip(index, self.chunks, self.shape, strict=True)
            )
            array[box] = self.chunk(index)

        grid = (range(-(-n // c)) for n, c in zip(self.shape, self.chunks, strict=True))
        with ThreadPoolExecutor(max_workers=2) as pool:
            for _ in pool.map(write, itertools.product(*grid)):
                pass

    def _write_mask(self, path: Path) -> None:
        array: zarr.Array[Any] = zarr.create_array(
            store=path,
            shape=self.mask_shape,
            chunks=tuple(min(n, 512) for n in self.mask_shape),
            dtype="uint8",
            dimension_names=tuple(self.axes[i] for i in self.spatial),
            fill_value=0,
        )
        array[...] = self.mask()


@dataclass(frozen=True)
class Slide(Dataset):
    """A stained section as a scanner stores it: 8-bit RGB in a pyramid (OME-Zarr 0.5).

    Nuclei absorb as haematoxylin does, and what lies under the mask as eosin does; the rest is
    bare glass.
    """

    n_levels: int = 3
    """Levels of the pyramid, each a quarter as wide as the one before."""

    def chunk(self, index: tuple[int, ...]) -> npt.NDArray[Any]:
        """Draw one chunk of all three colours, cut at the image's border; see :class:`Dataset`."""
        start = [i * c for i, c in zip(index, self.chunks, strict=True)][1:]
        shape = [
            min(c, n - s) for s, c, n in zip(start, self.chunks[1:], self.shape[1:], strict=True)
        ]
        nuclei = np.zeros(shape, dtype=np.float32)
        self._add_blobs(nuclei, 0, start)
        cells = [(s + np.arange(n)) // self.mask_factor for s, n in zip(start, shape, strict=True)]
        tissue = _mask_of(self)[np.ix_(*cells)].astype(np.float32)
        rng = np.random.default_rng([self.seed, 0, *index])
        fibres = 0.6 + 0.15 * rng.standard_normal([-(-n // 4) for n in shape], dtype=np.float32)
        fibres = fibres.repeat(4, 0).repeat(4, 1)[: shape[0], : shape[1]]
        pixels = np.empty((3, *shape), dtype=np.uint8)
        for k, (haematoxylin, eosin) in enumerate(STAINS):
            density = tissue * (haematoxylin * nuclei / 600 + eosin * fibres)
            light = 242 * np.exp(-density)
            light += np.float32(1.5) * rng.standard_normal(shape, dtype=np.float32)
            pixels[k] = np.clip(np.rint(light), 0, 255)
        return pixels

    def _write_image(self, path: Path) -> None:
        """Write the pyramid: each level is every fourth pixel of the one before, averaged."""
        path.mkdir(parents=True)
        super()._write_image(path / "0")
        levels, below = [], zarr.open_array(path / "0", mode="r")
        for level in range(self.n_levels):
            scale = [1.0, 4.0**level, 4.0**level]
            transformations = [{"type": "scale", "scale": scale}]
            levels.append({"path": str(level), "coordinateTransformations": transformations})
            if level:
                below = self._reduce(below, path / str(level))
        axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}]
        axes += [{"name": axis, "type": "space"} for axis in "yx"]
        multiscales = [{"name": self.name, "axes": axes, "datasets": levels}]
        ome = {"version": "0.5", "multiscales": multiscales}
        zarr.create_group(path, attributes={"ome": ome}, overwrite=False)

    def _reduce(self, below: zarr.Array[Any], path: Path) -> zarr.Array[Any]:
        shape = (below.shape[0], *(n // 4 for n in below.shape[1:]))
        smaller = replace(self, shape=shape)._create_image(path)
        for low in range(0, shape[1], 512):
            high = min(shape[1], low + 512)
            rows = np.asarray(below[:, 4 * low : 4 * high, : 4 * shape[2]], dtype=np.float32)
            parts = rows.reshape(shape[0], high - low, 4, shape[2], 4)
            smaller[:, low:high] = np.rint(parts.mean(axis=(2, 4))).astype(np.uint8)
        return smaller


@dataclass(frozen=True)
class Scene(Dataset):
    """A satellite's scene: float32 reflectances in steps of 1e-4, NaN beside the swath and under
    clouds.
    """

    def chunk(self, index: tuple[int, ...]) -> npt.NDArray[Any]:
        """Draw one chunk of one band, cut at the image's border; see :class:`Dataset`."""
        grey = super().chunk(index).astype(np.float32)
        start = [i * c for i, c in zip(index, self.chunks, strict=True)]
        y, x = np.ogrid[
            tuple(slice(s, s + n) for s, n in zip(start[1:], grey.shape[1:], strict=True))
        ]
        cells = [np.ravel(along) // self.mask_factor for along in (y, x)]
        clouds = _mask_of(self)[np.ix_(*cells)]
        grey *= np.float32(1e-4)
        swath = (x + y // 4 > self.shape[2] // 6) & (clouds == 0)
        grey[:, ~swath] = np.nan
        return grey


@dataclass(frozen=True)
class Crowd:
    """Many small images, each a Zarr array in a group of its own.

    Some are drawn, and the others are hard links to them.

    Parameters
    ----------
    name
        First part of the folder's name in the cache.
    n_images
        How many.
    image
        What one of them is like; its seed is that of the first.
    n_drawn
        How many differ.
    """

    name: str
    n_images: int
    image: Dataset
    n_drawn: int = 64

    @property
    def axes(self) -> str:
        """Of each image."""
        return self.image.axes

    @property
    def shape(self) -> tuple[int, ...]:
        """Of each image."""
        return self.image.shape

    @property
    def dtype(self) -> str:
        """Of each image."""
        return self.image.dtype

    def scaled(self, scale: float) -> Crowd:
        """Return fewer images of the same size, at least two."""
        return replace(self, n_images=max(2, round(scale * self.n_images)))

    def write(self, cache: Path) -> Sources:
        """Write all images below `cache`, unless they are there."""
        final = cache / f"{self.name}-{self.n_images}-seed{self.image.seed}-v{GENERATION}"
        if not final.exists():
            cache.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=cache))
            try:
                for k in range(self.n_images):
                    self._write_one(draft, k)
                draft.rename(final)
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                raise
        names = [final / self._name(k) for k in range(self.n_images)]
        return Sources(image=names[0], mask=None, more=tuple(names[1:]))

    def _name(self, k: int) -> str:
        return f"{k:05}/{k:05}.zarr"

    def _write_one(self, folder: Path, k: int) -> None:
        path = folder / self._name(k)
        if k >= self.n_drawn:
            drawn = folder / self._name(k % self.n_drawn)
            shutil.copytree(drawn, path, copy_function=_link)
            _link(str(drawn.parent / "zarr.json"), str(path.parent / "zarr.json"))
            return
        zarr.create_group(path.parent)
        replace(self.image, seed=self.image.seed + k)._write_image(path)


@dataclass(frozen=True)
class Sources:
    """Where a data set lies on disk: an image, perhaps its mask, perhaps more images."""

    image: Path
    mask: Path | None
    more: tuple[Path, ...] = ()

    @property
    def images(self) -> tuple[Path, ...]:
        """All images, as patchloom opens them."""
        return (self.image, *self.more)

    @property
    def arrays(self) -> tuple[Path, ...]:
        """All images as Zarr arrays: of a pyramid its first level."""
        return tuple(p / "0" if (p / "0").exists() else p for p in self.images)


@dataclass(frozen=True)
class Workload:
    """The patches asked of one data set.

    Parameters
    ----------
    name
        What ``--workload`` calls it.
    dataset
        Image and mask.
    patch_size, overlaps
        Along the spatial axes, in pixels; patches lie `patch_size - overlaps` apart.
    min_coverage
        A patch is kept when at least this share of its pixels lies under the mask.
    masked
        Whether the mask is asked at all.
    n_random
        So many patches anywhere in place of a grid.
    """

    name: str
    dataset: Dataset | Crowd
    patch_size: tuple[int, ...]
    overlaps: tuple[int, ...]
    min_coverage: float = 0.5
    masked: bool = True
    n_random: int | None = None

    @property
    def config(self) -> dict[str, Any]:
        """How patches lie, as `patchloom.plan` is told."""
        size = list(self.patch_size)
        if self.n_random is not None:
            return {"name": "random", "patch_size": size, "n_patches": self.n_random}
        return {"name": "sequential", "patch_size": size, "overlaps": list(self.overlaps)}

    def scaled(self, scale: float) -> Workload:
        """Return the same patches on a smaller image (see :meth:`Dataset.scaled`), and of random
        ones fewer.
        """
        n = None if self.n_random is None else max(2, round(scale**2 * self.n_random))
        return replace(self, dataset=self.dataset.scaled(scale), n_random=n)


W1 = Dataset(
    name="w1",
    axes="cyx",
    shape=(3, 8192, 8192),
    chunks=(1, 512, 512),
    blob_width=12.0,
    blob_spacing=64,
    mask_width=16.0,
)
"""A slide: three channels, 0.4 GB."""

W2 = Dataset(
    name="w2",
    axes="zyx",
    shape=(256, 1024, 1024),
    chunks=(64, 128, 128),
    blob_width=5.0,
    blob_spacing=28,
    mask_width=4.0,
)
"""A volume: one channel, 0.5 GB."""

SLIDE = Slide(
    name="slide",
    axes="cyx",
    shape=(3, 16384, 12288),
    chunks=(3, 512, 512),
    blob_width=6.0,
    blob_spacing=40,
    mask_width=12.0,
    mask_factor=32,
    mask_fraction=0.3,
    dtype="uint8",
)
"""A stained section, 0.6 GB."""

SCENE = Scene(
    name="scene",
    axes="cyx",
    shape=(4, 5490, 5490),
    chunks=(1, 512, 512),
    blob_width=40.0,
    blob_spacing=128,
    mask_width=12.0,
    mask_factor=16,
    mask_fraction=0.15,
    dtype="float32",
)
"""Four bands of a satellite's tile, 0.5 GB; the last chunk of an axis is a ragged one."""

CROWD = Crowd(
    name="crowd",
    n_images=10_000,
    image=Dataset(
        name="small",
        axes="yx",
        shape=(512, 512),
        chunks=(256, 256),
        blob_width=8.0,
        blob_spacing=48,
        mask_width=4.0,
    ),
)
"""Many small images, 5 GB."""

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("w1-aligned", W1, patch_size=(256, 256), overlaps=(0, 0)),
        Workload("w1-misaligned", W1, patch_size=(192, 192), overlaps=(32, 32)),
        Workload("w2", W2, patch_size=(64, 64, 64), overlaps=(16, 16, 16)),
    )
}
"""The small workloads by name: a second each."""

SCENES = {
    workload.name: workload
    for workload in (
        Workload("random", W1, (256, 256), (0, 0), masked=False, n_random=20_000),
        Workload("slide", SLIDE, (224, 224), (0, 0)),
        Workload("scene", SCENE, (256, 256), (0, 0), masked=False),
        Workload("crowd", CROWD, (256, 256), (0, 0), masked=False),
    )
}
"""What else peers are compared on, by name."""

WIDE = {
    f"{small}-3x3": replace(
        WORKLOADS[small],
        name=f"{small}-3x3",
        dataset=dataset.repeated(f"{dataset.name}-3x3", times),
    )
    for small, dataset, times in (("w1-misaligned", W1, (1, 3, 3)), ("w2", W2, (1, 3, 3)))
}
"""Nine times as much, which peers that hold the whole image can hold: 3.6 and 4.8 GB."""

LARGE = {
    f"{small}-large": replace(
        WORKLOADS[small], name=f"{small}-large", dataset=dataset.repeated(name, times)
    )
    for small, dataset, name, times in (
        ("w1-aligned", W1, "w1-7x7", (1, 7, 7)),
        ("w1-misaligned", W1, "w1-6x6", (1, 6, 6)),
        ("w2", W2, "w2-5x4", (1, 5, 4)),
    )
}
"""Large ones: 8 GB of patches each, which take the floor twenty seconds and more."""


HUGE = replace(WORKLOADS["w1-misaligned"], name="w1-huge", dataset=W1.repeated("w1-8x8", (1, 8, 8)))
"""An image of 26 GB."""


@lru_cache(maxsize=4)
def _mask_of(dataset: Dataset) -> npt.NDArray[np.uint8]:
    return dataset.mask()


def _link(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(source)
    except OSError:  # no links here, or too many to one file
        shutil.copyfile(source, target)


def link_chunks(array: zarr.Array[Any], path: Path, base: Path) -> None:
    """Fill an array with another one, side by side, by hard links where there can be some.

    Parameters
    ----------
    array, path
        Whose metadata are written, and its folder.
    base
        Folder of an array of the same chunks and codecs, of whole chunks.
    """
    drawn: zarr.Array[Any] = zarr.open_array(base, mode="r")
    for index in np.ndindex(*array.cdata_shape):
        of = tuple(i % n for i, n in zip(index, drawn.cdata_shape, strict=True))
        to = path / array.metadata.encode_chunk_key(index)
        to.parent.mkdir(parents=True, exist_ok=True)
        _link(str(base / drawn.metadata.encode_chunk_key(of)), str(to))
