"""The grid, the life of an upload, and what a file is by its first bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.codec import RecordCodec
from services.common.errors import FailedPrecondition, InvalidArgument, OutOfRange
from services.upload.domain import (
    DigestRefused,
    TypeRefused,
    Upload,
    UploadPurpose,
    UploadState,
    UploadStatus,
    Whole,
)
from services.upload.grid import Grid, Part
from services.upload.limits import Limits
from services.upload.reasons import Reason
from services.upload.signatures import container, matches
from twotruths.upload.v1 import record_pb2, upload_pb2

NOW = datetime(2026, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)
MP4 = b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41"
HASH = "ab" * 32


def an_upload(**changes: object) -> Upload:
    upload = Upload(
        id="6f1f3a2e-0b0e-4f53-9f51-0b8a3d1a2c11",
        owner="alice",
        filename="clip.mp4",
        mime_type="video/mp4",
        size=2500,
        chunk_size=1000,
        created_at=NOW,
        updated_at=NOW,
        expires_at=NOW + timedelta(hours=1),
    )
    return replace(upload, **changes)  # type: ignore[arg-type]  # test data


@given(size=st.integers(1, 5000), chunk_size=st.integers(1, 700))
def test_the_chunks_of_a_grid_cover_the_file_once_and_in_order(size: int, chunk_size: int) -> None:
    grid = Grid(size, chunk_size)
    bounds = [grid.bounds(n) for n in range(grid.total)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == size
    assert all(end == start for (_, end), (start, _) in pairwise(bounds))
    assert all(0 < end - start <= chunk_size for start, end in bounds)
    assert grid.percent(range(grid.total)) == 100


@pytest.mark.parametrize("number", [-1, 3, 2**31 - 1])
def test_a_number_outside_the_grid_is_out_of_range_and_names_the_field(number: int) -> None:
    with pytest.raises(OutOfRange) as refusal:
        Grid(2500, 1000).bounds(number)
    assert refusal.value.reason == Reason.CHUNK_OUT_OF_RANGE
    assert refusal.value.violations[0].field == "chunk_number"


def test_a_manifest_needs_every_part_and_no_contradiction() -> None:
    grid = Grid(2500, 1000)
    parts = [Part(n, grid.length(n), HASH) for n in range(3)]
    assert grid.manifest(reversed(parts)) == tuple(parts)
    with pytest.raises(FailedPrecondition, match="2 of 3 chunks are missing: 0, 2") as missing:
        grid.manifest(parts[1:2])
    assert (missing.value.reason, missing.value.metadata["first_missing"]) == (Reason.CHUNKS_MISSING, "0")
    with pytest.raises(FailedPrecondition, match="chunk 1") as contradiction:
        grid.manifest([*parts, Part(1, 1000, "cd" * 32)])
    assert contradiction.value.reason == Reason.CHUNK_CONFLICT


def test_every_reason_and_state_is_in_the_contract() -> None:
    prefix = "UPLOAD_ERROR_REASON_"
    named = {value.name.removeprefix(prefix) for value in upload_pb2.UploadErrorReason.DESCRIPTOR.values}
    named.remove("UNSPECIFIED")
    assert {str(reason) for reason in Reason} <= named
    assert {str(s) for s in UploadState} == set(record_pb2.UploadState.keys()) - {"UPLOAD_STATE_UNSPECIFIED"}
    assert {str(s) for s in UploadStatus} == set(upload_pb2.UploadStatus.keys()) - {"UPLOAD_STATUS_UNSPECIFIED"}
    purposes = set(upload_pb2.UploadPurpose.keys()) - {"UPLOAD_PURPOSE_UNSPECIFIED"}
    assert {str(p) for p in UploadPurpose} <= purposes


def test_a_record_survives_encoding_with_every_field_set() -> None:
    codec = RecordCodec(Upload, record_pb2.UploadRecord)
    full = an_upload(
        promised_sha256=HASH,
        purpose=UploadPurpose.MERGE_CLIP,
        merge_session_id="m",
        video_index=0,
        sibling_ids=("a", "b"),
        metadata={"é": "\n"},
        state=UploadState.ASSEMBLING,
        manifest=(Part(0, 2**33, HASH),),
        sha256=HASH,
        object_key="uploads/x",
        error_type="e",
        error_message="f",
        completed_at=NOW,
        request_fingerprint="g",
        claimed_sha256=HASH,
        length_deferred=True,
        source_ids=("c", "d"),
        network_type="wifi",
        device_type="phone",
        complete_request_id="h",
    )
    assert codec.decode(codec.encode(full)) == full
    assert codec.decode(codec.encode(an_upload())) == an_upload()


def test_an_upload_goes_from_open_over_assembling_to_completed_and_stays() -> None:
    manifest = (Part(0, 1000, HASH), Part(1, 1000, HASH), Part(2, 500, HASH))
    assembling = an_upload().begin_assembly(manifest, HASH, NOW)
    assert (assembling.state, assembling.manifest) == (UploadState.ASSEMBLING, manifest)
    assert assembling.begin_assembly((), "", NOW) is assembling
    assert assembling.reopen(NOW, HASH).state is UploadState.OPEN
    assert assembling.reopen(NOW, HASH).claimed_sha256 == ""
    assert assembling.reopen(NOW, "0" * 64) is assembling
    done = assembling.complete(Whole(2500, HASH, MP4), "uploads/x", NOW)
    assert (done.state, done.sha256, done.completed_at) == (UploadState.COMPLETED, HASH, NOW)
    assert done.fail("e", "m", NOW) is done
    assert done.reopen(NOW, HASH) is done
    assert done.expire(NOW + timedelta(days=9)) is done
    with pytest.raises(FailedPrecondition) as refusal:
        done.cancel(NOW)
    assert refusal.value.reason == Reason.UPLOAD_CLOSED


def test_an_upload_is_expired_by_the_clock_before_any_sweep_says_so() -> None:
    late = NOW + timedelta(hours=1)
    upload = an_upload()
    assert upload.expire(late - timedelta(microseconds=1)) is upload
    assert upload.status(any_bytes=True, now=late) is UploadStatus.EXPIRED
    with pytest.raises(FailedPrecondition) as refusal:
        upload.begin_assembly((), "", late)
    assert refusal.value.reason == Reason.UPLOAD_EXPIRED
    assert upload.expire(late).state is UploadState.EXPIRED
    assembling = upload.begin_assembly((), "", NOW)
    assert assembling.expire(late) is assembling


def test_a_whole_file_must_have_every_digest_it_was_said_to_have_and_its_type() -> None:
    whole = Whole(2500, HASH, MP4)
    an_upload(promised_sha256=HASH, claimed_sha256=HASH).check(whole)
    for wrong in ({"promised_sha256": "0" * 64}, {"claimed_sha256": "0" * 64}):
        with pytest.raises(DigestRefused):
            an_upload(**wrong).check(whole)
    with pytest.raises(TypeRefused):
        an_upload(mime_type="video/webm").check(whole)


@pytest.mark.parametrize(
    ("mime_type", "head"),
    [
        ("video/mp4", MP4),
        ("video/quicktime", b"\0\0\0\x14ftypqt  "),
        ("video/quicktime", b"\0\0\0\x08wide\0\0\0\0mdat"),
        ("video/3gpp", b"\0\0\0\x18ftyp3gp4"),
        ("video/webm;codecs=vp8,opus", b"\x1aE\xdf\xa3\x9fB\x86\x81"),
        ("VIDEO/X-MATROSKA", b"\x1aE\xdf\xa3"),
        ("video/x-unheard-of", MP4),
        ("audio/mpeg", b"ID3\x04"),
        ("audio/mpeg", b"\xff\xfb\x90\x64"),
        ("audio/aac", b"\xff\xf1\x50\x80"),
        ("audio/wav", b"RIFF\x24\0\0\0WAVEfmt "),
        ("audio/mp4", b"\0\0\0\x1cftypM4A "),
        ("image/jpeg", b"\xff\xd8\xff\xe0"),
        ("image/png", b"\x89PNG\r\n\x1a\n"),
        ("image/webp", b"RIFF\x24\0\0\0WEBP"),
        ("image/heic", b"\0\0\0\x24ftypheic"),
    ],
)
def test_a_file_of_its_type_is_taken(mime_type: str, head: bytes) -> None:
    assert matches(mime_type, head)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        bytes(64),
        b"hello world, this is not a film",
        b"#EXTM3U\n#EXT-X-VERSION:3\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\n",
        b"<?xml version='1.0'?><MPD>",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"\0\0\0\x24ftypheic",
        b"\x1aE\xdf\xa3",
        b"1234WEBPWAVE",
    ],
)
def test_another_file_named_mp4_is_refused(head: bytes) -> None:
    assert not matches("video/mp4", head)


def test_text_is_no_container() -> None:
    assert container(b"moov is a fine word for a poem") is None
    assert container(b"The ftyp") is None or not matches("text/plain", b"The ftyp")
    assert not matches("video/x-unheard-of", b"#EXTM3U")


def test_limits_name_the_field_that_breaks_them() -> None:
    limits = Limits(chunk_size=100, max_chunk_size=500, max_chunks=10, max_file_size=2000)
    assert limits.chunk_size_for(900, 0) == 100
    assert limits.chunk_size_for(2000, 0) == 200  # as few chunks as are allowed
    assert limits.chunk_size_for(900, 500) == 500
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: limits.chunk_size_for(900, 501), "chunk_size"),
        (lambda: limits.chunk_size_for(900, 89), "chunk_size"),
        (lambda: limits.check_size(2001), "file_size"),
        (lambda: limits.check_type("text/plain"), "mime_type"),
        (
            lambda: limits.check_type("image/png", media=frozenset({"video"}), at="clips[1]."),
            "clips[1].mime_type",
        ),
    ]
    for call, field in cases:
        with pytest.raises(InvalidArgument) as refusal:
            call()
        assert refusal.value.violations[0].field == field
