"""Every edge that an upload's bytes cross, hurt in every way: nothing that was acknowledged is lost, nobody who is
stalled stands in another's way, and a retry gets through."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from services.common.keys import KeyRing
from tests.conftest import NatsServer
from tests.fault_proxy import Fault, Proxy, proxy_to
from tests.processes import Pair, running

CHUNK, TOTAL = 64 << 10, 5
HALF = CHUNK // 2
HEAD = b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41"
STALL = 1.0
LONGEST = 3.0
HONEST = {408, 409, 502, 503, 504}  # not acknowledged, and said so; 409: a newer writer of the chunk took over
pytestmark = pytest.mark.xdist_group("faults")


@dataclass
class World:
    """Gateway and upload service with a proxy on each edge."""

    pair: Pair
    phone: Proxy
    inner: Proxy
    broker: Proxy

    def proxies(self) -> tuple[Proxy, Proxy, Proxy]:
        return self.phone, self.inner, self.broker


@asynccontextmanager
async def world_of(
    keys: KeyRing, folder: Path, nats_server: NatsServer, **settings: object
) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        ports = (0, 0, nats_server.port)
        phone, inner, broker = [await stack.enter_async_context(proxy_to(port)) for port in ports]
        nats_url = f"nats://127.0.0.1:{broker.port}"
        pair = await stack.enter_async_context(
            running(keys, folder, nats_url, upload_port=inner.port, log_level="WARNING", **settings)
        )
        phone.target, inner.target = pair.gateway.port, pair.upload.port
        yield World(pair, phone, inner, broker)


@pytest.fixture(name="world", scope="session")
async def world_fixture(
    keys: KeyRing, tmp_path_factory: pytest.TempPathFactory, new_nats_server: Callable[[], NatsServer]
) -> AsyncIterator[World]:
    settings = {
        "gateway_read_timeout_seconds": STALL,
        "gateway_chunk_timeout_seconds": LONGEST,
        "upload_stall_seconds": 2 * STALL,
    }
    async with world_of(keys, tmp_path_factory.mktemp("faults"), new_nats_server(), **settings) as world:
        yield world


@pytest.fixture(name="patient")
async def patient_fixture(keys: KeyRing, tmp_path: Path, own_nats_server: NatsServer) -> AsyncIterator[World]:
    """A world that gives a silent client more time than a test takes."""
    settings = {"gateway_read_timeout_seconds": 300, "upload_stall_seconds": 300}
    async with world_of(keys, tmp_path, own_nats_server, **settings) as world:
        yield world


@pytest.fixture(autouse=True)
def healed(world: World) -> None:
    """A test begins with edges that work, and without the connections that an earlier one broke."""
    for proxy in world.proxies():
        proxy.heal()
        proxy.reset_all()


class Phone:
    """A phone with an upload of five chunks."""

    def __init__(self, world: World, http: aiohttp.ClientSession) -> None:
        self._world, self._http = world, http
        self._headers = world.pair.bearer("alice")
        self.body = HEAD + random.randbytes(CHUNK * TOTAL - len(HEAD))
        self.session_id = ""
        self.statuses: list[int] = []

    async def call(
        self, method: str, path: str, *, proxied: bool = False, patience: float = 20, **arguments: object
    ) -> tuple[int, dict[str, object]]:
        """Status and answer; 0 when the connection broke or patience ended. ``proxied``: by the bad network."""
        base = f"http://127.0.0.1:{self._world.phone.port}" if proxied else self._world.pair.url
        headers = self._headers | {"Connection": "close"} if proxied else self._headers
        timeout = aiohttp.ClientTimeout(total=patience)
        try:
            async with self._http.request(
                method,
                base + path,
                headers=headers,
                timeout=timeout,
                **arguments,  # type: ignore[arg-type]  # what aiohttp takes
            ) as response:
                self.statuses.append(response.status)
                return response.status, await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError):
            return 0, {}

    async def begin(self) -> None:
        document = {
            "filename": "clip.mp4",
            "file_size": len(self.body),
            "mime_type": "video/mp4",
            "chunk_size": CHUNK,
        }
        answer = await self.until_done("POST", "/api/v1/upload/initiate", json=document)
        self.session_id = str(answer["session_id"])

    async def put(self, number: int, *, proxied: bool = False, patience: float = 20) -> int:
        """One try to send a chunk; its status."""
        data = self.body[number * CHUNK : (number + 1) * CHUNK]
        path = f"/api/v1/upload/{self.session_id}/chunk/{number}"
        status, _ = await self.call("POST", path, proxied=proxied, patience=patience, data=data)
        return status

    async def until_done(self, method: str, path: str, **arguments: object) -> dict[str, object]:
        """Tries again, as the answers allow."""
        async with asyncio.timeout(60):
            while True:
                status, answer = await self.call(method, path, **arguments)  # type: ignore[arg-type]  # as above
                if status in {200, 201}:
                    return answer
                assert status in {0, *HONEST}, (status, answer)
                await asyncio.sleep(0.1)

    async def retry(self, number: int) -> None:
        data = self.body[number * CHUNK : (number + 1) * CHUNK]
        await self.until_done("POST", f"/api/v1/upload/{self.session_id}/chunk/{number}", data=data)

    async def finish(self) -> None:
        """Sends what the service says is missing, completes, and compares."""
        status = await self.until_done("GET", f"/api/v1/upload/{self.session_id}/status")
        missing = status["remaining_chunks"]
        assert isinstance(missing, list)
        for number in missing:
            await self.retry(number)
        digest = hashlib.sha256(self.body).hexdigest()
        path = f"/api/v1/upload/{self.session_id}/complete"
        answer = await self.until_done("POST", path, json={"file_hash": digest})
        assert answer["status"] == "completed"
        assert self._world.pair.file(self.session_id) == self.body
        assert 500 not in self.statuses

    async def stored(self) -> list[int]:
        status = await self.until_done("GET", f"/api/v1/upload/{self.session_id}/status")
        numbers = status["uploaded_chunks"]
        assert isinstance(numbers, list)
        return numbers


@asynccontextmanager
async def phone_of(world: World) -> AsyncIterator[Phone]:
    async with aiohttp.ClientSession() as http:
        phone = Phone(world, http)
        await phone.begin()
        await phone.retry(0)
        yield phone


@pytest.fixture(name="phone")
async def phone_fixture(world: World) -> AsyncIterator[Phone]:
    async with phone_of(world) as phone:
        yield phone


async def test_a_chunk_that_the_network_cuts_is_not_stored_and_never_stands_in_the_way_of_its_retry(
    patient: World,
) -> None:
    async with phone_of(patient) as phone:
        for number, fault in enumerate((Fault.RESET, Fault.HALF_OPEN, Fault.TRICKLE, Fault.BLACKHOLE), start=1):
            patient.phone.set(fault, after=HALF)
            broken = asyncio.create_task(phone.put(number, proxied=True, patience=60))
            await patient.phone.struck.wait()
            assert number not in await phone.stored()
            async with asyncio.timeout(20):
                assert await phone.put(number) == 200
            patient.phone.heal()
            patient.phone.reset_all()
            assert await broken in {0, *HONEST}
        await phone.finish()


@pytest.mark.parametrize("fault", [Fault.HALF_OPEN, Fault.BLACKHOLE])
async def test_a_phone_that_fell_silent_is_cut(world: World, phone: Phone, fault: Fault) -> None:
    world.phone.set(fault, after=HALF)
    broken = asyncio.create_task(phone.put(1, proxied=True))
    await world.phone.struck.wait()
    async with asyncio.timeout(30):
        await world.phone.given_up()
    world.phone.reset_all()
    assert await broken == 0
    assert await phone.stored() == [0]
    await phone.finish()


async def test_a_phone_that_sends_a_byte_now_and_then_is_cut_when_its_time_is_over(
    world: World, phone: Phone
) -> None:
    world.phone.set(Fault.TRICKLE, after=HALF, pause=STALL / 4)
    assert await phone.put(1, proxied=True, patience=60) == 408
    assert await phone.stored() == [0]
    await phone.finish()


async def test_a_chunk_whose_acknowledgement_was_lost_is_there_when_it_is_sent_again(
    world: World, phone: Phone
) -> None:
    world.phone.set(Fault.ANSWER_LOST)
    assert await phone.put(1, proxied=True) == 0
    assert await phone.stored() == [0, 1]
    path = f"/api/v1/upload/{phone.session_id}/chunk/1"
    answer = await phone.until_done("POST", path, data=phone.body[CHUNK : 2 * CHUNK])
    assert answer["status"] == "already_exists"
    await phone.finish()


@pytest.mark.parametrize(
    "fault", [Fault.RESET, Fault.HALF_OPEN, Fault.ANSWER_LOST, Fault.BLACKHOLE, Fault.TRICKLE]
)
async def test_the_edge_to_the_upload_service_may_break_in_any_way(
    world: World, phone: Phone, fault: Fault
) -> None:
    world.inner.set(fault, after=0 if fault is Fault.ANSWER_LOST else HALF)
    attempts = [asyncio.create_task(phone.put(number)) for number in (1, 2)]
    await world.inner.struck.wait()
    answers = await asyncio.gather(*attempts)
    assert set(answers) <= {200, *HONEST}, answers
    world.inner.heal()
    world.inner.reset_all()  # as a router does that forgot them; without, a ping that stays unanswered tells
    stored = await phone.stored()
    assert {0} | {n for n, status in zip((1, 2), answers, strict=True) if status == 200} <= set(stored)
    await phone.finish()


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.HALF_OPEN, Fault.ANSWER_LOST, Fault.BLACKHOLE])
async def test_the_edge_to_the_broker_may_break_in_any_way(world: World, phone: Phone, fault: Fault) -> None:
    world.broker.set(fault)
    attempts = [asyncio.create_task(phone.put(number)) for number in (1, 2)]
    await world.broker.struck.wait()
    await asyncio.sleep(STALL / 2)  # long enough that calls run into it
    world.broker.heal()
    world.broker.reset_all()
    answers = await asyncio.gather(*attempts)
    assert set(answers) <= {200, *HONEST}, answers
    stored = await phone.stored()
    assert {0} | {n for n, status in zip((1, 2), answers, strict=True) if status == 200} <= set(stored)
    await phone.finish()
