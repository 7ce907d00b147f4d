"""One bucket of an S3 server, over one long-lived client: requests, multipart uploads, and errors in our words.

Answers whose loss cannot be told from a failure are asked again by the client itself (three times in all): put and
delete are the same when done twice. Completing a multipart upload is not, so what became of it is looked up.
"""

from __future__ import annotations

import base64
import contextlib
import io
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from datetime import datetime, timedelta
from typing import Any, BinaryIO

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from services.common.errors import NotFound, ResourceExhausted, ServiceError, Unavailable
from services.common.objects import ObjectInfo
from services.common.settings import CommonSettings

log = logging.getLogger(__name__)

PIECE = 8 << 20
"""The least size of a multipart piece but the last, in bytes (S3 demands 5 MiB)."""

_LONGEST_PRESIGNED = timedelta(days=7)
_MOST_PIECES = 10_000
_READ = 128 << 10  # what a reader that stands still holds, beside its connection's buffer
_MISSING = {"404", "NoSuchKey", "NoSuchUpload", "NotFound"}
# What servers say when they have no room; AWS never does.
_FULL = {"507", "EntityTooLarge", "InsufficientStorage", "QuotaExceeded", "XMinioStorageFull"}
_OWNED = {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}


def _described(mime_type: str) -> dict[str, object]:
    return {"ContentType": mime_type} if mime_type else {}


def piece_size(size: int) -> int:
    """How to cut ``size`` bytes so that no upload has too many pieces."""
    return max(PIECE, -(-size // _MOST_PIECES))


@contextlib.asynccontextmanager
async def open_bucket(settings: CommonSettings) -> AsyncIterator[S3Bucket]:
    """The bucket of the settings, until the end of the block. Raises Unavailable when it is to be made and the
    server does not answer."""
    config = AioConfig(
        region_name=settings.s3_region,
        signature_version="s3v4",
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=settings.s3_connections,
        retries={"mode": "standard", "total_max_attempts": 3},
        request_checksum_calculation=settings.s3_checksums,
        response_checksum_validation=settings.s3_checksums,
        s3={
            "addressing_style": "path" if settings.s3_path_style else "auto",
            "payload_signing_enabled": settings.s3_sign_payload,
        },
    )
    opened = get_session().create_client(
        "s3",
        endpoint_url=settings.s3_endpoint_url or None,
        aws_access_key_id=settings.s3_access_key_id or None,
        aws_secret_access_key=settings.s3_secret_access_key.get_secret_value() or None,
        config=config,
    )
    async with opened as client:
        bucket = S3Bucket(client, settings.s3_bucket, send_digests=settings.s3_checksums == "when_supported")
        if settings.s3_create_bucket:
            await bucket.create(settings.s3_region)
        yield bucket


class S3Bucket:
    """Methods raise Unavailable when the server does not answer, ResourceExhausted when it is full.

    ``send_digests``: whether the SHA-256 of a body, where it is known, goes along for the server to verify;
    ``page``: how many objects are listed by one request.
    """

    def __init__(self, client: Any, name: str, *, send_digests: bool = False, page: int = 1000) -> None:
        self._client = client
        self.page = page
        self._name = name
        self._send_digests = send_digests

    async def create(self, region: str) -> None:
        """Makes the bucket unless it is there."""
        where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        try:
            await self._client.create_bucket(Bucket=self._name, **where)
        except ClientError as error:
            if error.response["Error"]["Code"] not in _OWNED:
                raise _translated(error, self._name) from error
        except BotoCoreError as error:
            raise _away(error) from error

    async def put(self, key: str, body: bytes | BinaryIO, *, sha256: str = "", mime_type: str = "") -> None:
        """Stores an object in one request. ``sha256``: the body's digest in hex, where it is known;
        ``mime_type``: what the server says when others read the object, where it is known."""
        more = _described(mime_type)
        if sha256 and self._send_digests:
            more["ChecksumSHA256"] = base64.b64encode(bytes.fromhex(sha256)).decode()
        # aiohttp warns of bytes beyond 1 MiB: it would write them in one go.
        readable = io.BytesIO(body) if isinstance(body, bytes) else body
        with s3_errors(key):
            await self._client.put_object(Bucket=self._name, Key=key, Body=readable, **more)

    async def head(self, key: str) -> ObjectInfo:
        """Raises NotFound."""
        with s3_errors(key):
            head = await self._client.head_object(Bucket=self._name, Key=key)
        return ObjectInfo(key, head["ContentLength"], head["LastModified"])

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """The bytes [start, end) in pieces of at most 128 KiB. Raises NotFound at the first."""
        if end is not None and end <= start:
            await self.head(key)
            return
        which = {} if (start, end) == (0, None) else {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        with s3_errors(key):
            try:
                answer = await self._client.get_object(Bucket=self._name, Key=key, **which)
            except ClientError as error:
                if error.response["Error"]["Code"] in {"InvalidRange", "416"}:
                    return
                raise
        # A body that is not read to its end has its connection closed, else it goes back to the pool.
        async with answer["Body"] as body:
            while True:
                with s3_errors(key):
                    piece = await body.read(_READ)
                if not piece:
                    return
                yield piece

    async def presign(self, key: str, until: datetime, now: datetime) -> tuple[str, datetime]:
        """A URL to GET the object with (the signature binds the method: no HEAD), and until when it works: not
        longer than the credentials that sign, nor than the seven days that SigV4 allows."""
        credentials = self._client._get_credentials()
        with s3_errors(key):
            if credentials is not None:
                await credentials.get_frozen_credentials()  # a role's are renewed here when they are old
            ends = getattr(credentials, "_expiry_time", None)
            until = min(until, now + _LONGEST_PRESIGNED, *([ends] if isinstance(ends, datetime) else []))
            seconds = max(1, int((until - now).total_seconds()))
            url = await self._client.generate_presigned_url(
                "get_object", Params={"Bucket": self._name, "Key": key}, ExpiresIn=seconds
            )
        return str(url), now + timedelta(seconds=seconds)

    async def delete(self, key: str) -> None:
        """Removes an object; one that is not there is no error."""
        with contextlib.suppress(NotFound), s3_errors(key):
            await self._client.delete_object(Bucket=self._name, Key=key)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """The objects whose key begins with ``prefix``, in the order of their keys, a page at a time."""
        more: dict[str, object] = {"MaxKeys": self.page}
        while True:
            with s3_errors(prefix):
                page = await self._client.list_objects_v2(Bucket=self._name, Prefix=prefix, **more)
            for item in page.get("Contents", ()):
                yield ObjectInfo(item["Key"], item["Size"], item["LastModified"])
            if not page.get("IsTruncated"):
                return
            more["ContinuationToken"] = page["NextContinuationToken"]

    @contextlib.asynccontextmanager
    async def multipart(self, key: str, *, mime_type: str = "") -> AsyncIterator[Multipart]:
        """Begins a multipart upload; given up at the end of the block unless it was completed."""
        with s3_errors(key):
            begun = await self._client.create_multipart_upload(Bucket=self._name, Key=key, **_described(mime_type))
        upload = Multipart(self, self._client, self._name, key, begun["UploadId"])
        try:
            yield upload
        finally:
            if not upload.decided:
                # What cannot be given up now is left to abort_multiparts.
                with contextlib.suppress(ServiceError):
                    await self._abort(key, begun["UploadId"])

    async def abort_multiparts(self, prefix: str, *, before: datetime) -> int:
        """Gives up the multipart uploads below ``prefix`` that were begun before then; how many they were."""
        aborted = 0
        more: dict[str, object] = {}
        while True:
            with s3_errors(prefix):
                page = await self._client.list_multipart_uploads(Bucket=self._name, Prefix=prefix, **more)
            for item in page.get("Uploads", ()):
                if item["Initiated"] < before:
                    await self._abort(item["Key"], item["UploadId"])
                    aborted += 1
            if not page.get("IsTruncated"):
                return aborted
            more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    async def _abort(self, key: str, upload_id: str) -> None:
        with contextlib.suppress(NotFound), s3_errors(key):
            await self._client.abort_multipart_upload(Bucket=self._name, Key=key, UploadId=upload_id)


class Multipart:
    """A multipart upload that is being filled, piece after piece."""

    def __init__(self, bucket: S3Bucket, client: Any, name: str, key: str, upload_id: str) -> None:
        self._bucket = bucket
        self._client = client
        self._which = {"Bucket": name, "Key": key, "UploadId": upload_id}
        self._key = key
        self._pieces: list[dict[str, object]] = []
        self.size = 0
        self.decided = False
        """Whether completing was tried: from then on the upload must not be aborted."""

    async def add(self, piece: bytes) -> None:
        """Uploads the next piece: all but the last have at least :data:`PIECE` bytes."""
        number = len(self._pieces) + 1
        with s3_errors(self._key):
            answer = await self._client.upload_part(**self._which, PartNumber=number, Body=io.BytesIO(piece))
        self._pieces.append({"PartNumber": number, "ETag": answer["ETag"]})
        self.size += len(piece)

    async def complete(self) -> ObjectInfo:
        """Makes the object of the pieces and answers what the server then has. Raises Unavailable when that is
        not the object."""
        self.decided = True
        try:
            with s3_errors(self._key):
                await self._client.complete_multipart_upload(
                    **self._which, MultipartUpload={"Parts": self._pieces}
                )
        except (NotFound, Unavailable) as error:  # perhaps only the answer was lost
            log.warning("completing %s: %s", self._key, error)
        try:
            info = await self._bucket.head(self._key)
        except NotFound:
            raise Unavailable("the object store did not complete an object", retry_after=1) from None
        if info.size != self.size:
            raise Unavailable("the object store completed an object of another size", retry_after=1)
        return info


@contextlib.contextmanager
def s3_errors(key: str) -> Iterator[None]:
    """Names what a request about ``key`` can come to."""
    try:
        yield
    except ClientError as error:
        raise _translated(error, key) from error
    except ParamValidationError:
        raise  # ours
    except (BotoCoreError, aiohttp.ClientError, TimeoutError) as error:
        raise _away(error) from error


def _translated(error: ClientError, key: str) -> ServiceError:
    code = error.response.get("Error", {}).get("Code", "")
    if code in _MISSING:
        return NotFound(f"no object {key}")
    if code in _FULL or _status(error) == 507:
        return ResourceExhausted("the object store is full", reason="STORAGE_FULL", retry_after=60)
    log.warning("the object store answered %s: %s", error.operation_name, error)
    return Unavailable("the object store does not serve", retry_after=1)


def _status(error: ClientError) -> int:
    status: int = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status


def _away(error: Exception) -> Unavailable:
    log.warning("the object store does not answer: %s", error)
    return Unavailable("the object store does not answer", retry_after=1)
