"""The doctor finds what would stop a job, says what mends it, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
import zarr

from patchloom.doctor import installed, machine, workers
from tests.test_cli import call


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job file over a Zarr image with a mask."""
    for name in ("a", "m"):
        array = zarr.create_array(
            tmp_path / f"{name}.zarr", shape=(64, 64), chunks=(64, 64), dtype="uint8"
        )
        array[:] = np.ones((64, 64), "uint8")
    return write_job(tmp_path)


def write_job(folder: Path, **more: Any) -> Path:
    """A job file in a folder."""
    document = {
        "images": str(folder / "a.zarr"),
        "mask": str(folder / "m.zarr"),
        "patching": {"name": "sequential", "patch_size": [32, 32]},
        "output": str(folder / "deep" / "patches.zarr"),
        **more,
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(document))
    return folder / "job.yaml"


def examined(*arguments: object) -> tuple[int, list[dict[str, str]]]:
    """Exit status and findings."""
    told = call("doctor", *arguments, "--json")
    found = json.loads(told.stdout)
    assert found["ok"] == (told.exit_code == 0)
    return told.exit_code, found["findings"]


def of(findings: list[dict[str, str]], subject: str, state: str = "") -> list[str]:
    """What was said about a subject."""
    return [
        f"{f['said']} | {f['mend']}"
        for f in findings
        if f["subject"] == subject and state in ("", f["state"])
    ]


def test_a_good_job_passes_and_nothing_is_left(job: Path) -> None:
    """Versions, codecs, sources, output, disk and memory are looked at."""
    before = sorted(job.parent.rglob("*"))
    status, found = examined(job)
    assert status == 0
    assert {f["subject"] for f in found} >= {
        *("version", "packages", "extras", "codecs"),
        *("job", "source", "output", "disk", "memory"),
    }
    assert any("mask of 'a'" in text for text in of(found, "source", "ok"))
    assert "nothing stands there yet" in of(found, "output", "ok")[0]
    assert sorted(job.parent.rglob("*")) == before
    told = call("doctor", job)
    assert told.stdout.count("\n") == len(found) + 2
    assert ", 0 to mend" in told.stdout
    assert call("doctor", job, "--quiet").stdout == "".join(
        f"{line}\n" for line in told.stdout.splitlines() if line.startswith(("warn", "      mend"))
    )


def test_what_will_not_do_is_said_with_the_way_out(job: Path, tmp_path: Path) -> None:
    """Exit status 1; the rest is looked at all the same."""
    status, found = examined(
        write_job(tmp_path, seeed=3), tmp_path / "nope.tif", tmp_path / "a.zarr"
    )
    assert status == 1
    [wrong] = of(found, "job", "fail")
    assert "did you mean 'seed'?" in wrong
    [missing] = of(found, "source", "fail")
    assert "nope.tif" in missing
    assert "check the path" in missing
    assert of(found, "source", "ok")
    assert of(found, "memory")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX paths")
def test_memory_that_is_none_fails(job: Path) -> None:
    """As any other mistake of a job."""
    status, told = examined(job, "--set", "memory=plenty")
    assert status == 1
    assert "'512 MiB'" in of(told, "job", "fail")[0]


def test_an_output_that_cannot_be_written_fails(job: Path, tmp_path: Path) -> None:
    """Because a file stands where a folder should, or a folder may not be written."""
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file" / "p.zarr", Path("/proc/p.zarr")):
        status, found = examined(job, "--set", f"output={place}")
        assert status == 1
        assert of(found, "output", "fail"), place


def test_a_damaged_source_fails(job: Path) -> None:
    """Its chunk is decoded, not only its metadata read."""
    (job.parent / "a.zarr" / "c" / "0" / "0").write_bytes(b"not a chunk")
    status, found = examined(job)
    assert status == 1
    assert of(found, "source", "fail")


def test_a_store_is_opened(job: Path) -> None:
    """And its first patch decoded."""
    store = job.parent / "deep" / "patches.zarr"
    assert call("run", job, "-q").exit_code == 0
    assert "4 patches, complete" in of(examined(store)[1], "store", "ok")[0]
    assert "a store stands there" in of(examined(job)[1], "output", "ok")[0]
    for shard in store.glob("images/c/**/*"):
        if shard.is_file():
            shard.write_bytes(b"damaged")
    assert of(examined(store)[1], "store", "fail")


def test_secrets_are_never_shown(tmp_path: Path) -> None:
    """Only the names of storage options, and URLs without what stands in them."""
    url = "memory://user:s3cr3t-word@bucket/a.zarr"
    job = write_job(
        tmp_path,
        images="s3://no-such-bucket/a.zarr",
        mask=None,
        storage_options={
            "key": "s3cr3t-key",
            "secret": "s3cr3t-secret",
            "endpoint_url": "http://127.0.0.1:9",
            "config_kwargs": {"connect_timeout": 1, "retries": {"max_attempts": 0}},
        },
    )
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    for told in (call("doctor", job, url), call("doctor", job, url, "--json", "-v")):
        assert told.exit_code == 1
        assert "s3cr3t" not in told.output
        assert "secret" in told.stdout


def test_old_and_missing_packages_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the line for pip."""
    real = installed.version_of
    monkeypatch.setattr(
        installed, "version_of", lambda name: {"zarr": "2.1", "click": None}.get(name, real(name))
    )
    status, found = examined()
    assert status == 1
    failed = of(found, "packages", "fail")
    assert any("zarr is 2.1" in text and "pip install 'zarr>=" in text for text in failed)
    assert any("click is missing" in text for text in failed)


def test_little_memory_and_disk_warn(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the number of threads that would fit."""
    monkeypatch.setattr(machine, "_available", lambda: 3 * 2**30)
    monkeypatch.setattr(
        "shutil.disk_usage", lambda _: SimpleNamespace(free=2**20, total=2**40, used=0)
    )
    status, found = examined(job, "--set", "memory=1 GiB", "--workers", "8")
    assert status == 0
    assert "--workers 3" in of(found, "memory", "warn")[0]
    assert of(found, "disk", "warn")


def test_a_variable_that_means_nothing_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the name that it comes closest to."""
    monkeypatch.setenv("PATCHLOOM_PROFIL", "lab")
    assert "did you mean PATCHLOOM_PROFILE" in of(examined()[1], "environment", "warn")[0]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_cluster_is_looked_at(job: Path) -> None:
    """Its workers have the same versions, enough memory, and see source and output."""
    status, found = examined(job, "--cluster", "local", "--workers", "1")
    assert status == 0
    said = of(found, "workers", "ok")
    assert any("versions of this process" in text for text in said)
    assert any("read the first image" in text for text in said)
    assert any("write at the output" in text for text in said)


def test_a_scheduler_that_does_not_answer_fails(job: Path) -> None:
    """As one finding among the others."""
    dask = pytest.importorskip("dask")
    with dask.config.set({"distributed.comm.timeouts.connect": "300ms"}):
        status, found = examined(job, "--scheduler", "tcp://127.0.0.1:9")
    assert status == 1
    assert "does not answer" in of(found, "scheduler", "fail")[0]


def test_workers_that_differ_are_told() -> None:
    """Another Python or patchloom fails, other packages warn; what they cannot reach fails."""
    here = workers._installed()
    seen = {"versions": here, "read": "", "write": ""}
    other = {**here, "python": "3.9", "zarr": "1.0"}
    client = SimpleNamespace(
        scheduler_info=lambda **_: {
            "workers": {k: {"nthreads": 2, "memory_limit": 2**30} for k in ("tcp://a", "tcp://b")}
        },
        scheduler=SimpleNamespace(address="tcp://s"),
        register_plugin=lambda *_, **__: None,
        unregister_worker_plugin=lambda *_: None,
        run=lambda *_: {
            "tcp://a": seen,
            "tcp://b": {"versions": other, "read": "nothing at 'a.zarr'", "write": ""},
        },
    )
    image: Any = object()
    found = [f.to_dict() for f in workers.workers(client, 2**30, image, None)]
    assert "a task takes at most 1.00 GiB" in of(found, "workers", "warn")[0]
    failed = of(found, "workers", "fail")
    assert any("1 of 2 have python 3.9" in text for text in failed)
    assert any("1 of 2 cannot read the first image; tcp://b" in text for text in failed)
    assert any("zarr 1.0" in text for text in of(found, "workers", "warn"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX limits")
def test_few_open_files_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that raises the limit."""
    monkeypatch.setattr("resource.getrlimit", lambda _: (256, 4096))
    assert "ulimit -n 4096" in of(examined()[1], "open files", "warn")[0]
