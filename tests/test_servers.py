"""The servers of the tests do what real ones do, also for a process started afresh.

Laws: what was put is got, from any process; a range is exactly that slice; a listing shows what is
there and no more; what was deleted is gone; a server ends with its block, whatever happens in it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.asyn import sync

from tests.servers.gcs import GcsServer
from tests.servers.http import HttpServer
from tests.servers.process import ServerError, free_port, running, wait_until
from tests.servers.ranges import UnsatisfiableRangeError, parse_range
from tests.servers.s3 import S3Server, available_kinds, serve_s3

CONTENT = bytes(range(256)) * 40
LARGE = os.urandom(1 << 20) * 12  # larger than one part of a multipart or resumable upload


@pytest.fixture(params=["s3_server", "gcs_server"])
def store(request: pytest.FixtureRequest) -> Any:
    """Either object store."""
    return request.getfixturevalue(request.param)


def copy_reversed(url: str, options: dict[str, Any]) -> tuple[int, bytes]:
    """Read an object and write it reversed beside it. Runs in a spawned process."""
    filesystem, path = fsspec.url_to_fs(url, **options)
    data = filesystem.cat_file(path)
    filesystem.pipe_file(f"{path}-reversed", data[::-1])
    return os.getpid(), data[:16]


@contextmanager
def spawned_process() -> Iterator[ProcessPoolExecutor]:
    """One process that shares nothing with this one."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        yield pool


def names(filesystem: Any, path: str) -> list[str]:
    """What a fresh listing of a folder shows, sorted, the folder's own path cut off."""
    found = filesystem.ls(path, detail=False, refresh=True)
    return sorted(name.removeprefix(path).strip("/") for name in found)


def test_what_was_put_is_got_listed_and_deleted(store: S3Server | GcsServer) -> None:
    """An object store keeps objects under names, and a delimiter makes folders of them."""
    filesystem, bucket = fsspec.url_to_fs(store.fresh_bucket(), **store.storage_options)
    assert names(filesystem, bucket) == []
    for name in ("a/one", "a/two words+%", "a/b/three", "four"):
        filesystem.pipe_file(f"{bucket}/{name}", CONTENT + name.encode())

    assert names(filesystem, bucket) == ["a", "four"]
    assert names(filesystem, f"{bucket}/a") == ["b", "one", "two words+%"]
    assert len(filesystem.find(bucket)) == 4
    assert filesystem.cat_file(f"{bucket}/a/two words+%") == CONTENT + b"a/two words+%"
    assert filesystem.info(f"{bucket}/a/one")["size"] == len(CONTENT) + 5

    filesystem.rm_file(f"{bucket}/a/one")
    assert not filesystem.exists(f"{bucket}/a/one")
    with pytest.raises(FileNotFoundError):
        filesystem.cat_file(f"{bucket}/a/one")
    filesystem.rm(f"{bucket}/a", recursive=True)
    assert names(filesystem, bucket) == ["four"]


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 10), (100, 2100), (5000, None), (-7, None), (10_000, 10_240)]
)
def test_a_range_is_that_slice(store: S3Server | GcsServer, start: int, stop: int | None) -> None:
    """A ranged read equals the slice of the bytes, also a suffix and one past a page."""
    filesystem, bucket = fsspec.url_to_fs(store.fresh_bucket(), **store.storage_options)
    filesystem.pipe_file(f"{bucket}/object", CONTENT)
    assert filesystem.cat_file(f"{bucket}/object", start=start, end=stop) == CONTENT[start:stop]


def test_a_large_object_arrives_whole(store: S3Server | GcsServer) -> None:
    """Uploads in several parts are put together in order."""
    filesystem, bucket = fsspec.url_to_fs(store.fresh_bucket(), **store.storage_options)
    with filesystem.open(f"{bucket}/large", "wb", block_size=5 << 20) as file:
        for first in range(0, len(LARGE), 1 << 20):
            file.write(LARGE[first : first + (1 << 20)])
    assert filesystem.cat_file(f"{bucket}/large") == LARGE
    filesystem.copy(f"{bucket}/large", f"{bucket}/copy")
    start, stop = 7 << 20, (7 << 20) + 99
    assert filesystem.cat_file(f"{bucket}/copy", start=start, end=stop) == LARGE[start:stop]


def test_a_spawned_process_sees_the_same_objects(store: S3Server | GcsServer) -> None:
    """The face of a server, pickled to another process, reaches the same server."""
    url = store.fresh_bucket()
    filesystem, bucket = fsspec.url_to_fs(url, **store.storage_options)
    filesystem.pipe_file(f"{bucket}/object", CONTENT)
    with spawned_process() as pool:
        process, head = pool.submit(copy_reversed, f"{url}/object", store.storage_options).result(
            timeout=120
        )
    assert process != os.getpid()
    assert head == CONTENT[:16]
    assert filesystem.cat_file(f"{bucket}/object-reversed") == CONTENT[::-1]


def test_buckets_are_fresh(store: S3Server | GcsServer) -> None:
    """Two tests never share a bucket."""
    assert store.fresh_bucket() != store.fresh_bucket()


def test_the_environment_alone_reaches_s3(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ambient credentials are enough: no secret has to travel in a store's options."""
    for key, value in s3_server.environment.items():
        monkeypatch.setenv(key, value)
    filesystem, bucket = fsspec.url_to_fs(s3_server.fresh_bucket(), skip_instance_cache=True)
    filesystem.pipe_file(f"{bucket}/object", CONTENT)
    assert filesystem.cat_file(f"{bucket}/object") == CONTENT


def test_the_environment_alone_reaches_gcs(
    gcs_server: GcsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system finds the emulator by its variable."""
    for key, value in gcs_server.environment.items():
        monkeypatch.setenv(key, value)
    filesystem, bucket = fsspec.url_to_fs(
        gcs_server.fresh_bucket(), token="anon", skip_instance_cache=True
    )
    filesystem.pipe_file(f"{bucket}/object", CONTENT)
    assert filesystem.cat_file(f"{bucket}/object") == CONTENT


def test_ceph_is_a_real_server(s3_server: S3Server) -> None:
    """What tells Ceph from a stand-in: it refuses a wrong secret."""
    if s3_server.kind != "ceph":
        pytest.skip("moto accepts any credentials")
    options = {**s3_server.storage_options, "secret": "wrong"}
    filesystem, bucket = fsspec.url_to_fs(s3_server.fresh_bucket(), **options)
    with pytest.raises(PermissionError):
        filesystem.pipe_file(f"{bucket}/object", CONTENT)


def test_moto_serves_where_there_is_no_ceph() -> None:
    """The stand-in starts beside the real server, and its objects are its own."""
    pytest.importorskip("s3fs")
    if "moto" not in available_kinds():
        pytest.skip("moto[server] is not installed")
    with serve_s3("moto") as server:
        assert server.kind == "moto"
        filesystem, bucket = fsspec.url_to_fs(server.fresh_bucket(), **server.storage_options)
        filesystem.pipe_file(f"{bucket}/object", CONTENT)
        assert filesystem.cat_file(f"{bucket}/object", start=3, end=9) == CONTENT[3:9]


def test_gcs_pages_hold_every_name_once(gcs_server: GcsServer) -> None:
    """Pages cover a listing without gaps or repeats, also where prefixes stand for names."""
    filesystem, bucket = fsspec.url_to_fs(gcs_server.fresh_bucket(), **gcs_server.storage_options)
    wanted = [f"{bucket}/{folder}/{i}" for folder in ("a", "a-b", "b") for i in range(5)]
    filesystem.pipe(dict.fromkeys([*wanted, f"{bucket}/a.txt"], b"x"))

    def walk(**query: str | int) -> list[str]:
        found: list[str] = []
        token: str | None = None
        while True:
            page = filesystem.call(
                "GET", "b/{}/o", bucket, maxResults=2, pageToken=token, json_out=True, **query
            )
            assert len(page["items"]) + len(page["prefixes"]) <= 2
            found += [item["name"] for item in page["items"]] + page["prefixes"]
            token = page.get("nextPageToken")
            if token is None:
                return sorted(found)

    assert walk() == sorted([path.removeprefix(f"{bucket}/") for path in wanted] + ["a.txt"])
    assert walk(delimiter="/") == ["a-b/", "a.txt", "a/", "b/"]
    assert walk(prefix="a/", delimiter="/", startOffset="a/2") == ["a/2", "a/3", "a/4"]


def test_gcs_deletes_in_batches(gcs_server: GcsServer) -> None:
    """A batch deletes what is there and reports what is not."""
    filesystem, bucket = fsspec.url_to_fs(gcs_server.fresh_bucket(), **gcs_server.storage_options)
    paths = [f"{bucket}/folder/{i} %" for i in range(5)]
    filesystem.pipe(dict.fromkeys(paths, b"x"))
    outcome = sync(filesystem.loop, filesystem._rm_files, [*paths[:4], f"{bucket}/absent"])
    assert outcome[:4] == paths[:4]
    assert isinstance(outcome[4], OSError)
    assert filesystem.find(bucket) == [paths[4]]


def test_gcs_creates_only_what_is_absent(gcs_server: GcsServer) -> None:
    """``ifGenerationMatch=0`` makes a second creation fail and leaves the first as it is."""
    filesystem, bucket = fsspec.url_to_fs(gcs_server.fresh_bucket(), **gcs_server.storage_options)
    filesystem.pipe_file(f"{bucket}/object", b"first", mode="create")
    with pytest.raises(FileExistsError):
        filesystem.pipe_file(f"{bucket}/object", b"second", mode="create")
    assert filesystem.cat_file(f"{bucket}/object") == b"first"


def test_http_serves_files_ranges_and_listings(
    http_server: Callable[[Path], HttpServer], tmp_path: Path
) -> None:
    """The web server answers as an object store behind HTTP would, and logs what was asked."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a file").write_bytes(CONTENT)
    server = http_server(tmp_path)
    pytest.importorskip("aiohttp")
    filesystem, url = fsspec.url_to_fs(server.url("folder/a file"), **server.storage_options)
    assert filesystem.cat_file(url) == CONTENT
    assert filesystem.cat_file(url, start=10, end=20) == CONTENT[10:20]
    assert filesystem.info(url)["size"] == len(CONTENT)
    assert filesystem.ls(server.url("folder/"), detail=False) == [url]
    assert not filesystem.exists(server.url("absent"))
    ranged = [request for request in server.requests if request.range == "bytes=10-19"]
    assert [(r.method, r.path, r.status) for r in ranged] == [("GET", "folder/a file", 206)]


@pytest.mark.parametrize(
    ("header", "status", "body"),
    [
        ("bytes=0-0", 206, b"0"),
        ("bytes=-3", 206, b"789"),
        ("bytes=-99", 206, b"0123456789"),
        ("bytes=7-", 206, b"789"),
        ("bytes=8-99", 206, b"89"),
        ("bytes=10-", 416, b""),
        ("bytes=1-2,4-5", 200, b"0123456789"),
        ("lines=1-2", 200, b"0123456789"),
    ],
)
def test_http_ranges(
    http_server: Callable[[Path], HttpServer],
    tmp_path: Path,
    header: str,
    status: int,
    body: bytes,
) -> None:
    """Each form of the Range header has the answer RFC 9110 gives it."""
    (tmp_path / "digits").write_bytes(b"0123456789")
    request = urllib.request.Request(http_server(tmp_path).url("digits"), headers={"Range": header})
    try:
        answer = urllib.request.urlopen(request, timeout=10)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        assert (answer.status, answer.read()) == (status, body)


def test_http_never_leaves_its_folder(
    http_server: Callable[[Path], HttpServer], tmp_path: Path
) -> None:
    """A path with dots does not reach the folder above."""
    (tmp_path / "secret").write_text("x")
    (tmp_path / "inner").mkdir()
    server = http_server(tmp_path / "inner")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{server.endpoint}/%2e%2e/secret", timeout=10)


def test_ranges_agree_with_slices() -> None:
    """For every range of a small object: the same bytes as a slice, or none to give."""
    data = b"abcdef"
    for first in range(8):
        for last in range(first, 9):
            header = f"bytes={first}-{last}"
            if first >= len(data):
                with pytest.raises(UnsatisfiableRangeError):
                    parse_range(header, len(data))
            else:
                part = parse_range(header, len(data))
                assert part is not None
                assert data[slice(*part)] == data[first : last + 1]


def test_a_server_that_ends_early_says_why(tmp_path: Path) -> None:
    """Waiting for a server that died ends at once and shows its last words."""
    command = [sys.executable, "-c", "print('no such option'); raise SystemExit(3)"]
    with (
        running("broken", command, tmp_path) as process,
        pytest.raises(ServerError, match=r"broken ended with 3\nno such option"),
    ):
        wait_until(lambda: False, "broken", [process], seconds=30)


def test_a_server_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    """A test run that is killed leaves no server behind."""
    script = (
        "import os, pathlib, signal, sys\n"
        "from tests.servers.process import running, wait_until\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "code = 'import os, pathlib, sys, time;'"
        " 'pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)'\n"
        "pid = folder / 'pid'\n"
        "with running('sleeper', [sys.executable, '-c', code, str(pid)], folder) as process:\n"
        "    wait_until(lambda: pid.exists() and pid.read_text() != '', 'sleeper', [process])\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=root, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL
    sleeper = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 20
    while _is_alive(sleeper):
        assert time.monotonic() < deadline, "the server outlived its owner"
        time.sleep(0.05)


def test_free_ports_are_free() -> None:
    """A port that was handed out can be listened on."""
    assert len({free_port() for _ in range(5)}) > 1


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
