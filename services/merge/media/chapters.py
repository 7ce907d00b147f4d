"""Chapters of a merged file: one for each statement, from its first frame to the next one's.

Their text track counts in the movie's own clock, thousandths by default: :data:`CLOCK` has whole ticks for frames
and for samples, so chapters, edit lists and durations are exact. A chapter says nothing but its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from av.container import OutputContainer

from services.merge.timeline import FPS, SAMPLE_RATE, segments

CLOCK = {"movie_timescale": str(SAMPLE_RATE)}


def add_chapters(out: OutputContainer, counts: Sequence[int]) -> None:
    """``counts`` are the frames of each statement. To be called before the first packet."""
    out.set_chapters(
        [
            {
                "id": segment.statement_index,
                "start": segment.start_frame,
                "end": segment.start_frame + segment.frame_count,
                "time_base": Fraction(1, FPS),
                "metadata": {"title": segment.title},
            }
            for segment in segments(tuple(counts))
        ]
    )
