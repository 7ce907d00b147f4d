"""Every rpc of a server is counted once, by how it ended, whatever a caller names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from services.common.errors import DeadlineExceeded, NotFound
from services.common.keys import KeyRing
from tests.rpc.common_fixtures import GET, SERVICE, WATCH, calling, served
from twotruths.merge.v1 import merge_service_pb2 as pb


def handled(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    """(method, code) → how many."""
    return {
        (sample.labels["method"].rpartition("/")[2], sample.labels["code"]): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "twotruths_rpc_handled_total"
    }


def timed(registry: CollectorRegistry, rpc: str) -> float | None:
    return registry.get_sample_value("twotruths_rpc_duration_seconds_count", {"method": f"{SERVICE}/{rpc}"})


async def test_rpcs_are_counted_at_their_end_by_method_and_code(keys: KeyRing) -> None:
    registry, hangs, cancelled = CollectorRegistry(), asyncio.Event(), asyncio.Event()
    answers: list[Exception | None] = [None, NotFound("no"), ZeroDivisionError("a bug")]

    async def get(request: Any, rpc: Any) -> pb.GetMergeResponse:
        if error := answers.pop(0):
            raise error
        return pb.GetMergeResponse()

    async def watch(request: Any, rpc: Any) -> AsyncIterator[pb.WatchMergeResponse]:
        yield pb.WatchMergeResponse()
        hangs.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with served(keys, registry=registry, GetMerge=get, WatchMerge=watch) as server:
        async with calling(keys, server.port) as caller:
            channel: Any = caller.channel
            await caller.call(GET)
            for _ in range(2):
                await caller.refusal(GET)
            await caller.refusal(GET, metadata=[])
            stream = caller.start(WATCH)
            await stream.read()
            await hangs.wait()
            assert ("WatchMerge", "OK") not in handled(registry), "a stream counts at its end"
            stream.cancel()
            await cancelled.wait()
            for name in ("/a.B/C", "/a.B/D", f"/{SERVICE}/Nope", "/grpc.health.v1.Health/Nope"):
                with pytest.raises(grpc.aio.AioRpcError):
                    await channel.unary_unary(name)(b"", timeout=10)
        async with asyncio.timeout(20):
            while ("WatchMerge", "CANCELLED") not in handled(registry):
                await asyncio.sleep(0.01)
    assert handled(registry) == {
        ("GetMerge", "OK"): 1,
        ("GetMerge", "NOT_FOUND"): 1,
        ("GetMerge", "INTERNAL"): 1,
        ("GetMerge", "UNAUTHENTICATED"): 1,
        ("WatchMerge", "CANCELLED"): 1,
        ("unknown", "UNIMPLEMENTED"): 4,
    }
    assert (timed(registry, "GetMerge"), timed(registry, "WatchMerge")) == (4, 1)


async def test_a_call_that_ran_out_of_time_did_not_end_by_its_caller_whoever_noticed_first(keys: KeyRing) -> None:
    registry = CollectorRegistry()

    async def hang(request: Any, rpc: Any) -> pb.GetMergeResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with served(keys, registry=registry, GetMerge=hang) as server, calling(keys, server.port) as caller:
        calls = [caller.refusal(GET, timeout=0.3) for _ in range(20)]
        assert {type(error) for error in await asyncio.gather(*calls)} == {DeadlineExceeded}
        async with asyncio.timeout(20):
            while sum(handled(registry).values()) < 20:
                await asyncio.sleep(0.01)
    assert handled(registry) == {("GetMerge", "DEADLINE_EXCEEDED"): 20}
