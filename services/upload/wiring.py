"""The composition root of the upload service."""

from __future__ import annotations

import functools
import platform
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from prometheus_client import CollectorRegistry

from services.common.adapters.directory_objects import DirectoryObjectStore
from services.common.adapters.jetstream import connect
from services.common.adapters.jetstream_state import JetStreamStateStore
from services.common.adapters.nats_progress import NatsProgressBus
from services.common.clock import Clock, utc_now
from services.common.codec import RecordCodec
from services.common.identity import TokenVerifier
from services.common.lifecycle import App
from services.common.metering import KvMetrics, MeteredObjects, StoreMetrics
from services.common.metrics import new_registry
from services.common.objects import ObjectStore
from services.common.server import GrpcServer
from services.upload import rpc
from services.upload.adapters.after_boot import SoundParts, boot_id
from services.upload.adapters.clamd import ClamdScanner
from services.upload.adapters.directory_id import directory_id
from services.upload.adapters.directory_parts import DirectoryPartStore
from services.upload.adapters.jetstream_events import JetStreamEvents
from services.upload.adapters.sole_writer import SoleWriter
from services.upload.analytics import Analytics, Replays
from services.upload.assembly import Assembly, Retention
from services.upload.claim import Claim, claim
from services.upload.config import UploadSettings
from services.upload.domain import Upload
from services.upload.index import IndexedUploads, IndexStore, Noted, UploadIndex
from services.upload.limits import Limits
from services.upload.metering import MeteredParts, MeteredScanner, MeteredUploads, UploadMetrics
from services.upload.ports import Events, Hints, PartStore, Scanner, UploadStore
from services.upload.quotas import Quotas, Usage, UsageStore
from services.upload.records import UploadRecords
from services.upload.scanning import Quarantine
from services.upload.service import Policy, UploadService
from services.upload.sweeping import Sweep
from services.upload.timing import TimedParts
from twotruths.upload.v1 import record_pb2, upload_service_pb2_grpc

BUCKET = "uploads"
INDEX = "uploads_index"
QUOTAS = "quotas"
STORE = "upload_store"
_MARKER_KEPT_SECONDS = 60  # nobody follows the index, and each sweep reads what its deletes leave
_USAGE_KEPT_SECONDS = 2 * 86_400  # beyond the life of an upload


@dataclass(frozen=True)
class Shared:
    """What the replicas of the service share through the broker."""

    uploads: UploadStore
    index: IndexStore
    usages: UsageStore
    hints: Hints
    events: Events


Background: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Stores:
    """Where the bytes are: of uploads that go on, and of files. ``name`` is the same for all who have this store,
    ``where`` is for people."""

    parts: PartStore
    objects: ObjectStore
    name: str = ""
    where: str = ""


@asynccontextmanager
async def build(
    settings: UploadSettings,
    *,
    shared: Shared | None = None,
    stores: Stores | None = None,
    clock: Clock = utc_now,
) -> AsyncIterator[App]:
    """The upload service on a directory or a bucket and JetStream, or on what is given instead."""
    metrics, replays = UploadMetrics(registry := new_registry()), Replays()
    async with AsyncExitStack() as stack:
        background: list[Background] = []
        # First: a directory that is taken is a reason not to begin.
        stores = stores or await _open_stores(stack, settings, background)
        store_metrics = StoreMetrics(registry)
        timed, objects = TimedParts(stores.parts, store_metrics), MeteredObjects(stores.objects, store_metrics)
        parts = MeteredParts(timed, metrics, replays)
        shared = shared or await open_shared(
            settings,
            stack,
            alone=not settings.s3_bucket,
            mine=Claim(stores.name, stores.where, clock()),
            metrics=KvMetrics(registry),
        )
        index, hints = UploadIndex(shared.index, clock=clock), shared.hints
        uploads = IndexedUploads(MeteredUploads(shared.uploads, metrics), index)
        retention = Retention(settings.upload_record_ttl_seconds, settings.upload_orphan_grace_seconds)
        assembly = Assembly(
            uploads,
            index,
            timed,
            objects,
            hints,
            Quarantine(objects, _scanner(settings, metrics)),
            Analytics(shared.events, replays),
            retention=retention,
            clock=clock,
        )
        stack.push_async_callback(assembly.close)
        records = UploadRecords(uploads, index, parts, hints, ttl=assembly.ttl, clock=clock)
        policy = _policy(settings)
        quotas = Quotas(
            shared.usages,
            uploads,
            limits=policy.limits,
            ttl=policy.expiry + _USAGE_KEPT_SECONDS,
            clock=clock,
            refused=metrics.refused,
        )
        service = UploadService(records, parts, hints, assembly, quotas, policy=policy, clock=clock)
        metrics.streams.set_function(lambda: service.open_streams)
        server = GrpcServer(
            settings,
            name="upload",
            listen=settings.upload_listen,
            verifier=TokenVerifier.from_settings(settings, "upload"),
            deserializers=rpc.DESERIALIZERS,
            registry=registry,
        )
        server.add(
            rpc.SERVICE, upload_service_pb2_grpc.add_UploadServiceServicer_to_server, rpc.UploadServicer(service)
        )
        sweep = Sweep(uploads, index, parts, objects, hints, assembly, retention=retention, clock=clock)
        background.append(functools.partial(sweep.run_every, settings.upload_sweep_seconds, metrics.swept))
        yield App(server, background=background, metrics=registry)


async def _open_stores(stack: AsyncExitStack, settings: UploadSettings, background: list[Background]) -> Stores:
    """The stores of the settings; what they have to do now and again goes to ``background``."""
    if not settings.s3_bucket:
        files = DirectoryObjectStore(settings.data_dir)
        parts = DirectoryPartStore(settings.data_dir, files, fsync=settings.fsync, threads=settings.upload_threads)
        stack.enter_context(parts)
        boot = boot_id() if settings.fsync == "complete" else ""
        return Stores(
            SoundParts(parts, settings.data_dir, boot=boot) if boot else parts,
            files,
            f"directory:{directory_id(settings.data_dir)}",
            f"the directory {settings.data_dir.absolute()} of {platform.node()}",
        )
    # Half a second of imports that a directory does not need.
    from services.common.adapters.s3_bucket import open_bucket
    from services.common.adapters.s3_objects import S3ObjectStore
    from services.upload.adapters.s3_parts import S3PartStore

    bucket = await stack.enter_async_context(open_bucket(settings))
    objects = S3ObjectStore(bucket)
    store = S3PartStore(bucket, objects, threads=settings.upload_threads)
    grace = settings.upload_orphan_grace_seconds
    background.append(functools.partial(store.tidy_every, settings.upload_sweep_seconds, grace=grace))
    name = settings.s3_bucket
    return Stores(stack.enter_context(store), objects, f"s3:{name}", f"the bucket {name}")


async def open_shared(
    settings: UploadSettings,
    stack: AsyncExitStack,
    *,
    alone: bool,
    mine: Claim | None = None,
    metrics: KvMetrics | None = None,
) -> Shared:
    """On JetStream. ``alone``: no other process writes records of uploads, as who owns a directory shares them
    with nobody; ``mine``: the store that their bytes are in; ``metrics`` time the buckets. Raises Unavailable, and
    FailedPrecondition when they are in another."""
    client = await connect(settings.nats_url, "upload")
    stack.push_async_callback(client.close)
    replicas = settings.nats_replicas
    if mine is not None:
        claims = JetStreamStateStore(
            client, STORE, RecordCodec(Claim, record_pb2.StoreClaimRecord), replicas=replicas
        )
        await claims.ensure()
        await claim(claims, mine, adopt=settings.upload_adopt_broker)
    uploads = JetStreamStateStore(
        client, BUCKET, RecordCodec(Upload, record_pb2.UploadRecord, remember=256), replicas=replicas
    )
    usages = JetStreamStateStore(client, QUOTAS, RecordCodec(Usage, record_pb2.QuotaRecord), replicas=replicas)
    index = JetStreamStateStore(
        client,
        INDEX,
        RecordCodec(Noted, record_pb2.UploadIndexRecord),
        replicas=replicas,
        marker_ttl=_MARKER_KEPT_SECONDS,
    )
    await uploads.ensure()
    await index.ensure()
    await usages.ensure()
    events = JetStreamEvents(client, replicas=replicas)
    await events.ensure()
    around = (metrics or KvMetrics(CollectorRegistry())).around
    records: UploadStore = around(BUCKET, uploads)
    if alone:  # what it remembers costs nothing and is not timed
        records = SoleWriter(records, lasting=lambda upload: not upload.final)
    return Shared(records, around(INDEX, index), around(QUOTAS, usages), NatsProgressBus(client), events)


def _scanner(settings: UploadSettings, metrics: UploadMetrics) -> Scanner | None:
    if not settings.clamd:
        return None
    return MeteredScanner(ClamdScanner(settings.clamd, timeout=settings.clamd_timeout_seconds), metrics)


def _policy(settings: UploadSettings) -> Policy:
    media = {word.strip().lower() for word in settings.upload_allowed_types.split(",")}
    limits = Limits(
        chunk_size=settings.upload_chunk_size,
        max_chunk_size=settings.upload_max_chunk_size,
        max_chunks=settings.upload_max_chunks,
        max_file_size=settings.upload_max_file_size,
        media=frozenset(media - {""}),
        max_open_uploads=settings.upload_max_open,
        max_bytes_per_day=settings.upload_max_bytes_per_day,
        max_initiates_per_minute=settings.upload_max_initiates_per_minute,
    )
    return Policy(
        limits=limits,
        expiry=settings.upload_expiry_seconds,
        stall=settings.upload_stall_seconds,
        look=settings.upload_watch_seconds,
        max_streams=settings.upload_max_streams,
    )
