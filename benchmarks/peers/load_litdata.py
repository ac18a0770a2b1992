"""LitData: its streaming dataset and loader, over chunks that `patchloom.export` made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from batches import Asked, Load, serve, stacked
from litdata import StreamingDataLoader, StreamingDataset


def _prepare(asked: Asked) -> None:
    import patchloom

    if not Path(asked.own, "export.json").exists():
        patchloom.export(asked.store, to="litdata", output=asked.own, progress=False)


def _load(shuffle: bool) -> Load:
    def load(asked: Asked) -> Any:
        dataset = StreamingDataset(asked.own, shuffle=shuffle)
        return StreamingDataLoader(
            dataset,
            batch_size=asked.batch,
            num_workers=asked.threads,
            persistent_workers=True,
            collate_fn=stacked("images"),
        )

    return load


if __name__ == "__main__":
    serve("litdata", {"sequential": _load(False), "shuffled": _load(True)}, prepare=_prepare)
