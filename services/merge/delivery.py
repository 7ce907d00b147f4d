"""Copy or transcode: what becomes of each clip's video, and why. Pure.

A clip *fits* when it could be delivered as it is. A session's video is copied only if all of its clips fit and
agree in everything that packets in one track share; one clip that does not fit, or two that disagree, and all are
encoded anew. So a clip that fits is undecided while others have yet to be probed. A copy that was tried and did
not stand its verification is not tried again.

"No edit list" means none that changes what is shown: the one that nearly every file with B-frames has, to bring
its first frame to zero, hides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from services.merge.domain import JobKind, Session
from services.merge.timeline import FPS, ClipInfo, Quality

LONG_SIDE, SHORT_SIDE = 1920, 1088  # 1080 lines are coded as 1088 by some
BIT_RATES = {Quality.LOW: 4_000_000, Quality.MEDIUM: 25_000_000, Quality.HIGH: 40_000_000}
PROFILES = frozenset({"Baseline", "Constrained Baseline", "Main", "High", "Constrained High"})
_PRIMARIES_2020, _TRANSFERS_HDR, _RANGE_FULL = "9", frozenset({"16", "18"}), "2"


class PlanAction(StrEnum):
    """What becomes of a clip, as the contract names it."""

    COPY = "PLAN_ACTION_COPY"
    TRANSCODE = "PLAN_ACTION_TRANSCODE"
    UNDECIDED = "PLAN_ACTION_UNDECIDED"


@dataclass(frozen=True, slots=True)
class ClipPlan:
    """What becomes of one clip; the reason is for a person."""

    index: int
    action: PlanAction
    reason: str


def clip_plans(session: Session) -> tuple[ClipPlan, ...]:
    """The plan of every clip that was probed, in order."""
    infos = _probed(session)
    misfits = {index: _misfit(info, session) for index, info in infos.items()}
    if session.copy_refused:
        return _all(infos, PlanAction.TRANSCODE, f"copying was tried in vain: {session.copy_refused}")
    culprits = [index for index, reason in misfits.items() if reason]
    if culprits:
        because = f"clip {culprits[0] + 1} cannot be copied"
        return tuple(ClipPlan(i, PlanAction.TRANSCODE, misfits[i] or because) for i in infos)
    difference = _difference(infos)
    if difference:
        return _all(infos, PlanAction.TRANSCODE, difference)
    if len(infos) < len(session.clips):
        return _all(infos, PlanAction.UNDECIDED, "it can be copied if the other clips are like it")
    return _all(infos, PlanAction.COPY, "all clips can be delivered as they are, and are alike")


def is_copied(session: Session) -> bool:
    """Whether all clips are probed and ruled to be copied."""
    plans = clip_plans(session)
    return len(plans) == len(session.clips) and all(plan.action is PlanAction.COPY for plan in plans)


def _probed(session: Session) -> dict[int, ClipInfo]:
    outcomes = {clip.index: session.done(JobKind.PROBE, clip.index) for clip in session.clips}
    return {i: outcome.clip for i, outcome in outcomes.items() if outcome is not None and outcome.clip is not None}


def _all(infos: dict[int, ClipInfo], action: PlanAction, reason: str) -> tuple[ClipPlan, ...]:
    return tuple(ClipPlan(index, action, reason) for index in infos)


def _misfit(info: ClipInfo, session: Session) -> str:
    """Why the clip cannot be delivered as it is; empty if it can."""
    faults = (*_of_codec(info), *_of_size(info, session), *_of_stream(info))
    return next((reason for wrong, reason in faults if wrong), "")


_Fault = tuple[bool, str]


def _of_codec(info: ClipInfo) -> tuple[_Fault, ...]:
    coded = info.coded
    primaries, transfer, _, range_ = (coded.colour.split("/") + [""] * 4)[:4]
    high = primaries == _PRIMARIES_2020 or transfer in _TRANSFERS_HDR
    return (
        (info.video_codec != "h264", f"it is {info.video_codec}, not H.264"),
        (coded.pixel_format != "yuv420p", f"its pixels are {coded.pixel_format or 'unknown'}, not 8-bit 4:2:0"),
        (coded.profile not in PROFILES, f"its H.264 profile is {coded.profile or 'unknown'}"),
        (high, "its colours are of high dynamic range or of BT.2020"),
        (range_ == _RANGE_FULL, "its colours are of full range"),
        (coded.interlaced, "it is interlaced"),
    )


def _of_size(info: ClipInfo, session: Session) -> tuple[_Fault, ...]:
    coded, canvas, most = info.coded, session.canvas, BIT_RATES[session.quality]
    large = max(coded.width, coded.height) > LONG_SIDE or min(coded.width, coded.height) > SHORT_SIDE
    odd = coded.width % 2 == 1 or coded.height % 2 == 1
    other = session.canvas_given and (info.width, info.height) != (canvas and (canvas.width, canvas.height))
    size = f"{info.width}x{info.height}"
    return (
        (large, f"{size} is more than {LONG_SIDE} by {SHORT_SIDE}"),
        (odd, f"{size} is not even"),
        (other, f"{size} is not the canvas that was asked for"),
        (coded.bit_rate > most, f"{coded.bit_rate / 1e6:.1f} Mbit/s are more than {most // 1_000_000}"),
    )


def _of_stream(info: ClipInfo) -> tuple[_Fault, ...]:
    coded = info.coded
    return (
        (coded.hidden > 0, "an edit list hides part of it"),
        (not coded.regular, f"its frames are not at a constant {FPS} a second (about {info.frame_rate:g})"),
        (not coded.closed, "it is not cut into closed groups of pictures that begin with an IDR frame"),
        (coded.in_band, "its parameter sets lie in the stream"),
    )


def _difference(infos: dict[int, ClipInfo]) -> str:
    """In what two clips that fit disagree first; empty if they do not."""
    named: Sequence[tuple[str, frozenset[object]]] = [
        ("sizes", frozenset((i.coded.width, i.coded.height) for i in infos.values())),
        ("pixel shapes", frozenset(i.coded.aspect for i in infos.values())),
        ("rotations", frozenset((i.rotation, i.coded.matrix) for i in infos.values())),
        ("colours", frozenset(i.coded.colour for i in infos.values())),
        ("time bases", frozenset(i.coded.time_base for i in infos.values())),
        ("encoder parameters", frozenset((i.coded.profile, i.coded.parameter_sets) for i in infos.values())),
    ]
    return next((f"the clips have different {name}" for name, values in named if len(values) > 1), "")
