"""``python -m patchloom`` is the command ``patchloom``."""

from __future__ import annotations

from patchloom.cli import main

if __name__ == "__main__":
    main(prog_name="patchloom")
