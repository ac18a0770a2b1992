"""Measure how many patches are augmented a second: ``python -m benchmarks augmenting``.

One thread; patches of 256 x 256 pixels in batches of 64; the least time of several batches.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environment
from patchloom.load.augment import Augment, interpolation

N = 64
TURNS: dict[str, Any] = {"flip": "yx", "turn": "yx"}
AFFINE: dict[str, Any] = {**TURNS, "rotation_range": 30, "zoom_range": 0.2, "shear_range": 10}
WARP: dict[str, Any] = {**AFFINE, "warp_sigma": 5}


def rate(call: Callable[[int], Any], times: int) -> float:
    """Patches a second."""
    call(0)
    found = []
    for epoch in range(1, 1 + times):
        begun = time.perf_counter()
        call(epoch)
        found.append(time.perf_counter() - begun)
    return N / min(found)


def main(argv: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks augmenting", description=__doc__)
    parser.add_argument("--times", type=int, default=5, help="batches that are timed")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args(argv)
    rates: dict[str, float] = {}
    pixels = np.random.default_rng(0).integers(0, 2**16, (N, 1, 256, 256), "uint16")
    floats = pixels.astype("float32")
    both = {"images": floats, "labels": (pixels % 5).astype("uint8")}

    def say(name: str, asked: dict[str, Any], batch: dict[str, Any], dtype: str = "") -> None:
        augment = Augment(**asked)

        def call(epoch: int) -> Any:
            found = augment(batch, np.arange(N), seed=0, epoch=epoch)
            return found["images"].astype(dtype) if dtype else found

        rates[name] = rate(call, options.times)
        print(f"{name:44} {rates[name]:8.0f}", flush=True)

    say("flips and turns, uint16", TURNS, {"images": pixels})
    say("flips and turns, uint16 to float32", TURNS, {"images": pixels}, "float32")
    say("flips and turns, float32 and uint8 labels", TURNS, both)
    fast = importlib.util.find_spec("numba") is not None
    for patience, by in [(2**62, "NumPy"), *([(0, "numba")] if fast else [])]:
        interpolation.kernels.patience = patience
        say(f"affine, float32, by {by}", AFFINE, {"images": floats})
        say(f"affine and warp, float32, by {by}", WARP, {"images": floats})
        say(f"affine and warp, with uint8 labels, by {by}", WARP, both)
    if options.output is not None:
        environment.save(options.output, "augmenting", argv, patches_a_second=rates)
    return 0
