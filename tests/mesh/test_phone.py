"""The phone against a gateway that misbehaves as gateways on bad networks do."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from mesh.client import Phone
from mesh.errors import MeshError
from mesh.http import Json, Refused
from mesh.running import find_running
from mesh.sender import Sender
from mesh.state import MeshInfo, StateDirectory

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
NOBODY = "http://127.0.0.1:9"
MERGE = "/api/v1/challenge-videos/merge-session/m"
UPLOAD = "/api/v1/challenge-videos/upload/u"


@asynccontextmanager
async def phone(
    routes: dict[str, Handler], patience: float = 10.0, *, first: Sequence[str] = ()
) -> AsyncIterator[Phone]:
    """A phone that knows the gateways ``first``, and after them the one of the routes."""
    app = web.Application()
    for route, handler in routes.items():
        method, path = route.split(" ")
        app.router.add_route(method, path, handler)
    async with TestServer(app) as server, aiohttp.ClientSession() as http:
        yield Phone(http, [*first, str(server.make_url("")).rstrip("/")], "token", patience=patience)


def session(status: str) -> Json:
    return {"overall_status": status, "overall_progress_percent": 0}


async def test_a_call_is_repeated_until_the_gateway_is_back() -> None:
    answers = iter([503, 502, 504, 200])

    async def status(_: web.Request) -> web.Response:
        return web.json_response(session("queued"), status=next(answers), headers={"Retry-After": "0"})

    async with phone({f"GET {MERGE}/status": status}) as alice:
        assert (await alice.merge_status("m"))["overall_status"] == "queued"


async def test_patience_ends_with_the_last_reason() -> None:
    async def status(_: web.Request) -> web.Response:
        return web.json_response({"detail": "the broker is away"}, status=503)

    async with phone({f"GET {MERGE}/status": status}, patience=0.3) as alice:
        with pytest.raises(MeshError, match=r"was tried for 0\.3 s: .* 503: the broker is away"):
            await alice.merge_status("m")


async def test_a_refusal_is_final_and_says_what_the_problem_says() -> None:
    calls = []

    async def publish(request: web.Request) -> web.Response:
        calls.append(request.headers["Authorization"])
        return web.json_response({"title": "Not Found", "detail": "no such challenge"}, status=404)

    async with phone({"POST /api/v1/challenges/c/publish": publish}) as alice:
        with pytest.raises(Refused, match="refused with 404: no such challenge"):
            await alice.publish("c")
    assert calls == ["Bearer token"]


async def test_a_merge_is_followed_by_asking_when_events_break_off() -> None:
    async def events(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(f": ping\n\nevent: message\ndata: {json.dumps(session('uploading'))}\n\n".encode())
        await response.write(b'data: {"overall_status": "proc')
        assert request.transport is not None
        request.transport.abort()
        return response

    async def status(_: web.Request) -> web.Response:
        return web.json_response(session("completed"))

    async with phone({f"GET {MERGE}/events": events, f"GET {MERGE}/status": status}) as alice:
        seen = [update["overall_status"] async for update in alice.follow_merge("m")]
    assert seen == ["uploading", "completed"]


class Uploads:
    """Takes chunks of one upload, breaks one connection by itself and counts what came how often."""

    def __init__(self, content: bytes, chunk_size: int) -> None:
        self.content = content
        self.chunk_size = chunk_size
        self.total = -(-len(content) // chunk_size)
        self.chunks: dict[int, bytes] = {}
        self.halves: list[int] = []
        self.to_break = {1}
        self.received: list[int] = []
        self.file_hash = ""

    def session(self) -> Json:
        url = UPLOAD + "/chunk"
        return {"session_id": "u", "upload_url": url, "chunk_size": self.chunk_size, "total_chunks": self.total}

    def status(self) -> Json:
        remaining = [number for number in range(self.total) if number not in self.chunks]
        return {"uploaded_chunks": sorted(self.chunks), "remaining_chunks": remaining}

    async def get_status(self, _: web.Request) -> web.Response:
        return web.json_response(self.status())

    async def put_chunk(self, request: web.Request) -> web.Response:
        number = int(request.match_info["n"])
        if request.content_type != "multipart/form-data":
            try:
                await request.read()
            except (web.RequestPayloadError, ConnectionResetError):
                self.halves.append(number)
                raise
        form = await request.post()
        if number in self.to_break:
            self.to_break.remove(number)
            assert request.transport is not None
            request.transport.abort()
            raise ConnectionResetError
        field = form["file"]
        assert isinstance(field, web.FileField)
        data = field.file.read()
        assert form["chunk_hash"] == hashlib.sha256(data).hexdigest()
        self.received.append(number)
        self.chunks[number] = data
        return web.json_response(self.status())

    async def complete(self, request: web.Request) -> web.Response:
        self.file_hash = (await request.json())["file_hash"]
        return web.json_response({"status": "completed"})

    def routes(self) -> dict[str, Handler]:
        return {
            f"GET {UPLOAD}/status": self.get_status,
            f"POST {UPLOAD}/chunk/{{n}}": self.put_chunk,
            f"POST {UPLOAD}/complete": self.complete,
        }


async def test_an_upload_goes_on_from_remaining_chunks_and_sends_nothing_twice(tmp_path: Path) -> None:
    content = bytes(range(256)) * 41
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    uploads = Uploads(content, 1000)
    told: list[int] = []
    async with phone(uploads.routes()) as alice:
        sender = Sender(alice, uploads.session(), path, told.append)
        assert (await sender.send(drop=True))["status"] == "completed"
    assert sender.dropped == 5
    assert {1, 5} <= set(sender.resumed)
    assert sorted(uploads.received) == list(range(uploads.total))
    assert b"".join(uploads.chunks[number] for number in range(uploads.total)) == content
    assert uploads.file_hash == hashlib.sha256(content).hexdigest()
    assert told[-1] == len(content)


async def test_another_gateway_is_asked_when_one_does_not_answer() -> None:
    async def status(_: web.Request) -> web.Response:
        return web.json_response(session("queued"))

    async with phone({f"GET {MERGE}/status": status}, first=[NOBODY]) as alice:
        assert (await alice.merge_status("m"))["overall_status"] == "queued"
        assert alice.http.base_url != NOBODY


async def test_a_mesh_is_found_as_long_as_one_of_its_gateways_answers(tmp_path: Path) -> None:
    async def health(_: web.Request) -> web.Response:
        return web.json_response({})

    state = StateDirectory(tmp_path)
    async with phone({"GET /api/v1/health": health}) as alice:
        urls = [NOBODY, alice.http.base_url]
        info = MeshInfo(os.getpid(), healthy=True, gateway_url=urls[0], nats_url="", gateway_urls=urls)
        state.write(info)
        assert await find_running(state) == info
