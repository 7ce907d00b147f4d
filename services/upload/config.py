"""Settings of the upload service, each an environment variable ``TWOTRUTHS_<NAME>``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from services.common.settings import CommonSettings
from services.upload.limits import Limits
from services.upload.service import Policy


class UploadSettings(CommonSettings):
    """Where it listens, what it takes and how long it waits. Sizes in bytes, times in seconds."""

    upload_listen: str = Field("127.0.0.1:50051", description="address and port of the upload service")
    upload_chunk_size: int = Field(1 << 20, ge=1, description="chunk size when the client names none")
    upload_max_chunk_size: int = Field(10_000_000, ge=1, description="largest chunk size a client may name")
    upload_max_chunks: int = Field(10_000, ge=1, description="most chunks of one file")
    upload_max_file_size: int = Field(100_000_000, ge=1, description="largest file")
    upload_allowed_types: str = Field(
        "video,audio,image", description="first halves of the media types that are taken"
    )
    upload_expiry_seconds: float = Field(86_400, gt=0, description="after which an open upload is given up")
    upload_record_ttl_seconds: float = Field(
        7 * 86_400, gt=0, description="how long failed, cancelled and expired uploads are remembered"
    )
    upload_orphan_grace_seconds: float = Field(
        86_400, ge=0, description="how long chunks without an upload record are kept"
    )
    upload_max_streams: int = Field(64, ge=1, description="most chunk streams open at once")
    upload_stall_seconds: float = Field(15, gt=0, description="after which a silent chunk stream is cut off")
    upload_watch_seconds: float = Field(3, gt=0, description="how often watchers look without a hint")
    upload_sweep_seconds: float = Field(60, gt=0, description="how often expired and cut-off uploads are tended")
    upload_threads: int = Field(2, ge=1, description="threads that hash and write chunks")
    fsync: Literal["part", "complete"] = Field(
        "complete", description="what survives a loss of power: every acknowledged chunk, or completed files"
    )

    def policy(self) -> Policy:
        """These settings as the use cases take them."""
        media = {word.strip().lower() for word in self.upload_allowed_types.split(",")}
        limits = Limits(
            chunk_size=self.upload_chunk_size,
            max_chunk_size=self.upload_max_chunk_size,
            max_chunks=self.upload_max_chunks,
            max_file_size=self.upload_max_file_size,
            media=frozenset(media - {""}),
        )
        return Policy(
            limits=limits,
            expiry=self.upload_expiry_seconds,
            stall=self.upload_stall_seconds,
            look=self.upload_watch_seconds,
            max_streams=self.upload_max_streams,
        )
