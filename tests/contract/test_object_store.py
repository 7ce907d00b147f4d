"""What every object store holds to, and what S3 adds."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from services.common.adapters.directory_objects import DirectoryObjectStore
from services.common.adapters.s3_objects import S3ObjectStore
from services.common.adapters.stores import open_objects
from services.common.errors import NotFound
from services.common.objects import ObjectStore
from services.common.settings import CommonSettings

S3 = pytest.mark.xdist_group("s3")


@pytest.fixture(params=["directory", pytest.param("s3", marks=S3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "s3":
        return S3ObjectStore(request.getfixturevalue("s3_bucket"))
    return DirectoryObjectStore(tmp_path / "store")


def source(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "source"
    path.write_bytes(data)
    return path


async def test_an_object_is_read_back_whole_and_in_ranges(store: ObjectStore, tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    info = await store.put_file("videos/1/a.mp4", source(tmp_path, data))
    assert info.size == len(data)
    assert (await store.stat("videos/1/a.mp4")).size == len(data)
    pieces = [piece async for piece in store.read("videos/1/a.mp4")]
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= 1 << 20
    assert b"".join([p async for p in store.read("videos/1/a.mp4", 1000, 1_500_000)]) == data[1000:1_500_000]
    assert [p async for p in store.read("videos/1/a.mp4", 5, 5)] == []


async def test_a_missing_object_is_not_found(store: ObjectStore) -> None:
    with pytest.raises(NotFound):
        await store.stat("videos/none")
    with pytest.raises(NotFound):
        _ = [piece async for piece in store.read("videos/none")]
    await store.delete("videos/none")
    assert store.local_path("videos/none") is None


async def test_list_gives_the_keys_below_a_prefix(store: ObjectStore, tmp_path: Path) -> None:
    for key in ("merges/1/a", "merges/1/b", "merges/12/a", "videos/1"):
        await store.put_file(key, source(tmp_path, b"x"))
    assert {info.key async for info in store.list("merges/1/")} == {"merges/1/a", "merges/1/b"}
    assert {info.key async for info in store.list("merges/1")} == {"merges/1/a", "merges/1/b", "merges/12/a"}
    assert {info.key async for info in store.list("none/")} == set()
    await store.delete("merges/1/a")
    assert {info.key async for info in store.list("merges/1/")} == {"merges/1/b"}


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "../a", "a/../b", "a//b", ".hidden", "a\0b", "a b", "a\n", "é", "a" * 600]
)
async def test_a_key_that_is_no_key_is_refused(store: ObjectStore, tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="not an object key"):
        await store.put_file(key, source(tmp_path, b"x"))
    with pytest.raises(ValueError, match="not an object key"):
        await store.stat(key)


async def test_folders_go_with_their_last_object_and_come_back(tmp_path: Path) -> None:
    store = DirectoryObjectStore(tmp_path / "store")
    for name in ("a", "b"):
        await store.put_file(f"merges/1/{name}", source(tmp_path, b"x"))
    await store.delete("merges/1/a")
    await store.delete("merges/1/a")
    assert [info.key async for info in store.list("merges/")] == ["merges/1/b"]
    await store.delete("merges/1/b")
    assert list((tmp_path / "store" / "objects").iterdir()) == []
    await store.put_file("merges/1/c", source(tmp_path, b"x"))
    assert (await store.stat("merges/1/c")).size == 1


async def test_objects_come_and_go_in_one_folder_at_once(tmp_path: Path) -> None:
    store = DirectoryObjectStore(tmp_path / "store")

    async def come_and_go(name: str) -> None:
        for _ in range(50):
            (mine := tmp_path / name).write_bytes(b"x")
            await store.put_file(f"merges/1/{name}", mine)
            await store.delete(f"merges/1/{name}")

    await asyncio.gather(*(come_and_go(name) for name in "abcd"))


async def test_copies_that_were_cut_off_are_removed_at_the_next_start_and_running_ones_stay(
    tmp_path: Path,
) -> None:
    (incoming := tmp_path / "incoming").mkdir()
    cut_off, running = incoming / "old", incoming / "new"
    for file in (cut_off, running):
        file.write_bytes(b"half")
    hours_ago = time.time() - 2 * 3600
    os.utime(cut_off, (hours_ago, hours_ago))
    async with open_objects(CommonSettings(data_dir=tmp_path)):
        assert list(incoming.iterdir()) == [running]
