"""Runs the challenge service: ``python -m services.challenge``."""

from __future__ import annotations

from services.challenge import wiring
from services.challenge.config import ChallengeSettings
from services.common import lifecycle


def main() -> None:
    """Serves until told to stop."""
    lifecycle.run(wiring.build, ChallengeSettings(), name="challenge")


if __name__ == "__main__":
    main()
