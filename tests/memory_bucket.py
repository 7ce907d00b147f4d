"""An S3 bucket in memory, at whose requests a test may hold one writer while the others go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import BinaryIO

from services.common.adapters.s3_bucket import S3Bucket
from services.common.errors import NotFound
from services.common.objects import ObjectInfo

NOW = datetime(2026, 5, 1, tzinfo=UTC)

writer: ContextVar[str] = ContextVar("writer", default="")
"""Whose requests these are, in a task and those that it makes."""


class MemoryBucket(S3Bucket):
    """Keys and bytes. Each request happens at once, but for writers that are held before it."""

    def __init__(self) -> None:
        super().__init__(None, "memory")
        self.objects: dict[str, bytes] = {}
        self._held: dict[tuple[str, str, int], tuple[asyncio.Event, asyncio.Event]] = {}
        self._requests: dict[tuple[str, str], int] = {}

    def hold(self, name: str, request: str, nth: int = 1) -> tuple[asyncio.Event, asyncio.Event]:
        """Holds the writer of this name before its nth put, list, read or delete. The first event is set when it
        is there, setting the second lets it go on."""
        events = self._held[name, request, nth] = asyncio.Event(), asyncio.Event()
        return events

    async def _pass(self, request: str) -> None:
        name = writer.get()
        self._requests[name, request] = nth = self._requests.get((name, request), 0) + 1
        if (held := self._held.get((name, request, nth))) is not None:
            held[0].set()
            await held[1].wait()

    async def put(self, key: str, body: bytes | BinaryIO, *, sha256: str = "", mime_type: str = "") -> None:
        await self._pass("put")
        self.objects[key] = body if isinstance(body, bytes) else body.read()

    async def head(self, key: str) -> ObjectInfo:
        if key not in self.objects:
            raise NotFound(key)
        return ObjectInfo(key, len(self.objects[key]), NOW)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        await self._pass("list")
        for key, body in sorted(self.objects.items()):
            if key.startswith(prefix):
                yield ObjectInfo(key, len(body), NOW)

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        await self._pass("read")
        await self.head(key)
        if piece := self.objects[key][start:end]:
            yield piece

    async def delete(self, key: str) -> None:
        await self._pass("delete")
        self.objects.pop(key, None)
