"""Signed playback URLs: a query that is the permission to read one video until a time.

HMAC-SHA256 over method, video, expiry and key id. The key file holds ``{key id: hex}``; its first key
signs, all verify, so keys rotate by putting a new one in front; the file is read again when it changes. A query
that was given for a public video says so (``public=1``), which is signed too: it ends when the video is withdrawn.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from services.common.errors import PermissionDenied

log = logging.getLogger(__name__)

_MIN_KEY_BYTES = 16
_EXPIRES = re.compile("[1-9][0-9]{0,11}")


@dataclass(frozen=True, slots=True)
class SignedQuery:
    """The parameters of a signed URL. ``expires`` in seconds since the epoch."""

    expires: int
    key_id: str
    signature: str
    public: bool = False

    def query(self) -> str:
        """As it stands in a URL, without the question mark."""
        more = {"public": "1"} if self.public else {}
        return urlencode({"expires": self.expires, "key_id": self.key_id, "signature": self.signature} | more)


class PlaybackSigner:
    """Signs and verifies. ``keys`` by id; the first signs."""

    def __init__(self, keys: dict[str, bytes]) -> None:
        if not keys or any(len(key) < _MIN_KEY_BYTES for key in keys.values()):
            raise ValueError(f"at least one playback key is needed, each of {_MIN_KEY_BYTES} bytes or more")
        self._keys = keys
        self._path: Path | None = None
        self._version: object = None  # of the file that was looked at last

    @classmethod
    def from_file(cls, path: Path) -> PlaybackSigner:
        """Reads ``{key id: hex}``, again whenever the file changes; keys that were read once stay in force while
        it cannot be read. Raises OSError or ValueError."""
        version = _version(path)
        signer = cls(_read(path))
        signer._path, signer._version = path, version
        return signer

    def sign(
        self, video_id: str, *, now: float, ttl: float, public: bool = False, method: str = "GET"
    ) -> SignedQuery:
        """Permission to read ``video_id`` for ``ttl`` seconds from ``now``, ``public``: as long as it is public.
        GET covers HEAD."""
        self._refresh()
        key_id = next(iter(self._keys))
        expires = int(now + ttl)
        signature = self._signature(method, video_id, expires, key_id, public=public)
        return SignedQuery(expires, key_id, signature, public)

    def verify(
        self,
        video_id: str,
        *,
        expires: str,
        key_id: str,
        signature: str,
        now: float,
        public: str = "",
        method: str = "GET",
    ) -> None:
        """Raises PermissionDenied with reason SIGNATURE_INVALID, or SIGNATURE_EXPIRED if it was valid once."""
        self._refresh()
        invalid = PermissionDenied("the signature of this URL is not valid", reason="SIGNATURE_INVALID")
        if key_id not in self._keys or not _EXPIRES.fullmatch(expires) or public not in {"", "1"}:
            raise invalid
        expected = self._signature(method, video_id, int(expires), key_id, public=bool(public))
        if not hmac.compare_digest(expected.encode(), signature.encode(errors="replace")):
            raise invalid
        if now > int(expires):
            raise PermissionDenied("this URL has expired; ask for a new one", reason="SIGNATURE_EXPIRED")

    def _refresh(self) -> None:
        if self._path is None or (version := _version(self._path)) == self._version:
            return
        self._version = version
        try:
            self._keys = PlaybackSigner(_read(self._path))._keys
        except (OSError, ValueError) as error:  # the text of neither quotes a key
            log.warning("playback keys cannot be read: %s", type(error).__name__)

    def _signature(self, method: str, video_id: str, expires: int, key_id: str, *, public: bool) -> str:
        text = "\n".join((method, video_id, str(expires), key_id, *(("public",) if public else ())))
        return hmac.new(self._keys[key_id], text.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()


def _read(path: Path) -> dict[str, bytes]:
    keys = json.loads(path.read_text())
    if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys.values()):
        raise ValueError(f"{path} is not of the form {{key id: hex}}")
    return {key_id: bytes.fromhex(key) for key_id, key in keys.items()}


def _version(path: Path) -> object:
    """Differs once the file has changed."""
    try:
        stat = path.stat()
    except OSError:
        return "unreadable"
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino)
