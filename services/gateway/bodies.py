"""Reading request bodies: bounded, with a limit on silence, and never taken for whole when cut short."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from urllib.parse import parse_qsl

import aiohttp
from aiohttp import web
from google.protobuf.message import Message

from services.gateway.decode import Decoder
from services.gateway.interim import send_100
from services.gateway.jsontext import parse_json
from services.gateway.multipart import MultipartError, MultipartReader, boundary_of
from services.gateway.problems import Problem

FORM, MULTIPART, JSON = "application/x-www-form-urlencoded", "multipart/form-data", "application/json"
_MAX_PAIRS = 1000


async def pieces(
    request: web.Request, *, limit: int, silence: float, within: float, pause: float = math.inf
) -> AsyncIterator[bytes]:
    """The body as it arrives, and b"" when nothing came for ``pause`` seconds. Raises Problem: 413 over ``limit``
    bytes, 408 after ``silence`` seconds or when it is not whole ``within`` seconds, 415 for a content coding, 400
    (BODY_CUT_SHORT) when the client stopped half-way."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem(
            415,
            "UNSUPPORTED_ENCODING",
            "send the body as it is, not compressed",
            headers={"Accept-Encoding": "identity"},
        )
    too_large = Problem(413, "BODY_TOO_LARGE", f"the body may have at most {limit} bytes")
    if (request.content_length or 0) > limit:
        raise too_large
    await send_100(request)
    total, now = 0, asyncio.get_running_loop().time
    deadline, heard = now() + within, now()
    try:
        while True:
            end = min(deadline, heard + silence)
            try:
                async with asyncio.timeout_at(min(end, now() + pause)):
                    data = await request.content.readany()
            except TimeoutError:
                if now() >= end:
                    raise
                yield b""
                continue
            if not data:
                return
            total, heard = total + len(data), now()
            if total > limit:
                raise too_large
            yield data
    except TimeoutError:
        raise Problem(
            408, "BODY_TIMEOUT", "the body did not arrive in time", headers={"Connection": "close"}
        ) from None
    except (aiohttp.ClientError, web.RequestPayloadError, ConnectionError) as error:
        raise Problem(400, "BODY_CUT_SHORT", "the body ended before it was whole") from error


def query_pairs(request: web.Request) -> list[tuple[str, str]]:
    """The query's names and values. Raises Problem 400."""
    return _pairs(request.rel_url.raw_query_string, "the query")


def _pairs(text: str, what: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MAX_PAIRS)
    except UnicodeDecodeError:
        raise Problem(400, "MALFORMED_FORM", f"{what} is not UTF-8") from None
    except ValueError:
        raise Problem(400, "MALFORMED_FORM", f"{what} has more than {_MAX_PAIRS} fields") from None


async def decode_body(
    request: web.Request,
    message: Message,
    decoder: Decoder,
    *,
    source: AsyncIterator[bytes],
    skip: frozenset[str],
) -> None:
    """Fills ``message`` from the JSON or form body that comes from ``source``; an empty one changes nothing.
    Raises Problem."""
    kind = request.content_type
    if kind == MULTIPART:
        decoder.pairs(message, await _multipart(request, source), form=True, skip=skip)
        return
    data = b"".join([piece async for piece in source])
    if not data:
        return
    if kind not in {FORM, JSON} or (request.charset or "utf-8").lower() not in {"utf-8", "utf8", "us-ascii"}:
        raise unsupported(f"{JSON}, {FORM}, {MULTIPART}")
    if kind == JSON:
        decoder.json(message, parse_json(data), skip=skip)
        return
    try:
        decoder.pairs(message, _pairs(data.decode(), "the form"), form=True, skip=skip)
    except UnicodeDecodeError:
        raise Problem(400, "MALFORMED_FORM", "the form is not UTF-8") from None


async def _multipart(request: web.Request, source: AsyncIterator[bytes]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    try:
        reader = MultipartReader(source, boundary_of(request.headers["Content-Type"]))
        while (part := await reader.next_part()) is not None:
            data = b"".join([piece async for piece in reader.pieces()])
            if len(found) >= _MAX_PAIRS:
                raise MultipartError(f"it has more than {_MAX_PAIRS} fields")
            found.append((part.name, data.decode()))
    except UnicodeDecodeError:
        raise Problem(400, "MALFORMED_FORM", "the form is not UTF-8; files are not taken here") from None
    except MultipartError as error:
        raise malformed(error) from error
    return found


def malformed(error: MultipartError) -> Problem:
    """400 for a multipart body that is none."""
    return Problem(400, "MALFORMED_FORM", f"the form is malformed: {error}")


def unsupported(accepted: str) -> Problem:
    """415 that says what is taken."""
    return Problem(
        415, "UNSUPPORTED_MEDIA_TYPE", f"the body must be {accepted}", headers={"Accept-Post": accepted}
    )
