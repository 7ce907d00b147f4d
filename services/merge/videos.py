"""The use cases of merged videos: who may see one, and from where."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum

from services.common.clock import Clock
from services.common.context import Principal
from services.common.errors import FailedPrecondition, NotFound
from services.common.playback import PlaybackSigner
from services.common.state import mutate
from services.merge.domain import Reason, Sidecars, Video, Visibility
from services.merge.ports import Videos
from services.merge.timeline import FPS

_NAMESPACE = uuid.UUID("0c8f7a52-94fd-4c3e-8f43-1b8e6ab0f6d1")


class Delivery(StrEnum):
    """How a video's bytes are delivered, as the contract names it."""

    GATEWAY_SIGNED = "DELIVERY_TYPE_GATEWAY_SIGNED"
    DIRECT = "DELIVERY_TYPE_DIRECT"


@dataclass(frozen=True, slots=True)
class SidecarUrls:
    """Where the gateway serves what lies beside a video."""

    posters: tuple[str, ...]
    storyboard_image: str
    storyboard_vtt: str
    hls: str


@dataclass(frozen=True, slots=True)
class Playback:
    """Where to play a video from; ``expires_at`` None means as long as the player's token. All URLs carry the same
    permission."""

    url: str
    delivery: Delivery
    expires_at: datetime | None
    sidecars: SidecarUrls | None = None


def video_id(session_id: str) -> str:
    """The id of the video that a session ends in: the same however often the end is reached."""
    return str(uuid.uuid5(_NAMESPACE, session_id))


def stream_url(video: str) -> str:
    """The gateway's path of a video's bytes."""
    return f"/api/v1/media/stream/{video}"


def sidecar_urls(video: str, sidecars: Sidecars | None, query: str = "") -> SidecarUrls | None:
    """The gateway's paths of what lies beside a video. ``query`` is the permission, with its question mark."""
    if sidecars is None:
        return None
    base = stream_url(video)
    return SidecarUrls(
        posters=tuple(f"{base}/posters/{statement}.jpg{query}" for statement in range(len(sidecars.posters))),
        storyboard_image=f"{base}/storyboard.jpg{query}",
        storyboard_vtt=f"{base}/storyboard.vtt{query}",
        hls=f"{base}/hls.m3u8{query}",
    )


class MergedVideos:
    """Use cases. ``ttl`` in seconds is how long a signed URL lasts beyond the video's own length."""

    def __init__(self, videos: Videos, signer: PlaybackSigner, *, clock: Clock, ttl: float) -> None:
        self._videos = videos
        self._signer = signer
        self._clock = clock
        self._ttl = ttl

    async def get(self, caller: Principal, id_: str) -> Video:
        """The video, for a service, its owner, or anyone once it is public. Raises NotFound."""
        entry = await self._videos.get(id_)
        if entry is None or entry.value.deleted_at is not None:
            raise _not_found()
        video = entry.value
        if caller.is_service or video.owner == caller.subject or video.visibility is Visibility.PUBLIC:
            return video
        raise _not_found()

    async def playback(self, caller: Principal, id_: str, *, signed: bool) -> Playback:
        """A URL to play the video from. Raises NotFound."""
        video = await self.get(caller, id_)
        if not signed:
            return Playback(stream_url(id_), Delivery.DIRECT, None, sidecar_urls(id_, video.sidecars))
        now = self._clock().timestamp()
        signed_query = self._signer.sign(id_, now=now, ttl=self._ttl + sum(video.frames) / FPS)
        expires, query = datetime.fromtimestamp(signed_query.expires, UTC), f"?{signed_query.query()}"
        beside = sidecar_urls(id_, video.sidecars, query)
        return Playback(f"{stream_url(id_)}{query}", Delivery.GATEWAY_SIGNED, expires, beside)

    async def set_visibility(self, owner: str, id_: str, visibility: Visibility) -> Video:
        """Says who may see the owner's video. Raises NotFound."""

        def changed(video: Video) -> Video:
            if video.owner != owner or video.deleted_at is not None:
                raise _not_found()
            return video if video.visibility is visibility else replace(video, visibility=visibility)

        entry = await mutate(self._videos, id_, changed)
        if entry is None:
            raise _not_found()
        return entry.value

    async def delete(self, owner: str, id_: str) -> None:
        """From now on nobody finds the owner's video, and its files go; again changes nothing. A video that is
        public belongs to a challenge that players see: publishing and deleting are writes of one record, so
        whichever comes first wins. Raises NotFound and FailedPrecondition (VIDEO_IN_USE)."""
        now = self._clock()

        def deleted(video: Video) -> Video:
            if video.owner != owner:
                raise _not_found()
            if video.deleted_at is not None:
                return video
            if video.visibility is Visibility.PUBLIC:
                raise FailedPrecondition(
                    "a published challenge shows this video: withdraw it first", reason=Reason.VIDEO_IN_USE
                )
            return replace(video, deleted_at=now)

        if await mutate(self._videos, id_, deleted) is None:
            raise _not_found()


def _not_found() -> NotFound:
    return NotFound("no video that you may see has this id", reason=Reason.VIDEO_NOT_FOUND)
