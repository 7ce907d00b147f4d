"""The step with which a trace begins: an HTTP request.

Whoever sends a ``traceparent`` could have us keep every one of their requests, or mix theirs into a trace of
someone else (https://www.w3.org/TR/trace-context/#denial-of-service). So a trace is continued, kept or not as was
decided there, only if it comes from one of our proxies and the operator says that these replace what clients send
(``TWOTRUTHS_GATEWAY_CONTINUE_TRACES``). Every other request begins a trace of ours, which is
linked to theirs. Names and attributes are those of https://opentelemetry.io/docs/specs/semconv/http/http-spans/,
without what tells who a client is.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from aiohttp import web
from aiohttp.typedefs import Handler

from services.common import tracing
from services.gateway.clients import Clients

TRACE_ID = web.RequestKey("trace_id", str)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"})


class Traces:
    """A middleware around all others, if spans are kept at all. Requests to ``quiet`` paths are no steps."""

    def __init__(self, clients: Clients, *, proxies_decide: bool, quiet: AbstractSet[str]) -> None:
        self._clients = clients
        self._proxies_decide = proxies_decide
        self._quiet = quiet
        self._routes: dict[str, str] = {}

    def install(self, app: web.Application) -> None:
        """Puts itself around what is installed after it."""
        if not tracing.on():
            return

        @web.middleware
        async def around(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.path in self._quiet:
                return await handler(request)
            with self._begun(request) as step:
                request[TRACE_ID] = step.trace_id
                response = await handler(request)
                step.set("http.response.status_code", response.status)
                if response.status >= 500:
                    step.fail(str(response.status))
                return response

        app.middlewares.append(around)

    def shown_as(self, route: web.AbstractRoute, template: str) -> None:
        """Names a route by the template that its callers know."""
        if route.resource is not None:
            self._routes[route.resource.canonical] = template

    def _begun(self, request: web.Request) -> tracing.Span:
        method = request.method if request.method in _METHODS else "_OTHER"
        attributes: dict[str, tracing.Value] = {
            "http.request.method": method,
            "url.scheme": request.scheme,
            "network.protocol.version": f"{request.version.major}.{request.version.minor}",
        }
        name = method if method != "_OTHER" else "HTTP"
        if (resource := request.match_info.route.resource) is not None:
            route = self._routes.get(resource.canonical, resource.canonical)
            # Only of routes that there are: what else is in a path that somebody made up, nobody knows.
            attributes |= {"http.route": route, "url.path": request.path}
            name = f"{name} {route}"
        given = request.headers.getall(tracing.TRACEPARENT, [])
        told = given[0] if len(given) == 1 else ""
        believed = self._proxies_decide and self._clients.is_proxy(request)
        parent, link = (told, "") if believed else ("", told)
        return tracing.span(name, "server", parent=parent, attributes=attributes, link=link)
