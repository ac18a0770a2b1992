"""patchloom: training patches from images too big for one machine.

The walk, each arrow one value::

    open_images -> [Image] -> plan -> Plan -> materialize -> RunReport + store
    open_patches -> PatchStore
    export -> ExportReport + what another trainer reads
    verify -> VerifyReport
    stitch -> StitchReport + images of the predictions of tiles

This face re-exports nouns and verbs lazily and defines nothing: ``import patchloom`` imports
neither Dask nor Zarr.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchloom import errors as errors
    from patchloom import patching as patching
    from patchloom.arrays.array_view import ArrayView as ArrayView
    from patchloom.arrays.array_writer import ArrayWriter as ArrayWriter
    from patchloom.errors import PatchloomError as PatchloomError
    from patchloom.image import Image as Image
    from patchloom.live.live_patches import LivePatches as LivePatches
    from patchloom.live.streaming import stream as stream
    from patchloom.load.augment.augmentation import Augment as Augment
    from patchloom.load.conditions import Conditions as Conditions
    from patchloom.load.data_flow import DataFlow as DataFlow
    from patchloom.load.merged import merge_patches as merge_patches
    from patchloom.load.microsplit import MicroSplit as MicroSplit
    from patchloom.load.splitting import split_patches as split_patches
    from patchloom.planning.plans import Plan as Plan
    from patchloom.points import Points as Points
    from patchloom.run.aligning import alternatives as alternatives
    from patchloom.run.drafting import plan as plan
    from patchloom.run.export_report import ExportReport as ExportReport
    from patchloom.run.exporting import export as export
    from patchloom.run.materializing import materialize as materialize
    from patchloom.run.pricing import price as price
    from patchloom.run.reports import RunReport as RunReport
    from patchloom.run.scoring import survey as survey
    from patchloom.run.stitch_report import StitchReport as StitchReport
    from patchloom.run.stitching import stitch as stitch
    from patchloom.run.surveying import statistics as statistics
    from patchloom.run.surveying import summarize as summarize
    from patchloom.run.verify_report import VerifyReport as VerifyReport
    from patchloom.run.verifying import verify as verify
    from patchloom.sources.opening import open_images as open_images
    from patchloom.sources.points import read_points as read_points
    from patchloom.store.patch_store import PatchStore as PatchStore
    from patchloom.store.patch_store import open_patches as open_patches
    from patchloom.store.predictions import Predictions as Predictions
    from patchloom.summaries.table import Statistics as Statistics

try:
    __version__ = version("patchloom")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

_HOME = {
    "Conditions": "patchloom.load.conditions",
    "DataFlow": "patchloom.load.data_flow",
    "ExportReport": "patchloom.run.export_report",
    "ArrayView": "patchloom.arrays.array_view",
    "ArrayWriter": "patchloom.arrays.array_writer",
    "Augment": "patchloom.load.augment.augmentation",
    "Image": "patchloom.image",
    "MicroSplit": "patchloom.load.microsplit",
    "LivePatches": "patchloom.live.live_patches",
    "PatchStore": "patchloom.store.patch_store",
    "PatchloomError": "patchloom.errors",
    "Plan": "patchloom.planning.plans",
    "Points": "patchloom.points",
    "Predictions": "patchloom.store.predictions",
    "RunReport": "patchloom.run.reports",
    "Statistics": "patchloom.summaries.table",
    "StitchReport": "patchloom.run.stitch_report",
    "VerifyReport": "patchloom.run.verify_report",
    "alternatives": "patchloom.run.aligning",
    "export": "patchloom.run.exporting",
    "materialize": "patchloom.run.materializing",
    "merge_patches": "patchloom.load.merged",
    "open_images": "patchloom.sources.opening",
    "open_patches": "patchloom.store.patch_store",
    "plan": "patchloom.run.drafting",
    "read_points": "patchloom.sources.points",
    "split_patches": "patchloom.load.splitting",
    "statistics": "patchloom.run.surveying",
    "stream": "patchloom.live.streaming",
    "summarize": "patchloom.run.surveying",
    "price": "patchloom.run.pricing",
    "stitch": "patchloom.run.stitching",
    "survey": "patchloom.run.scoring",
    "verify": "patchloom.run.verifying",
}
_ROOMS = {"errors", "patching"}

__all__ = [*sorted(_HOME), "__version__", "errors", "patching"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return importlib.import_module(f"patchloom.{name}")
    raise AttributeError(f"module 'patchloom' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
