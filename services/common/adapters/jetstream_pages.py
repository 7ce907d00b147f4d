"""Reads what a stream keeps, in pages of batched direct gets (ADR-31 of the NATS architecture, "batched
requests").

A consumer would stay behind at the server for minutes; this leaves nothing. On a cluster any replica answers such
a get, one that has not heard of the latest writes too. What it lacks is at the end of the stream: so the leader is
asked for what comes after the last page.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import NamedTuple

import nats.errors
import nats.js.errors
from nats.aio.client import Client

from services.common.adapters.jetstream import REQUEST_SECONDS, call, patiently

_PAGE = 256


class Stored(NamedTuple):
    """A message that a stream keeps."""

    subject: str
    sequence: int
    data: bytes
    headers: Mapping[str, str]


async def stored(
    client: Client, stream: str, subjects: str, *, replicated: bool = False
) -> AsyncGenerator[Stored, None]:
    """The messages below ``subjects`` that the stream keeps, the oldest first. Of a stream that is ``replicated``
    also the latest, at the price of a question more. A subject that is written to meanwhile may come twice. Raises
    Unavailable, also when there is no such stream."""
    start, after = 1, 1
    while start:
        page, start = await patiently(
            lambda start=start: call(_page(client, stream, subjects, start)),  # type: ignore[misc]  # binds the value
            f"stream {stream}",
        )
        for message in page:
            after = message.sequence + 1
            yield message
        if replicated and not start:
            latest = await _at_leader(client, stream, subjects, after)
            if latest is not None:
                after = start = latest.sequence + 1
                yield latest


async def _at_leader(client: Client, stream: str, subjects: str, start: int) -> Stored | None:
    """The first message from sequence ``start`` on."""
    js = client.jetstream(timeout=REQUEST_SECONDS)
    try:
        found = await patiently(
            lambda: call(js.get_msg(stream, seq=start, subject=subjects, next=True)), f"stream {stream}"
        )
    except nats.js.errors.NotFoundError:
        return None
    return Stored(found.subject or "", found.seq or 0, found.data or b"", found.headers or {})


async def _page(client: Client, stream: str, subjects: str, start: int) -> tuple[Sequence[Stored], int]:
    """The messages from sequence ``start`` on, and where the next page begins, 0 after the last."""
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox)
    page: list[Stored] = []
    try:
        query = {"seq": start, "next_by_subj": subjects, "batch": _PAGE}
        await client.publish(f"$JS.API.DIRECT.GET.{stream}", json.dumps(query).encode(), reply=inbox)
        while True:
            message = await answers.next_msg(timeout=REQUEST_SECONDS)
            headers = message.headers or {}
            if headers.get("Status") == "503":
                raise nats.errors.NoRespondersError
            if "Status" in headers:  # 204: the end of the page; 404: nothing there
                more = int(headers.get("Nats-Num-Pending", 0)) > 0
                return page, start if more else 0
            sequence = int(headers["Nats-Sequence"])
            start = sequence + 1
            page.append(Stored(headers["Nats-Subject"], sequence, message.data, headers))
    finally:
        await answers.unsubscribe()
