"""Builds the merge service's two processes: the controller, which serves the rpcs, and the worker."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path

from nats.aio.client import Client

from services.common.adapters.jetstream import connect
from services.common.adapters.jetstream_changes import JetStreamChangeFeed
from services.common.adapters.jetstream_dead import JetStreamDeadJobs
from services.common.adapters.jetstream_jobs import JetStreamJobQueue
from services.common.adapters.jetstream_state import JetStreamStateStore
from services.common.adapters.nats_progress import NatsProgressBus
from services.common.adapters.stores import open_objects
from services.common.channel import open_channel
from services.common.clock import Clock, utc_now
from services.common.codec import RecordCodec, parsed
from services.common.identity import ServiceTokens, TokenVerifier
from services.common.lifecycle import App
from services.common.metering import KvMetrics, StoreMetrics
from services.common.metrics import new_registry
from services.common.playback import PlaybackSigner
from services.common.server import GrpcServer
from services.common.state import StateStore, owned_key
from services.common.tls import Tls
from services.merge import rpc, rpc_videos
from services.merge.adapters.queue_load import JetStreamQueueLoad
from services.merge.adapters.upload_client import UploadClient
from services.merge.board import ProgressBoard
from services.merge.cleaning import Retention, SessionCleaner
from services.merge.config import MergeSettings
from services.merge.controller import MergeController
from services.merge.dead import DeadLetters
from services.merge.deadlines import Deadlines
from services.merge.domain import Session, Video
from services.merge.health import Library, ProcessingHealth, WorkerReport
from services.merge.heartbeat import Heartbeat
from services.merge.jobs import KINDS, MergeJob
from services.merge.media import library, sandbox
from services.merge.media.limits import Limits
from services.merge.media.runner import MediaRunner
from services.merge.metering import MergeMetrics, MeteredSessions
from services.merge.metering_queue import MeteredQueue, QueueCollector, QueueMetrics
from services.merge.metering_worker import MeteredMedia, MeteredWork, WorkerMetrics
from services.merge.ports import Links, Media, Sessions, Uploads
from services.merge.removal import VideoRemover
from services.merge.scratch import Scratch
from services.merge.service import KIND, MergeSessions, Timing
from services.merge.videos import MergedVideos
from services.merge.work import MergeWork
from services.merge.worker import MergeWorker
from twotruths.merge.v1 import merge_service_pb2_grpc, record_pb2, video_service_pb2_grpc
from twotruths.upload.v1 import record_pb2 as upload_record_pb2

log = logging.getLogger(__name__)

NAME = "merge"
_LAST_WRITES_SECONDS = 60.0  # of a worker that has lost its claim, and of clocks that differ
NO_SANDBOX = (
    "the kernel has no {}, so media jobs cannot be closed in; TWOTRUTHS_WORKER_SANDBOX=if_possible allows it"
)
SESSIONS = RecordCodec(Session, record_pb2.MergeRecord, remember=2_000)  # an owner's are read at each change
VIDEOS = RecordCodec(Video, record_pb2.VideoRecord)
JOBS = RecordCodec(MergeJob, record_pb2.JobMessage)
WORKERS = RecordCodec(WorkerReport, record_pb2.WorkerRecord)


class UploadEvents:
    """Reads the upload service's records as events: all that counts is which session one belongs to."""

    def encode(self, value: upload_record_pb2.UploadRecord) -> bytes:
        return value.SerializeToString()

    def decode(self, data: bytes) -> upload_record_pb2.UploadRecord:
        return parsed(upload_record_pb2.UploadRecord, data)


def session_of_upload(_: str, value: object | None) -> str | None:
    """The key of the merge session that a changed upload belongs to, if any."""
    if isinstance(value, upload_record_pb2.UploadRecord) and value.merge_session_id:
        return owned_key(value.owner, value.merge_session_id)
    return None


@asynccontextmanager
async def build_controller(
    settings: MergeSettings, *, uploads: Uploads | None = None, clock: Clock = utc_now
) -> AsyncIterator[App]:
    """The process that serves MergeService and VideoService and reconciles the sessions."""
    async with AsyncExitStack() as stack:
        registry = new_registry()
        metrics, kv = MergeMetrics(registry), KvMetrics(registry)
        nats = await _connected(stack, settings, "merge")
        sessions = MeteredSessions(await _sessions(nats, settings, kv), metrics)
        video_bucket = JetStreamStateStore(nats, "videos", VIDEOS, replicas=settings.nats_replicas)
        await video_bucket.ensure()
        videos = kv.around("videos", video_bucket)
        queue = MeteredQueue(await _queue(nats, settings), QueueMetrics(registry))
        load = JetStreamQueueLoad(nats, clock=clock)
        registry.register(QueueCollector(load.state))
        if uploads is None:
            tokens = ServiceTokens.from_settings(settings, NAME)
            tls = Tls.from_settings(settings)
            channel = open_channel(settings.upload_target, tls=tls, tokens=tokens, audience="upload")
            stack.push_async_callback(channel.close)
            uploads = UploadClient(channel)
        board, progress = ProgressBoard(), NatsProgressBus(nats)
        await progress.remember(KIND, replicas=settings.nats_replicas)
        objects = await stack.enter_async_context(open_objects(settings, StoreMetrics(registry)))
        remover = VideoRemover(videos, objects)
        timing = Timing(settings.upload_timeout_seconds, settings.processing_timeout_seconds)
        cleaner = SessionCleaner(
            sessions,
            videos,
            uploads,
            queue,
            objects,
            clock=clock,
            encode=JOBS.encode,
            retention=_retention(settings),
        )
        controller = MergeController(
            sessions,
            videos,
            uploads,
            queue,
            progress,
            board,
            cleaner,
            clock=clock,
            encode=JOBS.encode,
            timing=timing,
            whole_seconds=settings.chunk_seconds,
            deadlines=Deadlines(
                queued=timedelta(seconds=settings.queue_timeout_seconds),
                claimed=timedelta(seconds=settings.claim_timeout_seconds),
            ),
            sweep_seconds=settings.sweep_seconds,
            jobs_per_owner=settings.jobs_per_owner,
            swept=metrics.sweeps.inc,
        )
        await controller.recall()  # before it serves: no status shows less than the controller before this one did
        # The upload service makes its own bucket; whoever comes first makes it the same way.
        await JetStreamStateStore(nats, "uploads", UploadEvents(), replicas=settings.nats_replicas).ensure()
        upload_feed = JetStreamChangeFeed(nats, "uploads", "merge-controller", UploadEvents())
        session_feed = JetStreamChangeFeed(nats, "merges", "merge-controller", SESSIONS)
        video_feed = JetStreamChangeFeed(nats, "videos", "merge-controller", VIDEOS)
        for feed in (upload_feed, session_feed, video_feed):
            await feed.ensure()
            stack.push_async_callback(feed.close)
        server = GrpcServer(
            settings,
            name=NAME,
            listen=settings.merge_listen,
            verifier=TokenVerifier.from_settings(settings, NAME),
            registry=registry,
        )
        merges = MergeSessions(
            sessions,
            uploads,
            progress,
            board,
            clock=clock,
            max_clip_seconds=settings.max_clip_seconds,
            timing=timing,
        )
        store = "s3" if settings.s3_bucket else "directory"
        health = ProcessingHealth(
            load,
            await _reports(nats, settings, kv),
            objects,
            lambda: {} if settings.s3_bucket else {"data": _free_bytes(settings.data_dir)},
            clock=clock,
        )
        signer = PlaybackSigner.from_file(settings.playback_keys_file)
        merged = MergedVideos(
            videos,
            signer,
            clock=clock,
            ttl=settings.playback_ttl_seconds,
            links=await _links(stack, settings, clock),
        )
        server.add(
            rpc.MERGE_SERVICE,
            merge_service_pb2_grpc.add_MergeServiceServicer_to_server,
            rpc.MergeServicer(merges, health, store=store),
        )
        server.add(
            rpc_videos.VIDEO_SERVICE,
            video_service_pb2_grpc.add_VideoServiceServicer_to_server,
            rpc_videos.VideoServicer(merged),
        )
        loops = (
            lambda: controller.follow(upload_feed, session_of_upload),
            lambda: controller.follow(session_feed, lambda key, _: key),
            lambda: remover.follow(video_feed),
            controller.sweep,
            controller.listen,
        )
        yield App(server, loops, registry)


async def _links(stack: AsyncExitStack, settings: MergeSettings, clock: Clock) -> Links | None:
    """Whoever delivers videos in the gateway's stead. Raises ValueError when the settings do not suffice."""
    if settings.media_delivery == "gateway":
        return None
    if not settings.s3_bucket:
        raise ValueError("media_delivery wants the objects in S3 (s3_bucket)")
    # Imports that a directory does not need, see open_objects.
    if settings.media_delivery == "cdn":
        from services.merge.adapters.cloudfront import CloudFrontLinks

        if settings.cdn_key_file is None:
            raise ValueError("cdn_key_file is needed to deliver by CloudFront")
        return CloudFrontLinks(settings.cdn_base_url, settings.cdn_key_id, settings.cdn_key_file)
    from services.common.adapters.s3_bucket import open_bucket
    from services.merge.adapters.s3_links import S3Links

    return S3Links(await stack.enter_async_context(open_bucket(settings)), clock=clock)


@asynccontextmanager
async def build_worker(
    settings: MergeSettings, *, media: Media | None = None, clock: Clock = utc_now
) -> AsyncIterator[App]:
    """The process that does the jobs; its server answers health checks alone: of itself, and as "sandbox" whether
    its jobs are closed in. Raises OSError if they would not be, unless the settings allow it."""
    lacking = sandbox.missing()
    if lacking and settings.worker_sandbox == "required":
        raise OSError(NO_SANDBOX.format(" and no ".join(lacking)))
    if lacking:
        log.warning("media jobs run in a sandbox with gaps: the kernel has no %s", " and no ".join(lacking))
    async with AsyncExitStack() as stack:
        registry = new_registry()
        metrics, kv = WorkerMetrics(registry), KvMetrics(registry)
        nats = await _connected(stack, settings, "merge-worker")
        scratch = Scratch(settings.scratch_dir)
        stack.callback(scratch.close)
        limits = Limits(
            memory_bytes=settings.job_memory_mib << 20,
            cpu_seconds=int(settings.job_seconds * settings.worker_threads),
            wall_seconds=settings.job_seconds,
            output_bytes=settings.job_output_mib << 20,
            max_clip_seconds=settings.max_clip_seconds,
            max_pixels=settings.max_clip_pixels,
            max_source_frames=settings.max_clip_frames,
            max_streams=settings.max_clip_streams,
            locked=settings.worker_sandbox == "required",
        )
        runner = media
        if runner is None:
            runner = own = MediaRunner(
                limits,
                settings.worker_threads,
                even_loudness=settings.merge_even_loudness,
                spare=settings.worker_jobs + settings.worker_probes,
                probe_seconds=settings.probe_seconds,
                on_restart=metrics.nursery_restarts.inc,
            )
            stack.push_async_callback(own.close)
            await own.warm()
        objects = await stack.enter_async_context(open_objects(settings, StoreMetrics(registry)))
        worker = MergeWorker(
            await _sessions(nats, settings, kv),
            MeteredQueue(await _queue(nats, settings), QueueMetrics(registry)),
            NatsProgressBus(nats),
            MeteredWork(MergeWork(objects, MeteredMedia(runner, metrics), scratch, limits=limits), metrics),
            clock=clock,
            decode=JOBS.decode,
            jobs_at_once=settings.worker_jobs,
            probes_at_once=settings.worker_probes,
        )
        server = GrpcServer(
            settings,
            name="worker",
            listen=settings.worker_listen,
            verifier=TokenVerifier.from_settings(settings, NAME),
            registry=registry,
        )
        if not lacking:
            server.also_healthy("sandbox")
        heartbeat = Heartbeat(
            await _reports(nats, settings, kv),
            library.describe if media is None else _no_library,
            scratch=settings.scratch_dir,
            sandbox_lacks=lacking,
            clock=clock,
        )
        yield App(server, (worker.run, heartbeat.run), registry)


@asynccontextmanager
async def open_dead_letters(nats_url: str, *, within: float) -> AsyncIterator[DeadLetters]:
    """The dead jobs of the mesh whose broker this is, for the operator. Raises TimeoutError when the broker does
    not answer ``within`` so many seconds."""
    settings = MergeSettings(nats_url=nats_url)
    async with AsyncExitStack() as stack:
        async with asyncio.timeout(within):
            nats = await connect(nats_url, "mesh-jobs")
        stack.push_async_callback(nats.close)
        yield DeadLetters(
            JetStreamStateStore(nats, "merges", SESSIONS, replicas=settings.nats_replicas),
            JetStreamDeadJobs(nats),
            NatsProgressBus(nats),
            clock=utc_now,
            decode=JOBS.decode,
            timing=Timing(settings.upload_timeout_seconds, settings.processing_timeout_seconds),
            retention=_retention(settings),
        )


def _retention(settings: MergeSettings) -> Retention:
    return Retention(
        timedelta(days=settings.clip_retention_days),
        timedelta(days=settings.session_retention_days),
        timedelta(seconds=settings.claim_timeout_seconds + _LAST_WRITES_SECONDS),
    )


async def _no_library() -> Library:
    """What stands in for the media work is no library."""
    return Library()


def _free_bytes(folder: Path) -> int:
    """Raises OSError when the folder cannot be made or written to."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written to")
    return shutil.disk_usage(folder).free


async def _reports(nats: Client, settings: MergeSettings, kv: KvMetrics) -> StateStore[WorkerReport]:
    store = JetStreamStateStore(nats, "workers", WORKERS, replicas=settings.nats_replicas, marker_ttl=60)
    await store.ensure()
    return kv.around("workers", store)


async def _connected(stack: AsyncExitStack, settings: MergeSettings, name: str) -> Client:
    nats = await connect(settings.nats_url, name)
    stack.push_async_callback(nats.close)
    return nats


async def _sessions(nats: Client, settings: MergeSettings, kv: KvMetrics) -> Sessions:
    store = JetStreamStateStore(nats, "merges", SESSIONS, replicas=settings.nats_replicas)
    await store.ensure()
    return kv.around("merges", store)


async def _queue(nats: Client, settings: MergeSettings) -> JetStreamJobQueue:
    queue = JetStreamJobQueue(nats, ack_wait=settings.job_ack_wait_seconds, replicas=settings.nats_replicas)
    await queue.ensure(KINDS)
    return queue
