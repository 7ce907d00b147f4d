"""A tiny clip of our own, encoded, filtered and decoded before the lock closes.

Python and PyAV load modules, and libraries their tables, on first use; after the lock nothing can be loaded any
more. So everything a job uses is used once on bytes that nobody sent. Takes about 20 ms.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 - PyAV may name a codec of Python's; the others are loaded at start
import io
import traceback
from fractions import Fraction

import av
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.filter import Graph
from av.video.frame import VideoFrame

SIDE = 32
SAMPLES = 1024


def sing() -> None:
    """Use what jobs use. All of its threads have ended when it returns."""
    written = io.BytesIO()
    with av.open(
        written,
        "w",
        format="mp4",
        options={"movflags": "+faststart"},
        io_open=lambda *_: io.BytesIO(written.getvalue()),
    ) as out:
        video = out.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        video.codec_context.width = video.codec_context.height = SIDE
        video.codec_context.pix_fmt = "yuv420p"
        audio = out.add_stream("aac", rate=48_000, layout="stereo")
        picture = VideoFrame(SIDE, SIDE, "yuv420p")
        picture.pts, picture.time_base = 0, Fraction(1, 30)
        sound = AudioFrame("s16", "stereo", SAMPLES)
        sound.sample_rate, sound.pts, sound.time_base = 48_000, 0, Fraction(1, 48_000)
        out.mux([*video.encode(_filtered(picture)), *video.encode(None)])
        resampler = AudioResampler(format="fltp", layout="stereo", rate=48_000)
        for frame in (*resampler.resample(sound), *resampler.resample(None)):
            if frame is not None:
                out.mux(audio.encode(frame))
        out.mux(audio.encode(None))
    _decode(written)
    _fail()


def _filtered(frame: VideoFrame) -> VideoFrame:
    graph = Graph()
    graph.threads = 1
    shape = f"video_size={SIDE}x{SIDE}:pix_fmt=yuv420p:time_base=1/30"
    nodes = [graph.add("buffer", shape), graph.add("scale", "w=32:h=32"), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()
    graph.vpush(frame)
    return graph.vpull()


def _decode(written: io.BytesIO) -> None:
    written.seek(0)
    with av.open(written, "r") as container:
        for _ in container.decode(video=0):
            pass
    written.seek(0)
    with av.open(written, "r") as container:
        for _ in container.decode(audio=0):
            pass


def _fail() -> None:
    """Errors too: their classes, their translation and the text of a traceback."""
    try:
        av.open(io.BytesIO(b"not a video"))
    except av.error.FFmpegError:
        traceback.format_exc()
