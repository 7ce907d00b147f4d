"""Turns at a part: never two writers at once, and the newest goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.common.errors import Aborted, FailedPrecondition
from services.upload.adapters.turns import Turns


class Pieces:
    """A body whose pieces come when the test says so."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes] = asyncio.Queue()

    async def __call__(self) -> AsyncIterator[bytes]:
        while True:
            yield await self.queue.get()


async def test_a_newer_writer_waits_while_a_piece_is_written_and_the_older_gets_no_other() -> None:
    turns, body, events = Turns(), Pieces(), []
    writing, written = asyncio.Event(), asyncio.Event()

    async def older() -> None:
        async with turns.take("u", 0) as turn:
            pieces = body()
            await turn.next(pieces)
            writing.set()
            await written.wait()
            events.append("older wrote")
            await turn.next(pieces)
            events.append("older wrote again")

    async def newer() -> None:
        async with turns.take("u", 0):
            events.append("newer began")

    body.queue.put_nowait(b"1")
    body.queue.put_nowait(b"2")
    first = asyncio.create_task(older())
    await writing.wait()
    second = asyncio.create_task(newer())
    async with turns.take("u", 1):  # another part is free meanwhile
        pass
    written.set()
    with pytest.raises(Aborted):
        await first
    await second
    assert events == ["older wrote", "newer began"]


async def test_a_newest_writer_that_gives_up_waiting_does_not_let_two_others_in() -> None:
    turns, release, inside, most = Turns(), asyncio.Event(), 0, 0

    async def writer() -> None:
        nonlocal inside, most
        async with turns.take("u", 0):
            inside += 1
            most = max(most, inside)
            await release.wait()
            inside -= 1

    tasks = []
    for _ in range(3):
        tasks.append(asyncio.create_task(writer()))
        await asyncio.sleep(0)
    tasks[1].cancel()
    tasks[2].cancel()
    await asyncio.wait(tasks[1:])
    tasks.append(asyncio.create_task(writer()))
    await asyncio.sleep(0)
    release.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 1
    assert tasks[3].exception() is None


async def test_clear_ends_a_writer_that_waits_for_bytes_with_the_reason_given() -> None:
    turns, body = Turns(), Pieces()
    waiting = asyncio.Event()

    async def writer() -> None:
        async with turns.take("u", 0) as turn:
            waiting.set()
            await turn.next(body())

    task = asyncio.create_task(writer())
    await waiting.wait()
    async with asyncio.timeout(1):
        await turns.clear("u", FailedPrecondition("given up"))
    with pytest.raises(FailedPrecondition, match="given up"):
        await task
