"""Signed playback URLs: a query that is the permission to read one video until a time.

HMAC-SHA256 over method, video, expiry and key id. The key file holds ``{key id: hex}``; its first key
signs, all verify, so keys rotate by putting a new one in front.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from services.common.errors import PermissionDenied

_MIN_KEY_BYTES = 16
_EXPIRES = re.compile("[1-9][0-9]{0,11}")


@dataclass(frozen=True, slots=True)
class SignedQuery:
    """The parameters of a signed URL. ``expires`` in seconds since the epoch."""

    expires: int
    key_id: str
    signature: str

    def query(self) -> str:
        """As it stands in a URL, without the question mark."""
        return urlencode({"expires": self.expires, "key_id": self.key_id, "signature": self.signature})


class PlaybackSigner:
    """Signs and verifies. ``keys`` by id; the first signs."""

    def __init__(self, keys: dict[str, bytes]) -> None:
        if not keys or any(len(key) < _MIN_KEY_BYTES for key in keys.values()):
            raise ValueError(f"at least one playback key is needed, each of {_MIN_KEY_BYTES} bytes or more")
        self._keys = keys

    @classmethod
    def from_file(cls, path: Path) -> PlaybackSigner:
        """Reads ``{key id: hex}``. Raises OSError or ValueError."""
        keys = json.loads(path.read_text())
        if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys.values()):
            raise ValueError(f"{path} is not of the form {{key id: hex}}")
        return cls({key_id: bytes.fromhex(key) for key_id, key in keys.items()})

    def sign(self, video_id: str, *, now: float, ttl: float, method: str = "GET") -> SignedQuery:
        """Permission to read ``video_id`` for ``ttl`` seconds from ``now``; GET covers HEAD."""
        key_id = next(iter(self._keys))
        expires = int(now + ttl)
        return SignedQuery(expires, key_id, self._signature(method, video_id, expires, key_id))

    def verify(
        self, video_id: str, *, expires: str, key_id: str, signature: str, now: float, method: str = "GET"
    ) -> None:
        """Raises PermissionDenied with reason SIGNATURE_INVALID, or SIGNATURE_EXPIRED if it was valid once."""
        invalid = PermissionDenied("the signature of this URL is not valid", reason="SIGNATURE_INVALID")
        if key_id not in self._keys or not _EXPIRES.fullmatch(expires):
            raise invalid
        expected = self._signature(method, video_id, int(expires), key_id)
        if not hmac.compare_digest(expected.encode(), signature.encode(errors="replace")):
            raise invalid
        if now > int(expires):
            raise PermissionDenied("this URL has expired; ask for a new one", reason="SIGNATURE_EXPIRED")

    def _signature(self, method: str, video_id: str, expires: int, key_id: str) -> str:
        text = "\n".join((method, video_id, str(expires), key_id))
        return hmac.new(self._keys[key_id], text.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()
