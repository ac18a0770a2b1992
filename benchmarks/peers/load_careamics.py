"""CAREamics: its dataset over Zarr image stacks, in a DataLoader with two workers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from batches import Asked, Load, serve
from careamics.config.data.data_config import DataConfig
from careamics.dataset.factory.factory import create_dataset
from torch.utils.data import DataLoader, default_collate


class _Pixels:
    """The pixels of the batches of its loader, which stays with its workers."""

    def __init__(self, asked: Asked, source: str, axes: str, patching: Any, shuffle: bool) -> None:
        config = DataConfig(
            mode="predicting",
            data_type="zarr",
            axes=axes,
            patching=patching,
            normalization={"name": "none"},
            batch_size=asked.batch,
        )
        self._loader = DataLoader(
            create_dataset(config, [source], None),
            batch_size=asked.batch,
            shuffle=shuffle,
            collate_fn=default_collate,
            num_workers=asked.threads,
            persistent_workers=True,
        )

    def __iter__(self) -> Any:
        return (regions.data.numpy() for (regions,) in self._loader)


def _store(shuffle: bool) -> Load:
    def load(asked: Asked) -> Iterable[Any]:
        """Each patch of the store is a sample that is taken whole."""
        source = f"file://{asked.store}/images"
        return _Pixels(asked, source, "SCYX", {"name": "whole"}, shuffle)

    return load


def _live(asked: Asked) -> Iterable[Any]:
    patching = {
        "name": "tiled",
        "patch_size": [asked.side] * 2,
        "overlaps": [asked.side - asked.stride] * 2,
    }
    return _Pixels(asked, f"file://{asked.source}/0", "YX", patching, True)


if __name__ == "__main__":
    serve("careamics", {"sequential": _store(False), "shuffled": _store(True), "live": _live})
