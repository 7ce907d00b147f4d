"""Log lines for people (console) or machines (JSON), each with the request id of the call it belongs to.

Values go into ``extra`` under ``data`` (``log.info("stored", extra={"data": {"bytes": n}})``), never tokens,
signatures or the lie.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from services.common import context
from services.common.settings import CommonSettings


def configure(settings: CommonSettings, service: str) -> None:
    """Sends all log records of this process to stderr in the format that the settings ask for."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json(service) if settings.log_format == "json" else _Console(service))
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    logging.getLogger("nats").setLevel(logging.ERROR)
    logging.captureWarnings(True)


def _request_id() -> str:
    call = context.current()
    return call.request_id if call else ""


class _Json(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := _request_id():
            line["request_id"] = request_id
        line.update(getattr(record, "data", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _Console(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        text, _, trace = super().format(record).partition("\n")
        data = " ".join(f"{k}={v}" for k, v in getattr(record, "data", {}).items())
        request = f" request_id={_request_id()}" if _request_id() else ""
        return f"{text} {data}{request}".rstrip() + (f"\n{trace}" if trace else "")
