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
from services.merge.ports import Delivery, Links, Videos
from services.merge.timeline import FPS

_NAMESPACE = uuid.UUID("0c8f7a52-94fd-4c3e-8f43-1b8e6ab0f6d1")


class Form(StrEnum):
    """In what form a video is played, as the contract names it."""

    PROGRESSIVE = "RENDITION_TYPE_PROGRESSIVE"
    HLS = "RENDITION_TYPE_HLS"


@dataclass(frozen=True, slots=True)
class SidecarUrls:
    """Where the gateway serves what lies beside a video."""

    posters: tuple[str, ...]
    storyboard_image: str
    storyboard_vtt: str
    hls: str


@dataclass(frozen=True, slots=True)
class Playback:
    """Where to play a video from; ``expires_at`` None means as long as the player's token. All URLs carry their
    permission in the same way. ``decided_by`` are the settings and parameters that chose; ``rendition_url`` is
    what the HLS playlist is about."""

    url: str
    delivery: Delivery
    expires_at: datetime | None
    sidecars: SidecarUrls | None = None
    form: Form = Form.PROGRESSIVE
    decided_by: tuple[str, ...] = ()
    rendition_url: str = ""


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
    """Use cases. ``ttl`` in seconds is how long a signed URL lasts beyond the video's own length;
    ``links`` deliver in the gateway's stead."""

    def __init__(
        self, videos: Videos, signer: PlaybackSigner, *, clock: Clock, ttl: float, links: Links | None = None
    ) -> None:
        self._videos = videos
        self._links = links
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

    async def playback(self, caller: Principal, id_: str, *, signed: bool, device: str = "") -> Playback:
        """A URL to play the video from: HLS for a ``device`` "tv" where there is one. Raises NotFound and
        Unavailable."""
        video = await self.get(caller, id_)
        form = Form.HLS if device == "tv" and video.sidecars is not None else Form.PROGRESSIVE
        why = (f"device_type={device}",) if device == "tv" else ()
        if not signed:
            found = Playback(stream_url(id_), Delivery.DIRECT, None, sidecar_urls(id_, video.sidecars))
            why = ("prefer_signed=false", *why)
        else:
            found = await self._signed(video, public=not caller.is_service and caller.subject != video.owner)
            why = ("media_delivery", *why) if self._links is not None else why
        url = found.sidecars.hls if form is Form.HLS and found.sidecars is not None else found.url
        return replace(found, url=url, form=form, decided_by=why)

    async def _signed(self, video: Video, *, public: bool) -> Playback:
        """With URLs that carry their permission, ``public``: until the video is withdrawn. Texts stay the
        gateway's, whoever delivers the rest."""
        now = self._clock().timestamp()
        query = self._signer.sign(video.id, now=now, ttl=self._ttl + sum(video.frames) / FPS, public=public)
        until = datetime.fromtimestamp(query.expires, UTC)
        beside = sidecar_urls(video.id, video.sidecars, f"?{query.query()}")
        if self._links is None:
            return Playback(f"{stream_url(video.id)}?{query.query()}", Delivery.GATEWAY_SIGNED, until, beside)
        keys = [video.object_key]
        if video.sidecars is not None:
            keys += [video.sidecars.rendition.file.object_key, video.sidecars.storyboard.file.object_key]
            keys += [poster.object_key for poster in video.sidecars.posters]
        signed = await self._links.sign(keys, until)
        url, *rest = signed.urls
        if beside is not None:
            beside = replace(beside, storyboard_image=rest[1], posters=tuple(rest[2:]))
        until, rendition = min(until, signed.until), rest[0] if rest else ""
        return Playback(url, self._links.delivery, until, beside, rendition_url=rendition)

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
