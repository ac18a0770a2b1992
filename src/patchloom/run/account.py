"""Account: all that a page of a run tells, as values, from its report, plan and store."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from patchloom.errors import PatchloomError, StoreError
from patchloom.location import Location
from patchloom.planning.plans import Plan
from patchloom.run.reports import RunReport
from patchloom.store.manifest import read_manifest
from patchloom.store.patch_store import PatchStore, open_patches
from patchloom.store.schema import manifest_name

__all__ = ["Account", "says"]

_ROWS = 2**20
"""Rows of a manifest that are read whole; of more, those of some shards."""
_SHARDS = 32
_SOURCES = 1_000
"""Images that are told one by one."""
_VALUES = 1_000
"""Values of a column that are counted one by one."""
_RUN = re.compile(r"run-\d+\.json")
_RUNS = 10


@dataclass(frozen=True, eq=False)
class Account:
    """What is known of a run."""

    report: RunReport
    plan: Plan | None
    store: PatchStore
    rows: pa.Table
    """Of the manifest: all rows, or those of shards that are spread evenly."""

    @classmethod
    def of(cls, report: RunReport) -> Account:
        """Read what the store tells.

        Raises
        ------
        StoreError
            If there is none where the run wrote it.
        """
        made = report.made
        target = Location.of(report.url) if made is None else made.target
        store = open_patches(target.url, storage_options=target.options)
        return cls(report, None if made is None else made.plan, store, _rows(store))

    @property
    def is_whole(self) -> bool:
        """Whether `rows` are all there are."""
        return int(self.store.attributes["n_patches"]) <= _ROWS

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Rows by split, class and image, most first."""
        found = {}
        for column, name in (("split", "split"), ("class", "class"), ("image_id", "image")):
            if column not in self.rows.column_names:
                continue
            table = pc.value_counts(self.rows[column])
            names, n = table.field("values").to_pylist(), table.field("counts").to_pylist()
            order = sorted(range(len(n)), key=lambda k: (-n[k], str(names[k])))[:_VALUES]
            found[name] = {str(names[k]): n[k] for k in order}
        return found

    @property
    def asked(self) -> dict[str, Any]:
        """Settings of the plan and of the run; those that say nothing are left out."""
        told = {**({} if self.plan is None else self.plan.settings), **self.store.attributes["job"]}
        if self.report.made is not None:
            told["on_error"] = self.report.made.on_error
        flat: dict[str, Any] = {}
        for key, value in told.items():
            inner = value.items() if isinstance(value, dict) else [("", value)]
            flat |= {f"{key} {k}".strip().replace("_", " "): v for k, v in inner}
        return {k: v for k, v in flat.items() if says(v)}

    @property
    def planned(self) -> dict[str, Any]:
        """What was known beforehand, at the cost of chunks."""
        return {} if self.plan is None else self.plan.figures(count=False)

    @property
    def sources(self) -> list[dict[str, Any]]:
        """The images that patches come from; of very many the first."""
        names = ("id", "uri", "level", "axes", "shape", "dtype", "chunks")
        images = self.store.attributes["images"][:_SOURCES]
        return [
            {k: _shown(image[k]) for k in names if image.get(k) is not None} for image in images
        ]

    @property
    def runs(self) -> dict[str, dict[str, Any]]:
        """The reports of the last runs that wrote into the store, by name, in order."""
        beside = self.store.location.beside(".report")
        try:
            names = sorted(name for name in beside.list() if _RUN.fullmatch(name))[-_RUNS:]
            found = {name: beside.read(name) for name in names}
        except (OSError, PatchloomError):
            return {}
        return {
            name.removesuffix(".json"): json.loads(data)
            for name, data in found.items()
            if data is not None
        }

    def to_document(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        attributes = self.store.attributes
        return {
            "format": "patchloom run report 1",
            "run": self.report.to_document(),
            "asked": self.asked,
            "planned": self.planned,
            "counts": {"rows": self.rows.num_rows, "whole": self.is_whole, **self.counts},
            "statistics": attributes.get("statistics"),
            "provenance": {
                "store": self.store.url,
                "store_version": attributes["patchloom_version"],
                "fingerprint": self.store.fingerprint,
                "seed": attributes["seed"],
                "versions": dict(self.report.versions),
                "n_images": len(attributes["images"]),
                "sources": self.sources,
            },
        }


def _rows(store: PatchStore) -> pa.Table:
    if int(store.attributes["n_patches"]) <= _ROWS:
        return store.manifest
    n = -(-int(store.attributes["n_patches"]) // int(store.attributes["rows_per_shard"]))
    names = [manifest_name(k) for k in np.unique(np.linspace(0, n - 1, _SHARDS).astype(int))]
    found = [part for part in map(store.location.read, names) if part is not None]
    if not found:
        raise StoreError(f"no part of the manifest of {store.url!r} could be read")
    return read_manifest(found)


def says(setting: Any) -> bool:
    """Whether a setting is of any effect."""
    if isinstance(setting, list | tuple):
        return any(map(says, setting))
    return setting not in (None, {}, "", "0", 0, False)


def _shown(value: Any) -> Any:
    return Location(value).shown if isinstance(value, str) and "://" in value else value
