"""The header fields of tus 1.0.0 (https://tus.io/protocols/resumable-upload) as values, and back. Pure."""

from __future__ import annotations

import base64
import mimetypes
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import format_datetime

from services.gateway.problems import FieldError, Problem, invalid
from twotruths.upload.v1.upload_pb2 import UPLOAD_PURPOSE_PARTIAL, Upload
from twotruths.upload.v1.upload_service_pb2 import (
    CHECKSUM_ALGORITHM_SHA1,
    CHECKSUM_ALGORITHM_SHA256,
    ChecksumAlgorithm,
)

UNKNOWN_TYPE = "application/octet-stream"
# Where an upload's metadata says what it was concatenated of; the service has no field for that.
_PARTS_KEY = "tus-concat-"
_PARTS_A_KEY = 25  # ids of 36 characters and a space: within the 1024 bytes of a value
_MAX_PARTS = 100
_MAX_ECHO = 7000  # clients refuse header lines of more than 8 KiB
_KEY = re.compile(r"[\x21-\x2b\x2d-\x7e]+")  # printable ASCII, no space, no comma
_PART_URL = re.compile(r"\S*?/([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})/?")
_CHECKSUMS: Mapping[str, tuple[ChecksumAlgorithm.ValueType, int]] = {
    "sha1": (CHECKSUM_ALGORITHM_SHA1, 20),
    "sha256": (CHECKSUM_ALGORITHM_SHA256, 32),
}
CHECKSUM_NAMES = ",".join(_CHECKSUMS)
# Not what this machine's files say: the same name has the same type everywhere.
_TYPES = mimetypes.MimeTypes(())


def _wrong(header: str, what: str) -> Problem:
    return invalid([FieldError(f"/{header}", what)])


def number(headers: Mapping[str, str], name: str) -> int | None:
    """A header's count of bytes, None without the header. Raises Problem 400."""
    text = headers.get(name)
    if text is None:
        return None
    text = text.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) < 2**63):
        raise _wrong(name, "must be a number of bytes, from 0")
    return int(text)


@dataclass(frozen=True, slots=True)
class Description:
    """What Upload-Metadata says of a file."""

    filename: str
    mime_type: str
    metadata: Mapping[str, str]


def description(text: str) -> Description:
    """Of Upload-Metadata: ``filename`` and ``filetype`` (or ``name`` and ``type``) describe the file, the rest is
    kept. A type that is not given is the one of the name's ending. Raises Problem 400."""
    rest = _pairs(text)
    filename = rest.pop("filename", "") or rest.get("name", "") or "upload"
    mime_type = rest.pop("filetype", "") or rest.get("type", "") or _TYPES.guess_type(filename)[0] or UNKNOWN_TYPE
    if any(key.startswith(_PARTS_KEY) for key in rest):
        raise _wrong("Upload-Metadata", f"keys that begin with {_PARTS_KEY} are ours")
    return Description(filename, mime_type, rest)


def _pairs(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in text.split(",") if text.strip() else ():
        key, _, value = pair.strip().partition(" ")
        if not _KEY.fullmatch(key) or key in found:
            raise _wrong("Upload-Metadata", "must be pairs of a key, of its own, and a value in base64")
        try:
            found[key] = base64.b64decode(value.strip(), validate=True).decode()
        except UnicodeDecodeError:
            raise _wrong("Upload-Metadata", f"the value of {key} is not UTF-8") from None
        except ValueError:
            raise _wrong("Upload-Metadata", f"the value of {key} is not base64") from None
    return found


def metadata(upload: Upload) -> str:
    """Upload-Metadata of an upload, whoever began it; what has no room in a header is left out."""
    own = {"filename": upload.filename, "filetype": upload.mime_type}
    rest = {k: v for k, v in upload.metadata.items() if not k.startswith(_PARTS_KEY) and _KEY.fullmatch(k)}
    pairs, size = [], 0
    for key, value in (own | {k: rest[k] for k in sorted(rest)}).items():
        pair = f"{key} {base64.b64encode(value.encode()).decode()}".rstrip()
        size += len(pair) + 1
        if size <= _MAX_ECHO:
            pairs.append(pair)
    return ",".join(pairs)


def checksum(text: str | None) -> tuple[ChecksumAlgorithm.ValueType, str] | None:
    """Upload-Checksum as algorithm and hex, None without it. Raises Problem 400."""
    if text is None:
        return None
    name, _, value = text.strip().partition(" ")
    known = _CHECKSUMS.get(name.lower())
    if known is None:
        raise Problem(
            400,
            "CHECKSUM_ALGORITHM_UNSUPPORTED",
            f"Upload-Checksum: the algorithm must be one of {CHECKSUM_NAMES}",
            [FieldError("/Upload-Checksum", f"the algorithm must be one of {CHECKSUM_NAMES}")],
        )
    algorithm, size = known
    try:
        digest = base64.b64decode(value.strip(), validate=True)
    except ValueError:
        digest = b""
    if len(digest) != size:
        raise _wrong("Upload-Checksum", f"{name} must have {size} bytes in base64")
    return algorithm, digest.hex()


def parts(text: str) -> list[str]:
    """The uploads that ``Upload-Concat: final;…`` names, by URL or path. Raises Problem 400."""
    urls = text.partition(";")[2].split()
    found = [_PART_URL.fullmatch(url) for url in urls]
    if not 0 < len(urls) <= _MAX_PARTS or not all(found):
        raise _wrong("Upload-Concat", f"must be partial, or final; and 1 to {_MAX_PARTS} URLs of partial uploads")
    return [match.group(1).lower() for match in found if match]


def remembered(session_ids: Sequence[str]) -> dict[str, str]:
    """The metadata that keeps what a file is concatenated of."""
    starts = range(0, len(session_ids), _PARTS_A_KEY)
    return {
        f"{_PARTS_KEY}{i}": " ".join(session_ids[start : start + _PARTS_A_KEY]) for i, start in enumerate(starts)
    }


def concat(upload: Upload, prefix: str) -> str:
    """Upload-Concat of an upload, "" for one that has to do with none. ``prefix``: of the URLs."""
    if upload.purpose == UPLOAD_PURPOSE_PARTIAL:
        return "partial"
    keys = sorted(key for key in upload.metadata if key.startswith(_PARTS_KEY))
    ids: Iterable[str] = " ".join(upload.metadata[key] for key in keys).split()
    return f"final;{' '.join(prefix + id_ for id_ in ids)}" if keys else ""


def expires(upload: Upload) -> str:
    """Upload-Expires: an HTTP date (RFC 9110 section 5.6.7)."""
    return format_datetime(upload.expires_at.ToDatetime(UTC), usegmt=True)
