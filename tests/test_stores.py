"""Any source, any store: the same bytes wherever images lie and stores go, by few requests.

Laws: where inputs and outputs lie changes no byte of a store but the ``uri`` of its images; a whole
object is one request, and so is a stretch of a shard after its index; requests of a batch are under
way together; none is ever made for one patch alone. Requests are counted at the server over HTTP,
and for the object stores where their file systems send them.
"""

from __future__ import annotations

import json
import multiprocessing
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import fsspec
import numpy as np
import numpy.typing as npt
import pytest
import xarray
import zarr

import patchloom
from patchloom.errors import WriteError
from tests import oracle
from tests.clusters import local_cluster
from tests.servers.http import FolderHandler, HttpServer
from tests.servers.process import HOST

SIDE, CHUNK = 64, 16
GRID = {"name": "sequential", "patch_size": [12, 12], "overlaps": [6, 6]}
"""81 patches an image of 16 chunks: far more than chunks."""
PLACES = ["local", "memory", "s3", "gcs"]


@dataclass(frozen=True)
class Place:
    """Somewhere that images and stores can lie."""

    url: str
    options: dict[str, Any] = field(default_factory=dict)

    def fill(self, folder: Path) -> None:
        """Put the files of a folder there."""
        fs, root = fsspec.url_to_fs(self.url, **self.options)
        files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
        for path in files:
            name = f"{root.rstrip('/')}/{path.relative_to(folder).as_posix()}"
            fs.makedirs(name.rsplit("/", 1)[0], exist_ok=True)
            fs.pipe_file(name, path.read_bytes())

    def contents(self, name: str) -> dict[str, bytes]:
        """All objects below a name, without the ``uri`` of images in the attributes."""
        fs, root = fsspec.url_to_fs(f"{self.url}/{name}", **self.options)
        fs.invalidate_cache()
        skip = len(fs._strip_protocol(root).rstrip("/")) + 1
        found = {path[skip:]: fs.cat_file(path) for path in fs.find(root)}
        document = json.loads(found["zarr.json"])
        for image in document["attributes"]["patchloom"]["images"]:
            assert image.pop("uri")
        return {**found, "zarr.json": json.dumps(document).encode()}


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Place]:
    """A fresh place of a kind; servers start when they are asked for."""

    def make(kind: str) -> Place:
        if kind == "local":
            return Place(str(tmp_path / uuid.uuid4().hex))
        if kind == "memory":
            return Place(f"memory://{uuid.uuid4().hex}")
        server = request.getfixturevalue(f"{kind}_server")
        return Place(server.fresh_bucket(), server.storage_options)

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images on disk: plain chunks of Zarr v2, and a sharded array of Zarr v3."""
    root = tmp_path / "images"
    rng = np.random.default_rng(0)
    plain, sharded = rng.integers(1, 60_000, (2, SIDE, SIDE)).astype("uint16")
    zarr.create_array(root / "plain.zarr", data=plain, chunks=(CHUNK, CHUNK), zarr_format=2)
    zarr.create_array(
        root / "sharded.zarr", data=sharded, chunks=(CHUNK, CHUNK), shards=(SIDE, SIDE // 2)
    )
    return root


def plan_of(url: str, options: dict[str, Any], *names: str, **more: Any) -> patchloom.Plan:
    urls = [f"{url}/{name}.zarr" for name in names or ("plain", "sharded")]
    images = patchloom.open_images(urls, storage_options=options)
    return patchloom.plan(images, GRID, **{"rows_per_shard": 40, **more})


def write(plan: patchloom.Plan, out: Place, name: str = "out.zarr") -> Any:
    with dask.config.set(scheduler="threads", num_workers=2):
        return patchloom.materialize(
            plan, f"{out.url}/{name}", storage_options=out.options, progress=False
        )


def test_every_source_and_every_store_hold_the_same_bytes(
    folder: Path, place: Callable[[str], Place], http_server: Callable[[Path], HttpServer]
) -> None:
    """Five kinds of sources to a local store, and a local source to four kinds of stores."""
    local = place("local")
    write(plan_of(str(folder), {}), local)
    wanted = local.contents("out.zarr")
    assert len(wanted) > 15
    sources = [place(kind) for kind in PLACES[1:]]
    for source in sources:
        source.fill(folder)
    server = http_server(folder)
    sources.append(Place(server.url().rstrip("/"), server.storage_options))
    for source in sources:
        out = place("local")
        write(plan_of(source.url, source.options), out)
        assert out.contents("out.zarr") == wanted, source.url
    for kind in PLACES[1:]:
        out = place(kind)
        write(plan_of(str(folder), {}), out)
        assert out.contents("out.zarr") == wanted, kind


def test_from_one_object_store_into_another_and_on(
    folder: Path, place: Callable[[str], Place]
) -> None:
    """S3 to GCS by processes of their own, a shard lost, resumed by threads: the same bytes."""
    local, source, out = place("local"), place("s3"), place("gcs")
    write(plan_of(str(folder), {}), local)
    source.fill(folder)
    plan = plan_of(source.url, source.options)
    with (
        local_cluster(n_workers=1, threads_per_worker=2) as cluster,
        cluster.get_client(),
    ):
        url = f"{out.url}/out.zarr"
        patchloom.materialize(plan, url, storage_options=out.options, progress=False)
    assert out.contents("out.zarr") == local.contents("out.zarr")
    fs, root = fsspec.url_to_fs(f"{out.url}/out.zarr", **out.options)
    fs.rm_file(f"{root}/manifest/00000001.parquet")
    assert write(plan, out).n_shards == 1
    assert out.contents("out.zarr") == local.contents("out.zarr")
    store = patchloom.open_patches(f"{out.url}/out.zarr", storage_options=out.options)
    assert store[3].shape == (1, 12, 12)


# -- requests ---------------------------------------------------------------------------


def test_http_sends_one_request_a_chunk(
    folder: Path, place: Callable[[str], Place], http_server: Callable[[Path], HttpServer]
) -> None:
    """Plain chunks: each is one GET of the whole object, and nothing else is asked."""
    server = http_server(folder)
    plan = plan_of(server.url().rstrip("/"), {}, "plain", rows_per_shard=81)
    assert plan.n_tasks == 1
    server.requests.clear()
    report = write(plan, place("local"))
    assert plan.n_patches == 81 > 16
    asked = Counter((r.method, r.path, r.range) for r in server.requests)
    names = [f"plain.zarr/{y}.{x}" for y in range(4) for x in range(4)]
    assert asked == Counter({("GET", name, None): 1 for name in names})
    assert report.requests == len(server.requests)


def test_http_reads_an_index_once_and_joins_what_lies_together(
    folder: Path, place: Callable[[str], Place], http_server: Callable[[Path], HttpServer]
) -> None:
    """Shards: the index of each by one request, and then fewer ranges than chunks."""
    server = http_server(folder)
    plan = plan_of(server.url().rstrip("/"), {}, "sharded", rows_per_shard=81)
    server.requests.clear()
    report = write(plan, place("local"))
    ranges = [(r.path, str(r.range)) for r in server.requests]
    assert {r.method for r in server.requests} == {"GET"}
    indices = [path for path, span in ranges if span.startswith("bytes=-")]
    assert sorted(indices) == ["sharded.zarr/c/0/0", "sharded.zarr/c/0/1"]
    assert len(ranges) - len(indices) == 2 < 16
    assert report.requests == len(ranges)


class _Meeting(FolderHandler):
    """Answers requests for chunks only when several of them are under way together."""

    met: threading.Barrier

    def _answer(self, *, with_body: bool) -> None:
        if self._path().rsplit("/", 1)[-1][:1].isdigit():
            self.met.wait(timeout=30)
        super()._answer(with_body=with_body)


@contextmanager
def meeting(folder: Path, n: int) -> Iterator[str]:
    """A server that answers for a chunk when `n` chunks are asked for at a time."""

    class Handler(_Meeting):
        root, log = folder.resolve(), []
        met = threading.Barrier(n)

    server = ThreadingHTTPServer((HOST, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


def test_requests_of_a_batch_are_under_way_together(
    folder: Path, place: Callable[[str], Place]
) -> None:
    """A server that answers none of 16 chunks before all are asked for is answered by one task."""
    with meeting(folder, 16) as url, dask.config.set(scheduler="synchronous"):
        plan = plan_of(url, {}, "plain", rows_per_shard=81)
        report = patchloom.materialize(plan, place("local").url, progress=False)
    assert report.chunk_reads == 16


class Calls(list[tuple[str, str]]):
    """Requests in the order in which they were sent, and how many were under way at most."""

    now = most = 0


@pytest.fixture
def s3_calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Requests that s3fs really sends: (operation, key, with the range of a read)."""
    s3fs = pytest.importorskip("s3fs")
    calls = Calls()
    send = s3fs.S3FileSystem._call_s3

    async def listening(self: Any, method: str, *others: Any, **known: Any) -> Any:
        name = str(known.get("Key", known.get("Prefix", "")))
        span = str(known.get("Range", "")).removesuffix("bytes=0-")
        calls.append((method, f"{name} {span}".strip()))
        calls.now += 1
        calls.most = max(calls.most, calls.now)
        try:
            return await send(self, method, *others, **known)
        finally:
            calls.now -= 1

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", listening)
    return calls


def test_s3_is_asked_once_a_chunk_and_once_a_stretch(
    folder: Path, place: Callable[[str], Place], s3_calls: Calls
) -> None:
    """As over HTTP: whole objects, indices once, joined ranges; as many as the report says."""
    source = place("s3")
    source.fill(folder)
    plan = plan_of(source.url, source.options, rows_per_shard=162)
    assert plan.n_tasks == 1
    s3_calls.clear()
    report = write(plan, place("local"))
    reads = [name for method, name in s3_calls if method == "get_object"]
    assert len(reads) == len(s3_calls) == report.requests == 16 + 2 + 2
    assert sorted(n for n in reads if "bytes" not in n) == sorted(
        f"plain.zarr/{y}.{x}" for y in range(4) for x in range(4)
    )
    assert sum("bytes=-" in name for name in reads) == 2
    assert s3_calls.most == 16, "all chunks of a batch are asked for together"


def test_s3_is_written_once_an_object(
    folder: Path, place: Callable[[str], Place], s3_calls: Calls
) -> None:
    """One PUT an object (the group's metadata twice), no question before it, one listing."""
    out = place("s3")
    plan = plan_of(str(folder), {}, rows_per_shard=20)
    s3_calls.clear()
    write(plan, out)
    puts = Counter(name for method, name in s3_calls if method == "put_object")
    n = plan.n_shards
    assert len(puts) == 3 * n + 4
    assert {name: k for name, k in puts.items() if k > 1} == {"out.zarr/zarr.json": 2}
    others = Counter(method for method, _ in s3_calls if method != "put_object")
    # The store is listed first and last, its folder of reports once (of nothing s3fs asks thrice);
    # tasks look whether they are late, and summaries are merged.
    assert others["list_objects_v2"] <= 5
    assert others["get_object"] <= n + plan.n_tasks + 2
    assert set(others) <= {"list_objects_v2", "get_object", "head_object"}
    assert others["head_object"] <= 2

    s3_calls.clear()
    report = write(plan, out)
    assert report.already_done == n
    again = Counter(method for method, _ in s3_calls)
    # Resuming asks for one listing of the store, however many shards it has.
    assert sum(again.values()) <= 8
    assert again["put_object"] == 1, "its report"


def test_a_store_on_s3_opens_by_one_request(
    folder: Path, place: Callable[[str], Place], s3_calls: Calls
) -> None:
    """Metadata are consolidated; a patch is then its index and its range."""
    out = place("s3")
    write(plan_of(str(folder), {}), out)
    s3_calls.clear()
    store = patchloom.open_patches(f"{out.url}/out.zarr", storage_options=out.options)
    assert len(store) == 162
    assert [method for method, _ in s3_calls] == ["get_object"]


def test_gcs_is_asked_once_a_chunk_and_written_once_an_object(
    folder: Path, place: Callable[[str], Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same on GCS: one download a chunk or stretch, one upload an object."""
    gcsfs = pytest.importorskip("gcsfs")
    source, out = place("gcs"), place("gcs")
    source.fill(folder)
    calls: list[tuple[str, str]] = []
    send = gcsfs.GCSFileSystem._request

    async def listening(self: Any, method: str, path: str, *others: Any, **known: Any) -> Any:
        calls.append((method, path))
        return await send(self, method, path, *others, **known)

    plan = plan_of(source.url, source.options, rows_per_shard=162)
    monkeypatch.setattr(gcsfs.GCSFileSystem, "_request", listening)
    report = write(plan, place("local"))
    assert report.requests == 16 + 2 + 2
    assert len(calls) == report.requests, calls
    calls.clear()
    plan = plan_of(str(folder), {}, rows_per_shard=20)
    write(plan, out)
    uploads = [path for method, path in calls if method == "POST"]
    # Three objects a shard, their sizes, two of metadata, the group's once more, and the report.
    assert len(uploads) == 3 * plan.n_shards + 5


def test_http_takes_no_store(folder: Path, http_server: Callable[[Path], HttpServer]) -> None:
    """What can only be read is refused as an output, with the reason and the object."""
    url = http_server(folder).url("out.zarr")
    with pytest.raises(WriteError, match=r"out\.zarr/images/zarr\.json .* was refused"):
        patchloom.materialize(plan_of(str(folder), {}), url, progress=False)


@pytest.mark.slow
def test_large_objects_go_up_in_parts(place: Callable[[str], Place], s3_calls: Calls) -> None:
    """A shard of more than 100 MB is uploaded in parts of 50, and arrives whole."""
    from patchloom.location import Location

    out = place("s3")
    data = np.random.default_rng(0).bytes(110 * 2**20)
    location = Location.of(out.url, out.options)
    location.write("big", data)
    methods = Counter(method for method, _ in s3_calls)
    assert methods["upload_part"] == 3
    assert methods["create_multipart_upload"] == methods["complete_multipart_upload"] == 1
    assert methods["put_object"] == 0
    assert location.read("big") == data


# -- Dask arrays with user transformations ----------------------------------------------


def _doubled(block: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return block * 2 + 1


def transformed(kind: str, pixels: npt.NDArray[Any]) -> tuple[Any, npt.NDArray[Any]]:
    """What a user makes of an array, lazily, and the same with NumPy."""
    lazy = da.from_array(pixels, chunks=(20, 24))
    named = xarray.DataArray(lazy, dims=("y", "x"))
    made: dict[str, tuple[Any, npt.NDArray[Any]]] = {
        "map_blocks": (lazy.map_blocks(_doubled, dtype=lazy.dtype), _doubled(pixels)),
        "rechunk": (lazy.rechunk((33, 17)), pixels),
        "slices": (lazy[3:, ::2], pixels[3:, ::2]),
        "coarsen": (
            named.coarsen(y=2, x=2).max(),
            pixels.reshape(40, 2, 36, 2).max((1, 3)),
        ),
        "isel": (named.isel(y=slice(5, 70), x=slice(None, None, -1)), pixels[5:70, ::-1]),
        "interp": (
            named.chunk(y=-1).interp(y=np.arange(60) + 0.5).astype("float32"),
            ((pixels[:60].astype(float) + pixels[1:61]) / 2).astype("float32"),
        ),
    }
    return made[kind]


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes", "distributed"])
def test_transformed_arrays_are_cut_as_numpy_cuts_them(scheduler: str, tmp_path: Path) -> None:
    """map_blocks, rechunk, slices and xarray's operations, on every scheduler."""
    pixels = np.random.default_rng(1).integers(0, 9999, (80, 72)).astype("uint16")
    kinds = ["map_blocks", "rechunk", "slices", "coarsen", "isel", "interp"]
    stores = {}

    def run() -> None:
        for kind in kinds:
            lazy, _ = transformed(kind, pixels)
            plan = patchloom.plan(
                patchloom.open_images(lazy), GRID, rows_per_shard=16, memory="64 MiB"
            )
            assert plan.n_tasks > 1
            out = tmp_path / f"{kind}.zarr"
            report = patchloom.materialize(plan, out, progress=False)
            assert report.chunk_reads == plan.chunks_needed
            stores[kind] = patchloom.open_patches(out)

    if scheduler == "distributed":
        with local_cluster(n_workers=1, threads_per_worker=2) as cluster, cluster.get_client():
            run()
    elif scheduler == "processes":
        # One pool for all: starting processes is what takes long.
        context = multiprocessing.get_context("spawn")
        with (
            ProcessPoolExecutor(2, mp_context=context) as pool,
            dask.config.set(scheduler=scheduler, pool=pool),
        ):
            run()
    else:
        with dask.config.set(scheduler=scheduler, num_workers=2):
            run()
    for kind in kinds:
        store, wanted = stores[kind], transformed(kind, pixels)[1]
        corners = set(oracle.grid(wanted.shape, (12, 12), (6, 6), "drop"))
        starts = store.manifest.select(["start_y", "start_x"]).to_pylist()
        assert {(row["start_y"], row["start_x"]) for row in starts} == corners
        patches = store[:]
        for row, at in enumerate(starts):
            y, x = at["start_y"], at["start_x"]
            assert (patches[row, 0] == wanted[y : y + 12, x : x + 12]).all(), (kind, row)
