"""What every events adapter must do: on JetStream and in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from nats.aio.client import Client

from services.common.adapters.jetstream import connect
from services.common.codec import RecordCodec
from services.upload.adapters.jetstream_events import COMPLETED, STREAM, JetStreamEvents
from services.upload.adapters.memory_events import MemoryEvents
from services.upload.domain import UploadPurpose
from services.upload.ports import Events, UploadCompleted
from tests.conftest import NatsServer
from twotruths.upload.v1 import event_pb2

EVENT = UploadCompleted(
    upload_id="6f1f3a2e-0b0e-4f53-9f51-0b8a3d1a2c11",
    purpose=UploadPurpose.GENERIC,
    seconds=2.5,
    bytes=5_000_000_000,
    bytes_per_second=2_000_000_000.0,
    chunks=5000,
    replayed_chunks=3,
    network_type="wifi",
    device_type="",
    completed_at=datetime(2026, 5, 1, 12, tzinfo=UTC),
)

Kept = Callable[[], Awaitable[list[UploadCompleted]]]


@pytest.fixture(params=["memory", "jetstream"])
async def world(request: pytest.FixtureRequest, nats_client: Client) -> tuple[Events, Kept]:
    if request.param == "memory":
        memory = MemoryEvents()

        async def told() -> list[UploadCompleted]:
            return memory.kept

        return memory, told
    events, js = JetStreamEvents(nats_client), nats_client.jetstream()
    for _ in range(2):  # as the next process does
        await events.ensure()
    codec = RecordCodec(UploadCompleted, event_pb2.UploadCompleted)

    async def stored() -> list[UploadCompleted]:
        last = (await js.stream_info(STREAM)).state.last_seq
        messages = [await js.get_msg(STREAM, n) for n in range(1, last + 1)]
        assert {m.subject for m in messages} <= {COMPLETED}
        return [codec.decode(m.data or b"") for m in messages]

    return events, stored


async def test_an_event_is_kept_whole_and_once(world: tuple[Events, Kept]) -> None:
    events, kept = world
    other = replace(EVENT, upload_id="other", network_type="", chunks=1)
    for event in (EVENT, other, EVENT):
        await events.completed(event)
    assert await kept() == [EVENT, other]


async def test_events_are_bounded_by_age_and_size(nats_client: Client) -> None:
    await JetStreamEvents(nats_client).ensure()
    config = (await nats_client.jetstream().stream_info(STREAM)).config
    assert (config.max_age, config.max_bytes, config.discard) == (7 * 86_400, 64 << 20, "old")


async def test_without_a_broker_an_event_is_dropped_and_nothing_is_raised(own_nats_server: NatsServer) -> None:
    client = await connect(own_nats_server.url, "test")
    events = JetStreamEvents(client)
    await events.ensure()
    own_nats_server.kill()
    await events.completed(EVENT)
    await client.close()
    await events.completed(EVENT)


def test_the_message_reads_as_the_contract_says() -> None:
    data = RecordCodec(UploadCompleted, event_pb2.UploadCompleted).encode(EVENT)
    message = event_pb2.UploadCompleted.FromString(data)
    assert (message.bytes, message.seconds, message.replayed_chunks) == (5_000_000_000, 2.5, 3)
    assert message.completed_at.ToDatetime(UTC) == EVENT.completed_at
