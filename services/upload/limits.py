"""What this server takes: sizes, chunks and types, and the refusals of what it does not."""

from __future__ import annotations

from dataclasses import dataclass

from services.common.errors import InvalidArgument
from services.upload import signatures
from services.upload.reasons import Reason

_ADVISED = {"wifi": 2 << 20, "4g": 1 << 20, "3g": 512 << 10}
_ADVISED_ELSE = 256 << 10


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes. ``media`` are the first halves of the media types that are taken. The quotas are of one
    player (:mod:`services.upload.quotas`); 0 is no quota."""

    chunk_size: int = 1 << 20
    max_chunk_size: int = 10_000_000
    max_chunks: int = 10_000
    max_file_size: int = 100_000_000
    media: frozenset[str] = frozenset({"video", "audio", "image"})
    max_open_uploads: int = 0
    max_bytes_per_day: int = 0
    max_initiates_per_minute: int = 0

    def check_size(self, size: int, field: str = "file_size") -> None:
        """Raises InvalidArgument (FILE_TOO_LARGE)."""
        if size <= 0:
            raise InvalidArgument.field(field, "must be more than 0")
        if size > self.max_file_size:
            raise InvalidArgument.field(
                field, f"must be at most {self.max_file_size} bytes", reason=Reason.FILE_TOO_LARGE
            )

    def check_type(self, mime_type: str, *, media: frozenset[str] | None = None, at: str = "") -> None:
        """Raises InvalidArgument (FILE_TYPE_NOT_ALLOWED); ``at`` begins the field's path."""
        taken = self.media if media is None else media & self.media
        if signatures.media_of(mime_type) not in taken:
            raise InvalidArgument.field(
                f"{at}mime_type",
                f"must be one of {', '.join(sorted(taken))}",
                reason=Reason.FILE_TYPE_NOT_ALLOWED,
            )

    def advised_chunk_size(self, network_type: str) -> int:
        """The chunk size in bytes that suits a kind of network: the worse it is, the less is sent again."""
        if not network_type:
            return self.chunk_size
        return min(_ADVISED.get(network_type.strip().lower(), _ADVISED_ELSE), self.max_chunk_size)

    def chunk_size_for(self, size: int, asked: int, network_type: str = "") -> int:
        """The chunk size of a file, as asked for if that is not 0, else as the network advises. Raises
        InvalidArgument (field chunk_size)."""
        smallest = -(-size // self.max_chunks)
        if not asked:
            return max(self.advised_chunk_size(network_type), smallest)
        if not smallest <= asked <= self.max_chunk_size:
            raise InvalidArgument.field(
                "chunk_size", f"must be {smallest} to {self.max_chunk_size} bytes for a file of this size"
            )
        return asked
