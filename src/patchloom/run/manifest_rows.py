"""Rows of a manifest: what a plan, and the pixels of its patches, tell of some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from patchloom.planning.identity import patch_ids
from patchloom.planning.incidence import Patches
from patchloom.planning.plans import Plan
from patchloom.run.contents import named
from patchloom.run.masks import covered_share
from patchloom.run.tiles import columns_of
from patchloom.store.manifest import check_columns

__all__ = ["rows_of_manifest"]


def rows_of_manifest(
    plan: Plan,
    parts: Sequence[Patches],
    told: Mapping[str, npt.NDArray[Any]],
    first_row: int = 0,
) -> dict[str, Any]:
    """The columns of the manifest for some patches, in their order.

    Parameters
    ----------
    plan, parts
        Whose patches, image by image.
    told
        What was found of each in its pixels, by columns: [n] each.
    first_row
        Row of the store with which the plan's rows begin.
    """
    names = check_columns([image.metadata for image in plan.images])
    ids: list[str] = []
    image_ids: list[str] = []
    coverage: list[npt.NDArray[np.float64]] = []
    splits: list[str] = []
    metadata: dict[str, list[Any]] = {name: [] for name in names}
    known: list[pa.Table] = []
    for part in parts:
        image = plan.images[part.image]
        ids += patch_ids(plan, part)
        image_ids += [image.id] * len(part)
        coverage.append(covered_share(plan, part))
        splits += [plan.split_names[k] for k in plan.split_of(part).tolist()]
        for name in names:
            metadata[name] += [image.metadata.get(name)] * len(part)
        if (table := columns_of(plan, part)) is not None:
            known.append(table)
    corner = np.concatenate([part.corner for part in parts])
    return {
        "patch_id": ids,
        "image_id": image_ids,
        "sample": np.concatenate([part.sample for part in parts]),
        **{f"start_{a}": corner[:, k] for k, a in enumerate(plan.spatial)},
        "coverage": np.concatenate(coverage),
        "split": splits,
        "row": np.concatenate([part.row for part in parts]) + first_row,
        **metadata,
        **named(dict(told), plan),
        **{
            name: whole[name].combine_chunks()
            for whole in ([pa.concat_tables(known)] if known else [])
            for name in whole.column_names
        },
    }
