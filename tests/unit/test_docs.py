"""The documents say what the code does: every setting is listed with its default."""

from __future__ import annotations

from pathlib import Path

from services.challenge.config import ChallengeSettings
from services.common.settings import CommonSettings
from services.gateway.config import GatewaySettings
from services.merge.config import MergeSettings
from services.upload.config import UploadSettings

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"
SERVICES = {
    "Every service": CommonSettings,
    "upload": UploadSettings,
    "merge (controller and workers)": MergeSettings,
    "challenge": ChallengeSettings,
    "gateway": GatewaySettings,
}
HEAD = """# Configuration

Every setting is an environment variable. `mesh up` sets addresses, keys and the data directory itself and passes
the others on. Made by `.venv/bin/python -m tests.unit.test_docs`.
"""


def configuration() -> str:
    """The document, from the settings classes."""
    text = HEAD
    for title, settings in SERVICES.items():
        text += f"\n## {title}\n\n| variable | default | what it sets |\n|---|---|---|\n"
        for name, field in settings.model_fields.items():
            if settings is not CommonSettings and name in CommonSettings.model_fields:
                continue
            default = "" if field.default in ("", None) else f"`{field.default}`"
            text += f"| `TWOTRUTHS_{name.upper()}` | {default} | {field.description} |\n"
    return text


def test_every_setting_is_documented_with_its_default() -> None:
    assert DOCUMENT.read_text() == configuration()


if __name__ == "__main__":
    DOCUMENT.write_text(configuration())
