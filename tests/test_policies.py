"""The policies of deploy/ grant what runs ask for, and nothing else.

Law: the actions that a whole life of a store sends, recorded between patchloom and a real server,
are those that the policies list: none is missing, and none is superfluous.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import fsspec
import yaml

import patchloom
from patchloom.store.schema import manifest_name
from tests.servers.gcs import GcsServer
from tests.servers.proxy import Request, proxy_of
from tests.servers.s3 import REGION, S3Server

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DEMO = ROOT / "src/patchloom/demo/cardiomyocytes.ome.zarr"
Granted = set[tuple[str, str]]
"""Pairs of a bucket's role (``images``, ``stores``) and an action."""


def live(images: str, store: str, through: Mapping[str, Any], straight: Mapping[str, Any]) -> None:
    """Plan, write, lose, damage, mend, resume, append to, and read a store."""
    opened = patchloom.open_images(f"{images}/*.ome.zarr", mask="tissue", storage_options=through)
    config = {"name": "sequential", "patch_size": [64, 64]}

    def run(some: Any) -> Any:
        plan = patchloom.plan(some, config, rows_per_shard=16)
        return patchloom.materialize(plan, store, storage_options=through, progress=False)

    assert run(opened[:1]).complete
    fs, place = fsspec.url_to_fs(store, **straight)
    fs.rm_file(f"{place}/{manifest_name(1)}")
    broken = f"{place}/images/c/2/0/0/0"
    body = fs.cat_file(broken)
    fs.pipe_file(broken, body[:-40] + bytes(20) + body[-20:])
    assert patchloom.verify(store, storage_options=through, repair=True, progress=False).repaired
    assert run(opened[:1]).complete
    assert run(opened).complete
    found = patchloom.open_patches(store, storage_options=through)
    assert found[3].shape == (3, 64, 64)
    assert patchloom.verify(store, storage_options=through, progress=False).ok


def s3_action(request: Request) -> str:
    """The action that S3 asks a policy for."""
    address = urlsplit(request.path)
    query = set(parse_qs(address.query, keep_blank_values=True))
    if "/" not in address.path.strip("/"):
        if request.method == "GET" and "uploads" in query:
            return "s3:ListBucketMultipartUploads"
        if request.method in ("GET", "HEAD") and "list-type" in query:
            return "s3:ListBucket"
        return f"{request.method} of a bucket: {request.path}"
    if request.method == "DELETE":
        return "s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject"
    return {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "PUT": "s3:PutObject"}[request.method]


def gcs_action(request: Request) -> str:
    """The permission that Google's store asks a role for."""
    parts = urlsplit(request.path).path.strip("/").split("/")
    kind, after = parts[0], parts[parts.index("o") + 1 :] if "o" in parts else ["", "?"]
    if kind == "upload":
        return "storage.objects.create"
    if request.method == "GET":
        return "storage.objects.get" if after else "storage.objects.list"
    return {"DELETE": "storage.objects.delete"}[request.method]


def asked(requests: Iterable[Request], images: str, store: str, action: Any) -> Granted:
    """What a server was asked for, by the role of the bucket."""
    found = set()
    for request in requests:
        roles = [
            role
            for role, url in (("images", images), ("stores", store))
            if urlsplit(url).netloc in urlsplit(request.path).path.split("/")
        ]
        assert len(roles) == 1, request
        found.add((roles[0], action(request)))
    return found


def test_policy_for_s3(s3_server: S3Server, tmp_path: Path) -> None:
    """Every action is granted for its bucket, on buckets and objects as S3 wants it."""
    images, stores = s3_server.fresh_bucket("images"), s3_server.fresh_bucket("stores")
    straight = s3_server.storage_options
    fs = fsspec.filesystem("s3", **straight)
    for name in ("a", "b"):
        fs.put(str(DEMO), f"{images}/{name}.ome.zarr", recursive=True)
    session = importlib.import_module("botocore.session").get_session()
    client = session.create_client(
        "s3",
        region_name=REGION,
        endpoint_url=s3_server.endpoint,
        aws_access_key_id=s3_server.access_key,
        aws_secret_access_key=s3_server.secret_key,
    )
    # What a writer that was killed leaves behind.
    client.create_multipart_upload(Bucket=urlsplit(stores).netloc, Key="a/train.zarr/left")
    client.close()
    with proxy_of(s3_server.endpoint, tmp_path) as proxy:
        through = {**straight, "endpoint_url": proxy.endpoint}
        live(images, f"{stores}/a/train.zarr", through, straight)
        found = asked(proxy.requests, images, stores, s3_action)
    policy = json.loads((DEPLOY / "aws-policy.json").read_text(encoding="utf-8"))
    granted: Granted = set()
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        for resource in statement["Resource"]:
            bucket, _, key = resource.removeprefix("arn:aws:s3:::").partition("/")
            assert key in ("", "*")
            for action in statement["Action"]:
                assert ("Bucket" in action) is not bool(key), f"{action} on {resource}"
                granted.add((bucket.removesuffix("-BUCKET").lower(), action))
    assert found == granted


def test_roles_for_gcs(gcs_server: GcsServer, tmp_path: Path) -> None:
    """Every permission is granted for its bucket."""
    images, stores = gcs_server.fresh_bucket("images"), gcs_server.fresh_bucket("stores")
    straight = gcs_server.storage_options
    fs = fsspec.filesystem("gs", **straight)
    for name in ("a", "b"):
        fs.put(str(DEMO), f"{images}/{name}.ome.zarr", recursive=True)
    with proxy_of(gcs_server.endpoint, tmp_path) as proxy:
        through = {**straight, "endpoint_url": proxy.endpoint}
        live(images, f"{stores}/a/train.zarr", through, straight)
        found = asked(proxy.requests, images, stores, gcs_action)
    granted = set()
    for role in ("images", "stores"):
        document = yaml.safe_load((DEPLOY / f"gcp-{role}-role.yaml").read_text(encoding="utf-8"))
        granted |= {(role, permission) for permission in document["includedPermissions"]}
    assert found == granted
