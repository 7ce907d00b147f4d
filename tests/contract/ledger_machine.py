"""The ledger as a dict, and a machine that does the same random things to it and to part stores: no difference.

The machine's uploads are some dozens of bytes on a grid of a few: small enough that parts, tails, ends and each
other's bytes are met all the time. A *restart* makes a new adapter on what the old one left behind.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.common.adapters.directory_objects import DirectoryObjectStore
from services.common.adapters.s3_bucket import S3Bucket
from services.common.adapters.s3_objects import S3ObjectStore
from services.common.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    ServiceError,
)
from services.common.objects import ObjectStore
from services.upload.adapters.directory_parts import DirectoryPartStore
from services.upload.adapters.memory_parts import MemoryPartStore
from services.upload.adapters.s3_parts import S3PartStore
from services.upload.domain import Whole
from services.upload.grid import Grid, Part, Tail
from services.upload.ports import PartStore
from tests.memory_bucket import MemoryBucket

T = TypeVar("T")

CHUNK = 8
UNTOLD = 1 << 40


class Backend(Protocol):
    """A part store that may be restarted, and the object store that takes its files."""

    parts: PartStore
    objects: ObjectStore

    async def start(self) -> None: ...

    async def restart(self) -> None: ...

    async def close(self) -> None: ...


class MemoryBackend:
    """Forgets nothing at a restart, since it has nothing but itself."""

    async def start(self) -> None:
        self._root = Path(tempfile.mkdtemp())
        self.objects: ObjectStore = DirectoryObjectStore(self._root)
        self.parts: PartStore = MemoryPartStore(self.objects)

    async def restart(self) -> None:
        """Nothing."""

    async def close(self) -> None:
        shutil.rmtree(self._root)


class DirectoryBackend:
    """A directory, taken again at a restart."""

    async def start(self) -> None:
        self._root = Path(tempfile.mkdtemp())
        self.objects: ObjectStore = DirectoryObjectStore(self._root)
        await self._open()

    async def _open(self) -> None:
        self._store = DirectoryPartStore(self._root, self.objects)
        self.parts: PartStore = self._store.__enter__()

    async def restart(self) -> None:
        self._store.__exit__(None, None, None)
        await self._open()

    async def close(self) -> None:
        self._store.__exit__(None, None, None)
        shutil.rmtree(self._root)


class BucketBackend:
    """A bucket in memory, in which nothing is forgotten: a restart makes a new adapter."""

    bucket: S3Bucket

    async def start(self) -> None:
        self.bucket = MemoryBucket()
        await self._open()

    async def _open(self) -> None:
        objects = S3ObjectStore(self.bucket)
        self.objects: ObjectStore = objects
        self._store = S3PartStore(self.bucket, objects)
        self.parts: PartStore = self._store.__enter__()

    async def restart(self) -> None:
        self._store.__exit__(None, None, None)
        await self._open()

    async def close(self) -> None:
        self._store.__exit__(None, None, None)


class S3Backend(BucketBackend):
    """A bucket on a server, over one client for all lives: to open one takes longer than ten steps. A subclass
    says in ``bucket`` which."""

    async def start(self) -> None:
        await self._open()


class Broken(Exception):
    """The client's connection is gone."""


class Refused(Exception):
    """The service does not agree."""


@dataclass
class Model:
    """One upload as a dict of parts and a tail. Refusals are the errors of the port."""

    body: bytes
    told: bool
    key: str = field(default_factory=lambda: f"owner.{uuid.uuid4()}")
    parts: dict[int, bytes] = field(default_factory=dict)
    tail: bytes = b""

    @property
    def grid(self) -> Grid:
        return Grid(len(self.body) if self.told else UNTOLD, CHUNK)

    @property
    def first_missing(self) -> int:
        return next(n for n in itertools.count() if n not in self.parts)

    @property
    def offset(self) -> int:
        reached = self.first_missing * CHUNK + len(self.tail)
        return min(reached, len(self.body)) if self.told else reached

    def tail_of(self, number: int) -> bytes:
        return self.tail if number == self.first_missing else b""

    def put(self, number: int, data: bytes, *, agreed: bool) -> bool:
        length = self.grid.length(number)
        tail = self.tail_of(number)
        if len(data) > length or (data[: len(tail)] == tail[: len(data)] and len(data) != length):
            raise InvalidArgument("size")
        if data[: len(tail)] != tail[: len(data)]:
            raise AlreadyExists("tail")
        if not agreed:
            raise Refused
        if self.parts.setdefault(number, data) != data:
            raise AlreadyExists("part")
        if tail or number == self.first_missing:
            self.tail = b"" if tail else self.tail
        return False

    def append(self, pieces: Sequence[bytes | None], *, agreed: bool, at_once: bool) -> int:
        """``pieces`` end with None when they break off."""
        before = (dict(self.parts), self.tail)
        try:
            self._seal(agreed=agreed or at_once)
            self._append(pieces, agreed=agreed or at_once)
            if at_once and not agreed:
                raise Refused
        except (ServiceError, Broken, Refused):
            if at_once:
                self.parts, self.tail = before
            raise
        return self.offset

    def _append(self, pieces: Sequence[bytes | None], *, agreed: bool) -> None:
        place = self.offset
        for piece in pieces:
            if piece is None:
                raise Broken
            if place + len(piece) > self.grid.size:
                raise InvalidArgument("too long")
            rest = piece
            while rest:
                number, within = divmod(place, CHUNK)
                view, rest = rest[: CHUNK - within], rest[CHUNK - within :]
                if number in self.parts:
                    if self.parts[number][within : within + len(view)] != view:
                        raise AlreadyExists("part")
                else:
                    self.tail += view
                    self._seal(agreed=agreed)
                place += len(view)

    def _seal(self, *, agreed: bool) -> None:
        number = self.first_missing
        if self.tail and len(self.tail) == self.grid.length(number):
            if not agreed:
                raise Refused
            self.parts[number], self.tail = self.tail, b""

    def listed(self) -> tuple[dict[int, Part], Tail | None, int]:
        parts = {n: Part(n, len(data), hashlib.sha256(data).hexdigest()) for n, data in self.parts.items()}
        return parts, Tail(self.first_missing, len(self.tail)) if self.tail else None, self.offset

    @property
    def whole(self) -> bytes | None:
        """The file, if all parts are there."""
        if not self.told or any(n not in self.parts for n in range(self.grid.total)):
            return None
        return b"".join(self.parts[n] for n in range(self.grid.total))


def pieces_of(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(bounds)]


async def sent(pieces: Sequence[bytes | None]) -> AsyncIterator[bytes]:
    for piece in pieces:
        if piece is None:
            raise Broken
        yield piece


def flipped(data: bytes, at: int) -> bytes:
    """The data with one byte changed."""
    at %= max(len(data), 1)
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :] if data else b"\xff"


CUTS = st.lists(st.integers(0, 40), max_size=3)
UPLOADS = st.integers(0, 1)
TOLD = st.sampled_from([True, True, False])


class LedgerMachine(RuleBasedStateMachine):
    """Two uploads at a time, in the model and in each backend."""

    backends: ClassVar[Sequence[type[Backend]]] = (MemoryBackend, DirectoryBackend, BucketBackend)
    steps: ClassVar[int] = 0
    """How many things were done to each backend."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = self.new_loop()
        self.stores = [backend() for backend in self.backends]
        for store in self.stores:
            self.do(store.start())
        self.seed = 0
        self.which = 0
        self.busy = 0  # how much was done since the last end or restart
        self.touched: set[int] = set()

    def do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    def teardown(self) -> None:
        for store in self.stores:
            self.do(store.close())
        self.end_loop()

    def new_loop(self) -> asyncio.AbstractEventLoop:
        """Where the backends of one life run."""
        return asyncio.new_event_loop()

    def end_loop(self) -> None:
        """The life is over."""
        self.do(self.loop.shutdown_asyncgens())
        self.loop.close()

    def new(self, size: int, *, told: bool) -> Model:
        self.seed += 1
        return Model(bytes((self.seed * 31 + n * 7) % 251 for n in range(size)), told)

    @initialize(sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)), told=st.tuples(TOLD, TOLD))
    def begin(self, sizes: tuple[int, int], told: tuple[bool, bool]) -> None:
        self.uploads = [self.new(size, told=known) for size, known in zip(sizes, told, strict=True)]

    def touch(self, which: int) -> Model:
        """The upload that this step is about. It has not been touched before something was done to it."""
        self.which, self.touched = which, set()
        return self.uploads[which]

    def alike(self, expected: object, call: Callable[[Backend], Coroutine[Any, Any, object]]) -> None:
        """Each backend answers, or raises the kind of error, that the model does."""
        type(self).steps += 1
        self.busy += 1
        self.touched = {self.which}
        for store in self.stores:
            try:
                outcome = self.do(call(store))
            except (ServiceError, Broken, Refused) as error:
                outcome = type(error)
            assert outcome == expected, (type(store), outcome, expected)

    @rule(
        which=UPLOADS,
        number=st.integers(0, 4),
        outside=st.sampled_from([0, 0, 0, 0, 0, -1, 1]),
        wrong=st.sampled_from([None, None, None, 0, 3, 7]),
        change=st.sampled_from([0, 0, 0, -1, 1]),
        agreed=st.sampled_from([True, True, True, False]),
        cuts=CUTS,
    )
    def put(
        self,
        which: int,
        number: int,
        outside: int,
        wrong: int | None,
        change: int,
        agreed: bool,
        cuts: Sequence[int],
    ) -> None:
        """A chunk: right, with a wrong byte, too short or long, outside the grid, or not agreed to."""
        upload = self.touch(which)
        if not upload.told:
            return
        total = upload.grid.total
        number = {-1: -1, 0: number % total, 1: total + number}[outside]
        data = upload.body[max(number, 0) * CHUNK :][:CHUNK]
        data = data if wrong is None else flipped(data, wrong)
        # One fault at a time: of two, either may be named.
        change = change if wrong is None else 0
        if not data.startswith(upload.tail_of(number)[: len(data)]):
            change, agreed = 0, True
        data = data[:-1] if change < 0 else data + bytes(change)
        expected: object
        existed = number in upload.parts
        try:
            upload.put(number, data, agreed=agreed)
            expected = (existed, hashlib.sha256(data).hexdigest())
        except (ServiceError, Refused) as error:
            expected = type(error)

        async def confirm(part: Part) -> None:
            if not agreed:
                raise Refused

        async def call(store: Backend) -> object:
            stored = await store.parts.put_part(
                upload.key, upload.grid, number, sent(pieces_of(data, cuts)), confirm
            )
            return stored.existed, stored.part.sha256

        self.alike(expected, call)

    @rule(
        which=UPLOADS,
        length=st.integers(0, 20),
        wrong=st.sampled_from([None, None, None, 0, 5, 19]),
        broken=st.sampled_from([False, False, True]),
        agreed=st.sampled_from([True, True, True, False]),
        at_once=st.booleans(),
        beyond=st.sampled_from([False, False, False, True]),
        cuts=CUTS,
    )
    def append(
        self,
        which: int,
        length: int,
        wrong: int | None,
        broken: bool,
        agreed: bool,
        at_once: bool,
        beyond: bool,
        cuts: Sequence[int],
    ) -> None:
        """Bytes at the end: right or with a wrong byte, broken off, beyond the file's end, not agreed to."""
        upload = self.touch(which)
        # What is left of a part that is refused when its last byte came is for the store to say.
        agreed = agreed or not at_once
        offset = upload.offset
        data = upload.body[offset : offset + length]
        data = data if wrong is None or not data else flipped(data, wrong)
        data += bytes(length - len(data)) if beyond and upload.told else b""
        pieces: list[bytes | None] = [*pieces_of(data, cuts), *([None] if broken else [])]
        expected: object
        grid = upload.grid
        try:
            expected = upload.append(pieces, agreed=agreed, at_once=at_once)
        except (ServiceError, Broken, Refused) as error:
            expected = type(error)

        async def admit(reached: int) -> Grid:
            assert reached == offset
            return grid

        async def count() -> None:
            if not agreed:
                raise Refused

        self.alike(
            expected,
            lambda store: store.parts.append_tail(upload.key, grid, admit, sent(pieces), count, at_once=at_once),
        )

    @precondition(lambda self: not all(upload.told for upload in self.uploads))
    @rule(which=UPLOADS)
    def tell_length(self, which: int) -> None:
        """The length is told, and is what the tail waited for or not."""
        upload = self.touch(which)
        if upload.told:
            return
        unbounded = upload.grid
        upload.told = True
        expected = upload.append([], agreed=True, at_once=False)

        async def admit(reached: int) -> Grid:
            return upload.grid

        async def count() -> None:
            """Agreed."""

        self.alike(
            expected,
            lambda store: store.parts.append_tail(upload.key, unbounded, admit, sent([]), count),
        )

    @precondition(lambda self: self.busy > 2 or any(upload.whole for upload in self.uploads))
    @rule(
        which=UPLOADS, accepted=st.sampled_from([True, True, False]), again=st.booleans(), size=st.integers(1, 40)
    )
    def complete(self, which: int, accepted: bool, again: bool, size: int) -> None:
        """The file, when all parts are there and nobody objects; then the upload makes room for another."""
        upload = self.touch(which)
        if not upload.told:
            return
        body, object_key = upload.whole, f"uploads/{upload.key.partition('.')[2]}"

        def check(whole: Whole) -> None:
            if not accepted:
                raise Refused

        async def call(store: Backend) -> object:
            manifest = upload.grid.manifest((await store.parts.list_parts(upload.key, upload.grid)).parts)
            for _ in range(2 if again else 1):
                whole = await store.parts.assemble(upload.key, upload.grid, manifest, object_key, check)
            await store.parts.discard(upload.key)
            stored = b"".join([piece async for piece in store.objects.read(object_key)])
            return whole.sha256, stored

        if body is None:
            expected: object = FailedPrecondition
        else:
            expected = (hashlib.sha256(body).hexdigest(), body) if accepted else Refused
        self.alike(expected, call)
        self.busy = 0
        if body is not None and accepted:
            self.uploads[which] = self.new(size, told=again)

    @precondition(lambda self: self.busy > 5)
    @rule(which=UPLOADS, size=st.integers(1, 40), told=TOLD)
    def cancel(self, which: int, size: int, told: bool) -> None:
        """Everything of the upload goes."""
        upload = self.touch(which)

        async def call(store: Backend) -> object:
            await store.parts.discard(upload.key)
            ledger = await store.parts.list_parts(upload.key, upload.grid)
            return ledger.parts, ledger.tail, ledger.changed_at

        self.alike(((), None, None), call)
        self.uploads[which] = self.new(size, told=told)
        self.busy = 0

    @precondition(lambda self: self.busy > 2)
    @rule()
    def restart(self) -> None:
        """A new adapter finds what the old one left."""
        type(self).steps += 1
        self.busy = 0
        self.touched = {0, 1}
        for store in self.stores:
            self.do(store.restart())

    @invariant()
    def the_ledgers_are_the_model(self) -> None:
        """What is stored of the uploads that were touched is what the model says."""
        for upload in [self.uploads[which] for which in self.touched]:
            for store in self.stores:
                ledger = self.do(store.parts.list_parts(upload.key, upload.grid))
                found = {part.number: part for part in ledger.parts}
                assert len(found) == len(ledger.parts)
                seen = (found, ledger.tail, ledger.offset(upload.grid))
                assert seen == upload.listed(), (type(store), seen, upload.listed())
