"""Settings of the upload service, each an environment variable ``TWOTRUTHS_<NAME>``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from services.common.settings import CommonSettings


class UploadSettings(CommonSettings):
    """Where it listens, what it takes and how long it waits. Sizes in bytes, times in seconds."""

    upload_listen: str = Field(default="127.0.0.1:50051", description="address and port of the upload service")
    upload_chunk_size: int = Field(default=1 << 20, ge=1, description="chunk size when the client names none")
    upload_max_chunk_size: int = Field(
        default=10_000_000, ge=1, description="largest chunk size a client may name"
    )
    upload_max_chunks: int = Field(default=10_000, ge=1, description="most chunks of one file")
    upload_max_file_size: int = Field(default=100_000_000, ge=1, description="largest file")
    upload_allowed_types: str = Field(
        default="video,audio,image", description="first halves of the media types that are taken"
    )
    upload_max_open: int = Field(default=200, ge=0, description="most open uploads of a player; 0 is no limit")
    upload_max_bytes_per_day: int = Field(
        default=50_000_000_000, ge=0, description="most bytes a player may announce in a day (UTC); 0 is no limit"
    )
    upload_max_initiates_per_minute: int = Field(
        default=600, ge=0, description="most uploads a player may initiate in a minute; 0 is no limit"
    )
    upload_expiry_seconds: float = Field(
        default=86_400, gt=0, description="after which an open upload is given up"
    )
    upload_record_ttl_seconds: float = Field(
        default=7 * 86_400, gt=0, description="how long failed, cancelled and expired uploads are remembered"
    )
    # Longer than any file takes from its first byte in the object store to the record that it is there.
    upload_orphan_grace_seconds: float = Field(
        default=86_400, ge=3600, description="how long chunks and files without an upload record are kept"
    )
    clamd: str = Field(
        default="",
        description="virus scanner clamd: `<host>:<port>` or the path of its socket; empty is off. It must say "
        "`AlertExceedsMax yes`, and its size limits must hold the largest file",
    )
    clamd_timeout_seconds: float = Field(default=120, gt=0, description="how long one virus scan may take")
    upload_max_streams: int = Field(default=64, ge=1, description="most streams of bytes open at once")
    # Longer than the gateway waits for a silent phone: it is the one that can tell the phone so.
    upload_stall_seconds: float = Field(default=15, gt=0, description="after which a silent stream is cut off")
    upload_watch_seconds: float = Field(default=3, gt=0, description="how often watchers look without a hint")
    upload_sweep_seconds: float = Field(
        default=60, gt=0, description="how often expired and cut-off uploads are tended"
    )
    upload_adopt_broker: bool = Field(
        default=False,
        description="whether a broker is taken over whose uploads are in another store; those are lost",
    )
    upload_threads: int = Field(default=2, ge=1, description="threads that hash and write chunks")
    fsync: Literal["part", "complete"] = Field(
        default="complete",
        description="what survives a loss of power: every acknowledged chunk, or completed files",
    )
