"""The lock of a media child: each attempt is made in a real child that closed it, each lock on its own as well."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.keys import KeyRing
from services.merge.config import MergeSettings
from services.merge.media import landlock, sandbox, seccomp
from services.merge.media.forked import ROOT
from services.merge.wiring import build_worker

BEFORE = """
import ctypes, json, mmap, os, signal, socket, sys, threading
from services.merge.media import canary, landlock, sandbox, seccomp
from services.merge.media.limits import Limits
path, new, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
given = os.open(path, os.O_RDONLY)
canary.sing()
if sys.argv[4] == "forked" and (child := os.fork()):
    os._exit(max(0, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""
AFTER = """
def connect():
    with socket.socket() as client:
        client.connect(("127.0.0.1", port))

def thread():
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()

def fork():
    if os.fork() == 0:
        os._exit(0)

attempts = {
    "read": lambda: open(path),
    "write": lambda: open(new, "w"),
    "list": lambda: os.listdir("/"),
    "stat": lambda: os.stat(path),
    "remove": lambda: os.remove(path),
    "connect": connect,
    "pair": socket.socketpair,
    "fork": fork,
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "kill": lambda: os.kill(os.getppid(), 0),
    "code": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
    "limit": lambda: os.setpriority(os.PRIO_PROCESS, 0, 5),
    "given": lambda: os.read(given, 3),
    "memory": lambda: bytearray(100_000_000),
    "thread": thread,
}
done = []
for name, attempt in attempts.items():
    try:
        attempt()
        done.append(name)
    except OSError:
        pass
print(json.dumps(done), flush=True)
os._exit(0)
"""
HARMLESS = ["given", "memory", "thread"]


def allowed(tmp_path: Path, lock: str, start: str = "started") -> list[str]:
    """What succeeds after the lock, in a child that was ``started`` for it or ``forked`` from one that was."""
    (tmp_path / "file").write_text("text")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        arguments = (str(tmp_path / "file"), str(tmp_path / "new"), str(listening.getsockname()[1]), start)
        command = [sys.executable, "-c", f"{BEFORE}\n{lock}\n{AFTER}", *arguments]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert not (tmp_path / "new").exists()
    done: list[str] = json.loads(ended.stdout)
    return done


@pytest.mark.parametrize("start", ["started", "forked"])
def test_a_locked_child_opens_nothing_connects_nowhere_and_starts_nothing(tmp_path: Path, start: str) -> None:
    assert allowed(tmp_path, "sandbox.lock_down(Limits(), os.getppid())", start) == HARMLESS


def test_the_files_are_closed_even_without_the_system_call_filter(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    done = allowed(tmp_path, "sandbox._prctl(38, 1); landlock.restrict()")
    assert not {"read", "write", "list", "remove", "exec", "connect"} & set(done)


def test_the_system_call_filter_holds_even_without_landlock(tmp_path: Path) -> None:
    lock = "landlock.version = lambda: 0; sandbox.lock_down(Limits(locked=False), os.getppid())"
    assert allowed(tmp_path, lock) == HARMLESS


def test_a_lock_that_must_be_closed_and_is_not_there_is_an_error(tmp_path: Path) -> None:
    lock = """
landlock.version = lambda: 0
try:
    sandbox.lock_down(Limits(), os.getppid())
except OSError as error:
    assert "no landlock" in str(error)
    print("[]", flush=True)
    os._exit(0)
"""
    assert allowed(tmp_path, lock) == []


def test_a_thread_that_was_there_before_keeps_the_lock_from_closing(tmp_path: Path) -> None:
    lock = """
threading.Thread(target=threading.Event().wait, daemon=True).start()
try:
    sandbox.lock_down(Limits(), os.getppid())
except OSError as error:
    assert "thread" in str(error)
    print("[]", flush=True)
    os._exit(0)
"""
    assert allowed(tmp_path, lock) == []


def test_a_child_that_nobody_ends_ends_two_seconds_after_its_time(tmp_path: Path) -> None:
    lock = """
sandbox.GRACE_SECONDS = 0
sandbox.lock_down(Limits(wall_seconds=0.1), os.getppid())
while True:
    pass
"""
    with pytest.raises(AssertionError, match=str(-signal.SIGALRM)):
        allowed(tmp_path, lock)
    assert sandbox.GRACE_SECONDS == 2


@pytest.mark.parametrize("here", seccomp.MACHINES.values(), ids=seccomp.MACHINES)
def test_every_path_through_the_filter_ends_in_it(here: seccomp.Machine) -> None:
    steps = seccomp.program(here, 1)
    assert len(steps) < 4096
    for place, (code, if_true, if_false, _) in enumerate(steps):
        if code in {seccomp.EQUAL, seccomp.ANY_BIT}:
            assert place + 1 + max(if_true, if_false) < len(steps)
    numbers = [n[here.column] for n in (*seccomp.NUMBERS.values(), *seccomp.CHECKED.values(), seccomp.CLONE3)]
    assert len(set(numbers)) == len(numbers)


# The worker


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


def settings(nats_url: str, keys: KeyRing, tmp_path: Path, wanted: str) -> MergeSettings:
    return MergeSettings(nats_url=nats_url, data_dir=tmp_path, worker_sandbox=wanted, **keys.settings())


async def closed_in(worker_port: int) -> bool:
    """What the worker's health says of the sandbox."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{worker_port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await health.Check(health_pb2.HealthCheckRequest(service="sandbox"))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.mark.parametrize("there", [True, False])
async def test_a_worker_tells_by_health_whether_its_jobs_are_closed_in(
    nats_url: str,
    keys: KeyRing,
    tmp_path: Path,
    stack: AsyncExitStack,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    there: bool,
) -> None:
    if not there:
        monkeypatch.setattr(landlock, "version", lambda: 0)
    app = await stack.enter_async_context(build_worker(settings(nats_url, keys, tmp_path, "if_possible")))
    await app.server.start()
    stack.push_async_callback(app.server.stop, 0)
    await app.server.set_serving(True)

    assert await closed_in(app.server.port) is there
    assert ("no landlock" in caplog.text) is not there


async def test_a_worker_that_cannot_close_its_jobs_in_does_not_start(
    keys: KeyRing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seccomp, "available", lambda: False)
    with pytest.raises(OSError, match=r"no seccomp.*TWOTRUTHS_WORKER_SANDBOX"):
        async with build_worker(settings("nats://127.0.0.1:9", keys, tmp_path, "required")):
            pass
