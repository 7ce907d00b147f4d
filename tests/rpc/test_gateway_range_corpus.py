"""Hundreds of Range headers against a model of RFC 9110 section 14.1.2 that shares no code with the gateway."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common.keys import KeyRing
from tests.rpc.gateway_world import World, connection, open_world
from tests.rpc.raw_http import answer
from tests.rpc.test_gateway_multipart import parts, run

SIZES = (0, 1, 10, 3000)
MOST, GAP = 16, 256  # docs/http.md: more ranges bring the whole; what lies closer comes as one
DRAWN = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass(frozen=True)
class Expected:
    """A status, and the runs of positions that a 206 brings."""

    status: int
    runs: tuple[tuple[int, int], ...] = ()


WHOLE, NONE = Expected(200), Expected(416)


def model(header: str, size: int) -> Expected:
    """What the section says of ``header`` for ``size`` bytes: by sets of positions, one range after the other."""
    match = re.fullmatch(r"(?i:bytes)[ \t]*=(.*)", header.strip(" \t"), re.DOTALL)
    asked = [element.strip(" \t") for element in match.group(1).split(",")] if match else []
    asked = [element for element in asked if element]
    if not asked or not all(map(is_range, asked)):
        return WHOLE
    if size == 0 and any(element.startswith("-") and int(element[1:]) for element in asked):
        return WHOLE  # satisfiable, but there is no Content-Range of no bytes
    wanted = [one for element in asked if (one := positions(element, size))]
    if not wanted:
        return NONE
    if len(asked) > MOST or sum(map(len, wanted)) > size:
        return WHOLE
    return Expected(206, tuple(runs(set().union(*wanted))))


def is_range(element: str) -> bool:
    if re.fullmatch("[0-9]+-[0-9]+", element):
        first, last = map(int, element.split("-"))
        return first <= last
    return bool(re.fullmatch("[0-9]+-|-[0-9]+", element))


def positions(element: str, size: int) -> set[int]:
    first, last = element.split("-")
    if not first:
        return {at for at in range(size) if size - at <= int(last)}
    return {at for at in range(size) if int(first) <= at and (not last or at <= int(last))}


def runs(found: set[int]) -> Iterator[tuple[int, int]]:
    """The stretches of ``found`` [start, end), those that nearly touch as one."""
    ordered = sorted(found)
    start = before = ordered[0]
    for at in ordered[1:]:
        if at - before - 1 >= GAP:
            yield start, before + 1
            start = at
        before = at
    yield start, before + 1


@dataclass
class Files:
    """A file of every size in SIZES, and a connection to ask for their ranges on."""

    world: World
    ids: dict[int, str]

    async def check(self, headers: list[str]) -> None:
        """Asks for each header of each file, on one connection, and compares with the model."""
        async with connection(self.world.port) as (reader, writer):
            token = self.world.auth()["Authorization"]
            for size, header in product(SIZES, headers):
                writer.write(
                    f"GET /api/v1/media/stream/{self.ids[size]} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n"
                    f"Range: {header}\r\n\r\n".encode()
                )
                got, expected, whole = await answer(reader), model(header, size), content(size)
                told = (header, size, got.status, got.headers.get("content-range"))
                assert got.status == expected.status, told
                if got.status == 416:
                    assert got.problem["reason"] == "RANGE_NOT_SATISFIABLE"
                    assert got.headers["content-range"] == f"bytes */{size}", told
                elif got.status == 200:
                    assert got.body == whole, told
                    assert "content-range" not in got.headers
                elif len(expected.runs) == 1:
                    ((start, end),) = expected.runs
                    assert got.headers["content-range"] == f"bytes {start}-{end - 1}/{size}", told
                    assert got.body == whole[start:end], told
                else:
                    assert "content-range" not in got.headers
                    brought = sorted(parts(got.headers["content-type"], got.body, size))
                    assert brought == [(start, whole[start:end]) for start, end in expected.runs], told


def content(size: int) -> bytes:
    return bytes(at % 251 for at in range(size))


@pytest.fixture(scope="module")
async def files(keys: KeyRing, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Files]:
    async with open_world(keys, tmp_path_factory.mktemp("ranges")) as world:
        yield Files(world, {size: await world.add_video(content(size)) for size in SIZES})


NUMBERS = ("", "0", "00", "1", "8", "9", "10", "11", "007", "2999", "3000", "18446744073709551616", "9" * 400)


async def test_every_pair_of_positions(files: Files) -> None:
    await files.check([f"bytes={first}-{last}" for first, last in product(NUMBERS, NUMBERS)])


async def test_what_is_no_range_is_ignored(files: Files) -> None:
    units = (
        "",
        "byte",
        "bytes",
        "Bytes",
        "BYTES",
        "items",
        "none",
        "bytes:",
        "bytes;q=1",
        "b\u00e4tes",
        "bytes bytes",
    )
    sets: tuple[str, ...] = (
        "0-1",
        "",
        "-",
        "--1",
        "0--1",
        "0-1-2",
        "+0-1",
        "0-+1",
        "0x0-1",
        "0.5-1",
        "1e1-",
        "a-b",
        "*",
        "0 -1",
        "0- 1",
    )
    sets += (
        "5-2",
        "\u0660-\u0661",
        "0-1;",
        "0-1 2-3",
        '"0-1"',
        "0-1,x",
        "x,0-1",
        "0-1,-",
        "0-1,5-2",
        ",",
        " , ,",
        "0_0-1",
    )
    headers = [f"{unit}={ranges}" for unit, ranges in product(units, sets)]
    await files.check([*headers, "bytes", "bytes 0-1", "=0-1", "==0-1", "bytes==0-1", "bytes= 0-1", "bytes =0-1"])


async def test_several_ranges(files: Files) -> None:
    some = ("0-0", "5-9", "9-", "-1", "-0", "10-", "1000-1009", "1265-1270", "1266-1270", "2999-2999", "3000-")
    pairs = [f"bytes={first},{second}" for first, second in product(some, some)]
    lists = [
        f"bytes= {first} ,\t{second},,{third}"
        for first, second, third in zip(some, some[3:], some[6:], strict=False)
    ]
    many = [
        f"bytes={','.join(f'{at * step}-{at * step}' for at in range(n))}"
        for n in (15, 16, 17, 200)
        for step in (1, 187)
    ]
    await files.check([*pairs, *lists, *many])


NUMBER = st.one_of(
    st.just(""), st.integers(0, 3100).map(str), st.integers(0, 10**30).map(str), st.sampled_from(NUMBERS)
)
SPEC = st.one_of(
    st.tuples(NUMBER, NUMBER).map("-".join),
    st.integers(0, 3000).flatmap(lambda at: st.integers(at, 3100).map(lambda last: f"{at}-{last}")),
    st.text("0123456789-, \t=x*", max_size=8),
)
HEADER = st.one_of(
    st.lists(SPEC, min_size=1, max_size=6).map(lambda specs: f"bytes={','.join(specs)}"),
    st.text("bytesBYTES0123456789-,= \t*;", max_size=30),
)


async def test_any_header_means_what_the_model_says(files: Files) -> None:
    @DRAWN
    @given(st.lists(HEADER, min_size=1, max_size=5))
    async def check(headers: list[str]) -> None:
        await files.check(headers)

    await run(check)
