"""An S3 to test against: a Ceph RADOS gateway where Ceph is installed, else moto.

Ceph is a real S3 server: it checks signatures and checksums, honours conditional requests and
keeps its objects outside the test process. It runs here without containers as three processes (one
monitor, one object store in memory, the gateway) and is ready in one to three seconds. On Debian:
``apt-get install --no-install-recommends ceph-mon ceph-osd radosgw``.

moto accepts any credentials and any checksum; it is good enough to run the same tests quickly.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.servers.process import (
    HOST,
    Process,
    ServerError,
    answers_http,
    free_port,
    running,
    wait_until,
)

S3Kind = Literal["ceph", "moto"]

REGION = "us-east-1"
ACCESS_KEY = "test"
SECRET_KEY = "testsecret"
CEPH_PROGRAMS = (
    "ceph",
    "ceph-authtool",
    "ceph-mon",
    "ceph-osd",
    "monmaptool",
    "radosgw",
    "radosgw-admin",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Server:
    """A running S3 server, as the tests see it. Picklable: it is an address and two keys."""

    kind: S3Kind
    """Which server answers: ``"ceph"`` (a real one) or ``"moto"`` (a stand-in)."""
    endpoint: str
    """Its address, ``http://127.0.0.1:PORT``."""
    access_key: str = ACCESS_KEY
    secret_key: str = field(default=SECRET_KEY, repr=False)
    startup_seconds: float = 0.0
    """How long it took to start."""

    @property
    def storage_options(self) -> dict[str, Any]:
        """What ``fsspec.filesystem("s3", **options)`` and zarr's ``storage_options`` take."""
        return {
            "key": self.access_key,
            "secret": self.secret_key,
            "endpoint_url": self.endpoint,
            "client_kwargs": {"region_name": REGION},
        }

    @property
    def environment(self) -> dict[str, str]:
        """The same as environment variables: botocore and s3fs then need no options."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
            "AWS_ALLOW_HTTP": "true",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def fresh_bucket(self, prefix: str = "bucket") -> str:
        """Make a bucket of its own and return its URL, ``s3://bucket-1a2b3c4d``."""
        # Plain botocore, not s3fs: making a bucket must not start an event loop in this process.
        session = importlib.import_module("botocore.session").get_session()
        name = f"{prefix}-{uuid.uuid4().hex[:8]}"
        client = session.create_client(
            "s3",
            region_name=REGION,
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )
        try:
            client.create_bucket(Bucket=name)
        finally:
            client.close()
        return f"s3://{name}"


def available_kinds() -> tuple[S3Kind, ...]:
    """The servers that could be started here, the better one first."""
    kinds: list[S3Kind] = []
    if all(shutil.which(program) for program in CEPH_PROGRAMS):
        kinds.append("ceph")
    if importlib.util.find_spec("moto") and importlib.util.find_spec("flask"):
        kinds.append("moto")
    return tuple(kinds)


@contextmanager
def serve_s3(kind: S3Kind | None = None) -> Iterator[S3Server]:
    """Start an S3 server, stop it with the block.

    Parameters
    ----------
    kind
        Which one; by default the first of `available_kinds`.

    Raises
    ------
    ServerError
        When there is none to start, or it does not start.
    """
    if kind is None:
        kinds = available_kinds()
        if not kinds:
            raise ServerError("neither Ceph's programs nor moto[server] are installed")
        kind = kinds[0]
    start = time.monotonic()
    with ExitStack() as stack:
        # A short path: Ceph's sockets must stay below 108 characters.
        folder = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="patchloom-s3-", ignore_cleanup_errors=True)
            )
        )
        endpoint = _start_ceph(folder, stack) if kind == "ceph" else _start_moto(folder, stack)
        yield S3Server(kind=kind, endpoint=endpoint, startup_seconds=time.monotonic() - start)


def _start_moto(folder: Path, stack: ExitStack) -> str:
    port = free_port()
    endpoint = f"http://{HOST}:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)]
    process = stack.enter_context(running("moto", command, folder))
    wait_until(lambda: answers_http(f"{endpoint}/moto-api/"), "moto", [process])
    return endpoint


# One monitor and one object store on the loopback interface, without keys between the daemons.
# The propose intervals are what makes it start in 2 s rather than 13: the gateway makes its pools
# one after the other, and by default each waits a second for others to join its round.
# Without tcp_nodelay each small answer waits 40 ms for an ACK: 20 ranged reads a second, not 300.
# Deleted objects are collected at once, because all of them live in memory.
_CEPH_CONFIGURATION = """\
[global]
fsid = {fsid}
mon_initial_members = a
mon_host = {monitors}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
auth_allow_insecure_global_id_reclaim = false
ms_mon_client_mode = crc
ms_client_mode = crc
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 2000
mon_data_avail_warn = 1
mon_data_avail_crit = 0
run_dir = {folder}/run
admin_socket =
log_file = {folder}/$name.log
[mon.a]
mon_data = {folder}/mon
[osd.0]
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = 4294967296
osd_class_load_list = *
osd_class_default_list = *
[client.rgw]
rgw_frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw_data = {folder}/rgw
rgw_thread_pool_size = 64
rgw_gc_obj_min_wait = 1
rgw_gc_processor_period = 5
rgw_enable_usage_log = false
rgw_enable_ops_log = false
rgw_enable_lc_threads = false
rgw_run_sync_thread = false
"""


def _start_ceph(folder: Path, stack: ExitStack) -> str:
    for name in ("mon", "osd", "rgw", "run"):
        (folder / name).mkdir()
    port = free_port()
    endpoint = f"http://{HOST}:{port}"
    monitors = f"[v2:{HOST}:{free_port()},v1:{HOST}:{free_port()}]"
    fsid, osd_uuid = str(uuid.uuid4()), str(uuid.uuid4())
    configuration = folder / "ceph.conf"
    configuration.write_text(
        _CEPH_CONFIGURATION.format(fsid=fsid, monitors=monitors, folder=folder, port=port),
        encoding="utf-8",
    )
    keyring, monmap = str(folder / "keyring"), str(folder / "monmap")
    conf = ["-c", str(configuration)]

    _once("monmaptool", "--create", "--fsid", fsid, "--addv", "a", monitors, monmap)
    _once(
        *("ceph-authtool", "--create-keyring", keyring, "--gen-key"),
        *("-n", "mon.", "--cap", "mon", "allow *"),
    )
    _once("ceph-mon", *conf, "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", keyring)
    monitor = _daemon(stack, folder, "ceph-mon", *conf, "-i", "a")
    _once("ceph", *conf, "--connect-timeout", "30", "osd", "new", osd_uuid)
    _once("ceph-osd", *conf, "-i", "0", "--mkfs", "--osd-uuid", osd_uuid)
    osd = _daemon(stack, folder, "ceph-osd", *conf, "-i", "0")
    rgw_keyring = str(folder / "rgw" / "keyring")
    _once("ceph-authtool", "--create-keyring", rgw_keyring, "--gen-key", "-n", "client.rgw")
    gateway = _daemon(stack, folder, "radosgw", *conf, "-n", "client.rgw")
    wait_until(lambda: answers_http(endpoint), "the Ceph gateway", [monitor, osd, gateway])
    _once(
        *("radosgw-admin", *conf, "-n", "client.admin", "user", "create"),
        *("--uid", "test", "--display-name", "test"),
        *("--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY),
    )
    return endpoint


def _daemon(stack: ExitStack, folder: Path, program: str, *arguments: str) -> Process:
    return stack.enter_context(running(program, [program, *arguments, "-f"], folder))


def _once(*command: str, seconds: float = 60.0) -> None:
    """Run one set-up command to its end."""
    env = {k: v for k, v in os.environ.items() if k not in {"CEPH_ARGS", "CEPH_CONF"}}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, env=env, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ServerError(f"{' '.join(command)} took more than {seconds:.0f} s") from error
    if done.returncode:
        raise ServerError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
