"""SplitConfig: what users write about splits (pydantic)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, Self

from pydantic import (
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from patchloom.configs import Strict
from patchloom.errors import ConfigError
from patchloom.patching.config import Pixels

__all__ = ["SplitConfig", "parse_split"]

_SHARES = {"train": 0.8, "val": 0.2}
_MOST = 100
"""Splits that one plan may have: positions of them are 8 bits wide."""
_FORMS = ("by", "block_size", "guard", "world")
"""Keys that are written in several ways."""
_LETTERS = 64
"""Letters of the longest name."""


def _form(value: object) -> str:
    """Which of the three ways numbers are written in; errors then speak of one."""
    forms: dict[type, str] = {dict: "axes", list: "list", tuple: "list"}
    return forms.get(type(value), "number")


Share = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
_Extent = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Extents = Annotated[
    Annotated[_Extent, Tag("number")]
    | Annotated[list[_Extent], Field(min_length=1, max_length=3), Tag("list")]
    | Annotated[dict[str, _Extent], Tag("axes")],
    Discriminator(_form),
]
"""A number above 0: for all axes, for each in order, or for each by name."""
_Text = Annotated[str, Field(strict=True)]
Group = Annotated[
    Annotated[_Text, Tag("text")] | Annotated[list[_Text], Field(min_length=1), Tag("list")],
    Discriminator(lambda value: "list" if isinstance(value, list | tuple) else "text"),
]
"""A word, or the names of columns."""


class SplitConfig(Strict):
    """Which patches are for training, and which for what else."""

    by: Group = "image"
    """What stays together: `image`, `blocks` inside each image, or a metadata column of the
    images; a list always names columns."""
    shares: dict[str, Share] = _SHARES
    """Share of each split, by its name; exact decimals, of which only the ratio counts."""
    folds: Annotated[int, Field(strict=True, ge=2, le=2**16)] | None = None
    """So many equal folds instead of `shares`: one is `val`, the others are `train`."""
    fold: Annotated[int, Field(strict=True, ge=0)] = 0
    """Which of the `folds` is `val`, counted from 0."""
    stratify: _Text | None = None
    """A metadata column of the images: shares are met within each of its values."""
    keep: dict[str, str] = Field(default_factory=dict)
    """Split of some groups, for example those of an earlier plan; they never move, and new ones
    fill up what is missing."""
    block_size: Extents | None = None
    """Extent of a block on each spatial axis, for `by: blocks`: pixels, or with `world` the
    physical unit."""
    guard: Pixels = 0
    """Pixels that at least lie between patches of different splits."""
    world: bool | _Text | None = None
    """Whether images lie in one system of physical coordinates: all (`true`), or those that are
    equal in a metadata column."""
    seed: Annotated[int, Field(strict=True)] | None = None
    """Fixes which group goes where; by default the plan's."""

    @property
    def columns(self) -> list[str]:
        """The metadata columns that make a group; none for images and blocks."""
        if isinstance(self.by, str):
            return [] if self.by in ("image", "blocks") else [self.by]
        return list(self.by)

    @property
    def is_blocks(self) -> bool:
        """Whether images are cut into blocks."""
        return self.by == "blocks"

    @property
    def names(self) -> tuple[str, ...]:
        """The splits, as they were written."""
        return ("train", "val") if self.folds is not None else tuple(self.shares)

    @property
    def exact_shares(self) -> list[Fraction]:
        """Share of each of `names`, or of each fold; they add up to 1."""
        if self.folds is not None:
            return [Fraction(1, self.folds)] * self.folds
        exact = [Fraction(str(share)) for share in self.shares.values()]
        return [share / sum(exact) for share in exact]

    @field_validator("shares")
    @classmethod
    def _shares_are_named(cls, shares: dict[str, float]) -> dict[str, float]:
        if not 2 <= len(shares) <= _MOST:
            raise ValueError(
                f"at least two splits have a share, and none has all (at most {_MOST} are "
                f"counted), got {len(shares)}; name them, for example train and val"
            )
        for name in shares:
            plain = name.isprintable() and name == name.strip() and 0 < len(name) <= _LETTERS
            if not plain:
                raise ValueError(
                    f"a split's name is plain text of 1 to {_LETTERS} letters, got {name[:80]!r}; "
                    "call it train, val, test or the like"
                )
        return shares

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if isinstance(self.by, list) and len(set(self.by)) < len(self.by):
            raise ValueError(f"by= names each column once, got {self.by}")
        self._check_folds()
        unknown = sorted({*self.keep.values()} - {*self.names})
        if unknown:
            raise ValueError(f"keep= names the splits {list(self.names)}, got {unknown}")
        if self.is_blocks:
            self._check_blocks()
        elif self.block_size is not None:
            raise ValueError("block_size= is for by='blocks'; say so, or leave it out")
        elif self.world in (None, False) and self.guard not in (0, [], {}):
            raise ValueError(
                "guard= is the distance of patches in one image or world; say by='blocks' or "
                "world= with it, or leave it out"
            )
        return self

    def _check_folds(self) -> None:
        if self.folds is None:
            if self.fold:
                raise ValueError(f"fold= is one of folds=, got {self.fold} without; say folds= too")
            return
        if self.fold >= self.folds:
            raise ValueError(
                f"fold= is from 0 to {self.folds - 1}, got {self.fold} of {self.folds}"
            )
        if self.shares != _SHARES:
            raise ValueError("folds= makes equal folds instead of shares=; leave one of them out")
        if self.keep:
            raise ValueError("keep= is for shares=; a fold without stratify= keeps its groups")

    def _check_blocks(self) -> None:
        if self.block_size is None:
            raise ValueError("by='blocks' needs block_size=, several times the patch")
        if self.stratify is not None or self.keep:
            raise ValueError(
                "stratify= and keep= are for groups of images; blocks never move: leave them out"
            )
        if self.world in (None, False):
            size = self.block_size
            numbers = size.values() if isinstance(size, dict) else size
            numbers = [numbers] if isinstance(numbers, float) else list(numbers)
            if not all(number.is_integer() for number in numbers):
                raise ValueError(
                    f"block_size= is whole pixels without world=, got {numbers}; round it"
                )


def parse_split(config: Mapping[str, Any] | SplitConfig) -> SplitConfig:
    """A checked configuration.

    Raises
    ------
    ConfigError
        Naming the key, what it got and the nearest right key.

    Examples
    --------
    >>> parse_split({"by": "donor"}).shares
    {'train': 0.8, 'val': 0.2}
    """
    if isinstance(config, SplitConfig):
        return config
    if not isinstance(config, Mapping):
        raise ConfigError(
            "split is a mapping such as {'by': 'image', 'shares': {'train': 0.8, 'val': 0.2}}, got "
            f"{type(config).__name__}"
        )
    given = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}
    try:
        return SplitConfig.model_validate(given)
    except ValidationError as error:
        raise ConfigError("; ".join(_sentences(error))) from None


def _sentences(error: ValidationError) -> list[str]:
    found = []
    known = list(SplitConfig.model_fields)
    for item in error.errors(include_url=False):
        path = [str(part) for part in item["loc"]]
        if path and path[0] in _FORMS:
            # The branch of a union is no key of theirs.
            path[1:2] = []
        where = f"split.{'.'.join(path)}" if path else "split"
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(path[-1], known, 1)
            way = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(known)}"
            found.append(f"unknown key {path[-1]!r} in split; {way}")
        elif item["type"] == "value_error":
            found.append(f"{where}: {item['msg'].removeprefix('Value error, ')}")
        else:
            text = item["msg"].replace("Input should be", "should be")
            found.append(f"{where} {text}, got {str(item['input'])[:60]!r}")
    return found
