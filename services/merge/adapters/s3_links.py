"""Presigned URLs of S3: each object has its own, for GET alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime

from services.common.adapters.s3_bucket import S3Bucket
from services.common.adapters.s3_objects import object_name
from services.common.clock import Clock
from services.merge.ports import Delivery, Signed


class S3Links:
    """Implements :class:`services.merge.ports.Links`."""

    delivery = Delivery.S3_SIGNED

    def __init__(self, bucket: S3Bucket, *, clock: Clock) -> None:
        self._bucket = bucket
        self._clock = clock

    async def sign(self, keys: Sequence[str], until: datetime) -> Signed:
        now = self._clock()
        signed = await asyncio.gather(*(self._bucket.presign(object_name(key), until, now) for key in keys))
        return Signed(tuple(url for url, _ in signed), min(end for _, end in signed))
