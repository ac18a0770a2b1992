"""A small Google Cloud Storage: the part of its JSON interface that gcsfs speaks.

    python -m tests.servers.gcs_emulator PORT

Buckets and objects live in memory. Understood are: buckets (insert, get, list, delete); objects
(list by prefix, delimiter, offsets and pages; get, stat, patch of metadata, delete, move, copy,
rewrite; media, multipart and resumable uploads; ``ifGenerationMatch``); and batches of deletions.
There are no credentials, no versions and no access control.

Reference: https://cloud.google.com/storage/docs/json_api/v1
"""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import json
import re
import sys
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import google_crc32c
from aiohttp import web

from tests.servers.process import HOST
from tests.servers.ranges import UnsatisfiableRangeError, parse_range

MAX_BODY_BYTES = 2**31
MAX_PAGE = 1000  # as the real service: larger pages are cut to this
DEFAULT_CONTENT_TYPE = "application/octet-stream"


class ApiError(Exception):
    """An answer that is not a success."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class Blob:
    """One stored object."""

    data: bytes
    generation: int
    content_type: str
    metadata: Mapping[str, str]
    created: str

    @functools.cached_property
    def crc32c(self) -> str:
        """The Castagnoli checksum as Google writes it: big-endian, base 64."""
        return base64.b64encode(google_crc32c.value(self.data).to_bytes(4, "big")).decode()

    @functools.cached_property
    def md5(self) -> str:
        """The MD5 checksum, base 64."""
        return base64.b64encode(hashlib.md5(self.data).digest()).decode()


@dataclass(slots=True)
class Upload:
    """A resumable upload under way."""

    bucket: str
    name: str
    content_type: str | None
    metadata: Mapping[str, str]
    query: Mapping[str, str]
    received: bytearray = field(default_factory=bytearray)


class Storage:
    """The buckets and what is in them; knows nothing of HTTP."""

    def __init__(self) -> None:
        self.buckets: dict[str, dict[str, Blob]] = {}
        self.uploads: dict[str, Upload] = {}
        self._generations = itertools.count(1_700_000_000_000_000)

    def bucket(self, name: str) -> dict[str, Blob]:
        """The objects of a bucket."""
        try:
            return self.buckets[name]
        except KeyError:
            raise ApiError(404, "The specified bucket does not exist.") from None

    def blob(self, bucket: str, name: str) -> Blob:
        """One object."""
        try:
            return self.bucket(bucket)[name]
        except KeyError:
            raise ApiError(404, f"No such object: {bucket}/{name}") from None

    def put(
        self,
        bucket: str,
        name: str,
        data: bytes,
        *,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Store an object unless its ``ifGenerationMatch`` says otherwise; return its resource."""
        blobs = self.bucket(bucket)
        expected = (query or {}).get("ifGenerationMatch")
        current = blobs.get(name)
        if expected is not None and int(expected) != (current.generation if current else 0):
            raise ApiError(412, "At least one of the pre-conditions you specified did not hold.")
        created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        blobs[name] = Blob(
            data,
            next(self._generations),
            content_type or DEFAULT_CONTENT_TYPE,
            dict(metadata or {}),
            created,
        )
        return self.resource(bucket, name)

    def delete(self, bucket: str, name: str) -> None:
        """Remove an object."""
        self.blob(bucket, name)
        del self.buckets[bucket][name]

    def resource(self, bucket: str, name: str) -> dict[str, Any]:
        """The JSON description of an object."""
        blob = self.blob(bucket, name)
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{blob.generation}",
            "name": name,
            "bucket": bucket,
            "generation": str(blob.generation),
            "metageneration": "1",
            "contentType": blob.content_type,
            "size": str(len(blob.data)),
            "md5Hash": blob.md5,
            "crc32c": blob.crc32c,
            "etag": str(blob.generation),
            "storageClass": "STANDARD",
            "timeCreated": blob.created,
            "updated": blob.created,
            **({"metadata": dict(blob.metadata)} if blob.metadata else {}),
        }

    def page(self, bucket: str, query: Mapping[str, str]) -> dict[str, Any]:
        """One page of a listing: objects and, with a delimiter, the prefixes that stand for more.

        The token of the next page is the last entry of this one. Entries come in order of names,
        and a prefix sorts where the first name under it does, so that is enough.
        """
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        start, end = query.get("startOffset", ""), query.get("endOffset", "")
        after, limit = query.get("pageToken", ""), int(query.get("maxResults") or MAX_PAGE)
        limit = max(1, min(limit, MAX_PAGE))
        items: list[dict[str, Any]] = []
        prefixes: list[str] = []
        answer = {"kind": "storage#objects", "items": items, "prefixes": prefixes}
        last = after
        for name in sorted(self.bucket(bucket)):
            if not name.startswith(prefix) or name < start or (end and name >= end):
                continue
            cut = name.find(delimiter, len(prefix)) if delimiter else -1
            entry = name if cut < 0 else name[: cut + len(delimiter)]
            if entry <= last:  # on an earlier page, or a prefix that is already listed
                continue
            if len(items) + len(prefixes) == limit:
                answer["nextPageToken"] = last
                break
            if cut < 0:
                items.append(self.resource(bucket, name))
            else:
                prefixes.append(entry)
            last = entry
        return answer


def split_multipart(body: bytes, content_type: str) -> tuple[dict[str, Any], str | None, bytes]:
    """Take a ``multipart/related`` upload apart: its resource, content type and content."""
    delimiter = b"--" + boundary_of(content_type).encode()
    head, described, rest = body.split(delimiter, 2)
    if head.strip():
        raise ApiError(400, "Malformed multipart body.")
    _, resource = split_headers(described)
    # The content may hold anything, also the delimiter: only the last one ends it.
    newline = b"\r\n" if described.startswith(b"\r\n") else b"\n"
    content, closing, _ = rest.rpartition(newline + delimiter + b"--")
    if not closing:
        raise ApiError(400, "Missing end boundary in multipart body.")
    headers, data = split_headers(content)
    found = re.search(rb"(?im)^content-type:\s*([^\r\n]+)", headers)
    return json.loads(resource), found[1].decode().strip() if found else None, data


def split_headers(part: bytes) -> tuple[bytes, bytes]:
    """The header lines and the content of one part of a multipart body."""
    match = re.search(rb"\r?\n\r?\n", part)
    if match is None:
        raise ApiError(400, "A part of the multipart body has no headers.")
    return part[: match.start()], part[match.end() :]


def boundary_of(content_type: str) -> str:
    """The ``boundary`` parameter of a ``Content-Type``."""
    match = re.search(r'boundary="?([^";]+)', content_type)
    if match is None:
        raise ApiError(400, "Multipart content without a boundary.")
    return match[1]


def path_after(request: web.Request, word: str) -> list[str]:
    """The decoded segments of the path behind a word.

    Taken from the path as it was sent: a slash inside an object's name is ``%2F`` there.
    """
    segments = request.raw_path.partition("?")[0].split("/")
    return [unquote(segment) for segment in segments[segments.index(word) + 1 :]]


class Api:
    """The HTTP face of a `Storage`."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def application(self) -> web.Application:
        """The application to serve."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[answer_errors])
        routes: list[tuple[str, str, Callable[[web.Request], Awaitable[web.StreamResponse]]]] = [
            ("POST", "/storage/v1/b", self.insert_bucket),
            ("GET", "/storage/v1/b", self.list_buckets),
            ("GET", "/storage/v1/b/{bucket}", self.get_bucket),
            ("DELETE", "/storage/v1/b/{bucket}", self.delete_bucket),
            ("GET", "/storage/v1/b/{bucket}/o", self.list_objects),
            ("GET", "/storage/v1/b/{bucket}/o/{name:.+}", self.get_object),
            ("GET", "/download/storage/v1/b/{bucket}/o/{name:.+}", self.get_object),
            ("DELETE", "/storage/v1/b/{bucket}/o/{name:.+}", self.delete_object),
            ("PATCH", "/storage/v1/b/{bucket}/o/{name:.+}", self.patch_object),
            ("POST", "/storage/v1/b/{bucket}/o/{name:.+}", self.copy_object),
            ("POST", "/upload/storage/v1/b/{bucket}/o", self.upload),
            ("PUT", "/upload/storage/v1/b/{bucket}/o", self.continue_upload),
            ("DELETE", "/upload/storage/v1/b/{bucket}/o", self.cancel_upload),
            ("POST", "/batch/storage/v1", self.batch),
        ]
        for method, path, handler in routes:
            app.router.add_route(method, path, handler)
        return app

    async def insert_bucket(self, request: web.Request) -> web.Response:
        """Make an empty bucket."""
        name = json.loads(await request.text())["name"]
        if name in self.storage.buckets:
            raise ApiError(409, "You already own this bucket. Please select another name.")
        self.storage.buckets[name] = {}
        return web.json_response(bucket_resource(name))

    async def list_buckets(self, _request: web.Request) -> web.Response:
        """All buckets, on one page."""
        items = [bucket_resource(name) for name in sorted(self.storage.buckets)]
        return web.json_response({"kind": "storage#buckets", "items": items})

    async def get_bucket(self, request: web.Request) -> web.Response:
        """The description of a bucket."""
        name = request.match_info["bucket"]
        self.storage.bucket(name)
        return web.json_response(bucket_resource(name))

    async def delete_bucket(self, request: web.Request) -> web.Response:
        """Remove an empty bucket."""
        name = request.match_info["bucket"]
        if self.storage.bucket(name):
            raise ApiError(409, "The bucket you tried to delete is not empty.")
        del self.storage.buckets[name]
        return web.Response(status=204)

    async def list_objects(self, request: web.Request) -> web.Response:
        """One page of a bucket."""
        return web.json_response(self.storage.page(request.match_info["bucket"], request.query))

    async def get_object(self, request: web.Request) -> web.Response:
        """The description of an object or, with ``alt=media``, its bytes or a range of them."""
        bucket, _, name = path_after(request, "b")
        blob = self.storage.blob(bucket, name)
        if request.query.get("generation") not in {None, str(blob.generation)}:
            raise ApiError(404, f"No such object: {bucket}/{name}")
        if request.query.get("alt") != "media":
            return web.json_response(self.storage.resource(bucket, name))
        headers = {
            "Accept-Ranges": "bytes",
            "Content-Type": blob.content_type,
            "ETag": f'"{blob.generation}"',
            "X-Goog-Generation": str(blob.generation),
            "X-Goog-Hash": f"crc32c={blob.crc32c},md5={blob.md5}",
        }
        size = len(blob.data)
        try:
            part = parse_range(request.headers.get("Range"), size)
        except UnsatisfiableRangeError as error:
            raise ApiError(416, f"Request range not satisfiable: {error}") from None
        if part is None:
            return web.Response(body=blob.data, headers=headers)
        start, stop = part
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return web.Response(status=206, body=blob.data[start:stop], headers=headers)

    async def delete_object(self, request: web.Request) -> web.Response:
        """Remove an object."""
        bucket, _, name = path_after(request, "b")
        self.storage.delete(bucket, name)
        return web.Response(status=204)

    async def patch_object(self, request: web.Request) -> web.Response:
        """Change the user's metadata of an object; a null removes one."""
        bucket, _, name = path_after(request, "b")
        blob = self.storage.blob(bucket, name)
        change = json.loads(await request.text() or "{}")
        metadata = {**blob.metadata, **change.get("metadata", {})}
        metadata = {key: value for key, value in metadata.items() if value is not None}
        content_type = change.get("contentType", blob.content_type)
        self.storage.buckets[bucket][name] = replace(
            blob, metadata=metadata, content_type=content_type
        )
        return web.json_response(self.storage.resource(bucket, name))

    async def copy_object(self, request: web.Request) -> web.Response:
        """Copy, rewrite or move an object on the server."""
        bucket, _, name, *rest = path_after(request, "b")
        match rest:
            case ["moveTo" as verb, "o", new_name]:
                new_bucket = bucket
            case ["rewriteTo" | "copyTo" as verb, "b", new_bucket, "o", new_name]:
                pass
            case _:
                raise ApiError(400, f"This emulator does not know {request.path}")
        blob = self.storage.blob(bucket, name)
        resource = self.storage.put(
            new_bucket,
            new_name,
            blob.data,
            content_type=blob.content_type,
            metadata=blob.metadata,
            query=request.query,
        )
        if verb == "moveTo" and new_name != name:
            self.storage.delete(bucket, name)
        if verb != "rewriteTo":
            return web.json_response(resource)
        size = resource["size"]
        return web.json_response(
            {
                "kind": "storage#rewriteResponse",
                "done": True,
                "objectSize": size,
                "totalBytesRewritten": size,
                "resource": resource,
            }
        )

    async def upload(self, request: web.Request) -> web.Response:
        """Store an object: in one part, in two, or begin (or go on) to store it in many."""
        if "upload_id" in request.query:
            return await self.continue_upload(request)
        bucket, query = request.match_info["bucket"], request.query
        kind = query.get("uploadType")
        body = await request.read()
        self.storage.bucket(bucket)
        if kind == "media":
            return web.json_response(
                self.storage.put(
                    bucket, query["name"], body, content_type=request.content_type, query=query
                )
            )
        if kind == "multipart":
            resource, content_type, data = split_multipart(body, request.headers["Content-Type"])
            return web.json_response(
                self.storage.put(
                    bucket,
                    resource.get("name") or query["name"],
                    data,
                    content_type=resource.get("contentType") or content_type,
                    metadata=resource.get("metadata"),
                    query=query,
                )
            )
        if kind == "resumable":
            resource = json.loads(body or b"{}")
            upload_id = uuid.uuid4().hex
            self.storage.uploads[upload_id] = Upload(
                bucket,
                resource.get("name") or query["name"],
                resource.get("contentType") or request.headers.get("X-Upload-Content-Type"),
                resource.get("metadata") or {},
                dict(query),
            )
            location = request.url.with_query(uploadType="resumable", upload_id=upload_id)
            return web.Response(headers={"Location": str(location)})
        raise ApiError(400, f"Unknown uploadType {kind!r}")

    async def continue_upload(self, request: web.Request) -> web.Response:
        """Take the next piece of a resumable upload; the last one makes the object.

        ``Content-Range: bytes 0-9/*`` is a piece, ``bytes 10-19/20`` and ``bytes */20`` are the
        last. A piece that begins behind what was received so far is answered like an empty one.
        """
        upload_id = request.query["upload_id"]
        upload = self.storage.uploads.get(upload_id)
        if upload is None:
            raise ApiError(404, "No such upload.")
        body = await request.read()
        content_range = request.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", content_range)
        if match is None and content_range:
            raise ApiError(400, f"Malformed Content-Range {content_range!r}")
        start = int(match[1]) if match and match[1] else len(upload.received)
        if start <= len(upload.received):
            upload.received[start:] = body
        total = match[3] if match else str(len(upload.received))
        if total == "*" or int(total) != len(upload.received):
            reached = len(upload.received) - 1
            return web.Response(
                status=308, headers={"Range": f"bytes=0-{reached}"} if reached >= 0 else {}
            )
        del self.storage.uploads[upload_id]
        return web.json_response(
            self.storage.put(
                upload.bucket,
                upload.name,
                bytes(upload.received),
                content_type=upload.content_type,
                metadata=upload.metadata,
                query=upload.query,
            )
        )

    async def cancel_upload(self, request: web.Request) -> web.Response:
        """Forget a resumable upload; the status is the one the real service answers with."""
        self.storage.uploads.pop(request.query.get("upload_id", ""), None)
        return web.Response(status=499)

    async def batch(self, request: web.Request) -> web.Response:
        """Do the deletions of a batch one by one, and answer for each."""
        boundary = boundary_of(request.headers["Content-Type"])
        parts: list[str] = []
        for call in (await request.text()).split(f"--{boundary}")[1:-1]:
            asked = re.search(r"^DELETE \S*/b/([^/\s]+)/o/([^?\s]+)", call, re.MULTILINE)
            content_id = re.search(r"(?im)^content-id:\s*<([^>]*)>", call)
            if asked is None:
                raise ApiError(400, "Only deletions can be batched here.")
            status, body = "204 No Content", ""
            try:
                self.storage.delete(unquote(asked[1]), unquote(asked[2]))
            except ApiError as error:
                status, body = f"{error.status} Error", json.dumps(error_body(error))
            parts.append(
                "Content-Type: application/http\r\n"
                f"Content-ID: <response-{content_id[1] if content_id else len(parts)}>\r\n\r\n"
                f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}\r\n"
            )
        marker = f"batch_{uuid.uuid4().hex}"
        text = "".join(f"--{marker}\r\n{part}" for part in parts) + f"--{marker}--"
        return web.Response(
            body=text.encode(), headers={"Content-Type": f"multipart/mixed; boundary={marker}"}
        )


def bucket_resource(name: str) -> dict[str, Any]:
    """The JSON description of a bucket."""
    return {"kind": "storage#bucket", "id": name, "name": name, "location": "US"}


def error_body(error: ApiError) -> dict[str, Any]:
    """The JSON of an error."""
    detail = {"message": error.message, "domain": "global", "reason": "error"}
    return {"error": {"code": error.status, "message": error.message, "errors": [detail]}}


@web.middleware
async def answer_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Turn an `ApiError` into its answer."""
    try:
        return await handler(request)
    except ApiError as error:
        return web.json_response(error_body(error), status=error.status)


if __name__ == "__main__":
    web.run_app(
        Api(Storage()).application(),
        host=HOST,
        port=int(sys.argv[1]),
        shutdown_timeout=1,
        print=None,
    )
