"""Each refusal has its exact status, reason and field."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable

import grpc
import pytest

from services.common.errors import FailedPrecondition, PermissionDenied, ServiceError
from services.common.identity import ServiceTokens
from services.common.keys import KeyRing
from services.common.scopes import scope_of
from services.common.status import INTERNAL_TEXT, from_rpc_error
from tests.postgres import NewDatabase
from tests.rpc.challenge_fixtures import AWAY, House, create_request, open_house
from twotruths.challenge.v1 import challenge_service_pb2 as pb
from twotruths.challenge.v1 import moderation_service_pb2

NOBODY = str(uuid.UUID(int=0xDEAD))
Change = Callable[[pb.CreateChallengeRequest], object]
MISMATCH = "SEGMENTS_MISMATCH"


@pytest.fixture
async def house(new_database: NewDatabase, keys: KeyRing) -> AsyncIterator[House]:
    async with open_house(await new_database(), keys) as house:
        yield house


def set_(path: str, value: object) -> Change:
    """Sets ``a.b[0].c`` of a request."""

    def change(request: pb.CreateChallengeRequest) -> None:
        target: object = request
        *parents, last = path.replace("[", ".").replace("]", "").split(".")
        for part in parents:
            target = target[int(part)] if part.isdigit() else getattr(target, part)  # type: ignore[index]  # repeated
        setattr(target, last, value)

    return change


@pytest.mark.parametrize(
    ("change", "reason", "fields"),
    [
        (lambda r: r.ClearField("title"), "", ["title"]),
        (set_("title", "  "), "", ["title"]),
        (set_("title", "x" * 201), "", ["title"]),
        (lambda r: r.ClearField("lie_statement_index"), "", ["lie_statement_index"]),
        (set_("lie_statement_index", -1), "", ["lie_statement_index"]),
        (set_("lie_statement_index", 3), "STATEMENT_OUT_OF_RANGE", ["lie_statement_index"]),
        (set_("is_merged_video", False), "MERGED_VIDEO_REQUIRED", ["is_merged_video"]),
        (lambda r: r.ClearField("merged_video_metadata"), "", ["merged_video_metadata"]),
        (set_("merged_video_metadata.video_file_id", "x"), "", ["merged_video_metadata.video_file_id"]),
        (lambda r: r.ClearField("statements"), "", ["statements"]),
        (lambda r: r.statements.add(), MISMATCH, ["statements"]),
        (lambda r: r.merged_video_metadata.segments.add(), MISMATCH, ["merged_video_metadata.segments"]),
        (set_("merged_video_metadata.total_duration", 45), MISMATCH, ["merged_video_metadata.total_duration"]),
        (
            set_("merged_video_metadata.segments[1].start_time", 15.033),
            MISMATCH,
            ["merged_video_metadata.segments[1].start_time"],
        ),
        (
            set_("merged_video_metadata.segments[2].statement_index", 1),
            MISMATCH,
            ["merged_video_metadata.segments[2].statement_index"],
        ),
        (set_("statements[1].media_file_id", NOBODY), MISMATCH, ["statements[1].media_file_id"]),
        (set_("statements[1].duration_seconds", 12.6), MISMATCH, ["statements[1].duration_seconds"]),
        (set_("statements[1].duration_seconds", -1), "", ["statements[1].duration_seconds"]),
        (set_("request_id", "x" * 129), "", ["request_id"]),
    ],
)
async def test_a_wrong_field_is_named_and_nothing_is_stored(
    house: House, change: Change, reason: str, fields: list[str]
) -> None:
    video = house.videos.add("alice")
    request = create_request(video)
    change(request)
    assert await house.refusal("CreateChallenge", request, "alice") == ("INVALID_ARGUMENT", reason, fields)
    await house.call("CreateChallenge", create_request(video), "alice")


async def test_a_video_that_is_not_the_callers_is_not_usable(house: House) -> None:
    wanted = ("NOT_FOUND", "VIDEO_NOT_USABLE", ["merged_video_metadata.video_file_id"])
    request = create_request(house.videos.add("alice"))
    assert await house.refusal("CreateChallenge", request, "bob") == wanted
    request.merged_video_metadata.video_file_id = NOBODY
    for statement in request.statements:
        statement.media_file_id = ""
    assert await house.refusal("CreateChallenge", request, "alice") == wanted


async def test_a_second_challenge_on_a_video_or_request_id_is_refused(house: House) -> None:
    request = create_request(house.videos.add("alice"), request_id="r")
    await house.call("CreateChallenge", request, "alice")
    request.title = "Another"
    reused = ("ALREADY_EXISTS", "REQUEST_ID_REUSED", ["request_id"])
    assert await house.refusal("CreateChallenge", request, "alice") == reused
    request.request_id = ""
    assert await house.refusal("CreateChallenge", request, "alice") == ("ALREADY_EXISTS", "VIDEO_IN_USE", [])


async def test_what_is_not_there_and_what_is_hidden_are_refused_alike(house: House) -> None:
    draft = await house.draft("alice")
    seen = set()
    for id_ in (draft, NOBODY):
        for method, request in (
            ("GetChallenge", pb.GetChallengeRequest(challenge_id=id_)),
            ("GetSegments", pb.GetSegmentsRequest(challenge_id=id_)),
            ("GetStats", pb.GetStatsRequest(challenge_id=id_)),
            ("PublishChallenge", pb.PublishChallengeRequest(challenge_id=id_)),
            ("SubmitGuess", pb.SubmitGuessRequest(challenge_id=id_, statement_index=0)),
        ):
            assert await house.refusal(method, request, "bob") == ("NOT_FOUND", "CHALLENGE_NOT_FOUND", [])
            seen.add((await house.raw(method, request, "bob")).error)
    assert len(seen) == 1
    published = await house.published("alice")
    request = pb.PublishChallengeRequest(challenge_id=published)
    assert await house.refusal("PublishChallenge", request, "bob") == ("NOT_FOUND", "CHALLENGE_NOT_FOUND", [])


async def test_guesses_that_do_not_count_are_refused(house: House) -> None:
    id_ = await house.published("alice", lie=0)

    async def refused(player: str, index: int | None) -> tuple[str, str, list[str]]:
        request = pb.SubmitGuessRequest(challenge_id=id_, statement_index=index)
        return await house.refusal("SubmitGuess", request, player)

    assert await refused("alice", 1) == ("FAILED_PRECONDITION", "OWN_CHALLENGE", [])
    out_of_range = ("INVALID_ARGUMENT", "STATEMENT_OUT_OF_RANGE", ["statement_index"])
    assert await refused("bob", 3) == out_of_range
    assert await refused("bob", None) == ("INVALID_ARGUMENT", "", ["statement_index"])
    await house.guess("bob", id_, 1)
    assert await refused("bob", 0) == ("ALREADY_EXISTS", "ALREADY_GUESSED", [])
    stats = await house.call("GetStats", pb.GetStatsRequest(challenge_id=id_), "bob")
    assert list(stats.guesses_per_statement) == [0, 1, 0]


async def test_a_malformed_id_page_size_or_token_is_named(house: House) -> None:
    get = pb.GetChallengeRequest(challenge_id="1")
    assert await house.refusal("GetChallenge", get, "bob") == ("INVALID_ARGUMENT", "", ["challenge_id"])
    size = pb.ListChallengesRequest(page_size=101)
    assert await house.refusal("ListChallenges", size, "bob") == ("INVALID_ARGUMENT", "", ["page_size"])
    token = pb.ListChallengesRequest(page_token="bm90IG91cnM=")
    wanted = ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID", ["page_token"])
    assert await house.refusal("ListChallenges", token, "bob") == wanted


async def test_every_rpc_wants_its_scope(house: House) -> None:
    services = (pb.DESCRIPTOR.services_by_name, moderation_service_pb2.DESCRIPTOR.services_by_name)
    methods = [method for by_name in services for service in by_name.values() for method in service.methods]
    assert all(map(scope_of, methods))
    for method in pb.DESCRIPTOR.services_by_name["ChallengeService"].methods:
        request = getattr(pb, method.input_type.name)()
        others = [s for s in ("media:upload", "media:read", "challenge:write") if s != scope_of(method)]
        with pytest.raises(PermissionDenied) as refused:
            await house.call(method.name, request, "alice", scopes=others)
        assert refused.value.reason == "SCOPE_MISSING"


async def test_who_has_no_token_is_refused_and_a_service_is_no_player(house: House) -> None:
    request = pb.ListChallengesRequest()
    with pytest.raises(grpc.aio.AioRpcError) as anonymous:
        await house.stub.ListChallenges(request)
    assert anonymous.value.code() is grpc.StatusCode.UNAUTHENTICATED
    token = ServiceTokens(house.keys.directory / "services.pem", "merge").token("challenge")
    with pytest.raises(grpc.aio.AioRpcError) as service:
        await house.stub.ListChallenges(request, metadata=[("authorization", f"Bearer {token}")])
    assert from_rpc_error(service.value).reason == "INTERNAL_ONLY"


async def test_merge_that_is_away_is_unavailable_and_merge_that_refuses_us_is_our_fault(house: House) -> None:
    video = house.videos.add("alice")
    house.videos.failure = AWAY
    assert (await house.refusal("CreateChallenge", create_request(video), "alice"))[0] == "UNAVAILABLE"
    for failure in (PermissionDenied("your key is old"), FailedPrecondition("secret"), RuntimeError("secret")):
        house.videos.failure = failure
        with pytest.raises(ServiceError) as refused:
            await house.call("CreateChallenge", create_request(video), "alice")
        assert (refused.value.code, refused.value.message) == ("INTERNAL", INTERNAL_TEXT)


async def test_what_is_not_served_yet_says_so(house: House) -> None:
    requests = {
        "DeleteChallenge": pb.DeleteChallengeRequest(challenge_id=NOBODY),
        "ReportChallenge": pb.ReportChallengeRequest(challenge_id=NOBODY, reason="rude"),
        "GetLeaderboard": pb.GetLeaderboardRequest(),
    }
    for method, request in requests.items():
        assert (await house.refusal(method, request, "bob"))[0] == "UNIMPLEMENTED"
    listing = house.moderation.ListReports(
        moderation_service_pb2.ListReportsRequest(), metadata=house.metadata("mod", ["moderation"])
    )
    assert await listing.code() is grpc.StatusCode.UNIMPLEMENTED
