"""A cluster that elects a leader just now, as one server on its own cannot be made to."""

from __future__ import annotations

from typing import Any

import nats.js.errors
import pytest
from nats.js import JetStreamContext

NO_LEADER = 10008  # "JetStream system temporarily unavailable"


def without_leader(monkeypatch: pytest.MonkeyPatch, js: JetStreamContext) -> None:
    """Its next publish is answered with 503, the others as ever."""
    publish, answered = js.publish, False

    async def refused_once(*arguments: Any, **named: Any) -> Any:
        nonlocal answered
        if not answered:
            answered = True
            raise nats.js.errors.ServiceUnavailableError(code=503, err_code=NO_LEADER, description="no leader")
        return await publish(*arguments, **named)

    monkeypatch.setattr(js, "publish", refused_once)
