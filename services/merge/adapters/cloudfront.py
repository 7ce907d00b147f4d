"""Signed URLs of Amazon CloudFront: RSA-SHA1 over a policy, by botocore's signer.

A video's own URL has the canned policy (``Expires``, ``Signature``, ``Key-Pair-Id``). What lies beside it shares
one custom policy for the folder, so that one signature covers posters, sheet and rendition. An object ``a/b`` is
``<base>/objects/a/b``: the distribution's origin is the bucket. Neither key nor signature is ever logged.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from botocore.signers import CloudFrontSigner
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from services.common.adapters.s3_objects import object_name
from services.merge.ports import Delivery, Signed


class CloudFrontLinks:
    """Implements :class:`services.merge.ports.Links`. Raises ValueError for what is no RSA key, OSError."""

    delivery = Delivery.CDN_SIGNED

    def __init__(self, base_url: str, key_id: str, key_file: Path) -> None:
        if not base_url.startswith(("https://", "http://")) or not key_id:
            raise ValueError("cdn_base_url and cdn_key_id are needed to deliver by CloudFront")
        key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
        if not isinstance(key, RSAPrivateKey):
            raise ValueError("cdn_key_file holds no RSA key")  # noqa: TRY004  it is data
        self._base = base_url.rstrip("/")
        # SHA-1 is what CloudFront verifies.
        self._signer = CloudFrontSigner(
            key_id,
            lambda message: key.sign(message, padding.PKCS1v15(), hashes.SHA1()),  # noqa: S303
        )

    async def sign(self, keys: Sequence[str], until: datetime) -> Signed:
        urls = [f"{self._base}/{object_name(key)}" for key in keys]
        signed = [self._signer.generate_presigned_url(urls[0], date_less_than=until)]
        if beside := urls[1:]:
            policy = self._signer.build_policy(f"{urls[0].rpartition('/')[0]}/*", until)
            first = self._signer.generate_presigned_url(beside[0], policy=policy)
            query = first.partition("?")[2]
            signed += [f"{url}?{query}" for url in beside]
        return Signed(tuple(signed), until)
