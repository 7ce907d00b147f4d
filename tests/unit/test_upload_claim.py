"""Whose uploads a broker knows."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.common.adapters.memory import MemoryStateStore
from services.common.errors import FailedPrecondition
from services.upload.adapters.directory_id import directory_id
from services.upload.claim import KEY, Claim, claim

NOW = datetime(2026, 11, 28, tzinfo=UTC)


def of(store: str) -> Claim:
    return Claim(store, f"the directory {store}", NOW)


async def test_a_broker_belongs_to_the_store_that_came_first() -> None:
    claims = MemoryStateStore[Claim]()
    await claim(claims, of("a"), adopt=False)
    await claim(claims, of("a"), adopt=False)
    with pytest.raises(
        FailedPrecondition, match=r"in the directory a .* not in the directory b\. .*_ADOPT_BROKER"
    ):
        await claim(claims, of("b"), adopt=False)
    entry = await claims.get(KEY)
    assert entry is not None
    assert entry.value.store == "a"


async def test_of_two_that_come_at_once_one_does_not_start() -> None:
    claims = MemoryStateStore[Claim]()
    asked = (claim(claims, of(store), adopt=False) for store in "ab")
    ended = await asyncio.gather(*asked, return_exceptions=True)
    assert sorted(type(end).__name__ for end in ended) == ["FailedPrecondition", "NoneType"]


async def test_a_broker_can_be_taken_over_from_a_store_that_is_gone() -> None:
    claims = MemoryStateStore[Claim]()
    await claim(claims, of("a"), adopt=False)
    await claim(claims, of("b"), adopt=True)
    await claim(claims, of("b"), adopt=False)
    with pytest.raises(FailedPrecondition):
        await claim(claims, of("a"), adopt=False)


def test_a_directory_is_known_again_and_no_other_is_taken_for_it(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    known = directory_id(first)
    assert directory_id(first) == known != directory_id(second)
    moved = first.rename(tmp_path / "moved")
    assert directory_id(moved) == known
