"""What numba compiled counts the same as NumPy, to the last bit, and only once it pays."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from patchloom.compiled_loops import CompiledLoops
from patchloom.summaries import Summary, Tally, counting, dense, kernels, summary, targets, wide
from patchloom.summaries.refining import Targets

numba = pytest.mark.skipif(find_spec("numba") is None, reason="the extra fast is not installed")

DTYPES = ("bool", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "u8", "i8", "f4", "f8")
Pixels = npt.NDArray[Any]


@contextmanager
def counted_by(module: str | None, **smaller: int) -> Iterator[None]:
    """Count with numba or with NumPy, under smaller limits."""
    with pytest.MonkeyPatch.context() as patch:
        compiled = None if module is None else import_module("patchloom.summaries.compiled")
        patch.setattr(kernels.kernels, "after", lambda n: compiled)
        for name, value in smaller.items():
            for place in (counting, dense, kernels, summary, wide):
                if hasattr(place, name):
                    patch.setattr(place, name, value)
        yield


def counted(
    pixels: Pixels, nodata: float | None, times: int, parts: int, where: Targets | None = None
) -> Summary:
    tally = Tally(pixels.dtype, nodata, where)
    for part in np.array_split(pixels, parts):
        tally.add(part, times)
    return tally.summary()


def check_same(found: Summary, expected: Summary) -> None:
    for name in ("count", "nans", "nodata", "low", "high", "mean", "std", "median", "exact"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a == b or (a != a and b != b), name
    for name in ("values", "counts", "bits"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a.tobytes() == b.tobytes(), name


def check(pixels: Pixels, nodata: float | None, times: int, parts: int, **smaller: int) -> None:
    """One pass, and those that refine it, by both."""
    both = []
    for module in (None, "numba"):
        with counted_by(module, **smaller):
            both.append(counted(pixels, nodata, times, parts))
    check_same(*both)
    known = both[0]
    for _ in range(6):
        wanted = targets(known, (0.5, 50, 99), median=True)
        if wanted is None:
            return
        finer = []
        for module in (None, "numba"):
            with counted_by(module, **smaller):
                finer.append(counted(pixels, nodata, times, parts, wanted))
        check_same(*finer)
        known = known.refined(finer[0], wanted)
    raise AssertionError("the passes do not end")


@numba
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), dtype=st.sampled_from(DTYPES))
def test_numba_counts_what_numpy_counts(data: st.DataObject, dtype: str) -> None:
    """Any type, nodata, multiplicity and cut; few values, many values, and sums that fill up."""
    pixels = data.draw(hnp.arrays(dtype, st.integers(0, 60)))
    values = [None, 0.0, *pixels[:2].astype(np.float64).tolist()]
    nodata = data.draw(st.sampled_from(values))
    times, parts = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    check(
        pixels,
        nodata,
        times,
        parts,
        DISTINCT=data.draw(st.sampled_from([1, 5, 65_536])),
        SETTLED=data.draw(st.sampled_from([1, 7, 2**23])),
        FEW=data.draw(st.sampled_from([0, 7, 2**15])),
        PAIRED=data.draw(st.sampled_from([2, 7, 2**16])),
        COLUMN=data.draw(st.sampled_from([1, 5, 2**18])),
    )


@numba
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "u8"])
@pytest.mark.parametrize("kind", ["slide", "narrow", "patterns", "denormal", "background"])
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_more_values_than_are_kept_one_by_one(dtype: str, kind: str) -> None:
    """Tables of different values grow and overflow; octaves from all over the type."""
    rng = np.random.default_rng(5)
    n, size = 150_000, np.dtype(dtype).itemsize
    slide = rng.normal(1e6, 1e5, n)
    if kind == "narrow":
        # Sums of what tells them apart need more than 64 bits.
        slide = 2.0**20 - rng.random(n) * 2**15
    if kind == "patterns":
        pixels = np.frombuffer(rng.bytes(n * size), dtype)
    elif kind == "denormal":
        sign_and_fraction = np.array([0x807FFFFF if size == 4 else 0x800FFFFFFFFFFFFF], "u8")
        patterns = np.frombuffer(rng.bytes(n * size), f"u{size}")
        pixels = (patterns & sign_and_fraction.astype(f"u{size}")).view(dtype)
    elif kind == "background":
        pixels = np.where(rng.random(n) < 0.4, -0.0, slide).astype(dtype)
    else:
        pixels = slide.astype(dtype)
    check(pixels, None, 1, 3)


@numba
@pytest.mark.parametrize("dtype", ["u1", "i1", "bool", "u2", "f2"])
@pytest.mark.parametrize("kind", ["slide", "patterns", "two", "constant"])
def test_whole_chunks_of_small_types(dtype: str, kind: str) -> None:
    """As many pixels as are counted in pairs and by sparse products, an odd number of them."""
    rng = np.random.default_rng(6)
    n, size = 400_001, np.dtype(dtype).itemsize
    if kind == "patterns":
        pixels = np.frombuffer(rng.bytes(n * size), f"u{size}")
        pixels = (pixels & 1).astype(bool) if dtype == "bool" else pixels.view(dtype)
    elif kind == "slide":
        pixels = rng.normal(90, 9, n).astype(dtype)
    else:
        pixels = (rng.random(n) < (0.3 if kind == "two" else 0)).astype(dtype)
    check(pixels, None, 1, 1)
    check(pixels, 1.0, 3, 2)
    values, counts = np.unique(pixels[~np.isnan(pixels)].astype("f8") + 0.0, return_counts=True)
    for module in (None, "numba"):
        with counted_by(module):
            found = counted(pixels, None, 1, 1)
        assert found.values.tolist() == values.tolist()
        assert found.counts.tolist() == counts.tolist()


@numba
def test_sums_are_emptied_before_they_overflow() -> None:
    """More pixels in one bucket than its count has room for, of the greatest lowest bits."""
    many = np.array([0x3F80_7FFF], "u4").view("f4")[0]
    few = np.arange(70_000, dtype="f4") / 7
    for module in (None, "numba"):
        with counted_by(module):
            tally = Tally(np.dtype("f4"))
            tally.add(few)
            for n in (1, 2**23 - 1, 2**23, 2**23):
                tally.add(np.full(n, many))
            found = tally.summary()
        assert found.count == 70_000 + 3 * 2**23
        total = sum(map(Fraction, few.tolist())) + 3 * 2**23 * Fraction(float(many))
        assert found.mean == float(total / found.count)
        squares = (
            sum(Fraction(v) ** 2 for v in few.tolist()) + 3 * 2**23 * Fraction(float(many)) ** 2
        )
        spread = float(squares / found.count - (total / found.count) ** 2)
        assert found.std == pytest.approx(spread**0.5, rel=1e-15)


@numba
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "u4", "i8"])
@pytest.mark.parametrize("low", [-(2.0**31), -65_535.0, -7.0, 0.0, 2.0**24 - 70_000])
@pytest.mark.parametrize("spread", [3, 65_536, 65_537])
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_whole_numbers_near_one_another(dtype: str, low: float, spread: int) -> None:
    """They are counted by their distance from the least, with -0.0 as 0.0; others are not."""
    some = low + np.random.default_rng(7).integers(0, spread, 140_001)
    whole = np.where(some == 0, -0.0, some) if dtype[0] == "f" else np.maximum(some, 0)
    for pixels in (whole, np.where(np.arange(len(some)) == 99_999, whole + 0.5, whole)):
        given = pixels.astype(dtype)
        check(given, None, 2, 1)
        values, counts = np.unique(given.astype("f8") + 0.0, return_counts=True)
        with counted_by(None):
            found = counted(given, None, 1, 2)
        if len(values) <= 65_536:
            assert found.values.tolist() == values.tolist()
            assert found.counts.tolist() == counts.tolist()
        assert found.exact == (len(values) <= 65_536)


def test_numba_is_imported_once_it_pays() -> None:
    """The first pixels are NumPy's; with numba installed, the rest are not."""
    fresh = CompiledLoops("patchloom.summaries.compiled", 100, "NumPy counts")
    assert fresh.after(60) is None
    assert fresh.after(40) is None
    assert (fresh.after(1) is None) == (find_spec("numba") is None)


def test_without_numba_everything_counts() -> None:
    """Not installed, or not to be imported: NumPy counts, and the log says why."""
    code = """
import sys
sys.modules["numba"] = None
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: object() if name == "numba" else real(name, *a)
import numpy as np
from patchloom.summaries import kernels, summarize
kernels.kernels.patience = -1
print(summarize(np.arange(10, dtype="uint16")).mean, kernels.kernels.after(1))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["4.5", "None"]
    assert "numba is installed but cannot be imported, NumPy counts" in done.stderr


def test_importing_summaries_imports_no_numba() -> None:
    """It would take a second of every process, workers and the command line among them."""
    code = "import sys, patchloom.summaries, patchloom.run.cutting; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@numba
def test_kernels_work_where_nothing_can_be_kept() -> None:
    """Installed read-only, for a user without a home: compiled anew, not refused."""
    code = """
import numba.core.caching as caching
def refuse(*args): raise RuntimeError("cannot cache function: no locator available")
caching.FunctionCache.__init__ = refuse
import numpy as np
from patchloom.summaries import kernels, summarize
kernels.kernels.patience = -1
print(summarize(np.arange(10, dtype="uint16")).mean, kernels.kernels.after(1).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["4.5", "patchloom.summaries.compiled"]
