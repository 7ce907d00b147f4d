"""How uploads went: what is told of each that is completed."""

from __future__ import annotations

from collections import OrderedDict

from services.upload.domain import Upload
from services.upload.ports import Events, UploadCompleted

_REMEMBERED = 10_000


class Replays:
    """Counts, for each upload, the chunks that came again. In memory, and of the latest uploads alone: it is for
    analytics, so a restart or another replica may make it too low."""

    def __init__(self) -> None:
        self._counts: OrderedDict[str, int] = OrderedDict()

    def add(self, key: str) -> None:
        """A chunk of the upload with this record key came again."""
        self._counts[key] = self._counts.pop(key, 0) + 1
        if len(self._counts) > _REMEMBERED:
            self._counts.popitem(last=False)

    def take(self, key: str) -> int:
        """How many there were; from now on none."""
        return self._counts.pop(key, 0)


class Analytics:
    """Tells ``events`` how an upload went."""

    def __init__(self, events: Events, replays: Replays) -> None:
        self._events = events
        self._replays = replays

    async def completed(self, key: str, upload: Upload) -> None:
        """``upload``, with this record key, has just become whole. Never raises."""
        assert upload.completed_at is not None
        seconds = max(0.001, (upload.completed_at - upload.created_at).total_seconds())
        await self._events.completed(
            UploadCompleted(
                upload_id=upload.id,
                purpose=upload.purpose,
                seconds=seconds,
                bytes=upload.size,
                bytes_per_second=upload.size / seconds,
                chunks=upload.grid.total,
                replayed_chunks=self._replays.take(key),
                network_type=upload.network_type,
                device_type=upload.device_type,
                completed_at=upload.completed_at,
            )
        )
