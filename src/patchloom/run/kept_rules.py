"""Thresholds of automatic masks, kept in the folder of a survey: one small JSON file an image."""

from __future__ import annotations

import json

from patchloom.image import Image
from patchloom.location import Location
from patchloom.mask_config import AutoMask
from patchloom.randomness import digest
from patchloom.run.parts import unreachable
from patchloom.run.whereabouts import whereabouts
from patchloom.sources.rules import ThresholdRule

__all__ = ["load_rule", "rule_name", "save_rule"]

_FORMAT = 1
"""Version of what a file holds, and of what its name covers."""
_LEVEL = ("id", "level", "axes", "shape", "dtype", "chunks", "source")


def rule_name(level: Image, asked: AutoMask, only: int | None) -> str:
    """The file of a threshold: named by the level that it is found in, and by what is asked.

    Pixels count by the place and the metadata of their array.
    """
    document = level.to_document()
    said = [{k: document[k] for k in _LEVEL}, asked.model_dump(mode="json"), only]
    text = json.dumps(said, sort_keys=True)
    return f"thresholds/{digest(_FORMAT, text, whereabouts(level.source)).hex()}.json"


def save_rule(folder: Location, name: str, rule: ThresholdRule) -> None:
    """Keep a threshold under its name."""
    document = rule.to_document()
    folder.write(name, json.dumps({"rule": document, "check": _check(name, document)}).encode())


def load_rule(folder: Location, name: str) -> ThresholdRule | None:
    """A threshold that was kept; None if there is none, or a damaged one.

    Raises
    ------
    PlanError
        If the folder cannot be reached.
    """
    try:
        data = folder.read(name)
    except Exception as error:  # each file system fails in its own way
        raise unreachable(folder, error) from None
    try:
        document = {} if data is None else json.loads(data)
        rule = document["rule"]
        if document["check"] != _check(name, rule):
            return None
        return ThresholdRule(**{k: v for k, v in rule.items() if k != "kind"})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _check(name: str, document: object) -> str:
    return digest(name, json.dumps(document, sort_keys=True)).hex()
