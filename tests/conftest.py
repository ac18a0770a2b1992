"""What all tests share: real servers, the roots of the test data, and a report of what was real."""

from __future__ import annotations

import os

# Before anything imports gcsfs: else it asks a real Google service for the kind of each bucket and
# waits a minute for it.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"

import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, settings

from patchloom.summaries.kernels import kernels
from tests import truth
from tests.servers.gcs import GcsServer, serve_gcs
from tests.servers.http import HttpServer, serve_http
from tests.servers.s3 import S3Kind, S3Server, available_kinds, serve_s3

# A busy machine is no failure: no test depends on how long an example takes.
settings.register_profile("patchloom", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# In CI the examples are the same every time: what passed before it lands passes after.
settings.register_profile("ci", settings.get_profile("patchloom"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "patchloom")

# Wherever numba is installed, the tests of this process count with it from the first pixel on.
kernels.patience = -1

# Programs of their own; what they import may be absent when doctests are looked for.
collect_ignore = ["servers/gcs_emulator.py", "data/spatialdata/make.py"]

S3_VARIABLE = "PATCHLOOM_TEST_S3"
_servers = pytest.StashKey[list[S3Server | GcsServer]]()
_elsewhere = pytest.StashKey[list[tuple[str, str]]]()


def pytest_configure(config: pytest.Config) -> None:
    """Check what the environment asks for, and keep a list of the servers that run."""
    config.stash[_servers], config.stash[_elsewhere] = [], []
    # gcsfs hands uploads to aiohttp as one buffer, of which aiohttp warns above 1 MiB.
    config.addinivalue_line(
        "filterwarnings", "ignore:Sending a large body directly:ResourceWarning"
    )
    try:
        truth.data_roots()
    except NotADirectoryError as error:
        raise pytest.UsageError(str(error)) from None


def _require(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


def _wanted_s3() -> S3Kind | None:
    wanted = os.environ.get(S3_VARIABLE)
    for kind in get_args(S3Kind):
        if kind == wanted:
            return kind  # type: ignore[no-any-return]  # typing.get_args forgets the type
    if wanted:
        raise pytest.UsageError(f"{S3_VARIABLE} is {wanted!r}; use one of {get_args(S3Kind)}")
    return None


@pytest.fixture(scope="session")
def s3_server(request: pytest.FixtureRequest) -> Iterator[S3Server]:
    """An S3 server for the whole run: Ceph if it is installed, else moto.

    ``$PATCHLOOM_TEST_S3`` (``ceph`` or ``moto``) asks for one of them. Tests make a bucket each:
    ``url = s3_server.fresh_bucket()``, and open it with ``s3_server.storage_options``.
    """
    _require("s3fs")
    wanted = _wanted_s3()
    if wanted is None and not available_kinds():
        pytest.skip("no S3 server: neither Ceph nor moto[server] is installed")
    with serve_s3(wanted) as server:
        request.config.stash[_servers].append(server)
        yield server


@pytest.fixture(scope="session")
def gcs_server(request: pytest.FixtureRequest) -> Iterator[GcsServer]:
    """A Google Cloud Storage emulator for the whole run.

    Tests make a bucket each: ``url = gcs_server.fresh_bucket()``, and open it with
    ``gcs_server.storage_options``.
    """
    _require("gcsfs")
    with serve_gcs() as server:
        request.config.stash[_servers].append(server)
        yield server


@pytest.fixture(scope="session")
def http_server() -> Iterator[Callable[[Path], HttpServer]]:
    """Serve folders over HTTP: ``http_server(folder).url("a.zarr")``, until the run ends."""
    with ExitStack() as stack:
        yield lambda folder: stack.enter_context(serve_http(folder))


@pytest.fixture(scope="session")
def data_roots() -> tuple[Path, ...]:
    """The folders with data sets: ``tests/data`` and those of ``$PATCHLOOM_TEST_DATA``."""
    return truth.data_roots()


@pytest.fixture(scope="session")
def data_set() -> Callable[[str], Path]:
    """The folder of a data set by name; the test is skipped where no root has it.

    The last root that has it is taken: the sets of ``$PATCHLOOM_TEST_DATA`` before the small ones.
    """

    def find(name: str) -> Path:
        for root in reversed(truth.data_roots()):
            if name in truth.set_names(root):
                return root / name
        pytest.skip(f"data set {name} is only in ${truth.DATA_VARIABLE}")

    return find


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the process that prints the summary which servers ran in this one (pytest-xdist)."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["servers"] = _told(session.config)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Hear of the servers of a process that ran tests."""
    node.config.stash[_elsewhere] += getattr(node, "workeroutput", {}).get("servers", [])


def _told(config: pytest.Config) -> list[tuple[str, str]]:
    """The servers that ran in this process: what they serve, and which ones they were."""
    names = {S3Server: "S3", GcsServer: "GCS"}
    return [
        (names[type(s)], f"{s.kind}, started in {s.startup_seconds:.1f} s")
        for s in config.stash.get(_servers, [])
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which servers and data were real, and what was skipped and why."""
    write = terminalreporter.write_line
    terminalreporter.section("servers, data and skips")
    config = terminalreporter.config
    servers = [*_told(config), *config.stash.get(_elsewhere, [])]
    for name in ("S3", "GCS"):
        ran = [text for kind, text in servers if kind == name]
        write(f"{name}: {', '.join(ran) or 'not asked for'}")
    for index, root in enumerate(truth.data_roots()):
        count = len(list(truth.truths(root)))
        name = "tests/data" if index == 0 else str(root)
        write(f"data: {name}: {len(truth.set_names(root))} sets, {count} arrays")
    if truth.DATA_VARIABLE not in os.environ:
        write(f"data: more when ${truth.DATA_VARIABLE} names a folder with larger sets")
    reasons = Counter(map(_reason, terminalreporter.stats.get("skipped", [])))
    write(f"skipped: {reasons.total()}")
    for reason, count in reasons.most_common():
        write(f"  {count:4d}  {reason}")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return "expected failure"
