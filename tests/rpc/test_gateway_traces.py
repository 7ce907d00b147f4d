"""Whose trace an HTTP request belongs to, and what is told of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from services.common import tracing
from services.common.adapters.otlp import exporting
from services.common.settings import CommonSettings
from services.gateway.clients import Clients
from services.gateway.traces import Traces
from tests.collector import Collector, collecting

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
KEPT, NOT_KEPT = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"


@asynccontextmanager
async def gateway(
    trusted: str = "", *, proxies_decide: bool = False
) -> AsyncIterator[tuple[Collector, TestClient[web.Request, web.Application]]]:
    """A tiny one, and what has its traces after the block."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=int(request.query.get("status", 200)), text=tracing.current().trace_id)

    async with (
        collecting() as collector,
        exporting(CommonSettings(traces_endpoint=collector.endpoint), "gateway-0"),
    ):
        app = web.Application()
        traces = Traces(Clients(trusted), proxies_decide=proxies_decide, quiet=frozenset({"/health"}))
        traces.install(app)
        traces.shown_as(app.router.add_route("*", "/things/{p0:[^/]+}", answer), "/things/{thing_id}")
        app.router.add_get("/health", answer)
        async with TestClient(TestServer(app)) as client:
            yield collector, client


async def get(client: TestClient[web.Request, web.Application], path: str, *traceparents: str) -> str:
    async with client.get(path, headers=[(tracing.TRACEPARENT, value) for value in traceparents]) as answer:
        return await answer.text()


@pytest.mark.parametrize("trusted", ["", "127.0.0.0/8"])
async def test_a_strangers_trace_is_linked_not_continued(trusted: str) -> None:
    async with gateway(trusted) as (collector, client):
        ours = await get(client, "/things/1", NOT_KEPT)
        for nonsense in ((KEPT, KEPT), ("nonsense",), ("00-" + "0" * 32 + f"-{SPAN}-01",)):
            assert await get(client, "/things/1", *nonsense) not in {"", TRACE}
    spans = {seen.span.trace_id.hex(): seen for seen in collector.spans}
    assert len(spans) == 4
    assert TRACE not in spans
    assert [link.trace_id.hex() for link in spans.pop(ours).span.links] == [TRACE]
    assert not any(seen.span.links or seen.span.parent_span_id for seen in spans.values())


async def test_a_proxys_trace_is_continued_as_it_decided() -> None:
    async with gateway("127.0.0.0/8", proxies_decide=True) as (collector, client):
        assert await get(client, "/things/1", NOT_KEPT) == TRACE
        assert await get(client, "/things/2", KEPT) == TRACE
    (seen,) = collector.spans
    assert (seen.span.trace_id.hex(), seen.span.parent_span_id.hex()) == (TRACE, SPAN)
    assert seen.attributes["url.path"] == "/things/2"


async def test_what_is_told_of_a_request() -> None:
    async with gateway() as (collector, client):
        await get(client, "/things/7?token=secret&status=503")
        await get(client, "/nowhere/secret")
        assert await get(client, "/health") == ""
        async with client.request("PROPFIND", "/things/7"):
            pass
    told = {seen.span.name: seen for seen in collector.spans}
    assert set(told) == {"GET /things/{thing_id}", "GET", "HTTP /things/{thing_id}"}
    failed = told["GET /things/{thing_id}"]
    assert failed.failed
    assert failed.attributes["error.type"] == "503"
    assert not {"http.route", "url.path"} & set(told["GET"].attributes)
    assert told["HTTP /things/{thing_id}"].attributes["http.request.method"] == "_OTHER"
    assert b"secret" not in collector.raw
