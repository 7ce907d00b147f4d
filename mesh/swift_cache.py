"""What Swift's proxy would ask memcached for, kept in the proxy itself: it is one process (``workers = 0``).

Without it every request first asks the account and the container servers whether account and bucket are there.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, TypeAlias

App: TypeAlias = Callable[[dict[str, Any], Any], Any]
"""A WSGI application."""


class ProcessCache:
    """As much of ``swift.common.memcached.MemcacheRing`` as the proxy uses."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[float, Any]] = {}

    def get(self, key: str, **_: object) -> Any:
        """The value, or None when there is none or its time is over."""
        until, value = self._values.get(key, (0.0, None))
        return value if monotonic() < until else None

    def set(self, key: str, value: object, serialize: bool = True, time: float = 0, **_: object) -> None:
        """Keeps a value for so many seconds; 0: for ever."""
        self._values[key] = (monotonic() + time if time else float("inf"), value)

    def delete(self, key: str, **_: object) -> None:
        """Forgets a value."""
        self._values.pop(key, None)


def filter_factory(_: object, **__: str) -> Callable[[App], App]:
    """For a paste pipeline: puts the cache where Swift looks for it."""
    cache = ProcessCache()

    def wrap(app: App) -> App:
        def call(environ: dict[str, Any], start_response: Any) -> Any:
            environ["swift.cache"] = cache
            return app(environ, start_response)

        return call

    return wrap
