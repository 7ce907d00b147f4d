"""``python -m services.upload``: the upload service."""

from __future__ import annotations

from services.common import lifecycle
from services.upload import config, wiring


def main() -> None:
    """Serves until told to stop."""
    lifecycle.run(wiring.build, config.UploadSettings(), name="upload")


if __name__ == "__main__":
    main()
