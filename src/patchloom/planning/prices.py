"""Prices: what requests, bytes and hours cost, and how fast they go; a table people can change."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError

from patchloom.configs import Strict
from patchloom.errors import ConfigError
from patchloom.location import Location

__all__ = ["Prices", "Speeds", "is_far"]

_SHIPPED = Path(__file__).with_name("prices.yaml")
_NEAR = {"file", "local", "memory", "zip", "tar", "dir"}
_WRAPPERS = {"zip", "tar", "dir", "simplecache", "filecache", "blockcache", "cached"}
"""Protocols in front of the one that says where the bytes lie."""
_GB, _MB, _HOUR = 10**9, 10**6, 3600

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Speeds(Strict):
    """How fast one worker (one thread) is."""

    decode_mb_s: Rate
    """MB of pixels a second: decoded and cut."""
    encode_mb_s: Rate
    """MB of pixels a second: counted, compressed and written."""
    fetch_mb_s: Rate
    """MB a second to and from a store that is not on this machine."""
    latency_s: Amount
    """Seconds of one request to such a store."""
    concurrency: Annotated[int, Field(ge=1)]
    """Requests that one worker has under way at once."""
    shard_s: Amount
    """Seconds of one output shard, besides: its part of the manifest and of the statistics."""


class Prices(Strict):
    """What requests, bytes and hours cost, in one currency. 1 GB is 10**9 bytes."""

    name: str
    dated: str
    """When the prices were looked up."""
    currency: str
    get_per_1000: Amount
    """Of 1,000 read requests."""
    put_per_1000: Amount
    """Of 1,000 written objects."""
    egress_per_gb: Amount
    """Of bytes read out of the store."""
    storage_per_gb_month: Amount
    compute_per_worker_hour: Amount
    free: tuple[str, ...]
    """Protocols whose requests, egress and storage cost nothing."""
    speed: Speeds

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> Prices:
        """Prices from a YAML file; what it leaves out is as in the shipped table.

        Parameters
        ----------
        path
            Path or URL; None takes the shipped table, which is an example.

        Raises
        ------
        ConfigError
            If the file is not there, is no YAML mapping, has an unknown key or a wrong value, or
            names another currency without all of its prices.

        Examples
        --------
        >>> prices = Prices.load()
        >>> prices.currency, prices.get_per_1000
        ('USD', 0.0004)
        """
        shipped = yaml.safe_load(_SHIPPED.read_text(encoding="utf-8"))
        if path is None:
            return cls(**_dated(shipped))
        if not isinstance(path, str | os.PathLike):
            raise ConfigError(f"prices= is the path of a YAML file, got {type(path).__name__}")
        location = Location.of(path)
        given = _dated(_mapping(location))
        _check_currency(given, shipped, location.shown)
        speed = given.get("speed")
        if isinstance(speed, Mapping):
            given = {**given, "speed": {**shipped["speed"], **speed}}
        try:
            return cls(**{**_dated(shipped), "name": location.stem, **given})
        except ValidationError as error:
            said = "; ".join(_said(item, cls) for item in error.errors())
            raise ConfigError(f"{location.shown} is a table of prices, but {said}") from None

    def is_paid(self, location: Location) -> bool:
        """Whether requests to a place, and bytes out of it, cost money."""
        return not _homes(location) <= {*self.free}

    # -- money ---------------------------------------------------------------------------

    def reading(self, requests: int, nbytes: float) -> tuple[float, float]:
        """Money for read requests, and for the bytes that come back."""
        return self.get_per_1000 * requests / 1000, self.egress_per_gb * nbytes / _GB

    def writing(self, objects: int) -> float:
        """Money for written objects."""
        return self.put_per_1000 * objects / 1000

    def keeping(self, nbytes: float, months: float) -> float:
        """Money for stored bytes."""
        return self.storage_per_gb_month * months * nbytes / _GB

    def computing(self, seconds: float, workers: int) -> float:
        """Money for workers that are held for some time."""
        return self.compute_per_worker_hour * workers * seconds / _HOUR

    # -- time ----------------------------------------------------------------------------

    def reading_seconds(self, requests: int, nbytes: float, decoded: float) -> float:
        """Seconds of one worker to read: requests to and bytes from afar, bytes decoded."""
        speed = self.speed
        sent = requests * speed.latency_s / speed.concurrency
        return sent + nbytes / _MB / speed.fetch_mb_s + decoded / _MB / speed.decode_mb_s

    def writing_seconds(self, encoded: float, objects: int, nbytes: float) -> float:
        """Seconds of one worker to write: bytes encoded, objects and bytes sent afar."""
        speed = self.speed
        sent = objects * speed.latency_s + nbytes / _MB / speed.fetch_mb_s
        return encoded / _MB / speed.encode_mb_s + sent


def is_far(location: Location) -> bool:
    """Whether a place is reached over a network.

    >>> is_far(Location("s3://bucket/a.zarr")), is_far(Location("data/a.zarr"))
    (True, False)
    """
    return not _homes(location) <= _NEAR


def _homes(location: Location) -> set[str]:
    """The protocols that say where bytes lie, without those in front that unpack them."""
    named = re.findall(r"(?:^|::)([\w+.-]+)(?=::|://)", location.url)
    found = {name for name in named if name not in _WRAPPERS}
    return found or {"file"}


def _mapping(location: Location) -> dict[str, Any]:
    try:
        data = location.read()
    except Exception as error:
        raise ConfigError(
            f"a table of prices must be readable, but {location.shown!r} is not: "
            f"{location.describe(error)}"
        ) from None
    if data is None:
        raise ConfigError(
            f"a table of prices is a YAML file, but nothing stands at {location.shown!r}; check "
            "the path, or leave it out for the shipped table"
        )
    try:
        found = yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"a table of prices is a YAML file, but {location.shown!r} is not: {error}"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ConfigError(
            f"a table of prices is a YAML mapping such as 'egress_per_gb: 0.05', but "
            f"{location.shown!r} is not"
        )
    return found


def _dated(table: Mapping[str, Any]) -> dict[str, Any]:
    """YAML reads a day as a date: as text it is what was written."""
    return {**table, **({"dated": str(table["dated"])} if "dated" in table else {})}


def _check_currency(given: Mapping[str, Any], shipped: Mapping[str, Any], shown: str) -> None:
    if given.get("currency", shipped["currency"]) == shipped["currency"]:
        return
    prices = [name for name, field in Prices.model_fields.items() if _is_price(field.annotation)]
    missing = [name for name in prices if name not in given]
    if missing:
        raise ConfigError(
            f"a table in another currency than {shipped['currency']} says all of its prices, but "
            f"{shown} ({given['currency']}) lacks {', '.join(missing)}; add them"
        )


def _is_price(annotation: Any) -> bool:
    return annotation is float or float in get_args(annotation)


def _said(item: Any, model: type[BaseModel]) -> str:
    where = ".".join(str(step) for step in item["loc"])
    if item["type"] == "extra_forbidden":
        known = [*model.model_fields] if len(item["loc"]) == 1 else [*Speeds.model_fields]
        near = difflib.get_close_matches(str(item["loc"][-1]), known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(known)}"
        return f"{where!r} is no key of it; {hint}"
    text = str(item["msg"]).removeprefix("Input should be ")
    return f"{where!r} should be {text}, got {item['input']!r}"
