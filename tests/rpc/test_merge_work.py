"""What a job leaves in the object store, however it ends: all its files, or none."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.common.adapters.directory_objects import DirectoryObjectStore
from services.common.errors import ResourceExhausted
from services.common.objects import ObjectInfo
from services.merge.domain import Clip, JobKind, Outcome, Session, Unit, UnitRef, UnitState
from services.merge.media.errors import MediaError
from services.merge.media.protocol import MAX_NUMBER
from services.merge.patience import Patience
from services.merge.scratch import Scratch
from services.merge.timeline import Canvas, ClipInfo, MergedFile, NormalisedClip
from services.merge.work import MergeWork
from tests.rpc.merge_world import SteeredMedia

NOW = datetime(2026, 1, 1, tzinfo=UTC)
AT_ONCE = Patience(0)
CLIP = ClipInfo("mp4", "h264", 1280, 720, 0, 3.0, 30.0, True, "aac")


async def uploaded(folder: Path) -> None:
    """The one clip is in the store there."""
    (folder / "clip").write_bytes(b"clip")
    await DirectoryObjectStore(folder).put_file("uploads/a", folder / "clip")


def normalising(objects: DirectoryObjectStore, scratch: Scratch) -> asyncio.Task[Outcome]:
    """A job on the one clip that is uploaded, begun."""
    clip = Clip(0, "upload", "a.mp4", 1, 1.0, "video/mp4", source_key="uploads/a")
    session = Session("s", "alice", "", "", (clip,), NOW, NOW, NOW, canvas=Canvas(64, 64))
    work = MergeWork(objects, SteeredMedia(), scratch)
    return asyncio.create_task(work.do(session, UnitRef(JobKind.NORMALISE, 0, 0, 1), "token", lambda *_: None))


async def test_a_job_that_is_stopped_while_its_file_is_being_stored_leaves_none(tmp_path: Path) -> None:
    storing, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    class SlowObjects(DirectoryObjectStore):
        def _put(self, key: str, source: Path) -> ObjectInfo:
            stored = super()._put(key, source)
            loop.call_soon_threadsafe(storing.set)
            go_on.wait(10)  # the disk is slow to say that it has it
            return stored

    await uploaded(tmp_path)
    objects, scratch = SlowObjects(tmp_path), Scratch(tmp_path / "scratch")
    doing = normalising(objects, scratch)
    await storing.wait()
    doing.cancel()
    loop.call_later(0.05, go_on.set)
    await asyncio.gather(doing, return_exceptions=True)
    assert doing.cancelled()
    assert [info.key async for info in objects.list("")] == ["uploads/a"]
    scratch.close()


async def test_a_job_that_is_stopped_when_its_file_is_stored_leaves_none(tmp_path: Path) -> None:
    stored = asyncio.Event()

    class SlowToTidy(Scratch):
        @asynccontextmanager
        async def folder(self) -> AsyncIterator[Path]:
            async with super().folder() as path:
                yield path
                stored.set()
                await asyncio.Event().wait()

    await uploaded(tmp_path)
    objects, scratch = DirectoryObjectStore(tmp_path), SlowToTidy(tmp_path / "scratch")
    doing = normalising(objects, scratch)
    await stored.wait()
    assert len([info async for info in objects.list("")]) == 2
    doing.cancel()
    await asyncio.gather(doing, return_exceptions=True)
    assert doing.cancelled()
    assert [info.key async for info in objects.list("")] == ["uploads/a"]
    scratch.close()


def normalised(made: Outcome) -> Session:
    """A session whose one clip was normalised."""
    units = (Unit(JobKind.NORMALISE, 0, NOW, state=UnitState.DONE, outcome=made),)
    clip = Clip(0, "upload", "a.mp4", 1, 1.0, "video/mp4", source_key="uploads/a")
    return Session("s", "alice", "", "", (clip,), NOW, NOW, NOW, canvas=Canvas(64, 64), units=units)


async def test_a_merge_whose_files_cannot_all_be_stored_or_do_not_count_leaves_none(tmp_path: Path) -> None:
    class Full(DirectoryObjectStore):
        refused = "video.mp4"

        async def put_file(self, key: str, source: Path) -> ObjectInfo:
            if key.endswith(self.refused):
                raise ResourceExhausted("full")
            return await super().put_file(key, source)

    (tmp_path / "clip").write_bytes(b"clip")
    await DirectoryObjectStore(tmp_path).put_file("merges/s/a.mov", tmp_path / "clip")
    objects, scratch = Full(tmp_path), Scratch(tmp_path / "scratch")
    made = Outcome(object_key="merges/s/a.mov", frames=(30,), sha256=hashlib.sha256(b"clip").hexdigest())
    session = normalised(made)
    work, ref = MergeWork(objects, SteeredMedia(), scratch, patience=AT_ONCE), UnitRef(JobKind.MERGE, -1, 0, 1)
    with pytest.raises(MediaError, match="storage_unavailable"):
        await work.do(session, ref, "token", lambda *_: None)
    assert [info.key async for info in objects.list("")] == ["merges/s/a.mov"]
    objects.refused = "nothing"
    outcome = await work.do(session, ref, "token", lambda *_: None)
    assert {info.key async for info in objects.list("videos/")} == outcome.object_keys
    await work.undo(outcome)
    assert [info.key async for info in objects.list("")] == ["merges/s/a.mov"]
    scratch.close()


async def test_a_prepared_clip_that_changed_since_it_was_verified_is_not_merged(tmp_path: Path) -> None:
    (tmp_path / "clip").write_bytes(b"clip")
    await (objects := DirectoryObjectStore(tmp_path)).put_file("merges/s/a.mov", tmp_path / "clip")
    scratch, digest = Scratch(tmp_path / "scratch"), hashlib.sha256(b"Clip").hexdigest()
    made = Outcome(object_key="merges/s/a.mov", frames=(30,), sha256=digest)
    session = normalised(made)
    work, ref = MergeWork(objects, SteeredMedia(), scratch), UnitRef(JobKind.MERGE, -1, 0, 1)
    with pytest.raises(MediaError, match="verification_failed"):
        await work.do(session, ref, "token", lambda *_: None)
    scratch.close()


@pytest.mark.parametrize("kind", [JobKind.PROBE, JobKind.NORMALISE, JobKind.MERGE])
async def test_no_answer_of_a_child_gets_into_the_record_unchecked(tmp_path: Path, kind: JobKind) -> None:
    class TakenOver(SteeredMedia):
        async def probe(self, source: Path) -> ClipInfo:
            return replace(CLIP, duration=float(MAX_NUMBER))

        async def normalise(self, *_: object) -> NormalisedClip:
            return NormalisedClip(MAX_NUMBER, 1, "")

        async def merge(self, *_: object) -> MergedFile:
            return MergedFile((1, 1), 1280, 720, 1, "")

    (tmp_path / "clip").write_bytes(b"clip")
    await (objects := DirectoryObjectStore(tmp_path)).put_file("uploads/a", tmp_path / "clip")
    scratch, digest = Scratch(tmp_path / "scratch"), hashlib.sha256(b"clip").hexdigest()
    made = Outcome(object_key="uploads/a", frames=(30,), sha256=digest)
    session = normalised(made)
    ref = UnitRef(kind, -1 if kind is JobKind.MERGE else 0, 0, 1)
    with pytest.raises(MediaError, match="worker_failed"):
        await MergeWork(objects, TakenOver(), scratch).do(session, ref, "token", lambda *_: None)
    assert [info.key async for info in objects.list("")] == ["uploads/a"]
    scratch.close()
