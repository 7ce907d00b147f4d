"""docs/metrics.md lists every metric of every process, as the code has it; what to alert on is its own word."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from services.common.metering import DatabaseMetrics, KvMetrics, StoreMetrics
from services.common.rpc_metering import RpcMetrics
from services.gateway.metering import RouteMetrics
from services.merge.health import QueueState
from services.merge.metering import MergeMetrics
from services.merge.metering_queue import QueueCollector, QueueMetrics
from services.merge.metering_worker import WorkerMetrics
from services.upload.metering import UploadMetrics

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
HEAD = ["| metric | type | labels | what it tells | alert on |", "|---|---|---|---|---|"]


async def _no_queue() -> QueueState:
    return QueueState((), 0)


def _queue_state(registry: CollectorRegistry) -> None:
    registry.register(QueueCollector(_no_queue))


SECTIONS: Mapping[str, tuple[Callable[[CollectorRegistry], object], ...]] = {
    "gRPC servers": (RpcMetrics,),
    "Stores": (StoreMetrics, KvMetrics, DatabaseMetrics),
    "gateway": (lambda registry: registry.register(RouteMetrics()),),
    "upload": (UploadMetrics,),
    "merge: sessions": (MergeMetrics,),
    "merge: the job queue": (QueueMetrics, _queue_state),
    "merge: workers": (WorkerMetrics,),
}


def metrics(section: str) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, labels and meaning of the metrics that a section is about."""
    registry = CollectorRegistry()
    for register in SECTIONS[section]:
        register(registry)
    for collector in list(registry._collector_to_names):
        if isinstance(collector, MetricWrapperBase):
            kind = collector._type or ""
            yield _named(collector._name, kind), kind, _listed(collector._labelnames), collector._documentation
        else:
            for family in collector.describe():  # type: ignore[attr-defined]  # ours have it
                labels = _listed(family._labelnames)
                yield _named(family.name, family.type), family.type, labels, family.documentation


def _named(name: str, kind: str) -> str:
    return f"{name}_total" if kind == "counter" else name


def _listed(labels: tuple[str, ...]) -> str:
    return ", ".join(f"`{label}`" for label in labels)


async def regenerated(text: str) -> str:
    """The document with its tables made anew; of each row the last column is kept."""
    alerts = {}
    for line in text.splitlines():
        if line.startswith("| `twotruths_"):
            name, *_, alert = (cell.strip() for cell in line.strip("|").split("|"))
            alerts[name] = alert
    lines, section = list[str](), ""
    for line in text.splitlines():
        section = line.removeprefix("## ") if line.startswith("## ") else section
        if line == HEAD[0]:
            lines += HEAD
            lines += [
                f"| `{name}` | {kind} | {labels} | {meaning} | {alerts.get(f'`{name}`', '')} |"
                for name, kind, labels, meaning in metrics(section)
            ]
        elif not line.startswith("|"):
            lines.append(line)
    return "\n".join(lines) + "\n"


async def test_every_metric_is_documented_as_it_is() -> None:
    text = DOCUMENT.read_text()
    assert text == await regenerated(text)
    titles = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert [title for title in titles if title in SECTIONS] == list(SECTIONS)


if __name__ == "__main__":
    DOCUMENT.write_text(asyncio.run(regenerated(DOCUMENT.read_text())))
