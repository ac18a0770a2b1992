"""What the rows of the fault matrix share: jobs, what they write undisturbed, and a proxy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import arguments, contents, finish, noise
from tests.faults.jobs import StoredJob
from tests.servers.proxy import Proxy, proxy_of
from tests.servers.s3 import S3Server


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stored image of noise."""
    return noise(tmp_path_factory.mktemp("source") / "image.zarr", 640)


@pytest.fixture(scope="session")
def undisturbed(image: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run of a client writes."""
    out = tmp_path_factory.mktemp("whole") / "out.zarr"
    assert finish(arguments(image, out))["complete"]
    return contents(out)


@pytest.fixture(scope="session")
def open_proxy(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy in front of the object store."""
    with proxy_of(s3_server.endpoint, tmp_path_factory.mktemp("proxy")) as found:
        yield found


@pytest.fixture
def proxy(open_proxy: Proxy) -> Proxy:
    """The proxy, disturbing nothing yet."""
    open_proxy.disturb()
    return open_proxy


@pytest.fixture(scope="session")
def stored_job(s3_server: S3Server, open_proxy: Proxy) -> StoredJob:
    """A job from and to the object store, and what it writes undisturbed."""
    return StoredJob.made(s3_server, open_proxy)
