"""Coming back to an upload: lists, the same file again, request ids; and what names and networks change."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest

from services.common.errors import AlreadyExists, InvalidArgument, PermissionDenied
from services.common.state import owned_key
from tests.rpc.upload_fixtures import (  # noqa: F401  pytest finds fixtures by name
    DIGEST,
    FILE,
    Mesh,
    clips,
    mesh_fixture,
    small_fixture,
)


async def test_a_player_finds_the_open_uploads_newest_first_page_by_page(mesh: Mesh) -> None:
    player = mesh.newcomer()
    assert await player.list() == ([], "")
    ids = [(await player.initiate(file_size=100 + n)).session_id for n in range(5)]
    await mesh.mallory.initiate()
    done = await player.uploaded()
    await player.complete(done)
    await player.cancel(ids[2])
    expected = [ids[4], ids[3], ids[1], ids[0]]
    assert await player.list() == (expected, "")
    first, token = await player.list(page_size=2)
    late = (await player.initiate()).session_id
    second, token = await player.list(page_size=1, page_token=token)
    third, token = await player.list(page_size=2, page_token=token)
    assert (first + second + third, token) == (expected, "")
    assert (await player.list(page_size=1))[0] == [late]
    for wrong in ("x", "é", "AAAA", "MjAyNg=="):
        with pytest.raises(InvalidArgument) as refusal:
            await player.list(page_token=wrong)
        assert refusal.value.violations[0].field == "page_token"
    with pytest.raises(PermissionDenied):
        await mesh.merge.list()
    mesh.clock.ahead = timedelta(days=2)
    assert await player.list() == ([], "")


async def test_the_same_file_again_gives_the_open_upload(mesh: Mesh) -> None:
    player = mesh.newcomer()
    first = await player.initiate(file_hash=DIGEST)
    await player.append(first.session_id, 0, FILE[:1500])
    name = uuid.uuid4().hex
    again = await player.initiate(file_hash=DIGEST.upper(), request_id=name, chunk_size=500)
    assert (again.session_id, again.chunk_size, again.upload_offset) == (first.session_id, 1000, 1500)
    for change in ({"file_size": 4301}, {"mime_type": "video/webm"}, {"file_hash": "a" * 64}, {"partial": True}):
        other = await player.initiate(**({"file_hash": DIGEST} | change))
        assert other.session_id != first.session_id
    assert (await mesh.mallory.initiate(file_hash=DIGEST)).session_id != first.session_id
    await player.append(first.session_id, 1500, FILE[1500:])
    done = await player.complete(first.session_id)
    assert (await player.initiate(file_hash=DIGEST)).session_id != first.session_id
    assert await player.initiate(file_hash=DIGEST, request_id=name, chunk_size=500) == done
    with pytest.raises(AlreadyExists) as refusal:
        await player.initiate(file_hash=DIGEST, request_id=name, chunk_size=600)
    assert refusal.value.reason == "REQUEST_ID_REUSED"


async def test_complete_under_one_request_id_is_one_request(mesh: Mesh) -> None:
    id_ = await mesh.alice.uploaded()
    with pytest.raises(InvalidArgument):  # changes nothing, so it is forgotten
        await mesh.alice.complete(id_, "0" * 64, "take 1")
    done = await mesh.alice.complete(id_, DIGEST, "take 1")
    assert await mesh.alice.complete(id_, DIGEST.upper(), "take 1") == done
    for other in ("", "0" * 64):
        with pytest.raises(AlreadyExists) as refusal:
            await mesh.alice.complete(id_, other, "take 1")
        assert refusal.value.reason == "REQUEST_ID_REUSED"
    assert await mesh.alice.complete(id_, "", "take 2") == done


async def test_a_request_may_be_sent_again_from_another_network(mesh: Mesh) -> None:
    name = uuid.uuid4().hex
    first = await mesh.alice.initiate(request_id=name, chunk_size=0, network_type="wifi", device_type="phone")
    assert (first.network_type, first.device_type, first.chunk_size) == ("wifi", "phone", 2 << 20)
    assert await mesh.alice.initiate(request_id=name, chunk_size=0, network_type="3g") == first
    with pytest.raises(AlreadyExists):
        await mesh.alice.initiate(request_id=name, chunk_size=0, partial=True)


@pytest.mark.parametrize(
    ("network", "size"),
    [
        ("", 1 << 20),
        ("wifi", 2 << 20),
        ("WiFi ", 2 << 20),
        ("4g", 1 << 20),
        ("3g", 512 << 10),
        ("edge", 256 << 10),
    ],
)
async def test_the_network_decides_the_chunk_size(small: Mesh, network: str, size: int) -> None:
    assert (await small.alice.initiate(chunk_size=0, network_type=network)).chunk_size == size
    assert (await small.alice.initiate(network_type=network)).chunk_size == 1000
    assert (await small.alice.limits(network)).advised_chunk_size == size


async def test_the_limits_are_told(small: Mesh) -> None:
    limits = await small.alice.limits()
    assert (limits.max_file_size, limits.max_chunk_size, limits.max_chunks) == (10_000, 10_000_000, 10_000)
    assert (list(limits.allowed_types), limits.expiry_seconds) == (["video"], 86_400)


NAMES = {
    "a path": "../../../etc/passwd",
    "an absolute path": "/etc/cron.d/x",
    "a NUL": "a\0.mp4",
    "a header": 'x.mp4"\r\nSet-Cookie: a=b',
    "right to left": "\u202e4pm.exe",
    "4 KB": "é" * 2048,
    "a dot": ".",
    "subject tokens": "uploads.*.>",
}


async def keys_of(mesh: Mesh, name: str) -> set[str]:
    """What the disk holds under whatever names during and after an upload of this name, its id left out."""
    id_ = (await mesh.alice.initiate(filename=name)).session_id
    await mesh.alice.append(id_, 0, FILE)
    paths = {*mesh.root.rglob("*")}
    assert (await mesh.alice.complete(id_)).filename == name
    paths |= {*mesh.root.rglob("*")}
    assert (await mesh.alice.file(id_)).filename == (await mesh.alice.get(id_)).filename == name
    object_ = mesh.root / "objects" / "uploads" / owned_key("alice", id_)
    keys = {str(path.relative_to(mesh.root)).replace(id_, "ID") for path in paths}
    object_.unlink()
    return keys


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
async def test_a_name_is_kept_as_given_and_is_part_of_no_key(mesh: Mesh, name: str) -> None:
    assert await keys_of(mesh, name) | {"objects", "objects/uploads"} == await keys_of(mesh, "plain.mp4")
    clip = clips()[0]
    clip.filename = name
    await mesh.merge.batch([clip])
    assert (await mesh.alice.get(clip.session_id)).filename == name
    with pytest.raises(InvalidArgument):
        await mesh.alice.initiate(filename=name.ljust(4097, "x"))
