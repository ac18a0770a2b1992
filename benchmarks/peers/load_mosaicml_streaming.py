"""MosaicML Streaming: its streaming dataset, over shards that `patchloom.export` made."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from batches import Asked, Load, serve, stacked
from torch.utils.data import DataLoader


class _Empty(ModuleType):
    """Stands in for a torchvision that was built for other hardware than torch, and is not used."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


try:
    import torchvision  # noqa: F401
except (ImportError, RuntimeError):
    for _end in ("", ".datasets", ".transforms", ".transforms.functional"):
        sys.modules[f"torchvision{_end}"] = _made = _Empty(f"torchvision{_end}")
        _made.__spec__ = ModuleSpec(f"torchvision{_end}", None, is_package=True)

from streaming import StreamingDataset  # noqa: E402


def _prepare(asked: Asked) -> None:
    import patchloom

    if not Path(asked.own, "export.json").exists():
        patchloom.export(asked.store, to="mds", output=asked.own, progress=False)


def _load(shuffle: bool) -> Load:
    def load(asked: Asked) -> Any:
        dataset = StreamingDataset(local=asked.own, shuffle=shuffle, batch_size=asked.batch)
        return DataLoader(
            dataset,
            batch_size=asked.batch,
            num_workers=asked.threads,
            persistent_workers=True,
            collate_fn=stacked("images"),
        )

    return load


if __name__ == "__main__":
    ways = {"sequential": _load(False), "shuffled": _load(True)}
    serve("mosaicml-streaming", ways, prepare=_prepare)
