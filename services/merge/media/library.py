"""Which media library there is and what it can do, asked of a process of its own: a worker loads no media code."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path

from services.merge.health import Library

log = logging.getLogger(__name__)

_ROOT = Path(__file__).parents[3]
_SECONDS = 30.0
_DECODERS = ("aac", "av1", "h264", "hevc", "libdav1d", "mp3", "opus", "pcm_s16le", "vorbis", "vp8", "vp9")
_ENCODERS = ("aac", "libx264", "mjpeg", "pcm_s16le")


async def describe() -> Library:
    """The library; an empty one when it cannot be loaded."""
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            __name__,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env={"PYTHONPATH": str(_ROOT), "LC_ALL": "C.UTF-8"},
        )
    except OSError as error:
        log.warning("the media library cannot be asked: %s", error)
        return Library()
    try:
        async with asyncio.timeout(_SECONDS):
            output, _ = await process.communicate()
        found = json.loads(output)
        return Library(found["version"], tuple(found["decoders"]), tuple(found["encoders"]))
    except (TimeoutError, ValueError):
        log.warning("the media library cannot be loaded")
        return Library()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def main() -> None:
    """Prints what :func:`describe` reads."""
    import av  # the one place of this module that loads it: in the child
    from av.codec import Codec

    def has(name: str, mode: str) -> bool:
        try:
            Codec(name, mode)  # type: ignore[arg-type]  # "r" or "w"
        except ValueError:
            return False
        return True

    found = {
        "version": av.ffmpeg_version_info,
        "decoders": [name for name in _DECODERS if has(name, "r")],
        "encoders": [name for name in _ENCODERS if has(name, "w")],
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
