"""What every server of the mesh does around an rpc, seen by a caller through a real channel."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from services.common import context, interceptor
from services.common.errors import (
    BY_CODE,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    Internal,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    ServiceError,
    Unauthenticated,
    Unimplemented,
)
from services.common.identity import ServiceTokens
from services.common.keys import KeyRing
from services.common.status import INTERNAL_TEXT, remote_errors
from tests.rpc.common_fixtures import GET, INITIATE, SERVICE, WATCH, calling, desk, make_server, served
from twotruths.merge.v1 import merge_service_pb2 as pb

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
SECRET = "postgres://user:hunter2@10.0.0.3"  # what an exception's text may hold


async def whoami(request: Any, rpc: Any) -> pb.GetMergeResponse:
    """Answers with who called, under which id."""
    call = context.current()
    assert call is not None
    answer = pb.GetMergeResponse()
    answer.merge_session.merge_session_id = f"{context.principal().subject} {call.request_id}"
    return answer


async def fails(request: Any, rpc: Any) -> pb.GetMergeResponse:
    raise RuntimeError(SECRET)


async def test_health_follows_set_serving_for_the_server_and_each_service(keys: KeyRing) -> None:
    async with served(keys) as server, calling(keys, server.port) as caller:
        health: Any = health_pb2_grpc.HealthStub(caller.channel)
        watches = {}
        for name in ("", SERVICE):
            watches[name] = health.Watch(health_pb2.HealthCheckRequest(service=name), timeout=10)
            assert (await watches[name].read()).status == SERVING
        for ok, status in ((False, NOT_SERVING), (True, SERVING)):
            await server.set_serving(ok)
            for name, watch in watches.items():
                assert (await watch.read()).status == status
                checked = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
                assert checked.status == status
        with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
            await health.Check(health_pb2.HealthCheckRequest(service="unheard.Of"), timeout=10)
        for watch in watches.values():
            watch.cancel()


async def test_a_server_that_has_only_started_is_not_serving(keys: KeyRing) -> None:
    server = make_server(keys)
    await server.start()
    async with calling(keys, server.port) as caller:
        health: Any = health_pb2_grpc.HealthStub(caller.channel)
        for name in ("", SERVICE):
            assert (
                await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
            ).status == NOT_SERVING
    await server.stop(0)


async def _described(caller: Any) -> set[str]:
    """The services that a server tells of by reflection."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(caller.channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=10)
    return {service.name async for answer in call for service in answer.list_services_response.service}


async def test_reflection_lists_the_services_and_can_be_turned_off(keys: KeyRing) -> None:
    async with desk(keys) as caller:
        assert {SERVICE, "grpc.health.v1.Health"} <= await _described(caller)
    async with desk(keys, settings={"reflection": False}) as caller:
        with pytest.raises(grpc.aio.AioRpcError, match="UNIMPLEMENTED"):
            await _described(caller)


async def test_a_broken_rule_names_its_field(keys: KeyRing) -> None:
    async def reached(request: Any, rpc: Any) -> pb.InitiateMergeResponse:
        raise AssertionError("a bad request must not arrive")

    async with desk(keys, InitiateMerge=reached) as caller:
        request = pb.InitiateMergeRequest()
        request.CopyFrom(INITIATE)
        request.video_file_sizes[0] = 0
        request.video_count = 99
        refused = await caller.refusal(request)
        assert isinstance(refused, InvalidArgument)
        assert {violation.field for violation in refused.violations} == {"video_file_sizes[0]", "video_count"}
        assert all(violation.description for violation in refused.violations)
        assert refused.message.startswith(f"{refused.violations[0].field}: {refused.violations[0].description}")
        refused = await caller.refusal(pb.GetMergeRequest(merge_session_id="x" * 100_000))
        assert [violation.field for violation in refused.violations] == ["merge_session_id"]
        with pytest.raises(InvalidArgument, match="merge_session_id"), remote_errors():
            await caller.start(pb.WatchMergeRequest(merge_session_id="x")).read()


async def test_a_scope_that_a_method_asks_of_players_is_needed(keys: KeyRing) -> None:
    async with desk(keys, GetMerge=whoami) as caller:
        assert await caller.call()
        service = ServiceTokens(keys.directory / "services.pem", "challenge")
        assert await caller.call(metadata=[caller.bearer(service.token("merge"))])  # services have none
        without = caller.bearer(keys.player_token("alice", scopes=["media:upload"]))
        refused = await caller.refusal(metadata=[without])
        assert isinstance(refused, PermissionDenied)
        assert (refused.reason, refused.domain) == ("SCOPE_MISSING", "merge.twotruths")
        assert refused.metadata == {"scope": "media:read"}


async def test_no_token_two_tokens_or_another_scheme_is_no_caller(keys: KeyRing) -> None:
    async with desk(keys, GetMerge=whoami) as caller:
        good = caller.bearer()[1].removeprefix("Bearer ")
        for values in ([], [f"Bearer {good}"] * 2, [good], [f"Digest {good}"], [""], ["Bearer"], ["Bearer x.y.z"]):
            refused = await caller.refusal(metadata=[("authorization", value) for value in values])
            assert isinstance(refused, Unauthenticated), values
        assert await caller.call(metadata=[("authorization", f"bearer {good}")])


@pytest.mark.parametrize("cls", BY_CODE.values(), ids=lambda cls: cls.code)
async def test_an_error_raised_in_a_servicer_arrives_as_the_same_class(
    keys: KeyRing, cls: type[ServiceError]
) -> None:
    sent = cls(
        "trailing space, ünïcödé 😀 50% and\nlines \0 ",
        reason="WHY",
        violations=[FieldViolation("clips[1].size", "too large 😀")],
        retry_after=1.5,
        metadata={"key": "value"},
    )

    async def refuses(request: Any, rpc: Any) -> pb.InitiateMergeResponse:
        raise sent

    async with desk(keys, InitiateMerge=refuses) as caller:
        got = await caller.refusal(INITIATE)
    assert type(got) is cls
    assert vars(got) == vars(sent) | {"domain": "merge.twotruths"}


async def test_an_unknown_exception_shows_its_caller_a_fixed_text_and_its_detail_only_in_the_log(
    keys: KeyRing, caplog: pytest.LogCaptureFixture
) -> None:
    async with desk(keys, GetMerge=fails) as caller:
        call = caller.start(metadata=[caller.bearer(), ("x-request-id", "request-0001")])
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call
    error = failed.value
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, INTERNAL_TEXT)
    trailing = dict(error.trailing_metadata())
    assert trailing["x-request-id"] == "request-0001"
    status = rpc_status.from_call(error)
    info = error_details_pb2.RequestInfo()
    assert status.details[0].Unpack(info)
    assert info.request_id == "request-0001"
    assert SECRET not in f"{error!r} {trailing} {status}"
    assert SECRET in caplog.text


async def test_a_request_id_is_passed_through_if_harmless_and_else_made(keys: KeyRing) -> None:
    async with desk(keys, GetMerge=whoami) as caller:
        for sent, kept in (("request-0001", True), ("short", False), ("a b c d e f", False), ("x" * 65, False)):
            call = caller.start(metadata=[caller.bearer(), ("x-request-id", sent)])
            seen = (await call).merge_session.merge_session_id.removeprefix("alice ")
            assert (seen == sent) is kept
            assert len(seen) >= 8
            assert dict(await call.trailing_metadata())["x-request-id"] == seen


@pytest.mark.parametrize("fault", [RuntimeError(SECRET), FailedPrecondition("over", reason="ENDED")])
async def test_an_exception_in_the_middle_of_a_stream_is_mapped_too(keys: KeyRing, fault: Exception) -> None:
    async def breaks(request: Any, rpc: Any) -> AsyncIterator[pb.WatchMergeResponse]:
        yield pb.WatchMergeResponse()
        raise fault

    async with desk(keys, WatchMerge=breaks) as caller:
        call = caller.start(WATCH)
        await call.read()
        with pytest.raises(ServiceError) as failed, remote_errors():
            await call.read()
    assert SECRET not in failed.value.message
    assert type(failed.value) is (type(fault) if isinstance(fault, ServiceError) else Internal)


async def test_a_stream_that_its_reader_left_is_closed_at_once(keys: KeyRing) -> None:
    closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def endless() -> AsyncIterator[pb.WatchMergeResponse]:
        answer = pb.WatchMergeResponse()
        answer.merge_session.error_message = "x" * 100_000  # soon it waits in write, not in here
        try:
            while True:
                yield answer
        finally:
            closed.set_result(context.principal().subject)

    held = endless()  # the garbage collector cannot close it
    async with desk(keys, WatchMerge=lambda request, rpc: held) as caller:
        call = caller.start(WATCH)
        await call.read()
        call.cancel()
        assert await asyncio.wait_for(closed, 5) == "alice"


async def test_a_stream_ends_with_the_token_that_it_was_asked_for_with(keys: KeyRing) -> None:
    async def endless(request: Any, rpc: Any) -> AsyncIterator[pb.WatchMergeResponse]:
        yield pb.WatchMergeResponse()
        await asyncio.Event().wait()

    token = keys.player_token("alice", ttl=-8)  # two seconds are left of those that clocks may differ by
    async with desk(keys, WatchMerge=endless) as caller:
        call = caller.start(WATCH, metadata=[caller.bearer(token)])
        await call.read()
        with pytest.raises(Unauthenticated, match="the bearer token is not valid"), remote_errors():
            await call.read()
        assert isinstance(await caller.refusal(metadata=[caller.bearer(token)]), Unauthenticated)


async def test_a_handler_that_hangs_is_cut_at_the_deadline(keys: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = asyncio.Event()

    async def hangs(request: Any, rpc: Any) -> pb.GetMergeResponse:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    async with desk(keys, GetMerge=hangs) as caller:
        started = time.monotonic()
        assert isinstance(await caller.refusal(timeout=0.3), DeadlineExceeded)
        await asyncio.wait_for(ended.wait(), 5)
        # a caller who set none gets the server's own, and its answer
        monkeypatch.setattr(interceptor, "_DEFAULT_DEADLINE_SECONDS", 0.2)
        call = caller.start(timeout=None)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call
        assert time.monotonic() - started < 5
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "x-request-id" in dict(failed.value.trailing_metadata())


async def test_a_timeout_of_the_handlers_own_is_no_deadline(keys: KeyRing) -> None:
    async def slow_dependency(request: Any, rpc: Any) -> pb.GetMergeResponse:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()
        raise AssertionError

    async with desk(keys, GetMerge=slow_dependency) as caller:
        assert isinstance(await caller.refusal(), Internal)


async def test_a_message_over_the_limit_is_refused(keys: KeyRing) -> None:
    async with desk(keys, InitiateMerge=whoami) as caller:
        request = pb.InitiateMergeRequest(challenge_title="x" * (5 << 20))
        assert isinstance(await caller.refusal(request), ResourceExhausted)
        assert isinstance(await caller.refusal(GET), Unimplemented)  # and the connection goes on


async def test_a_refusal_with_very_many_wrong_fields_still_arrives(keys: KeyRing) -> None:
    async def refuses(request: Any, rpc: Any) -> pb.GetMergeResponse:
        fields = [FieldViolation(f"clips[{n}].name", "must be a name " * 10) for n in range(1000)]
        raise InvalidArgument("wrong " * 5000, violations=fields)

    async with desk(keys, GetMerge=refuses) as caller:
        refused = await caller.refusal()
    assert isinstance(refused, InvalidArgument)
    assert refused.violations[0].field == "clips[0].name"


async def test_a_taken_port_is_said_plainly(keys: KeyRing) -> None:
    async with served(keys) as first:
        second = make_server(keys, f"127.0.0.1:{first.port}")
        with pytest.raises(OSError, match=f"127.0.0.1:{first.port}.*taken"):
            await second.start()
        await second.stop(0)


async def test_a_burst_of_calls_waits_its_turn(keys: KeyRing) -> None:
    """By default gRPC cancels some of those beyond a thousand that wait for the event loop."""
    async with desk(keys, GetMerge=whoami) as caller:
        await caller.call()
        metadata = [caller.bearer()]
        answers = await asyncio.gather(*(caller.call(metadata=metadata, timeout=120) for _ in range(4_000)))
    assert len(answers) == 4_000
