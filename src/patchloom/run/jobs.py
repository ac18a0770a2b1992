"""A job file walked by the verbs: the same calls as in Python, in the same order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from patchloom.config import SECRET, Job, shown_values
from patchloom.errors import PatchloomError
from patchloom.image import Image
from patchloom.location import Location
from patchloom.planning.plans import Plan
from patchloom.run.appending import foreseen
from patchloom.run.drafting import plan
from patchloom.run.materializing import checked, materialize
from patchloom.run.measuring import Measuring
from patchloom.run.reports import RunReport
from patchloom.sources.opening import open_images

__all__ = ["foreseen_of", "images_of", "materialize_job", "output_options", "plan_of", "shown_job"]


def images_of(job: Job) -> list[Image]:
    """The images of a job with their roles; no pixel is read."""
    return open_images(
        job.images,
        mask=job.mask,
        labels=job.labels,
        target=job.target,
        axes=job.axes,
        level=job.level,
        array=job.array,
        sample=job.sample,
        storage_options=job.storage_options,
        ids=job.ids,
        nodata=job.nodata,
        stack=job.stack,
        channels=job.channels,
        isel=job.isel,
        sel=job.sel,
        targets=job.targets,
        weights=job.weights,
        context=job.context,
        time=job.time,
    )


def plan_of(job: Job, *, progress: bool = False) -> Plan:
    """The plan of a job; masks are read, and labels and pixels where the job asks what they show.

    Parameters
    ----------
    job
        From `load_job`.
    progress
        Whether to show how far reading has come.
    """
    return plan(
        images_of(job),
        job.patching,
        min_coverage=job.min_coverage,
        min_pixels=job.min_pixels,
        edge=job.edge,
        pad_mode=job.pad_mode,
        align=job.align,
        order=job.order,
        seed=job.seed,
        rows_per_shard=job.rows_per_shard,
        window=job.window,
        group_by=job.group_by,
        memory=job.memory,
        filters=job.filters,
        scores=job.scores,
        split=job.split,
        balance=job.balance,
        quota=job.quota,
        survey=job.survey,
        storage_options=job.storage_options,
        progress=progress,
    )


def output_options(job: Job) -> Mapping[str, Any] | None:
    """Options of the file system that a job writes to."""
    return job.storage_options if job.output_options is None else job.output_options


def foreseen_of(job: Job, planned: Plan) -> dict[str, Any]:
    """What running a job would append to what stands at its output, or why it would be refused.

    Returns
    -------
    dict
        As of `foreseen`; ``refused`` also where settings of the job do not go with its plan.
    """
    target = Location.of(job.output, output_options(job))
    try:
        checked(
            planned,
            target,
            Measuring.of(job.percentiles, job.over, job.each, job.exact, job.method),
            normalize=job.normalize,
            normalize_targets=job.normalize_targets,
            per=job.per,
            on_error=job.on_error,
        )
    except PatchloomError as error:
        return {"refused": str(error)}
    return foreseen(planned, target)


def materialize_job(
    job: Job, planned: Plan, *, progress: bool = True, verify: bool = False
) -> RunReport:
    """Write the patches of a job's plan into its output."""
    return materialize(
        planned,
        job.output,
        percentiles=job.percentiles,
        normalize=job.normalize,
        per=job.per,
        normalize_targets=job.normalize_targets,
        over=job.over,
        each=job.each,
        exact=job.exact,
        method=job.method,
        storage_options=output_options(job),
        progress=progress,
        on_error=job.on_error,
        codec=job.codec,
        verify=verify,
    )


def shown_job(job: Job) -> str:
    """A job as YAML without what is by default, and without secrets: fit for a report.

    >>> grid = {"name": "sequential", "patch_size": [64, 64]}
    >>> options = {"secret": "hunter2"}
    >>> job = Job(images="s3://k:p@b/a", patching=grid, output="o", storage_options=options)
    >>> "hunter2" in shown_job(job), "s3://b/a" in shown_job(job)
    (False, True)
    """
    told = job.model_dump(mode="json", exclude_unset=True, exclude={*SECRET})
    # That there were some is no secret.
    told |= {
        name: dict.fromkeys(getattr(job, name), "...") for name in SECRET if getattr(job, name)
    }
    text: str = yaml.safe_dump(shown_values(told), sort_keys=False, allow_unicode=True)
    return text
