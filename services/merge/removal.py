"""What a deleted video leaves behind: its file and all that lies beside it in the video's folder.

DeleteVideo only writes down that the video is gone, from when on nobody finds it. That change wakes this loop,
which empties the folder and lets the record go after a while. Until it is written down that the folder is empty
the change comes again, so a crash anywhere only means a repeat. The record stays that long so that a controller
that still works on the session's end finds it, and does not make the video anew.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import timedelta

from services.common.changes import ChangeFeed
from services.common.errors import ServiceError
from services.common.objects import ObjectStore
from services.common.state import mutate
from services.merge.domain import Video, folder_of
from services.merge.ports import Videos

log = logging.getLogger(__name__)

_RECORD_STAYS = timedelta(days=1)
_RETRY_SECONDS = 2.0


class VideoRemover:
    """Empties the folders of deleted videos."""

    def __init__(self, videos: Videos, objects: ObjectStore) -> None:
        self._videos = videos
        self._objects = objects

    async def follow(self, feed: ChangeFeed[Video]) -> None:
        """Removes each video that a change says is deleted, for ever."""
        while True:
            try:
                change = await feed.next(5.0)
            except ServiceError as error:
                log.info("no changes: %s", error)
                await asyncio.sleep(1)
                continue
            if change is None:
                continue
            try:
                await self.remove(change.key)
            except Exception:
                log.exception("removal put off", extra={"data": {"video": change.key}})
                await change.retry(_RETRY_SECONDS)
            else:
                await change.ack()

    async def remove(self, key: str) -> None:
        """Removes the files of the video at this key if it is deleted. Raises Unavailable and Aborted."""
        entry = await self._videos.get(key)
        if entry is None or entry.value.deleted_at is None or entry.value.cleaned:
            return
        async for info in self._objects.list(folder_of(entry.value.merge_session_id)):
            await self._objects.delete(info.key)
        await mutate(
            self._videos,
            key,
            lambda video: replace(video, cleaned=True),
            ttl=lambda _: _RECORD_STAYS.total_seconds(),
        )
        log.info("video removed", extra={"data": {"video": key}})
