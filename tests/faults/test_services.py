"""What object stores do to a requester: odd names, long listings, refusals of every kind."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import fsspec
import numpy as np
import pytest
import zarr

import patchloom
from patchloom.errors import PatchloomError
from patchloom.location import Location
from tests.faults.jobs import StoredJob
from tests.servers.gcs import GcsServer
from tests.servers.proxy import Fault, Proxy
from tests.servers.s3 import S3Server

PIXELS = np.arange(36 * 36, dtype="uint16").reshape(36, 36)
PREFIXES = ["a b", "ü/€", "+&=", "%41%2F", "'(x)!~*", "name:with,commas;", "..dots..", "名前"]


@pytest.fixture(params=["s3", "gcs"])
def server(request: pytest.FixtureRequest) -> S3Server | GcsServer:
    """Each of the two object stores."""
    found: S3Server | GcsServer = request.getfixturevalue(f"{request.param}_server")
    return found


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_may_hold_any_character(prefix: str, server: S3Server | GcsServer) -> None:
    """Images are read from below them, and stores written, listed, resumed and opened."""
    root, options = f"{server.fresh_bucket()}/{prefix}", server.storage_options
    fs, path = fsspec.url_to_fs(f"{root}/image.zarr", **options)
    memory = zarr.storage.MemoryStore()
    zarr.create_array(memory, data=PIXELS, chunks=(12, 12))
    for name, data in memory._store_dict.items():
        fs.pipe_file(f"{path}/{name}", data.to_bytes())
    [image] = patchloom.open_images(f"{root}/image.zarr", storage_options=options)
    plan = patchloom.plan(image, {"name": "sequential", "patch_size": [12, 12]}, rows_per_shard=2)
    out = f"{root}/out.zarr"
    assert patchloom.materialize(plan, out, storage_options=options, progress=False).n_shards == 5
    again = patchloom.materialize(plan, out, storage_options=options, progress=False)
    assert (again.complete, again.n_shards) == (True, 0)
    store = patchloom.open_patches(out, storage_options=options)
    y, x = (store.manifest.column(f"start_{a}")[4].as_py() for a in "yx")
    np.testing.assert_array_equal(store[4][0], PIXELS[y : y + 12, x : x + 12])
    # Nothing went anywhere else.
    fs.invalidate_cache()
    bucket = path.partition("/")[0]
    assert all(p.startswith(f"{bucket}/{prefix}/") for p in fs.find(bucket))


@pytest.mark.slow
def test_a_long_listing_goes_on_where_it_was_refused(s3_server: S3Server, proxy: Proxy) -> None:
    """Half of all requests are refused: of ten pages, each is asked for until it comes."""
    url = s3_server.fresh_bucket()
    fs, root = fsspec.url_to_fs(url, **s3_server.storage_options)
    names = [f"{k:05d}" for k in range(9_500)]
    fs.pipe({f"{root}/a/{name}": b"x" for name in names}, batch_size=64)
    options = s3_server.storage_options
    options = {**options, "endpoint_url": proxy.endpoint}
    proxy.disturb(Fault(kind="status", share=0.5, path="list-type"))
    found = Location.of(f"{url}/a", options).list()
    assert found == dict.fromkeys(names, 1)
    assert proxy.count("GET", "list-type") < 100
    assert len(proxy.disturbed) == 1


@pytest.mark.slow
def test_a_store_of_more_than_a_thousand_objects_is_listed_whole(
    server: S3Server | GcsServer,
) -> None:
    """Listings come in pages of a thousand: a resume finds what each holds, and makes the rest."""
    url, options = f"{server.fresh_bucket()}/out.zarr", server.storage_options
    [image] = patchloom.open_images(PIXELS[:32, :33])
    plan = patchloom.plan(image, {"name": "sequential", "patch_size": [1, 1]}, rows_per_shard=1)
    assert plan.n_shards == 1056
    patchloom.materialize(plan, url, storage_options=options, progress=False)
    fs, root = fsspec.url_to_fs(url, **options)
    fs.invalidate_cache()
    parts = sorted(p for p in fs.find(f"{root}/manifest") if p.endswith(".parquet"))
    assert len(parts) == 1056
    lost = [parts[k] for k in (0, 999, 1000, 1055)]
    for part in lost:
        fs.rm_file(part)
    report = patchloom.materialize(plan, url, storage_options=options, progress=False)
    assert (report.complete, report.n_shards) == (True, len(lost))
    assert len(patchloom.open_patches(url, storage_options=options)) == 1056


REFUSALS = [
    (403, "AccessDenied"),
    (403, "SignatureDoesNotMatch"),
    (403, "RequestTimeTooSkewed"),
    (400, "ExpiredToken"),
    (400, "AuthorizationHeaderMalformed"),  # of a bucket in another region
    (404, "NoSuchBucket"),
]


@pytest.mark.parametrize(("status", "code"), REFUSALS)
@pytest.mark.parametrize("act", ["open", "write"])
def test_a_refusal_is_said_at_once_and_without_a_secret(
    act: str, status: int, code: str, stored_job: StoredJob, proxy: Proxy
) -> None:
    """It is not tried again; the sentence names the place and what to look at."""
    url, options = f"{stored_job.bucket}/plain.zarr", stored_job.options
    direct = stored_job.server.storage_options
    images = patchloom.open_images(url, axes="CYX", storage_options=direct)
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [48, 48]})
    acts: dict[str, Callable[[], Any]] = {
        "open": lambda: patchloom.open_images(url, storage_options=options),
        "write": lambda: patchloom.materialize(
            plan, stored_job.fresh(), storage_options=options, progress=False
        ),
    }
    proxy.disturb(Fault(kind="status", status=status, code=code))
    begun = time.monotonic()
    with pytest.raises(PatchloomError) as caught:
        acts[act]()
    text = str(caught.value)
    assert stored_job.bucket.split("://")[1] in text
    assert "check" in text or "mend" in text
    assert stored_job.server.secret_key not in text
    # Pauses between tries add up to more than this.
    assert time.monotonic() - begun < 20
    assert len(proxy.requests) <= 8
