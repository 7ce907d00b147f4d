"""The connection to NATS, and what its JetStream adapters share: making streams, and telling failures apart."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, StreamConfig

from services.common.errors import Unavailable

log = logging.getLogger(__name__)
R = TypeVar("R")

# What a lost connection, a restarting server or a leader election look like. TimeoutError covers
# nats.errors.TimeoutError, which is raised beside the builtin one.
AWAY = (
    TimeoutError,
    nats.errors.ConnectionClosedError,
    nats.errors.ConnectionReconnectingError,
    nats.errors.NoRespondersError,
    nats.errors.OutboundBufferLimitError,
    nats.errors.StaleConnectionError,
    nats.js.errors.NoStreamResponseError,
    nats.js.errors.ServiceUnavailableError,
    OSError,
)
REQUEST_SECONDS = 2.0  # how long one request may take before its outcome is asked for
PATIENCE_SECONDS = 12.0  # how long an operation is tried again: a broker restarts within this
# A full disk; or for a moment, while the server removes the folder that its last stream left empty.
_NO_STORE = 10049
_WRONG_LAST_SEQUENCE = (10071, 10164)


async def connect(url: str, name: str) -> Client:
    """Connects and stays connected: waits for a server that is not there yet, and comes back for ever."""
    client = Client()

    async def disconnected() -> None:
        if not client.is_closed:  # it is told of a close of our own, too
            log.warning("NATS connection lost")

    async def reconnected() -> None:
        log.info("NATS connection is back")

    waited = False

    async def failed(error: Exception) -> None:
        nonlocal waited
        if waited:
            log.debug("NATS: %s", error)
        else:
            log.warning("waiting for NATS at %s: %s", without_secrets(url), error)
        waited = True

    while True:
        try:
            # Tries for ever by itself, save for errors that it takes for final; those a new broker may mend.
            await client.connect(
                servers=url.split(","),
                name=name,
                connect_timeout=2,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.25,  # type: ignore[arg-type]  # seconds; a fraction works
                ping_interval=5,
                max_outstanding_pings=2,
                disconnected_cb=disconnected,
                reconnected_cb=reconnected,
                error_cb=failed,
            )
        except (OSError, nats.errors.Error) as error:
            await failed(error)
            await asyncio.sleep(0.25)
        else:
            waited = True  # from here on, what is lost and found is logged above
            return client


def without_secrets(url: str) -> str:
    """Server addresses without the users, passwords and tokens that may stand in them."""
    return re.sub(r"//[^/,]*@", "//", url)


async def call(operation: Awaitable[R]) -> R:
    """Runs a call of nats-py in a task of its own, which a cancellation of ours leaves alone.

    Two traps of nats-py 2.16 make that necessary. It waits with ``asyncio.wait_for``, which up to Python 3.11
    swallows a cancellation that comes together with the answer: a worker that was told to stop would go on
    for ever. And an answer to a call that was cancelled may break its read loop, after which the connection is
    deaf without a word. Every call ends by itself, after its own timeout.
    """
    task = asyncio.ensure_future(operation)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_look_away)
        raise


def _look_away(task: asyncio.Future[Any]) -> None:
    """Nobody waits for this call any more: neither for its answer nor for its error."""
    if not task.cancelled():
        task.exception()


async def round_trip(client: Client) -> None:
    """Returns when the server has seen all that was sent to it before, a subscription for example. Raises what
    AWAY holds.

    This is what ``Client.flush`` is for, but a flush that times out or is cancelled breaks the read loop when
    its PONG arrives later.
    """

    async def echo() -> None:
        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox)
        try:
            await client.publish(inbox)
            await subscription.next_msg(timeout=REQUEST_SECONDS)
        finally:
            await subscription.unsubscribe()

    await call(echo())


async def ensure_stream(js: JetStreamContext, config: StreamConfig) -> None:
    """Makes the stream or brings it to this configuration. Raises Unavailable."""

    async def make() -> None:
        try:
            await call(js.add_stream(config))
        except nats.js.errors.BadRequestError as error:
            if error.err_code != 10058:  # the name is taken by a stream of another configuration
                raise
            await call(js.update_stream(config))
        except nats.js.errors.ServerError as error:
            if error.err_code != _NO_STORE:
                raise
            raise OSError("the broker cannot make the stream's files") from error  # one of AWAY: tried again

    await patiently(make, f"stream {config.name}")


async def ensure_consumer(js: JetStreamContext, stream: str, config: ConsumerConfig) -> None:
    """Makes the durable consumer or brings it to this configuration. Raises Unavailable."""

    async def make() -> None:
        await call(js.add_consumer(stream, config))

    await patiently(make, f"consumer {config.durable_name}")


async def patiently(operation: Callable[[], Awaitable[R]], what: str) -> R:
    """Runs an operation that may be repeated until it works. Raises Unavailable after PATIENCE_SECONDS."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while True:
        try:
            return await operation()
        except AWAY as error:
            if asyncio.get_running_loop().time() >= deadline:
                raise away(what) from error
            await asyncio.sleep(0.1)


def away(what: str) -> Unavailable:
    """The error for a broker that does not answer."""
    return Unavailable(f"{what}: the broker does not answer; try again", retry_after=2)


def is_conflict(error: nats.js.errors.APIError) -> bool:
    """Whether a publish was refused because its subject is at another sequence."""
    return error.err_code in _WRONG_LAST_SEQUENCE
