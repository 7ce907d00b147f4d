"""What the routes of tus and of the IETF's resumable uploads have in common: their paths and methods, whose
handlers are the protocol's, and what a field of an append and the end of an upload are called."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from services.gateway.appends import NOTHING, Appends, session_id_of
from services.gateway.problems import Problem
from twotruths.upload.v1 import upload_pb2
from twotruths.upload.v1.upload_pb2 import Upload

Handler = Callable[[web.Request], Awaitable[web.Response]]
_GONE = frozenset(
    {upload_pb2.UPLOAD_STATUS_FAILED, upload_pb2.UPLOAD_STATUS_CANCELLED, upload_pb2.UPLOAD_STATUS_EXPIRED}
)


class ResumableRoutes(ABC):
    """The collection, which makes uploads, and each upload. Everything raises Problem."""

    def __init__(self, appends: Appends) -> None:
        self._appends = appends

    async def collection(self, request: web.Request) -> web.Response:
        """The protocol's URL."""
        return await self._answer(request, {"OPTIONS": self._options, "POST": self._create})

    async def upload(self, request: web.Request) -> web.Response:
        """{session_id} below it."""
        handlers: dict[str, Handler] = {
            "OPTIONS": self._options,
            "HEAD": self._head,
            "PATCH": self._patch,
            "DELETE": self._delete,
        }
        return await self._answer(request, handlers)

    @abstractmethod
    async def _answer(self, request: web.Request, handlers: Mapping[str, Handler]) -> web.Response:
        """The answer of the handler for the request, with what the protocol has around all of them."""

    @abstractmethod
    async def _options(self, request: web.Request) -> web.Response:
        """What is served."""

    @abstractmethod
    async def _create(self, request: web.Request) -> web.Response:
        """Makes an upload."""

    @abstractmethod
    async def _head(self, request: web.Request) -> web.Response:
        """Tells how far it is."""

    @abstractmethod
    async def _patch(self, request: web.Request) -> web.Response:
        """Appends to it."""

    async def _delete(self, request: web.Request) -> web.Response:
        """Gives it up."""
        await self._appends.cancel(request, session_id_of(request))
        return web.Response(status=204)


def handler_of(method: str, handlers: Mapping[str, Handler]) -> Handler:
    """The handler for a method. Raises Problem 405."""
    handler = handlers.get(method)
    if handler is None:
        headers = {"Allow": ", ".join(handlers)}
        raise Problem(405, "METHOD_NOT_ALLOWED", f"{method[:16]} is not served here", headers=headers)
    return handler


def append_names(checksum: str) -> dict[str, str]:
    """What the fields of an append are called in a request whose ``checksum`` header holds the digest."""
    return {
        "checksum": checksum,
        "sha256": checksum,
        "offset": "Upload-Offset",
        "upload_length": "Upload-Length",
    }


def check_alive(upload: Upload, *, refused: Mapping[str, str] = NOTHING) -> None:
    """Raises Problem 410 for an upload that never becomes a file, with the headers ``refused`` when that is
    because its file was refused."""
    if upload.status in _GONE:
        word = upload_pb2.UploadStatus.Name(upload.status).removeprefix("UPLOAD_STATUS_")
        detail = upload.error_message or f"the upload is {word.lower()}; begin again"
        headers = refused if upload.status == upload_pb2.UPLOAD_STATUS_FAILED else {}
        raise Problem(410, f"UPLOAD_{word}", detail, headers=headers)
