"""Whose request it is, by address: that of the connection, or what the proxies in front of us say.

``X-Forwarded-For`` and ``Forwarded`` (RFC 7239) are lists that every proxy extends at the right end; what is left
of a trusted proxy's word may be the client's invention (RFC 7239 section 8.1). So they count only on connections
from trusted proxies, and are read from the right, until the first address that is none of those. What cannot be
read (``unknown``, ``_hidden``, nonsense) ends the walk at the last proxy. A proxy writes one of the two and lets
the client's other one pass: when both are there and disagree, neither counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from aiohttp import web
from multidict import CIMultiDictProxy

Address = IPv4Address | IPv6Address

_MAX_HOPS = 16
_NODE = re.compile(r"\[([0-9A-Fa-f:.]{2,45})\](?::[\w.-]{1,16})?|([0-9.]{7,15})(?::[\w.-]{1,16})?", re.ASCII)
_BARE = re.compile(r"[0-9A-Fa-f:.]{2,45}")
_PAIR = r'([\w!#$%&\'*+.^`|~-]{1,64})=(?:([\w!#$%&\'*+.^`|~-]{1,256})|"((?:[^"\\]|\\.){0,256})")'
_PAIRS = re.compile(_PAIR, re.ASCII)
_ELEMENT = re.compile(rf"{_PAIR}(?:;{_PAIR}){{0,15}}", re.ASCII)


class Clients:
    """``trusted``: networks of the proxies, separated by commas; none if empty. Raises ValueError."""

    def __init__(self, trusted: str) -> None:
        try:
            self._trusted = [ip_network(text.strip()) for text in trusted.split(",") if text.strip()]
        except ValueError as error:
            raise ValueError(f"gateway_trusted_proxies: {error}") from None

    def address(self, request: web.BaseRequest) -> Address | None:
        """Where the request comes from; None once its connection is gone."""
        return self.of(request.remote, request.headers)

    def counted_peer(self, peer: str | None) -> str:
        """By what a connection from ``peer`` is counted; "" for one that is a proxy's, so that of many clients."""
        address = _parsed((peer or "").partition("%")[0])
        return "" if address is None or self._trusts(address) else counted(address)

    def of(self, peer: str | None, headers: CIMultiDictProxy[str]) -> Address | None:
        """The client of a connection from ``peer`` with these headers."""
        address = _parsed((peer or "").partition("%")[0])
        if address is None or not self._trusts(address):
            return address
        told = [
            self._walk(address, read(",".join(headers.getall(name))))
            for name, read in _READERS.items()
            if name in headers
        ]
        return told[0] if told and all(other == told[0] for other in told) else address

    def is_proxy(self, request: web.BaseRequest) -> bool:
        """Whether the connection is one of a trusted proxy."""
        address = _parsed((request.remote or "").partition("%")[0])
        return address is not None and self._trusts(address)

    def _walk(self, address: Address, hops: Iterator[Address | None]) -> Address:
        for hop in hops:
            if hop is None:
                break
            address = hop
            if not self._trusts(hop):
                break
        return address

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


def counted(address: Address | None) -> str:
    """By what a client is counted: an IPv4 address, or the /64 of an IPv6 one, which is all the client's own."""
    if isinstance(address, IPv6Address):
        return f"{IPv6Address(int(address) >> 64 << 64)}/64"
    return str(address or "")


@lru_cache(maxsize=4096)  # the same few clients come again and again, and reading costs microseconds
def _parsed(text: str) -> Address | None:
    """An address; an IPv4-mapped one is the IPv4 address (RFC 4291 section 2.5.5.2)."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _node(text: str) -> Address | None:
    """An address that may have a port (RFC 7239 section 6)."""
    if found := _NODE.fullmatch(text):
        return _parsed(found.group(1) or found.group(2))
    return _parsed(text) if _BARE.fullmatch(text) else None


def _rightmost(field: str) -> Iterator[str]:
    """The members of a list, from the right. A comma within quotes makes two that cannot be read: quotes may be
    the client's, left open to swallow what a proxy adds."""
    for member in reversed(field.rsplit(",", _MAX_HOPS)[-_MAX_HOPS:]):
        yield member.strip(" \t")


def _x_forwarded_for(field: str) -> Iterator[Address | None]:
    return (_node(member) for member in _rightmost(field))


def _forwarded(field: str) -> Iterator[Address | None]:
    for element in _rightmost(field):
        pairs = _PAIRS.findall(element) if _ELEMENT.fullmatch(element) else []
        names = [
            token or re.sub(r"\\(.)", r"\1", quoted) for name, token, quoted in pairs if name.lower() == "for"
        ]
        yield _node(names[0]) if len(names) == 1 else None


_READERS = {"X-Forwarded-For": _x_forwarded_for, "Forwarded": _forwarded}
