"""CAREamics' side: its strategies built over shapes, and their specs asked one by one."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from careamics.dataset import patching
from probe import answer, build, one_by_one, rate


def _make(request: dict[str, Any]) -> Any:
    config = dict(request["config"])
    shapes, size = [(1, 1, *request["shape"])], config["patch_size"]
    name = config["name"]
    if name == "sequential":
        return _class("Sequential")(shapes, size, config["overlaps"])
    if name == "tiled":
        return _class("Tiled")(shapes, size, config["overlaps"])
    kinds = {"random": "Random", "fixed_random": "FixedRandom", "stratified": "Stratified"}
    return _class(kinds[name])(shapes, size, seed=1)


def _class(kind: str) -> Any:
    """A strategy by its name, which has had two endings."""
    for ending in ("Patching", "PatchingStrategy"):
        found = getattr(patching, kind + ending, None)
        if found is not None:
            return found
    raise AttributeError(kind)


def _handle(request: dict[str, Any]) -> dict[str, Any]:
    version = {"version": metadata.version("careamics")}
    strategy, found = build(lambda: _make(request))
    n = {"n_patches": int(strategy.n_patches)}
    if request["task"] == "build":
        return {**found, **n, **version}
    if request["task"] == "list":
        return {"specs": [strategy.get_patch_spec(k) for k in range(strategy.n_patches)]}
    return {**rate(one_by_one(strategy), request["seconds"]), **n, **version}


if __name__ == "__main__":
    answer(_handle)
