"""What the owner of a directory remembers of its uploads' records is what is there."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from services.common.adapters.memory import MemoryStateStore
from services.common.errors import Unavailable
from services.common.state import Entry, RevisionConflict
from services.upload.adapters.sole_writer import SoleWriter

KEY = "alice.1"


class Broker(MemoryStateStore[str]):
    """Lets updates take effect once ``arrive`` is set, whoever still waits for them."""

    def __init__(self) -> None:
        super().__init__()
        self.arrive = asyncio.Event()
        self.reads = 0
        self._late: set[asyncio.Task[Entry[str]]] = set()

    async def get(self, key: str) -> Entry[str] | None:
        self.reads += 1
        return await super().get(key)

    async def update(self, key: str, value: str, revision: int, *, ttl: float | None = None) -> Entry[str]:
        async def write() -> Entry[str]:
            await self.arrive.wait()
            return await MemoryStateStore.update(self, key, value, revision, ttl=ttl)

        task = asyncio.create_task(write())
        self._late.add(task)
        try:
            async with asyncio.timeout(0.05):
                return await asyncio.shield(task)
        except TimeoutError:
            raise Unavailable("no answer") from None

    async def settle(self) -> None:
        self.arrive.set()
        await asyncio.gather(*self._late, return_exceptions=True)


@pytest.mark.parametrize("how", ["no answer", "cancelled"])
async def test_a_write_that_takes_effect_late_is_seen(how: str) -> None:
    broker = Broker()
    sole = SoleWriter(broker, lambda _: True)
    made = await sole.create(KEY, "open")
    writing = asyncio.create_task(sole.update(KEY, "cancelled", made.revision))
    await asyncio.sleep(0)
    if how == "cancelled":
        await asyncio.sleep(0.01)
        writing.cancel()
    with contextlib.suppress(Unavailable, asyncio.CancelledError):
        await writing
    assert (await sole.get(KEY)) == made
    await broker.settle()
    found = await sole.get(KEY)
    assert found is not None
    assert found.value == "cancelled"
    with pytest.raises(RevisionConflict):
        await sole.update(KEY, "late", made.revision)
    again = await sole.update(KEY, "again", found.revision)
    reads = broker.reads
    assert await sole.get(KEY) == again
    assert broker.reads == reads
