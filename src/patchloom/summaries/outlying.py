"""Outliers: images whose grey levels lie far from those of the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from patchloom.summaries.subjects import readable

if TYPE_CHECKING:
    import xarray

__all__ = ["AT_LEAST", "FAR", "RULE", "outliers_of"]

FAR = 3.5
"""Robust z beyond which an image is far from the rest."""
AT_LEAST = 5
"""Images that it takes to speak of a rest."""

LEAST = 0.1
"""Least unit of the robust z, in standard deviations of an image's own pixels."""

RULE = (
    f"an image is flagged where its median or one of its percentiles in some channel lies more "
    f"than {FAR} units from the median over all images; a unit is 1.4826 times the median absolute "
    f"deviation of the images from it, but at least {LEAST} of the typical standard deviation of "
    f"the pixels in one image; of fewer than {AT_LEAST} images none is flagged"
)
"""The rule in words, for pages and reports."""

_MAD = 1.482602218505602
"""Standard deviation of a normal distribution over its median absolute deviation."""
_MEAN = 1.2533141373155001
"""The same over its mean absolute deviation: the square root of pi / 2."""

Floats = npt.NDArray[np.float64]


def outliers_of(found: xarray.Dataset, *, far: float = FAR) -> pa.Table:
    """The images of a Dataset that lie far from the rest.

    The modified z-score of B. Iglewicz and D. C. Hoaglin, "How to detect and handle outliers",
    1993: the distance from the median over the images, in units of 1.4826 times the median
    absolute deviation from it; 3.5 is their limit. Grey levels are whole numbers, so images often
    agree to within one of them, and then the next level would be far off: the unit is at least a
    tenth of the standard deviation of the pixels in an image (the median of that over the images).
    Where both are 0 it is 1.2533 times the mean absolute deviation. Images without a pixel are left
    out, and of fewer than 5 others none is far from the rest.

    Parameters
    ----------
    found
        With ``percentile`` over (image, channel, quantile), ``std`` over (image, channel), and
        ``median`` over (image, channel) if it is known.
    far
        Robust z beyond which an image is flagged.

    Returns
    -------
    pyarrow.Table
        One row a number that is far off, by image: ``image``, ``channel``, ``number``
        (``"median"`` or such as ``"p99"``), ``value``, ``typical`` (the median over the images)
        and ``z`` (signed), in grey levels.
    """
    numbers: dict[str, Floats] = {}
    if "median" in found:
        numbers["median"] = found["median"].values
    for k, quantile in enumerate(found["quantile"].values.tolist()):
        if quantile != 0.5 or "median" not in numbers:
            numbers[f"p{100 * quantile:.12g}"] = found["percentile"].values[..., k]
    images, channels = (
        list(map(readable, found[name].values.tolist())) for name in ("image", "channel")
    )
    rows: list[dict[str, Any]] = []
    for c, channel in enumerate(channels):
        for name, values in numbers.items():
            typical, z = _distances(values[:, c], found["std"].values[:, c])
            rows += [
                {
                    "image": images[i],
                    "channel": channel,
                    "number": name,
                    "value": float(values[i, c]),
                    "typical": typical,
                    "z": float(z[i]),
                }
                for i in np.flatnonzero(np.abs(z) > far).tolist()
            ]
    order = {image: k for k, image in enumerate(images)}
    rows.sort(key=lambda row: order[row["image"]])
    text, number = pa.string(), pa.float64()
    kinds = [text, text, text, number, number, number]
    names = ["image", "channel", "number", "value", "typical", "z"]
    return pa.Table.from_pylist(rows, pa.schema(list(zip(names, kinds, strict=True))))


def _distances(values: Floats, spread: Floats) -> tuple[float, Floats]:
    """The median of the images' numbers, and how many units each is from it."""
    known, spread = values[np.isfinite(values)], spread[np.isfinite(spread)]
    z = np.zeros(len(values))
    if len(known) < AT_LEAST:
        return float("nan"), z
    # Numbers of the greatest size lie further apart than a float can say.
    with np.errstate(over="ignore", invalid="ignore"):
        typical = float(np.median(known / 2) * 2)
        away = np.abs(known - typical)
        least = LEAST * float(np.median(spread)) if len(spread) else 0.0
        unit = max(_MAD * float(np.median(away)), least) or _MEAN * float(away.mean())
        if unit:
            z = np.where(np.isnan(values), 0.0, (values - typical) / unit)
    return typical, np.where(np.isinf(values), values, z)
