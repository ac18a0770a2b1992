"""Which pixels are under a mask, and under which label, at any scale and shift."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from patchloom.coverage import Alignment
from patchloom.footprint import labelled, under

FRACTIONS = st.fractions(min_value=Fraction(1, 4), max_value=5, max_denominator=6)
SHIFTS = st.fractions(min_value=-4, max_value=4, max_denominator=6)


@st.composite
def overlays(
    draw: st.DrawFn,
) -> tuple[np.ndarray, tuple[int, ...], Alignment, tuple[int, ...], tuple[int, ...]]:
    """A block of another array, where it begins, where it lies, and a box of the image."""
    ndim = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(1, 5)) for _ in range(ndim))
    kind = st.one_of(st.integers(1, 4).map(Fraction), FRACTIONS)
    scale = tuple(draw(kind) for _ in range(ndim))
    offset = tuple(draw(st.one_of(st.just(Fraction(0)), SHIFTS)) for _ in range(ndim))
    values = draw(st.lists(st.integers(0, 3), min_size=math.prod(shape), max_size=math.prod(shape)))
    origin = tuple(draw(st.integers(0, 2)) for _ in range(ndim))
    low = tuple(draw(st.integers(0, 6)) for _ in range(ndim))
    high = tuple(a + draw(st.integers(1, 6)) for a in low)
    return np.array(values).reshape(shape), origin, Alignment(scale, offset), low, high


@settings(max_examples=300, deadline=None)
@given(case=overlays())
def test_a_pixel_is_under_a_mask_that_covers_half_of_it(
    case: tuple[np.ndarray, tuple[int, ...], Alignment, tuple[int, ...], tuple[int, ...]],
) -> None:
    """Overlaps of intervals, as fractions, one pixel of each after another."""
    values, origin, alignment, low, high = case
    found = under(values != 0, origin, alignment, low, high)
    for pixel in itertools.product(*(range(a, b) for a, b in zip(low, high, strict=True))):
        area = Fraction(0)
        for index in itertools.product(*map(range, values.shape)):
            if not values[index]:
                continue
            sides = []
            for axis, k in enumerate(index):
                begin = alignment.offset[axis] + (k + origin[axis]) * alignment.scale[axis]
                stop = begin + alignment.scale[axis]
                last, first = Fraction(pixel[axis] + 1), Fraction(pixel[axis])
                sides.append(max(Fraction(0), min(stop, last) - max(begin, first)))
            area += math.prod(sides, start=Fraction(1))
        at = tuple(p - a for p, a in zip(pixel, low, strict=True))
        assert found[at] == (area >= Fraction(1, 2)), (pixel, area)


@settings(max_examples=300, deadline=None)
@given(case=overlays())
def test_a_pixel_has_the_label_at_its_centre(
    case: tuple[np.ndarray, tuple[int, ...], Alignment, tuple[int, ...], tuple[int, ...]],
) -> None:
    """Where the centre lies in another array, as a fraction."""
    values, origin, alignment, low, high = case
    found, known = labelled(values, origin, alignment, low, high)
    for pixel in itertools.product(*(range(a, b) for a, b in zip(low, high, strict=True))):
        index = tuple(
            math.floor((p + Fraction(1, 2) - o) / s) - first
            for p, o, s, first in zip(pixel, alignment.offset, alignment.scale, origin, strict=True)
        )
        inside = all(0 <= k < n for k, n in zip(index, values.shape, strict=True))
        at = tuple(p - a for p, a in zip(pixel, low, strict=True))
        assert (known is None or bool(known[at])) == inside
        if inside:
            assert found[at] == values[index]
