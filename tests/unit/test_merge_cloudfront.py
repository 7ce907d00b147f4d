"""CloudFront's signed URLs against the algorithm that AWS documents ("Create a signed URL using a canned policy",
"… a custom policy", CloudFront Developer Guide), with a key made for the test."""

from __future__ import annotations

import base64
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from services.merge.adapters.cloudfront import CloudFrontLinks

UNTIL = datetime(2026, 9, 21, 14, 13, 20, tzinfo=UTC)
BASE = "https://d111111abcdef8.cloudfront.net"
FOLDER = "videos/5c2e"
KEYS = [f"{FOLDER}/{name}" for name in ("token.mp4", "hls.mp4", "storyboard.jpg", "poster0.jpg")]


def pem(key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    form, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, none)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "cdn.pem"
    path.write_bytes(pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)))
    return path


def signature(policy: str, key_file: Path) -> str:
    """As AWS says it: SHA-1 and RSA by openssl, base64, and then + = / become - _ ~."""
    command = ("openssl", "dgst", "-sha1", "-sign", str(key_file))
    made = subprocess.run(command, input=policy.encode(), capture_output=True, check=True).stdout
    return base64.b64encode(made).decode().translate(str.maketrans("+=/", "-_~"))


async def test_a_video_is_signed_with_the_canned_policy(key_file: Path) -> None:
    signed = await CloudFrontLinks(BASE + "/", "K2JCJMDEHXQW5F", key_file).sign(KEYS[:1], UNTIL)
    url = f"{BASE}/objects/{KEYS[0]}"
    policy = (
        f'{{"Statement":[{{"Resource":"{url}","Condition":{{"DateLessThan":{{"AWS:EpochTime":1790000000}}}}}}]}}'
    )
    expected = f"{url}?Expires=1790000000&Signature={signature(policy, key_file)}&Key-Pair-Id=K2JCJMDEHXQW5F"
    assert (signed.urls, signed.until) == ((expected,), UNTIL)


async def test_what_lies_beside_a_video_shares_one_custom_policy_for_its_folder(key_file: Path) -> None:
    signed = await CloudFrontLinks(BASE, "K2JCJMDEHXQW5F", key_file).sign(KEYS, UNTIL)
    assert [url.partition("?")[0] for url in signed.urls] == [f"{BASE}/objects/{key}" for key in KEYS]
    queries = {urlsplit(url).query for url in signed.urls[1:]}
    assert len(queries) == 1
    fields = {name: values[0] for name, values in parse_qs(queries.pop()).items()}
    assert set(fields) == {"Policy", "Signature", "Key-Pair-Id"}
    policy = base64.b64decode(fields["Policy"].translate(str.maketrans("-_~", "+=/"))).decode()
    assert json.loads(policy) == {
        "Statement": [
            {
                "Resource": f"{BASE}/objects/{FOLDER}/*",
                "Condition": {"DateLessThan": {"AWS:EpochTime": 1790000000}},
            }
        ]
    }
    assert fields["Signature"] == signature(policy, key_file)


async def test_what_cannot_sign_is_refused_at_the_start(key_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(pem(ed25519.Ed25519PrivateKey.generate()))
    for base, key_id, path in (("", "K", key_file), (BASE, "", key_file), (BASE, "K", other)):
        with pytest.raises(ValueError, match="cdn_"):
            CloudFrontLinks(base, key_id, path)


async def test_neither_key_nor_signature_is_logged(
    key_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(1)
    links = CloudFrontLinks(BASE, "K2JCJMDEHXQW5F", key_file)
    signed = await links.sign(KEYS, UNTIL)
    broken = tmp_path / "broken.pem"
    broken.write_text(key_file.read_text().replace("PRIVATE", "PRIVAT"))
    with pytest.raises(ValueError, match=r"load|parse|deserialize|PEM") as refused:
        CloudFrontLinks(BASE, "K2JCJMDEHXQW5F", broken)
    said = f"{caplog.text}{links!r}{vars(links)}{refused.value}"
    secrets = [*key_file.read_text().splitlines()[1:-1], *(parse_qs(url)["Signature"][0] for url in signed.urls)]
    assert [secret for secret in secrets if secret in said] == []
