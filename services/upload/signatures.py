"""What a file is by its first bytes, to refuse one that is not of the type it was announced as.

This looks at the container alone. Whether a video can be decoded is for the merge service's probe to say.
Text (so also playlists, SDP and concat scripts, which would make a decoder open other files) has no entry
here and is therefore never taken.
"""

from __future__ import annotations

HEAD_BYTES = 64
"""How many first bytes :func:`container` needs at most."""

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (0, b"OggS", "ogg"),
    (0, b"fLaC", "flac"),
    (0, b"ID3", "mpeg-audio"),
    (0, b"#!AMR", "amr"),
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (0, b"\xff\xd8\xff", "jpeg"),
    (0, b"GIF87a", "gif"),
    (0, b"GIF89a", "gif"),
    (8, b"WEBP", "webp"),
    (8, b"WAVE", "wav"),
    (8, b"AVI ", "avi"),
)
_IMAGE_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis"}
# QuickTime files from before ftyp begin with one of these atoms.
_OLD_QUICKTIME = {b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}

_OF_MEDIA = {
    "video": {"iso", "matroska", "ogg", "avi"},
    "audio": {"iso", "matroska", "ogg", "flac", "mpeg-audio", "wav", "amr"},
    "image": {"png", "jpeg", "gif", "webp", "iso-image"},
}
_TYPES_IN = {
    "iso": "video/mp4 video/quicktime video/3gpp video/3gpp2 video/x-m4v"
    " audio/mp4 audio/m4a audio/x-m4a audio/3gpp",
    "matroska": "video/webm video/x-matroska audio/webm",
    "mpeg-audio": "audio/mpeg audio/mp3 audio/aac",
    "iso-image": "image/heic image/heif image/avif",
    "jpeg": "image/jpeg image/jpg",
    "wav": "audio/wav audio/x-wav audio/wave",
    "ogg": "audio/ogg video/ogg",
    "png": "image/png",
    "gif": "image/gif",
    "webp": "image/webp",
    "flac": "audio/flac",
    "avi": "video/x-msvideo",
}
_OF_TYPE = {mime: {name} for name, types in _TYPES_IN.items() for mime in types.split()}


def container(head: bytes) -> str | None:
    """The container that a file with these first bytes is, or None when it is none that is known."""
    if head[4:8] == b"ftyp":
        return "iso-image" if head[8:12] in _IMAGE_BRANDS else "iso"
    if head[4:8] in _OLD_QUICKTIME and head[:1] == b"\0":
        return "iso"
    for offset, magic, name in _MAGIC:
        if head.startswith(magic, offset) and (offset == 0 or head.startswith(b"RIFF")):
            return name
    # An MPEG audio or ADTS frame: eleven sync bits, then a layer and version that are not reserved.
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x18 != 0x08:
        return "mpeg-audio"
    return None


def media_of(mime_type: str) -> str:
    """The first half of a media type, in lower case: "video" of "Video/mp4; codecs=avc1"."""
    return _plain(mime_type).partition("/")[0]


def matches(mime_type: str, head: bytes) -> bool:
    """Whether a file with these first bytes is of this type; of a type that is not listed here, whether it is
    any container of that medium."""
    plain = _plain(mime_type)
    return container(head) in _OF_TYPE.get(plain, _OF_MEDIA.get(media_of(plain), set()))


def _plain(mime_type: str) -> str:
    return mime_type.partition(";")[0].strip().lower()
