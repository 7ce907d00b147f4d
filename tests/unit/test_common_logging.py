"""When log lines are written: in their order, together where that saves time, at once where it matters."""

from __future__ import annotations

import asyncio
import io
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common import logging as log_lines
from services.common.settings import CommonSettings

log = logging.getLogger("test")


class Stream(io.StringIO):
    """What is written, write by write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[list[str]] = []

    def write(self, text: str) -> int:
        self.writes.append([line.partition("test: ")[2] for line in text.splitlines()])
        return len(text)

    @property
    def lines(self) -> list[str]:
        return [line for write in self.writes for line in write]


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stream]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = Stream()
    monkeypatch.setattr(sys, "stderr", stream)
    log_lines.configure(CommonSettings(log_format="console"), "merge")
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


async def until_written(stream: Stream) -> None:
    async with asyncio.timeout(10):
        while not stream.writes:
            await asyncio.sleep(0.001)


async def test_lines_of_an_event_loop_are_written_together_a_moment_later(stream: Stream) -> None:
    for number in range(3):
        log.info("%d", number)
    assert stream.writes == []
    await until_written(stream)
    assert stream.writes == [["0", "1", "2"]]
    log.info("3")
    stream.writes.clear()
    await until_written(stream)
    assert stream.writes == [["3"]]


async def test_a_warning_is_written_at_once_behind_what_came_before(stream: Stream) -> None:
    log.info("first")
    log.warning("second")
    assert stream.writes == [["first", "second"]]


async def test_what_a_thread_says_is_written_at_once_behind_what_came_before(stream: Stream) -> None:
    log.info("first")
    await asyncio.to_thread(log.info, "second")
    assert stream.writes == [["first", "second"]]


async def test_a_flood_is_not_kept(stream: Stream) -> None:
    for number in range(1000):
        log.info("%d", number)
    assert len(stream.lines) > 500
    async with asyncio.timeout(10):
        while len(stream.lines) < 1000:
            await asyncio.sleep(0.001)
    assert stream.lines == [str(number) for number in range(1000)]


def test_a_loop_that_ended_before_it_wrote_holds_nothing_back(stream: Stream) -> None:
    async def say(text: str) -> None:
        log.info(text)

    asyncio.run(say("first"))
    log.info("second")
    assert stream.writes == [["first", "second"]]
    asyncio.run(say("third"))

    async def wait() -> None:
        log.info("fourth")
        stream.writes.clear()
        await until_written(stream)

    asyncio.run(wait())
    assert stream.writes == [["third", "fourth"]]


@pytest.mark.parametrize("ending", ["", "sys.exit(1)", "raise ValueError"])
def test_the_last_line_of_a_process_is_written(ending: str) -> None:
    program = f"""
import asyncio, logging, sys
from services.common import logging as log_lines
from services.common.settings import CommonSettings

async def main():
    log_lines.configure(CommonSettings(log_format="json"), "merge")
    logging.getLogger("test").info("the last")
    {ending}

asyncio.run(main())
"""
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert '"message": "the last"' in ended.stderr
