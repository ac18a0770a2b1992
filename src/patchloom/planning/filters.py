"""Filters: which patches are worth keeping, told from their scores.

A filter reads no pixels. It says which scores it needs, and decides from their columns; another
threshold is another look at the same columns.
"""

from __future__ import annotations

import difflib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal, Self, cast, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from patchloom.configs import Strict
from patchloom.errors import ConfigError, PlanError
from patchloom.randomness import key_of, philox
from patchloom.scores import Score

__all__ = [
    "AnyFilter",
    "FilterConfig",
    "FocusFilter",
    "MaskFilter",
    "MaxFilter",
    "MeanStdFilter",
    "RangeFilter",
    "SaturationFilter",
    "ShannonFilter",
    "lucky",
    "parse_filters",
    "rejections",
]

Columns = Mapping[str, npt.NDArray[np.float64]]
Bools = npt.NDArray[np.bool_]

_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Share = Annotated[float, Field(strict=True, ge=0, le=1)]
_COVERAGE = "coverage"
"""The column that says which share of a patch its mask covers."""


class _Filter(Strict):
    """What all filters share. A patch whose score is NaN is rejected."""

    name: str
    ref_channel: Annotated[int, Field(strict=True, ge=0)] = 0
    """The channel that is looked at."""
    filtered_patch_prob: _Share = 0.0
    """Probability of a rejected patch to be kept anyway; none by default (CAREamics: 0.1). It
    is drawn once, when the plan is made, and not anew in every epoch."""

    @abstractmethod
    def scores(self, ndim: int) -> tuple[Score, ...]:
        """The scores that it looks at, for patches of `ndim` spatial axes."""

    @abstractmethod
    def keeps(self, columns: Columns, ndim: int) -> Bools:
        """Which patches pass, from columns float64[n] by name: bool[n]."""

    @abstractmethod
    def _law(self) -> str:
        """What is wrong with the patches that it rejects."""

    @property
    def reason(self) -> str:
        """Why it rejects, for example ``filter max: below 50``."""
        channel = f" of channel {self.ref_channel}" if self.ref_channel else ""
        return f"filter {self.name}{channel}: {self._law()}"

    @property
    def stream(self) -> tuple[str, ...]:
        """What its luck depends on: all that says what is looked at, and no threshold."""
        return (self.name, str(self.ref_channel))


class MaxFilter(_Filter):
    """Keeps patches of which enough is near something bright (as in CSBDeep).

    Each pixel shows the maximum of a window of half a patch around it. A patch is kept if the
    share of pixels that then exceed `threshold` is at least `coverage`.
    """

    name: Literal["max"] = "max"
    threshold: _Number
    """What the maxima must exceed."""
    coverage: _Share | None = None
    """Share of the patch that must; by default 1/2^ndim: 0.25 in 2-D, 0.125 in 3-D. With 0 it
    is enough that the largest pixel reaches `threshold`."""

    def scores(self, ndim: int) -> tuple[Score, ...]:
        """The largest pixel if coverage is 0, else `bright`."""
        if self.coverage == 0:
            return (Score("max", self.ref_channel),)
        if self.coverage is None or self.coverage == 0.5**ndim:
            return (Score("bright", self.ref_channel),)
        return (Score("bright", self.ref_channel, (("coverage", self.coverage),)),)

    def keeps(self, columns: Columns, ndim: int) -> Bools:
        """Which patches are bright enough."""
        [score] = self.scores(ndim)
        found = columns[score.column]
        return found >= self.threshold if self.coverage == 0 else found > self.threshold

    def _law(self) -> str:
        share = "" if self.coverage is None else f" (coverage {_text(self.coverage)})"
        return f"below {_text(self.threshold)}{share}"


class MeanStdFilter(_Filter):
    """Keeps patches whose mean and standard deviation both reach their thresholds."""

    name: Literal["mean_std"] = "mean_std"
    mean_threshold: _Number
    """Least mean; it may be negative."""
    std_threshold: _Number | None = None
    """Least standard deviation; none by default."""

    def scores(self, ndim: int) -> tuple[Score, ...]:
        """Mean, and standard deviation where it is asked for."""
        names = ("mean",) if self.std_threshold is None else ("mean", "std")
        return tuple(Score(name, self.ref_channel) for name in names)

    def keeps(self, columns: Columns, ndim: int) -> Bools:
        """Which patches reach both."""
        mean, *std = (columns[score.column] for score in self.scores(ndim))
        found = mean >= self.mean_threshold
        return found & (std[0] >= self.std_threshold) if self.std_threshold is not None else found

    def _law(self) -> str:
        law = f"mean below {_text(self.mean_threshold)}"
        if self.std_threshold is not None:
            law += f" or std below {_text(self.std_threshold)}"
        return law


class _Least(_Filter):
    """Keeps patches whose score reaches a threshold."""

    threshold: _Number
    """Least score."""

    @abstractmethod
    def scores(self, ndim: int) -> tuple[Score, ...]:
        """The score."""

    def keeps(self, columns: Columns, ndim: int) -> Bools:
        """Which patches reach it."""
        [score] = self.scores(ndim)
        return columns[score.column] >= self.threshold

    def _law(self) -> str:
        return f"below {_text(self.threshold)}"


class ShannonFilter(_Least):
    """Keeps patches whose Shannon entropy, in bits, reaches a threshold."""

    name: Literal["shannon"] = "shannon"

    def scores(self, ndim: int) -> tuple[Score, ...]:
        """The entropy."""
        return (Score("entropy", self.ref_channel),)


class FocusFilter(_Least):
    """Keeps patches that are sharp enough; see the score `focus`."""

    name: Literal["focus"] = "focus"

    def scores(self, ndim: int) -> tuple[Score, ...]:
        """The focus."""
        return (Score("focus", self.ref_channel),)


class SaturationFilter(_Filter):
    """Keeps patches of which not too much is saturated."""

    name: Literal["saturation"] = "saturation"
    threshold: _Share
    """Largest share of saturated pixels."""
    level: _Number | None = None
    """Value from which on a pixel is saturated, such as 4095 of a 12-bit camera; by default the
    largest of the pixel type. Floating-point pixels need it."""

    def scores(self, ndim: int) -> tuple[Score, ...]:
        """The saturation."""
        params = () if self.level is None else (("level", self.level),)
        return (Score("saturation", self.ref_channel, params),)

    def keeps(self, columns: Columns, ndim: int) -> Bools:
        """Which patches have no larger share."""
        [score] = self.scores(ndim)
        return columns[score.column] <= self.threshold

    def _law(self) -> str:
        level = "" if self.level is None else f" (level {_text(self.level)})"
        return f"above {_text(self.threshold)}{level}"


class MaskFilter(_Filter):
    """Keeps patches of which the image's mask covers enough.

    The patch itself is looked at, not a region around it.
    """

    name: Literal["mask"] = "mask"
    ref_channel: Literal[0] = 0
    """A mask has one channel."""
    coverage: _Share | None = None
    """Least share that the mask covers; by default 1/2^ndim: 0.25 in 2-D, 0.125 in 3-D."""

    def scores(self, ndim: int) -> tuple[Score, ...]:
        """None: coverage is known of every patch that has a mask."""
        return ()

    def keeps(self, columns: Columns, ndim: int) -> Bools:
        """Which patches are covered enough."""
        return columns[_COVERAGE] >= (0.5**ndim if self.coverage is None else self.coverage)

    def _law(self) -> str:
        least = "the default" if self.coverage is None else _text(self.coverage)
        return f"coverage below {least}"


class RangeFilter(_Filter):
    """Keeps patches one of whose scores lies in a range, ends included."""

    name: Literal["range"] = "range"
    score: str
    """A score, such as `std` or `nodata`; or `coverage`, by the image's mask."""
    params: dict[str, _Number] = Field(default_factory=dict)
    """What is said of the score, such as `{value: 0}` of `nodata`."""
    min: _Number | None = None
    """Least score; none by default."""
    max: _Number | None = None
    """Largest score; none by default."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("a range has a min, a max or both; got neither")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min is at most max, got {self.min} and {self.max}")
        if self.score == _COVERAGE and (self.params or self.ref_channel):
            raise ValueError("coverage has no parameters and no channel; leave them out")
        try:
            self.scores(2)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    def scores(self, ndim: int) -> tuple[Score, ...]:
        """The score, unless it is coverage."""
        if self.score == _COVERAGE:
            return ()
        return (Score(self.score, self.ref_channel, tuple(sorted(self.params.items()))),)

    def keeps(self, columns: Columns, ndim: int) -> Bools:
        """Which patches lie in the range."""
        score = self.scores(ndim)
        found = columns[score[0].column if score else _COVERAGE]
        low = -np.inf if self.min is None else self.min
        return (found >= low) & (found <= (np.inf if self.max is None else self.max))

    def _law(self) -> str:
        sides = [("below", self.min), ("above", self.max)]
        law = " or ".join(f"{side} {_text(end)}" for side, end in sides if end is not None)
        said = "".join(f" ({key} {_text(value)})" for key, value in sorted(self.params.items()))
        return f"{self.score} {law}{said}"

    @property
    def stream(self) -> tuple[str, ...]:
        """Its name and the column of its score."""
        return (self.name, *(score.column for score in self.scores(2)))


AnyFilter = (
    MaxFilter
    | MeanStdFilter
    | ShannonFilter
    | MaskFilter
    | FocusFilter
    | SaturationFilter
    | RangeFilter
)
FilterConfig = Annotated[AnyFilter, Field(discriminator="name")]
"""Any filter as users write it, told apart by its name."""

_MODELS: dict[str, type[_Filter]] = {
    str(model.model_fields["name"].default): model for model in get_args(AnyFilter)
}


def parse_filters(configs: Sequence[Mapping[str, Any] | BaseModel]) -> tuple[AnyFilter, ...]:
    """Checked filters from mappings or pydantic models (CAREamics' included), in their order.

    Raises
    ------
    ConfigError
        Naming the filter and key, what it got and the nearest right key.

    Examples
    --------
    >>> [found] = parse_filters([{"name": "max", "threshold": 50}])
    >>> found.reason
    'filter max: below 50'
    """
    if isinstance(configs, (str, Mapping, BaseModel)) or not isinstance(configs, Sequence):
        raise ConfigError(
            "filters is a list such as [{'name': 'max', 'threshold': 50}], got "
            f"{type(configs).__name__}"
        )
    return tuple(_parse(config, number) for number, config in enumerate(configs))


def _parse(config: Mapping[str, Any] | BaseModel, number: int) -> AnyFilter:
    if isinstance(config, get_args(AnyFilter)):
        return cast(AnyFilter, config)
    given = config.model_dump(exclude_none=True) if isinstance(config, BaseModel) else config
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"filters[{number}] is a mapping such as {{'name': 'max', 'threshold': 50}}, got "
            f"{type(config).__name__}"
        )
    name = str(given.get("name"))
    if name not in _MODELS:
        near = difflib.get_close_matches(name, _MODELS, 1)
        raise ConfigError(
            f"filters[{number}] has a name out of {sorted(_MODELS)}, got {given.get('name')!r}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )
    adapter: TypeAdapter[AnyFilter] = TypeAdapter(FilterConfig)
    try:
        return adapter.validate_python(dict(given))
    except ValidationError as error:
        raise ConfigError("; ".join(_sentences(error, name, number))) from None


def _sentences(error: ValidationError, name: str, number: int) -> list[str]:
    found = []
    for item in error.errors():
        # The discriminator comes first; a rule of the whole has no key.
        path = [str(step) for step in item["loc"][1:]]
        known = list(_MODELS[name].model_fields)
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(path[0], known, 1)
            found.append(
                f"filter {name!r} has the keys {known}, got {path[0]!r}"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )
            continue
        law = item["msg"].removeprefix("Value error, ")
        key = "".join(f".{step}" for step in path)
        told = f", got {item['input']!r}" if path and item["type"] != "missing" else ""
        found.append(f"filters[{number}] ({name}){key}: {law}{told}")
    return found


def lucky(
    filters: Sequence[AnyFilter],
    seed: int,
    image_key: int,
    address: Sequence[npt.NDArray[np.int64]],
) -> Bools:
    """Which patches each filter keeps even if it rejects them.

    A patch's luck is fixed by its address, the seed and what a filter looks at. It is independent
    from filter to filter, and does not change with a threshold or with other filters; a larger
    ``filtered_patch_prob`` keeps whatever a smaller one kept.

    Parameters
    ----------
    filters
        Two that look at the same are told apart by their order.
    seed
        The plan's.
    image_key
        64 bits of the image.
    address
        One to four columns int64[n], such as sample and corner; their low 32 bits count.

    Returns
    -------
    bool[n, n_filters]
        True with probability ``filtered_patch_prob``, exact to 2**-64.
    """
    if not 1 <= len(address) <= 4:
        raise PlanError(f"an address has one to four columns, got {len(address)}")
    found = np.zeros((len(address[0]), len(filters)), np.bool_)
    seen: dict[tuple[str, ...], int] = {}
    for k, one in enumerate(filters):
        turn = seen[one.stream] = seen.get(one.stream, -1) + 1
        limit = int(Fraction(one.filtered_patch_prob) * 2**64)
        if limit >= 2**64:
            found[:, k] = True
        elif limit:
            low, high, _, _ = philox(key_of("filter", seed, image_key, *one.stream, turn), *address)
            found[:, k] = (high << np.uint64(32) | low) < np.uint64(limit)
    return found


def rejections(
    filters: Sequence[AnyFilter], columns: Columns, ndim: int, luck: Bools
) -> npt.NDArray[np.int64]:
    """The first filter that rejects each patch, or -1 if all keep it.

    A patch must pass every filter, by its scores or by luck.

    Parameters
    ----------
    filters
        In the order in which they are asked.
    columns
        float64[n] by name: of all scores, and ``coverage`` if a mask is looked at.
    ndim
        Spatial axes of a patch.
    luck
        bool[n, n_filters] from `lucky`.

    Returns
    -------
    int64[n]
    """
    found = np.full(len(luck), -1, np.int64)
    for k in reversed(range(len(filters))):
        found[~(filters[k].keeps(columns, ndim) | luck[:, k])] = k
    return found


def _text(value: float) -> str:
    """A number as its shortest text, whole ones without a point."""
    return repr(float(value)).removesuffix(".0")
