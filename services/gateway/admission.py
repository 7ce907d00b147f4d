"""Who may come in: each request is charged to its user or address, a token that does not count goes no further.

Only a subject whose token was verified here is charged as a user; every other request, one with a token that does
not count too, is charged to the address. So nobody can use up what is another's. Services verify tokens again;
while the key set is away it is left to them, at the address's expense.

All requests cost the same: a chunk, a range of a video, a poll. What they cost in bytes is the quotas' business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiohttp import web
from aiohttp.typedefs import Handler

from services.common.errors import Unauthenticated, Unavailable
from services.common.identity import TokenVerifier
from services.gateway import callers
from services.gateway.appends import let_retry
from services.gateway.buckets import Buckets, Ticks
from services.gateway.clients import counted
from services.gateway.config import GatewaySettings
from services.gateway.edge import CLIENT
from services.gateway.problems import Problem

_FIELDS = web.RequestKey("ratelimit", list)


class Admission:
    """The middleware within :class:`Edge`. ``free``: paths that are never charged; ``is_open``: whether a request
    needs no token; ``resumable``: where the paths of resumable uploads begin → what their refusals carry."""

    def __init__(
        self,
        verifier: TokenVerifier,
        settings: GatewaySettings,
        ticks: Ticks,
        *,
        free: frozenset[str],
        is_open: Callable[[web.Request], bool],
        resumable: Mapping[str, Mapping[str, str]],
    ) -> None:
        self._verifier = verifier
        self._max_token = settings.gateway_max_token_bytes
        per_user = settings.gateway_requests_per_second_user
        per_address = settings.gateway_requests_per_second_address
        self._users = _buckets("user", per_user, settings.gateway_burst_user, ticks)
        self._addresses = _buckets("address", per_address, settings.gateway_burst_address, ticks)
        self._free = free
        self._is_open = is_open
        self._resumable = resumable

    def install(self, app: web.Application) -> None:
        """Puts itself around every handler of ``app``, within what is there."""

        @web.middleware
        async def around(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.rel_url.raw_path not in self._free:
                try:
                    await self._admit(request)
                except Problem as problem:
                    self._adapt(request, problem)
                    raise
            return await handler(request)

        app.middlewares.append(around)
        app.on_response_prepare.append(_tell)

    async def _admit(self, request: web.Request) -> None:
        """Charges the request. Raises Problem 401, 429."""
        refused: Problem | None = None
        user = ""
        try:
            user = await self._user(request)
        except Unavailable:
            pass
        except Problem as problem:
            refused = problem
        if user:
            request[callers.SUBJECT] = user
            charge(request, self._users, user)
        else:
            charge(request, self._addresses, address(request))
        if refused is not None and not self._is_open(request):
            raise refused

    async def _user(self, request: web.Request) -> str:
        """The subject of the request's token. Raises Problem if there is none that counts; Unavailable."""
        token = callers.bearer(request, max_token=self._max_token)
        if token is None:
            raise callers.unauthenticated()
        try:
            caller = await self._verifier.verify(token)
        except Unauthenticated:
            raise callers.invalid_token() from None
        if caller.is_service:  # services have no business on the phones' side
            raise callers.invalid_token()
        return caller.subject

    def _adapt(self, request: web.Request, problem: Problem) -> None:
        for prefix, headers in self._resumable.items():
            if request.path.startswith(prefix):
                let_retry(problem)
                problem.headers = {**headers, **problem.headers}


def _buckets(name: str, per_second: float, burst: int, ticks: Ticks) -> Buckets | None:
    return Buckets(name, per_second=per_second, burst=burst, ticks=ticks) if per_second else None


def address(request: web.Request) -> str:
    """By what the request's client is counted."""
    return counted(request.get(CLIENT))


def charge(request: web.Request, buckets: Buckets | None, key: str) -> None:
    """Takes a token of ``key``'s bucket, if there are any, and tells so in the answer. Raises Problem 429."""
    if buckets is None:
        return
    taken = buckets.take(key)
    request.setdefault(_FIELDS, []).append((buckets.state(taken), buckets.policy))
    if not taken.allowed:
        headers = {"Retry-After": str(taken.wait)}
        raise Problem(429, "TOO_MANY_REQUESTS", "too many requests came at once; wait a little", headers=headers)


async def _tell(request: web.Request, response: web.StreamResponse) -> None:
    """Adds what is left to the answer, after what a service said of its own limits."""
    for fields in request.get(_FIELDS, ()):
        for name, item in zip(("RateLimit", "RateLimit-Policy"), fields, strict=True):
            before = response.headers.get(name)
            response.headers[name] = f"{before}, {item}" if before else item
