"""stream: training from the sources of a plan, without writing its patches."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from patchloom.errors import ConfigError, PlanError
from patchloom.live.live_patches import LivePatches
from patchloom.load.budget import n_bytes
from patchloom.normalization import Normalization
from patchloom.planning.plans import Plan
from patchloom.store.schema import role_of

__all__ = ["stream"]


def stream(
    plan: Plan,
    *,
    memory: int | str = "1 GiB",
    window: int | None = None,
    normalize: Normalization | Mapping[str, Normalization] | None = None,
) -> LivePatches:
    """The patches of a plan to train from, read from its sources as they are asked for.

    Nothing is written, and nothing is read yet. Each chunk is decoded about once in an epoch that
    goes block by block (``shuffle=True`` or ``False`` of a loader): how often exactly, the memory
    decides, `LivePatches.read_amplification` tells, and `LiveReader.report` counts. See
    docs/live.md.

    Parameters
    ----------
    plan
        From `patchloom.plan`.
    memory
        Bytes of decoded chunks that a reader holds, one in each process that reads (each worker of
        a ``DataLoader``); a number, or text such as ``"4 GiB"``.
    window
        Blocks that are mixed together. Of fewer each may be larger, and fewer chunks are decoded
        again. By default as many as cost few of these, from 256 down to 4, or to 1 where that
        brings decodes to 1.1 for each needed chunk.
    normalize
        What the images, or arrays by name (``"images"``, ``"targets"``), are scaled with: they are
        float32 then. None gives pixels as the sources hold them.

    Returns
    -------
    LivePatches
        With the loaders that a `PatchStore` has.

    Raises
    ------
    PlanError
        If the plan has no patch.
    ConfigError
        If an argument is wrong, or there are no numbers for an image.

    Examples
    --------
    >>> import numpy as np, patchloom
    >>> images = patchloom.open_images(np.arange(64, dtype="uint8").reshape(8, 8))
    >>> plan = patchloom.plan(images, {"name": "sequential", "patch_size": [4, 4]})
    >>> live = patchloom.stream(plan)
    >>> len(live), live[1][0, 0].tolist()
    (4, [4, 5, 6, 7])
    """
    if not plan.n_patches:
        raise PlanError("one trains with at least one patch, but this plan has none; see rejected")
    whole = isinstance(window, int | np.integer) and not isinstance(window, bool)
    if window is not None and not (whole and window >= 1):
        raise ConfigError(f"window= is a number of blocks from 1 on, got {window!r}")
    scaling = {"images": normalize} if isinstance(normalize, Normalization) else normalize or {}
    _check(plan, scaling)
    return LivePatches(plan, n_bytes(memory), window, dict(scaling))


def _check(plan: Plan, scaling: Mapping[str, Normalization]) -> None:
    """Refuse what cannot be scaled, and numbers that lack an image, before anything is read."""
    known = plan.images[0].cut_arrays
    for name, numbers in scaling.items():
        role = role_of(name)
        if role not in known or role in ("labels", "weights"):
            raise ConfigError(
                f"normalize= scales images and targets, got {name!r}; the plan has {[*known]}"
            )
        lacking = [image.id for image in plan.images if not numbers.knows(image.id)]
        if lacking:
            raise ConfigError(
                f"normalize= has numbers for every image, but of {name!r} it lacks those of "
                f"{lacking[:3]}; take the statistics of these images"
            )
