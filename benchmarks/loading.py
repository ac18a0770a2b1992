"""How fast a store is loaded: beside decoding it alone, loose files, and other loaders.

``python -m benchmarks loading --help`` lists the options; ``README.md`` says what each number
means. Every side is a process of its own, and all files are in the page cache.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import records
from benchmarks.epochs import ALONE, HEADER, ORDERS, PEERS, compare, draw, row, sides
from benchmarks.records import FLOOR, OURS

SIDE = 128
"""Pixels of a patch along each axis."""
COLUMNS = 64
"""Patches side by side in the image."""
_ORDERS = tuple(order for order in ORDERS if order != "live")


def main(argv: Sequence[str] | None = None) -> int:
    """Draw a store, load it in every way, print and save the figures.

    Parameters
    ----------
    argv
        Options; those of the process by default.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks loading", description=__doc__)
    parser.add_argument("--patches", type=int, default=8192, help="of 128 x 128 uint16")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--order", action="append", choices=_ORDERS, help="may be repeated")
    parser.add_argument("--latency", type=float, default=5.0, help="milliseconds of a request")
    parser.add_argument("--times", type=int, default=4, help="as many patches to look at memory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=120.0, help="after which one is stopped")
    parser.add_argument("--environments", type=Path, help="folder of the peers', by name")
    parser.add_argument("--peer", action="append", choices=PEERS, help="may be repeated")
    parser.add_argument("--cache", type=Path, help="keeps what is drawn; default temporary")
    parser.add_argument("--output", type=Path, help="JSON file, to which results are added")
    told = parser.parse_args(argv)
    peers = told.peer or PEERS
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory(prefix="patchloom-benchmarks-") as name:
        scratch = Path(name)
        epochs = draw(
            told.cache or scratch,
            "patches",
            max(1, told.patches // COLUMNS),
            COLUMNS,
            SIDE,
            SIDE,
            batch=told.batch,
            latency=told.latency / 1000,
        )
        for order in told.order or _ORDERS:
            # One order after the other: peers that keep workers do not keep them while others run.
            with sides(scratch, told.environments, peers) as among:
                many = [(epochs, among)]
                if order in ALONE and told.times > 1:
                    larger = draw(
                        told.cache or scratch,
                        f"patches x{told.times}",
                        told.times * max(1, told.patches // COLUMNS),
                        COLUMNS,
                        SIDE,
                        SIDE,
                        batch=told.batch,
                    )
                    many.append((larger, {name: among[name] for name in (FLOOR, OURS)}))
                for some, them in many:
                    results = compare(some, order, them, rounds=told.rounds, seconds=told.seconds)
                    print(*map(row, results), sep="\n", flush=True)
                    if told.output is not None:
                        records.add(told.output, "loading", argv or (), results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
