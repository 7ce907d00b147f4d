"""One source picture onto the canvas: upright, fitted, padded, BT.709 limited-range 4:2:0 with square pixels.

The filters are built once per kind of picture (a browser's recording may change its size midway). Scaling comes
first and in one step with the colour conversion; turning comes after it, when the picture is small. What is of the
canvas's size and colours already goes through them without a copy, and loses only its side data (captions, …).

Colour. The scaler must be told the source's matrix: left to itself it assumes BT.601 for all untagged
input and shifts the colours of HD clips. Untagged is taken as players take it: BT.709 above 576 lines.
HDR (PQ, HLG) and BT.2020 go through the scaler's colour management, perceptual intent, at canvas size and after
a first scaler that keeps the depth. Its tables cost 4 CPU-seconds once a clip, then 0.01 a 720p frame.

Interlaced pictures (camcorders') are shown as their upper field alone: it moves as the clip does, and the filters
that weave both fields hold a picture back, which would lose the one picture in, one picture out.
"""

from __future__ import annotations

from fractions import Fraction

from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc

from services.merge.media.errors import ErrorType, MediaError
from services.merge.media.orientation import orientation
from services.merge.timeline import FPS, Canvas

MATRICES = {1: "bt709", 4: "fcc", 5: "bt470", 6: "smpte170m", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
SD_LINES = 576
MAX_KINDS = 64  # a phone is not turned more often; each may cost the tables of HDR
HDR_TRANSFERS: dict[int, str] = {ColorTrc.SMPTE2084: "smpte2084", ColorTrc.ARIB_STD_B67: "arib-std-b67"}

_Kind = tuple[int, int, str, float, int, int, int, int, bool]


class Fitter:
    """Fits frames of one clip. ``aspect`` is the shape of a stored pixel, width over height."""

    def __init__(self, canvas: Canvas, aspect: Fraction, threads: int) -> None:
        self._canvas = canvas
        self._aspect = aspect
        self._threads = threads
        self._kind: _Kind | None = None
        self._built = 0
        self._graph: Graph | None = None

    def fit(self, frame: VideoFrame) -> VideoFrame:
        """Raises MediaError decode_failed when the kind changes more than :data:`MAX_KINDS` times."""
        kind = (
            frame.width,
            frame.height,
            frame.format.name,
            frame.rotation,  # the side data would tie each frame into a cycle: 200 MB until it is found
            frame.colorspace,
            frame.color_range,
            frame.color_trc,
            frame.color_primaries,
            frame.interlaced_frame,
        )
        if self._graph is None or kind != self._kind:
            self._built += 1
            if self._built > MAX_KINDS:
                raise MediaError(ErrorType.DECODE_FAILED, "This video's pictures change their kind all the time.")
            self._kind, self._graph = kind, self._build(frame)
        self._graph.vpush(frame)
        return self._graph.vpull()

    def _build(self, frame: VideoFrame) -> Graph:
        turn = orientation(frame)
        width, height = fitted(turn.displayed(*self._square(frame)), self._canvas)
        steps = [
            ("sidedata", "mode=delete"),
            *[("field", "top")] * (frame.interlaced_frame and frame.height > 1),
            *_scale(frame, *turn.displayed(width, height)),
            *turn.filters(),
            *_pad(self._canvas, width, height),
            ("setsar", "1"),
        ]
        graph = Graph()
        graph.threads = self._threads
        first = graph.add("buffer", _buffer(frame))
        nodes = [graph.add(name, args or None) for name, args in steps]
        graph.link_nodes(first, *nodes, graph.add("buffersink")).configure()
        return graph

    def _square(self, frame: VideoFrame) -> tuple[int, int]:
        return max(1, round(frame.width * self._aspect)), frame.height


def fitted(size: tuple[int, int], canvas: Canvas) -> tuple[int, int]:
    """The largest even size of the same shape that the canvas holds."""
    scale = min(Fraction(canvas.width, size[0]), Fraction(canvas.height, size[1]))
    width, height = (max(2, 2 * round(side * scale / 2)) for side in size)
    return min(width, canvas.width), min(height, canvas.height)


def _pad(canvas: Canvas, width: int, height: int) -> list[tuple[str, str]]:
    """In the middle, at even offsets: chroma has half the resolution. The filter copies pictures that need nothing
    of it too."""
    if (width, height) == (canvas.width, canvas.height):
        return []
    left, above = (canvas.width - width) // 4 * 2, (canvas.height - height) // 4 * 2
    return [("pad", f"{canvas.width}:{canvas.height}:{left}:{above}:black")]


def _buffer(frame: VideoFrame) -> str:
    colour = f"colorspace={frame.colorspace}:range={frame.color_range}"
    return f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/{FPS}:{colour}"


def _scale(frame: VideoFrame, width: int, height: int) -> list[tuple[str, str]]:
    """Scale and convert to BT.709 limited range; the sizes are as stored, before turning."""
    size = f"w={width}:h={height}:flags=bicubic"
    hdr = HDR_TRANSFERS.get(frame.color_trc)
    wide = hdr is not None or frame.color_primaries == ColorPrimaries.BT2020
    untagged = "bt2020" if wide else "bt709" if frame.height > SD_LINES else "smpte170m"
    matrix = MATRICES.get(frame.colorspace, untagged)
    full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    given = f"in_color_matrix={matrix}:in_range={'pc' if full else 'tv'}"
    wanted = "out_color_matrix=bt709:out_range=tv"
    if frame.format.is_rgb:
        given = "in_range=pc"
    if not wide:
        return [("scale", f"{size}:{given}:{wanted}"), ("format", "yuv420p")]
    managed = f"in_primaries=bt2020:in_transfer={hdr or 'bt709'}:out_primaries=bt709:out_transfer=bt709"
    return [
        ("scale", size),
        ("scale", f"{given}:{wanted}:{managed}:intent=perceptual"),
        ("format", "yuv420p"),
    ]
