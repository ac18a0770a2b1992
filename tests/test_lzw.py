"""Streams of LZW that name strings which they have not told are refused, all others pass."""

from __future__ import annotations

import subprocess
import sys

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchloom.sources.lzw import check_lzw

DAMAGED = """
import sys
import imagecodecs, numpy as np
from patchloom.sources.lzw import check_lzw

chance = np.random.default_rng(int(sys.argv[1]))
passed = 0
for k in range(4000):
    n = int(chance.integers(1, 3000))
    stream = bytearray(imagecodecs.lzw_encode(chance.poisson(3 + k % 90, n).astype("u1").tobytes()))
    for _ in range(int(chance.integers(1, 4))):
        stream[int(chance.integers(len(stream)))] = int(chance.integers(256))
    try:
        check_lzw(bytes(stream))
    except ValueError:
        continue
    passed += 1
    for out in (n, None):
        try:
            imagecodecs.lzw_decode(bytes(stream), out=out)
        except RuntimeError:
            pass
print(passed)
"""
"""Decodes damaged streams that pass, in a process that may die of it."""


def bits_of(*codes: tuple[int, int]) -> bytes:
    """Codes of some widths, the first bit first."""
    text = "".join(f"{code:0{width}b}" for code, width in codes)
    return int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")


def told_by(stream: bytes) -> int | None:
    """The number of the first code that names no string yet, code by code; None if all do."""
    text = "".join(f"{byte:08b}" for byte in stream)
    place, told, fresh, number = 0, 258, True, 0
    while True:
        width = 9 + (told > 510) + (told > 1022) + (told > 2046)
        if place + width > len(text):
            return None
        code = int(text[place : place + width], 2)
        place, number = place + width, number + 1
        if code == 257:
            return None
        if code == 256:
            told, fresh = 258, True
        elif code > (255 if fresh else min(told, 4095)):
            return number
        else:
            told, fresh = told if fresh else min(told + 1, 4096), False


@given(st.binary(max_size=4000), st.integers(1, 8))
@settings(max_examples=60)
def test_whole_streams_pass(data: bytes, times: int) -> None:
    """Of any bytes, through tables that fill up and are cleared."""
    check_lzw(bytes(imagecodecs.lzw_encode(data * times)))


@given(st.integers(0, 2**32), st.integers(1, 20_000), st.integers(0, 3), st.integers(1, 250))
@settings(max_examples=60)
def test_what_is_refused_is_what_names_no_string(
    seed: int, n: int, changes: int, level: int
) -> None:
    """As code by code, in Python, finds it."""
    chance = np.random.default_rng(seed)
    whole = imagecodecs.lzw_encode(chance.poisson(level, n).astype("uint8").tobytes())
    stream = bytearray(whole)
    for _ in range(changes):
        stream[int(chance.integers(len(stream)))] = int(chance.integers(256))
    stream[0] = whole[0]
    if told_by(bytes(stream)) is None:
        check_lzw(bytes(stream))
    else:
        with pytest.raises(ValueError, match="names a string"):
            check_lzw(bytes(stream))


def test_tables_that_are_never_cleared_go_on() -> None:
    """Codes of 12 bits name any string of the full table."""
    widths = [9 + (k > 253) + (k > 765) + (k > 1789) for k in range(4200)]
    codes = [(256, 9), *((7, width) for width in widths), (4095, 12), (4095, 12), (257, 12)]
    assert told_by(bits_of(*codes)) is None
    check_lzw(bits_of(*codes))
    many = [*codes[:-1], *[(4000, 12)] * 20_000]
    check_lzw(bits_of(*many))
    early = [(256, 9), *((7, width) for width in widths[:3000]), (3300, 12)]
    with pytest.raises(ValueError, match="code 3300 where 3257 is the last one"):
        check_lzw(bits_of(*early))


def test_the_first_code_is_a_byte() -> None:
    """imagecodecs 2026.3.6 may end the process of any other."""
    with pytest.raises(ValueError, match="code 508 where 255 is the last one"):
        check_lzw(bits_of((256, 9), (508, 9)))


def test_old_streams_are_refused() -> None:
    """Packed from the last bit of a byte: nothing looks through these."""
    with pytest.raises(ValueError, match=r"before TIFF 6\.0"):
        check_lzw(b"\x00\x03\x00\x00")


@pytest.mark.parametrize("seed", range(3))
def test_damaged_streams_that_pass_end_no_process(seed: int) -> None:
    """Whatever lies in memory."""
    done = subprocess.run(
        [sys.executable, "-c", DAMAGED, str(seed)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 100
