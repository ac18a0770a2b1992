"""Pictures: each pixel as Pillow has it, one file one chunk, and no more pixels than the limit."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import patchloom
from patchloom.errors import ChunkError, NotAnArrayError, SourceError
from patchloom.sources import pillow

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (31, 47), np.uint8)
COLOUR = RNG.integers(0, 256, (31, 47, 3), np.uint8)
ALPHA = RNG.integers(0, 256, (31, 47, 4), np.uint8)
DEEP = RNG.integers(0, 65536, (31, 47), np.uint16)


def saved(path: Path, picture: Any, **more: Any) -> Path:
    if not isinstance(picture, PIL.Image.Image):
        picture = PIL.Image.fromarray(picture)
    picture.save(path, **more)
    return path


@pytest.mark.parametrize(
    ("suffix", "pixels"),
    [
        ("png", GREY),
        ("png", COLOUR),
        ("png", ALPHA),
        ("png", DEEP),
        ("png", GREY > 99),
        ("png", ALPHA[..., :2]),
        ("bmp", GREY),
        ("bmp", COLOUR),
        ("webp", COLOUR),
        ("webp", ALPHA),
    ],
)
def test_pixels_of_lossless_pictures_come_back(
    tmp_path: Path, suffix: str, pixels: np.ndarray[Any, Any]
) -> None:
    """Bit for bit, with the axes and channels that they have."""
    picture = PIL.Image.fromarray(pixels)
    more = {"lossless": True, "exact": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", picture, **more)
    [image] = patchloom.open_images(path)
    assert (image.shape, image.dtype, image.grid.n_chunks) == (pixels.shape, pixels.dtype, 1)
    assert str(image.axes) == ("YX" if pixels.ndim == 2 else "YXC")
    reader = image.source.reader()
    [found] = reader.read(np.zeros((1, image.ndim), np.int64))
    np.testing.assert_array_equal(found, pixels)
    assert (reader.reads.requests, reader.reads.nbytes) == (1, path.stat().st_size)
    if suffix == "png":
        (tmp_path / "unnamed").write_bytes(path.read_bytes())
        assert patchloom.open_images(tmp_path / "unnamed")[0].shape == image.shape


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_pictures_are_what_pillow_decodes(tmp_path: Path, suffix: str) -> None:
    """Grey and colour; the same numbers as Pillow's own."""
    for k, pixels in enumerate((GREY, COLOUR)):
        path = saved(tmp_path / f"{k}.{suffix}", pixels, quality=80)
        with PIL.Image.open(path) as picture:
            expected = np.asarray(picture)
        [image] = patchloom.open_images(path)
        np.testing.assert_array_equal(image.read((0,) * image.ndim, image.shape), expected)


def test_a_palette_is_colours_of_an_image_and_numbers_of_labels(tmp_path: Path) -> None:
    """Colours are what a picture shows, and the numbers behind them are what labels mean."""
    numbers = (GREY % 4).astype(np.uint8)
    picture = PIL.Image.fromarray(numbers, "L").convert("P")
    picture.putdata(numbers.ravel().tolist())
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [7, 8, 9]], np.uint8)
    picture.putpalette(colours.ravel().tolist())
    path = saved(tmp_path / "a.png", picture)
    clear = saved(tmp_path / "clear.png", picture, transparency=0)
    [image] = patchloom.open_images(path, labels=str(path))
    np.testing.assert_array_equal(image.read((0, 0, 0), image.shape), colours[numbers])
    assert image.channels == ("red", "green", "blue")
    assert image.labels is not None
    np.testing.assert_array_equal(image.labels.image.read((0, 0), (31, 47)), numbers)
    [image] = patchloom.open_images(clear)
    found = image.read((0, 0, 0), image.shape)
    np.testing.assert_array_equal(found[..., 3], np.where(numbers == 0, 0, 255))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, colour: int, data: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + body


def test_sixteen_bits_a_colour_are_refused(tmp_path: Path) -> None:
    """Pillow would hand over half of each number."""
    for colour, bands in ((2, 3), (4, 2), (6, 4)):
        (tmp_path / "a.png").write_bytes(png(4, 4, 16, colour, bytes(4 * (1 + 8 * bands))))
        with pytest.raises(NotAnArrayError, match="16 bits a colour; convert it"):
            patchloom.open_images(tmp_path / "a.png")
    saved(tmp_path / "a.jpg", PIL.Image.fromarray(ALPHA, "CMYK"))
    with pytest.raises(NotAnArrayError, match="mode 'CMYK'"):
        patchloom.open_images(tmp_path / "a.jpg")


def test_a_picture_of_more_pixels_than_the_limit_is_refused(tmp_path: Path) -> None:
    """By its head, whatever its size; below the limit Pillow's own does not count."""
    (tmp_path / "a.png").write_bytes(png(2**15, 2**14, 1, 0))
    with pytest.raises(NotAnArrayError, match="at most 268,435,456 pixels"):
        patchloom.open_images(tmp_path / "a.png")
    assert pillow.MOST_PIXELS == 2**28
    (tmp_path / "a.png").write_bytes(png(2**14, 2**14, 1, 0, bytes((2**11 + 1) * 2**14)))
    [image] = patchloom.open_images(tmp_path / "a.png")
    assert not image.read((0, 0), (1, 9)).any()


@pytest.mark.parametrize(
    "content",
    [b"", b"\x89PNG\r\n\x1a\n", b"RIFF0000WAVE", b"GIF89a", png(4, 0, 8, 0)[:40], b"\xff\xd8\xff"],
)
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(NotAnArrayError, match=r"begins like none|head of a picture"):
        patchloom.open_images(tmp_path / "a.png")


def test_frames_and_levels_are_refused(tmp_path: Path) -> None:
    frames = [PIL.Image.fromarray(GREY), PIL.Image.fromarray(255 - GREY)]
    saved(tmp_path / "a.png", frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(NotAnArrayError, match="has 2 frames"):
        patchloom.open_images(tmp_path / "a.png")
    with pytest.raises(SourceError, match="no levels"):
        patchloom.open_images(saved(tmp_path / "b.png", GREY), level=1)


def test_a_picture_that_changed_or_broke_is_an_error(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", COLOUR)
    [image] = patchloom.open_images(path)
    whole = path.read_bytes()
    for content, what in [
        (whole[:-500], "truncated"),
        (saved(tmp_path / "b.png", GREY).read_bytes(), "mode is 'L'"),
        (saved(tmp_path / "b.png", COLOUR[:9]).read_bytes(), "47 x 9 pixels"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ChunkError, match=what):
            image.read((0, 0, 0), image.shape)
