"""Runs the gateway: this process, or as many as the settings say on one port."""

import functools
import sys

from services.common import lifecycle
from services.gateway import fleet, member
from services.gateway.config import GatewaySettings


def main(arguments: list[str]) -> None:
    """Serves until told to stop. ``arguments``: none, or those that a fleet gives its children."""
    if arguments and arguments[0] != member.COMMAND:
        sys.exit("usage: python -m services.gateway")
    joined = member.join(arguments[1:]) if arguments else None
    settings = GatewaySettings()
    if joined is None and settings.gateway_processes > 1:
        lifecycle.run(fleet.build, settings, name="gateway", traced=False)
        return
    from services.gateway import wiring  # gRPC and all the rest, which the parent of a fleet does without

    name = joined.name if joined else "gateway"
    lifecycle.run(functools.partial(wiring.build, member=joined), settings, name=name)


if __name__ == "__main__":
    main(sys.argv[1:])
