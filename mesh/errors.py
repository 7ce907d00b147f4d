"""The one error of this package that a person is meant to read."""

from __future__ import annotations


class MeshError(Exception):
    """Something cannot go on. ``str()`` is one line; ``detail`` may hold more, such as the end of a log."""

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail
