"""Jobs that failed for good, on the JetStream stream JOBS_DEAD: ``dead.jobs.<kind>.<id>``, one message a job, each
kept for a month. The queue (:mod:`services.common.adapters.jetstream_jobs`) makes the stream and fills it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import UTC

import nats.js.errors
from nats.aio.client import Client

from services.common.adapters.jetstream import AWAY, REQUEST_SECONDS, away, call
from services.common.jobs import DeadJob

_STREAM = "JOBS_DEAD"
_NO_MESSAGE, _NO_STREAM = 10037, 10059


class JetStreamDeadJobs:
    """Implements :class:`services.common.jobs.DeadJobs`."""

    def __init__(self, client: Client) -> None:
        self._js = client.jetstream(timeout=REQUEST_SECONDS)

    async def list(self) -> AsyncGenerator[DeadJob, None]:
        sequence = 0
        while True:
            try:
                message = await call(self._js.get_msg(_STREAM, seq=sequence + 1, subject="dead.jobs.>", next=True))
            except nats.js.errors.NotFoundError as error:
                if error.err_code in (_NO_MESSAGE, _NO_STREAM):  # the end; or no job was ever queued here
                    return
                raise
            except AWAY as error:
                raise away("dead jobs") from error
            sequence, headers = message.seq or 0, message.headers or {}
            _, _, kind, id_ = (message.subject or "").split(".", 3)
            assert message.time is not None, "the server stamps every message"
            reason = headers.get("Twotruths-Reason", "")
            yield DeadJob(id_, kind, message.data or b"", reason, message.time.astimezone(UTC), sequence)

    async def remove(self, job: DeadJob) -> None:
        try:
            await call(self._js.delete_msg(_STREAM, job.sequence))
        except nats.js.errors.APIError as error:
            if error.err_code not in (10043, 10057, _NO_MESSAGE):  # removed by someone else in between
                raise
        except AWAY as error:
            raise away("dead jobs") from error
