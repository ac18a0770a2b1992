"""Summaries: counts and moments of pixels that add.

A summary of two sets of pixels is the sum of their summaries, in any order and grouping and to
the last bit: it depends on the pixels, not on how they were cut. Up to `DISTINCT` different
values are counted one by one, so that percentiles and moments are exact; always so for bool,
(u)int8/16 and float16. Beyond that they are counted in buckets of the ordered bit pattern of
float64, each at most `RELATIVE_WIDTH` of its value wide, and further passes count inside those
buckets that hold a wanted rank: `targets`, `Tally` and `Summary.refined`.
"""

from patchloom.summaries.keys import RELATIVE_WIDTH
from patchloom.summaries.moments import Sums
from patchloom.summaries.quantiles import METHODS, percentiles, pooled, targets
from patchloom.summaries.refining import BINS, LEAVES, LISTED, Targets
from patchloom.summaries.summary import DISTINCT, RELATIVE_ERROR, Summary
from patchloom.summaries.tally import Tally, summarize, tally_bytes

__all__ = [
    "BINS",
    "DISTINCT",
    "LEAVES",
    "LISTED",
    "METHODS",
    "RELATIVE_ERROR",
    "RELATIVE_WIDTH",
    "Summary",
    "Sums",
    "Tally",
    "Targets",
    "percentiles",
    "pooled",
    "summarize",
    "tally_bytes",
    "targets",
]
