"""Where a command runs: schedulers, clusters that are made for it, profiles."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import yaml
import zarr

from patchloom.cli.clusters import Workers
from patchloom.cli.engine import Engine
from patchloom.errors import ConfigError
from patchloom.store.patch_store import open_patches
from tests.test_cli import call, spawn


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job file over a Zarr image."""
    image = zarr.create_array(
        tmp_path / "a.zarr", shape=(128, 128), chunks=(128, 128), dtype="uint16"
    )
    image[:] = np.arange(128 * 128).reshape(128, 128)
    return write_job(tmp_path)


def write_job(folder: Path, **patching: Any) -> Path:
    """A job over the image of a folder."""
    document = {
        "images": str(folder / "a.zarr"),
        "patching": {"name": "sequential", "patch_size": [32, 32], **patching},
        "rows_per_shard": 4,
        "output": str(folder / "patches.zarr"),
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(document))
    return folder / "job.yaml"


def profiles(folder: Path, **found: Any) -> dict[str, str]:
    """An environment that names a file of profiles."""
    (folder / "profiles.yaml").write_text(yaml.safe_dump(found))
    return {"PATCHLOOM_PROFILES": str(folder / "profiles.yaml")}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("workers", ["1", "1..2"])
def test_a_local_cluster_is_made_and_taken_down(job: Path, workers: str) -> None:
    """With real processes, of a fixed or an adaptive number."""
    process = spawn("run", job, "--cluster", "local", "--workers", workers, "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["complete"]
    assert "cluster local of 1" in err
    assert "Traceback" not in err


def _is_gone(group: int) -> bool:
    """Whether no process of a group is left, after a moment."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_cluster_goes_with_its_command(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    """Ctrl-C, which a terminal sends to workers too, and the end of a batch job."""
    image = zarr.create_array(
        tmp_path / "a.zarr", shape=(1024, 2048), chunks=(64, 64), dtype="uint16", compressors=None
    )
    image[:] = np.random.default_rng(1).integers(0, 60000, image.shape, np.uint16)
    job = write_job(tmp_path, overlaps=[28, 28])
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = spawn("run", job, "--cluster", "local", "--workers", "1", start_new_session=True)
    finally:
        signal.signal(signal.SIGINT, heard)
    store = tmp_path / "patches.zarr"
    try:
        give_up = time.monotonic() + 90
        while not list(store.glob("manifest/*.parquet")) and time.monotonic() < give_up:
            time.sleep(0.05)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == status, err
        assert "run the same command again to go on" in err
        assert "Traceback" not in err
        assert _is_gone(process.pid)
    finally:
        process.kill()
    assert not open_patches(store).complete


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--cluster", "loca"), ["did you mean 'local'?"]),
        (("--cluster", "local", "--scheduler", "threads"), ["'threads'", "'local'", "leave one"]),
        (("--cluster", "local", "--workers", "0"), ["a number from 1 on", "2..16"]),
        (("--cluster", "local", "--workers", "4..2"), ["'4..2'"]),
        (("--cluster", "local", "--cluster-option", "n_worker=2"), ["did you mean 'n_workers'?"]),
        (("--cluster", "local", "--cluster-option", "n"), ["NAME=VALUE"]),
        (("--cluster", "local", "--cluster-option", "n=2021-13-45"), ["NAME=VALUE in YAML"]),
        (("--cluster", "nothing.Cluster"), ["pip install nothing"]),
        (("--cluster-option", "a=1"), ["add --cluster"]),
        (("--scheduler", "synchronous", "--workers", "1..2"), ["leave it out"]),
        (("--profile", "none"), ["cannot be read", "PATCHLOOM_PROFILES"]),
    ],
)
def test_mistakes_are_said_before_work(
    job: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], words: list[str]
) -> None:
    """One sentence with the way out, and exit status 2."""
    monkeypatch.setenv("PATCHLOOM_PROFILES", str(job.parent / "profiles.yaml"))
    told = call("run", job, *options)
    assert told.exit_code == 2, told.output
    assert all(word in told.stderr for word in words), told.stderr
    assert not (job.parent / "patches.zarr").exists()


def test_what_may_be_a_credential_is_not_repeated(job: Path) -> None:
    """Where the sign between name and value was forgotten."""
    told = call("run", job, "--cluster", "local", "--cluster-option", "password:s3cr3t")
    assert told.exit_code == 2
    assert "s3cr3t" not in told.output


@pytest.mark.parametrize(
    ("kind", "package", "extra"),
    [("slurm", "dask_jobqueue", "hpc"), ("kubernetes", "dask_kubernetes", "k8s")],
)
def test_a_missing_package_is_said_with_its_extra(
    job: Path, monkeypatch: pytest.MonkeyPatch, kind: str, package: str, extra: str
) -> None:
    """As the line for pip."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == package else find(name)
    )
    told = call("run", job, "--cluster", kind, "--workers", 2)
    assert told.exit_code == 2
    assert f"pip install 'patchloom[{extra}]'" in told.stderr


def test_threads_are_as_many_as_asked(job: Path) -> None:
    """Without a cluster ``--workers`` is the number of threads, for this command only."""
    with Engine.asked(workers="3", environment={}).started() as client:
        assert client is None
        assert dask.config.get("num_workers") == 3
    assert dask.config.get("num_workers", None) is None
    assert call("run", job, "--workers", 2, "-q").exit_code == 0


def test_options_go_before_the_environment_before_the_profile(tmp_path: Path) -> None:
    """A scheduler takes the place of a cluster, and the other way round."""
    lab = {"cluster": "local", "workers": "2..4", "options": {"threads_per_worker": 1}}
    base = profiles(tmp_path, lab=lab, desk={"scheduler": "threads", "dask": {"a.b": 1}})
    found = Engine.asked(profile="lab", environment=base)
    assert (found.cluster, found.workers) == ("local", Workers(2, 4))
    assert found.options == {"threads_per_worker": 1}
    found = Engine.asked(environment={**base, "PATCHLOOM_PROFILE": "lab", "PATCHLOOM_WORKERS": "3"})
    assert (found.cluster, found.workers) == ("local", Workers(3, 3))
    found = Engine.asked(
        environment={**base, "PATCHLOOM_PROFILE": "lab", "PATCHLOOM_SCHEDULER": "processes"}
    )
    assert (found.scheduler, found.cluster, found.workers) == ("processes", None, None)
    found = Engine.asked(scheduler="threads", profile="lab", environment=base)
    assert (found.scheduler, found.cluster, found.options) == ("threads", None, {})
    found = Engine.asked(cluster="local", options={"n": 2}, profile="lab", environment=base)
    assert found.options == {"threads_per_worker": 1, "n": 2}
    with Engine.asked(profile="desk", environment=base).started():
        assert dask.config.get("a.b") == 1
    assert dask.config.get("a.b", None) is None


def test_a_wrong_profile_is_said(tmp_path: Path) -> None:
    """With the nearest name, or key, and never a value."""
    base = profiles(tmp_path, lab={"clustr": "local"}, both={"scheduler": "a", "cluster": "local"})
    for name, word in (("lap", "'lab'"), ("lab", "did you mean 'cluster'?"), ("both", "leave one")):
        with pytest.raises(ConfigError, match=word.replace("?", r"\?")):
            Engine.asked(profile=name, environment=base)
    (tmp_path / "profiles.yaml").write_text("lab: {options: {token: s3cr3t")
    with pytest.raises(ConfigError, match="line 1: not YAML") as caught:
        Engine.asked(profile="lab", environment=base)
    assert "s3cr3t" not in str(caught.value)
    assert "s3cr3t" not in repr(Engine(cluster="local", options={"token": "s3cr3t"}))


SBATCH = """\
#!/usr/bin/env bash
script=$(mktemp "$(dirname "$0")/job-XXXXXX")
cp "$1" "$script"
setsid bash "$script" >"$script.log" 2>&1 &
echo "Submitted batch job $!"
"""
SCANCEL = """\
#!/usr/bin/env bash
for job in "$@"; do kill -- "-$job" 2>/dev/null; done
exit 0
"""


def commands(folder: Path, **found: str) -> Path:
    """A folder of programs for PATH."""
    (folder / "bin").mkdir(exist_ok=True)
    for name, text in found.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    return folder / "bin"


def on_slurm(job: Path, bin_: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """A run on Slurm, whose commands stand in a folder."""
    process = spawn(
        *("run", job, "--cluster", "slurm", "--workers", "2", *more),
        *("--cluster-option", "cores=1", "--cluster-option", "memory=1 GiB"),
        *("--cluster-option", "interface=lo", "--cluster-option", "queue=cpu"),
        PATH=f"{bin_}{os.pathsep}{os.environ['PATH']}",
    )
    out, err = process.communicate(timeout=180)
    return subprocess.CompletedProcess([], process.returncode, out, err)


def _has_jobqueue() -> None:
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")


@pytest.mark.skipif(sys.platform != "linux", reason="stands in for Slurm's commands")
def test_slurm_gets_a_job_a_worker(job: Path, tmp_path: Path) -> None:
    """Stand-ins of sbatch and scancel run the very scripts that dask-jobqueue submits."""
    _has_jobqueue()
    bin_ = commands(tmp_path, sbatch=SBATCH, scancel=SCANCEL)
    done = on_slurm(job, bin_, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["complete"]
    scripts = [p.read_text() for p in bin_.glob("job-??????")]
    assert len(scripts) == 2
    for line in (
        "#SBATCH -p cpu",
        "#SBATCH --cpus-per-task=1",
        "--nthreads 1 --memory-limit 1.00GiB",
    ):
        assert line in scripts[0]


@pytest.mark.skipif(sys.platform != "linux", reason="stands in for Slurm's commands")
def test_what_slurm_refuses_is_said(job: Path, tmp_path: Path) -> None:
    """Its own words, in one sentence; a machine without sbatch, before anything is tried."""
    _has_jobqueue()
    no = "#!/bin/sh\necho 'sbatch: error: invalid partition specified: cpu' >&2\nexit 1\n"
    done = on_slurm(job, commands(tmp_path, sbatch=no))
    assert done.returncode == 2, done.stderr
    assert "invalid partition specified: cpu" in done.stderr
    assert "Traceback" not in done.stderr
    if not any((Path(p) / "sbatch").exists() for p in os.environ["PATH"].split(os.pathsep)):
        (tmp_path / "bin" / "sbatch").unlink()
        done = on_slurm(job, tmp_path / "bin")
        assert done.returncode == 2
        assert "by sbatch, which is not on this machine" in done.stderr
