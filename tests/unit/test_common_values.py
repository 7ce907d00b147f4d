"""The values that services share: errors on the wire, records on disk, signed URLs, the caller, lost races."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from services.common import context
from services.common.adapters.memory import MemoryStateStore
from services.common.codec import RecordCodec
from services.common.errors import (
    BY_CODE,
    Aborted,
    FieldViolation,
    Internal,
    PermissionDenied,
    ServiceError,
    Unauthenticated,
    Unavailable,
)
from services.common.keys import KeyRing
from services.common.playback import PlaybackSigner, SignedQuery
from services.common.state import Entry, mutate
from services.common.status import from_rpc_error, from_status, to_status
from twotruths.upload.v1 import record_pb2

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PLAIN = st.text("abcXYZ_.[]019", min_size=1, max_size=20)


@given(
    cls=st.sampled_from(sorted(BY_CODE.values(), key=lambda c: c.code)),
    message=TEXT,
    reason=PLAIN | st.just(""),
    metadata=st.dictionaries(PLAIN, TEXT, max_size=3),
    violations=st.lists(st.builds(FieldViolation, PLAIN, TEXT), max_size=3),
    retry_after=st.none() | st.integers(0, 10**8).map(lambda ms: ms / 1000),
    domain=PLAIN,
)
def test_an_error_crosses_the_wire_as_itself(
    cls: type[ServiceError], message: str, domain: str, **details: Any
) -> None:
    error = cls(message, **details)
    status = status_pb2.Status.FromString(
        to_status(error, domain=domain, request_id="request-1").SerializeToString()
    )
    back = from_status(status)
    assert type(back) is cls
    assert (back.message, back.reason, back.retry_after) == (message, error.reason, error.retry_after)
    assert (back.metadata, back.violations) == (error.metadata, error.violations)
    assert code_pb2.Code.Name(status.code) == cls.code
    info = error_details_pb2.RequestInfo()
    assert status.details[-1].Unpack(info)
    assert info.request_id == "request-1"
    # passed on by the next service, it still says where it began
    again = from_status(to_status(back, domain="other", request_id="request-1"))
    assert again.domain == back.domain == (domain if error.reason or error.metadata else "")


def test_every_code_has_its_class() -> None:
    assert {*BY_CODE, "OK", "UNKNOWN"} == set(code_pb2.Code.keys())


@pytest.mark.parametrize("code", [0, 2, 999, -1])
def test_a_status_of_no_known_code_is_internal(code: int) -> None:
    assert type(from_status(status_pb2.Status(code=code, message="x"))) is Internal


def test_a_write_on_a_broken_connection_is_worth_another_try_and_no_internal_error() -> None:
    none = grpc.aio.Metadata()
    write = 'Failed "execute_batch": (<grpc._cython.cygrpc.SendMessageOperation object at 0x7f>,)'
    broken = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, none, none, "Internal error from Core", write)
    assert isinstance(from_rpc_error(broken), Unavailable)
    theirs = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, none, none, "oops")
    assert isinstance(from_rpc_error(theirs), Internal)


def test_details_that_are_garbage_do_not_hide_the_error() -> None:
    status = to_status(Aborted("lost", reason="RACE"), domain="a", request_id="b")
    status.details.add(type_url="type.googleapis.com/google.rpc.BadRequest", value=b"\xff\xff")
    status.details.add(type_url="type.googleapis.com/unheard.Of", value=b"\xff")
    back = from_status(status)
    assert (type(back), back.message, back.reason) == (Aborted, "lost", "RACE")


class State(StrEnum):
    OPEN = "UPLOAD_STATE_OPEN"
    FAILED = "UPLOAD_STATE_FAILED"


@dataclass(frozen=True)
class Part:
    number: int
    length: int
    sha256: str


@dataclass(frozen=True)
class Record:
    id: str
    size: int
    video_index: int
    state: State
    created_at: datetime
    completed_at: datetime | None = None
    sibling_ids: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    manifest: tuple[Part, ...] = ()


TIMES = st.datetimes(
    datetime(1970, 1, 1), datetime(9999, 1, 1), timezones=st.sampled_from([UTC, timezone(timedelta(hours=-9))])
)
INT64 = st.integers(-(2**63), 2**63 - 1)


@given(
    st.builds(
        Record,
        id=TEXT,
        size=INT64,
        video_index=st.integers(-(2**31), 2**31 - 1),
        state=st.sampled_from(State),
        created_at=TIMES,
        completed_at=st.none() | TIMES,
        sibling_ids=st.lists(TEXT, max_size=3).map(tuple),
        metadata=st.dictionaries(TEXT, TEXT, max_size=3),
        manifest=st.lists(st.builds(Part, st.integers(0, 9), INT64, TEXT), max_size=2).map(tuple),
    )
)
def test_a_record_is_read_back_as_it_was_written(record: Record) -> None:
    codec = RecordCodec(Record, record_pb2.UploadRecord)
    data = codec.encode(record)
    assert codec.decode(data) == record
    assert codec.encode(codec.decode(data)) == data


def test_a_field_of_a_newer_writer_is_dropped() -> None:
    codec = RecordCodec(Record, record_pb2.UploadRecord)
    record = Record("1", 1, 0, State.OPEN, datetime(2026, 1, 1, tzinfo=UTC))
    later = record_pb2.UploadRecord(error_type="new field")
    assert codec.decode(codec.encode(record) + later.SerializeToString() + b"\xfa\x3f\x01x") == record


def test_a_dataclass_field_that_the_message_lacks_is_refused_when_the_codec_is_made() -> None:
    @dataclass(frozen=True)
    class Wider(Record):
        colour: str = ""

    with pytest.raises(TypeError, match=r"UploadRecord lacks colour"):
        RecordCodec(Wider, record_pb2.UploadRecord)


NOW = 1_700_000_000.0


def _refusal(signer: PlaybackSigner, video: str = "video", **given: Any) -> str:
    with pytest.raises(PermissionDenied) as refused:
        signer.verify(video, **({"now": NOW} | given))
    return refused.value.reason


def test_a_signed_url_is_permission_for_one_video_until_its_end() -> None:
    signer = PlaybackSigner({"new": b"n" * 32, "old": b"o" * 32})
    signed = signer.sign("video", now=NOW, ttl=60)
    given: dict[str, Any] = {
        "expires": str(signed.expires),
        "key_id": signed.key_id,
        "signature": signed.signature,
    }
    assert signed.query() == f"expires=1700000060&key_id=new&signature={signed.signature}"
    signer.verify("video", now=NOW + 60, **given)
    assert _refusal(signer, **given | {"now": NOW + 61}) == "SIGNATURE_EXPIRED"
    tampered: list[dict[str, Any]] = [
        {"video": "other"},
        {"method": "PUT"},
        {"key_id": "old"},
        {"signature": signed.signature[:-1] + ("0" if signed.signature[-1] != "0" else "1")},
        {"signature": signed.signature.upper() + "A"},
        {"expires": str(signed.expires + 1)},
        {"expires": f"0{signed.expires}"},
        {"expires": f"+{signed.expires}"},
        {"expires": f" {signed.expires}"},
        {"expires": f"{signed.expires}.0"},
        {"expires": "1_700_000_060"},
        {"expires": "١٧٠٠٠٠٠٠٦٠"},
        {"expires": "9" * 5000},
        *({name: junk} for name in (*given, "video") for junk in ("", "\0", "é", "\ud800", "😀" * 2000, "a\nb")),
    ]
    for change in tampered:
        assert _refusal(signer, **given | change) == "SIGNATURE_INVALID", change
    # expired and forged: nothing is said about what was valid once
    assert _refusal(signer, **given | {"now": NOW + 61, "signature": "0" * 64}) == "SIGNATURE_INVALID"


def test_playback_keys_rotate_by_putting_a_new_one_in_front() -> None:
    old = PlaybackSigner({"old": b"o" * 32}).sign("video", now=NOW, ttl=60)
    given: dict[str, Any] = {"expires": str(old.expires), "key_id": old.key_id, "signature": old.signature}
    both = PlaybackSigner({"new": b"n" * 32, "old": b"o" * 32})
    both.verify("video", now=NOW, **given)
    assert both.sign("video", now=NOW, ttl=60).key_id == "new"
    assert _refusal(PlaybackSigner({"new": b"n" * 32}), **given) == "SIGNATURE_INVALID"
    assert _refusal(PlaybackSigner({"old": b"x" * 32}), **given) == "SIGNATURE_INVALID"


@pytest.mark.parametrize("content", ["", "[]", "{}", "7", '{"a": "zz"}', '{"a": 7}', '{"a": ""}', '{"a": "00"}'])
def test_a_file_without_good_playback_keys_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "playback.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"."):
        PlaybackSigner.from_file(path)


def test_development_keys_sign_playback(keys: KeyRing) -> None:
    signer = PlaybackSigner.from_file(keys.directory / "playback.json")
    signed = signer.sign("video", now=time.time(), ttl=5)
    signer.verify(
        "video",
        expires=str(signed.expires),
        key_id=signed.key_id,
        signature=signed.signature,
        now=time.time(),
    )


ALICE = context.Principal("alice")
MERGE = context.Principal("service:merge", frozenset({"internal"}), is_service=True)


@pytest.mark.parametrize(
    ("caller", "named", "owner"),
    [
        (ALICE, "", "alice"),
        (ALICE, "alice", "alice"),
        (MERGE, "bob", "bob"),
        (ALICE, "bob", None),
        (MERGE, "", None),
    ],
)
def test_services_name_an_owner_and_players_are_their_own(
    caller: context.Principal, named: str, owner: str | None
) -> None:
    with context.serving(context.CallContext(caller)):
        if owner is not None:
            assert context.owner(named) == owner
        else:
            with pytest.raises(PermissionDenied) as refused:
                context.owner(named)
            assert refused.value.reason == "INTERNAL_ONLY"


def test_only_a_service_passes_where_a_service_is_required() -> None:
    with context.serving(context.CallContext(MERGE)):
        assert context.require_service() == MERGE
        with context.serving(context.CallContext(ALICE)), pytest.raises(PermissionDenied) as refused:
            context.require_service()
    assert refused.value.reason == "INTERNAL_ONLY"
    for needed in (context.principal, context.owner, context.require_service):
        with pytest.raises(Unauthenticated):
            needed()
        with context.serving(context.CallContext()), pytest.raises(Unauthenticated):
            needed()


class Contended(MemoryStateStore[int]):
    """A store in which others get their turn between a read and the write that follows."""

    _writing = False

    async def get(self, key: str) -> Entry[int] | None:
        entry = await super().get(key)
        if not self._writing:
            await asyncio.sleep(0)
        return entry

    async def update(self, key: str, value: int, revision: int, *, ttl: float | None = None) -> Entry[int]:
        self._writing = True  # nobody's turn until it is done
        try:
            return await super().update(key, value, revision, ttl=ttl)
        finally:
            self._writing = False


async def test_no_write_is_lost_among_many_writers() -> None:
    store = Contended()
    await store.create("n", 0)
    await asyncio.gather(*(mutate(store, "n", lambda n: n + 1) for _ in range(12)))
    entry = await store.get("n")
    assert entry is not None
    assert entry.value == 12


async def test_a_writer_who_always_loses_gives_up() -> None:
    class Busy(MemoryStateStore[int]):
        async def update(self, key: str, value: int, revision: int, *, ttl: float | None = None) -> Entry[int]:
            await super().update(key, -1, revision)
            return await super().update(key, value, revision, ttl=ttl)

    store = Busy()
    await store.create("n", 0)
    with pytest.raises(Aborted):
        await mutate(store, "n", lambda n: n + 1, attempts=3)


async def test_mutate_writes_only_what_changed_and_with_the_ttl_of_the_new_value() -> None:
    now = [0.0]
    store: MemoryStateStore[list[int]] = MemoryStateStore(now=lambda: now[0])
    same: Callable[[list[int]], list[int]] = lambda value: value  # noqa: E731  named for what it does
    assert await mutate(store, "n", same) is None
    created = await store.create("n", [1])
    assert await mutate(store, "n", same) == created
    with pytest.raises(ZeroDivisionError):
        await mutate(store, "n", lambda value: [value[0] // 0])
    assert await store.get("n") == created
    written = await mutate(store, "n", lambda value: [*value, 5], ttl=lambda value: value[-1])
    assert written is not None
    assert written.value == [1, 5]
    now[0] = 4.9
    assert await store.get("n") == written
    now[0] = 5.0
    assert await store.get("n") is None


def test_playback_keys_rotate_without_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "playback.json"
    old, new = "aa" * 32, "bb" * 32

    def write(text: str) -> None:
        (tmp_path / "next").write_text(text)
        (tmp_path / "next").replace(path)

    write(f'{{"old": "{old}"}}')
    signer = PlaybackSigner.from_file(path)
    before = signer.sign("video", now=NOW, ttl=60)
    write(f'{{"new": "{new}", "old": "{old}"}}')
    after = signer.sign("video", now=NOW, ttl=60)
    assert (before.key_id, after.key_id) == ("old", "new")

    def refusal(signed: SignedQuery) -> str:
        given = {"expires": str(signed.expires), "key_id": signed.key_id, "signature": signed.signature}
        return _refusal(signer, **given)

    def valid(signed: SignedQuery) -> bool:
        given = {"expires": str(signed.expires), "key_id": signed.key_id, "signature": signed.signature}
        signer.verify("video", now=NOW, **given)
        return True

    assert valid(before)
    assert valid(after)
    for broken in (f'{{"new": "{new}x"}}', "{", "{}"):
        write(broken)
        assert valid(after), "what was read once stays in force"
    path.unlink()
    assert valid(after)
    assert new not in caplog.text
    write(f'{{"new": "{new}"}}')
    assert refusal(before) == "SIGNATURE_INVALID"


def test_whether_a_signature_is_for_a_public_video_cannot_be_changed() -> None:
    signer = PlaybackSigner({"k": b"k" * 32})
    for public in (False, True):
        signed = signer.sign("video", now=NOW, ttl=60, public=public)
        given = {"expires": str(signed.expires), "key_id": "k", "signature": signed.signature}
        assert ("public=1" in signed.query()) is public
        for word in ("", "1", "0"):
            if word == ("1" if public else ""):
                signer.verify("video", now=NOW, public=word, **given)
            else:
                assert _refusal(signer, public=word, **given) == "SIGNATURE_INVALID"
