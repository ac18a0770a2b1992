"""Interrupt a run anywhere and run the same call again: the same objects, the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import patchloom
from patchloom.errors import WriteError
from tests.clients import (
    PATCHING,
    ROWS,
    arguments,
    contents,
    finish,
    kill_at,
    noise,
    start,
)
from tests.servers.s3 import S3Server


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stored image of noise."""
    return noise(tmp_path_factory.mktemp("source") / "image.zarr")


@pytest.fixture(scope="module")
def undisturbed(image: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run writes."""
    out = tmp_path_factory.mktemp("whole") / "out.zarr"
    assert finish(arguments(image, out))["complete"]
    return contents(out)


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


def test_read_only_target_is_refused_before_work(image: Path, tmp_path: Path) -> None:
    """A target that cannot be made is our error, with the path and the way out."""
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    [opened] = patchloom.open_images(image, axes="CYX")
    plan = patchloom.plan(opened, PATCHING)
    with pytest.raises(WriteError, match=r"out\.zarr"):
        patchloom.materialize(plan, blocked / "out.zarr", progress=False)
    assert blocked.read_text() == "not a folder"


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
