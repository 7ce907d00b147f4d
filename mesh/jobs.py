"""``mesh jobs …``: the jobs of a mesh that failed for good; of the one that runs here, or of any by its broker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mesh.errors import MeshError
from mesh.state import StateDirectory
from services.common.errors import ServiceError
from services.merge.dead import DeadLetter, DeadLetters

_BROKER_SECONDS = 10.0


async def dead(state: Path, nats_url: str = "") -> None:
    """Prints the dead jobs as a table."""
    async with _letters(nats_url or _broker(state)) as letters:
        found = await letters.list()
    if not found:
        print("no dead jobs")
        return
    rows = [("ID", "KIND", "OWNER", "SESSION", "WHEN", "REASON"), *map(_row, found)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5]]))


async def retry(state: Path, id_: str, nats_url: str = "") -> None:
    """Has a dead job's session tried again."""
    async with _letters(nats_url or _broker(state)) as letters:
        letter = await letters.retry(id_)
    assert letter.message is not None, "what cannot be read is not retried"
    print(f"{letter.id}: session {letter.message.session_id} is tried again")


async def drop(state: Path, id_: str, nats_url: str = "") -> None:
    """Removes a dead job."""
    async with _letters(nats_url or _broker(state)) as letters:
        letter = await letters.drop(id_)
    print(f"{letter.id}: dropped")


def _row(letter: DeadLetter) -> tuple[str, str, str, str, str, str]:
    job = letter.message
    when = f"{letter.buried_at.astimezone():%Y-%m-%d %H:%M:%S}"
    owner, session = (job.owner, job.session_id) if job is not None else ("?", "?")
    return letter.id, letter.job.kind, _printable(owner), session, when, _printable(letter.job.reason)


def _printable(text: str) -> str:
    """What a player chose must not move the cursor of the operator's terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _broker(state: Path) -> str:
    """Where the broker of the mesh that runs on ``state`` listens."""
    info = StateDirectory(state).read()
    if info is None or not info.alive():
        raise MeshError(
            f"no mesh runs on {state}: `mesh up` starts one, --state names another, --nats-url one elsewhere"
        )
    return info.nats_url


@asynccontextmanager
async def _letters(nats_url: str) -> AsyncIterator[DeadLetters]:
    from services.merge.wiring import open_dead_letters  # takes its time: only when there is somebody to ask

    try:
        async with open_dead_letters(nats_url, within=_BROKER_SECONDS) as letters:
            yield letters
    except TimeoutError as error:
        raise MeshError("the mesh's broker does not answer") from error
    except ServiceError as error:
        raise MeshError(error.message) from error
