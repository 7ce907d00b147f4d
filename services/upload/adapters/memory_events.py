"""Analytics events in memory: the twin of those on JetStream, for tests."""

from __future__ import annotations

from services.upload.ports import UploadCompleted


class MemoryEvents:
    """Implements :class:`services.upload.ports.Events`; what was told is in ``kept``."""

    def __init__(self) -> None:
        self.kept: list[UploadCompleted] = []

    async def completed(self, event: UploadCompleted) -> None:
        if all(event.upload_id != other.upload_id for other in self.kept):
            self.kept.append(event)
