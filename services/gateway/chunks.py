"""Chunk bodies: streamed from HTTP into UploadService.UploadChunks in pieces, never held whole.

A chunk ends with a message of its own on the stream, sent only when its HTTP body was whole, so the upload
service never takes a body that was cut short for a chunk; every other way out cancels the call. Where its digest
came first that message is spared: bytes that have the digest are the chunk, however the call ended.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
from aiohttp import web

from services.common.channel import client_stream
from services.gateway import bodies, callers, digests, encode
from services.gateway.config import GatewaySettings
from services.gateway.multipart import MultipartError, MultipartReader, boundary_of
from services.gateway.problems import FieldError, invalid
from services.gateway.uplink import Uplink
from twotruths.upload.v1.upload_service_pb2 import (
    DESCRIPTOR,
    ChunkEnd,
    ChunkHeader,
    UploadChunksRequest,
    UploadChunksResponse,
)

_METHOD = DESCRIPTOR.services_by_name["UploadService"].methods_by_name["UploadChunks"]
_MAX_FIELD = 1024
_FROM_UPLOAD = (
    "session_id",
    "merge_session_id",
    "video_index",
    "uploaded_chunks",
    "remaining_chunks",
    "progress_percent",
)


class ChunkRoutes:
    """POST {upload_url}/{n} and {upload_url}?chunk_number=n."""

    def __init__(self, upload: grpc.aio.Channel, settings: GatewaySettings) -> None:
        self._upload_chunks = client_stream(upload, _METHOD)
        self._settings = settings

    async def post(self, request: web.Request) -> web.Response:
        """Stores one chunk. Raises Problem."""
        metadata = callers.metadata(request, max_token=self._settings.gateway_max_token_bytes)
        number = _chunk_number(request)
        source = bodies.pieces(
            request,
            limit=self._settings.gateway_max_chunk_bytes,
            silence=self._settings.gateway_read_timeout_seconds,
            within=self._settings.gateway_chunk_timeout_seconds,
        )
        call = self._upload_chunks(metadata=metadata, timeout=self._settings.gateway_chunk_timeout_seconds)
        stream = _ChunkStream(call, request.match_info["session_id"], number)
        try:
            if request.content_type == bodies.MULTIPART:
                await _send_form(request, source, stream)
            else:
                stream.names = {"data": "", "sha256": digests.header_of(request)}
                digest = digests.from_headers(request)
                await stream.begin(digest)
                await stream.data(source)
                if not digest:
                    await stream.end("")
            response = await stream.answer()
        finally:
            call.cancel()
        return web.Response(body=encode.dumps(_answer(response)), content_type=bodies.JSON)


class _ChunkStream(Uplink[UploadChunksResponse]):
    """One chunk on its way: header, data and mostly an end."""

    def __init__(self, call: Any, session_id: str, number: int) -> None:
        super().__init__(call, UploadChunksRequest.DATA_FIELD_NUMBER)
        self._session_id = session_id
        self._number = number

    async def begin(self, sha256: str) -> None:
        header = ChunkHeader(session_id=self._session_id, chunk_number=self._number, sha256=sha256)
        await self.send(UploadChunksRequest(header=header))

    async def end(self, sha256: str) -> None:
        await self.send(UploadChunksRequest(end=ChunkEnd(sha256=sha256)))


async def _send_form(request: web.Request, source: AsyncIterator[bytes], stream: _ChunkStream) -> None:
    """The file of a form, with its digest in ``chunk_hash`` before or after it, or in X-Chunk-SHA256. What is
    wrong with a form may come behind the file, so the bytes count only with the message that ends them."""
    digest, sent = "", False
    stream.names = {"data": "file", "sha256": "chunk_hash"}
    if "X-Chunk-SHA256" in request.headers:
        digest = digests.from_hex(request.headers["X-Chunk-SHA256"], "/X-Chunk-SHA256")
        stream.names = {"data": "file", "sha256": "X-Chunk-SHA256"}
    try:
        reader = MultipartReader(source, boundary_of(request.headers["Content-Type"]))
        while (part := await reader.next_part()) is not None:
            if part.name == "file" and not sent:
                sent = True
                await stream.begin("")
                await stream.data(reader.pieces())
            elif part.name == "file":
                raise invalid([FieldError("/file", "is given more than once")])
            elif part.name == "chunk_hash":
                given = digests.from_hex(await _text(reader), "/chunk_hash")
                if digest not in {"", given}:
                    raise invalid([FieldError("/chunk_hash", "is not the digest given before")])
                digest = given
            else:
                await _text(reader)  # the phone app may send fields that nobody reads
    except MultipartError as error:
        raise bodies.malformed(error) from error
    if not sent:
        raise invalid([FieldError("/file", "is missing")])
    await stream.end(digest)


async def _text(reader: MultipartReader) -> str:
    data = bytearray()
    async for piece in reader.pieces():
        data += piece
        if len(data) > _MAX_FIELD:
            raise MultipartError(f"a field has more than {_MAX_FIELD} bytes")
    return data.decode(errors="replace")


def _chunk_number(request: web.Request) -> int:
    given = [request.match_info["chunk_number"]] if "chunk_number" in request.match_info else []
    given = given or [value for name, value in bodies.query_pairs(request) if name == "chunk_number"]
    if not given:
        raise invalid([FieldError("/chunk_number", "is missing")])
    if len(given) > 1:
        raise invalid([FieldError("/chunk_number", "is given more than once")])
    text = given[0]
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < 2**31):
        raise invalid([FieldError("/chunk_number", "must be an integer from 0")])
    return int(text)


def _answer(response: UploadChunksResponse) -> dict[str, Any]:
    upload = encode.to_json(response.upload)
    chunk = encode.to_json(response.chunks[0])
    return {name: upload[name] for name in _FROM_UPLOAD} | {
        "chunk_number": chunk["chunk_number"],
        "status": chunk["status"],
        "chunk_hash": chunk["sha256"],
    }
