"""What every progress bus holds to: the in-memory twin and the one on NATS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from nats.aio.client import Client

from services.common.adapters.jetstream import connect
from services.common.adapters.memory import MemoryProgressBus
from services.common.adapters.nats_progress import NatsProgressBus
from services.common.progress import Progress, ProgressBus
from tests.conftest import NatsServer

BUFFER = 256  # hints that a receiver who does not read keeps


@pytest.fixture(params=["memory", "nats"])
async def bus(request: pytest.FixtureRequest, nats_client: Client) -> ProgressBus:
    if request.param == "memory":
        return MemoryProgressBus()
    await (bus := NatsProgressBus(nats_client)).remember("merge")
    return bus


async def _next(hints: AsyncIterator[Progress]) -> Progress:
    async with asyncio.timeout(5):
        return await anext(hints)


async def test_hints_arrive_whole_and_in_order(bus: ProgressBus) -> None:
    sent = [Progress("merge", "one", "normalise-0", n, 1371) for n in range(100)]
    async with bus.subscribe("merge", "one") as hints:
        for progress in sent:
            await bus.publish(progress)
        assert [await _next(hints) for _ in sent] == sent


async def test_a_reader_who_gave_up_waiting_gets_the_next_hint(bus: ProgressBus) -> None:
    async with bus.subscribe("merge", "one") as hints:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(hints), 0.01)
        await bus.publish(Progress("merge", "one"))
        assert await _next(hints) == Progress("merge", "one")


async def test_a_receiver_gets_its_kind_and_thing_alone_or_all_of_a_kind(bus: ProgressBus) -> None:
    one, two, upload = Progress("merge", "one"), Progress("merge", "two"), Progress("upload", "one")
    last = Progress("merge", "one", "last")
    async with (
        bus.subscribe("merge", "one") as mine,
        bus.subscribe("merge") as kind,
        bus.subscribe("upload") as other,
    ):
        for progress in (two, upload, one, last):
            await bus.publish(progress)
        assert [await _next(mine) for _ in range(2)] == [one, last]
        assert [await _next(kind) for _ in range(3)] == [two, one, last]
        assert await _next(other) == upload


async def test_hints_from_before_the_block_and_after_it_are_not_received(bus: ProgressBus) -> None:
    early, inside = Progress("merge", "one", "early"), Progress("merge", "one", "inside")
    await bus.publish(early)
    async with bus.subscribe("merge", "one") as hints:
        await bus.publish(inside)
        assert await _next(hints) == inside
    async with bus.subscribe("merge", "one") as later:
        await bus.publish(inside)
        assert await _next(later) == inside


async def test_a_slow_reader_loses_the_oldest_and_holds_up_nobody(bus: ProgressBus) -> None:
    sent = [Progress("merge", "one", done=n) for n in range(BUFFER + 100)]
    async with bus.subscribe("merge", "one") as slow, bus.subscribe("merge", "one") as quick:
        for progress in sent:
            await bus.publish(progress)
            assert await _next(quick) == progress
        assert [await _next(slow) for _ in range(BUFFER)] == sent[100:]


async def test_the_latest_hint_of_each_unit_is_remembered_for_who_comes_later(bus: ProgressBus) -> None:
    last = [
        Progress("merge", f"s{n}", unit, 70 + n, 90) for n in range(300) for unit in ("normalise0-a2", "merge")
    ]
    async with bus.subscribe("merge") as hints:
        for progress in (Progress("merge", "s1", "merge", 1, 90), Progress("merge", "s1"), *last):
            await bus.publish(progress)
        await bus.publish(Progress("merge", "end"))
        while await _next(hints) != Progress("merge", "end"):
            pass
    # The broker stores what it passes on a little later, in order: with the last hint all are there.
    async with asyncio.timeout(10):
        while last[-1] not in (found := [hint async for hint in bus.latest("merge")]):
            pass
    assert sorted(found, key=str) == sorted(last, key=str)
    assert [hint async for hint in bus.latest("upload")] == []


@pytest.mark.parametrize(
    "ids", [("", "one"), ("a b", "c\r\nPUB x 0"), ("merge", ""), ("*", ">"), ("\ud800", "😀")]
)
async def test_publish_never_raises_whatever_it_is_given(bus: ProgressBus, ids: tuple[str, str]) -> None:
    await bus.publish(Progress(*ids))
    async with bus.subscribe("merge") as hints:
        await bus.publish(Progress("merge", "one"))
        assert await _next(hints) == Progress("merge", "one")


async def test_a_hint_of_another_process_is_received_from_the_block_on(nats_url: str, nats_client: Client) -> None:
    other = await connect(nats_url, "other")
    for n in range(50):
        async with NatsProgressBus(nats_client).subscribe("merge") as hints:
            await NatsProgressBus(other).publish(Progress("merge", str(n)))
            await other.flush()
            assert await _next(hints) == Progress("merge", str(n))
    await other.close()


async def test_what_is_no_hint_is_passed_over(nats_client: Client) -> None:
    async with NatsProgressBus(nats_client).subscribe("merge") as hints:
        mistyped = b'{"unit": "probe0", "done": 1, "total": "2"}'
        endless = b'{"unit": "probe0", "done": 1%s, "total": 2}' % (b"0" * 400)  # too large for a fraction
        for junk in (b"", b"\xff", b"[]", b"7", b"{}", b'{"unit": 1}', b"[" * 100_000, mistyped, endless):
            await nats_client.publish("progress.merge.one.-", junk)
        await NatsProgressBus(nats_client).publish(Progress("merge", "one"))
        assert await _next(hints) == Progress("merge", "one")


async def test_publishing_goes_on_without_a_broker_and_hints_flow_again_with_it(
    own_nats_server: NatsServer,
) -> None:
    client = await connect(own_nats_server.url, "test")
    bus = NatsProgressBus(client)
    async with bus.subscribe("merge") as hints:
        own_nats_server.kill()
        for n in range(200):  # before and after the loss is noticed
            await bus.publish(Progress("merge", "lost", done=n))
        while client.is_connected:
            await asyncio.sleep(0.01)
        await bus.publish(Progress("merge", "stale"))  # late it would be of no use
        own_nats_server.start()
        async with asyncio.timeout(15):
            seen: set[str] = set()
            while "back" not in seen:
                await bus.publish(Progress("merge", "back"))
                with suppress(TimeoutError):
                    seen.add((await asyncio.wait_for(anext(hints), 0.05)).id)
        assert "stale" not in seen
    await client.close()
    await bus.publish(Progress("merge", "closed"))
