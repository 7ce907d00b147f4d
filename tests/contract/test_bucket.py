"""The bucket in memory that tests use does what one on a server does."""

from __future__ import annotations

import io

import pytest

from services.common.adapters.s3_bucket import S3Bucket
from services.common.errors import NotFound
from tests.memory_bucket import MemoryBucket


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.xdist_group("s3"))])
def bucket(request: pytest.FixtureRequest) -> S3Bucket:
    if request.param == "memory":
        return MemoryBucket()
    server: S3Bucket = request.getfixturevalue("s3_bucket")
    return server


async def read(bucket: S3Bucket, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([piece async for piece in bucket.read(key, start, end)])


async def test_what_was_put_is_listed_in_the_order_of_keys_and_read_and_gone_when_it_is_deleted(
    bucket: S3Bucket,
) -> None:
    await bucket.put("parts/b", b"0123456789")
    await bucket.put("parts/a", io.BytesIO(b"first"))
    await bucket.put("other", b"")
    assert [(info.key, info.size) async for info in bucket.list("parts/")] == [("parts/a", 5), ("parts/b", 10)]
    assert (await bucket.head("parts/b")).size == 10
    assert await read(bucket, "parts/b") == b"0123456789"
    assert await read(bucket, "parts/b", 3, 7) == b"3456"
    assert await read(bucket, "parts/b", 8, 20) == b"89"
    assert await read(bucket, "parts/b", 4, 4) == b""
    await bucket.delete("parts/a")
    await bucket.delete("parts/a")
    assert [info.key async for info in bucket.list("parts/")] == ["parts/b"]
    for missing in (read(bucket, "parts/a"), read(bucket, "parts/a", 2, 2), bucket.head("parts/a")):
        with pytest.raises(NotFound):
            await missing
