"""Messages of one bytes field, put together and taken apart without protobuf."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common import wire
from twotruths.upload.v1.upload_service_pb2 import AppendUploadRequest, ChunkHeader, UploadChunksRequest

FIELD = UploadChunksRequest.DATA_FIELD_NUMBER


@given(st.lists(st.binary(max_size=200)), st.integers(1, 15))
def test_a_framed_message_is_the_one_that_protobuf_makes(pieces: list[bytes], field: int) -> None:
    data = b"".join(pieces)
    message = wire.frame(field, pieces, len(data))
    if field == FIELD:
        assert message == UploadChunksRequest(data=data).SerializeToString()
    framed = wire.framed(message, field)
    assert framed is not None
    assert framed == data


@pytest.mark.parametrize("size", [127, 128, 16_383, 16_384, 1 << 20])
def test_every_length_of_length_is_read(size: int) -> None:
    message = AppendUploadRequest(data=bytes(size)).SerializeToString()
    assert wire.frame(FIELD, [bytes(size)], size) == message
    framed = wire.framed(message, FIELD)
    assert framed is not None
    assert bytes(framed) == bytes(size)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x12",
        b"\x12\x80",
        b"\x12\xff\xff\xff\xff\xff\xff",
        b"\x12\x02a",
        b"\x12\x01ab",
        UploadChunksRequest(header=ChunkHeader(session_id="a")).SerializeToString(),
        UploadChunksRequest(data=b"ab").SerializeToString() * 2,
    ],
    ids=repr,
)
def test_any_other_message_is_left_to_protobuf(message: bytes) -> None:
    assert wire.framed(message, FIELD) is None
