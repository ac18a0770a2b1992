"""Rows 4 to 7: an object store that refuses, breaks off, is late, or knows us no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from patchloom.errors import ChunkError, PatchloomError, WriteError
from patchloom.retrying import RETRYING
from tests.faults.jobs import PATCHING, ROWS, StoredJob
from tests.servers.proxy import Fault, Proxy

slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (503, "SlowDown"),
        pytest.param(500, "InternalError", marks=slow),
        pytest.param(429, "TooManyRequests", marks=slow),
    ],
)
def test_refused_requests_cost_nothing(
    status: int, code: str, stored_job: StoredJob, proxy: Proxy
) -> None:
    """Reads and writes of which 30 % are refused end with the same bytes."""
    proxy.disturb(Fault(kind="status", status=status, code=code, share=0.3, seed=status))
    out = stored_job.fresh()
    report = stored_job.run(out)
    assert report.complete
    assert stored_job.written(out) == stored_job.undisturbed
    refused = [request for request in proxy.requests if request.fault]
    assert {"GET", "PUT"} <= {request.method for request in refused}
    assert len(refused) > 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "key", "kind"),
    [("GET", "c/1/1/2", ChunkError), ("PUT", "images/c/3/0/0/0", WriteError)],
)
def test_what_goes_on_being_refused_is_given_up(
    method: str, key: str, kind: type[Exception], stored_job: StoredJob, proxy: Proxy
) -> None:
    """A bounded number of tries, an error that says so, and the next run completes."""
    proxy.disturb(Fault(kind="status", method=method, path=f"/{key}"))
    out = stored_job.fresh()
    with pytest.raises(kind) as caught:
        stored_job.run(out)
    text = str(caught.value)
    assert key in text
    assert f"tried {RETRYING.attempts} times" in text
    assert "patches of output shards" in text
    assert "run the same call again" in text
    assert proxy.count(method, f"/{key}") <= 4 * RETRYING.attempts  # two images, two tasks
    proxy.disturb()
    assert stored_job.run(out).complete
    assert stored_job.written(out) == stored_job.undisturbed


@pytest.mark.parametrize(
    ("kind", "method"),
    [("reset", "."), pytest.param("truncate", "GET", marks=slow)],
)
def test_broken_connections_cost_nothing(
    kind: str, method: str, stored_job: StoredJob, proxy: Proxy
) -> None:
    """Connections that are reset, and bodies that end in the middle: the same bytes.

    Of a write that is reset the object is there and only the answer is lost.
    """
    proxy.disturb(Fault(kind=kind, method=method, share=0.3, seed=5))  # type: ignore[arg-type]
    out = stored_job.fresh()
    assert stored_job.run(out).complete
    assert stored_job.written(out) == stored_job.undisturbed
    assert proxy.disturbed[kind] > 10


@pytest.mark.parametrize("stalled", [False, pytest.param(True, marks=slow)])
def test_late_answers_cost_nothing(stalled: bool, stored_job: StoredJob, proxy: Proxy) -> None:
    """Answers that come seconds late, below and beyond the read timeout: the same bytes."""
    share, seconds = (0.1, 4.0) if stalled else (0.08, 2.0)
    proxy.disturb(Fault(kind="delay", seconds=seconds, share=share, times=1, seed=2))
    options = stored_job.options
    if stalled:
        options["config_kwargs"] = {"read_timeout": 1, "connect_timeout": 5}
    out = stored_job.fresh()
    assert stored_job.run(out, options=options).complete
    assert stored_job.written(out) == stored_job.undisturbed
    # Names of objects are fresh, and with them which requests are late.
    assert proxy.disturbed["delay"]


@pytest.mark.parametrize("passing", [80, pytest.param(30, marks=slow), pytest.param(0, marks=slow)])
@pytest.mark.parametrize("code", ["ExpiredToken", pytest.param("InvalidAccessKeyId", marks=slow)])
def test_credentials_that_expire_stop_the_run_and_keep_what_is_done(
    passing: int, code: str, stored_job: StoredJob, proxy: Proxy
) -> None:
    """A refused credential is not tried again; the error says what to do and shows no secret."""
    proxy.disturb(Fault(kind="status", status=403, code=code, after=passing))
    out = stored_job.fresh()
    with pytest.raises(PatchloomError) as caught:
        stored_job.run(out)
    text = str(caught.value)
    assert stored_job.server.secret_key not in text
    assert "PermissionError" in text
    assert "credentials" in text or "mend the" in text
    names = [(r.method, r.path, r.range) for r in proxy.requests if r.fault]
    assert len(names) == len({*names}), "a refused request was sent again"
    proxy.disturb()
    report = stored_job.run(out)
    assert report.complete
    assert stored_job.written(out) == stored_job.undisturbed


def test_the_command_line_says_it_in_a_sentence(
    stored_job: StoredJob, proxy: Proxy, tmp_path: Path
) -> None:
    """Expired credentials on the command line: no stack trace, no secret."""
    out = stored_job.fresh()
    job = {
        "images": [f"{stored_job.bucket}/{n}.zarr" for n in ("plain", "sharded")],
        "axes": "CYX",
        "patching": PATCHING,
        "rows_per_shard": ROWS,
        "output": out,
        "storage_options": stored_job.options,
    }
    (tmp_path / "job.yaml").write_text(json.dumps(job))

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "patchloom", "run", str(tmp_path / "job.yaml")],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )

    proxy.disturb(Fault(kind="status", status=403, code="ExpiredToken", after=60))
    done = run()
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert stored_job.server.secret_key not in done.stderr + done.stdout
    assert "expired" in done.stderr
    assert "again" in done.stderr
    proxy.disturb()
    done = run()
    assert done.returncode == 0, done.stderr
    assert stored_job.written(out) == stored_job.undisturbed
