"""Videos that another than the gateway delivers: redirects, and addresses in playlists."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from services.common.keys import KeyRing
from tests.rpc.fake_uploads import NOW
from tests.rpc.gateway_world import open_world
from twotruths.merge.v1.video_service_pb2 import GetPlaybackResponse

SECRET = "Policy=cG9saWN5&Signature=c2ln&Key-Pair-Id=K1"
THERE = GetPlaybackResponse(
    streaming_url=f"https://cdn/v.mp4?Expires=1&{SECRET}", rendition_url=f"https://cdn/hls.mp4?{SECRET}"
)
THERE.storyboard.image_url = f"https://cdn/sheet.jpg?{SECRET}"


async def test_a_signed_url_is_sent_to_who_delivers_and_a_bearer_is_not(
    keys: KeyRing, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with open_world(keys, tmp_path, media_delivery="cdn", media_redirect=True) as world:
        video = await world.add_video(b"abc")
        world.merges.playback = THERE
        url = f"/api/v1/media/stream/{video}"
        signed = world.signer.sign(video, now=NOW.seconds, ttl=60).query()
        late = world.signer.sign(video, now=NOW.seconds - 100, ttl=60).query()
        for method, query, user, status in (
            ("GET", signed, "", 302),
            ("HEAD", signed, "", 200),  # an S3 URL is for one method
            ("GET", signed + "&download=1", "", 200),  # only the gateway names the file
            ("GET", "", "alice", 200),  # the token would go along
            ("GET", "", "bob", 404),
            ("GET", late, "", 403),
        ):
            async with world.call(method, f"{url}?{query}", user=user, allow_redirects=False) as response:
                assert response.status == status, (method, query)
                if status == 302:
                    assert response.headers["Location"] == THERE.streaming_url
                    assert response.headers["Cache-Control"] == "no-store"
    assert not [word for word in ("cG9saWN5", "c2ln") if word in caplog.text]


async def test_without_the_setting_the_bytes_pass_through(keys: KeyRing, tmp_path: Path) -> None:
    async with open_world(keys, tmp_path, media_delivery="cdn") as world:
        video = await world.add_video(b"abc")
        world.merges.playback = THERE
        signed = world.signer.sign(video, now=NOW.seconds, ttl=60).query()
        async with world.call("GET", f"/api/v1/media/stream/{video}?{signed}", user="") as response:
            assert (response.status, await response.read()) == (200, b"abc")


async def test_texts_name_who_delivers_to_whom_a_signature_permits(keys: KeyRing, tmp_path: Path) -> None:
    async with open_world(keys, tmp_path, media_delivery="cdn") as world:
        video = await world.add_video(b"abc")
        await world.add_sidecars(video, bytes(1000))
        world.merges.playback = THERE
        base = f"/api/v1/media/stream/{video}"
        signed = world.signer.sign(video, now=NOW.seconds, ttl=60).query()
        for name, there, here in (
            ("hls.m3u8", THERE.rendition_url, "hls.mp4"),
            ("storyboard.vtt", THERE.storyboard.image_url, "storyboard.jpg"),
        ):
            async with world.call("GET", f"{base}/{name}?{signed}", user="") as response:
                text = await response.text()
                assert (there in text, f"\n{here}" in text) == (True, False)
            async with world.call("GET", f"{base}/{name}") as response:
                text = await response.text()
                assert ("cdn" in text, f"\n{here}" in text) == (False, True)
