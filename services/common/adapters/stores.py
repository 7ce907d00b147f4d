"""Where bytes are kept: one setting, ``TWOTRUTHS_S3_BUCKET``, decides for every service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from services.common.adapters.directory_objects import DirectoryObjectStore
from services.common.clock import utc_now
from services.common.metering import MeteredObjects, StoreMetrics
from services.common.objects import ObjectStore
from services.common.settings import CommonSettings

_COPIED_WITHIN = timedelta(hours=1)  # a file that grows is written to all the time


@asynccontextmanager
async def open_objects(
    settings: CommonSettings, metrics: StoreMetrics | None = None
) -> AsyncIterator[ObjectStore]:
    """The object store of the settings: a bucket, or the data directory; timed by ``metrics``. Raises Unavailable
    when the bucket is to be made and S3 does not answer."""
    async with _opened(settings) as store:
        yield store if metrics is None else MeteredObjects(store, metrics)


@asynccontextmanager
async def _opened(settings: CommonSettings) -> AsyncIterator[ObjectStore]:
    if not settings.s3_bucket:
        store = DirectoryObjectStore(settings.data_dir)
        await store.tidy(utc_now() - _COPIED_WITHIN)
        yield store
        return
    # Half a second of imports that a directory does not need.
    from services.common.adapters.s3_bucket import open_bucket
    from services.common.adapters.s3_objects import S3ObjectStore

    async with open_bucket(settings) as bucket:
        yield S3ObjectStore(bucket)
