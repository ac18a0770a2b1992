"""The house: imports run downhill, also those for the type checker, and never in circles."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import patchloom

SRC = Path(patchloom.__file__).parent
VERBS = {"plan", "materialize", "stitch", "stream", "statistics", "summarize", "survey", "verify"}
VAGUE = {"utils", "core", "common", "helpers", "types"}

NEVER = {
    "arrays": {"dask", "distributed"}
    | {f"patchloom.{room}" for room in ("planning", "patching", "run", "store", "load")},
    "patching": {"dask", "distributed", "zarr", "fsspec", "xarray", "pyarrow"}
    | {f"patchloom.{room}" for room in ("store", "run", "planning", "sources", "image")},
    "planning": {"dask", "distributed", "zarr"}
    | {f"patchloom.{room}" for room in ("store", "run", "sources")},
    "load": {"dask", "distributed", "zarr"}
    | {
        f"patchloom.{room}"
        for room in ("planning", "patching", "run", "store", "sources", "image", "live")
    },
    "store": {"dask", "distributed", "patchloom.live"}
    | {f"patchloom.{room}" for room in ("planning", "patching", "run", "sources", "image")},
    "summaries": {"dask", "distributed", "zarr"}
    | {
        f"patchloom.{room}" for room in ("planning", "patching", "run", "store", "sources", "image")
    },
    "sources": {f"patchloom.{room}" for room in ("planning", "patching", "run", "store", "load")},
    "run": {"patchloom.cli", "patchloom.demo", "patchloom.live"},
    "live": {"patchloom.cli", "patchloom.demo"},
}


def modules() -> list[Path]:
    return sorted(SRC.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = ("patchloom", *path.relative_to(SRC).with_suffix("").parts)
    return ".".join(p for p in parts if p != "__init__")


def imported(path: Path) -> Iterator[str]:
    """Every name that a module imports anywhere: at its top, in functions, for type checking."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


@pytest.mark.parametrize("room", sorted(NEVER))
def test_room_keeps_its_floor(room: str) -> None:
    """No module reaches a room that stands above it, or a package that it must do without."""
    for path in (SRC / room).rglob("*.py"):
        for name in imported(path):
            bad = [other for other in NEVER[room] if within(name, other)]
            assert not bad, f"{name_of(path)} imports {name}"


def test_no_circles() -> None:
    """The import graph has no circle; the lazy face is left out, it defines nothing."""
    names = {name_of(path) for path in modules()} - {"patchloom"}
    graph = {
        name_of(path): {n for n in imported(path) if n in names} - {name_of(path)}
        for path in modules()
        if name_of(path) != "patchloom"
    }
    # A package's __init__ only re-exports: reaching a module below it is no circle.
    done: set[str] = set()
    while graph:
        free = {name for name, needs in graph.items() if not needs - done - packages(name)}
        assert free, f"circle among {sorted(graph)}"
        done |= free
        graph = {name: needs for name, needs in graph.items() if name not in free}


def packages(name: str) -> set[str]:
    """The packages that a module lies in."""
    parts = name.split(".")
    return {".".join(parts[:k]) for k in range(1, len(parts))}


def test_nothing_reaches_the_command_line() -> None:
    """Only the command itself knows click."""
    for path in modules():
        if path.parent.name == "cli" or path.stem == "__main__":
            continue
        assert not any(within(n, "patchloom.cli") or within(n, "click") for n in imported(path)), (
            path
        )


def test_names_of_modules() -> None:
    """No module is called like a verb of the face, and none says nothing."""
    stems = {path.stem for path in modules()}
    assert not stems & VERBS
    assert not stems & VAGUE


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import patchloom", ["dask", "zarr", "xarray", "numpy"]),
        ("import patchloom; patchloom.patching", ["dask", "zarr", "fsspec"]),
        ("import patchloom; patchloom.Plan", ["dask", "zarr"]),
        ("import patchloom.careamics", ["dask", "zarr", "careamics", "torch", "patchloom.run"]),
        ("import patchloom; patchloom.ArrayView; patchloom.ArrayWriter", ["dask", "zarr", "h5py"]),
        (
            "import patchloom; patchloom.open_patches",
            ["dask", "distributed", "patchloom.planning", "patchloom.run", "patchloom.patching"],
        ),
        (
            "import patchloom; store = patchloom.open_patches('tests/data/stores/format-1.zarr'); "
            "next(iter(store.batches(2)))",
            ["dask", "distributed", "patchloom.planning", "patchloom.run", "torch", "keras"],
        ),
    ],
)
def test_what_an_import_loads(code: str, absent: list[str]) -> None:
    """The face is lazy, the planner needs no Dask, and the training side needs no planner."""
    program = f"import sys; {code}; print([m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
