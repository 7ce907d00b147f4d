"""Several gateway processes on one port, seen from outside: real processes, real signals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mesh.health import http, until_healthy
from services.common.keys import KeyRing
from tests.processes import HOST, START_SECONDS, ServiceProcess, free_port
from tests.rpc.gateway_world import UNLIMITED, World, connection, open_world

CONTENT = os.urandom(1 << 20) * 50
_IS_PROCESS = re.compile(r"(gateway-\d+) is process (\d+)")


class Fleet(ServiceProcess):
    """The processes, and what they say."""

    def __init__(self, settings: Mapping[str, object], folder: Path, port: int | None = None) -> None:
        super().__init__("gateway", settings, folder)
        self._environment["PYTHONFAULTHANDLER"] = "1"  # SIGABRT prints what each thread does
        if port is not None:
            self.port = port
            self._environment["TWOTRUTHS_GATEWAY_LISTEN"] = f"{HOST}:{port}"
        self._lines: list[dict[str, Any]] = []
        self._bytes = 0

    async def ended(self) -> int:
        """Waits for the parent's end; the exit status."""
        assert self._child is not None
        return await asyncio.wait_for(self._child.wait(), 30)

    def lines(self) -> list[dict[str, Any]]:
        """What they have logged."""
        with self.log.open("rb") as log:
            log.seek(self._bytes)
            whole = log.read().rpartition(b"\n")[:2]
        self._bytes += sum(map(len, whole))
        self._lines += [json.loads(line) for line in whole[0].splitlines() if line.startswith(b"{")]
        return self._lines

    async def until(self, ready: Any) -> Any:
        """Waits until ``ready`` answers something. AssertionError, with what the processes do, if never."""
        try:
            async with asyncio.timeout(START_SECONDS):
                while not (found := ready()):
                    await asyncio.sleep(0.01)
        except TimeoutError:
            for pid in self.children().values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGABRT)
                await gone(pid)
            said = self.log.read_text(errors="replace").splitlines()
            raise AssertionError("\n".join(line for line in said if "request_id" not in line)) from None
        return found

    async def serving(self) -> None:
        await self.until(lambda: f"gateway serves on port {self.port}" in self.messages("gateway"))
        await asyncio.wait_for(until_healthy(http(f"http://{HOST}:{self.port}/api/v1/health")), START_SECONDS)

    def messages(self, name: str) -> list[str]:
        return [line["message"] for line in self.lines() if line["service"] == name]

    def children(self) -> dict[str, int]:
        """The process ids by name, as the parent told last."""
        found = [_IS_PROCESS.fullmatch(message) for message in self.messages("gateway")]
        return {match[1]: int(match[2]) for match in found if match}

    async def ask(self) -> str:
        """A request on a new connection, answered whole; its id."""
        async with connection(self.port) as (reader, writer):
            id_ = uuid.uuid4().hex
            writer.write(f"GET /none HTTP/1.1\r\nHost: x\r\nX-Request-Id: {id_}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 404 "), head
            length = re.search(rb"Content-Length: (\d+)", head)
            assert length, head
            assert id_.encode() in await reader.readexactly(int(length[1]))
        return id_

    async def who(self, id_: str) -> str:
        """The process that answered a request, by its log."""

        def named() -> str:
            return next((line["service"] for line in self.lines() if line.get("request_id") == id_), "")

        return str(await self.until(named))


@pytest.fixture
async def world(keys: KeyRing, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(keys, tmp_path) as world:
        yield world


@asynccontextmanager
async def running(world: World, port: int | None = None, **settings: object) -> AsyncIterator[Fleet]:
    """A fleet of two before the world's services, started."""
    targets = {f"{name}_target": f"{HOST}:{server.port}" for name, server in world.servers.items()}
    values = (
        {"data_dir": world.folder / "data", "log_format": "json", "gateway_processes": 2} | UNLIMITED | settings
    )
    folder = world.folder / uuid.uuid4().hex
    folder.mkdir()
    fleet = Fleet(world.keys.settings() | targets | values, folder, port)
    await fleet.start()
    try:
        yield fleet
    finally:
        await fleet.kill()


async def gone(pid: int) -> None:
    """Waits for the end of a process that need not be ours."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), 30)
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def refused(port: int) -> None:
    """Waits until nobody can connect."""
    async with asyncio.timeout(30):
        while True:
            try:
                async with connection(port):
                    await asyncio.sleep(0.01)
            except ConnectionError:
                return


@asynccontextmanager
async def download(world: World, port: int) -> AsyncIterator[asyncio.StreamReader]:
    """A download whose head and first bytes have come; the rest is more than buffers hold."""
    video = await world.add_video(CONTENT)
    token = world.auth()["Authorization"]
    async with connection(port) as (reader, writer):
        head = f"GET /api/v1/media/stream/{video} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n\r\n"
        writer.write(head.encode())
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        yield reader


async def test_each_process_answers_and_has_its_metrics(world: World) -> None:
    metrics = free_port()
    async with running(world, metrics_listen=f"{HOST}:{metrics}") as fleet:
        await fleet.serving()
        children = fleet.children()
        assert set(children) == {"gateway-1", "gateway-2"}
        # Whoever kills the group, as the mesh does, gets them all.
        assert {os.getpgid(pid) for pid in children.values()} == {os.getpgid(fleet.pid)}
        for silent, other in (("gateway-1", "gateway-2"), ("gateway-2", "gateway-1")):
            os.kill(children[silent], signal.SIGSTOP)
            state = Path(f"/proc/{children[silent]}/stat")
            await fleet.until(lambda state=state: state.read_text().rpartition(")")[2].split()[0] == "T")
            assert await fleet.who(await asyncio.wait_for(fleet.ask(), 30)) == other
            os.kill(children[silent], signal.SIGCONT)
        for number in range(3):
            url, plain = f"http://{HOST}:{metrics + number}/metrics", {"Accept-Encoding": "identity"}
            async with world.http.get(url, headers=plain) as answer:
                text = await answer.text()
            assert "process_resident_memory_bytes" in text
            assert ("twotruths_http_requests_total{" in text) == (number > 0), "who answers counts"


@pytest.mark.parametrize("ending", ["SIGTERM", "Ctrl-C"])
async def test_a_download_outlives_the_end_of_the_fleet(world: World, ending: str) -> None:
    async with running(world) as fleet:
        await fleet.serving()
        children = fleet.children()
        async with download(world, fleet.port) as reader:
            if ending == "SIGTERM":
                os.kill(fleet.pid, signal.SIGTERM)
            else:
                os.killpg(fleet.pid, signal.SIGINT)  # a terminal tells all of them
            await refused(fleet.port)
            assert await reader.readexactly(len(CONTENT)) == CONTENT
            assert await reader.read() == b""
        await asyncio.gather(*map(gone, children.values()))
        assert await fleet.ended() == 0
        assert fleet.messages("gateway")[-1] == "gateway stopped"


async def test_a_second_signal_ends_all_at_once(world: World) -> None:
    async with running(world) as fleet:
        await fleet.serving()
        children = fleet.children()
        async with download(world, fleet.port) as reader:
            os.kill(fleet.pid, signal.SIGTERM)
            await refused(fleet.port)
            assert await fleet.stop() == 1
            await asyncio.gather(*map(gone, children.values()))
            with contextlib.suppress(ConnectionError):
                assert len(await reader.read()) < len(CONTENT)


async def test_a_process_that_goes_costs_no_request_and_comes_back(world: World) -> None:
    async with running(world) as fleet:
        await fleet.serving()
        errors: list[BaseException] = []
        answered: set[str] = set()
        done = asyncio.Event()

        async def load() -> None:
            while not done.is_set():
                try:
                    answered.add(await fleet.ask())
                except (OSError, EOFError, AssertionError) as error:
                    errors.append(error)

        async with asyncio.TaskGroup() as loads:
            for _ in range(4):
                loads.create_task(load())
            for name in ("gateway-1", "gateway-2"):
                before = fleet.children()[name]
                served = fleet.messages(name).count(f"{name} serves on port {fleet.port}")
                os.kill(before, signal.SIGTERM)
                await gone(before)
                seen = len(answered)
                await fleet.until(lambda seen=seen: len(answered) > seen + 20)  # the other goes on
                serves = f"{name} serves on port {fleet.port}"
                await fleet.until(lambda: fleet.messages(name).count(serves) > served)  # noqa: B023  within the turn
                assert fleet.children()[name] != before
            done.set()
        assert errors == []


async def test_who_comes_while_all_are_killed_waits_for_the_next(world: World) -> None:
    async with running(world) as fleet:
        await fleet.serving()
        before = fleet.children()
        os.kill(before["gateway-1"], signal.SIGKILL)
        await gone(before["gateway-1"])
        assert await fleet.who(await fleet.ask()) == "gateway-2"
        await fleet.until(lambda: fleet.children()["gateway-1"] != before["gateway-1"])
        before = fleet.children()
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        await asyncio.gather(*map(gone, before.values()))  # until then one may still answer
        await asyncio.wait_for(fleet.ask(), START_SECONDS)
        # A child may answer before its parent, busy starting the next, has told of it.
        await fleet.until(lambda: not set(fleet.children().values()) & set(before.values()))


async def test_the_children_end_with_a_parent_that_is_killed(world: World) -> None:
    async with running(world) as fleet:
        await fleet.serving()
        children = fleet.children()
        os.kill(fleet.pid, signal.SIGKILL)
        await asyncio.gather(*map(gone, children.values()))
        await refused(fleet.port)


async def test_a_second_fleet_on_one_address_does_not_start(world: World) -> None:
    async with running(world) as first:
        await first.serving()
        async with running(world, first.port) as other:
            assert await other.ended() == 1
            (line,) = other.lines()
            assert line["message"].startswith("gateway stopped: ")
            assert "address already in use" in line["message"]
        assert await first.ask()


async def test_a_fleet_goes_on_while_one_serves_and_ends_when_none_can(world: World) -> None:
    keys = world.folder / "playback.json"
    content = (world.keys.directory / "playback.json").read_bytes()
    keys.write_bytes(content)
    async with running(world, playback_keys_file=keys) as fleet:
        await fleet.serving()
        first = fleet.children()["gateway-1"]
        keys.unlink()
        os.kill(first, signal.SIGKILL)
        await fleet.until(lambda: any("gateway-1 exited with 1" in said for said in fleet.messages("gateway")))
        await fleet.ask()
        keys.write_bytes(content)
        served = "gateway-1 serves on port"
        await fleet.until(lambda: sum(served in said for said in fleet.messages("gateway-1")) == 2)
        keys.unlink()
        for pid in fleet.children().values():
            os.kill(pid, signal.SIGKILL)
        assert await fleet.ended() == 1
        assert "cannot serve, it exited with 1" in fleet.lines()[-1]["exception"]


async def test_a_fleet_that_cannot_serve_ends_and_says_why(world: World) -> None:
    missing = world.folder / "none.json"
    async with running(world, playback_keys_file=missing) as fleet:
        assert await fleet.ended() == 1
        last = fleet.lines()[-1]
        why = r"gateway stopped: gateway-\d cannot serve, it .*; its own log line says why"
        assert re.fullmatch(why, last["message"])
        reasons = [line for line in fleet.lines() if line["level"] == "CRITICAL" and line != last]
        assert reasons, "a child's own line"
        assert all(str(missing) in line["message"] for line in reasons)
