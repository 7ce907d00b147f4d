"""A key set in a file: read again when it changes, kept while it cannot be read."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from services.common.keys import KeyRing, KeySet, NoKeySet


def _jwks(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The players' key set of a new ring, and its one key."""
    path = KeyRing.create(folder).directory / "players.jwks.json"
    return path, json.loads(path.read_text())["keys"][0]


async def test_a_changed_file_is_read_again_and_a_broken_one_keeps_the_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.common.keys._LOOK_SECONDS", 0.0)
    path, first = _jwks(tmp_path / "a")
    _, second = _jwks(tmp_path / "b")
    keys = KeySet(str(path), "EdDSA")
    assert await keys.key(first["kid"])
    assert await keys.key(second["kid"]) is None
    path.write_text(json.dumps({"keys": [first, second]}))
    assert await keys.key(second["kid"])
    for torn in ("", '{"keys": [', "[]", "[" * 100_000):
        path.write_text(torn)
        assert await keys.key(second["kid"])
    path.unlink()
    assert await keys.key(second["kid"])
    path.write_text(json.dumps({"keys": [second]}))
    assert await keys.key(second["kid"])
    assert await keys.key(first["kid"]) is None
    path.write_text('{"keys": []}')  # a key set in order: every key is retired
    assert await keys.key(second["kid"]) is None


async def test_a_file_that_appears_later_is_found(tmp_path: Path) -> None:
    path, key = _jwks(tmp_path)
    whole = path.read_bytes()
    path.unlink()
    keys = KeySet(str(path), "EdDSA")
    with pytest.raises(NoKeySet):
        await keys.key(key["kid"])
    path.write_bytes(whole)
    assert await keys.key(key["kid"])


async def test_keys_of_no_use_are_left_out_and_harm_no_other(tmp_path: Path) -> None:
    path, good = _jwks(tmp_path)
    useless: list[Any] = [
        {},
        7,
        good | {"kid": "for encryption", "use": "enc"},
        good | {"kid": "other algorithm", "alg": "ES256"},
        {"kid": "secret", "kty": "oct", "k": "AAAA"},
        {"kid": "secret", "kty": "oct", "k": "AAAA", "alg": "EdDSA"},
        {"kid": "broken", "kty": "OKP", "crv": "Ed25519", "x": "!"},
        {name: value for name, value in good.items() if name != "kid"},
    ]
    path.write_text(json.dumps({"keys": [*useless, good]}))
    keys = KeySet(str(path), "EdDSA")
    assert await keys.key(good["kid"])
    for kid in ("for encryption", "other algorithm", "secret", "broken", "None", ""):
        assert await keys.key(kid) is None, kid


def test_private_keys_are_readable_by_their_user_alone_and_made_once(tmp_path: Path) -> None:
    KeyRing.create(tmp_path / "keys")
    made = {path: path.read_bytes() for path in (tmp_path / "keys").iterdir()}
    assert {path.name for path in made} == {
        *("players.pem", "players.jwks.json", "services.pem", "services.jwks.json", "playback.json")
    }
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in made)
    KeyRing.create(tmp_path / "keys")
    assert {path: path.read_bytes() for path in (tmp_path / "keys").iterdir()} == made
