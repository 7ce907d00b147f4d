"""A player's phone: everything it does with the gateway, call by call, in the JSON of the HTTP contract."""

from __future__ import annotations

import asyncio
import json
import mimetypes
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from mesh import events
from mesh.http import Backoff, ConnectionLost, HttpClient, Json, raise_for_refusal

FINAL = frozenset({"completed", "failed", "cancelled"})
_MERGES = "/api/v1/challenge-videos"
_POLL_EVERY = 1.0
_EVENTS_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=30)


@dataclass(frozen=True, slots=True)
class Clip:
    """A recorded statement on the phone's disk. ``duration`` in seconds, as the phone believes; 0 is unknown."""

    path: Path
    duration: float = 0.0

    @property
    def mime_type(self) -> str:
        guessed = mimetypes.guess_type(self.path.name)[0] or ""
        return guessed if guessed.startswith("video/") else "video/mp4"


@dataclass(frozen=True, slots=True)
class Piece:
    """An answer to a range request."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Phone:
    """One player's phone, which knows one gateway or several. Methods raise Refused when the gateway says no and
    MeshError when patience ends."""

    def __init__(
        self, session: aiohttp.ClientSession, gateway_urls: Sequence[str], token: str, *, patience: float = 60.0
    ) -> None:
        self._session = session
        self.token = token
        self.http = HttpClient(session, gateway_urls, token, patience=patience)

    async def initiate(self, clips: Sequence[Clip], title: str, canvas: tuple[int, int] | None = None) -> Json:
        """Makes a merge session with an upload for each clip."""
        body: Json = {
            "video_count": len(clips),
            "video_filenames": [clip.path.name for clip in clips],
            "video_file_sizes": [clip.path.stat().st_size for clip in clips],
            "video_durations": [clip.duration for clip in clips],
            "video_mime_types": [clip.mime_type for clip in clips],
            "challenge_title": title,
            "request_id": uuid.uuid4().hex,
        }
        if canvas:
            body["canvas"] = {"width": canvas[0], "height": canvas[1]}
        return await self.http.call("POST", f"{_MERGES}/upload-for-merge/initiate", body)

    async def upload_status(self, session_id: str) -> Json:
        return await self.http.call("GET", f"{_MERGES}/upload/{session_id}/status")

    async def send_chunk(self, upload_url: str, number: int, data: bytes, digest: str) -> Json:
        """One try to send a chunk, in the multipart form of the app. Raises Refused or ConnectionLost."""
        form = aiohttp.FormData()
        form.add_field("chunk_hash", digest)
        form.add_field("file", data, filename="chunk", content_type="application/octet-stream")
        return await self.http.attempt("POST", f"{upload_url}/{number}", data=form)

    async def complete_upload(self, session_id: str, file_hash: str) -> Json:
        return await self.http.call("POST", f"{_MERGES}/upload/{session_id}/complete", {"file_hash": file_hash})

    async def merge_status(self, merge_session_id: str) -> Json:
        return await self.http.call("GET", f"{_MERGES}/merge-session/{merge_session_id}/status")

    async def follow_merge(self, merge_session_id: str) -> AsyncIterator[Json]:
        """The session now and whenever it changes, until it is final: by events (SSE), and by asking when
        events do not come."""
        while True:
            updates = self._events(f"{_MERGES}/merge-session/{merge_session_id}/events")
            with suppress(ConnectionLost):
                async with aclosing(updates):
                    async for session in updates:
                        yield session
                        if session["overall_status"] in FINAL:
                            return
            session = await self.merge_status(merge_session_id)
            yield session
            if session["overall_status"] in FINAL:
                return
            await asyncio.sleep(_POLL_EVERY)

    async def _events(self, path: str) -> AsyncGenerator[Json, None]:
        """The sessions that the event stream sends until it ends. Raises Refused or ConnectionLost."""
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "text/event-stream"}
        gateway = self.http.base_url
        try:
            async with self._session.get(gateway + path, headers=headers, timeout=_EVENTS_TIMEOUT) as response:
                await raise_for_refusal(f"GET {path}", response)
                async for event in events.parse(response.content):
                    if event.name != "message":  # "end", or "error" with a problem: asking will tell
                        return
                    yield json.loads(event.data)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            self.http.gone(gateway)
            raise ConnectionLost(f"{type(error).__name__}: {error}") from error

    async def create_challenge(self, title: str, merged_video: Json, lie: int) -> Json:
        """Makes a draft from the ``merged_video`` of a session's status."""
        metadata = ("total_duration", "segments", "video_file_id", "compression_applied")
        body = {
            "title": title,
            "statements": [
                {"media_file_id": merged_video["video_file_id"], "duration_seconds": segment["duration"]}
                for segment in merged_video["segments"]
            ],
            "lie_statement_index": lie,
            "is_merged_video": True,
            "merged_video_metadata": {name: merged_video[name] for name in metadata if name in merged_video},
            "request_id": uuid.uuid4().hex,
        }
        return await self.http.call("POST", "/api/v1/challenges", body)

    async def publish(self, challenge_id: str) -> Json:
        return await self.http.call("POST", f"/api/v1/challenges/{challenge_id}/publish", {})

    async def challenge(self, challenge_id: str) -> Json:
        return await self.http.call("GET", f"/api/v1/challenges/{challenge_id}")

    async def segments(self, challenge_id: str) -> Json:
        return await self.http.call("GET", f"/api/v1/challenges/{challenge_id}/segments")

    async def guess(self, challenge_id: str, statement_index: int) -> Json:
        body = {"statement_index": statement_index}
        return await self.http.call("POST", f"/api/v1/challenges/{challenge_id}/guess", body)

    async def playback(self, video_file_id: str) -> Json:
        """Where to stream a video from."""
        return await self.http.call("GET", f"/api/v1/media/optimized/{video_file_id}?device_type=mobile")

    async def read_range(self, path: str, wanted: str) -> Piece:
        """The answer to ``Range: <wanted>``, for example "bytes=0-99"."""
        backoff = Backoff(f"GET {path}", self.http.patience)
        while True:
            try:
                piece: Piece = await self.http.fetch("GET", path, _piece, headers={"Range": wanted})
            except ConnectionLost as lost:
                await backoff.pause(lost)
            else:
                return piece


def _piece(response: aiohttp.ClientResponse, body: bytes) -> Piece:
    return Piece(response.status, response.headers, body)
