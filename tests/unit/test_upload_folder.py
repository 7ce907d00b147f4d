"""What the names in an upload's directory say, to who reads while a thread makes more."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from services.upload.adapters.upload_folder import Stored
from services.upload.grid import Grid, Tail

GRID = Grid(size=3_000_000, chunk_size=1000)


@pytest.fixture
def impatient_threads() -> Iterator[None]:
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("impatient_threads")
def test_what_is_stored_can_be_told_while_more_is_stored() -> None:
    stored = Stored()

    def store() -> None:
        for number in range(GRID.total):
            stored.tail = Tail(number, 500)
            stored.digests[number] = "0" * 64
            stored.tail = None

    thread = threading.Thread(target=store)
    thread.start()
    seen = 0
    while thread.is_alive():
        ledger = stored.ledger(GRID)
        assert ledger.tail is None or ledger.tail.number == len(ledger.parts)
        assert ledger.offset(GRID) >= seen
        seen = ledger.offset(GRID)
    thread.join()
    assert stored.ledger(GRID).offset(GRID) == GRID.size
