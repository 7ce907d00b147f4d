"""Uploads that grow at their end: what tus and the IETF's resumable uploads have in common.

Bytes that came are kept when the body breaks off: the stream to the upload service is then ended in order, not
cancelled, by a task that outlives the client's connection. With a checksum they count all or not at all.

Both protocols let a client come back while its last connection only seems to be alive. So whatever the same
caller asks of an upload first ends the request that still appends to it, and waits until that is stored: the
offset told is the true one. This holds within one gateway; across replicas the upload service lets the newer win.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import grpc
from aiohttp import web

from services.common.channel import client_stream
from services.common.status import from_rpc_error
from services.gateway import bodies, callers, problems, quota_fields
from services.gateway.config import GatewaySettings
from services.gateway.problems import Problem
from services.gateway.uplink import HELD_SECONDS, Uplink
from twotruths.upload.v1.upload_pb2 import Upload
from twotruths.upload.v1.upload_service_pb2 import (
    DESCRIPTOR,
    AppendHeader,
    AppendUploadRequest,
    AppendUploadResponse,
    CancelUploadRequest,
    CompleteUploadRequest,
    ConcatUploadsRequest,
    GetLimitsRequest,
    GetLimitsResponse,
    GetUploadRequest,
    InitiateUploadRequest,
)
from twotruths.upload.v1.upload_service_pb2_grpc import UploadServiceStub

T = TypeVar("T")
NOTHING: Mapping[str, str] = MappingProxyType({})
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_LIMITS_SECONDS = 60.0
_SETTLE_SECONDS = 10.0
_APPEND = DESCRIPTOR.services_by_name["UploadService"].methods_by_name["AppendUpload"]
_ANY_SIZE = 1 << 62  # the upload service knows how much may come


@dataclass
class _Running:
    """A request that appends. ``reading``: until its body is over."""

    request: web.Request
    task: asyncio.Task[Any]
    reading: bool = True


class Appends:
    """The calls to the upload service, each for the caller of an HTTP request. All raise Problem."""

    def __init__(self, upload: grpc.aio.Channel, settings: GatewaySettings) -> None:
        self._upload = UploadServiceStub(upload)
        self._append_upload = client_stream(upload, _APPEND)
        self._settings = settings
        self._running: dict[tuple[str, str, str], _Running] = {}
        self._limits: tuple[float, GetLimitsResponse | None] = (0.0, None)

    async def initiate(
        self, request: web.Request, message: InitiateUploadRequest, names: Mapping[str, str] = NOTHING
    ) -> tuple[Upload, dict[str, str]]:
        """A new upload, and the header fields that tell what more the caller may make. ``names``: as
        :func:`problems.from_error`."""
        callers.fill(request, message)
        left: dict[str, str] = {}
        return await self._unary(self._upload.InitiateUpload, request, message, names, left), left

    async def concat(
        self, request: web.Request, message: ConcatUploadsRequest, names: Mapping[str, str] = NOTHING
    ) -> Upload:
        """A file of partial uploads."""
        callers.fill(request, message)
        return await self._unary(self._upload.ConcatUploads, request, message, names)

    async def get(self, request: web.Request, session_id: str) -> Upload:
        """The upload as it is when nothing of the caller is under way to it."""
        await self._end_running(request, session_id)
        return await self._unary(self._upload.GetUpload, request, GetUploadRequest(session_id=session_id))

    async def cancel(self, request: web.Request, session_id: str) -> Upload:
        """Gives the upload up."""
        await self._end_running(request, session_id)
        return await self._unary(self._upload.CancelUpload, request, CancelUploadRequest(session_id=session_id))

    async def complete(self, request: web.Request, session_id: str) -> Upload:
        """Makes the file."""
        message = CompleteUploadRequest(session_id=session_id)
        return await self._unary(self._upload.CompleteUpload, request, message)

    async def append(
        self,
        request: web.Request,
        header: AppendHeader,
        *,
        names: Mapping[str, str] = NOTHING,
        body: bool = True,
        skip: int = 0,
    ) -> Upload:
        """The upload with the request's body (without ``body``: with nothing) at its end, save the first ``skip``
        bytes, which are there already."""
        timeout = self._settings.gateway_append_timeout_seconds
        call = self._append_upload(metadata=self._caller(request), timeout=timeout)
        stream = Uplink[AppendUploadResponse](call, AppendUploadRequest.DATA_FIELD_NUMBER)
        stream.names = names
        try:
            await stream.send(AppendUploadRequest(header=header))
            if body:
                await self._send_body(request, stream, keep=not header.checksum, skip=skip)
            running = self._running.get(self._key(request, header.session_id))
            if running is not None and running.request is request:
                running.reading = False
            return (await stream.answer()).upload
        except Problem as problem:
            let_retry(problem)
            raise
        finally:
            call.cancel()

    async def _send_body(
        self,
        request: web.Request,
        stream: Uplink[AppendUploadResponse],
        *,
        keep: bool,
        skip: int,
    ) -> None:
        source = bodies.pieces(
            request,
            limit=_ANY_SIZE,
            silence=self._settings.gateway_read_timeout_seconds,
            within=self._settings.gateway_append_timeout_seconds,
            pause=HELD_SECONDS,
        )
        try:
            await stream.data(_after(source, skip) if skip else source, keep=keep)
        except Problem:
            if keep:
                with contextlib.suppress(Problem, TimeoutError):
                    async with asyncio.timeout(_SETTLE_SECONDS):
                        await stream.answer()
            raise

    async def outlasting(
        self, request: web.Request, session_id: str, work: Callable[[], Coroutine[Any, Any, T]]
    ) -> T:
        """The result of ``work`` that appends to an upload. It goes on when the client has gone: what was
        received is stored, and what is complete is completed."""
        await self._end_running(request, session_id)
        task = asyncio.create_task(work())
        key, running = self._key(request, session_id), _Running(request, task)
        self._running[key] = running
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait({task})
            raise
        finally:
            if self._running.get(key) is running:
                del self._running[key]
            if not task.done():
                task.cancel()
            elif not task.cancelled():
                task.exception()  # nobody may be left to be told

    async def limits(self) -> GetLimitsResponse | None:
        """What the upload service takes, remembered for a while; None when it does not say."""
        now = time.monotonic()
        until, known = self._limits
        if known is None or now >= until:
            with contextlib.suppress(grpc.aio.AioRpcError):
                # Asked as the gateway itself: a client may want to know before it has a token.
                known = await self._upload.GetLimits(GetLimitsRequest(), timeout=_SETTLE_SECONDS)
                self._limits = (now + _LIMITS_SECONDS, known)
        return known

    async def _end_running(self, request: web.Request, session_id: str) -> None:
        """Ends what the same caller still appends; what has all its bytes is waited for."""
        running = self._running.get(self._key(request, session_id))
        if running is None or running.request is request:
            return
        if running.reading and running.request.transport is not None:
            running.request.transport.abort()
        await asyncio.wait({running.task}, timeout=_SETTLE_SECONDS)

    def _key(self, request: web.Request, session_id: str) -> tuple[str, str, str]:
        """The upload and its caller, who may come back with another token. While nobody can say whose a token is,
        the token stands for the caller: it permits no more than ending its own requests."""
        subject = request.get(callers.SUBJECT, "")
        return session_id.lower(), subject, "" if subject else request.headers.get("Authorization", "")

    def _caller(self, request: web.Request) -> callers.Metadata:
        return callers.metadata(request, max_token=self._settings.gateway_max_token_bytes)

    async def _unary(
        self,
        rpc: Any,
        request: web.Request,
        message: Any,
        names: Mapping[str, str] = NOTHING,
        left: dict[str, str] | None = None,
    ) -> Upload:
        metadata = self._caller(request)
        call = rpc(message, metadata=metadata, timeout=self._settings.gateway_call_timeout_seconds)
        try:
            answer = await call
            if left is not None:
                left.update(quota_fields.of_answer(await call.trailing_metadata() or ()))
        except grpc.aio.AioRpcError as error:
            raise problems.from_error(from_rpc_error(error), names=names) from error
        upload: Upload = answer.upload
        return upload


async def _after(source: AsyncIterator[bytes], skip: int) -> AsyncIterator[bytes]:
    async for piece in source:
        if skip < len(piece) or not piece:
            yield piece[skip:]
        skip = max(0, skip - len(piece))


def let_retry(problem: Problem) -> None:
    """Clients of both protocols give up on 4xx and go on after 5xx; these pass."""
    if problem.reason in {"BODY_TIMEOUT", "TOO_MANY_REQUESTS", "TOO_MANY_STREAMS"}:
        problem.status = 503
        problem.headers = {"Retry-After": "1", **problem.headers}


def session_id_of(request: web.Request) -> str:
    """The upload that the path names. Raises Problem 404 for what cannot be one."""
    session_id = request.match_info["session_id"]
    if not _UUID.fullmatch(session_id):
        raise Problem(404, "UPLOAD_NOT_FOUND", "there is no such upload")
    return session_id


@asynccontextmanager
async def answering(headers: Mapping[str, str]) -> AsyncIterator[None]:
    """Adds ``headers`` to a Problem that leaves the block."""
    try:
        yield
    except Problem as problem:
        problem.headers = {**headers, **problem.headers}
        raise
