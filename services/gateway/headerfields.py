"""JSON schemas of request headers for the OpenAPI document, as strict as the gateway is in reading them."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
SHA256: Schema = {"type": "string", "pattern": "^[0-9a-fA-F]{64}$", "description": "SHA-256 in hex"}
DIGEST: Schema = {
    "type": "string",
    "pattern": "^(sha-256=:[0-9A-Za-z+/]{43}=:)?$",
    "examples": ["sha-256=:iNQmb9TmM40TuEX88olXnSCciXgjuSF9o+Fhk28DFYk=:"],
    "description": "Of the algorithms of RFC 9530 sha-256 is looked at; others may stand beside it.",
}
IDEMPOTENCY_KEY: Schema = {
    "type": "string",
    "pattern": r'^([!#-~]+|"[ !#-\[\]-~]+")$',
    "minLength": 1,
    "maxLength": 128,
}
FLAG: Schema = {"type": "string", "enum": ["?0", "?1"]}
# Of tus: decimal digits of a number that fits 64 bits.
BYTES: Schema = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
SIZE: Schema = BYTES | {"minimum": 1}  # empty files are not taken
TUS_VERSION: Schema = {"type": "string", "const": "1.0.0"}
TUS_CHECKSUM: Schema = {
    "type": "string",
    "pattern": "^(sha1 [0-9A-Za-z+/]{27}=|sha256 [0-9A-Za-z+/]{43}=)$",
    "examples": ["sha1 gf6L/odXbD7LIkJvjleEc4KRes8="],
}
_ID = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
TUS_CONCAT: Schema = {
    "type": "string",
    "pattern": f"^(partial|final;[^ ]*/{_ID}( [^ ]*/{_ID})*)?$",
    "examples": ["partial"],
}
# A structured field (RFC 9651 section 3.3.1) has at most 15 digits.
STRUCTURED_BYTES: Schema = {"type": "integer", "minimum": 0, "maximum": 10**15 - 1}
STRUCTURED_SIZE: Schema = STRUCTURED_BYTES | {"minimum": 1}
