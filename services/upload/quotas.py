"""What one player may use: uploads open at once, bytes announced in a day, uploads initiated in a minute.

One record for each player, shared by all replicas and written by compare-and-set, says what is used. An upload is
entered there before its record is made, so whatever is cut off in between the quota holds; and it is entered under
its id, so the same request again costs nothing. Nothing is told when an upload ends: when a player seems to have
too many open, the uploads entered are looked up and those that ended are struck out.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeAlias

from services.common.clock import Clock
from services.common.errors import Aborted, ResourceExhausted
from services.common.state import RevisionConflict, StateStore, mutate, owned_key, owner_prefix
from services.upload.limits import Limits
from services.upload.ports import UploadStore
from services.upload.reasons import Reason

_MINUTE = timedelta(minutes=1)
_DAY = timedelta(days=1)
_SETTLING = timedelta(minutes=1)  # how long after it was entered an upload's record may still be on its way
_OPEN_RETRY_SECONDS = 60
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Reservation:
    """An upload that counts as open: its id, the bytes announced for it, and when it was entered."""

    upload_id: str
    bytes: int
    reserved_at: datetime


@dataclass(frozen=True, slots=True)
class Allowance:
    """How a quota stands, in terms of draft-ietf-httpapi-ratelimit-headers-10. ``reset``: seconds until there is
    more; ``parameters``: what the policy has besides its limit; ``text``: of what there are at most that many."""

    reason: Reason
    name: str
    limit: int
    used: int
    text: str
    reset: float
    parameters: str = ""

    @property
    def remaining(self) -> int:
        return max(0, self.limit - self.used)

    @property
    def reset_seconds(self) -> int:
        return math.ceil(max(1.0, self.reset))

    @property
    def policy(self) -> str:
        """An item of RateLimit-Policy."""
        return f'"{self.name}";q={self.limit}{self.parameters}'

    @property
    def state(self) -> str:
        """An item of RateLimit."""
        return f'"{self.name}";r={self.remaining};t={self.reset_seconds}'

    def refusal(self) -> ResourceExhausted:
        """Says so to who wants more, with what the header fields need."""
        return ResourceExhausted(
            f"at most {self.limit} {self.text}",
            reason=self.reason,
            retry_after=max(1.0, self.reset),
            metadata={
                "ratelimit_limit": str(self.limit),
                "ratelimit_remaining": str(self.remaining),
                "ratelimit_reset_seconds": str(self.reset_seconds),
                "ratelimit_policy": self.policy,
            },
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """The record of one player, field by field ``twotruths.upload.v1.QuotaRecord``."""

    minute_began_at: datetime | None = None
    initiates: int = 0
    day_began_at: datetime | None = None
    bytes: int = 0
    open: tuple[Reservation, ...] = ()

    def at(self, now: datetime) -> Usage:
        """The same with what is over set back to nothing."""
        usage = self
        if usage.minute_began_at is None or not timedelta() <= now - usage.minute_began_at < _MINUTE:
            usage = replace(usage, minute_began_at=now, initiates=0)
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        if usage.day_began_at != midnight:
            usage = replace(usage, day_began_at=midnight, bytes=0)
        return usage

    def reserve(self, sizes: Mapping[str, int], limits: Limits, now: datetime) -> Usage:
        """Enters all these uploads (id → size in bytes); of those entered before only what their size grew by
        counts. Raises ResourceExhausted (RATE_LIMITED, QUOTA_BYTES_PER_DAY, QUOTA_OPEN_UPLOADS)."""
        usage = self.at(now)
        known = {entered.upload_id: entered for entered in usage.open}
        fresh = sum(id_ not in known for id_ in sizes)
        grown = sum(max(0, size - known[id_].bytes) if id_ in known else size for id_, size in sizes.items())
        if not fresh and not grown:
            return self
        usage._check(limits, fresh, grown, now)
        kept = known if limits.max_open_uploads else usage._settling(now)
        entered = kept | {
            id_: Reservation(id_, size, known[id_].reserved_at if id_ in known else now)
            for id_, size in sizes.items()
        }
        return replace(
            usage,
            initiates=usage.initiates + fresh,
            bytes=usage.bytes + grown,
            open=tuple(entered.values()),
        )

    def grow(self, id_: str, had: int, size: int, limits: Limits, now: datetime) -> Usage:
        """An upload that was initiated before, and of which ``had`` bytes were counted, has ``size``. What is
        entered for it counts as counted too, so the same again costs nothing. Raises ResourceExhausted
        (QUOTA_BYTES_PER_DAY)."""
        usage = self.at(now)
        counted = max([had, *(entered.bytes for entered in usage.open if entered.upload_id == id_)])
        if size <= counted:
            return self
        usage._check(limits, 0, size - counted, now)
        entered = (replace(e, bytes=size) if e.upload_id == id_ else e for e in usage.open)
        return replace(usage, bytes=usage.bytes + size - counted, open=tuple(entered))

    def _settling(self, now: datetime) -> dict[str, Reservation]:
        """Those entered so recently that the same request may come again before it finds its record."""
        return {e.upload_id: e for e in self.open if now - e.reserved_at <= _SETTLING}

    def allowances(self, limits: Limits, now: datetime) -> tuple[Allowance, ...]:
        """How the quotas that there are stand."""
        usage = self.at(now)
        assert usage.minute_began_at is not None
        assert usage.day_began_at is not None
        every = (
            Allowance(
                Reason.RATE_LIMITED,
                "initiates",
                limits.max_initiates_per_minute,
                usage.initiates,
                parameters=";w=60",
                text="uploads may be initiated in a minute",
                reset=(usage.minute_began_at + _MINUTE - now).total_seconds(),
            ),
            Allowance(
                Reason.QUOTA_BYTES_PER_DAY,
                "bytes",
                limits.max_bytes_per_day,
                usage.bytes,
                parameters=';w=86400;qu="content-bytes"',
                text="bytes may be announced in a day",
                reset=(usage.day_began_at + _DAY - now).total_seconds(),
            ),
            Allowance(
                Reason.QUOTA_OPEN_UPLOADS,
                "open-uploads",
                limits.max_open_uploads,
                len(usage.open),
                text="uploads may be open; complete or cancel one",
                reset=_OPEN_RETRY_SECONDS,
            ),
        )
        return tuple(allowance for allowance in every if allowance.limit)

    def _check(self, limits: Limits, fresh: int, grown: int, now: datetime) -> None:
        for allowance in self.allowances(limits, now):
            more = grown if allowance.reason is Reason.QUOTA_BYTES_PER_DAY else fresh
            if more and allowance.used + more > allowance.limit:
                raise allowance.refusal()

    def without(self, ended: frozenset[str]) -> Usage:
        """The same without these uploads."""
        return replace(self, open=tuple(entered for entered in self.open if entered.upload_id not in ended))


UsageStore: TypeAlias = StateStore[Usage]
"""The records, at ``owner_prefix(owner)``."""


class Quotas:
    """Holds players to ``limits``. ``ttl``: seconds for which an unused record is kept, longer than an upload may
    stay open; ``refused`` is told the reason of each refusal. Methods raise Unavailable."""

    def __init__(
        self,
        usages: UsageStore,
        uploads: UploadStore,
        *,
        limits: Limits,
        ttl: float,
        clock: Clock,
        refused: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._usages = usages
        self._uploads = uploads
        self._limits = limits
        self._ttl = ttl
        self._clock = clock
        self._refused = refused
        self._off = not (limits.max_open_uploads or limits.max_bytes_per_day or limits.max_initiates_per_minute)

    async def reserve(self, owner: str, sizes: Mapping[str, int]) -> tuple[Allowance, ...]:
        """Lets ``owner`` have these uploads (id → size in bytes), all or none. The same again, or nothing, costs
        nothing. Answers as :meth:`standing`. Raises what :meth:`Usage.reserve` raises."""
        if self._off or not sizes:
            return await self.standing(owner)
        with self._telling():
            return self._rates(await self._reserve_or_strike_out(owner, sizes))

    async def standing(self, owner: str) -> tuple[Allowance, ...]:
        """How the rates stand: not the open uploads, of which some that are entered may have ended."""
        if self._off:
            return ()
        entry = await self._usages.get(owner_prefix(owner))
        return self._rates(Usage() if entry is None else entry.value)

    def _rates(self, usage: Usage) -> tuple[Allowance, ...]:
        standing = usage.allowances(self._limits, self._clock())
        return tuple(allowance for allowance in standing if allowance.reason is not Reason.QUOTA_OPEN_UPLOADS)

    async def grow(self, owner: str, id_: str, had: int, size: int) -> None:
        """Lets the owner's upload, of which ``had`` bytes were counted, have ``size``. Raises what
        :meth:`Usage.grow` raises."""
        if self._limits.max_bytes_per_day and size > had:
            with self._telling():
                await self._change(owner, lambda u: u.grow(id_, had, size, self._limits, self._clock()))

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except ResourceExhausted as refusal:
            self._refused(refusal.reason)
            raise

    async def _reserve_or_strike_out(self, owner: str, sizes: Mapping[str, int]) -> Usage:
        try:
            return await self._reserve(owner, sizes)
        except ResourceExhausted as refusal:
            if refusal.reason != Reason.QUOTA_OPEN_UPLOADS or not await self._strike_out(owner):
                raise
            return await self._reserve(owner, sizes)

    async def _reserve(self, owner: str, sizes: Mapping[str, int]) -> Usage:
        return await self._change(owner, lambda u: u.reserve(sizes, self._limits, self._clock()))

    async def _change(self, owner: str, change: Callable[[Usage], Usage]) -> Usage:
        key = owner_prefix(owner)
        for _ in range(_ATTEMPTS):
            entry = await mutate(self._usages, key, change, ttl=lambda _: self._ttl)
            if entry is not None:
                return entry.value
            with contextlib.suppress(RevisionConflict):
                return (await self._usages.create(key, change(Usage()), ttl=self._ttl)).value
        raise Aborted("too many calls of yours at once; try again")

    async def _strike_out(self, owner: str) -> bool:
        """Forgets the uploads that take no more bytes, and says whether there were any."""
        entry = await self._usages.get(owner_prefix(owner))
        if entry is None:
            return True
        now = self._clock()
        entered = entry.value.open
        records = await asyncio.gather(*(self._uploads.get(owned_key(owner, e.upload_id)) for e in entered))
        ended = frozenset(
            reservation.upload_id
            for reservation, found in zip(entered, records, strict=True)
            if (now - reservation.reserved_at > _SETTLING if found is None else found.value.ended(now))
        )
        if ended:
            await mutate(self._usages, entry.key, lambda u: u.without(ended), ttl=lambda _: self._ttl)
        return bool(ended)
