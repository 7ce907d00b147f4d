"""Runs the challenge service, ``python -m services.challenge``, or brings its database up to date,
``python -m services.challenge migrate``."""

from __future__ import annotations

import sys

from services.challenge import wiring
from services.challenge.config import ChallengeSettings
from services.common import lifecycle


def main(arguments: list[str]) -> None:
    """Serves until told to stop, or does the one thing that the arguments name."""
    if not arguments:
        lifecycle.run(wiring.build, ChallengeSettings(), name="challenge")
    elif arguments == ["migrate"]:
        lifecycle.run_once(wiring.migrate, ChallengeSettings(), name="challenge")
    else:
        sys.exit("usage: python -m services.challenge [migrate]")


if __name__ == "__main__":
    main(sys.argv[1:])
