"""Run the benchmark that is named, or the whole job beside the floor.

``python -m benchmarks NAME --help`` lists the options of one; ``README.md`` says what each number
means.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

WHOLE = "whole"
"""What runs when no name is given."""
MODULES = {
    "all": "suite",
    "page": "page",
    "guard": "guard",
    WHOLE: "whole",
    "peers": "comparing",
    "strategies": "strategies",
    "planning": "planning",
    "growth": "growth",
    "mixing": "mixing",
    "scheduling": "scheduling",
    "amplification": "amplification",
    "codecs": "codecs",
    "statistics": "statistics",
    "stitching": "stitching",
    "augmenting": "augmenting",
    "loading": "loading",
    "live": "live",
}
"""The module of this package behind each name; its ``main`` takes the arguments that follow."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark named first on the command line.

    Parameters
    ----------
    argv
        Arguments without the program's name, those of the process by default.

    Returns
    -------
    int
        Exit status.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"{__doc__}\nnames: {', '.join(MODULES)}\n")
    named = bool(arguments) and arguments[0] in MODULES
    name, rest = (arguments[0], arguments[1:]) if named else (WHOLE, arguments)
    return int(import_module(f"benchmarks.{MODULES[name]}").main(rest))


if __name__ == "__main__":
    sys.exit(main())
