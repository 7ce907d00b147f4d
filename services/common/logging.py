"""Log lines for people (console) or machines (JSON), each with the ids of its request and its trace.

Values go into ``extra`` under ``data`` (``log.info("stored", extra={"data": {"bytes": n}})``), never tokens,
signatures or the lie.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import sys
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any, TextIO

from services.common import context, tracing
from services.common.settings import CommonSettings

_WAIT_SECONDS = 0.02
_MOST_WAITING = 256


def configure(settings: CommonSettings, service: str) -> None:
    """Sends all log records of this process to stderr in the format that the settings ask for."""
    handler = _Lines(sys.stderr)
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
        message, newline, rest = record.getMessage().partition("\n")
        line = f"{_local(int(second))},{fraction} {record.levelname:7} {record.name}: {message}"
        for name, value in getattr(record, "data", {}).items():
            line += f" {name}={value}"
        if request_id := _request_id():
            line += f" request_id={request_id}"
        if trace_id := tracing.current().trace_id:
            line += f" trace_id={trace_id}"
        line += newline + rest
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Lines(logging.StreamHandler[TextIO]):
    """Writes the lines of an event loop a moment later, together, since a write for each costs a busy gateway 7 %
    of what it does. Warnings and errors, and what other threads say, are written at once with all before them."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._waiting: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None  # that will write them

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._waiting.append(self.format(record))
            if record.levelno > logging.INFO or len(self._waiting) >= _MOST_WAITING or not self._write_later():
                self.flush()
        except Exception:  # as every handler does: what cannot be logged ends nothing
            self.handleError(record)

    def flush(self) -> None:
        with self.lock or nullcontext():
            lines, self._waiting = self._waiting, []
            if lines:
                self.stream.write("\n".join(lines) + "\n")
            super().flush()

    def _write_later(self) -> bool:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(_WAIT_SECONDS, self._write)
        return True

    def _write(self) -> None:
        self._loop = None
        self.flush()


@functools.lru_cache(1)  # a busy process writes thousands of lines a second
def _local(second: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
