"""What every job queue holds to: the in-memory twin and the one on JetStream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from nats.aio.client import Client

from services.common.adapters.jetstream_jobs import JetStreamJobQueue
from services.common.adapters.memory import MemoryJobQueue
from services.common.jobs import Delivery, Job, JobPriority, JobQueue, Publishes, order_of_fetch
from tests.contract.no_leader import without_leader

KINDS = ("probe", "merge")


@pytest.fixture(params=["memory", "jetstream"])
async def queue(request: pytest.FixtureRequest, nats_client: Client) -> AsyncIterator[JobQueue]:
    if request.param == "memory":
        yield MemoryJobQueue(ack_wait=1)
        return
    jetstream = JetStreamJobQueue(nats_client, ack_wait=1)
    await jetstream.ensure(KINDS)
    yield jetstream


def job(id_: str, priority: JobPriority = JobPriority.NORMAL, kind: str = "probe") -> Job:
    return Job(kind, id_, f"payload of {id_}".encode(), priority, {"X-Trace": id_})


async def test_a_job_arrives_whole_and_is_gone_once_acknowledged(queue: JobQueue) -> None:
    assert await queue.publish(job("1"))
    delivery = await queue.fetch(KINDS, 5)
    assert delivery is not None
    assert delivery.job == job("1")
    assert delivery.count == 1
    await delivery.ack()
    assert await queue.fetch(KINDS, 1.5) is None


async def test_a_job_that_is_there_is_not_queued_twice(queue: JobQueue) -> None:
    assert await queue.publish(job("1"))
    assert not await queue.publish(job("1"))
    delivery = await queue.fetch(KINDS, 5)
    assert delivery is not None
    assert not await queue.publish(job("1")), "delivered, not acknowledged: it is still there"
    await delivery.ack()
    assert await queue.publish(job("1")), "acknowledged: it is a new job"


async def test_publishing_waits_for_a_leader_to_be_elected(
    nats_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = JetStreamJobQueue(nats_client, ack_wait=1)
    await queue.ensure(KINDS)
    without_leader(monkeypatch, queue._js)
    await queue.publish(job("1"))
    assert await queue.fetch(KINDS, 5) is not None


async def test_a_job_that_nobody_keeps_is_delivered_again(queue: JobQueue) -> None:
    await queue.publish(job("1"))
    first = await queue.fetch(KINDS, 5)
    again = await queue.fetch(KINDS, 5)
    assert first is not None
    assert again is not None
    assert (again.job.id, again.count) == ("1", 2)


async def test_a_job_that_is_kept_is_not_delivered_again(queue: JobQueue) -> None:
    await queue.publish(job("1"))
    delivery = await queue.fetch(KINDS, 5)
    assert delivery is not None
    until = time.monotonic() + 2.2 * queue.ack_wait
    while time.monotonic() < until:
        assert await queue.fetch(KINDS, queue.ack_wait / 3) is None
        await delivery.keep()


async def test_a_released_job_comes_back_after_its_delay(queue: JobQueue) -> None:
    await queue.publish(job("1"))
    delivery = await queue.fetch(KINDS, 5)
    assert delivery is not None
    await delivery.release(0.1)
    again = await queue.fetch(KINDS, 5)
    assert again is not None
    assert again.count == 2


async def test_a_waiting_worker_gets_a_new_job_at_once(queue: JobQueue) -> None:
    waiting = asyncio.create_task(queue.fetch(KINDS, 20))
    assert await queue.fetch(["merge"], 0.05) is None  # by now the first fetch is waiting
    started = time.monotonic()
    await queue.publish(job("1"))
    delivery = await waiting
    assert delivery is not None
    assert time.monotonic() - started < 0.9, "woken by the publish, not by the next look"


async def test_high_goes_first_and_low_is_not_starved(queue: JobQueue) -> None:
    for n in range(10):
        await queue.publish(job(f"high{n}", JobPriority.HIGH))
        await queue.publish(job(f"normal{n}"))
    await queue.publish(job("low", JobPriority.LOW))
    order = []
    for _ in range(9):
        delivery = await queue.fetch(KINDS, 5)
        assert delivery is not None
        order.append(delivery.job.id)
        await delivery.ack()
    assert order[0] == "high0"
    assert sum(name.startswith("high") for name in order) >= 7
    assert "low" in order


async def test_what_is_neither_high_nor_low_is_not_starved_by_both(queue: JobQueue) -> None:
    for n in range(20):
        await queue.publish(job(f"high{n}", JobPriority.HIGH))
        await queue.publish(job(f"low{n}", JobPriority.LOW))
    await queue.publish(job("normal"))
    order = []
    for _ in range(16):
        delivery = await queue.fetch(KINDS, 5)
        assert delivery is not None
        order.append(delivery.job.id)
        await delivery.ack()
    assert "normal" in order[:8]
    assert sum(name.startswith("low") for name in order) >= 2
    assert sum(name.startswith("high") for name in order) >= 12, "the others wait for their turns"


async def test_a_backlog_of_one_kind_does_not_keep_the_others_waiting(queue: JobQueue) -> None:
    for n in range(10):
        await queue.publish(job(f"merge{n}", kind="merge"))
    await queue.publish(job("probe"))
    fetched = [await queue.fetch(("merge", "probe"), 5) for _ in range(3)]
    assert "probe" in [delivery.job.id for delivery in fetched if delivery is not None]


async def test_low_is_not_starved_in_any_of_two_lanes(queue: JobQueue) -> None:
    for n in range(1000 if isinstance(queue, MemoryJobQueue) else 20):
        for kind in KINDS:
            await queue.publish(job(f"low-{kind}{n}", JobPriority.LOW, kind))
    for n in range(20):
        for kind in KINDS:
            await queue.publish(job(f"normal-{kind}{n}", kind=kind))
    fetched = []
    for _ in range(16):
        for kind in KINDS:  # they take turns, as two lanes of one worker do
            delivery = await queue.fetch((kind,), 5)
            assert delivery is not None
            fetched.append(delivery.job.id.rstrip("0123456789"))
    for kind in KINDS:
        assert fetched.count(f"low-{kind}") == 2
        assert fetched.count(f"normal-{kind}") == 14


async def test_a_fetch_for_what_is_urgent_leaves_the_rest(queue: JobQueue) -> None:
    await queue.publish(job("low", JobPriority.LOW))
    for _ in range(9):
        assert await queue.fetch(KINDS, 0, least=JobPriority.NORMAL) is None
    waiting = asyncio.create_task(queue.fetch(KINDS, 20, least=JobPriority.NORMAL))
    await queue.publish(job("normal"))
    await queue.publish(job("high", JobPriority.HIGH))
    first = await waiting
    second = await queue.fetch(KINDS, 5, least=JobPriority.NORMAL)
    assert first is not None
    assert second is not None
    assert {first.job.id, second.job.id} == {"normal", "high"}
    last = await queue.fetch(KINDS, 5)
    assert last is not None
    assert last.job.id == "low"


async def test_of_two_that_wait_for_different_kinds_the_right_one_is_woken_at_once(queue: JobQueue) -> None:
    waiting = {kind: asyncio.create_task(queue.fetch((kind,), 20)) for kind in KINDS}
    assert await queue.fetch(KINDS, 0.05) is None  # by now they are waiting
    for kind in reversed(KINDS):
        started = time.monotonic()
        await queue.publish(job(f"of-{kind}", kind=kind))
        delivery = await waiting[kind]
        assert delivery is not None
        assert delivery.job.id == f"of-{kind}"
        assert time.monotonic() - started < 0.9, "woken by the publish, not by the next look"


async def test_who_looked_before_a_publish_is_woken_though_others_have_looked_since() -> None:
    publishes = Publishes()
    mine = publishes.number
    publishes.tell()
    others = publishes.number
    async with asyncio.timeout(5):
        await publishes.after(mine)
    waiting = [asyncio.create_task(publishes.after(others)) for _ in range(2)]
    await asyncio.sleep(0)
    publishes.tell()
    async with asyncio.timeout(5):
        await asyncio.gather(*waiting)


@pytest.mark.parametrize("kinds", [("a",), ("a", "b"), ("a", "b", "c"), ("a", "b", "c", "d")])
def test_at_each_priority_every_kind_is_first_in_its_turn(kinds: tuple[str, ...]) -> None:
    firsts = {order_of_fetch(number, kinds)[0] for number in range(1, 8 * len(kinds) + 1)}
    assert firsts == {(priority, kind) for priority in JobPriority for kind in kinds}


async def test_a_groups_unfinished_jobs_are_known_until_they_are_acknowledged(queue: JobQueue) -> None:
    ours = [replace(job(f"{n}", kind=KINDS[n % 2]), group="ours") for n in range(3)]
    for one in (*ours, replace(job("4"), group="theirs")):
        await queue.publish(one)
    assert await queue.unfinished("ours") == {"0", "1", "2"}
    deliveries: dict[str, Delivery] = {}
    while len(deliveries) < 4:
        delivery = await queue.fetch(KINDS, 5)
        assert delivery is not None
        deliveries[delivery.job.id] = delivery
    assert deliveries["0"].job == ours[0]
    assert await queue.unfinished("ours") == {"0", "1", "2"}, "delivered is not done"
    await deliveries["1"].ack()
    await queue.drop(ours[2])
    assert await queue.unfinished("ours") == {"0"}
    assert await queue.unfinished("nobodys") == set()


async def test_only_the_kinds_asked_for_are_fetched(queue: JobQueue) -> None:
    await queue.publish(job("1", kind="merge"))
    assert await queue.fetch(["probe"], 0.1) is None
    assert await queue.fetch(["merge"], 5) is not None


async def test_a_cancelled_fetch_takes_no_job_with_it(queue: JobQueue) -> None:
    for _ in range(5):
        fetch = asyncio.create_task(queue.fetch(KINDS, 20))
        await asyncio.sleep(0)
        fetch.cancel()
        await asyncio.gather(fetch, return_exceptions=True)
    await queue.publish(job("1"))
    async with asyncio.timeout(0.9 * queue.ack_wait):
        assert await queue.fetch(KINDS, 5) is not None


async def test_a_dropped_job_is_gone(queue: JobQueue) -> None:
    await queue.publish(job("1"))
    await queue.drop(job("1"))
    await queue.drop(job("1"))
    assert await queue.fetch(KINDS, 0.1) is None


async def test_the_dead_are_kept_with_their_reason(queue: JobQueue, nats_client: Client) -> None:
    await queue.bury(job("1"), "not a\nvideo")
    if isinstance(queue, MemoryJobQueue):
        assert queue.dead == [(job("1"), "not a\nvideo")]
    else:
        message = await nats_client.jetstream().get_last_msg("JOBS_DEAD", "dead.jobs.probe.1")
        assert message.headers is not None
        assert message.headers["Twotruths-Reason"] == "not a video"
