"""The state store on a JetStream key-value bucket.

A bucket *is* a stream ``KV_<bucket>`` with one message per subject ``$KV.<bucket>.<key>``. Writes are published
to that subject directly, because nats-py's ``kv.update`` cannot carry a TTL and a write without one takes
the record's TTL away. Each write has an operation id in its headers: when the answer to a publish is lost,
reading the record back tells whether the write took effect. Reads go to the leader (``direct=False``), so an
acknowledged write is always seen. An empty value (a delete marker, or what an expired TTL left) is no record,
yet it has a revision, which the next create must name.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, TypeVar

import nats.js.errors
from nats.aio.client import Client
from nats.js.api import DiscardPolicy, Header, RetentionPolicy, StorageType, StreamConfig

from services.common.adapters.jetstream import (
    AWAY,
    PATIENCE_SECONDS,
    REQUEST_SECONDS,
    away,
    call,
    ensure_stream,
    is_conflict,
    patiently,
)
from services.common.adapters.jetstream_pages import Stored, stored
from services.common.codec import Codec
from services.common.state import Entry, RevisionConflict

log = logging.getLogger(__name__)
T = TypeVar("T")

_OPERATION = "Twotruths-Operation"
_MARKER_TTL_SECONDS = 3600
_MARKERS = {"KV-Operation", "Nats-Marker-Reason"}  # what deletes and expired TTLs leave


@dataclass(frozen=True, slots=True)
class _Raw:
    """A subject's last message. ``value`` is None for a marker; ``revision`` 0 when there is no message."""

    value: bytes | None
    revision: int
    operation: str


async def _newest(messages: AsyncGenerator[Stored, None]) -> AsyncGenerator[Stored, None]:
    """Each subject once, as it was last: one owner's records, which are few."""
    async with aclosing(messages):
        newest = {message.subject: message async for message in messages}
    for message in sorted(newest.values(), key=lambda message: message.sequence):
        yield message


class JetStreamStateStore(Generic[T]):
    """Implements :class:`services.common.state.StateStore`. Call :meth:`ensure` before the first use.

    ``marker_ttl``: seconds for which a delete leaves its marker, for followers of the bucket to see.
    """

    def __init__(
        self,
        client: Client,
        bucket: str,
        codec: Codec[T],
        *,
        replicas: int = 1,
        marker_ttl: float = _MARKER_TTL_SECONDS,
    ) -> None:
        self._nc = client
        self._js = client.jetstream(timeout=REQUEST_SECONDS)
        self._bucket = bucket
        self._codec = codec
        self._replicas = replicas
        self._marker_ttl = marker_ttl

    async def ensure(self) -> None:
        """Makes the bucket if it is missing. Raises Unavailable."""
        await ensure_stream(
            self._js,
            StreamConfig(
                name=f"KV_{self._bucket}",
                subjects=[f"$KV.{self._bucket}.>"],
                max_msgs_per_subject=1,
                discard=DiscardPolicy.NEW,
                retention=RetentionPolicy.LIMITS,
                storage=StorageType.FILE,
                num_replicas=self._replicas,
                allow_rollup_hdrs=True,
                deny_delete=True,
                allow_direct=True,
                allow_msg_ttl=True,
                subject_delete_marker_ttl=_MARKER_TTL_SECONDS,
            ),
        )

    async def get(self, key: str) -> Entry[T] | None:
        raw = await self._read(key)
        return None if raw.value is None else Entry(key, self._codec.decode(raw.value), raw.revision)

    async def create(self, key: str, value: T, *, ttl: float | None = None) -> Entry[T]:
        data = self._codec.encode(value)
        try:
            revision = await self._write(key, data, 0, ttl)
        except RevisionConflict:
            raw = await self._read(key)
            if raw.value is not None or raw.revision == 0:
                raise
            revision = await self._write(key, data, raw.revision, ttl)
        return Entry(key, value, revision)

    async def update(self, key: str, value: T, revision: int, *, ttl: float | None = None) -> Entry[T]:
        return Entry(key, value, await self._write(key, self._codec.encode(value), revision, ttl))

    async def delete(self, key: str, revision: int) -> None:
        await self._write(key, b"", revision, self._marker_ttl, {"KV-Operation": "DEL"})

    async def list(self, prefix: str = "") -> AsyncGenerator[Entry[T], None]:
        # Listing the keys first would scan the whole bucket for the few of one owner.
        subjects = self._subject(f"{prefix}.>" if prefix else ">")
        replicated = self._replicas > 1
        messages = stored(self._nc, f"KV_{self._bucket}", subjects, replicated=replicated)
        async with aclosing(_newest(messages) if prefix and replicated else messages) as found:
            async for message in found:
                if not message.data or _MARKERS & message.headers.keys():
                    continue
                key = message.subject.removeprefix(self._subject(""))
                try:
                    value = self._codec.decode(message.data)
                except ValueError:  # it must not hide the others
                    log.exception("record cannot be read", extra={"data": {"bucket": self._bucket, "key": key}})
                else:
                    yield Entry(key, value, message.sequence)

    async def _read(self, key: str) -> _Raw:
        try:
            message = await patiently(
                lambda: call(self._js.get_last_msg(f"KV_{self._bucket}", self._subject(key), direct=False)),
                f"bucket {self._bucket}",
            )
        except nats.js.errors.NotFoundError:
            return _Raw(None, 0, "")
        headers = message.headers or {}
        gone = not message.data or _MARKERS & headers.keys()
        return _Raw(None if gone else message.data, message.seq or 0, headers.get(_OPERATION, ""))

    async def _write(
        self, key: str, data: bytes, expected: int, ttl: float | None, extra: dict[str, str] | None = None
    ) -> int:
        """Publishes once in effect; answers the new revision. Raises RevisionConflict or Unavailable."""
        operation = uuid.uuid4().hex
        headers = {
            Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(expected),
            _OPERATION: operation,
            **(extra or {}),
        }
        if ttl is not None:
            headers["Nats-TTL"] = f"{max(1, round(ttl))}s"
        deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        while True:
            try:
                ack = await call(
                    self._js.publish(self._subject(key), data, stream=f"KV_{self._bucket}", headers=dict(headers))
                )
            except AWAY as error:
                if asyncio.get_running_loop().time() >= deadline:
                    raise away(f"bucket {self._bucket}") from error
                raw = await self._read(key)
                if raw.operation == operation:
                    return raw.revision
                if raw.revision != expected:
                    raise RevisionConflict(key) from None
                await asyncio.sleep(0.1)
            except nats.js.errors.APIError as error:
                if not is_conflict(error):
                    raise
                # It may be our own earlier publish, whose answer was lost, that is in the way.
                raw = await self._read(key)
                if raw.operation == operation:
                    return raw.revision
                if raw.revision != expected:
                    raise RevisionConflict(key) from None
                # A cluster refuses a write also while another is on its way to the replicas; whose, is to be seen.
                if asyncio.get_running_loop().time() >= deadline:
                    raise away(f"bucket {self._bucket}") from error
                await asyncio.sleep(0.01)
            else:
                return ack.seq

    def _subject(self, key: str) -> str:
        return f"$KV.{self._bucket}.{key}"
