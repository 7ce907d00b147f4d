"""Sends one file in chunks over an upload session, and goes on where it stood after every broken connection.

What is stored is what the gateway says: each pass asks for ``remaining_chunks`` and sends those, several at a
time. A broken connection ends the pass, never the upload.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from mesh.client import Phone
from mesh.http import Backoff, ConnectionLost, Json
from mesh.together import together

PARALLEL = 3

OnProgress = Callable[[int], None]
"""Is told how many bytes of the file are stored."""


class Sender:
    """Sends the file at ``path`` to ``upload``, an element of upload_sessions."""

    def __init__(self, phone: Phone, upload: Json, path: Path, on_progress: OnProgress) -> None:
        self.session_id: str = upload["session_id"]
        self.dropped: int | None = None
        self.resumed: list[int] = []
        self._phone = phone
        self._url: str = upload["upload_url"]
        self._chunk_size: int = upload["chunk_size"]
        self._total: int = upload["total_chunks"]
        self._path = path
        self._on_progress = on_progress

    async def send(self, *, drop: bool = False) -> Json:
        """Sends everything and completes; the completed upload. With ``drop`` the connection is torn down in
        the middle of the middle chunk: ``dropped`` is its number, ``resumed`` what remained afterwards."""
        if drop:
            await self._send_half()
        backoff = Backoff(f"sending {self._path.name}", self._phone.http.patience)
        before: list[int] | None = None
        while remaining := await self._remaining():
            if remaining != before:
                backoff.reset()
            before = remaining
            if lost := await self._pass(remaining):
                await backoff.pause(lost)
        return await self._phone.complete_upload(self.session_id, await asyncio.to_thread(_sha256, self._path))

    async def _send_half(self) -> None:
        middle = self._total // 2
        await self._pass(list(range(middle)))
        await self._abort_within(middle)
        self.dropped = middle
        self.resumed = await self._remaining()

    async def _remaining(self) -> list[int]:
        status = await self._phone.upload_status(self.session_id)
        self._on_progress(sum(self._length(number) for number in status["uploaded_chunks"]))
        remaining: list[int] = status["remaining_chunks"]
        return remaining

    async def _pass(self, numbers: list[int]) -> ConnectionLost | None:
        """Sends these chunks; None when all are stored, else how the connection broke."""
        waiting = deque(numbers)
        lost: list[ConnectionLost] = []

        async def work() -> None:
            while waiting and not lost:
                try:
                    await self._send_chunk(waiting.popleft())
                except ConnectionLost as error:
                    lost.append(error)

        await together(work() for _ in range(min(PARALLEL, len(numbers))))
        return lost[0] if lost else None

    async def _send_chunk(self, number: int) -> None:
        data = await asyncio.to_thread(self._read, number)
        digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        answer = await self._phone.send_chunk(self._url, number, data, digest)
        self._on_progress(sum(self._length(stored) for stored in answer["uploaded_chunks"]))

    def _length(self, number: int) -> int:
        return min(self._chunk_size, self._path.stat().st_size - number * self._chunk_size)

    def _read(self, number: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek(number * self._chunk_size)
            return file.read(self._chunk_size)

    async def _abort_within(self, number: int) -> None:
        """Sends half of a chunk on a connection of its own and hangs up, as a phone that enters a tunnel."""
        data = await asyncio.to_thread(self._read, number)
        gateway = urlsplit(self._phone.http.base_url)
        assert gateway.hostname is not None
        head = (
            f"POST {self._url}/{number} HTTP/1.1\r\nHost: {gateway.netloc}\r\n"
            f"Authorization: Bearer {self._phone.token}\r\nContent-Type: application/octet-stream\r\n"
            f"X-Chunk-SHA256: {hashlib.sha256(data).hexdigest()}\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        try:
            _, writer = await asyncio.open_connection(gateway.hostname, gateway.port)
            writer.write(head.encode() + data[: len(data) // 2])
            await writer.drain()
        except OSError:
            return  # it is down already, which is what was wanted
        writer.transport.abort()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
