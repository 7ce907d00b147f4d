"""Signals end a command in order, and a second one at once."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from mesh import interrupt
from mesh.errors import MeshError


@pytest.mark.parametrize("number", interrupt.SIGNALS)
def test_the_first_signal_lets_the_command_clean_up(number: signal.Signals) -> None:
    done: list[str] = []

    async def command() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            done.append("cleaned up")

    assert interrupt.run(command()) is False
    assert done == ["cleaned up"]


def test_the_second_signal_ends_the_cleaning_up() -> None:
    done: list[str] = []

    async def command() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                done.append("gave up waiting")
                raise

    assert interrupt.run(command()) is False
    assert done == ["gave up waiting"]


def test_an_error_of_the_command_comes_out_as_itself() -> None:
    async def command() -> None:
        raise MeshError("no broker")

    with pytest.raises(MeshError, match="no broker"):
        interrupt.run(command())


def test_a_command_that_ends_by_itself_was_not_interrupted() -> None:
    assert interrupt.run(asyncio.sleep(0)) is True
