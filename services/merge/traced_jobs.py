"""Spans of jobs on their way through the queue, with names and attributes as
https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/ has them.

A job carries the trace of its session: first in the record, then in its message's headers.
"""

from __future__ import annotations

from dataclasses import replace

from services.common import tracing
from services.common.jobs import Delivery, Job, JobQueue

_STREAM = "JOBS"


async def publish(queue: JobQueue, job: Job) -> None:
    """Queues a job; its message continues the trace that the job's headers name. Raises Unavailable."""
    with tracing.span(
        f"send jobs.{job.kind}",
        "producer",
        parent=job.headers.get(tracing.TRACEPARENT, ""),
        attributes=_attributes(job, "send"),
    ) as step:
        if step.traceparent:
            job = replace(job, headers={**job.headers, tracing.TRACEPARENT: step.traceparent})
        if not await queue.publish(job):
            step.discard()  # the message that is there carries the step that sent it


def process(delivery: Delivery) -> tracing.Span:
    """The step of a worker that was handed a job."""
    if not tracing.on():
        return tracing.NONE
    job = delivery.job
    return tracing.span(
        f"process jobs.{job.kind}",
        "consumer",
        parent=job.headers.get(tracing.TRACEPARENT, ""),
        attributes={
            **_attributes(job, "process"),
            "messaging.consumer.group.name": f"{job.kind}-{job.priority}",
            "twotruths.job.deliveries": delivery.count,
        },
    )


def _attributes(job: Job, operation: str) -> dict[str, tracing.Value]:
    return {
        "messaging.system": "nats",
        "messaging.destination.name": _STREAM,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.message.id": job.id,
    }
