"""What two upload services that share a bucket do to each other's objects."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import BinaryIO

from services.common.adapters.s3_bucket import S3Bucket
from services.common.objects import ObjectInfo
from services.upload.adapters.s3_folder import Draft, S3Folder

NOW = datetime(2026, 5, 1, tzinfo=UTC)


class MeetingBucket(S3Bucket):
    """A bucket in memory, in which ``writers`` writers have all put before one goes on."""

    def __init__(self, writers: int) -> None:
        super().__init__(None, "memory")
        self.objects: dict[str, bytes] = {}
        self._all = asyncio.Barrier(writers)

    async def put(self, key: str, body: bytes | BinaryIO, *, sha256: str = "") -> None:
        self.objects[key] = body if isinstance(body, bytes) else body.read()
        await self._all.wait()

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        for key, body in sorted(self.objects.items()):
            if key.startswith(prefix):
                yield ObjectInfo(key, len(body), NOW)

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:  # type: ignore[override]  # closed by nobody
        yield self.objects[key][start:end]

    async def delete(self, key: str) -> None:
        self.objects.pop(key, None)


async def test_of_several_that_store_the_same_tail_at_once_one_tail_stays() -> None:
    bucket = MeetingBucket(3)
    drafts = [Draft(0, io.BytesIO(b"tail"), 4) for _ in range(3)]
    assert await asyncio.gather(*(S3Folder(bucket, "u").add(draft) for draft in drafts)) == [False] * 3
    assert list(bucket.objects.values()) == [b"tail"]
