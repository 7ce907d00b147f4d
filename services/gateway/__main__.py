"""Runs the gateway."""

from services.common import lifecycle
from services.gateway import wiring
from services.gateway.config import GatewaySettings


def main() -> None:
    """Serves until told to stop."""
    lifecycle.run(wiring.build, GatewaySettings(), name="gateway")


if __name__ == "__main__":
    main()
