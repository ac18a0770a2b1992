"""What patches take of a block, beside counting pixel by pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchloom.run.union import counted, layers


@st.composite
def boxes(draw: st.DrawFn) -> tuple[tuple[int, ...], Any, Any]:
    """An extent, and half-open boxes inside it, empty ones among them."""
    extent = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    n = draw(st.integers(1, 12))
    ends = [
        [sorted(draw(st.tuples(st.integers(0, e), st.integers(0, e)))) for e in extent]
        for _ in range(n)
    ]
    both = np.array(ends, np.int64)
    return extent, both[..., 0], both[..., 1]


@pytest.mark.parametrize("each", ["once", "taken"])
@given(given_boxes=boxes())
def test_pixels_count_as_often_as_boxes_hold_them(each: str, given_boxes: Any) -> None:
    """Whether they are told by boxes, by flags, or layer by layer."""
    extent, low, high = given_boxes
    want = np.zeros(extent, np.int64)
    for first, last in zip(low, high, strict=True):
        want[tuple(slice(a, b) for a, b in zip(first, last, strict=True))] += 1
    if each == "once":
        want = np.minimum(want, 1)
    by_parts, by_layers = np.zeros(extent, np.int64), np.zeros(extent, np.int64)
    for part, where, times in counted(each, low, high, extent):
        assert part == () or where is None
        by_parts[part] += times if where is None else where * times
    for where, times in layers(each, low, high, extent):
        by_layers += times if where is None else where * times
    np.testing.assert_array_equal(by_parts, want)
    np.testing.assert_array_equal(by_layers, want)
