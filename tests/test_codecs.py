"""Codecs and layouts of Zarr: what zarr-python reads, patchloom reads, and equally."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import numcodecs as v3

import patchloom
from patchloom.errors import NotAnArrayError, SourceError
from patchloom.sources.zarrs import ZarrSource
from tests.servers.http import HttpServer

SHAPE, CHUNKS = (37, 41), (16, 16)
INTS = np.random.default_rng(1).integers(0, 4000, SHAPE, dtype="uint16")
FLOATS = (INTS / 16).astype("float32")
FLAGS = INTS % 3 == 0

COMPRESSORS = [
    numcodecs.Adler32(),
    numcodecs.BZ2(),
    numcodecs.CRC32(),
    numcodecs.Fletcher32(),
    numcodecs.GZip(),
    numcodecs.JenkinsLookup3(),
    numcodecs.LZ4(),
    numcodecs.LZMA(),
    numcodecs.Zlib(),
    numcodecs.Zstd(),
    *(
        numcodecs.Blosc(cname=name, shuffle=shuffle)
        for name in ("blosclz", "lz4", "lz4hc", "zlib", "zstd")
        for shuffle in (0, 1, 2)
    ),
    numcodecs.Base64(),
    numcodecs.CRC32C() if hasattr(numcodecs, "CRC32C") else None,
    numcodecs.Shuffle(elementsize=2),
    numcodecs.PCodec() if hasattr(numcodecs, "PCodec") else None,
    None,
]
FILTERS: list[tuple[Any, Any]] = [
    (numcodecs.Delta(dtype="<u2"), INTS),
    (numcodecs.Delta(dtype="<u2", astype="<i4"), INTS),
    (numcodecs.Delta(dtype="<f4"), FLOATS),
    (numcodecs.Shuffle(elementsize=4), FLOATS),
    (numcodecs.BitRound(keepbits=6), FLOATS),
    (numcodecs.Quantize(digits=2, dtype="<f4"), FLOATS),
    (numcodecs.FixedScaleOffset(offset=3, scale=10, dtype="<f4", astype="<i4"), FLOATS),
    (numcodecs.AsType(encode_dtype="<i4", decode_dtype="<u2"), INTS),
    (numcodecs.PackBits(), FLAGS),
]
if hasattr(numcodecs, "ZFPY"):
    FILTERS.append((numcodecs.ZFPY(), FLOATS))


def same(path: Path, *, inside: tuple[slice, ...] = (slice(3, 30), slice(9, 41))) -> Any:
    """What zarr-python reads, after finding it equal to what patchloom reads."""
    expected = np.asarray(zarr.open_array(path, mode="r")[...])
    [image] = patchloom.open_images(path, axes="YX")
    found = image.read([0, 0], image.shape)
    assert found.dtype == expected.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found, expected)
    start, stop = [s.start for s in inside], [s.stop for s in inside]
    np.testing.assert_array_equal(image.read(start, stop), expected[inside])
    return expected


@pytest.mark.parametrize("codec", COMPRESSORS, ids=repr)
def test_every_compressor_of_zarr_v2(codec: Any, tmp_path: Path) -> None:
    """As numcodecs has them; checksums are codecs as well."""
    array = zarr.create_array(
        tmp_path / "a.zarr",
        shape=SHAPE,
        chunks=CHUNKS,
        dtype="uint16",
        compressors=codec,
        zarr_format=2,
    )
    array[...] = INTS
    np.testing.assert_array_equal(same(tmp_path / "a.zarr"), INTS)


@pytest.mark.parametrize(("codec", "pixels"), FILTERS, ids=repr)
@pytest.mark.parametrize("compressor", [None, numcodecs.Zstd()], ids=repr)
def test_every_filter_of_zarr_v2(codec: Any, pixels: Any, compressor: Any, tmp_path: Path) -> None:
    """Lossy ones as zarr-python decodes them."""
    array = zarr.create_array(
        tmp_path / "a.zarr",
        shape=SHAPE,
        chunks=CHUNKS,
        dtype=pixels.dtype,
        filters=[codec],
        compressors=compressor,
        zarr_format=2,
    )
    array[...] = pixels
    assert np.allclose(same(tmp_path / "a.zarr").astype(float), pixels, atol=4, rtol=0.02)


BYTES_V3: list[tuple[str, dict[str, Any]]] = [
    ("Adler32", {}),
    ("BZ2", {}),
    ("Blosc", {"cname": "lz4", "shuffle": 1}),
    ("CRC32", {}),
    ("CRC32C", {}),
    ("Fletcher32", {}),
    ("GZip", {}),
    ("JenkinsLookup3", {}),
    ("LZ4", {}),
    ("LZMA", {}),
    ("Shuffle", {"elementsize": 2}),
    ("Zlib", {}),
    ("Zstd", {}),
]
ARRAYS_V3: list[tuple[str, dict[str, Any], Any]] = [
    ("AsType", {"encode_dtype": "<i4", "decode_dtype": "<u2"}, INTS),
    ("BitRound", {"keepbits": 6}, FLOATS),
    ("Delta", {"dtype": "<u2"}, INTS),
    ("FixedScaleOffset", {"offset": 3, "scale": 10, "dtype": "<f4", "astype": "<i4"}, FLOATS),
    ("PackBits", {}, FLAGS),
    ("Quantize", {"digits": 2, "dtype": "<f4"}, FLOATS),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("name", "config"), BYTES_V3, ids=[name for name, _ in BYTES_V3])
@pytest.mark.parametrize("shards", [None, (32, 32)], ids=["plain", "sharded"])
def test_every_compressor_of_numcodecs_in_zarr_v3(
    name: str, config: dict[str, Any], shards: Any, tmp_path: Path
) -> None:
    """Those that the specification does not have are read through zarr-python."""
    if name == "CRC32C" and not hasattr(numcodecs, "CRC32C"):
        pytest.skip("this numcodecs takes crc32c from a package that is not installed")
    array = zarr.create_array(
        tmp_path / "a.zarr",
        shape=SHAPE,
        chunks=CHUNKS,
        shards=shards,
        dtype="uint16",
        compressors=[getattr(v3, name)(**config)],
    )
    array[...] = INTS
    np.testing.assert_array_equal(same(tmp_path / "a.zarr"), INTS)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("name", "config", "pixels"), ARRAYS_V3, ids=[name for name, _, _ in ARRAYS_V3]
)
def test_every_filter_of_numcodecs_in_zarr_v3(
    name: str, config: dict[str, Any], pixels: Any, tmp_path: Path
) -> None:
    """Also those that change the type on the way."""
    array = zarr.create_array(
        tmp_path / "a.zarr",
        shape=SHAPE,
        chunks=CHUNKS,
        dtype=pixels.dtype,
        filters=[getattr(v3, name)(**config)],
    )
    array[...] = pixels
    assert np.allclose(same(tmp_path / "a.zarr").astype(float), pixels, atol=4, rtol=0.02)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.skipif(not hasattr(numcodecs, "PCodec"), reason="pcodec is not installed")
@pytest.mark.parametrize("pixels", [INTS, FLOATS], ids=["uint16", "float32"])
def test_the_serializer_of_numcodecs_in_zarr_v3(pixels: Any, tmp_path: Path) -> None:
    """It turns arrays to bytes by itself."""
    array = zarr.create_array(
        tmp_path / "a.zarr",
        shape=SHAPE,
        chunks=CHUNKS,
        dtype=pixels.dtype,
        serializer=v3.PCodec(),
        compressors=None,
    )
    array[...] = pixels
    np.testing.assert_array_equal(same(tmp_path / "a.zarr"), pixels)


def test_all_codecs_of_numcodecs_are_tried() -> None:
    """One that a later version brings is seen here."""
    tried = {codec.codec_id for codec in COMPRESSORS if codec is not None}
    tried |= {codec.codec_id for codec, _ in FILTERS}
    objects = {"categorize", "json2", "msgpack2", "pickle", "vlen-array", "vlen-bytes", "vlen-utf8"}
    optional = {"zfpy"} - tried  # its package is not made for every Python
    ours = {
        name for name in numcodecs.registry.codec_registry if not name.startswith("imagecodecs")
    }
    assert ours - objects - optional - {"bitinfo", "n5_wrapper"} <= tried


@pytest.mark.parametrize("name", ["json2", "msgpack2", "pickle", "vlen-utf8", "vlen-bytes"])
def test_objects_are_refused(name: str, tmp_path: Path) -> None:
    """An array of Python objects is no image, whoever packs it."""
    document = {
        "zarr_format": 2,
        "shape": [4, 4],
        "chunks": [4, 4],
        "dtype": "|O",
        "fill_value": None,
        "order": "C",
        "compressor": None,
        "filters": [{"id": name}],
    }
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr/.zarray").write_text(json.dumps(document))
    with pytest.raises(NotAnArrayError):
        patchloom.open_images(tmp_path / "a.zarr")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_codec_that_nobody_knows_is_an_error(zarr_format: Any, tmp_path: Path) -> None:
    """When an image is opened, or read at the latest: by its name."""
    path = tmp_path / "a.zarr"
    array = zarr.create_array(
        path, shape=SHAPE, chunks=CHUNKS, dtype="uint16", zarr_format=zarr_format
    )
    array[...] = INTS
    file = path / ("zarr.json" if zarr_format == 3 else ".zarray")
    document = json.loads(file.read_text())
    if zarr_format == 3:
        document["codecs"][-1] = {"name": "unheard", "configuration": {}}
    else:
        document["compressor"] = {"id": "unheard"}
    file.write_text(json.dumps(document))
    with pytest.raises(SourceError, match="unheard"):
        patchloom.open_images(path)


@given(
    dtype=st.sampled_from(["|b1", "|u1", "|i1", "<u2", ">u2", "<i4", ">i8", "<f4", ">f8", ">f2"]),
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    chunks=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    order=st.sampled_from("CF"),
    separator=st.sampled_from([None, ".", "/"]),
    fill=st.sampled_from([None, 0, 1]),
    compressor=st.sampled_from([None, {"id": "zlib", "level": 1}]),
    missing=st.integers(0, 3),
)
def test_zarr_v2_written_by_hand_reads_as_written(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
    shape: tuple[int, int],
    chunks: tuple[int, int],
    order: str,
    separator: str | None,
    fill: int | None,
    compressor: dict[str, Any] | None,
    missing: int,
) -> None:
    """Any byte order, memory order and separator, with chunks left out, no library asked."""
    path = tmp_path_factory.mktemp("v2") / "a.zarr"
    path.mkdir()
    document: dict[str, Any] = {
        "zarr_format": 2,
        "shape": shape,
        "chunks": chunks,
        "dtype": dtype,
        "fill_value": fill if dtype != "|b1" or fill is None else bool(fill),
        "order": order,
        "compressor": compressor,
        "filters": None,
    }
    if separator is not None:
        document["dimension_separator"] = separator
    (path / ".zarray").write_text(json.dumps(document))
    counts = [-(-n // c) for n, c in zip(shape, chunks, strict=True)]
    whole = np.arange(counts[0] * chunks[0] * counts[1] * chunks[1]) % 100
    pixels = whole.reshape(counts[0] * chunks[0], -1).astype(dtype)
    expected = pixels[: shape[0], : shape[1]].copy()
    for k, (i, j) in enumerate(np.ndindex(*counts)):
        where = np.s_[i * chunks[0] : (i + 1) * chunks[0], j * chunks[1] : (j + 1) * chunks[1]]
        if missing and k % missing == 0:
            expected[where] = 0 if fill is None else fill
            continue
        data = pixels[where].tobytes(order)  # type: ignore[arg-type]
        file = path / f"{i}{separator or '.'}{j}"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data if compressor is None else numcodecs.Zlib().encode(data))
    [image] = patchloom.open_images(path)
    assert image.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(image.read([0, 0], shape), expected)


@pytest.mark.parametrize("location", ["start", "end"])
def test_one_inner_chunk_costs_itself_and_the_index(
    location: Any, tmp_path: Path, http_server: Callable[[Path], HttpServer]
) -> None:
    """As a server counts: two ranges, and no byte beyond them."""
    pixels = np.random.default_rng(0).integers(0, 2**16, (256, 256), dtype="uint16")
    array = zarr.create_array(
        tmp_path / "a.zarr",
        shape=pixels.shape,
        chunks=(32, 32),
        shards={"shape": (256, 256), "index_location": location},
        dtype=pixels.dtype,
    )
    array[...] = pixels
    server = http_server(tmp_path)
    [image] = patchloom.open_images(server.url("a.zarr"))
    assert isinstance(image.source, ZarrSource)
    server.requests.clear()
    reader = image.source.reader()
    [found] = reader.read(np.array([[3, 5]]))
    np.testing.assert_array_equal(found, pixels[96:128, 160:192])
    spans = []
    for request in server.requests:
        assert (request.status, request.path) == (206, "a.zarr/c/0/0")
        assert request.range is not None
        first, _, last = request.range.removeprefix("bytes=").partition("-")
        spans.append(int(last) - int(first) + 1 if first and last else int(first or last))
    index = 64 * 16 + 4
    assert reader.reads.requests == len(server.requests) == 2
    assert reader.reads.nbytes <= index + image.source.reader().stored(np.array([[3, 5]]))[0]  # type: ignore[attr-defined]
    assert reader.reads.nbytes < index + 32 * 32 * 2 + 64
    if location == "start":
        assert sum(spans) == reader.reads.nbytes
