"""Reads what a stream keeps, in pages of batched direct gets (ADR-31 of the NATS architecture, "batched
requests").

A consumer would stay behind at the server for minutes; this leaves nothing.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from services.common.adapters.jetstream import REQUEST_SECONDS, call, patiently

_PAGE = 256


async def stored(client: Client, stream: str, subjects: str) -> AsyncGenerator[tuple[str, int, Msg], None]:
    """The messages below ``subjects`` that the stream keeps, the oldest first: subject, sequence and message.
    Raises Unavailable, also when there is no such stream."""
    start = 1
    while start:
        page, start = await patiently(
            lambda start=start: call(_page(client, stream, subjects, start)),  # type: ignore[misc]  # binds the value
            f"stream {stream}",
        )
        for message in page:
            yield message


async def _page(
    client: Client, stream: str, subjects: str, start: int
) -> tuple[Sequence[tuple[str, int, Msg]], int]:
    """The messages from sequence ``start`` on, and where the next page begins, 0 after the last."""
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox)
    page: list[tuple[str, int, Msg]] = []
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
            page.append((headers["Nats-Subject"], sequence, message))
    finally:
        await answers.unsubscribe()
