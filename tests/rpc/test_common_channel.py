"""What the mesh's channel does for a call: deadlines, request ids, tokens, retries, balancing."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool

from services.common import channel, context, server
from services.common.channel import idempotent_methods
from services.common.errors import DeadlineExceeded, Unavailable
from services.common.identity import ServiceTokens
from services.common.keys import KeyRing
from tests.rpc.common_fixtures import GET, INITIATE, Caller, calling, desk, served
from twotruths.merge.v1 import merge_service_pb2 as pb


class Seen:
    """A servicer's rpcs that write down what arrives."""

    def __init__(self) -> None:
        self.remaining: list[float | None] = []
        self.request_ids: list[str] = []
        self.callers: list[str] = []

    async def get(self, request: Any, rpc: Any) -> pb.GetMergeResponse:
        self.remaining.append(rpc.time_remaining())
        self.request_ids += [value for key, value in rpc.invocation_metadata() if key == "x-request-id"]
        self.callers.append(context.principal().subject)
        return pb.GetMergeResponse()


async def test_a_chained_call_gets_what_is_left_of_the_deadline_minus_a_margin(keys: KeyRing) -> None:
    seen = Seen()
    left: list[float] = []
    async with desk(keys, GetMerge=seen.get) as inner:

        async def chains(request: Any, rpc: Any) -> pb.InitiateMergeResponse:
            left.append(rpc.time_remaining())
            await inner.call(timeout=None)
            await inner.call(timeout=60)
            await inner.call(timeout=0.5)
            return pb.InitiateMergeResponse()

        async with desk(keys, InitiateMerge=chains) as outer:
            metadata = [outer.bearer(), ("x-request-id", "request-0001")]
            await outer.call(INITIATE, metadata=metadata, timeout=5)
    inherited, shorter, own = seen.remaining
    assert inherited is not None
    assert shorter is not None
    assert own is not None
    assert left[0] - 2 < inherited <= left[0] - 0.19
    assert left[0] - 2 < shorter <= left[0] - 0.19
    assert own <= 0.6
    assert seen.request_ids == ["request-0001"] * 3


async def test_a_call_after_the_deadline_is_not_made(keys: KeyRing) -> None:
    seen = Seen()
    async with desk(keys, GetMerge=seen.get) as caller:
        await caller.call()
        late = context.CallContext(deadline=time.monotonic() + 0.1)  # less than the margin
        with context.serving(late):
            for timeout in (None, 10):
                assert isinstance(await caller.refusal(timeout=timeout), DeadlineExceeded)
    assert len(seen.remaining) == 1


async def test_a_request_id_of_the_callers_own_is_kept(keys: KeyRing) -> None:
    seen = Seen()
    async with desk(keys, GetMerge=seen.get) as caller:
        with context.serving(context.CallContext(request_id="from-context")):
            await caller.call()
            await caller.call(metadata=[caller.bearer(), ("x-request-id", "of-its-own")])
    assert seen.request_ids == ["from-context", "of-its-own"]


async def test_a_service_token_is_added_only_to_a_call_without_authorization(keys: KeyRing) -> None:
    seen = Seen()
    tokens = ServiceTokens(keys.directory / "services.pem", "challenge")
    async with served(keys, GetMerge=seen.get) as server, calling(keys, server.port, tokens=tokens) as caller:
        await caller.call(metadata=[])
        await caller.call(metadata=None)  # the caller's own: alice
    assert seen.callers == ["service:challenge", "alice"]


def _away_once() -> tuple[list[str], Any]:
    """An rpc that is unavailable the first time, and the list of its calls."""
    calls: list[str] = []

    async def rpc(request: Any, _: Any) -> Any:
        calls.append(type(request).__name__)
        if len(calls) == 1:
            raise Unavailable("just now")
        return pb.GetMergeResponse() if isinstance(request, pb.GetMergeRequest) else pb.InitiateMergeResponse()

    return calls, rpc


async def test_only_idempotent_calls_are_tried_again(keys: KeyRing) -> None:
    calls, rpc = _away_once()
    async with desk(keys, GetMerge=rpc) as caller:
        await caller.call(GET)
    assert len(calls) == 2
    calls, rpc = _away_once()
    async with desk(keys, InitiateMerge=rpc) as caller:
        assert isinstance(await caller.refusal(INITIATE), Unavailable)
        await asyncio.sleep(0.15)  # longer than the first backoff
    assert len(calls) == 1


async def test_retries_end(keys: KeyRing) -> None:
    calls: list[int] = []

    async def away(request: Any, rpc: Any) -> pb.GetMergeResponse:
        calls.append(1)
        raise Unavailable("gone for good", reason="AWAY")

    async with desk(keys, GetMerge=away) as caller:
        refused = await caller.refusal(GET)
    assert (type(refused), refused.reason, len(calls)) == (Unavailable, "AWAY", 4)


def test_idempotent_are_the_methods_that_the_contract_marks() -> None:
    names = {method.full_name for method in idempotent_methods()}
    assert "twotruths.merge.v1.MergeService.GetMerge" in names
    assert "twotruths.upload.v1.UploadService.BatchInitiateUploads" in names
    assert not names & {
        "twotruths.merge.v1.MergeService.InitiateMerge",
        "twotruths.upload.v1.UploadService.UploadChunks",
        "twotruths.upload.v1.UploadService.WatchUpload",
    }
    pool = descriptor_pool.Default()
    assert {pool.FindMethodByName(name).containing_service.full_name for name in names} == {
        "twotruths.upload.v1.UploadService",
        "twotruths.merge.v1.MergeService",
        "twotruths.merge.v1.VideoService",
        "twotruths.challenge.v1.ChallengeService",
    }


async def _until_all(caller: Caller, seen: list[Seen]) -> None:
    """Calls until every server was called (the second connection comes up in its own time)."""
    async with asyncio.timeout(10):
        while not all(one.callers for one in seen):
            await caller.call()


async def test_calls_are_spread_over_the_servers_of_a_target(keys: KeyRing) -> None:
    one, two = Seen(), Seen()
    async with served(keys, GetMerge=one.get) as first, served(keys, GetMerge=two.get) as second:
        target = f"ipv4:127.0.0.1:{first.port},127.0.0.1:{second.port}"
        async with calling(keys, target) as caller:
            await _until_all(caller, [one, two])
            before = len(one.callers), len(two.callers)
            for _ in range(20):
                await caller.call()
            assert (len(one.callers) - before[0], len(two.callers) - before[1]) == (10, 10)
            await first.stop(0)
            for _ in range(5):  # and go on when one of them is gone
                await caller.call()


async def test_a_server_that_is_away_is_unavailable_and_its_address_is_not_told(keys: KeyRing) -> None:
    async with served(keys) as server:
        port = server.port
    async with calling(keys, port) as caller:
        refused = await caller.refusal(INITIATE)
    assert type(refused) is Unavailable
    assert str(port) not in refused.message
    assert "127.0.0.1" not in refused.message


async def test_an_idle_connection_lives_on_its_pings(keys: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = {"grpc.keepalive_time_ms": 100, "grpc.http2.min_ping_interval_without_data_ms": 50}
    for module, name in ((server, "_SERVER_OPTIONS"), (channel, "KEEPALIVE")):
        options = getattr(module, name)
        monkeypatch.setattr(module, name, tuple((key, quick.get(key, value)) for key, value in options))
    async with desk(keys, GetMerge=Seen().get) as caller:
        await caller.call()
        with pytest.raises(TimeoutError):  # some thirty pings; a dozen were an attack
            await asyncio.wait_for(caller.channel.wait_for_state_change(grpc.ChannelConnectivity.READY), 3)


async def test_a_server_that_comes_back_is_found(keys: KeyRing) -> None:
    seen = Seen()
    async with served(keys, GetMerge=seen.get) as server, calling(keys, server.port) as caller:
        await caller.call()
        await server.stop(0)
        async with served(keys, listen=f"127.0.0.1:{server.port}", GetMerge=seen.get), asyncio.timeout(10):
            while len(seen.callers) < 2:
                with suppress(Unavailable):
                    await caller.call()
