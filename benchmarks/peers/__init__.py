"""Programs that run in the environments of peers, one file each, and the comparison with them."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run ``python -m benchmarks peers``."""
    from benchmarks.comparing import main as compare

    return compare(argv)
