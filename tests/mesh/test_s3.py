"""The whole mesh on S3: the same game, and the server dies while it is played."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mesh.swift import BUCKET
from services.common.adapters.s3_bucket import open_bucket
from services.common.settings import CommonSettings
from tests.mesh.harness import Harness, finished, upload_all
from tests.mesh.test_mesh import assert_exact

pytestmark = pytest.mark.xdist_group("mesh")


async def test_a_killed_s3_server_comes_back_and_the_video_is_made_and_streamed(
    tmp_path: Path, clips: list[Path]
) -> None:
    own = Harness(tmp_path, 2, "--s3")
    try:
        own.wait_until_healthy()
        processes = own.info.processes
        async with own.phone("alice") as alice:
            merge_id = await upload_all(alice, clips)
            pid = own.kill("s3")
            session = await finished(alice, merge_id)
            assert await own.restarted("s3", pid) != pid
            merged = session["merged_video"]
            url = (await alice.playback(merged["video_file_id"]))["streaming_url"]
            whole = await alice.read_range(url, "bytes=0-")
            last = await alice.read_range(url, "bytes=-1000")
        size = merged["file_size"]
        assert (whole.status, len(whole.body)) == (206, size)
        assert (last.status, last.body) == (206, whole.body[-1000:])
        assert last.headers["Content-Range"] == f"bytes {size - 1000}-{size - 1}/{size}"
        (tmp_path / "video.mp4").write_bytes(whole.body)
        assert_exact(tmp_path / "video.mp4", merged["segments"])
        # The video, a poster for each statement, the storyboard and the HLS rendition.
        assert await stored(own) == {"uploads": 3, "merges": 3, "videos": 6}
        assert not (own.state.s3 / "data" / "objects").exists()
        assert own.interrupt() == 0
    finally:
        own.close()
    for pid in processes.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def stored(mesh: Harness) -> dict[str, int]:
    """How many objects of each kind there are; parts count as well."""
    ports = mesh.info.ports
    settings = CommonSettings(
        s3_bucket=BUCKET,
        s3_endpoint_url=f"http://127.0.0.1:{ports['s3']}",
        s3_access_key_id="mesh:mesh",
        s3_secret_access_key="mesh-development",
        s3_path_style=True,
    )
    counts: dict[str, int] = {}
    async with open_bucket(settings) as bucket:
        async for info in bucket.list(""):
            kind = info.key.removeprefix("objects/").partition("/")[0]
            counts[kind] = counts.get(kind, 0) + 1
    return counts
