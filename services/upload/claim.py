"""Which store the uploads of a broker are in.

Their records are in the broker, their bytes in a directory or a bucket. A service that has the one without the
other would take its neighbour's uploads for lost: it would say that no chunk of them is there, and its sweep would
fail what the neighbour is assembling. So the first service on a broker claims it for its store, and one with
another store does not start.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import datetime

from services.common.errors import FailedPrecondition
from services.common.state import RevisionConflict, StateStore

KEY = "store"
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Claim:
    """``store`` names a directory or a bucket whoever looks at it, ``where`` tells people where that is."""

    store: str
    where: str
    claimed_at: datetime


async def claim(claims: StateStore[Claim], mine: Claim, *, adopt: bool) -> None:
    """Returns when the broker is ``mine``: unclaimed until now, claimed before, or with ``adopt`` taken over.
    Raises FailedPrecondition when its uploads are in another store, Unavailable."""
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(RevisionConflict):  # another service claims it at this moment
            found = await claims.get(KEY)
            if found is None:
                await claims.create(KEY, mine)
                return
            if found.value.store == mine.store:
                return
            if not adopt:
                raise _other(found.value, mine)
            await claims.update(KEY, mine, found.revision)
            return
    raise FailedPrecondition("other upload services claim this broker at the same time")


def _other(other: Claim, mine: Claim) -> FailedPrecondition:
    return FailedPrecondition(
        f"the uploads of this broker are in {other.where} (since {other.claimed_at:%Y-%m-%d}), "
        f"not in {mine.where}. Several upload services share a bucket: TWOTRUTHS_S3_BUCKET. If that store is gone "
        "for good, TWOTRUTHS_UPLOAD_ADOPT_BROKER=true takes the broker over, and its uploads are lost"
    )
