"""Interrupt a run anywhere and run the same call again: the same objects, the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import patchloom
from patchloom.errors import WriteError
from tests.servers.s3 import S3Server

PATCHING = {"name": "sequential", "patch_size": [48, 48], "overlaps": [16, 16]}
ROWS = 16


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stored image of noise: slow enough to encode that a run can be caught at work."""
    path = tmp_path_factory.mktemp("source") / "image.zarr"
    array = zarr.create_array(path, shape=(2, 1024, 1024), dtype="uint16", chunks=(1, 128, 128))
    array[...] = np.random.default_rng(0).integers(0, 2**16, (2, 1024, 1024), dtype="uint16")
    return path


def arguments(image: Path | str, out: Path | str, **more: Any) -> str:
    return json.dumps(
        {
            "image": str(image),
            "out": str(out),
            "patching": PATCHING,
            "rows_per_shard": ROWS,
            **more,
        }
    )


def start(text: str) -> subprocess.Popen[str]:
    """A client in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.runner", text],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )


def finish(text: str) -> dict[str, Any]:
    """Run a client to its end."""
    client = start(text)
    out, err = client.communicate(timeout=240)
    assert client.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.fixture(scope="module")
def undisturbed(image: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run writes."""
    out = tmp_path_factory.mktemp("whole") / "out.zarr"
    assert finish(arguments(image, out))["complete"]
    return contents(out)


def kill_at(client: subprocess.Popen[str], committed: Callable[[], int], n: int) -> None:
    """Kill a client as soon as so many shards are committed, or at its end."""
    while client.poll() is None and committed() < n:
        time.sleep(0.002)
    client.send_signal(signal.SIGKILL)
    client.wait()
    for stream in (client.stdout, client.stderr):
        assert stream is not None
        stream.close()


@pytest.mark.parametrize(
    "seed",
    [pytest.param(k, marks=[pytest.mark.slow] if k > 3 else []) for k in range(20)],
)
def test_killed_client_resumes_to_the_same_bytes(
    seed: int, image: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Killed twice at random points, then run to its end: nothing differs, nothing is left over."""
    out = tmp_path / "out.zarr"
    shards = sum(name.startswith("manifest/") for name in undisturbed)
    rng = random.Random(seed)
    points = sorted(rng.sample(range(shards), 2))
    for n in points:
        kill_at(
            start(arguments(image, out)),
            lambda: len(list((out / "manifest").glob("*.parquet"))),
            n,
        )
    (out / "images" / "c").mkdir(parents=True, exist_ok=True)
    (out / "images" / "c" / f"0.{uuid.uuid4().hex}.part").write_bytes(b"half an object")
    report = finish(arguments(image, out))
    assert report["complete"]
    assert report["already_done"] + report["n_shards"] == shards
    assert report["already_done"] >= points[0]
    assert contents(out) == undisturbed


def test_two_clients_at_once_write_the_same_bytes(
    image: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Two clients of one job on one store: both end, and nothing differs."""
    out = tmp_path / "out.zarr"
    first = start(arguments(image, out))
    while first.poll() is None and not list(out.rglob("*.part")):
        time.sleep(0.002)
    second = start(arguments(image, out))
    for client in (first, second):
        _, err = client.communicate(timeout=240)
        assert client.returncode == 0, err
    assert contents(out) == undisturbed


def test_resume_reads_only_what_is_missing(
    image: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """One shard lost: one shard is made, from its own chunks; statistics come out the same."""
    out = tmp_path / "out.zarr"
    for name, data in undisturbed.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    (out / "manifest" / "00000007.parquet").unlink()
    report = finish(arguments(image, out))
    assert (report["n_shards"], report["n_tasks"]) == (1, 1)
    assert report["chunk_reads"] == report["chunks_needed"] < 2 * 64
    assert contents(out) == undisturbed


def test_a_full_disk_loses_nothing(
    image: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """A refused write stops the run with our error; with room again it ends the same."""
    out = tmp_path / "out.zarr"
    client = start(arguments(image, out, largest_file=100_000))
    _, err = client.communicate(timeout=120)
    assert client.returncode == 2
    assert "WriteError" in err
    assert "finished shards are kept" in err
    assert not list(out.rglob("*.part"))
    finish(arguments(image, out))
    assert contents(out) == undisturbed


def test_read_only_target_is_refused_before_work(image: Path, tmp_path: Path) -> None:
    """A target that cannot be made is our error, with the path and the way out."""
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    [opened] = patchloom.open_images(image, axes="CYX")
    plan = patchloom.plan(opened, PATCHING)
    with pytest.raises(WriteError, match=r"out\.zarr"):
        patchloom.materialize(plan, blocked / "out.zarr", progress=False)
    assert blocked.read_text() == "not a folder"


def test_killed_worker_process_costs_nothing(
    image: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """A worker of a real cluster is killed at work; the same call ends with the same bytes."""
    import psutil
    from distributed import Client

    from tests.clusters import local_cluster

    out = tmp_path / "out.zarr"
    [opened] = patchloom.open_images(image, axes="CYX")
    plan = patchloom.plan(opened, PATCHING, rows_per_shard=ROWS)
    with (
        local_cluster(n_workers=2, threads_per_worker=1, processes=True) as cluster,
        Client(cluster) as client,
    ):
        import threading

        pids = list(client.run(os.getpid).values())

        def kill() -> None:
            while len(list((out / "manifest").glob("*.parquet"))) < 3:
                time.sleep(0.002)
            psutil.Process(pids[0]).kill()

        killer = threading.Thread(target=kill)
        killer.start()
        report = patchloom.materialize(plan, out, progress=False)
        killer.join()
        assert report.complete
        assert report.n_patches == plan.n_patches
    assert contents(out) == undisturbed


def test_killed_client_of_s3_resumes_to_the_same_objects(
    image: Path, undisturbed: dict[str, bytes], s3_server: S3Server
) -> None:
    """The same on a real object store, where a stale multipart upload is aborted too."""
    import fsspec

    fs = fsspec.filesystem("s3", **s3_server.storage_options)
    bucket = s3_server.fresh_bucket()
    out = f"{bucket}/out.zarr"
    text = arguments(image, out, options=s3_server.storage_options)

    def committed() -> int:
        fs.invalidate_cache()
        return len(fs.glob(f"{out}/manifest/*.parquet"))

    kill_at(start(text), committed, 4)
    name, key = bucket.removeprefix("s3://"), "out.zarr/images/c/9/0/0/0"
    fs.call_s3("create_multipart_upload", Bucket=name, Key=key)
    beside = fs.call_s3("create_multipart_upload", Bucket=name, Key="another/object")
    report = finish(text)
    assert report["complete"]
    assert report["already_done"] >= 4
    fs.invalidate_cache()
    prefix = out.removeprefix("s3://")
    written = {p.removeprefix(f"{prefix}/"): fs.cat_file(p) for p in fs.find(out)}
    assert written == undisturbed
    left = fs.call_s3("list_multipart_uploads", Bucket=name).get("Uploads", [])
    assert [u["UploadId"] for u in left] == [beside["UploadId"]]


def test_cluster_of_processes_on_s3(
    image: Path, undisturbed: dict[str, bytes], s3_server: S3Server
) -> None:
    """Workers in other processes read and write S3 and end with the same bytes."""
    import fsspec
    from distributed import Client

    from tests.clusters import local_cluster

    fs = fsspec.filesystem("s3", **s3_server.storage_options)
    bucket = s3_server.fresh_bucket()
    fs.put(str(image), f"{bucket}/image.zarr", recursive=True)
    options = s3_server.storage_options
    [opened] = patchloom.open_images(f"{bucket}/image.zarr", axes="CYX", storage_options=options)
    plan = patchloom.plan(opened, PATCHING, rows_per_shard=ROWS)
    with (
        local_cluster(n_workers=2, threads_per_worker=1, processes=True) as cluster,
        Client(cluster),
    ):
        report = patchloom.materialize(
            plan, f"{bucket}/out.zarr", storage_options=options, progress=False
        )
    assert report.complete
    assert report.read_amplification >= 1.0
    prefix = f"{bucket.removeprefix('s3://')}/out.zarr"
    written = {p.removeprefix(f"{prefix}/"): fs.cat_file(p) for p in fs.find(prefix)}
    # Only where the image was read from may differ.
    for found in (written, undisturbed):
        document = json.loads(found["zarr.json"])
        document["attributes"]["patchloom"]["images"][0].pop("uri")
        found = {**found, "zarr.json": json.dumps(document).encode()}
    assert {k: v for k, v in written.items() if k != "zarr.json"} == {
        k: v for k, v in undisturbed.items() if k != "zarr.json"
    }
