"""What traces cost when nobody takes them, what of a failure is told, and how a call continues one."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from services.common import logging as log_lines
from services.common import tracing
from services.common.adapters.otlp import exporting
from services.common.errors import NotFound
from services.common.keys import KeyRing
from services.common.settings import CommonSettings
from tests.collector import collecting
from tests.processes import free_port
from tests.rpc.common_fixtures import desk
from twotruths.merge.v1 import merge_service_pb2 as pb

ROOT = Path(__file__).parents[2]
METHOD = "twotruths.merge.v1.MergeService/GetMerge"
KEPT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def settings(endpoint: str, **others: Any) -> CommonSettings:
    return CommonSettings(traces_endpoint=endpoint, **others)


def test_without_an_endpoint_nothing_of_opentelemetry_is_loaded() -> None:
    code = (
        "import sys, services.gateway.wiring, services.merge.wiring; from services.common import tracing;"
        "assert not tracing.on() and tracing.span('a') is tracing.NONE;"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


async def test_a_call_continues_the_trace_on_both_sides(keys: KeyRing) -> None:
    told: list[str] = []

    async def get(_: Any, rpc: Any) -> pb.GetMergeResponse:
        told.append(tracing.current().trace_id)
        if len(told) > 1:
            raise [NotFound("no secret of yours"), ZeroDivisionError("a secret bug")][len(told) - 2]
        return pb.GetMergeResponse()

    async with (
        collecting() as collector,
        exporting(settings(collector.endpoint), "merge-3"),
        desk(keys, GetMerge=get) as caller,
    ):
        await caller.call()  # belongs to no step: none of its own, but the server's
        with tracing.span("asked") as asked:
            await caller.refusal()
            await caller.refusal()
    assert told[0] != told[1]
    assert told[1:] == [asked.trace_id] * 2
    ways = [way for way in collector.ways(bytes.fromhex(asked.trace_id)) if len(way) == 3]
    assert {tuple(seen.label for seen in way) for way in ways} == {
        ("merge: asked", f"merge: {METHOD}", f"merge: {METHOD}")
    }
    ends = {str(way[2].attributes["rpc.response.status_code"]): way[1:] for way in ways}
    assert {code: [seen.failed for seen in both] for code, both in ends.items()} == {
        "NOT_FOUND": [True, False],  # no fault of the server's
        "INTERNAL": [True, True],
    }
    (alone,) = (seen for seen in collector.spans if seen.span.trace_id.hex() == told[0])
    assert alone.span.parent_span_id == b""
    assert b"secret" not in collector.raw


async def test_what_is_not_kept_is_not_sent_yet_continued(keys: KeyRing) -> None:
    async def get(_: Any, rpc: Any) -> pb.GetMergeResponse:
        assert tracing.current().trace_id == asked.trace_id
        assert tracing.current().traceparent.endswith("-00")
        return pb.GetMergeResponse()

    async with (
        collecting() as collector,
        exporting(settings(collector.endpoint, traces_ratio=0), "merge"),
        desk(keys, GetMerge=get) as caller,
    ):
        with tracing.span("asked", parent="00-nonsense-01") as asked:
            await caller.call()
        with tracing.span("theirs", parent=KEPT):  # what was decided where it began counts
            pass
    assert [seen.span.name for seen in collector.spans] == ["theirs"]


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_collector_that_is_away_costs_one_line(hangs: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with socket.create_server(("127.0.0.1", free_port())) as listener:
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        if not hangs:
            listener.close()
        async with asyncio.timeout(15), exporting(settings(endpoint), "merge"):  # four batches, 5 s each
            for number in range(5_000):  # more than are kept
                tracing.span(f"step {number}").end()
    assert [record.name for record in caplog.records] == ["services.common.adapters.otlp"]
    assert "traces are dropped" in caplog.text


async def test_log_lines_carry_the_trace(capsys: pytest.CaptureFixture[str]) -> None:
    async with collecting() as collector, exporting(settings(collector.endpoint), "merge"):
        root, handlers, level = logging.getLogger(), logging.getLogger().handlers[:], logging.getLogger().level
        try:
            for log_format in ("json", "console"):
                log_lines.configure(CommonSettings(log_format=log_format), "merge")
                with tracing.span("asked") as asked:
                    logging.getLogger("test").info("within")
                logging.getLogger("test").info("after")
                root.handlers[0].flush()
                within, after = [line for line in capsys.readouterr().err.splitlines() if "test" in line]
                assert asked.trace_id in within
                assert "trace_id" not in after
                if log_format == "json":
                    assert json.loads(within)["trace_id"] == asked.trace_id
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)


@pytest.mark.parametrize(
    "endpoint", ["localhost:4317", "http://", "http://user@host:4317", "http://host/v1/traces"]
)
def test_what_is_no_collector_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match="traces_endpoint"):
        settings(endpoint)
