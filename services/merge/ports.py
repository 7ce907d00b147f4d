"""What the merge service needs from outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol, TypeAlias

from services.common.state import StateStore
from services.merge.domain import Clip, Outcome, Session, UnitRef, Video
from services.merge.planner import ClipUpload
from services.merge.timeline import (
    Canvas,
    ClipInfo,
    CutClip,
    MergedFile,
    NormalisedClip,
    Piece,
    Quality,
    SidecarFiles,
)

Sessions: TypeAlias = StateStore[Session]
"""Merge sessions by ``owned_key(owner, id)``."""

Videos: TypeAlias = StateStore[Video]
"""Merged videos by id: every player may ask for any of them, so the key cannot hold the owner."""

OnProgress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Begun:
    """Uploads of a session in order of its clips, and what the upload service tells the owner of the limits."""

    uploads: Sequence[ClipUpload]
    rate_limits: tuple[tuple[str, str], ...] = ()


class Uploads(Protocol):
    """The upload service. Every method raises Unavailable when it does not answer."""

    async def batch_initiate(self, session: Session) -> Begun:
        """Makes the session's uploads, or finds them made. Raises InvalidArgument when
        one is refused (violations name ``clips[i].…``) and AlreadyExists when an id means another upload."""

    async def initiate_clip(self, session: Session, clip: Clip) -> Begun:
        """Makes the upload of a clip that is to take another's place, or finds it made. Raises InvalidArgument,
        ResourceExhausted (the owner's quota) and AlreadyExists when the id means another upload."""

    async def get(self, owner: str, upload_id: str) -> ClipUpload | None:
        """The upload as it is, None when there is none (any more)."""

    async def discard(self, owner: str, upload_id: str) -> None:
        """Cancels the upload or, if it is completed, removes its file. One that is not there is no error."""


class Delivery(StrEnum):
    """How a video's bytes are delivered, as the contract names it."""

    CDN_SIGNED = "DELIVERY_TYPE_CDN_SIGNED"
    S3_SIGNED = "DELIVERY_TYPE_S3_SIGNED"
    GATEWAY_SIGNED = "DELIVERY_TYPE_GATEWAY_SIGNED"
    DIRECT = "DELIVERY_TYPE_DIRECT"


@dataclass(frozen=True, slots=True)
class Signed:
    """URLs that carry their own permission, in the order of the keys, and until when all of them work."""

    urls: tuple[str, ...]
    until: datetime


class Links(Protocol):
    """Whoever delivers objects in the gateway's stead."""

    delivery: Delivery

    async def sign(self, keys: Sequence[str], until: datetime) -> Signed:
        """URLs of a video and of what lies beside it in its folder, to GET until then, or for a shorter time where
        there is no longer one. Raises Unavailable when there is nothing to sign with now."""


class Media(Protocol):
    """The media work, each call in a child process of its own. Raises MediaError (services.merge.media.errors).
    Cancelling a call ends its child and removes its target."""

    async def probe(self, source: Path) -> ClipInfo:
        """Looks at a clip."""

    async def normalise(
        self,
        source: Path,
        target: Path,
        canvas: Canvas,
        quality: Quality,
        on_progress: OnProgress,
        piece: Piece | None = None,
    ) -> NormalisedClip:
        """Brings a clip to the canvas, or a piece of it and that without sound; progress in frames."""

    async def merge(
        self,
        clips: Sequence[Path | CutClip],
        target: Path,
        quality: Quality,
        on_progress: OnProgress,
        beside: Sequence[Path] = (),
    ) -> MergedFile:
        """Joins normalised clips and verifies the result; progress in frames. ``beside`` are targets for a poster
        for each clip, the storyboard's sheet and the HLS rendition; the result says whether they were made."""

    async def copy(
        self,
        sources: Sequence[Path],
        target: Path,
        quality: Quality,
        on_progress: OnProgress,
        beside: Sequence[Path] = (),
    ) -> MergedFile:
        """Joins clips as they were sent: their video is copied, their sound encoded once. Verifies the result."""

    async def sidecars(self, merged: Path, targets: Sequence[Path], frames: tuple[int, ...]) -> SidecarFiles:
        """Makes what a merge or a copy could not make ``beside`` a video of clips with so many frames."""


class Work(Protocol):
    """What a job does."""

    async def do(self, session: Session, ref: UnitRef, token: str, on_progress: OnProgress) -> Outcome:
        """Does the unit. Raises MediaError, also for an object store that stays full or away."""

    async def undo(self, outcome: Outcome) -> None:
        """Removes what was stored for an outcome that does not count."""
