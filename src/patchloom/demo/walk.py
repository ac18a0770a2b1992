"""run_demo: from the shipped image to a patch store and a page, with no network."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from patchloom.config import MODELINE, Job
from patchloom.errors import ExistsError, SourceMissingError
from patchloom.location import Location
from patchloom.planning.plans import Plan
from patchloom.run.jobs import materialize_job, plan_of, shown_job
from patchloom.run.page import page
from patchloom.run.reports import RunReport
from patchloom.store.patch_store import open_patches

__all__ = ["DemoResult", "demo_image", "run_demo"]

_JOB = """\
{modeline}
# The job of patchloom demo. Change it, give it another output, and: patchloom run {name}
images: {image}
mask: tissue           # where patches may lie: a label group of the image, at a quarter of its size
labels: nuclei         # cut along with the pixels
patching:
  name: sequential
  patch_size: [64, 64]
  overlaps: [16, 16]
min_coverage: 0.5      # at least half of a patch under the mask
percentiles: [1, 50, 99.8]
output: {output}
"""
_CREDIT = (
    "Image: cardiomyocytes, fractal-analytics-platform (fractal-ome-zarr-examples), BSD-3-Clause."
)


@dataclass(frozen=True)
class DemoResult:
    """What the demo made, and where."""

    store: str
    """The patch store."""
    page: str
    """The page that shows it."""
    report_page: str
    """The page about the run that made it; the same as JSON lies beside it."""
    job: str
    """The job file: ``patchloom run`` takes it."""
    plan: Plan
    report: RunReport


def demo_image() -> Path:
    """Where the OME-Zarr image is that ships with patchloom.

    Raises
    ------
    SourceMissingError
        If the package does not lie in a folder, or its data were left out.
    """
    path = Path(str(files("patchloom.demo") / "cardiomyocytes.ome.zarr"))
    if not path.is_dir():
        raise SourceMissingError(
            f"the demo's image ships as files of the package, but there is none at {str(path)!r}; "
            "install patchloom into a folder (pip does), not as an archive"
        )
    return path


def run_demo(output: str | os.PathLike[str], *, progress: bool = True) -> DemoResult:
    """Plan patches of the shipped image, write them, and make a page of it.

    Needs no network. Doing it again finishes what is missing and makes the page anew; a job file
    that is there already stays as it is.

    Parameters
    ----------
    output
        Folder (path or URL) for ``job.yaml``, ``patches.zarr``, ``index.html`` and ``report.html``.
    progress
        Whether to show it.

    Returns
    -------
    DemoResult

    Raises
    ------
    ExistsError, FingerprintError
        If something else stands at ``patches.zarr``.
    WriteError
        If the folder cannot be written.
    """
    root = Location.of(output)
    target = root / "patches.zarr"
    has_job = _check_ours(root)
    # A job file may be run from another folder.
    place = target.url if "://" in target.url else os.path.abspath(target.url)
    text = _JOB.format(
        modeline=MODELINE,
        name=(root / "job.yaml").shown,
        image=json.dumps(str(demo_image())),
        output=json.dumps(place),
    )
    job = Job.model_validate(yaml.safe_load(text))
    plan = plan_of(job)
    report = materialize_job(job, plan, progress=progress)
    made = page(
        plan,
        open_patches(target.url),
        _reports(target),
        title="patchloom demo: cardiomyocytes",
        job=text,
        credit=_CREDIT,
    )
    if not has_job:
        root.write("job.yaml", text.encode())
    root.write("index.html", made.encode())
    name = root / "report.html"
    again = shlex.join(["patchloom", "run", (root / "job.yaml").shown])
    title = "patchloom demo: the run"
    report.save(name.url, title=title, job=shown_job(job), command=again)
    return DemoResult(
        store=target.shown,
        page=(root / "index.html").shown,
        report_page=name.shown,
        job=(root / "job.yaml").shown,
        plan=plan,
        report=report,
    )


def _check_ours(root: Location) -> bool:
    """Whether a job file of the demo is there; what is not ours is not written over."""
    page = b'content="patchloom"'
    marks = {
        "job.yaml": b"# The job of patchloom demo.",
        "index.html": page,
        "report.html": page,
        "report.json": b"patchloom run report",
    }
    found = {name: root.read(name) for name in marks}
    for name, mark in marks.items():
        if mark not in (found[name] or mark):
            raise ExistsError(
                f"the demo goes where nothing else is, but {root.shown!r} has a {name} of another "
                "origin; give another folder: --output; nothing was touched"
            )
    return found["job.yaml"] is not None


def _reports(target: Location) -> list[Mapping[str, Any]]:
    """The reports of all runs, as `materialize` left them beside the store."""
    beside = target.beside(".report")
    found = [beside.read(name) for name in sorted(beside.list()) if name.endswith(".json")]
    return [json.loads(data) for data in found if data is not None]
