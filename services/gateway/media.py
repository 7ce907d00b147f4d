"""Bytes out: files, merged videos and what lies beside them, whole or in ranges."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from urllib.parse import quote

from aiohttp import web

from services.gateway import conditions, playlists, ranges
from services.gateway.access import Access, Readable, permission
from services.gateway.byteranges import Body, Part, multipart
from services.gateway.problems import Problem
from services.gateway.sending import Answer, Sender

# Media that a browser shows without running anything; all else is saved, not shown.
_SHOWN = re.compile(r"(video|audio)/.*|image/(jpeg|png|gif|webp|avif)|text/vtt|application/vnd\.apple\.mpegurl")
_OPENED = "default-src 'none'; media-src 'self'; img-src 'self'; style-src 'unsafe-inline'; frame-ancestors 'none'"
_MAX_NAME, _MAX_PLAIN = 6000, 255
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*")


class MediaRoutes:
    """GET and HEAD of videos, what lies beside them, and files."""

    def __init__(self, access: Access, sender: Sender, *, redirect: bool) -> None:
        self._redirect = redirect
        self._access = access
        self._sender = sender

    async def video(self, request: web.Request) -> web.StreamResponse:
        """/api/v1/media/stream/{video_file_id}. Raises Problem."""
        if self._redirect and request.method == "GET" and "download" not in request.query:
            await self._access.video(request)
            if there := await self._access.elsewhere(request):
                # The signature in it is for this client alone, and ends.
                headers = {"Location": there.streaming_url, "Cache-Control": "no-store"}
                return web.Response(status=302, headers=headers)
        return await self._serve(request, self._access.video)

    async def poster(self, request: web.Request) -> web.StreamResponse:
        """…/posters/{statement}.jpg of a video. Raises Problem."""
        return await self._serve(request, self._access.poster)

    async def sheet(self, request: web.Request) -> web.StreamResponse:
        """…/storyboard.jpg of a video. Raises Problem."""
        return await self._serve(request, self._access.sheet)

    async def rendition(self, request: web.Request) -> web.StreamResponse:
        """…/hls.mp4 of a video. Raises Problem."""
        return await self._serve(request, self._access.rendition)

    async def storyboard(self, request: web.Request) -> web.StreamResponse:
        """…/storyboard.vtt of a video. Raises Problem."""
        return await self._write(request, "text/vtt")

    async def playlist(self, request: web.Request) -> web.StreamResponse:
        """…/hls.m3u8 of a video. Raises Problem."""
        return await self._write(request, "application/vnd.apple.mpegurl")

    async def _write(self, request: web.Request, mime_type: str) -> web.StreamResponse:
        """A text about a video, which carries on the permission that it was asked for with."""
        video = await self._access.described(request)
        there, query = await self._access.elsewhere(request), permission(request)
        if mime_type == "text/vtt":
            sheet = there.storyboard.image_url if there else playlists.SHEET + query
            body = playlists.storyboard(video, sheet).encode()
        else:
            rendition = there.rendition_url if there else playlists.RENDITION + query
            body = playlists.playlist(video, rendition).encode()
        written = Readable(
            object_key="",
            size=len(body),
            sha256=hashlib.sha256(body).hexdigest(),
            mime_type=mime_type,
            filename=request.path.rpartition("/")[2],
            modified_at=datetime.fromtimestamp(video.created_at.seconds, UTC),
        )
        headers = dict(_headers(written, download=False)) | {"Accept-Ranges": "none"}
        if _unchanged(request, written):
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, headers=headers)

    async def file(self, request: web.Request) -> web.StreamResponse:
        """/api/v1/files/{file_id}. Raises Problem."""
        return await self._serve(request, self._access.file)

    async def _serve(
        self, request: web.Request, find: Callable[[web.Request], Awaitable[Readable]]
    ) -> web.StreamResponse:
        readable = await find(request)
        headers = dict(_headers(readable, download=request.query.get("download") in {"1", "true"}))
        if _unchanged(request, readable):
            return web.Response(status=304, headers=headers)
        status, body = _body(_ranges(request, readable), readable, headers)
        answer = Answer(status=status, headers=headers)
        answer.content_length = body.length
        if request.method == "HEAD":
            await answer.prepare(request)
        else:
            await self._sender.send(request, answer, readable.object_key, readable.size, body)
        return answer


def _unchanged(request: web.Request, readable: Readable) -> bool:
    """Whether the client has it already. Raises Problem: 412."""
    status = conditions.evaluate(request.headers, readable.sha256, readable.modified_at)
    if status == 412:
        raise Problem(412, "PRECONDITION_FAILED", "the file is not the one that the request names")
    return status == 304


def _ranges(request: web.Request, readable: Readable) -> list[ranges.ByteRange] | None:
    """The ranges to send, None for the whole. Ranges are defined for GET alone (RFC 9110 section 14.2)."""
    asked = request.headers.getall("Range", [])
    if request.method != "GET" or len(asked) != 1:
        return None
    if not conditions.range_holds(request.headers.get("If-Range"), readable.sha256, readable.modified_at):
        return None
    try:
        return ranges.parse(asked[0], readable.size)
    except ranges.Unsatisfiable:
        raise Problem(
            416,
            "RANGE_NOT_SATISFIABLE",
            f"the file has {readable.size} bytes",
            headers={"Content-Range": f"bytes */{readable.size}", "Accept-Ranges": "bytes"},
        ) from None


def _body(found: list[ranges.ByteRange] | None, readable: Readable, headers: dict[str, str]) -> tuple[int, Body]:
    """Status and body; ``headers`` get what belongs to them. One range is never a multipart (section 15.3.7.2)."""
    if found is None:
        return 200, Body([Part(0, readable.size)])
    if len(found) == 1:
        headers["Content-Range"] = found[0].content_range
        return 206, Body([Part(found[0].start, found[0].end)])
    body, headers["Content-Type"] = multipart(found, headers["Content-Type"])
    return 206, body


@functools.lru_cache(1024)  # a player seeks through one file with dozens of requests
def _headers(readable: Readable, *, download: bool) -> Mapping[str, str]:
    kind = readable.mime_type.partition(";")[0].strip().lower()
    shown = _SHOWN.fullmatch(kind) and not download
    return {
        "Content-Type": kind if _MEDIA_TYPE.fullmatch(kind) else "application/octet-stream",
        "Content-Disposition": disposition("inline" if shown else "attachment", readable.filename),
        "Accept-Ranges": "bytes",
        "ETag": f'"{readable.sha256}"',
        "Last-Modified": format_datetime(readable.modified_at, usegmt=True),
        # What is under an id never changes; who may see it does.
        "Cache-Control": "private, max-age=60",
        "Vary": "Authorization",
        # Whoever has the permission may show it on a page of another site.
        "Cross-Origin-Resource-Policy": "cross-origin",
        # A browser that opens the URL itself puts the media into a document of its own, which may load it.
        **({"Content-Security-Policy": _OPENED} if shown else {}),
    }


def disposition(kind: str, filename: str) -> str:
    """Content-Disposition (RFC 6266): a name in ASCII for old clients, and the true one as RFC 8187 writes it.
    Both are cut where clients would refuse the header for its length."""
    name = re.sub(r"[\x00-\x1f\x7f/\\]", "_", filename)
    plain = re.sub(r'[^\x20-\x7e]|["%]', "_", name)
    if plain == name:
        return f'{kind}; filename="{name[:_MAX_NAME]}"'
    quoted = quote(name, safe="", errors="replace")
    while len(quoted) > _MAX_NAME:  # by whole characters; one takes at most twelve
        name = name[: len(name) - max(1, (len(quoted) - _MAX_NAME) // 12)]
        quoted = quote(name, safe="", errors="replace")
    return f"{kind}; filename=\"{plain[:_MAX_PLAIN]}\"; filename*=UTF-8''{quoted}"
