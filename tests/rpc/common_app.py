"""A tiny process of the mesh, for tests: ``python -m tests.rpc.common_app MODE KEYS FOLDER``."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from services.common import lifecycle
from services.common.adapters.jetstream import connect
from services.common.errors import Unavailable
from services.common.keys import KeyRing
from services.common.lifecycle import App
from services.common.settings import CommonSettings
from tests.rpc.common_fixtures import make_server
from twotruths.merge.v1 import merge_service_pb2 as pb

log = logging.getLogger("app")
MODE, KEYS, FOLDER = sys.argv[1], KeyRing(Path(sys.argv[2])), Path(sys.argv[3])


async def get(request: Any, rpc: Any) -> pb.GetMergeResponse:
    """Answers when the file ``release`` is there."""
    log.info("begun\nin two lines", extra={"data": {"bytes": 7}})
    while not (FOLDER / "release").exists():
        await asyncio.sleep(0.01)
    return pb.GetMergeResponse()


async def watch(request: Any, rpc: Any) -> AsyncIterator[pb.WatchMergeResponse]:
    yield pb.WatchMergeResponse()
    await asyncio.Event().wait()


async def endless() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        log.info("loop stopped")


async def dying() -> None:
    raise ZeroDivisionError("a bug")


async def ending() -> None:
    log.info("loop has nothing to do")


@asynccontextmanager
async def build(settings: CommonSettings) -> AsyncIterator[App]:
    if MODE == "without broker":
        log.info("connecting")
        await connect(settings.nats_url, "test")
    if MODE == "without dependency":
        raise Unavailable("the store does not answer")
    listen = (FOLDER / "listen").read_text() if MODE == "taken port" else "127.0.0.1:0"
    server = make_server(KEYS, listen, GetMerge=get, WatchMerge=watch)
    loops = {"dying loop": dying, "ending loop": ending}.get(MODE, endless)
    yield App(server, background=[endless, loops])
    log.info("dependencies closed")


if __name__ == "__main__":
    lifecycle.run(build, CommonSettings(**KEYS.settings()), name="merge")
