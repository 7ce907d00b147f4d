"""What holds on S3 alone: kills at every step, several upload services on one bucket, servers that go away."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from services.common.adapters.s3_bucket import PIECE, Multipart, S3Bucket, open_bucket
from services.common.adapters.s3_objects import S3ObjectStore
from services.common.errors import Aborted, AlreadyExists, FailedPrecondition, NotFound, Unavailable
from services.common.settings import CommonSettings
from services.upload.adapters.s3_parts import S3PartStore
from services.upload.domain import Whole
from services.upload.grid import Grid, Part, Tail
from services.upload.ports import StoredPart
from services.upload.reasons import Reason
from tests.conftest import S3Server

pytestmark = pytest.mark.xdist_group("s3")

UPLOAD = "0123456789abcdef0123456789abcdef.6f1f3a2e-0b0e-4f53-9f51-0b8a3d1a2c11"
KEY = "uploads/6f1f3a2e-0b0e-4f53-9f51-0b8a3d1a2c11"
# Parts that no piece of a multipart upload ends with, and three pieces.
GRID = Grid(size=2 * PIECE + 1_000_000, chunk_size=3_000_000)
BODY = hashlib.shake_256(b"body").digest(GRID.size)


def part_store(bucket: S3Bucket) -> S3PartStore:
    return S3PartStore(bucket, S3ObjectStore(bucket))


async def pieces_of(data: bytes, size: int = 1 << 20) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def agree(part: Part) -> None:
    """Confirms any part."""


def accept(whole: Whole) -> None:
    """Takes any file."""


async def put(store: S3PartStore, number: int, data: bytes | None = None, grid: Grid = GRID) -> StoredPart:
    start, end = grid.bounds(number)
    return await store.put_part(UPLOAD, grid, number, pieces_of(BODY[start:end] if data is None else data), agree)


async def put_all(store: S3PartStore) -> tuple[Part, ...]:
    await asyncio.gather(*(put(store, number) for number in range(GRID.total)))
    return GRID.manifest((await store.list_parts(UPLOAD, GRID)).parts)


async def keys(bucket: S3Bucket, prefix: str) -> list[str]:
    return [info.key async for info in bucket.list(prefix)]


@asynccontextmanager
async def another(settings: dict[str, object], **more: object) -> AsyncIterator[S3Bucket]:
    """The bucket as another process sees it."""
    async with open_bucket(CommonSettings.model_validate(settings | more)) as bucket:
        yield bucket
    await asyncio.sleep(0)


CRASHES = {
    "within the body of a part": "body",
    "between a part's put and its answer": "put",
    "within the pieces": "piece",
    "between assembling and completing": "check",
    "after completing": "completed",
}
SCRIPT = """
    import asyncio, json, os, signal, sys
    from services.common.adapters.s3_bucket import Multipart, S3Bucket, open_bucket
    from services.common.adapters.s3_objects import S3ObjectStore
    from services.common.settings import CommonSettings
    from services.upload.adapters.s3_parts import S3PartStore
    from services.upload.grid import Grid

    settings, point, upload, key, size, chunk = json.loads(sys.argv[1])
    body, grid = sys.stdin.buffer.read(), Grid(size, chunk)

    def die(at):
        if point == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def dying(method, at, when):
        async def call(self, *arguments, **more):
            result = await method(self, *arguments, **more)
            if when(self, *arguments):
                die(at)
            return result
        return call

    S3Bucket.put = dying(S3Bucket.put, "put", lambda self, key, *_: "/2-" in key)
    Multipart.add = dying(Multipart.add, "piece", lambda self, *_: self.size > 2 * 8388608 - 1)
    Multipart.complete = dying(Multipart.complete, "completed", lambda self: True)

    async def agree(part):
        pass

    async def main():
        async with open_bucket(CommonSettings.model_validate(settings)) as bucket:
            store = S3PartStore(bucket, S3ObjectStore(bucket))
            for number in range(grid.total):
                async def pieces():
                    start, end = grid.bounds(number)
                    yield body[start : start + 100]
                    if number == 2:
                        die("body")
                    yield body[start + 100 : end]

                await store.put_part(upload, grid, number, pieces(), agree)
                print(number, flush=True)
            manifest = grid.manifest((await store.list_parts(upload, grid)).parts)
            await store.assemble(upload, grid, manifest, key, lambda whole: die("check"))

    asyncio.run(main())
"""


@pytest.mark.parametrize("point", CRASHES.values(), ids=CRASHES.keys())
async def test_a_kill_loses_no_acknowledged_part_and_complete_can_be_done_again(
    s3_bucket: S3Bucket, s3_settings: dict[str, object], point: str
) -> None:
    arguments = json.dumps([s3_settings, point, UPLOAD, KEY, GRID.size, GRID.chunk_size])
    crash = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", textwrap.dedent(SCRIPT), arguments],
        input=BODY,
        stdout=subprocess.PIPE,
        check=False,
    )
    assert crash.returncode == -signal.SIGKILL
    acknowledged = {int(line) for line in crash.stdout.split()}
    assert acknowledged == ({0, 1} if point in {"body", "put"} else set(range(GRID.total)))
    store, objects = part_store(s3_bucket), S3ObjectStore(s3_bucket)
    stored = {part.number for part in (await store.list_parts(UPLOAD, GRID)).parts}
    assert stored == acknowledged | ({2} if point == "put" else set())  # whole, though nobody was told
    assert await keys(s3_bucket, "objects/") == (["objects/" + KEY] if point == "completed" else [])
    if acknowledged == {0, 1}:
        assert (await put(store, 2)).existed == (point == "put")
    whole = await store.assemble(UPLOAD, GRID, await put_all(store), KEY, accept)
    assert whole == Whole(GRID.size, hashlib.sha256(BODY).hexdigest(), BODY[:64])
    assert b"".join([piece async for piece in objects.read(KEY)]) == BODY
    # What the killed process had begun is given up once it is old; the object is what it was.
    assert await objects.tidy(datetime.now(UTC) - timedelta(hours=1)) == 0
    assert await objects.tidy(datetime.now(UTC) + timedelta(hours=1)) == (point in {"piece", "check"})
    await store.discard(UPLOAD)
    assert await keys(s3_bucket, "") == ["objects/" + KEY]
    assert (await store.assemble(UPLOAD, GRID, (), KEY, accept)) == whole


async def test_pieces_have_at_least_8_mib_and_a_refused_file_leaves_nothing(
    s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    add = Multipart.add

    async def noted(self: Multipart, piece: bytes) -> None:
        sizes.append(len(piece))
        await add(self, piece)

    monkeypatch.setattr(Multipart, "add", noted)
    store, objects = part_store(s3_bucket), S3ObjectStore(s3_bucket)
    parts = await put_all(store)

    def refuse(whole: Whole) -> None:
        raise ValueError(whole.sha256)

    with pytest.raises(ValueError, match=hashlib.sha256(BODY).hexdigest()):
        await store.assemble(UPLOAD, GRID, parts, KEY, refuse)
    assert sizes == [PIECE, PIECE, 1_000_000]
    assert await keys(s3_bucket, "objects/") == []
    assert await objects.tidy(datetime.now(UTC) + timedelta(hours=1)) == 0
    assert GRID.manifest((await store.list_parts(UPLOAD, GRID)).parts) == parts


async def test_of_two_upload_services_that_contradict_each_other_at_most_one_is_acknowledged(
    s3_bucket: S3Bucket, s3_settings: dict[str, object]
) -> None:
    grid = Grid(10, 1)
    async with another(s3_settings) as other:
        stores = part_store(s3_bucket), part_store(other)
        acknowledged: dict[int, bytes] = {}
        for number in range(grid.total):
            bodies = [b"a", b"b"]
            outcomes = await asyncio.gather(
                *(put(store, number, body, grid) for store, body in zip(stores, bodies, strict=True)),
                return_exceptions=True,
            )
            stored = [body for body, o in zip(bodies, outcomes, strict=True) if isinstance(o, StoredPart)]
            assert len(stored) <= 1
            assert sum(isinstance(o, AlreadyExists) for o in outcomes) == 2 - len(stored)
            if stored:
                acknowledged[number] = stored[0]
        parts = (await stores[0].list_parts(UPLOAD, grid)).parts
        assert {p.number: p.sha256 for p in parts} == {
            number: hashlib.sha256(body).hexdigest() for number, body in acknowledged.items()
        }


async def test_two_upload_services_may_store_and_assemble_the_same(
    s3_bucket: S3Bucket, s3_settings: dict[str, object]
) -> None:
    grid = Grid(3000, 1000)
    async with another(s3_settings) as other:
        stores = part_store(s3_bucket), part_store(other)
        await asyncio.gather(*(put(store, n, grid=grid) for store in stores for n in range(3)))
        parts = grid.manifest((await stores[0].list_parts(UPLOAD, grid)).parts)
        first, second = await asyncio.gather(
            *(store.assemble(UPLOAD, grid, parts, KEY, accept) for store in stores)
        )
        assert first == second
        await stores[0].discard(UPLOAD)
        assert await stores[1].assemble(UPLOAD, grid, parts, KEY, accept) == first
    assert b"".join([piece async for piece in S3ObjectStore(s3_bucket).read(KEY)]) == BODY[:3000]


async def test_of_two_upload_services_that_append_one_is_acknowledged_and_its_bytes_stay(
    s3_bucket: S3Bucket, s3_settings: dict[str, object]
) -> None:
    grid, both = Grid(1000, 1000), asyncio.Barrier(2)

    async def admit(_: int) -> Grid:
        return grid

    async def admit_both(offset: int) -> Grid:
        assert offset == 4
        await both.wait()
        return grid

    async def count() -> None:
        """Lets appended bytes count."""

    async with another(s3_settings) as other:
        stores = part_store(s3_bucket), part_store(other)
        await stores[0].append_tail(UPLOAD, grid, admit, pieces_of(b"base"), count)
        outcomes = await asyncio.gather(
            stores[0].append_tail(UPLOAD, grid, admit_both, pieces_of(b"aaa"), count),
            stores[1].append_tail(UPLOAD, grid, admit_both, pieces_of(b"bbbb"), count),
            return_exceptions=True,
        )
        reached = [outcome for outcome in outcomes if isinstance(outcome, int)]
        assert len(reached) <= 1
        assert all(isinstance(o, AlreadyExists | Aborted) for o in outcomes if not isinstance(o, int))
        length = max(reached, default=4)
        assert (await stores[1].list_parts(UPLOAD, grid)).tail == Tail(0, length)
        with pytest.raises(AlreadyExists):
            await put(stores[1], 0, bytes(1000), grid)
        mine = b"base" + {7: b"aaa", 8: b"bbbb", 4: b""}[length]
        assert not (await put(stores[1], 0, mine + bytes(1000 - length), grid)).existed
        assert len(await keys(s3_bucket, "parts/")) == 1  # the tail went with its part


async def test_contradicting_parts_that_a_kill_left_fail_and_are_named(s3_bucket: S3Bucket) -> None:
    store, grid = part_store(s3_bucket), Grid(1, 1)
    await put(store, 0, b"a", grid)
    await s3_bucket.put(f"parts/{UPLOAD}/0-{hashlib.sha256(b'b').hexdigest()}-{'0' * 16}", b"b")
    with pytest.raises(FailedPrecondition, match="chunk 0") as refusal:
        grid.manifest((await store.list_parts(UPLOAD, grid)).parts)
    assert refusal.value.reason == Reason.CHUNK_CONFLICT
    with pytest.raises(AlreadyExists):
        await put(store, 0, b"a", grid)
    assert len(await keys(s3_bucket, "parts/")) == 2  # neither may be taken for the wrong one


async def test_reads_that_are_given_up_hold_no_connection(
    s3_bucket: S3Bucket, s3_settings: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "source").write_bytes(BODY[:4_000_000])
    async with another(s3_settings, s3_connections=8) as few, asyncio.timeout(20):
        objects = S3ObjectStore(few)
        await objects.put_file("videos/1", tmp_path / "source")
        for _ in range(20):
            async with aclosing(objects.read("videos/1")) as pieces:
                assert await anext(pieces)
        assert (await objects.stat("videos/1")).size == 4_000_000


async def test_bytes_are_never_put_behind_those_that_another_service_appended_meanwhile(
    s3_bucket: S3Bucket, s3_settings: dict[str, object]
) -> None:
    grid = Grid(1000, 10)

    async def count() -> None:
        """Lets appended bytes count."""

    async with another(s3_settings) as other:
        first, second = part_store(s3_bucket), part_store(other)

        async def admit(_: int) -> Grid:
            return grid

        async def race(length: int) -> None:
            async def admit_late(_: int) -> Grid:
                await second.append_tail(UPLOAD, grid, admit, pieces_of(b"b" * length), count)
                return grid

            await first.append_tail(UPLOAD, grid, admit_late, pieces_of(b"a" * 20), count)

        for length, reached in ((4, 4), (3, 7), (8, 15)):
            with pytest.raises((Aborted, AlreadyExists)):
                await race(length)
            assert (await first.list_parts(UPLOAD, grid)).offset(grid) == reached
        body = b"b" * 10
        assert (await put(first, 0, body, grid)).existed


@pytest.mark.parametrize(
    "mode", [{"s3_checksums": "when_supported"}, {"s3_sign_payload": True}], ids=["checksums", "signed payload"]
)
async def test_every_mode_stores_and_assembles(
    s3_bucket: S3Bucket, s3_settings: dict[str, object], mode: dict[str, object]
) -> None:
    async with another(s3_settings, **mode) as other:
        store = part_store(other)
        whole = await store.assemble(UPLOAD, GRID, await put_all(store), KEY, accept)
        assert whole.sha256 == hashlib.sha256(BODY).hexdigest()
        await store.discard(UPLOAD)
        if "s3_checksums" in mode:
            with pytest.raises(Unavailable):  # other bytes arrived than were sent
                await other.put("objects/damaged", b"a", sha256=hashlib.sha256(b"b").hexdigest())
            with pytest.raises(NotFound):
                await other.head("objects/damaged")


async def test_wrong_keys_are_a_store_that_does_not_serve_and_name_no_secret(
    s3_settings: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    async with another(s3_settings, s3_secret_access_key="wrong-secret", s3_create_bucket=False) as bucket:
        with pytest.raises(Unavailable) as refusal:
            await bucket.put("objects/a", b"a")
    assert "SignatureDoesNotMatch" in caplog.text
    assert "wrong-secret" not in caplog.text + str(refusal.value)


async def test_what_was_stored_is_there_after_the_server_was_killed(tmp_path: Path) -> None:
    server = S3Server(tmp_path / "swift")
    grid = Grid(3000, 1000)
    await server.start()
    try:
        async with another(server.server.settings()) as bucket:
            store = part_store(bucket)
            await put(store, 0, grid=grid)
            await put(store, 2, grid=grid)
            server.kill()
            calls: list[Any] = [put(store, 1, grid=grid), store.list_parts(UPLOAD, grid), store.discard("other")]
            refused = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(refusal) for refusal in refused] == [Unavailable] * 3
            await server.start()
            assert {part.number for part in (await store.list_parts(UPLOAD, grid)).parts} == {0, 2}
            await put(store, 1, grid=grid)
            parts = grid.manifest((await store.list_parts(UPLOAD, grid)).parts)
            assert (await store.assemble(UPLOAD, grid, parts, KEY, accept)).size == 3000
    finally:
        server.kill()


async def test_lists_are_read_a_page_after_the_other(s3_bucket: S3Bucket) -> None:
    for name in "abcde":
        await s3_bucket.put(f"objects/{name}", b"x")
    s3_bucket.page = 2
    assert await keys(s3_bucket, "objects/") == [f"objects/{name}" for name in "abcde"]
