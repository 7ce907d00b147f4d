"""Log lines for people (console) or machines (JSON), each with the ids of its request and its trace.

Values go into ``extra`` under ``data`` (``log.info("stored", extra={"data": {"bytes": n}})``), never tokens,
signatures or the lie.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
import time
from datetime import UTC, datetime
from typing import Any

from services.common import context, tracing
from services.common.settings import CommonSettings


def configure(settings: CommonSettings, service: str) -> None:
    """Sends all log records of this process to stderr in the format that the settings ask for."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json(service) if settings.log_format == "json" else _Console())
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    logging.getLogger("nats").setLevel(logging.ERROR)
    logging.captureWarnings(True)
    # No line says where in the code it comes from, and finding that out is a third of what a line costs
    # (https://docs.python.org/3/howto/logging.html#optimization).
    logging._srcfile = None
    logging.logThreads = logging.logMultiprocessing = logging.logProcesses = False


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
        if trace_id := tracing.current().trace_id:
            line["trace_id"] = trace_id
        line.update(getattr(record, "data", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _Console(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        second, _, fraction = f"{record.created:.3f}".partition(".")
        message, *rest = record.getMessage().split("\n")
        parts = [f"{_local(int(second))},{fraction} {record.levelname:7} {record.name}: {message}"]
        parts += [f"{name}={value}" for name, value in getattr(record, "data", {}).items()]
        if request_id := _request_id():
            parts.append(f"request_id={request_id}")
        if trace_id := tracing.current().trace_id:
            parts.append(f"trace_id={trace_id}")
        if record.exc_info:
            rest.append(self.formatException(record.exc_info))
        return "\n".join([" ".join(parts), *rest])


@functools.lru_cache(1)  # a busy process writes thousands of lines a second
def _local(second: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
