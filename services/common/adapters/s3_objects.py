"""The object store in an S3 bucket: object ``a/b`` is the key ``objects/a/b``.

An object appears when its put or its multipart upload is completed, so it is whole or not there; S3 answers that
only once it is durable. What a killed process had begun is no object; :meth:`S3ObjectStore.tidy` gives it up.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import datetime
from pathlib import Path, PurePosixPath

from services.common.adapters.s3_bucket import S3Bucket, piece_size
from services.common.objects import ObjectInfo, require_key

PREFIX = "objects/"
# What S3 and a CDN in front of it say of an object that players fetch from there.
_MIME_TYPES = {".mp4": "video/mp4", ".jpg": "image/jpeg"}


def object_name(key: str) -> str:
    """The bucket's key of an object. Raises ValueError for what is no object key."""
    return PREFIX + require_key(key)


class S3ObjectStore:
    """Implements :class:`services.common.objects.ObjectStore` in ``bucket``."""

    def __init__(self, bucket: S3Bucket) -> None:
        self._bucket = bucket

    async def put_file(self, key: str, source: Path) -> ObjectInfo:
        name, mime_type = object_name(key), _MIME_TYPES.get(PurePosixPath(key).suffix, "")
        with await asyncio.to_thread(source.open, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            step = piece_size(size)
            if size <= step:
                await self._bucket.put(name, file, mime_type=mime_type)
                return _info(await self._bucket.head(name))
            async with self._bucket.multipart(name, mime_type=mime_type) as upload:
                while piece := await asyncio.to_thread(file.read, step):
                    await upload.add(piece)
                return _info(await upload.complete())

    async def stat(self, key: str) -> ObjectInfo:
        return _info(await self._bucket.head(object_name(key)))

    def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        return self._bucket.read(object_name(key), start, end)

    async def delete(self, key: str) -> None:
        await self._bucket.delete(object_name(key))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        async for info in self._bucket.list(PREFIX + prefix):
            yield _info(info)

    def local_path(self, key: str) -> Path | None:
        require_key(key)
        return None

    async def tidy(self, before: datetime) -> int:
        """Gives up multipart uploads that were begun before then; how many they were."""
        return await self._bucket.abort_multiparts(PREFIX, before=before)


def _info(stored: ObjectInfo) -> ObjectInfo:
    return ObjectInfo(stored.key.removeprefix(PREFIX), stored.size, stored.modified_at)
