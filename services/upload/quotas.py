"""What one player may use: uploads open at once, bytes announced in a day, uploads initiated in a minute.

One record for each player, shared by all replicas and written by compare-and-set, says what is used. An upload is
entered there before its record is made, so whatever is cut off in between the quota holds; and it is entered under
its id, so the same request again costs nothing. Nothing is told when an upload ends: when a player seems to have
too many open, the uploads entered are looked up and those that ended are struck out.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
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

    def _settling(self, now: datetime) -> dict[str, Reservation]:
        """Those entered so recently that the same request may come again before it finds its record."""
        return {e.upload_id: e for e in self.open if now - e.reserved_at <= _SETTLING}

    def _check(self, limits: Limits, fresh: int, grown: int, now: datetime) -> None:
        assert self.minute_began_at is not None
        assert self.day_began_at is not None
        if 0 < limits.max_initiates_per_minute < self.initiates + fresh and fresh:
            raise _refusal(
                Reason.RATE_LIMITED,
                f"at most {limits.max_initiates_per_minute} uploads may be initiated in a minute",
                policy=f'"initiates";q={limits.max_initiates_per_minute};w=60',
                limit=limits.max_initiates_per_minute,
                used=self.initiates,
                reset=(self.minute_began_at + _MINUTE - now).total_seconds(),
            )
        if 0 < limits.max_bytes_per_day < self.bytes + grown and grown:
            raise _refusal(
                Reason.QUOTA_BYTES_PER_DAY,
                f"at most {limits.max_bytes_per_day} bytes may be announced in a day",
                policy=f'"bytes";q={limits.max_bytes_per_day};w=86400;qu="content-bytes"',
                limit=limits.max_bytes_per_day,
                used=self.bytes,
                reset=(self.day_began_at + _DAY - now).total_seconds(),
            )
        if 0 < limits.max_open_uploads < len(self.open) + fresh and fresh:
            raise _refusal(
                Reason.QUOTA_OPEN_UPLOADS,
                f"at most {limits.max_open_uploads} uploads may be open; complete or cancel one",
                policy=f'"open-uploads";q={limits.max_open_uploads}',
                limit=limits.max_open_uploads,
                used=len(self.open),
                reset=_OPEN_RETRY_SECONDS,
            )

    def without(self, ended: frozenset[str]) -> Usage:
        """The same without these uploads."""
        return replace(self, open=tuple(entered for entered in self.open if entered.upload_id not in ended))


UsageStore: TypeAlias = StateStore[Usage]
"""The records, at ``owner_prefix(owner)``."""


def _refusal(
    reason: Reason, message: str, *, policy: str, limit: int, used: int, reset: float
) -> ResourceExhausted:
    """With what the RateLimit header fields need (draft-ietf-httpapi-ratelimit-headers)."""
    reset = max(1.0, reset)
    return ResourceExhausted(
        message,
        reason=reason,
        retry_after=reset,
        metadata={
            "ratelimit_limit": str(limit),
            "ratelimit_remaining": str(max(0, limit - used)),
            "ratelimit_reset_seconds": str(math.ceil(reset)),
            "ratelimit_policy": policy,
        },
    )


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

    async def reserve(self, owner: str, sizes: Mapping[str, int]) -> None:
        """Lets ``owner`` have these uploads (id → size in bytes), all or none; also to be called when the size of
        an upload becomes known later. The same again costs nothing. Raises what :meth:`Usage.reserve` raises."""
        if self._off or not sizes:
            return
        try:
            await self._reserve_or_strike_out(owner, sizes)
        except ResourceExhausted as refusal:
            self._refused(refusal.reason)
            raise

    async def _reserve_or_strike_out(self, owner: str, sizes: Mapping[str, int]) -> None:
        try:
            await self._reserve(owner, sizes)
        except ResourceExhausted as refusal:
            if refusal.reason != Reason.QUOTA_OPEN_UPLOADS or not await self._strike_out(owner):
                raise
            await self._reserve(owner, sizes)

    async def _reserve(self, owner: str, sizes: Mapping[str, int]) -> None:
        key = owner_prefix(owner)

        def change(usage: Usage) -> Usage:
            return usage.reserve(sizes, self._limits, self._clock())

        for _ in range(_ATTEMPTS):
            if await mutate(self._usages, key, change, ttl=lambda _: self._ttl) is not None:
                return
            try:
                await self._usages.create(key, change(Usage()), ttl=self._ttl)
            except RevisionConflict:
                continue
            return
        raise Aborted("too many uploads are initiated at once; try again")

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
