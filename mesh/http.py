"""HTTP as a phone on a bad network does it: a call is tried again until it is answered or patience ends.

Tried again are connections that break and answers that say so (429, 502, 503, 504), a little later each
time; Retry-After is obeyed. Every other refusal is final and comes as :class:`Refused`. All calls of the phone can
be repeated: they carry a request id or have the same effect twice. Of several gateways another one is asked when
one does not answer.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import aiohttp

from mesh.errors import MeshError

Json = dict[str, Any]

RETRIED = frozenset({429, 502, 503, 504})
_MAX_DELAY = 3.0


class Refused(MeshError):
    """An answer that trying again does not change; the text is that of the problem+json (RFC 9457)."""

    def __init__(self, call: str, status: int, problem: Json) -> None:
        self.status = status
        self.reason = str(problem.get("reason", ""))
        text = problem.get("detail") or problem.get("title") or "no explanation"
        named = f" ({self.reason})" if self.reason else ""
        super().__init__(f"{call} was refused with {status}: {text}{named}")


class ConnectionLost(Exception):
    """No usable answer came this time. ``retry_after`` in seconds is the server's wish, if it had one."""

    def __init__(self, cause: str, retry_after: float | None = None) -> None:
        super().__init__(cause)
        self.retry_after = retry_after


class Backoff:
    """Waits between tries, with jitter, until ``patience`` seconds have passed since the last :meth:`reset`."""

    def __init__(self, what: str, patience: float) -> None:
        self._what = what
        self._patience = patience
        self.reset()

    def reset(self) -> None:
        """Things move again."""
        self._delay = 0.1
        self._deadline = asyncio.get_running_loop().time() + self._patience

    async def pause(self, lost: ConnectionLost) -> None:
        """Waits before the next try. Raises MeshError when there is no time for another."""
        delay = max(lost.retry_after or 0, random.uniform(self._delay / 2, self._delay))  # noqa: S311 - no secret
        if asyncio.get_running_loop().time() + delay > self._deadline:
            raise MeshError(f"{self._what} was tried for {self._patience:g} s: {lost}") from lost
        await asyncio.sleep(delay)
        self._delay = min(2 * self._delay, _MAX_DELAY)


class HttpClient:
    """Calls to a gateway, the first of ``urls`` as long as it answers, with one player's token."""

    def __init__(
        self, session: aiohttp.ClientSession, urls: Sequence[str], token: str, *, patience: float
    ) -> None:
        self.patience = patience
        self._urls = urls
        self._turn = 0
        self._session = session
        self._headers = {"Authorization": f"Bearer {token}"}

    @property
    def base_url(self) -> str:
        """The gateway that is asked."""
        return self._urls[self._turn]

    def gone(self, url: str) -> None:
        """Has the next gateway asked from here on, unless that was done since this one was asked."""
        if url == self.base_url:
            self._turn = (self._turn + 1) % len(self._urls)

    async def call(self, method: str, path: str, body: Json | None = None) -> Json:
        """The JSON answer, tried again as long as patience lasts. Raises Refused or MeshError."""
        backoff = Backoff(f"{method} {path}", self.patience)
        while True:
            try:
                return await self.attempt(method, path, json=body)
            except ConnectionLost as lost:
                await backoff.pause(lost)

    async def attempt(self, method: str, path: str, **arguments: Any) -> Json:
        """The JSON answer of one try. Raises Refused or ConnectionLost."""
        answer: Json = await self.fetch(method, path, _object, **arguments)
        return answer

    async def fetch(
        self, method: str, path: str, read: Callable[[aiohttp.ClientResponse, bytes], Any], **arguments: Any
    ) -> Any:
        """What ``read`` makes of a good answer and its body; one try. Raises Refused or ConnectionLost."""
        headers, url = self._headers | arguments.pop("headers", {}), self.base_url
        try:
            async with self._session.request(method, url + path, headers=headers, **arguments) as response:
                await raise_for_refusal(f"{method} {path}", response)
                return read(response, await response.read())
        except (aiohttp.ClientError, TimeoutError) as error:
            self.gone(url)
            raise ConnectionLost(f"{type(error).__name__}: {error}") from error


async def raise_for_refusal(call: str, response: aiohttp.ClientResponse) -> None:
    """Raises Refused or ConnectionLost unless the answer is a good one."""
    if response.status < 400:
        return
    problem = _problem(await response.read())
    if response.status not in RETRIED:
        raise Refused(call, response.status, problem)
    detail = problem.get("detail") or response.reason
    raise ConnectionLost(f"{call} answered {response.status}: {detail}", _retry_after(response.headers))


def _object(response: aiohttp.ClientResponse, body: bytes) -> Json:
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise MeshError(f"{response.method} {response.url.path} answered {response.status} without a JSON object")
    return answer


def _problem(body: bytes) -> Json:
    try:
        problem = json.loads(body)
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


def _retry_after(headers: Mapping[str, str]) -> float | None:
    try:
        return float(headers["Retry-After"])
    except (KeyError, ValueError):
        return None
