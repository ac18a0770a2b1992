"""What is tried again, how often, and what an error then says."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import numcodecs as extra

import patchloom
from patchloom.answers import Answer, ask
from patchloom.answers import _written as written_by
from patchloom.errors import AccessError, ChunkError
from patchloom.location import Location
from patchloom.retrying import RETRYING, Retrying, is_transient
from tests.servers.http import HttpServer
from tests.servers.proxy import Fault, proxy_of
from tests.servers.s3 import S3Server


class Told(Exception):
    """An error with what servers tell."""

    def __init__(self, **told: Any) -> None:
        self.__dict__.update(told)


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (TimeoutError(), True),
        (ConnectionRefusedError(), True),
        (BrokenPipeError(), True),
        (Told(status=503), True),
        (Told(code="429"), True),
        (Told(status_code=403), False),
        (Told(response={"Error": {"Code": "SlowDown"}}), True),
        (Told(response={"Error": {}, "ResponseMetadata": {"HTTPStatusCode": 500}}), True),
        (Told(response={"Error": {"Code": "NoSuchBucket"}}), False),
        (PermissionError(13, "no"), False),
        (FileNotFoundError(), False),
        (OSError(28, "No space left on device"), False),
        (ValueError(), False),
    ],
)
def test_what_passes(error: Exception, passes: bool) -> None:
    """Throttling and broken connections pass; a refusal, a missing object, a full disk stay."""
    assert is_transient(error) is passes
    wrapped = OSError(5, "something")
    wrapped.__cause__ = error
    assert is_transient(wrapped) is passes


@given(failures=st.lists(st.integers(0, 6), min_size=1, max_size=8), attempts=st.integers(1, 5))
def test_a_batch_asks_again_only_for_what_failed(failures: list[int], attempts: int) -> None:
    """Each item is asked for until it succeeds, and never more often than allowed."""
    asked = [0] * len(failures)

    def fetch(items: list[int]) -> list[int | Exception]:
        found: list[int | Exception] = []
        for k in items:
            asked[k] += 1
            found.append(k if asked[k] > failures[k] else TimeoutError(f"{k}"))
        return found

    found = Retrying(attempts, first=0).each(fetch, range(len(failures)))
    for k, (answer, fails) in enumerate(zip(found, failures, strict=True)):
        assert asked[k] == min(fails + 1, attempts)
        if fails < attempts:
            assert answer == k
        else:
            assert isinstance(answer, TimeoutError)
            assert answer.__notes__[0].startswith(f"tried {attempts} times in")


def test_no_try_begins_after_the_time_is_over() -> None:
    """However many tries are left."""
    calls: list[int] = []

    def late() -> None:
        calls.append(1)
        raise TimeoutError

    with pytest.raises(TimeoutError):
        Retrying(attempts=100, first=0, total=-1).call(late)
    assert len(calls) == 1


def test_errors_show_no_secret_wherever_it_stands() -> None:
    """Options are searched to the bottom."""
    options = {"key": "AKIDABCD", "client_kwargs": {"aws_session_token": "tok-12345"}, "n": 3}
    place = Location.of("s3://bucket/a", options)

    def refused() -> None:
        raise PermissionError("AKIDABCD may not, with tok-12345")

    with pytest.raises(AccessError) as caught:
        place.ask(refused, "b")
    text = str(caught.value)
    assert "AKIDABCD" not in text
    assert "tok-12345" not in text
    assert "s3://bucket/a/b" in text
    # What is made of it elsewhere says what went wrong, once.
    assert place.describe(caught.value) == "PermissionError: *** may not, with ***"


def test_answers_say_which_object_they_are_of(
    tmp_path: Path, http_server: Callable[[Path], HttpServer]
) -> None:
    """A disk and a web server: tag and date of the object, ranges as asked, None for nothing."""
    (tmp_path / "a").write_bytes(b"0123456789")
    written = (tmp_path / "a").stat().st_mtime
    for place in (Location.of(tmp_path), Location.of(http_server(tmp_path).endpoint)):
        fs, root = place.open()
        path = place.inside(root, "a")
        whole, part, end, nothing = ask(
            fs, [(path, None, None), (path, 2, 5), (path, -3, None), (f"{path}b", None, None)]
        )
        assert isinstance(whole, Answer)
        assert isinstance(part, Answer)
        assert isinstance(end, Answer)
        assert nothing is None
        assert [bytes(a.data) for a in (whole, part, end)] == [b"0123456789", b"234", b"789"]
        assert whole.tag == part.tag == end.tag is not None
        assert whole.written is not None
        assert written - 3600 < whole.written <= written
        (tmp_path / "a").write_bytes(b"01234567890")
        [other] = ask(fs, [(path, None, None)])
        assert isinstance(other, Answer)
        assert other.tag != whole.tag
        (tmp_path / "a").write_bytes(b"0123456789")
        written = (tmp_path / "a").stat().st_mtime


def test_a_url_in_a_foreign_text_loses_its_query_however_it_is_written(
    tmp_path: Path, http_server: Callable[[Path], HttpServer]
) -> None:
    """aiohttp writes "%2F" as "/", so that the secret is not found as it was given."""
    (tmp_path / "a").write_bytes(b"0123456789")
    url = f"{http_server(tmp_path).endpoint}/a?Signature=s3%2Fcret%3D&Token=AbC%2FdEf%2Bg"
    place = Location.of(url)
    fs, path = place.open()
    [refused] = ask(fs, [(path, 99, 100)])
    assert isinstance(refused, Exception)
    assert "s3/cret" in str(refused)
    text = place.describe(refused)
    assert "416" in text
    assert not any(secret in text for secret in ("s3/cret", "s3%2Fcret", "AbC"))
    asked = ValueError("https://me:pass@host/b?sig=1 and http://host:80/c#d are not s3://b/e")
    text = place.describe(asked)
    assert text == "ValueError: https://host/b?*** and http://host:80/c?*** are not s3://b/e"


NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("headers", "written"),
    [
        ({"date": 0, "last-modified": -10}, -11),
        # A cache asked its server 990 s ago.
        ({"date": -990, "last-modified": -1000, "age": "990"}, -1001),
        ({"date": 0, "last-modified": -10, "age": "soon"}, None),
        ({"date": 0, "last-modified": 10}, None),
        ({"date": 0}, None),
    ],
)
def test_when_an_object_was_written(headers: dict[str, Any], written: float | None) -> None:
    """Its age by the clock of its server, from ours; never later than it was."""
    told = {
        name: formatdate(NOW + value, usegmt=True) if isinstance(value, int) else value
        for name, value in headers.items()
    }
    found = written_by(told, NOW)
    assert found == (None if written is None else NOW + written)


def test_a_date_without_a_zone_says_nothing() -> None:
    """It cannot be compared with one that has a zone: no error of the read."""
    told = {"date": formatdate(NOW, usegmt=True), "last-modified": formatdate(NOW - 10)}
    assert written_by(told, NOW) is None


def test_a_time_to_come_never_counts_as_a_change(tmp_path: Path) -> None:
    """A file that was given a time of the future is read, also when that time has passed."""
    path = tmp_path / "a"
    path.write_bytes(b"0123456789")
    begun = time.time()
    os.utime(path, (begun + 1, begun + 1))
    fs, root = Location.of(path).open()
    while time.time() < begun + 1.1:
        time.sleep(0.05)
    [answer] = ask(fs, [(root, None, None)])
    assert isinstance(answer, Answer)
    assert answer.written is not None
    assert answer.written < begun + 1


def test_a_folder_of_another_file_system_is_read(tmp_path: Path) -> None:
    """`dir://` calls itself asynchronous, whatever it stands for."""
    (tmp_path / "a").write_bytes(b"0123456789")
    place = Location.of("dir://a", {"path": str(tmp_path), "target_protocol": "file"})
    assert place.read() == b"0123456789"


@pytest.mark.slow
def test_an_upload_that_another_client_takes_for_a_leftover_is_sent_again(
    s3_server: S3Server, tmp_path: Path
) -> None:
    """A large object goes up in parts, which a second client of the same store aborts."""
    url, body = f"{s3_server.fresh_bucket()}/out.zarr", bytes(range(256)) * (120 << 12)
    with proxy_of(s3_server.endpoint, tmp_path) as proxy, ThreadPoolExecutor(1) as pool:
        options = {**s3_server.storage_options, "endpoint_url": proxy.endpoint}
        other = Location.of(url, s3_server.storage_options)
        proxy.disturb(Fault(kind="hold", method="PUT", path="uploadId=", times=1))
        writing = pool.submit(Location.of(url, options).write, "a", body)
        while not proxy.disturbed["hold"] and not writing.done():
            time.sleep(0.05)
        assert other.abort_uploads() == 1
        proxy.disturb()
        writing.result(timeout=100)
    assert other.read("a") == body


@pytest.mark.slow
def test_what_zarr_reads_itself_is_tried_no_more_often(s3_server: S3Server, tmp_path: Path) -> None:
    """A codec that only zarr-python knows: no retries of the file system within ours."""
    url = f"{s3_server.fresh_bucket()}/a.zarr"
    with pytest.warns(UserWarning, match="codec"):
        zarr.create_array(
            url,
            storage_options=s3_server.storage_options,
            data=np.full((64, 64), 7, "uint16"),
            compressors=extra.LZ4(),
        )
    with proxy_of(s3_server.endpoint, tmp_path) as proxy:
        options = {**s3_server.storage_options, "endpoint_url": proxy.endpoint}
        [image] = patchloom.open_images(url, axes="YX", storage_options=options)
        reader = image.source.reader()
        assert reader.reads.codecs == "zarr"
        proxy.disturb(Fault(kind="status", path="/c/"))
        with pytest.raises(ChunkError, match=f"tried {RETRYING.attempts} times"):
            reader.read(np.array([[0, 0]]))
        assert proxy.count(path="/c/") == RETRYING.attempts
