"""How a process starts, drains and ends, seen from outside: a real process, real signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.errors import Unavailable
from services.common.keys import KeyRing
from services.common.status import remote_errors
from tests.rpc.common_fixtures import INITIATE, SERVICE, WATCH, calling, served

ROOT = Path(__file__).parents[2]
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Running:
    """The process with its log lines."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def line(self, text: str) -> str:
        """Waits for the log line that has this text."""
        assert self.process.stderr is not None
        while data := await asyncio.wait_for(self.process.stderr.readline(), 15):
            self.lines.append(data.decode().rstrip("\n"))
            if text in self.lines[-1]:
                return self.lines[-1]
        raise AssertionError(f"no {text!r} in\n" + "\n".join(self.lines))

    async def port(self) -> int:
        return int((await self.line("serves on port")).split("serves on port ")[1].split('"')[0])

    def tell(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    async def end(self) -> int:
        """Waits for the end; answers the exit code."""
        assert self.process.stderr is not None
        rest = await asyncio.wait_for(self.process.stderr.read(), 15)
        self.lines += rest.decode().splitlines()
        return await self.process.wait()


Start = Callable[..., Any]


@pytest.fixture
def start(keys: KeyRing, tmp_path: Path) -> Start:
    @asynccontextmanager
    async def running(mode: str = "serve", **settings: str) -> AsyncIterator[Running]:
        process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-W",
                "error",
                "-m",
                "tests.rpc.common_app",
                mode,
                str(keys.directory),
                str(tmp_path),
            ),
            cwd=ROOT,
            env={**os.environ, "TWOTRUTHS_LOG_FORMAT": "json"} | settings,
            stderr=PIPE,
        )
        try:
            yield Running(process)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    return running


async def test_sigterm_drains(start: Start, keys: KeyRing, tmp_path: Path) -> None:
    async with start() as process, calling(keys, await process.port()) as caller:
        health: Any = health_pb2_grpc.HealthStub(caller.channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest(service=name), timeout=20) for name in ("", SERVICE)]
        for watch in watches:
            assert (await watch.read()).status != NOT_SERVING
        follower = caller.start(WATCH)
        await follower.read()
        call = caller.start(metadata=[caller.bearer(), ("x-request-id", "request-0001")], timeout=20)
        begun = json.loads(await process.line("begun"))
        assert (begun["request_id"], begun["bytes"], begun["service"]) == ("request-0001", 7, "merge")
        assert begun["message"] == "begun\nin two lines"
        process.tell()
        for watch in watches:
            assert (await watch.read()).status == NOT_SERVING
        with pytest.raises(Unavailable), remote_errors():  # who only watches is sent elsewhere
            await follower.read()
        with pytest.raises(Unavailable):  # no new calls
            await caller.call(INITIATE)
        assert not call.done()
        (tmp_path / "release").touch()
        await call  # while the running one completes
        assert await process.end() == 0
    messages = [json.loads(line)["message"] for line in process.lines]
    assert messages[-4:] == ["loop stopped", "loop stopped", "dependencies closed", "merge stopped"]


async def test_metrics_are_served_from_start_to_end_on_a_port_of_their_own(start: Start) -> None:
    async with start(TWOTRUTHS_METRICS_LISTEN="127.0.0.1:0") as process:
        line = json.loads(await process.line("metrics on port"))
        url = f"http://127.0.0.1:{line['message'].rpartition(' ')[2]}/metrics"
        await process.port()
        async with aiohttp.ClientSession() as http, http.get(url) as answer:
            assert "process_resident_memory_bytes" in await answer.text()
        process.tell()
        assert await process.end() == 0


async def test_calls_are_served_while_balancers_notice(start: Start, keys: KeyRing, tmp_path: Path) -> None:
    (tmp_path / "release").touch()
    async with start(TWOTRUTHS_DRAIN_WAIT_SECONDS="1") as process, calling(keys, await process.port()) as caller:
        process.tell(signal.SIGINT)
        await process.line("drains")
        await caller.call()
        assert await process.end() == 0


async def test_a_second_signal_ends_it_at_once(start: Start, keys: KeyRing) -> None:
    async with start() as process, calling(keys, await process.port()) as caller:
        call = caller.start(timeout=20)
        await process.line("begun")
        process.tell()
        await process.line("drains")
        process.tell()
        assert await process.end() == 1
        assert "dependencies closed" not in "".join(process.lines)
        call.cancel()


@pytest.mark.parametrize(("mode", "name"), [("dying loop", "dying"), ("ending loop", "ending")])
async def test_a_background_loop_that_ends_ends_the_process(start: Start, mode: str, name: str) -> None:
    async with start(mode) as process:
        assert await process.end() == 1
    lines = [json.loads(line) for line in process.lines]  # and nothing beside the log
    assert lines[-1]["level"] == "CRITICAL"
    assert lines[-1]["message"] == f"merge stopped: {name} ended by itself"
    assert ("ZeroDivisionError: a bug" in lines[-1].get("exception", "")) is (name == "dying")
    assert "dependencies closed" not in lines[-1]["message"]


async def test_sigterm_ends_a_start_that_waits_for_the_broker(start: Start) -> None:
    async with start("without broker", TWOTRUTHS_NATS_URL="nats://127.0.0.1:1") as process:
        await process.line("waiting for NATS")
        process.tell()
        assert await process.end() == 0
    assert json.loads(process.lines[-1])["message"] == "merge was told to stop while it started"


async def test_what_prevents_a_start_is_one_clear_line(start: Start, keys: KeyRing, tmp_path: Path) -> None:
    async with served(keys) as server:
        (tmp_path / "listen").write_text(f"127.0.0.1:{server.port}")
        async with start("taken port") as process:
            assert await process.end() == 1
        assert json.loads(process.lines[-1])["message"] == (
            f"merge stopped: cannot listen on 127.0.0.1:{server.port}: is the port taken?"
        )
    async with start("without dependency", TWOTRUTHS_LOG_FORMAT="console") as process:
        assert await process.end() == 1
    (line,) = process.lines
    assert line.endswith("CRITICAL services.common.lifecycle: merge stopped: the store does not answer")


async def test_console_lines_carry_request_id_and_data(start: Start, keys: KeyRing, tmp_path: Path) -> None:
    (tmp_path / "release").touch()
    async with start(TWOTRUTHS_LOG_FORMAT="console") as process, calling(keys, await process.port()) as caller:
        await caller.call(metadata=[caller.bearer(), ("x-request-id", "request-0001")])
        assert (await process.line("begun")).endswith("INFO    app: begun bytes=7 request_id=request-0001")
        process.tell()
        assert await process.end() == 0
    assert not any("Bearer" in line for line in process.lines)
