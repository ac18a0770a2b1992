"""TIFF and its kin: every box is what tifffile reads, and what is broken is refused."""

from __future__ import annotations

import json
import math
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

import patchloom
from patchloom.errors import (
    AxesError,
    ChunkError,
    NotAnArrayError,
    SourceChangedError,
    SourceError,
)
from patchloom.location import Location
from patchloom.sources.files import Wanted, open_file
from tests import truth
from tests.servers.gcs import GcsServer
from tests.servers.http import HttpServer
from tests.servers.s3 import S3Server
from tests.truth import ArrayTruth

Array = np.ndarray[Any, Any]
TIFFS = truth.all_truths(containers={"tiff"})
PATCHING = {"name": "sequential", "patch_size": [96, 96]}


def opened(path: Any, **options: Any) -> patchloom.Image:
    """The one image at a path, or in an array."""
    [image] = patchloom.open_images(path, **options)
    return image


def whole(image: patchloom.Image) -> Array:
    """All pixels of an image."""
    return image.read([0] * image.ndim, image.shape)


def inside(path: Path, name: str | None, **more: Any) -> patchloom.Image:
    """One of several images in a file."""
    return open_file("tiff", Location.of(path), Wanted("image", inside=name, **more))


def pixels(shape: tuple[int, ...], dtype: str) -> Array:
    """Values that are all over the range of a type, each other than its neighbours."""
    rng = np.random.default_rng(math.prod(shape))
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype[-2] == "f":
        return rng.normal(size=shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype=np.dtype(dtype), endpoint=True)


LOSSLESS = ["zlib", "lzw", "zstd", "packbits", "lzma"]
KINDS = ["plain", "shaped", "ome", "imagej"]


@st.composite
def written(draw: st.DrawFn, folder: Path) -> tuple[Path, Array]:
    """A file of any layout that tifffile writes, and the array in it."""
    dtype = draw(st.sampled_from(["u1", "u2", "i2", "u4", "i4", "i1", "f2", "f4", "f8", "bool"]))
    kind = draw(st.sampled_from(KINDS))
    if kind == "imagej" and dtype not in ("u1", "u2", "f4"):
        dtype = "u2"
    if kind == "ome" and dtype == "f2":
        dtype = "f4"
    height, width = draw(st.integers(1, 70)), draw(st.integers(2, 70))
    leading = tuple(draw(st.lists(st.integers(2, 3), max_size=2)))
    options: dict[str, Any] = {
        "byteorder": ">" if kind == "imagej" else draw(st.sampled_from("<>")),
        "photometric": "minisblack",
    }
    if kind != "imagej":
        options["bigtiff"] = draw(st.booleans())
    samples = 1 if dtype == "bool" or kind == "imagej" else draw(st.sampled_from([1, 1, 3, 4]))
    planar = draw(st.sampled_from(["contig", "separate"])) if samples > 1 else None
    shape: tuple[int, ...] = (*leading, height, width)
    if samples > 1:
        options["planarconfig"] = planar
        options["photometric"] = "rgb"
        shape = (*shape, samples) if planar == "contig" else (*leading, samples, height, width)
    if dtype != "bool" and kind != "imagej":
        compression = draw(st.sampled_from([None, *LOSSLESS]))
        if compression == "packbits" and dtype[-1] != "1":
            compression = None
        options["compression"] = compression
        if compression in ("zlib", "lzw", "zstd") and dtype != "f2":
            options["predictor"] = draw(st.booleans())
    layout = draw(st.sampled_from(["tiles", "strips", "one"]))
    if layout == "tiles" and kind != "imagej":
        options["tile"] = tuple(16 * draw(st.integers(1, 3)) for _ in range(2))
    elif layout == "strips":
        options["rowsperstrip"] = draw(st.integers(1, height))
    letters = "TZ"[2 - len(leading) :] if kind == "imagej" else "TC"[2 - len(leading) :]
    axes = letters + ("SYX" if planar == "separate" else "YXS" if samples > 1 else "YX")
    if kind == "plain":
        options["metadata"] = None
    elif kind in ("ome", "imagej"):
        options[kind] = True
        options["metadata"] = {"axes": axes}
    array = pixels(shape, dtype)
    path = folder / ("a.ome.tif" if kind == "ome" else "a.tif")
    tifffile.imwrite(path, array, **options)
    return path, array


@given(st.data())
def test_every_box_is_what_tifffile_reads(data: st.DataObject) -> None:
    """Any type, byte order, tiling, compression, predictor, planes of samples and metadata."""
    with tempfile.TemporaryDirectory() as folder:
        path, array = data.draw(written(Path(folder)))
        oracle = tifffile.imread(path).squeeze()
        np.testing.assert_array_equal(oracle.ravel(), array.ravel())
        try:
            image = opened(path)
        except AxesError:  # more dimensions than have a meaning by themselves
            image = opened(path, axes="stzcyx"[-oracle.ndim - list(array.shape).count(1) :])
        assert image.dtype == oracle.dtype.newbyteorder("=")
        np.testing.assert_array_equal(whole(image).squeeze(), oracle)
        box = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in image.shape]
        found = image.read([a for a, _ in box], [b for _, b in box])
        expected = oracle.reshape(image.shape)[tuple(slice(*pair) for pair in box)]
        np.testing.assert_array_equal(found, expected)
        again = patchloom.Image.from_document(json.loads(json.dumps(image.to_document())))
        np.testing.assert_array_equal(whole(again).squeeze(), oracle)


@pytest.mark.parametrize("found", TIFFS, ids=lambda t: t.id)
def test_real_files_hold_their_truth(found: ArrayTruth) -> None:
    """By the one call, bit for bit; where decoders of lossy JPEG differ, as tifffile has it."""
    entry = found.entry
    image = opened(found.path)
    assert (image.shape, image.dtype) == (entry.shape, entry.dtype)
    array = whole(image)
    assert entry.matches(array) if entry.agreed else np.array_equal(array, oracle(found.path))
    for patch in entry.patches:
        start, stop = [s.start for s in patch.slices], [s.stop for s in patch.slices]
        box = image.read(start, stop)
        np.testing.assert_array_equal(box, array[patch.slices])
        assert not entry.agreed or truth.digest(box) == patch.sha256
    assert len(image.levels) == max(len(entry.raw.get("levels", ())) - 1, 0)
    for role, shape in zip(image.levels, entry.raw.get("levels", ())[1:], strict=True):
        assert list(role.image.shape) == shape


def oracle(path: Path, level: int = 0) -> Array:
    """What tifffile reads of the first series."""
    with tifffile.TiffFile(path) as tif:
        array: Array = tif.series[0].levels[level].asarray()
        return array


def broken() -> list[tuple[Path, str]]:
    """Files that readers other than patchloom refuse, with their reasons."""
    found = []
    for root in truth.data_roots():
        for name in truth.set_names(root):
            entries = json.loads((root / name / "truth.json").read_text())
            if isinstance(entries, dict):
                found += [
                    (root / name / key, entry["error"])
                    for key, entry in entries.items()
                    if "error" in entry and Path(key).suffix in (".tif", ".svs")
                ]
    return found


@pytest.mark.parametrize(("path", "reason"), broken(), ids=lambda p: getattr(p, "name", None))
def test_broken_files_are_refused_with_their_reason(path: Path, reason: str) -> None:
    """When they are opened, or when the tile that is broken is read."""
    with pytest.raises((NotAnArrayError, ChunkError)) as caught:
        whole(opened(path))
    assert reason.replace("header=", "") in str(caught.value).replace("header=", "")
    assert path.name in str(caught.value)


def test_only_the_tile_that_is_broken_is_refused(data_set: Callable[[str], Path]) -> None:
    """Its neighbours and the other levels are read."""
    path = data_set("tiff_adversarial") / "rasterio_corrupt.tif"
    image = opened(path)
    for y, x in ((0, 0), (0, 512), (512, 0)):
        assert image.read((y, x, 0), (y + 512, x + 512, 3)).any()
    with pytest.raises(ChunkError, match=r"tile or strip 3 of page 0 of .*rasterio_corrupt\.tif"):
        image.read((512, 512, 0), (513, 513, 3))
    np.testing.assert_array_equal(whole(opened(path, level=1)), oracle(path, 1))


@pytest.mark.parametrize(
    ("compression", "dtype", "shape"),
    [
        ("jpeg", "u1", (90, 70)),
        ("jpeg", "u1", (90, 70, 3)),
        ("jpeg2000", "u2", (90, 70)),
        ("jpegxl", "u2", (90, 70)),
        ("jpegxl", "u1", (90, 70, 3)),
        ("webp", "u1", (90, 70, 3)),
        ("png", "u1", (90, 70, 3)),
        ("lerc", "f4", (90, 70)),
        ("jpegxr", "u1", (90, 70, 3)),
    ],
)
def test_every_codec_of_pictures(
    tmp_path: Path, compression: str, dtype: str, shape: tuple[int, ...]
) -> None:
    """Also JPEG, whose tables all tiles share."""
    array = np.add.outer(np.arange(shape[0]), np.arange(shape[1])).astype(dtype)
    array = np.stack([array] * 3, -1) if len(shape) == 3 else array
    path = tmp_path / "a.tif"
    photometric = "rgb" if len(shape) == 3 else "minisblack"
    tifffile.imwrite(path, array, compression=compression, tile=(32, 48), photometric=photometric)
    image = opened(path)
    assert image.grid.chunks[:2] == (32, 48)
    np.testing.assert_array_equal(whole(image), tifffile.imread(path))


def test_a_volume_of_blocks(tmp_path: Path) -> None:
    """Tiles may extend along z."""
    array = pixels((20, 40, 50), "u2")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, array, tile=(16, 32, 32), volumetric=True, compression="zlib")
    image = opened(path)
    assert (str(image.axes), image.grid.chunks) == ("ZYX", (16, 32, 32))
    np.testing.assert_array_equal(whole(image), array)


def test_strips_are_joined_to_a_handy_size(tmp_path: Path) -> None:
    """Of a row each they would be as many chunks; a chunk is still what is decoded together."""
    array = pixels((3000, 500), "u2")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, array, rowsperstrip=1, compression="zlib")
    image = opened(path)
    assert image.grid.chunks == (262, 500)
    reader = image.source.reader()
    [found] = reader.read(np.array([[11, 0]]))
    np.testing.assert_array_equal(found, array[11 * 262 :])
    assert reader.reads.chunks == 1


def test_pixels_stored_as_they_are_are_runs_of_rows(tmp_path: Path) -> None:
    """One range of bytes a chunk; the worker needs no table of the file."""
    array = pixels((30, 400, 300), "u2")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, array, imagej=True, metadata={"axes": "TYX"}, rowsperstrip=7)
    image = opened(path)
    assert (str(image.axes), image.grid.chunks) == ("TYX", (4, 400, 300))
    reader = image.source.reader()
    found = reader.read(np.array([[0, 0, 0], [1, 0, 0]]))
    np.testing.assert_array_equal(np.concatenate(found), array[:8])
    assert (reader.reads.requests, reader.reads.nbytes) == (1, array[:8].nbytes)
    assert reader.reads.codecs == "file"


def test_tiles_that_were_never_written(tmp_path: Path) -> None:
    """Show nodata where the file declares it, else zeros."""
    array = pixels((64, 96), "i2")
    for nodata, fill in ((None, 0), ("-7", -7)):
        path = tmp_path / f"{fill}.tif"
        extra = [] if nodata is None else [(42113, "s", 0, nodata, True)]
        tifffile.imwrite(path, array, tile=(32, 32), compression="zlib", extratags=extra)
        with tifffile.TiffFile(path, mode="r+") as tif:
            counts = list(tif.pages[0].tags[325].value)
            offsets = list(tif.pages[0].tags[324].value)
            offsets[1] = counts[1] = 0
            tif.pages[0].tags[324].overwrite(offsets)
            tif.pages[0].tags[325].overwrite(counts)
        image = opened(path)
        expected = array.copy()
        expected[:32, 32:64] = fill
        np.testing.assert_array_equal(whole(image), expected)
        np.testing.assert_array_equal(tifffile.imread(path), expected)
        assert image.nodata == (None if nodata is None else -7)


def test_numbers_of_a_palette_are_given_as_they_are(tmp_path: Path) -> None:
    """Colours of a palette are for looking."""
    array = pixels((20, 30), "u1")
    path = tmp_path / "a.tif"
    colors = np.arange(3 * 256, dtype=np.uint16).reshape(3, 256)
    tifffile.imwrite(path, array, photometric="palette", colormap=colors)
    np.testing.assert_array_equal(whole(opened(path)), array)


def tables(entries: dict[int, tuple[int, Any]], data: bytes = b"", after: int = 0) -> bytes:
    """A classic TIFF of one page: tag -> (type, numbers), pixels before the table."""
    data += b"\0" * (len(data) % 2)
    at = 8 + len(data)
    formats = {1: "B", 2: "B", 3: "H", 4: "I"}
    head, beyond = b"", b""
    for code, (kind, told) in sorted(entries.items()):
        values = list(told) if isinstance(told, list | bytes) else [told]
        packed = struct.pack(f"<{len(values)}{formats[kind]}", *values)
        if len(packed) > 4:
            where = at + 2 + 12 * len(entries) + 4 + len(beyond)
            beyond, packed = beyond + packed, struct.pack("<I", where)
        head += struct.pack("<HHI", code, kind, len(values)) + packed.ljust(4, b"\0")
    table = struct.pack("<H", len(entries)) + head + struct.pack("<I", after)
    return b"II*\0" + struct.pack("<I", at) + data + table + beyond


def page(width: int, height: int, **more: Any) -> dict[int, tuple[int, Any]]:
    """The tags of a grey page of one strip behind the head of the file."""
    bits = more.pop("bits", 8)
    nbytes = more.pop("nbytes", -(-width * bits // 8) * height)
    named = {"compression": 259, "rows": 278}
    found: dict[int, tuple[int, Any]] = {
        256: (4, width),
        257: (4, height),
        258: (3, bits),
        259: (3, 1),
        262: (3, 1),
        273: (4, 8),
        277: (3, 1),
        278: (4, height),
        279: (4, nbytes),
    }
    found.update({named[name]: (4, value) for name, value in more.items()})
    return found


@pytest.mark.parametrize("bits", [1, 2, 4, 12])
def test_pixels_of_fewer_bits_than_a_byte(tmp_path: Path, bits: int) -> None:
    """Rows begin at whole bytes."""
    array = pixels((5, 11), "u2") % 2**bits
    rows = ["".join(f"{v:0{bits}b}" for v in row) for row in array.tolist()]
    data = b"".join(
        int(row.ljust(-(-len(row) // 8) * 8, "0"), 2).to_bytes(-(-len(row) // 8)) for row in rows
    )
    path = tmp_path / "a.tif"
    path.write_bytes(tables(page(11, 5, bits=bits), data))
    image = opened(path)
    assert image.dtype == {1: "bool", 12: "uint16"}.get(bits, "uint8")
    np.testing.assert_array_equal(whole(image), array)


def test_dimensions_and_scale_of_imagej(tmp_path: Path) -> None:
    """A hyperstack has its axes, the size of its voxels and their unit."""
    array = pixels((2, 3, 4, 20, 30), "u2")
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        array,
        imagej=True,
        resolution=(1 / 0.25, 1 / 0.5),
        metadata={"axes": "TZCYX", "spacing": 2.0, "unit": "um"},
    )
    image = opened(path)
    assert str(image.axes) == "TZCYX"
    assert dict(image.spacing) == {"z": 2.0, "y": 0.5, "x": 0.25}
    assert set(image.unit.values()) == {"micrometer"}
    np.testing.assert_array_equal(whole(image), array)
    tifffile.imwrite(path, array[0, 0, 0], resolution=(300, 300), resolutionunit="INCH")
    assert not opened(path).spacing, "300 dots an inch are a printer's"


def test_dimensions_scale_and_channels_of_ome(tmp_path: Path) -> None:
    """From the OME-XML; dimensions of one plane are left out."""
    array = pixels((1, 3, 2, 20, 30), "u1")
    path = tmp_path / "a.ome.tif"
    metadata = {
        "axes": "TZCYX",
        "PhysicalSizeX": 250,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.5,
        "PhysicalSizeYUnit": "µm",
        "PhysicalSizeZ": 2,
        "Channel": {"Name": ["DAPI", "GFP"]},
    }
    tifffile.imwrite(path, array, metadata=metadata, compression="zlib")
    image = opened(path)
    assert image.id == "a"
    assert str(image.axes) == "ZCYX"
    assert dict(image.spacing) == {"z": 2.0, "y": 0.5, "x": 250.0}
    assert dict(image.unit) == {"z": "micrometer", "y": "micrometer", "x": "nanometer"}
    assert image.channels == ("DAPI", "GFP")
    np.testing.assert_array_equal(whole(image), array[0])


def test_ome_planes_in_other_files_are_refused(tmp_path: Path) -> None:
    """They would be read as zeros; nothing but the file that was named is opened."""
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, pixels((2, 20, 30), "u1"), metadata={"axes": "ZYX"})
    xml = tifffile.tiffcomment(path)
    part = '<TiffData IFD="{}" FirstZ="{}" PlaneCount="1"><UUID FileName="{}">{}</UUID></TiffData>'
    head, _, tail = xml.partition("<TiffData")
    tail = tail.partition("</TiffData>")[2] or tail.partition("/>")[2]
    own, other = f"urn:uuid:{1:032x}", f"urn:uuid:{2:032x}"
    for name in ("../secret.ome.tif", "b.ome.tif"):
        planes = part.format(0, 0, "a.ome.tif", own) + part.format(0, 1, name, other)
        tifffile.tiffcomment(path, (head + planes + tail).encode())
        with pytest.raises(NotAnArrayError, match="planes of it are in"):
            opened(path)


def pyramid(path: Path, *, subifds: bool) -> list[Array]:
    """A pyramid of three levels, in SubIFDs or in pages."""
    array = pixels((3, 200, 260), "u1") if subifds else pixels((200, 260), "u1")
    levels = [array[..., ::s, ::s] for s in (1, 2, 4)]
    options: dict[str, Any] = {"tile": (64, 64), "compression": "zlib"}
    with tifffile.TiffWriter(path, ome=subifds) as tif:
        if subifds:
            sizes = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
            tif.write(levels[0], subifds=2, metadata=sizes, **options)
        else:
            tif.write(levels[0], metadata=None, **options)
        for level in levels[1:]:
            tif.write(level, subfiletype=1, metadata=None, **options)
    return levels


@pytest.mark.parametrize("subifds", [True, False], ids=["SubIFDs", "pages"])
def test_levels_of_a_pyramid(tmp_path: Path, subifds: bool) -> None:
    """Opened by number as those of OME-Zarr, and found from a finer one."""
    path = tmp_path / ("a.ome.tif" if subifds else "a.tif")
    arrays = pyramid(path, subifds=subifds)
    for level, array in enumerate(arrays):
        image = opened(path, level=level)
        np.testing.assert_array_equal(whole(image), array)
        assert (image.level, image.grid.chunks[-2:]) == (level, (64, 64))
        if subifds:
            assert image.spacing["x"] == 0.5 * 2**level
        named = opened(path, level=str(level))
        assert named.to_document() == image.to_document()
        coarser = patchloom.Image.from_document(image.to_document()).levels
        assert [role.image.level for role in coarser] == list(range(level + 1, 3))
        for role in coarser:
            np.testing.assert_array_equal(whole(role.image), arrays[role.image.level])
            assert [float(s) for s in role.alignment.scale] == [2 ** (role.image.level - level)] * 2
    wrong: list[Any] = [3, -1, "3", "s1", True]
    for asked in wrong:
        with pytest.raises(SourceError, match=r"from 0 \(finest\) to 2"):
            opened(path, level=asked)


def slide(path: Path) -> list[Array]:
    """A file as Aperio's scanners write it: slide, thumbnail, level, label, macro."""
    about = "Aperio Image Library v11.2.1 \r\n256x300 (64x64) JPEG/RGB|AppMag = 20|MPP = 0.4990"
    levels = [pixels((300, 256, 3), "u1"), pixels((75, 64, 3), "u1")]
    tiles: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "metadata": None}
    strips: dict[str, Any] = {"photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as tif:
        tif.write(levels[0], description=about, **tiles)
        tif.write(pixels((50, 40, 3), "u1"), description=about, **strips)
        tif.write(levels[1], description=about, **tiles)
        tif.write(pixels((30, 30, 3), "u1"), subfiletype=1, description="Aperio label", **strips)
        tif.write(pixels((30, 90, 3), "u1"), subfiletype=9, description="Aperio macro", **strips)
    return levels


def test_pictures_beside_a_slide_are_no_levels(tmp_path: Path) -> None:
    """Thumbnail, label and macro are opened by name only."""
    path = tmp_path / "a.svs"
    levels = slide(path)
    image = opened(path)
    np.testing.assert_array_equal(whole(image), levels[0])
    assert dict(image.spacing) == {"y": 0.499, "x": 0.499}
    assert image.unit["x"] == "micrometer"
    [coarser] = image.levels
    np.testing.assert_array_equal(whole(coarser.image), levels[1])
    assert math.isclose(coarser.image.spacing["x"], 4 * 0.499)
    assert inside(path, "Macro").shape == (30, 90, 3)
    assert inside(path, "2").shape == (30, 30, 3)
    with pytest.raises(SourceError, match="1: Thumbnail YXS"):
        inside(path, "Slide")


def test_channels_of_a_scanner_in_pages(tmp_path: Path) -> None:
    """PerkinElmer's files have a page a channel, and resolution tags that are meant."""
    path = tmp_path / "a.qptiff"
    array = pixels((3, 128, 192), "u2")
    with tifffile.TiffWriter(path) as tif:
        for plane in array:
            tif.write(
                plane,
                tile=(64, 64),
                software="PerkinElmer-QPI",
                resolution=(20000, 20000),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
        tif.write(pixels((30, 40, 3), "u1"), photometric="rgb", metadata=None)
    image = opened(path)
    assert str(image.axes) == "CYX"
    assert dict(image.spacing) == {"y": 0.5, "x": 0.5}
    np.testing.assert_array_equal(whole(image), array)


def test_several_images_are_listed(tmp_path: Path) -> None:
    """And one is named by its number or name."""
    path = tmp_path / "a.tif"
    first, second = pixels((20, 30), "u1"), pixels((25, 35), "u2")
    with tifffile.TiffWriter(path) as tif:
        tif.write(first, metadata=None)
        tif.write(second, metadata=None)
    with pytest.raises(NotAnArrayError, match=r"several images: 0: .*\(20, 30\).*1: .*\(25, 35\)"):
        opened(path)
    np.testing.assert_array_equal(whole(inside(path, "1")), second)
    with pytest.raises(SourceError, match="number or its name"):
        inside(path, "2")


def test_what_pages_mean_is_told_guessed_or_asked_for(tmp_path: Path) -> None:
    """Pages of unknown meaning are z, as the first dimension of an array; or as the image's."""
    path = tmp_path / "a.tif"
    array = pixels((5, 20, 30), "u1")
    tifffile.imwrite(path, array, photometric="minisblack")
    assert str(opened(path).axes) == "ZYX"
    assert str(opened(path, axes="TYX").axes) == "TYX"
    assert str(opened(path, sample="z").axes) == "SYX"
    labels = opened(array, axes="TYX", labels=str(path)).labels
    assert labels is not None
    assert str(labels.image.axes) == "TYX"
    rgb = pixels((5, 20, 30, 3), "u1")
    tifffile.imwrite(path, rgb, photometric="rgb")
    assert str(opened(path).axes) == "ZYXC"
    tifffile.imwrite(path, np.stack([rgb] * 2), photometric="rgb")
    with pytest.raises(AxesError, match="QQYXS"):
        opened(path)
    assert str(opened(path, axes="TZYXC").axes) == "TZYXC"
    with pytest.raises(AxesError, match="5 dimensions"):
        opened(path, axes="ZYXC")


def test_layouts_of_one_map_are_equal(data_set: Callable[[str], Path]) -> None:
    """Landsat in strips, in tiles, and in planes: the same pixels, place and nodata."""
    root = data_set("geotiff")
    names = ("rasterio_RGB.byte", "rasterio_rgb_lzw", "rasterio_rgb_deflate")
    images = [opened(root / f"{name}.tif") for name in names]
    assert [str(image.axes) for image in images] == ["YXC", "YXC", "CYX"]
    arrays = [image.read([0] * 3, image.shape) for image in images]
    arrays[2] = np.moveaxis(arrays[2], 0, -1)
    for array, image in zip(arrays, images, strict=True):
        np.testing.assert_array_equal(array, arrays[0])
        assert (image.spacing, image.origin) == (images[0].spacing, images[0].origin)
        assert (image.nodata, image.unit["y"]) == (0.0, "meter")


def geo(path: Path, array: Array, scale: list[float], tie: list[float], *more: Any) -> None:
    tags = [(33550, "d", 3, [*scale, 0.0], True), (33922, "d", 6, tie, True), *more]
    tifffile.imwrite(path, array, extratags=tags, metadata=None)


def test_maps_lie_where_they_say(tmp_path: Path) -> None:
    """A mask of coarser pixels that begins elsewhere covers its image at the right place."""
    keys = (34735, "H", 12, [1, 1, 0, 2, 1024, 0, 1, 1, 3076, 0, 1, 9001], True)
    geo(tmp_path / "image.tif", pixels((40, 60), "u1"), [10, 10], [0, 0, 0, 500, 900, 0], keys)
    mask = np.ones((6, 8), "u1")
    mask[2, 3] = 0
    geo(tmp_path / "mask.tif", mask, [100, 100], [0, 0, 0, 400, 1000, 0], keys)
    image = opened(tmp_path / "image.tif", mask=str(tmp_path / "mask.tif"))
    assert dict(image.origin) == {"y": -895.0, "x": 505.0}
    assert image.unit["y"] == "meter"
    assert image.mask is not None
    assert [float(v) for v in image.mask.alignment.offset] == [-10.0, -10.0]
    plan = patchloom.plan(image, {"name": "sequential", "patch_size": [10, 10]}, min_coverage=0.5)
    # The hole is at rows 10 to 20 and columns 20 to 30 of the image.
    assert plan.n_patches == 4 * 6 - 1


def test_turned_maps_have_no_spacing(tmp_path: Path) -> None:
    """Their pixels are not square to the axes; they are opened in pixels."""
    for turned, known in ((0.0, True), (2.0, False)):
        matrix = [10.0, turned, 0, 500, -turned, -10.0, 0, 900, *[0.0] * 7, 1.0]
        path = tmp_path / f"{known}.tif"
        tifffile.imwrite(
            path, pixels((40, 60), "u1"), extratags=[(34264, "d", 16, matrix, True)], metadata=None
        )
        image = opened(path)
        assert bool(image.spacing) == known
        assert dict(image.origin) == ({"y": -895.0, "x": 505.0} if known else {})


def test_nodata_that_no_pixel_can_have_is_none(tmp_path: Path) -> None:
    """-9999 means nothing in bytes; NaN does in floats."""
    for dtype, text, nodata in (("u1", "-9999", None), ("u1", "3", 3.0), ("f4", "nan", math.nan)):
        path = tmp_path / "a.tif"
        tags = [(42113, "s", 0, text, True)]
        tifffile.imwrite(path, pixels((4, 5), dtype), extratags=tags, metadata=None)
        found = opened(path).nodata
        assert found == nodata or (found != found and nodata != nodata)


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_the_whole_job(scheduler: str, data_set: Callable[[str], Path], tmp_path: Path) -> None:
    """Images of several shapes with their labels, through any scheduler."""
    import dask

    root = data_set("nuclei_dsb2018_many_small")
    names = ["06350c7cc618", "220b37f4ca7c"]
    images = patchloom.open_images(
        [root / "images" / f"{name}.tif" for name in names],
        labels=str(root / "labels" / "{stem}.tif"),
    )
    plan = patchloom.plan(images, PATCHING, edge="pad")
    with dask.config.set(scheduler=scheduler, num_workers=2):
        report = patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    assert report.chunk_reads == report.chunks_needed
    store = patchloom.open_patches(tmp_path / "out.zarr")
    known = {name: tifffile.imread(root / "images" / f"{name}.tif") for name in names}
    marked = {name: tifffile.imread(root / "labels" / f"{name}.tif") for name in names}
    for row in store.manifest.to_pylist():
        y, x = row["start_y"], row["start_x"]
        for stored, arrays in ((store.images, known), (store.labels, marked)):
            assert stored is not None
            part = arrays[row["image_id"]][y : y + 96, x : x + 96]
            found = np.asarray(stored[row["row"]]).reshape(96, 96)[: part.shape[0], : part.shape[1]]
            np.testing.assert_array_equal(found, part)


def test_labels_without_a_scale_lie_by_their_shape(tmp_path: Path) -> None:
    """Half as many pixels are twice as wide."""
    tifffile.imwrite(tmp_path / "image.tif", pixels((3, 40, 60), "u2"), imagej=True)
    tifffile.imwrite(tmp_path / "labels.tif", pixels((20, 30), "u2"), compression="zlib")
    image = opened(tmp_path / "image.tif", axes="CYX", labels=str(tmp_path / "labels.tif"))
    assert image.labels is not None
    assert [float(s) for s in image.labels.alignment.scale] == [2.0, 2.0]


def test_over_http_only_tables_and_tiles_are_asked_for(
    http_server: Callable[[Path], HttpServer], tmp_path: Path
) -> None:
    """Opening asks for a few ranges; reading for those of tiles, close ones together."""
    array = pixels((4096, 4096), "u1")
    tifffile.imwrite(tmp_path / "a.tif", array, tile=(512, 512), compression="zlib")
    assert (tmp_path / "a.tif").stat().st_size > 16 * 2**20
    server = http_server(tmp_path)
    image = opened(server.url("a.tif"))
    gets = [r for r in server.requests if r.method == "GET"]
    assert len(gets) <= 3
    assert all(r.range for r in gets)
    assert len(server.requests) <= 8
    server.requests.clear()
    reader = image.source.reader()
    found = reader.read(np.array([[2, 3], [2, 4], [7, 7]]))
    np.testing.assert_array_equal(found[1], array[1024:1536, 2048:2560])
    gets = [r for r in server.requests if r.method == "GET"]
    assert all(r.range for r in gets)
    assert len(gets) == reader.reads.requests <= 2 + 2
    assert reader.reads.nbytes < 2 * 2**20
    server.requests.clear()
    np.testing.assert_array_equal(image.read((0, 0), (9, 9)), array[:9, :9])
    assert len([r for r in server.requests if r.method == "GET"]) == 2, "tables are known"


def test_from_object_stores(s3_server: S3Server, gcs_server: GcsServer, tmp_path: Path) -> None:
    """A pyramid in buckets, through a whole job."""
    import fsspec

    arrays = pyramid(tmp_path / "a.ome.tif", subifds=True)
    for server, scheme in ((s3_server, "s3"), (gcs_server, "gcs")):
        bucket, options = server.fresh_bucket(), server.storage_options
        fsspec.filesystem(scheme, **options).put(
            str(tmp_path / "a.ome.tif"), f"{bucket}/with space/a.ome.tif"
        )
        url = f"{bucket}/with space/a.ome.tif"
        image = opened(url, storage_options=options)
        np.testing.assert_array_equal(whole(image), arrays[0])
        assert [role.image.shape for role in image.levels] == [a.shape for a in arrays[1:]]
        plan = patchloom.plan(image, {"name": "sequential", "patch_size": [64, 64]})
        report = patchloom.materialize(plan, tmp_path / f"{scheme}.zarr", progress=False)
        assert report.chunk_reads == report.chunks_needed
        store = patchloom.open_patches(tmp_path / f"{scheme}.zarr")
        np.testing.assert_array_equal(store[0], arrays[0][:, :64, :64])


def test_a_file_that_changed_is_read_anew_or_refused(tmp_path: Path) -> None:
    """What a process knows of a file holds for one state of it."""
    path = tmp_path / "a.tif"
    first, second = pixels((60, 60), "u1"), pixels((60, 60), "u1")[::-1]
    tifffile.imwrite(path, first, tile=(32, 32), compression="zlib")
    image = opened(path)
    np.testing.assert_array_equal(whole(image), first)
    tifffile.imwrite(path, second, tile=(32, 32), compression="lzma")
    np.testing.assert_array_equal(whole(image), second)
    tifffile.imwrite(path, second[:50], tile=(32, 32), compression="lzma")
    with pytest.raises(SourceChangedError, match="is now of shape"):
        whole(image)
    path.unlink()
    with pytest.raises((SourceChangedError, ChunkError)):
        whole(image)


def test_a_plan_stays_small(tmp_path: Path) -> None:
    """It holds no table of tiles, however many there are."""
    tifffile.imwrite(tmp_path / "a.tif", pixels((2048, 2048), "u1"), tile=(16, 16))
    image = opened(tmp_path / "a.tif")
    assert image.grid.n_chunks == 128**2
    assert len(json.dumps(image.to_document())) < 2000


CYCLE = tables(page(4, 4), bytes(16), after=24)
HUGE = page(2**31 - 1, 2**31 - 1, compression=8, nbytes=16)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "not a TIFF"),
        (b"II", "not a TIFF|cannot be read"),
        (b"II*\0", "cannot be read"),
        (b"II*\0\x08\0\0\0", "without an image"),
        (b"II*\0\xff\xff\xff\x7f", "without an image"),
        (b"II*\0\x08\0\0\0\xff\xff", "cannot be read"),
        (b"II+\0\x08\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", "without an image"),
        (CYCLE, "followed by an earlier one"),
        (tables(page(2**31 - 1, 2**31 - 1, nbytes=16), bytes(16)), "holds all of its pixels"),
        (tables(HUGE, bytes(16)), "at most 2,147,483,648 bytes"),
        (tables({**HUGE, 278: (4, 1)}, bytes(16)), "tells 1 places"),
        (tables({**HUGE, 322: (3, 16), 323: (3, 16)}, bytes(16)), "tells 1 places"),
        (tables({**HUGE, 322: (3, 0), 323: (3, 0)}, bytes(16)), "cannot be read|at most 2,147"),
        (tables(page(0, 4), bytes(16)), "at least one pixel"),
        (tables({**page(4, 4), 258: (3, 7), 339: (3, 3)}, bytes(16)), "7 bits of sample format"),
        (tables({**page(4, 4), 258: (3, 64), 339: (3, 6)}, bytes(128)), "complex64"),
        (tables({256: (3, 4)}), "at least one pixel"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes, what: str) -> None:
    """At once, in little memory, with an error of ours."""
    path = tmp_path / "bad.tif"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=what):
        opened(path)


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    """When it is opened, or when what is missing is read; never filled."""
    path = tmp_path / "a.tif"
    layouts: list[dict[str, Any]] = [{}, {"tile": (64, 64), "compression": "jpeg"}]
    for options in layouts:
        tifffile.imwrite(path, pixels((200, 200), "u1"), **options)
        content = path.read_bytes()
        for cut in (100, 3000, len(content) - 1):
            path.write_bytes(content[:cut])
            with pytest.raises(SourceError):
                whole(opened(path))


@given(st.data())
def test_broken_bytes_are_errors_of_ours(data: st.DataObject) -> None:
    """Whatever is overwritten: an error of ours, or pixels of the shape that was told."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / data.draw(st.sampled_from(["a.tif", "a.svs", "a.ndpi"]))
        kind = data.draw(st.sampled_from(["tiles", "pyramid", "ome", "slide", "imagej"]))
        if kind == "tiles":
            tifffile.imwrite(path, pixels((40, 40), "u1"), tile=(16, 16), compression="zlib")
        elif kind == "slide":
            slide(path)
        elif kind == "imagej":
            tifffile.imwrite(path, pixels((3, 9, 9), "u2"), imagej=True, metadata={"axes": "TYX"})
        else:
            pyramid(path, subifds=kind == "ome")
        content = bytearray(path.read_bytes())
        places = st.integers(0, 400) | st.integers(0, len(content) - 1)
        for _ in range(data.draw(st.integers(1, 4))):
            content[min(data.draw(places), len(content) - 1)] = data.draw(st.integers(0, 255))
        path.write_bytes(bytes(content[: data.draw(st.integers(8, 3 * len(content)))]))
        try:
            image = opened(path)
            found = image.read([0] * image.ndim, [min(n, 50) for n in image.shape])
        except patchloom.errors.PatchloomError:
            return
        assert found.dtype == image.dtype
