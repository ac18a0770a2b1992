"""`patchloom doctor`."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from patchloom.cli.declaring import command
from patchloom.cli.endings import DAMAGED
from patchloom.cli.kinds import kind_of
from patchloom.cli.loudness import is_quiet
from patchloom.cli.options import engine_options, job_of, json_option, set_option
from patchloom.errors import PatchloomError

if TYPE_CHECKING:
    from patchloom.cli.engine import Engine
    from patchloom.doctor.finding import Finding
    from patchloom.image import Image
    from patchloom.location import Location

__all__ = ["doctor_command"]

_VARIABLES = ("CLUSTER", "PROFILE", "PROFILES", "SCHEDULER", "WORKERS")


@command("doctor")
@click.argument("what", nargs=-1, type=click.Path(), metavar="[JOB.yaml | URL]...")
@set_option
@click.option("--output", metavar="URL", help="See whether a store could be written there.")
@engine_options
@click.option(
    "--timeout",
    type=click.FloatRange(1),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Wait so long for a first worker of --cluster.",
)
@json_option
def doctor_command(
    what: Sequence[str],
    changes: Sequence[str],
    output: str | None,
    engine: Engine,
    timeout: float,
    as_json: bool,
) -> None:
    """Look at what a job needs, and say what to mend; exit status 1 if something will not do.

    Versions, codecs, memory and disk of this machine; of each JOB.yaml or URL, whether its images
    can be opened and decoded, and its output be written; with --scheduler, --cluster or a profile,
    whether workers are alike, large enough, and see the same. Nothing is left behind.
    """
    found = []
    for finding in _examined(what, changes, output, engine, timeout):
        found.append(finding)
        if not as_json and not (is_quiet() and finding.state == "ok"):
            click.echo(_line(finding))
    failed = [finding for finding in found if finding.state == "fail"]
    if as_json:
        document = {"ok": not failed, "findings": [finding.to_dict() for finding in found]}
        click.echo(json.dumps(document, indent=1))
    elif not is_quiet():
        warned = sum(finding.state == "warn" for finding in found)
        click.echo(f"\n{len(found)} looked at, {warned} to think about, {len(failed)} to mend")
    if failed:
        sys.exit(DAMAGED)


def _line(finding: Finding) -> str:
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    mark = click.style(f"{finding.state:4}", fg=colours[finding.state])
    mend = f"\n      mend: {finding.mend}" if finding.mend else ""
    return f"{mark}  {finding.subject}: {finding.said}{mend}"


def _examined(
    what: Sequence[str], changes: Sequence[str], output: str | None, engine: Engine, timeout: float
) -> Iterator[Finding]:
    from patchloom.doctor.finding import Finding
    from patchloom.doctor.installed import codecs, extras, versions
    from patchloom.doctor.machine import disk, machine
    from patchloom.location import Location

    yield from versions()
    yield from extras()
    yield from codecs()
    yield from _variables()
    memory: int | None = None
    images: list[Image] = []
    targets = [] if output is None else [Location.of(output)]
    for name in what:
        opened = _Opened()
        yield from opened.examined(name, changes)
        images += opened.images
        targets += opened.targets
        memory = max(memory or 0, opened.memory) or None
    for target in targets:
        yield from _of_target(target)
    yield from disk()
    away = engine.cluster is not None or "://" in (engine.scheduler or "")
    many = None if engine.workers is None else engine.workers.most
    yield from machine(memory, 0 if away else 1 if engine.scheduler == "synchronous" else many)
    if not away:
        return
    from patchloom.doctor.workers import workers

    try:
        with engine.started(timeout) as client:
            first = next((image for image in images if image.source.addressable), None)
            folder = targets[0].parent if targets else None
            yield from workers(client, memory, first, folder)
    except PatchloomError as error:
        yield Finding.of_error("scheduler", error)


class _Opened:
    """What a job or a URL names."""

    def __init__(self) -> None:
        self.images: list[Image] = []
        self.targets: list[Location] = []
        self.memory = 0

    def examined(self, name: str, changes: Sequence[str]) -> Iterator[Finding]:
        """Open it, and keep what else is to be looked at."""
        from patchloom.doctor.finding import Finding
        from patchloom.doctor.places import credentials, sources, store
        from patchloom.location import Location

        job: Any = None
        try:
            if name.endswith((".yaml", ".yml")):
                from patchloom.config import shown_values
                from patchloom.run.drafting import memory_of
                from patchloom.run.jobs import images_of, output_options

                loaded = job_of(name, changes)
                self.memory = 0 if loaded.memory is None else memory_of(loaded.memory)
                job = loaded
                name = shown_values(name)
                yield Finding("ok", "job", f"{name}: all keys are right")
                self.targets.append(Location.of(job.output, output_options(job)))
                urls = [job.images] if isinstance(job.images, str) else job.images
                at = Location.of(urls[0], job.storage_options)
            else:
                at = Location.of(name)
            if (how := credentials(at)) is not None:
                yield how
            if job is None and kind_of(at) == "store":
                yield from store(at)
                return
            self.images = images_of(job) if job is not None else _images_at(name)
        except PatchloomError as error:
            subject = "source" if job is not None or not name.endswith((".yaml", ".yml")) else "job"
            yield Finding.of_error(subject, error)
            return
        yield from sources(self.images, named=at.shown if job is None else name)


def _images_at(url: str) -> list[Image]:
    from patchloom.sources.opening import open_images

    return open_images(url)


def _of_target(target: Location) -> Iterator[Finding]:
    from patchloom.doctor.machine import disk
    from patchloom.doctor.places import credentials, output

    with contextlib.suppress(PatchloomError):
        # What cannot be reached is told once, by the try to write.
        if (how := credentials(target)) is not None:
            yield how
        if target.is_local:
            yield from disk(target.url)
    yield from output(target)


def _variables() -> Iterator[Finding]:
    """Environment variables that look like ours and are not."""
    from patchloom.doctor.finding import Finding
    from patchloom.overrides import VARIABLE

    for name in sorted(os.environ):
        short = name.removeprefix("PATCHLOOM_")
        if short == name or name.startswith((VARIABLE, "PATCHLOOM_TEST_")) or short in _VARIABLES:
            continue
        near = difflib.get_close_matches(short, [*_VARIABLES, "JOB__"], 1)
        way = f"did you mean PATCHLOOM_{near[0]}?" if near else "unset it"
        yield Finding("warn", "environment", f"{name} means nothing to patchloom", way)
