"""After a loss of power: chunks whose bytes never reached the disk are not claimed to be there."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from services.common.adapters.directory_objects import DirectoryObjectStore
from services.common.errors import DataLoss, ResourceExhausted
from services.upload.adapters.after_boot import SoundParts, boot_id
from services.upload.adapters.directory_parts import DirectoryPartStore
from services.upload.ports import PartStore
from tests.contract.test_part_store import (
    BODY,
    GRID,
    KEY,
    UPLOAD,
    accept,
    append,
    manifest,
    numbers,
    put,
    put_all,
    read,
    tail,
)

Booted = Callable[[str], PartStore]


@pytest.fixture
def booted(tmp_path: Path) -> Iterator[Booted]:
    """The store as a process finds it that starts in the boot of this name; the one before is gone."""
    with ExitStack() as stack:

        def start(boot: str) -> PartStore:
            stack.close()
            store = stack.enter_context(DirectoryPartStore(tmp_path, DirectoryObjectStore(tmp_path)))
            return SoundParts(store, tmp_path, boot=boot)

        yield start


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "parts" / UPLOAD


def lose(folder: Path, start: int, length: int) -> None:
    """Bytes that never reached the disk read as zeros."""
    with (folder / "data").open("r+b") as file:
        file.seek(start)
        file.write(bytes(length))


async def test_chunks_whose_bytes_are_gone_after_a_boot_are_missing_and_can_be_sent_again(
    booted: Booted, folder: Path, tmp_path: Path
) -> None:
    await put_all(booted("one"))
    lose(folder, 1500, 10)
    store = booted("two")
    assert await numbers(store) == [0, 2]
    assert not (await put(store, 1)).existed
    assert (await put(store, 0)).existed
    await store.assemble(UPLOAD, GRID, await manifest(store), KEY, accept)
    assert await read(DirectoryObjectStore(tmp_path)) == BODY


@pytest.mark.parametrize("touch", ["put", "append", "list", "assemble"])
async def test_whatever_comes_first_after_a_boot_finds_what_is_there(
    booted: Booted, folder: Path, touch: str
) -> None:
    parts = await put_all(booted("one"))
    os.truncate(folder / "data", 1999)
    store = booted("two")
    if touch == "put":
        assert not (await put(store, 1)).existed
    elif touch == "append":
        assert await append(store, BODY[1000:2000], at=1000) == 2000
    elif touch == "list":
        assert await numbers(store) == [0]
    else:
        with pytest.raises(DataLoss):
            await store.assemble(UPLOAD, GRID, parts, KEY, accept)


async def test_a_tail_of_an_earlier_boot_does_not_count(booted: Booted) -> None:
    await append(booted("one"), BODY[:1500])
    assert await tail(booted("one")) is not None
    store = booted("two")
    assert (await numbers(store), await tail(store)) == ([0], None)
    assert await append(store, BODY[1000:], at=1000) == GRID.size


async def test_an_upload_is_looked_at_once_a_boot(booted: Booted, folder: Path) -> None:
    await put_all(booted("one"))
    await numbers(booted("two"))
    names = set(os.listdir(folder))
    lose(folder, 0, GRID.size)
    for _ in range(2):  # not how a disk fails; it shows who reads
        assert await numbers(booted("two")) == [0, 1, 2]
    assert set(os.listdir(folder)) == names
    assert await numbers(booted("three")) == []


async def test_calls_at_once_wait_for_one_look_and_lose_nothing_that_comes_meanwhile(
    booted: Booted, folder: Path
) -> None:
    await put_all(booted("one"))
    lose(folder, 0, GRID.size)
    store = booted("two")
    await asyncio.gather(*(numbers(store) for _ in range(5)), *(put(store, n) for n in range(3)))
    assert await numbers(store) == [0, 1, 2]
    assert (folder / "data").read_bytes() == BODY


async def test_calls_that_come_at_any_moment_of_a_look_go_on(booted: Booted) -> None:
    store = booted("one")
    for turns in range(30):
        waiting = asyncio.create_task(put(store, turns % 3))
        while not waiting.done():
            await asyncio.wait_for(numbers(store), 10)
        await store.discard(UPLOAD)


async def test_a_look_at_an_upload_without_bytes_makes_nothing(booted: Booted, folder: Path) -> None:
    assert await numbers(booted("one")) == []
    assert not folder.exists()


async def test_nothing_is_taken_that_the_next_process_could_not_tell_from_an_earlier_boot(
    booted: Booted, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = booted("one")
    for call in "mkdir", "touch":
        with monkeypatch.context() as disk:
            disk.setattr(Path, call, full)
            with pytest.raises(ResourceExhausted):
                await asyncio.wait_for(append(store, BODY[:500]), 10)
            assert await tail(store) is None
    assert await append(store, BODY[:500]) == 500
    assert await tail(booted("one")) is not None


def test_this_machine_names_its_boot() -> None:
    assert len(boot_id()) in {0, 32}
    assert boot_id() == boot_id()
