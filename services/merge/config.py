"""Settings of the merge service: the controller and its workers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from services.common.settings import CommonSettings
from services.merge.media.limits import Limits
from services.merge.timeline import LARGEST_CANVAS

_AROUND_A_JOB_SECONDS = 120.0  # its files are fetched and stored, and the store may be away for a minute


class MergeSettings(CommonSettings):
    """Environment variables ``TWOTRUTHS_<NAME>``."""

    merge_listen: str = Field("127.0.0.1:50052", description="where the merge service listens")
    worker_listen: str = Field("127.0.0.1:0", description="where a worker answers health checks (port 0: any)")
    chunk_seconds: float = Field(
        20.0,
        ge=1,
        description="a longer clip is encoded in pieces of at most half of this, by several workers",
    )
    worker_jobs: int = Field(
        1,
        ge=1,
        le=64,
        description="jobs a worker does at once, probes apart; one more while all of these are of low priority",
    )
    worker_probes: int = Field(
        1, ge=0, le=64, description="probes a worker does beside its jobs; 0: they are among these"
    )
    worker_threads: int = Field(1, ge=1, le=64, description="threads of each decoder and encoder")
    worker_sandbox: Literal["required", "if_possible"] = Field(
        "required",
        description="if_possible: a worker also starts on a kernel without Landlock or seccomp, and says so",
    )
    worker_scratch_dir: Path | None = Field(None, description="scratch folder; default <data_dir>/scratch")

    job_ack_wait_seconds: float = Field(
        30.0, ge=1, description="a job whose worker is silent for so long goes to another"
    )
    job_memory_mib: int = Field(2048, ge=256, description="memory limit of a media job")
    job_seconds: float = Field(
        300.0,
        ge=1,
        description="time limit of a media job, more above 1280x720; its CPU limit is that for each thread",
    )
    probe_seconds: float = Field(
        30.0, ge=1, description="time limit of a probe, and for each thread its CPU limit"
    )
    job_output_mib: int = Field(4096, ge=1, description="largest file a media job may write")
    max_clip_seconds: float = Field(60.0, gt=0, description="the longest clip that is taken")
    max_clip_pixels: int = Field(
        4096 * 2304, ge=64 * 64, description="the largest picture of a clip, width by height"
    )
    max_clip_frames: int = Field(
        15_000, ge=1, description="the most pictures in a clip: 60 s at 240 a second, and more"
    )
    max_clip_streams: int = Field(16, ge=1, description="the most tracks in a clip")

    merge_even_loudness: bool = Field(True, description="bring every clip to a loudness of -16 LUFS")

    upload_timeout_seconds: float = Field(86_400.0, gt=0, description="how long a session may wait for its clips")
    processing_timeout_seconds: float = Field(
        21_600.0, gt=0, description="how long it may take after that until the video is there"
    )
    queue_timeout_seconds: float = Field(
        10_800.0, gt=0, description="how long a job may wait for a worker until its session fails"
    )
    claim_timeout_seconds: float = Field(
        1_500.0,
        gt=0,
        description="how long a worker may hold a job until that is taken away: 120 more than the longest may run",
    )
    jobs_per_owner: int = Field(
        4,
        ge=1,
        description="jobs of one player in the queue at once, and as many of low priority beside them: how many "
        "workers one player may keep busy, and how many jobs others wait behind",
    )
    sweep_seconds: float = Field(30.0, gt=0, description="how often every session is looked at")
    clip_retention_days: float = Field(7.0, ge=0, description="how long the clips of an ended session are kept")
    session_retention_days: float = Field(30.0, gt=0, description="how long its record is kept after that")
    playback_ttl_seconds: float = Field(
        3_600.0, gt=0, description="how long a signed URL lasts beyond the video's own length"
    )
    cdn_base_url: str = Field("", description="the CloudFront distribution, https://…; its origin is the bucket")
    cdn_key_id: str = Field("", description="id of the public key that CloudFront verifies its signed URLs with")
    cdn_key_file: Path | None = Field(None, description="RSA private key (PEM) that signs them")

    @property
    def scratch_dir(self) -> Path:
        """Beside the objects by default, so that a finished file gets there by a rename."""
        return self.worker_scratch_dir or self.data_dir / "scratch"

    @model_validator(mode="after")
    def _a_job_ends_before_it_is_taken_away(self) -> MergeSettings:
        """Else a clip that takes too long is three workers lost instead of one time_exceeded."""
        longest = Limits(wall_seconds=self.job_seconds).for_canvas(LARGEST_CANVAS).wall_seconds
        if self.claim_timeout_seconds < longest + _AROUND_A_JOB_SECONDS:
            raise ValueError(
                f"claim_timeout_seconds must be at least {longest + _AROUND_A_JOB_SECONDS:g}: a job may run for"
                f" {longest:g} seconds (job_seconds, and the largest picture)"
            )
        return self
