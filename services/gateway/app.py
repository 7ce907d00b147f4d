"""The gateway's routes: those of the annotations, and the few written by hand for bytes, health and OpenAPI."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence

import grpc
from aiohttp import web

from services.common.clock import Clock
from services.common.identity import TokenVerifier
from services.common.objects import ObjectStore
from services.common.playback import PlaybackSigner
from services.gateway import contract, encode, guests, openapi, reference, rufh, tus
from services.gateway.access import Access, permission
from services.gateway.admission import Admission
from services.gateway.appends import Appends
from services.gateway.buckets import Ticks
from services.gateway.chunks import ChunkRoutes
from services.gateway.config import GatewaySettings
from services.gateway.documents import Document
from services.gateway.drain import Drain
from services.gateway.edge import Edge
from services.gateway.health import HealthRoutes
from services.gateway.media import MediaRoutes
from services.gateway.metering import RouteMetrics
from services.gateway.protocols import PATHS
from services.gateway.readers import Readers
from services.gateway.routes import Binding, RouteError
from services.gateway.sending import Sender
from services.gateway.traces import Traces
from services.gateway.transcode import Transcoder

_FIELD = re.compile(r"\{[^}]*\}")
HEALTH, OPENAPI, DOCS, STREAM = "/api/v1/health", "/openapi.json", "/docs", "/api/v1/media/stream/"
CHUNK_URLS = (
    "/api/v1/challenge-videos/upload/{session_id}/chunk",
    "/api/v1/upload/{session_id}/chunk",
)


def create(
    bindings: Sequence[Binding],
    channels: Mapping[str, grpc.aio.Channel],
    *,
    streams: Mapping[str, grpc.aio.Channel],
    store: ObjectStore,
    signer: PlaybackSigner,
    settings: GatewaySettings,
    edge: Edge,
    drain: Drain,
    metrics: RouteMetrics,
    clock: Clock,
    verifier: TokenVerifier,
    ticks: Ticks,
) -> web.Application:
    """The application. ``channels`` by backend: upload, merge, challenge; ``streams``: for calls that last."""
    app = web.Application(client_max_size=settings.gateway_max_body_bytes)
    traces = Traces(edge.clients, proxies_decide=settings.gateway_continue_traces, quiet=frozenset({HEALTH}))
    traces.install(app)
    edge.install(app)
    Admission(
        verifier,
        settings,
        ticks,
        free=frozenset({HEALTH}),
        is_open=_is_open,
        resumable={tus.URL.rstrip("/"): tus.ALWAYS, rufh.URL.rstrip("/"): {}},
    ).install(app)
    router, with_guests = app.router, bool(settings.gateway_guest_key_file)
    router.add_get(HEALTH, HealthRoutes(channels, drain, ticks).get)
    described = openapi.document(bindings, contract.comments(), guests.PATHS if with_guests else {})
    router.add_get(OPENAPI, Document(encode.dumps(described), "application/json").get)
    page = Document(reference.page(described), "text/html; charset=utf-8", reference.HEADERS)
    router.add_get(DOCS, page.get)
    if with_guests:
        router.add_post(guests.URL, guests.GuestRoutes(settings, ticks).post)
    chunks = ChunkRoutes(channels["upload"], settings)
    for url in CHUNK_URLS:
        router.add_post(url, chunks.post)
        router.add_post(url + "/{chunk_number}", chunks.post)
    access = Access(channels["upload"], channels["merge"], signer=signer, settings=settings, clock=clock)
    sender = Sender(store, Readers(settings))
    app.on_cleanup.append(_closing(sender))
    media = MediaRoutes(access, sender, redirect=settings.media_redirect)
    video = STREAM + "{video_file_id}"
    router.add_get(video, media.video)
    router.add_get(video + "/posters/{statement:[0-9]{1,4}}.jpg", media.poster)
    router.add_get(video + "/storyboard.jpg", media.sheet)
    router.add_get(video + "/storyboard.vtt", media.storyboard)
    router.add_get(video + "/hls.m3u8", media.playlist)
    router.add_get(video + "/hls.mp4", media.rendition)
    router.add_get("/api/v1/files/{file_id}", media.file)
    appends = Appends(channels["upload"], settings)
    for url, routes in ((tus.URL, tus.TusRoutes(appends)), (rufh.URL, rufh.RufhRoutes(appends))):
        router.add_route("*", url.rstrip("/"), routes.collection)
        router.add_route("*", url, routes.collection)
        router.add_route("*", url + "{session_id}", routes.upload)
    for binding in bindings:
        _check_free(binding)
        channel = (streams if binding.method.server_streaming else channels)[binding.backend]
        handler = Transcoder(binding, channel, settings, drain)
        route = router.add_route(binding.verb, binding.template.path, handler.handle)
        traces.shown_as(route, binding.template.display)
        metrics.name(route.resource, binding.template.display)
        if binding.verb == "GET" and not binding.method.server_streaming:
            router.add_route("HEAD", binding.template.path, handler.handle)  # as RFC 9110 section 9.1 wants
    for path, methods in _owned(bindings).items():
        router.add_route("*", path, _refusing(methods))
    return app


def _owned(bindings: Sequence[Binding]) -> Mapping[str, set[str]]:
    """Paths without fields that a path with fields would fit too, and the methods they take. What they do not take
    is not the other's: ``DELETE /upload/limits`` gives up no upload called limits."""
    fields = [re.compile(_FIELD.sub("[^/]+", b.template.display)) for b in bindings if b.template.fields]
    owned: dict[str, set[str]] = {}
    for binding in bindings:
        path = binding.template.display
        if not binding.template.fields and any(pattern.fullmatch(path) for pattern in fields):
            owned.setdefault(path, set()).update({binding.verb, *(["HEAD"] if binding.verb == "GET" else [])})
    return owned


def _refusing(methods: set[str]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def refuse(request: web.Request) -> web.StreamResponse:
        raise web.HTTPMethodNotAllowed(request.method, methods)

    return refuse


def _is_open(request: web.Request) -> bool:
    """Whether it needs no token: what anybody may know, a video by its signature, what there is not."""
    if (
        request.method == "OPTIONS"
        or request.path in {OPENAPI, DOCS, guests.URL}
        or request.match_info.http_exception is not None
    ):
        return True
    return request.path.startswith(STREAM) and bool(permission(request))


def _closing(sender: Sender) -> Callable[[web.Application], Awaitable[None]]:
    async def close(_: web.Application) -> None:
        sender.close()

    return close


def _check_free(binding: Binding) -> None:
    """An annotation behind a route written by hand would never be reached. Raises RouteError."""
    for path, operations in PATHS.items():
        same = _FIELD.sub("{}", path) == _FIELD.sub("{}", binding.template.display)
        if same and binding.verb.lower() in operations:
            raise RouteError(f"{binding.method.full_name}: {binding.verb} {path} is written by hand")
