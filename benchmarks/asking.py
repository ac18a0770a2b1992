"""What is asked of every side that cuts patches, and what the right answer is."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

import patchloom
from benchmarks.peers.patches import STEP, part_seal, whole_seal
from benchmarks.workloads import Sources, Workload

COMPARED = 256
"""So many patches are compared byte by byte, spread over all."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Asked:
    """A workload drawn, its patches listed, and their seals taken from the whole image in memory.

    Parameters
    ----------
    workload
        Whose.
    job
        The fields of a job, as every side is told (see ``peers/patches.py``).
    parts
        Of every patch a number that depends on one value in :data:`~benchmarks.peers.patches.STEP`;
        None of an image that is too large to be held.
    wholes
        Of every `every`-th one a number that depends on all bytes.
    every
        One patch in so many is compared byte by byte.
    """

    workload: str
    job: Mapping[str, Any]
    parts: Ints | None
    wholes: Mapping[int, int]
    every: int
    n_patches: int

    def wrong(self, found: Ints, whole: bool) -> str | None:
        """What is wrong with the seals of some patches, or None.

        Parameters
        ----------
        found
            Rows of patch, seal.
        whole
            Whether each seal depends on all bytes; the patches are every `every`-th one then.
        """
        have = dict(found.tolist())
        if whole:
            due: Mapping[int, int] = self.wholes
        elif self.parts is not None:
            due = dict(enumerate(self.parts.tolist()))
        else:
            return None
        missing = due.keys() - have.keys()
        if missing:
            return f"{len(missing)} of {len(due)} patches are missing, such as {min(missing)}"
        different = [k for k, seal in due.items() if have[k] != seal]
        if different:
            return f"{len(different)} of {len(due)} patches differ, such as {different[0]}"
        return None

    def sentence(self, *, whole: bool, part: bool, written: bool = False) -> bool | str | None:
        """What an equal outcome was compared by.

        Parameters
        ----------
        whole
            Whether every `every`-th patch was compared byte by byte.
        part
            Whether all patches were compared by one value in
            :data:`~benchmarks.peers.patches.STEP`.
        written
            Whether the patches that were compared byte by byte were read back from what was
            written.

        Returns
        -------
        bool or str or None
            True where that is every byte of every patch; None where nothing was compared.
        """
        if self.parts is None:
            return "no oracle: the image is too large to be held"
        if whole and self.every == 1:
            return True
        said = []
        if whole:
            how = "read back, byte by byte" if written else "byte by byte"
            said.append(f"{len(self.wholes)} of {self.n_patches} patches {how}")
        if part:
            said.append(f"all {self.n_patches} by one value in {STEP}")
        return ", ".join(said) or None


def ask(workload: Workload, cache: Path, hold: int = 2**33) -> Asked:
    """Draw a workload's images, list its patches, and take their seals, unless they are there.

    Parameters
    ----------
    workload
        Which.
    cache
        Folder that keeps images, lists and seals from run to run.
    hold
        Bytes of an image that may be held to take seals from it.

    Returns
    -------
    Asked
        What sides are told, and compared with.
    """
    sources = workload.dataset.write(cache)
    arrays = [zarr.open_array(sources.arrays[0], mode="r")]
    same = len({(p / "zarr.json").read_bytes() for p in sources.arrays}) == 1
    if not same:
        raise ValueError("all images of a workload have one layout")
    shape, chunks = arrays[0].shape, arrays[0].chunks
    told = json.dumps([workload.config, workload.min_coverage, workload.masked, COMPARED, hold])
    name = hashlib.sha256(f"{sources.image} {len(sources.images)} {told}".encode()).hexdigest()[:12]
    folder = cache / f"asked-{workload.name}-{name}"
    if not folder.exists():
        draft = Path(f"{folder}.{os.getpid()}")
        draft.mkdir()
        _list(workload, sources, draft, hold)
        draft.rename(folder)
    facts = json.loads((folder / "facts.json").read_text())
    parts = np.load(folder / "parts.npy")
    job = {
        "arrays": [str(p) for p in sources.arrays],
        "twins": [str(_twin(p)) for p in sources.arrays],
        "axes": workload.dataset.axes,
        "shapes": [shape] * len(sources.arrays),
        "chunks": chunks,
        "dtype": workload.dataset.dtype,
        "patch_size": workload.patch_size,
        "overlaps": None if workload.n_random else workload.overlaps,
        "corners_file": str(folder / "corners.npy"),
        "chunks_file": str(folder / "chunks.npy"),
        "storage_options": {},
        "images": [str(p) for p in sources.images],
        "mask": str(sources.mask) if workload.masked else None,
        "config": workload.config,
        "min_coverage": workload.min_coverage,
        "rows_per_shard": facts["rows_per_shard"],
    }
    return Asked(
        workload=workload.name,
        job=job,
        parts=parts if len(parts) else None,
        wholes={int(k): int(seal) for k, seal in np.load(folder / "wholes.npy")},
        every=facts["every"],
        n_patches=facts["n_patches"],
    )


def _list(workload: Workload, sources: Sources, folder: Path, hold: int) -> None:
    """Write down the patches of a workload, the chunks under them, and their seals."""
    images = patchloom.open_images(
        [str(p) for p in sources.images],
        mask=str(sources.mask) if workload.masked else None,
        axes=workload.dataset.axes,
    )
    plan = patchloom.plan(
        images,
        workload.config,
        min_coverage=workload.min_coverage if workload.masked else 0,
        edge="drop",
        order="spatial",
        seed=0,
    )
    parts = list(plan.patches(0, plan.n_patches))
    corners = np.concatenate(
        [np.column_stack([np.full(len(part), part.image), part.corner]) for part in parts]
    )
    corners = corners[np.lexsort(corners.T[::-1])]
    if workload.n_random is not None:
        corners = np.random.default_rng(0).permutation(corners)
    elif workload.masked:
        _check_selection(workload, sources, corners)
    first = zarr.open_array(sources.arrays[0], mode="r")
    shape, chunks = first.shape, first.chunks
    np.save(folder / "corners.npy", corners)
    np.save(folder / "chunks.npy", _chunks(corners, workload, shape, chunks))
    every = max(1, -(-len(corners) // COMPARED))
    size = math.prod(shape) * first.dtype.itemsize
    seals, wholes = [], []
    held: tuple[int, Any] = (-1, None)
    for k, (image, *corner) in enumerate(corners.tolist() if size <= hold else []):
        if image != held[0]:
            held = image, zarr.open_array(sources.arrays[image], mode="r")[...]
        box = tuple(slice(a, a + n) for a, n in zip(corner, workload.patch_size, strict=True))
        patch = np.ascontiguousarray(held[1][(..., *box)])
        seals.append(part_seal(patch))
        if k % every == 0:
            wholes.append((k, whole_seal(patch)))
    np.save(folder / "parts.npy", np.array(seals, dtype=np.int64))
    np.save(folder / "wholes.npy", np.array(wholes, dtype=np.int64).reshape(-1, 2))
    facts = {
        "n_patches": len(corners),
        "every": every,
        "rows_per_shard": int(plan.rows_per_shard),
    }
    (folder / "facts.json").write_text(json.dumps(facts))


def _check_selection(workload: Workload, sources: Sources, corners: Ints) -> None:
    """The patches that we keep are those that the floor keeps."""
    from benchmarks.floor import select

    shape = zarr.open_array(sources.arrays[0], mode="r").shape[-len(workload.patch_size) :]
    starts, _ = select(
        sources.mask, shape, workload.patch_size, workload.overlaps, workload.min_coverage
    )
    if not np.array_equal(starts, corners[:, 1:]):
        raise ValueError(f"{workload.name}: patchloom keeps other patches than the floor")


def _chunks(
    corners: Ints, workload: Workload, shape: tuple[int, ...], chunks: tuple[int, ...]
) -> Ints:
    """Image and indices of every chunk that patches touch, of all channels."""
    n_space = len(workload.patch_size)
    cell = np.array(chunks[-n_space:])
    low = corners[:, 1:] // cell
    high = (corners[:, 1:] + np.array(workload.patch_size) - 1) // cell
    found = []
    for step in np.ndindex(*(high - low + 1).max(axis=0)):
        inside = (low + step <= high).all(axis=1)
        found.append(np.column_stack([corners[inside, 0], low[inside] + step]))
    cells = np.unique(np.concatenate(found), axis=0)
    if workload.dataset.axes[0] != "c":
        return cells
    channels = -(-shape[0] // chunks[0])
    return np.concatenate([np.insert(cells, 1, k, axis=1) for k in range(channels)])


def _twin(array: Path) -> Path:
    """The same chunks as a Zarr v2 array, beside the first one: the bytes are the same."""
    twin = array.with_name(f"v2-{array.name}")
    if not (twin / ".zarray").exists():
        told = json.loads((array / "zarr.json").read_text())
        chunks = told["chunk_grid"]["configuration"]["chunk_shape"]
        fill = told["fill_value"]
        blosc = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}
        metadata = {
            "zarr_format": 2,
            "shape": told["shape"],
            "chunks": chunks,
            "dtype": np.dtype(told["data_type"]).str,
            "compressor": blosc,
            "fill_value": fill,
            "order": "C",
            "filters": None,
            "dimension_separator": "/",
        }
        twin.mkdir(exist_ok=True)
        for folder in (array / "c").iterdir():
            if not (twin / folder.name).exists():
                (twin / folder.name).symlink_to(folder.resolve())
        (twin / ".zarray").write_text(json.dumps(metadata))
    group = array.parent / "zarr.json"
    if not group.exists():
        zarr.create_group(array.parent)
    return twin
