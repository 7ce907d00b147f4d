"""Where a video is played from: by the gateway, S3 or CloudFront, as MP4 or HLS; and that the answer says so."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest

from services.common.adapters.memory import MemoryStateStore
from services.common.adapters.s3_bucket import S3Bucket
from services.common.adapters.s3_objects import S3ObjectStore
from services.common.clock import utc_now
from services.common.context import Principal
from services.common.playback import PlaybackSigner
from services.merge.adapters.s3_links import S3Links
from services.merge.domain import Rendition, Sidecars, StoredFile, Storyboard, Video, Visibility
from services.merge.ports import Delivery, Links, Signed
from services.merge.videos import Form, MergedVideos

NOW = datetime(2026, 9, 21, 14, 13, 20, tzinfo=UTC)
ALICE = Principal("alice", frozenset())
FRAMES = (9_000, 18_000, 27_000)  # half an hour


def beside(name: str) -> StoredFile:
    return StoredFile(f"videos/s/{name}", 1, "")


SIDECARS = Sidecars(
    posters=(beside("poster0.jpg"), beside("poster1.jpg"), beside("poster2.jpg")),
    storyboard=Storyboard(beside("storyboard.jpg"), 1, 1, 1, (0,)),
    rendition=Rendition(beside("hls.mp4"), (1,), (0,)),
)


class Elsewhere:
    """Links that end a minute before they are wanted to."""

    delivery = Delivery.CDN_SIGNED

    async def sign(self, keys: Sequence[str], until: datetime) -> Signed:
        return Signed(tuple(f"https://cdn/{key}" for key in keys), until - timedelta(minutes=1))


async def videos(links: Links | None = None, *, sidecars: Sidecars | None = SIDECARS) -> MergedVideos:
    store: MemoryStateStore[Video] = MemoryStateStore()
    record = Video("v", "alice", "s", "videos/s/t.mp4", 1, "", FRAMES, 2, 2, created_at=NOW, sidecars=sidecars)
    await store.create("v", record)
    signer = PlaybackSigner({"k": b"k" * 32})
    return MergedVideos(store, signer, clock=lambda: NOW, ttl=3600, links=links)


async def test_a_signed_url_outlasts_the_video_by_the_margin() -> None:
    playback = await (await videos()).playback(ALICE, "v", signed=True)
    assert playback.expires_at == NOW + timedelta(seconds=3600 + sum(FRAMES) / 30)


async def test_a_stranger_gets_a_url_that_ends_with_the_videos_being_public() -> None:
    some = await videos()
    await some.set_visibility("alice", "v", Visibility.PUBLIC)
    for caller, public in ((ALICE, False), (Principal("bob", frozenset()), True)):
        playback = await some.playback(caller, "v", signed=True)
        assert ("public=1" in playback.url) is public


async def test_a_tv_gets_hls_where_there_is_one_and_the_answer_says_why() -> None:
    cases: list[tuple[str, Sidecars | None, Form, tuple[str, ...]]] = [
        ("", SIDECARS, Form.PROGRESSIVE, ()),
        ("mobile", SIDECARS, Form.PROGRESSIVE, ()),
        ("tv", SIDECARS, Form.HLS, ("device_type=tv",)),
        ("tv", None, Form.PROGRESSIVE, ("device_type=tv",)),
    ]
    for device, sidecars, form, why in cases:
        some = await videos(sidecars=sidecars)
        for signed in (True, False):
            playback = await some.playback(ALICE, "v", signed=signed, device=device)
            assert playback.form is form
            assert playback.url.partition("?")[0].endswith(".m3u8") is (form is Form.HLS)
            assert playback.decided_by == (why if signed else ("prefer_signed=false", *why))
            assert ("signature=" in playback.url) is signed


async def test_another_delivers_the_files_and_the_gateway_the_texts() -> None:
    some = await videos(Elsewhere())
    playback = await some.playback(ALICE, "v", signed=True)
    assert (playback.url, playback.delivery) == ("https://cdn/videos/s/t.mp4", Delivery.CDN_SIGNED)
    assert playback.rendition_url == "https://cdn/videos/s/hls.mp4"
    assert playback.decided_by == ("media_delivery",)
    assert playback.sidecars is not None
    assert playback.sidecars.posters[2] == "https://cdn/videos/s/poster2.jpg"
    assert playback.sidecars.storyboard_image == "https://cdn/videos/s/storyboard.jpg"
    assert playback.sidecars.hls.startswith("/api/v1/media/stream/v/hls.m3u8?expires=")
    assert playback.expires_at == NOW + timedelta(seconds=3540 + sum(FRAMES) / 30), "the first that ends"
    tv = await some.playback(ALICE, "v", signed=True, device="tv")
    assert (tv.url, tv.decided_by) == (tv.sidecars and tv.sidecars.hls, ("media_delivery", "device_type=tv"))
    direct = await some.playback(ALICE, "v", signed=False)
    assert (direct.url, direct.delivery) == ("/api/v1/media/stream/v", Delivery.DIRECT)


@pytest.mark.xdist_group("s3")
async def test_a_presigned_url_reads_its_object_and_says_what_it_is(s3_bucket: S3Bucket, tmp_path: Path) -> None:
    store, now = S3ObjectStore(s3_bucket), utc_now()
    for name, kind in (("t.mp4", "video/mp4"), ("poster0.jpg", "image/jpeg")):
        source = tmp_path / name
        source.write_bytes(b"0123456789")
        await store.put_file(f"videos/s/{name}", source)
        signed = await S3Links(s3_bucket, clock=lambda: now).sign([f"videos/s/{name}"], now + timedelta(hours=1))
        assert signed.until == now + timedelta(hours=1)
        async with aiohttp.ClientSession() as http:
            async with http.get(signed.urls[0]) as response:
                assert (response.status, await response.read()) == (200, b"0123456789")
                assert response.headers["Content-Type"] == kind
            async with http.get(signed.urls[0], headers={"Range": "bytes=2-4"}) as response:
                assert (response.status, await response.read()) == (206, b"234")
            async with http.head(signed.urls[0]) as response:
                assert response.status == 403, "the signature binds the method"
            async with http.get(signed.urls[0].replace(name, "other.mp4")) as response:
                assert response.status == 403


@pytest.mark.xdist_group("s3")
async def test_a_presigned_url_does_not_outlive_who_signed_it(
    s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = s3_bucket._client._get_credentials()
    monkeypatch.setattr(credentials, "_expiry_time", NOW + timedelta(minutes=5), raising=False)
    for wanted, given in (
        (timedelta(minutes=2), timedelta(minutes=2)),
        (timedelta(days=30), timedelta(minutes=5)),
    ):
        _, until = await s3_bucket.presign("objects/a", NOW + wanted, NOW)
        assert until == NOW + given
    monkeypatch.delattr(credentials, "_expiry_time")
    _, until = await s3_bucket.presign("objects/a", NOW + timedelta(days=30), NOW)
    assert until == NOW + timedelta(days=7), "what SigV4 allows"
