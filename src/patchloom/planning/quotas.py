"""Quotas: how many patches to take, of how many images, and of which classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from patchloom.configs import Strict
from patchloom.errors import ConfigError, PlanError
from patchloom.image import Image
from patchloom.planning.draws import apportion, share_out
from patchloom.randomness import key_of

__all__ = ["BalanceConfig", "QuotaConfig", "class_quotas", "image_quotas"]

Ints = npt.NDArray[np.int64]
_Count = Annotated[int, Field(strict=True, ge=1)]
_Class = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_Frequency = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class QuotaConfig(Strict):
    """At most so many patches: seeded, without replacement, spread evenly."""

    n_patches: _Count | None = None
    """In all, as evenly from all images as they have."""
    n_images: _Count | None = None
    """Of so many images: a seeded choice among those that have any."""
    per_image: _Count | None = None
    """Of each image."""
    per_group: _Count | None = None
    """Of all images together that have the same value of `group`, as evenly as they have."""
    group: str | None = None
    """A metadata column of the images."""


class BalanceConfig(Strict):
    """Classes in given proportions: the largest plan in which they hold."""

    classes: Literal["equal"] | list[_Class] | dict[_Class, _Frequency] = "equal"
    """Values of the labels: all that occur, or those of a list, in equal numbers; or each with
    its relative frequency."""
    counts: dict[_Class, _Count] | None = None
    """So many patches of each class; instead of `classes`."""
    rule: Literal["rarest", "dominant"] = "rarest"
    """Of which class a patch with several is: of the one that the fewest patches have, or of the
    one with the most pixels."""
    min_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of a patch that a class must cover to count; 0 means one pixel."""
    splits: list[str] | None = None
    """Splits that are balanced, by default all. The others stay as they are, and `n_patches` of a
    quota does not count them."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.counts is not None and "classes" in self.model_fields_set:
            raise ValueError("classes and counts say the same thing twice; leave one out")
        named = self.listed
        if named is not None and (not named or len(set(named)) < len(named)):
            raise ValueError(f"classes are at least one, each named once, got {named}")
        return self

    @property
    def listed(self) -> list[int] | None:
        """The classes that are named; None means all that occur."""
        if self.counts is not None:
            return list(self.counts)
        return None if self.classes == "equal" else list(self.classes)


def image_quotas(
    quota: QuotaConfig, images: Sequence[Image], available: Ints, seed: int, *, shared: bool
) -> Ints:
    """How many patches each image gives: int64[k].

    Parameters
    ----------
    quota
        What is asked for.
    images
        Of the plan.
    available
        Patches of each that may be taken: int64[k].
    seed
        Fixes the choice of images.
    shared
        Whether `n_patches` is shared out among the images; else only the other limits hold.

    Raises
    ------
    ConfigError
        If `group` is missing, or not known of each image.
    """
    allowed = np.asarray(available, np.int64).copy()
    if quota.n_images is not None:
        words = np.array([key_of("quota", seed, image.id) for image in images], np.uint64)
        some = np.flatnonzero(allowed > 0)
        chosen = some[np.argsort(words[some], kind="stable")[: quota.n_images]]
        allowed[np.setdiff1d(np.arange(len(images)), chosen)] = 0
    if quota.per_image is not None:
        allowed = np.minimum(allowed, quota.per_image)
    if (quota.per_group is None) != (quota.group is None):
        raise ConfigError(
            "per_group= and group= (a metadata column of the images) are given together, got "
            f"per_group={quota.per_group!r}, group={quota.group!r}"
        )
    if quota.per_group is not None and quota.group is not None:
        for members in _groups(quota.group, images):
            allowed[members] = share_out(allowed[members], quota.per_group)
    if shared and quota.n_patches is not None:
        allowed = share_out(allowed, quota.n_patches)
    return allowed


def _groups(column: str, images: Sequence[Image]) -> list[Ints]:
    """The images of each value of a metadata column."""
    found: dict[Any, list[int]] = {}
    for position, image in enumerate(images):
        # A missing number is no value that images could share.
        if column not in image.metadata or image.metadata[column] != image.metadata[column]:
            raise ConfigError(
                f"group= is a metadata column that all images have, but {image.id!r} has "
                f"{sorted(image.metadata)} and not {column!r}; give it with sample="
            )
        value = image.metadata[column]
        found.setdefault((type(value).__name__, value), []).append(position)
    return [np.array(members) for members in found.values()]


def class_quotas(
    balance: BalanceConfig, available: Mapping[int, int], total: int | None
) -> dict[int, int]:
    """How many patches of each class make the proportions that are asked for.

    Parameters
    ----------
    balance
        What is asked for.
    available
        Patches of each class that may be taken.
    total
        Patches in all, rounded by largest remainders; None takes the most for which the
        proportions hold exactly, or the most of all where whole patches cannot hold them.

    Raises
    ------
    PlanError
        If there are too few patches of a class, with the numbers and the way out.
    """
    if balance.counts is not None:
        wanted = {key: int(n) for key, n in balance.counts.items()}
        if total is not None and total != sum(wanted.values()):
            raise ConfigError(
                f"the counts of a balance add up to n_patches, got {sum(wanted.values()):,} and "
                f"n_patches={total:,}; leave one out"
            )
        _check_enough(wanted, available, "take fewer of it")
        return wanted
    listed = balance.classes
    if isinstance(listed, dict):
        shares = {key: Fraction(str(share)) for key, share in listed.items()}
    else:
        some = sorted(key for key, n in available.items() if n)
        shares = dict.fromkeys(some if listed == "equal" else listed, Fraction(1))
    none = [key for key in shares if not available.get(key)]
    if none:
        raise PlanError(
            f"a balance takes patches of every class that it names, but none shows {none} under "
            f"rule={balance.rule!r}; there are {_shown(available)}: leave these classes out, or "
            "lower min_fraction"
        )
    if not shares:
        return {}
    whole = sum(shares.values())
    most = min(int(available[key] * whole / share) for key, share in shares.items())
    # Of so many, or a multiple, each class has a whole number.
    exact = math.lcm(*((share / whole).denominator for share in shares.values()))
    if total is None and most >= exact:
        most -= most % exact
    if total is not None and total > most:
        _check_enough(
            apportion(shares, total), available, f"take n_patches={most:,} at most, or other shares"
        )
    return apportion(shares, most if total is None else total)


def _check_enough(wanted: Mapping[int, int], available: Mapping[int, int], remedy: str) -> None:
    short = {key: n for key, n in wanted.items() if n > available.get(key, 0)}
    if short:
        told = ", ".join(
            f"{n:,} of class {key} of {available.get(key, 0):,}" for key, n in short.items()
        )
        raise PlanError(
            f"a balance is met exactly and no patch is taken twice, but that needs {told}; "
            f"{remedy}, or offer more candidates (a smaller stride)"
        )


def _shown(available: Mapping[int, int]) -> str:
    return ", ".join(f"{n:,} of {key}" for key, n in sorted(available.items())[:20]) or "none"
