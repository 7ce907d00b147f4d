"""Runs the merge service: ``python -m services.merge`` (controller) or ``python -m services.merge worker``."""

from __future__ import annotations

import sys

from services.common import lifecycle
from services.merge import wiring
from services.merge.config import MergeSettings


def main(arguments: list[str]) -> None:
    """Runs the role that the arguments name."""
    if arguments in ([], ["controller"]):
        lifecycle.run(wiring.build_controller, MergeSettings(), name="merge")
    elif arguments == ["worker"]:
        lifecycle.run(wiring.build_worker, MergeSettings(), name="worker")
    else:
        sys.exit("usage: python -m services.merge [controller|worker]")


if __name__ == "__main__":
    main(sys.argv[1:])
