"""Functions of the user's: called on the workers, and their arrays are the images."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client

import patchloom
from patchloom.errors import ChunkError, IdentityError, SourceError
from patchloom.image import Image
from patchloom.sources import files
from tests.clusters import local_cluster

PIXELS = np.random.default_rng(0).integers(0, 999, (3, 40, 50), np.uint16)


def read_raw(path: Path | str, shape: tuple[int, ...] = (3, 40, 50), plus: int = 0) -> Any:
    return np.fromfile(path, np.uint16).reshape(shape) + np.uint16(plus)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    raw = tmp_path / "raw"
    raw.mkdir()
    for k in (1, 2, 10):
        (PIXELS + k).astype(np.uint16).tofile(raw / f"image{k}.xyz")
    (raw / "notes.txt").write_text("no image")
    return raw


class ReadFuncLoading:
    """With CAREamics' attributes."""

    def __init__(self) -> None:
        self.read_source_func = read_raw
        self.read_kwargs = {"plus": 5}
        self.extension_filter = "*.xyz"


def test_a_function_reads_files(folder: Path) -> None:
    """Of a folder by extension, a glob and a list; with arguments, also in CAREamics' way."""
    for urls in (folder, str(folder / "*"), [folder / f"image{k}.xyz" for k in (1, 2, 10)]):
        images = patchloom.open_images(
            urls, read=read_raw, read_kwargs={"plus": 5}, extension=".xyz", axes="CYX"
        )
        assert [image.id for image in images] == ["image1", "image2", "image10"]
        assert (str(images[0].dtype), images[0].grid.n_chunks) == ("uint16", 1)
        np.testing.assert_array_equal(
            images[2].read((0, 3, 4), (3, 9, 9)), PIXELS[:, 3:9, 4:9] + 15
        )
    [*_, image] = patchloom.open_images(folder, read=ReadFuncLoading(), axes="CYX")
    np.testing.assert_array_equal(np.asarray(image.data), PIXELS + 15)


@pytest.mark.parametrize("scheduler", ["threads", "processes", "distributed"])
def test_it_is_called_on_the_workers_once_an_image(folder: Path, scheduler: str) -> None:
    """Functions without a name travel too; a task decodes an image once."""
    import dask

    images = patchloom.open_images(
        folder, read=lambda p: read_raw(p, plus=7), extension=".xyz", axes="CYX"
    )
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [10, 10]})
    out = folder / "out.zarr"
    if scheduler == "distributed":
        with (
            local_cluster(n_workers=2, threads_per_worker=1, processes=True) as cluster,
            Client(cluster),
        ):
            report = patchloom.materialize(plan, out, progress=False)
    else:
        with dask.config.set(scheduler=scheduler, num_workers=2):
            report = patchloom.materialize(plan, out, progress=False)
    assert report.chunks_needed == 3
    store = patchloom.open_patches(out)
    for row in store.manifest.to_pylist():
        k = int(row["image_id"].removeprefix("image"))
        y, x = row["start_y"], row["start_x"]
        np.testing.assert_array_equal(store[row["row"]], PIXELS[:, y : y + 10, x : x + 10] + k + 7)


def test_what_a_function_gives_is_checked(folder: Path) -> None:
    """Failures name it and the file; what it gives stays the same; text is no image."""
    path = folder / "image1.xyz"
    with pytest.raises(ChunkError, match=r"read_raw fails on .*image1.xyz.*reshape"):
        patchloom.open_images(path, read=read_raw, read_kwargs={"shape": (7, 7)})
    with pytest.raises(SourceError, match="integers, floats or bools"):
        patchloom.open_images(path, read=lambda p: np.array(["a"]))
    given = [PIXELS, PIXELS[:2]]
    [image] = patchloom.open_images(path, read=lambda p: given.pop(0), axes="CYX")
    with pytest.raises(ChunkError, match="reads the same of a file each time"):
        image.read((0, 0, 0), (1, 1, 1))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"read": 3}, "is a function of a path"),
        ({"extension": ".xyz"}, "belong to read="),
        ({"read": ReadFuncLoading(), "extension": ".xyz"}, "are its own"),
        ({"read": read_raw, "extension": ".abc"}, r"called like '\*.abc'"),
        ({"read": read_raw, "level": 1}, "neither level=, stack= nor array="),
    ]
    for wrong, what in cases:
        with pytest.raises(SourceError, match=what):
            patchloom.open_images(folder, **wrong)
    with pytest.raises(SourceError, match="an array needs none"):
        patchloom.open_images([PIXELS], read=read_raw)
    with pytest.raises(IdentityError, match="ids= has one name"):
        patchloom.open_images(folder, read=read_raw, extension=".xyz", ids=["a"], axes="CYX")


def test_a_saved_plan_holds_no_function(folder: Path) -> None:
    """It is given with the images."""
    images = patchloom.open_images(folder, read=read_raw, extension=".xyz", axes="CYX")
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [10, 10]})
    plan.save(str(folder / "plan"))
    with pytest.raises(SourceError, match="read by a function, which a saved plan does not hold"):
        patchloom.Plan.load(str(folder / "plan"))
    again = patchloom.Plan.load(str(folder / "plan"), images=images)
    np.testing.assert_array_equal(again.images[0].read((0, 0, 0), (3, 40, 50)), PIXELS + 1)
    with pytest.raises(SourceError, match="holds no functions"):
        Image.from_document(images[0].to_document()).read((0, 0, 0), (1, 1, 1))


class Stack:
    """An image stack, as CAREamics' protocol has it."""

    def __init__(self, pixels: np.ndarray[Any, Any], source: Any) -> None:
        self.pixels, self.source = pixels, source
        self.data_shape, self.data_dtype = pixels.shape, pixels.dtype

    def extract_patch(
        self, sample_idx: int, channels: Any, coords: Any, patch_size: Any
    ) -> np.ndarray[Any, Any]:
        assert channels is None
        box = tuple(slice(a, a + n) for a, n in zip(coords, patch_size, strict=True))
        patch: np.ndarray[Any, Any] = self.pixels[sample_idx][(slice(None), *box)]
        return patch


CALLS: list[Any] = []


def load(source: list[Path], axes: str, plus: int) -> list[Stack]:
    CALLS.append(axes)
    stacked = [np.stack([read_raw(path), read_raw(path, plus=plus)]) for path in source]
    return [Stack(pixels, path) for pixels, path in zip(stacked, source, strict=True)]


class ImageStackLoading:
    """With CAREamics' attributes."""

    def __init__(self, loader: Any, **kwargs: Any) -> None:
        self.image_stack_loader, self.image_stack_loader_kwargs = loader, kwargs


def test_a_loader_gives_stacks(folder: Path) -> None:
    """It is called once a process with what was given, and cuts its own patches."""
    CALLS.clear()
    paths = [folder / f"image{k}.xyz" for k in (1, 2)]
    images = patchloom.open_images(paths, read=ImageStackLoading(load, plus=9), axes="CYX")
    assert [(image.id, str(image.axes), image.shape) for image in images] == [
        (f"image{k}", "SCYX", (2, 3, 40, 50)) for k in (1, 2)
    ]
    expected = np.stack([PIXELS + 2, PIXELS + 11])
    np.testing.assert_array_equal(
        images[1].read((0, 0, 3, 4), (2, 3, 9, 9)), expected[..., 3:9, 4:9]
    )
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [10, 10]})
    patchloom.materialize(plan, folder / "out.zarr", progress=False)
    store = patchloom.open_patches(folder / "out.zarr")
    row = next(r for r in store.manifest.to_pylist() if r["image_id"] == "image2" and r["sample"])
    y, x = row["start_y"], row["start_x"]
    np.testing.assert_array_equal(store[row["row"]], expected[1, :, y : y + 10, x : x + 10])
    assert CALLS == ["CYX"]


def nothing(source: Any, axes: Any) -> list[Any]:
    return []


def failing(source: Any, axes: Any) -> list[Any]:
    raise KeyError("pixels")


def flat(source: Any, axes: Any) -> list[Any]:
    return [Stack(PIXELS, "array")]


def test_what_a_loader_gives_is_checked(folder: Path) -> None:
    for loader, what in [
        (nothing, "gives a list of image stacks"),
        (failing, "failing fails: KeyError"),
        (flat, "SCYX or SCZYX"),
    ]:
        with pytest.raises(SourceError, match=what):
            patchloom.open_images(folder, read=ImageStackLoading(loader))


# --- Formats of other packages --------------------------------------------------------------

PLUGIN = """
import numpy as np
from patchloom.sources.files import FileSource
from patchloom.sources.handles import image_of
from patchloom.sources.npy import RawReader

SUFFIXES = (".xyz",)
MAGIC = (b"XYZ!",)

def open_file(location, wanted):
    n = location.size() // 2 // 50
    layout = {"offset": 0, "dtype": "<u2", "shape": [n, 50], "order": "C", "chunks": [10, 50]}
    return image_of(
        name=wanted.name, uri=location.shown, axes=wanted.axes_for("yx", 2, location.shown),
        shape=(n, 50), dtype=np.dtype("u2"), chunks=(10, 50),
        source=FileSource(location, "xyz", layout),
    )

reader = RawReader
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with one good format, one that cannot be imported, and one that is no format."""
    site = tmp_path / "site"
    (site / "xyz_plugin-1.0.dist-info").mkdir(parents=True)
    (site / "xyz_plugin.py").write_text(PLUGIN)
    (site / "xyz_broken.py").write_text("import a_package_that_is_not_there\n")
    (site / "xyz_plugin-1.0.dist-info" / "METADATA").write_text("Name: xyz-plugin\nVersion: 1.0\n")
    (site / "xyz_plugin-1.0.dist-info" / "entry_points.txt").write_text(
        f"[{files.GROUP}]\nxyz = xyz_plugin\nbroken = xyz_broken\nnpy = json\n"
    )
    monkeypatch.syspath_prepend(str(site))
    files._plugins.cache_clear()
    yield site
    files._plugins.cache_clear()
    for name in ("xyz_plugin", "xyz_broken"):
        sys.modules.pop(name, None)


def test_an_installed_package_brings_a_format(folder: Path, installed: Path) -> None:
    """Opened and read like ours, from a saved plan too; a broken one is named where it matters."""
    images = patchloom.open_images(folder)
    assert [image.id for image in images] == ["image1", "image2", "image10"]
    expected = (PIXELS + 1).reshape(120, 50)
    np.testing.assert_array_equal(images[0].read((0, 0), (120, 50)), expected)
    document = images[0].to_document()
    again = Image.from_document(document)
    np.testing.assert_array_equal(again.read((7, 0), (30, 50)), expected[7:30])
    (folder / "unnamed").write_bytes(b"XYZ!" + bytes(96))
    assert patchloom.open_images(folder / "unnamed")[0].shape == (1, 50)
    with pytest.raises(
        SourceError, match=r"broken \(xyz_broken\): ModuleNotFoundError.*npy \(json\)"
    ):
        patchloom.open_images(folder / "notes.txt")
    document["source"]["format"] = "json"
    with pytest.raises(SourceError, match="the format of a file is one of"):
        Image.from_document(document)


def test_no_module_is_loaded_because_a_plan_names_it(folder: Path) -> None:
    """Without the package its format is unknown, whatever can be imported."""
    document = patchloom.open_images(PIXELS)[0].to_document()
    document["source"] = {"kind": "file", "url": "a.xyz", "format": "xyz_plugin", "layout": {}}
    with pytest.raises(SourceError, match="install the package that brings it"):
        Image.from_document(document)
