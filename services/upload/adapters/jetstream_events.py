"""Analytics events on JetStream: stream UPLOAD_EVENTS, bounded by age and size, the oldest go first."""

from __future__ import annotations

import logging

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js.api import DiscardPolicy, Header, StorageType, StreamConfig

from services.common.adapters.jetstream import AWAY, REQUEST_SECONDS, call, ensure_stream
from services.common.codec import RecordCodec
from services.upload.ports import UploadCompleted
from twotruths.upload.v1 import event_pb2

STREAM = "UPLOAD_EVENTS"
COMPLETED = "events.upload.completed"
_AGE_SECONDS = 7 * 86_400
_MAX_BYTES = 64 << 20
_DUPLICATES_SECONDS = 120

log = logging.getLogger(__name__)


class JetStreamEvents:
    """Implements :class:`services.upload.ports.Events`. Call :meth:`ensure` before the first use."""

    def __init__(self, client: Client, *, replicas: int = 1) -> None:
        self._js = client.jetstream(timeout=REQUEST_SECONDS)
        self._replicas = replicas
        self._codec = RecordCodec(UploadCompleted, event_pb2.UploadCompleted)

    async def ensure(self) -> None:
        """Makes the stream if it is missing. Raises Unavailable."""
        await ensure_stream(
            self._js,
            StreamConfig(
                name=STREAM,
                subjects=["events.upload.>"],
                discard=DiscardPolicy.OLD,
                max_age=_AGE_SECONDS,
                max_bytes=_MAX_BYTES,
                duplicate_window=_DUPLICATES_SECONDS,
                storage=StorageType.FILE,
                num_replicas=self._replicas,
            ),
        )

    async def completed(self, event: UploadCompleted) -> None:
        headers: dict[str, str] = {Header.MSG_ID.value: event.upload_id}
        try:
            await call(
                self._js.publish(COMPLETED, self._codec.encode(event), stream=STREAM, headers=dict(headers))
            )
        except (nats.errors.Error, nats.js.errors.APIError, ValueError, *AWAY) as error:
            log.warning("event dropped: %s", error, extra={"data": {"upload": event.upload_id}})
