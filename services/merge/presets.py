"""The qualities that a player may choose, with words for a phone's screen. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from services.merge.timeline import ENCODINGS, Encoding, Quality

DEFAULT = Quality.MEDIUM


@dataclass(frozen=True, slots=True)
class Preset:
    """A quality: a word for a button, a sentence about it, and what the encoders are told."""

    quality: Quality
    name: str
    description: str

    @property
    def encoding(self) -> Encoding:
        return ENCODINGS[self.quality]


PRESETS = (
    Preset(Quality.LOW, "Low", "Ready soonest and smallest: for a slow network or a first draft."),
    Preset(Quality.MEDIUM, "Medium", "Looks good on every phone and loads quickly."),
    Preset(Quality.HIGH, "High", "The finest picture and sound; takes longest and loads slowest."),
)
