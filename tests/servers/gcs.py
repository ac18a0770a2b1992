"""A Google Cloud Storage to test against: our own emulator, in a process of its own."""

from __future__ import annotations

import json
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.servers.process import HOST, answers_http, free_port, running, wait_until

PROJECT = "patchloom-tests"


@dataclass(frozen=True, slots=True, kw_only=True)
class GcsServer:
    """A running GCS server, as the tests see it. Picklable: it is an address."""

    endpoint: str
    """Its address, ``http://127.0.0.1:PORT``."""
    kind: Literal["emulator"] = "emulator"
    startup_seconds: float = 0.0
    """How long it took to start."""

    @property
    def storage_options(self) -> dict[str, Any]:
        """What ``fsspec.filesystem("gs", **options)`` and zarr's ``storage_options`` take."""
        return {"endpoint_url": self.endpoint, "token": "anon", "project": PROJECT}

    @property
    def environment(self) -> dict[str, str]:
        """The address as environment variables, for gcsfs without ``endpoint_url``.

        The second one keeps gcsfs from asking a real Google service for the kind of each bucket,
        which costs a minute where there is none. It must be set before gcsfs is imported.
        """
        return {
            "STORAGE_EMULATOR_HOST": self.endpoint,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def fresh_bucket(self, prefix: str = "bucket") -> str:
        """Make a bucket of its own and return its URL, ``gs://bucket-1a2b3c4d``."""
        name = f"{prefix}-{uuid.uuid4().hex[:8]}"
        request = urllib.request.Request(
            f"{self.endpoint}/storage/v1/b?project={PROJECT}",
            data=json.dumps({"name": name}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30):
            return f"gs://{name}"


@contextmanager
def serve_gcs() -> Iterator[GcsServer]:
    """Start the emulator, stop it with the block.

    Raises
    ------
    ServerError
        When it does not start.
    """
    start = time.monotonic()
    port = free_port()
    endpoint = f"http://{HOST}:{port}"
    command = [sys.executable, "-m", "tests.servers.gcs_emulator", str(port)]
    root = Path(__file__).parents[2]
    with (
        tempfile.TemporaryDirectory(prefix="patchloom-gcs-", ignore_cleanup_errors=True) as folder,
        running("gcs", command, Path(folder), cwd=root) as process,
    ):
        wait_until(lambda: answers_http(f"{endpoint}/storage/v1/b"), "the GCS emulator", [process])
        yield GcsServer(endpoint=endpoint, startup_seconds=time.monotonic() - start)
