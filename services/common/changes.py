"""The change feed of a state store: wakes a controller when a record changed.

A change is only a wake-up: several changes of one record may come as one, and one may come twice. The
controller reads what is, computes what is missing and acknowledges.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

T_co = TypeVar("T_co", covariant=True)


class ChangeDelivery(Protocol[T_co]):
    """A change handed to this controller; delivered again if it is not acknowledged in time."""

    @property
    def key(self) -> str: ...

    @property
    def value(self) -> T_co | None:
        """The record as it was when it was handed over; None when it is deleted or cannot be read."""

    async def ack(self) -> None:
        """Ends it. Never raises: one that did not arrive only means a repeat."""

    async def retry(self, delay: float) -> None:
        """Delivers it again after ``delay`` seconds. Never raises."""


class ChangeFeed(Protocol[T_co]):
    """Changes since the durable consumer was made, shared by all replicas that read it."""

    async def next(self, timeout: float) -> ChangeDelivery[T_co] | None:
        """The next change, or None after ``timeout`` seconds. Raises Unavailable."""
