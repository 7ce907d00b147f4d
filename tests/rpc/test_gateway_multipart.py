"""Several ranges of a file in one answer, from every kind of store."""

from __future__ import annotations

import asyncio
import email
from collections.abc import AsyncIterator
from email import policy
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common.adapters.s3_objects import S3ObjectStore
from services.common.keys import KeyRing
from tests.rpc.gateway_world import World, open_world

CONTENT = bytes(range(256)) * 40 + b"\r\n" * 500 + b"\r" * 500
SIZE = len(CONTENT)
HERE = {"max_examples": 40, "deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
SPEC = st.one_of(
    st.tuples(st.integers(0, SIZE + 50), st.integers(0, 3000)).map(lambda at: f"{at[0]}-{sum(at)}"),
    st.integers(0, SIZE + 50).map(lambda first: f"{first}-"),
    st.integers(0, 3000).map(lambda length: f"-{length}"),
)


@pytest.fixture(params=["sendfile", "remote", pytest.param("s3", marks=pytest.mark.xdist_group("s3"))])
def place(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Where the objects are, as open_world wants to be told."""
    if request.param == "s3":
        return {"store": S3ObjectStore(request.getfixturevalue("s3_bucket"))}
    return {"remote": request.param == "remote"}


@pytest.fixture
async def world(place: dict[str, Any], keys: KeyRing, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(keys, tmp_path, **place) as world:
        yield world


def wanted(header: str) -> list[set[int]] | None:
    """The positions that each range means, without those past the end; None when that is too much to ask."""
    found = []
    for spec in header.split(","):
        first, _, last = spec.partition("-")
        if not first:
            found.append(set(range(max(0, SIZE - int(last)), SIZE)))
        else:
            found.append(set(range(int(first), min(SIZE, int(last or SIZE) + 1))))
    found = [positions for positions in found if positions]
    return None if sum(map(len, found)) > SIZE else found


def parts(content_type: str, body: bytes, whole: int = SIZE) -> list[tuple[int, bytes]]:
    """Where each part begins, and its bytes."""
    message: Message = email.message_from_bytes(
        f"Content-Type: {content_type}\r\n\r\n".encode() + body, policy=policy.HTTP
    )
    assert message.is_multipart()
    found = []
    for part in message.get_payload():
        assert isinstance(part, Message)
        data = part.get_payload(decode=True)
        assert isinstance(data, bytes)
        assert part["Content-Type"] == "video/mp4"
        unit, _, rest = part["Content-Range"].partition(" ")
        span, _, size = rest.partition("/")
        first, _, last = span.partition("-")
        assert (unit, int(size), int(last) - int(first) + 1) == ("bytes", whole, len(data))
        found.append((int(first), data))
    return found


async def test_every_set_of_ranges_brings_each_of_its_bytes(world: World) -> None:
    url = f"/api/v1/media/stream/{await world.add_video(CONTENT)}"

    @settings(**HERE)  # type: ignore[arg-type]  # one dictionary of several types
    @given(st.lists(SPEC, min_size=2, max_size=8))
    async def check(specs: list[str]) -> None:
        header = ",".join(specs)
        expected = wanted(header)
        async with world.call("GET", url, headers={"Range": f"bytes={header}"}) as response:
            body = await response.read()
            if expected is None:
                assert (response.status, body) == (200, CONTENT)
                return
            if not expected:
                assert (response.status, response.headers["Content-Range"]) == (416, f"bytes */{SIZE}")
                return
            assert (response.status, response.headers["Content-Length"]) == (206, str(len(body)))
            if "Content-Range" in response.headers:
                first = int(response.headers["Content-Range"].split()[1].partition("-")[0])
                found = [(first, body)]
            else:
                found = parts(response.headers["Content-Type"], body)
                assert len(found) > 1
        assert all(data == CONTENT[first : first + len(data)] for first, data in found)
        brought = set().union(*(range(first, first + len(data)) for first, data in found))
        assert set().union(*expected) <= brought
        assert expected[0] <= set(range(found[0][0], found[0][0] + len(found[0][1]))), "in the order asked for"

    await run(check)


async def run(check: Any) -> None:
    """Hypothesis drives plain functions: its examples are drawn in a thread, and checked in this loop."""
    loop, inner = asyncio.get_running_loop(), check.hypothesis.inner_test

    def checked(*args: Any, **kwargs: Any) -> None:
        asyncio.run_coroutine_threadsafe(inner(*args, **kwargs), loop).result(30)

    check.hypothesis.inner_test = checked
    await asyncio.to_thread(check)


async def test_a_multipart_answer_has_its_length_and_no_range_of_its_own(world: World) -> None:
    url = f"/api/v1/media/stream/{await world.add_video(CONTENT)}"
    boundaries = set()
    for _ in range(2):
        async with world.call("GET", url, headers={"Range": "bytes=-2,0-1"}) as response:
            body = await response.read()
            assert response.status == 206
            assert "Content-Range" not in response.headers
            assert response.headers["Content-Length"] == str(len(body))
            kind = response.headers["Content-Type"]
            assert kind.startswith("multipart/byteranges; boundary=")
            assert parts(kind, body) == [(SIZE - 2, CONTENT[-2:]), (0, CONTENT[:2])]
            boundaries.add(kind)
    assert len(boundaries) == 2, "who makes a file cannot know the boundary"
    # A connection stays usable behind it, and HEAD knows no ranges.
    async with world.call("HEAD", url, headers={"Range": "bytes=-2,0-1"}) as response:
        assert (response.status, response.headers["Content-Length"]) == (200, str(SIZE))


async def test_a_multipart_answer_under_an_old_etag_is_the_whole(world: World) -> None:
    url = f"/api/v1/media/stream/{await world.add_video(CONTENT)}"
    asked = {"Range": "bytes=-2,0-1", "If-Range": '"old"'}
    async with world.call("GET", url, headers=asked) as response:
        assert (response.status, await response.read()) == (200, CONTENT)
