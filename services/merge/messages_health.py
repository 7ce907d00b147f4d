"""How the processing is doing, as a message."""

from __future__ import annotations

from collections.abc import Sequence

from services.common.timestamps import timestamp
from services.merge.health import Health, QueueLoad, WorkerReport
from twotruths.merge.v1 import merge_service_pb2 as pb


def health_message(health: Health, *, store: str) -> pb.GetProcessingHealthResponse:
    """What was found; what a part that is away would have said is left out."""
    queue, workers = health.queue or QueueLoad(), health.workers
    disk = dict(health.free_bytes)
    if workers:
        disk["scratch"] = min(worker.scratch_free_bytes for worker in workers)
    return pb.GetProcessingHealthResponse(
        processing_queue=pb.ProcessingQueue(
            depth=sum(queue.waiting.values()),
            active_jobs=queue.running,
            failed_jobs_last_hour=queue.failed_last_hour,
            depth_by_priority=queue.waiting,
        ),
        ffmpeg_service=_library(workers),
        storage=pb.StorageHealth(s3_accessible=health.store_reachable, disk_space=disk, kind=store),
        status="degraded" if health.problems else "healthy",
        problems=health.problems,
        workers=[_worker(worker) for worker in workers],
        checked_at=timestamp(health.checked_at),
    )


def _library(workers: Sequence[WorkerReport]) -> pb.FfmpegService:
    able = [worker.library for worker in workers if worker.library.usable]
    versions = sorted({library.version for library in able})
    return pb.FfmpegService(
        available=bool(able),
        version=", ".join(versions),
        resource_usage={
            "workers": len(workers),
            "cpu_percent": round(sum(worker.cpu_percent for worker in workers), 1),
            "rss_bytes": sum(worker.rss_bytes for worker in workers),
        },
        decoders=sorted(set.intersection(*(set(library.decoders) for library in able))) if able else (),
        encoders=sorted(set.intersection(*(set(library.encoders) for library in able))) if able else (),
        sandboxed=bool(workers) and not any(worker.sandbox_lacks for worker in workers),
    )


def _worker(worker: WorkerReport) -> pb.WorkerHealth:
    return pb.WorkerHealth(
        worker_id=worker.id,
        reported_at=timestamp(worker.reported_at),
        ffmpeg_version=worker.ffmpeg_version,
        cpu_percent=worker.cpu_percent,
        rss_bytes=worker.rss_bytes,
        scratch_free_bytes=worker.scratch_free_bytes,
        sandbox_lacks=worker.sandbox_lacks,
    )
