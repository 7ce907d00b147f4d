"""Which address a request counts as coming from, whatever stands in its headers."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from services.gateway.clients import Clients, counted

TRUSTED = "10.0.0.0/8, 192.0.2.1/32,2001:db8:ff::/48"
XFF, FWD = "X-Forwarded-For", "Forwarded"
LONG = ", ".join(["10.0.0.1"] * 400)

CASES: list[tuple[str, list[tuple[str, str]], str]] = [
    # A stranger's headers say nothing; neither does a network that is nearly trusted.
    ("203.0.113.9", [(XFF, "198.51.100.1")], "203.0.113.9"),
    ("192.0.2.2", [(FWD, "for=198.51.100.1")], "192.0.2.2"),
    # A trusted one's are read from the right.
    ("10.1.1.1", [], "10.1.1.1"),
    ("10.1.1.1", [(XFF, "")], "10.1.1.1"),
    ("10.1.1.1", [(XFF, "198.51.100.1")], "198.51.100.1"),
    ("10.1.1.1", [(XFF, "6.6.6.6, 198.51.100.1")], "198.51.100.1"),
    ("10.1.1.1", [(XFF, "6.6.6.6,198.51.100.1 , 10.2.2.2,192.0.2.1")], "198.51.100.1"),
    ("10.1.1.1", [(XFF, "6.6.6.6"), (XFF, "198.51.100.1"), (XFF, "10.2.2.2")], "198.51.100.1"),
    ("10.1.1.1", [(XFF, "10.9.9.9, 10.2.2.2")], "10.9.9.9"),
    ("10.1.1.1", [(XFF, f"198.51.100.1, {LONG}")], "10.0.0.1"),
    # Ports, IPv6, IPv4 in IPv6.
    ("10.1.1.1", [(XFF, "198.51.100.1:4711")], "198.51.100.1"),
    ("10.1.1.1", [(XFF, "[2001:db8::1]:4711")], "2001:db8::1"),
    ("10.1.1.1", [(XFF, "2001:db8::1")], "2001:db8::1"),
    ("10.1.1.1", [(XFF, "::ffff:198.51.100.1")], "198.51.100.1"),
    ("::ffff:10.1.1.1", [(XFF, "198.51.100.1")], "198.51.100.1"),
    ("2001:db8:ff::1", [(XFF, "198.51.100.1")], "198.51.100.1"),
    ("fe80::1%eth0", [(XFF, "198.51.100.1")], "fe80::1"),
    # What cannot be read ends the walk at the last proxy.
    *(
        ("10.1.1.1", [(XFF, f"198.51.100.1, {bad}, 10.2.2.2")], "10.2.2.2")
        for bad in (
            "",
            "unknown",
            "_hidden",
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.4:",
            "01.2.3.4",
            "300.1.1.1",
            "::1::",
            "[::1",
        )
    ),
    ("10.1.1.1", [(XFF, "fe80::1%eth0")], "10.1.1.1"),
    ("10.1.1.1", [(XFF, "\u0661.1.1.1")], "10.1.1.1"),
    # RFC 7239, its own examples among them.
    ("10.1.1.1", [(FWD, "for=192.0.2.43, for=198.51.100.17")], "198.51.100.17"),
    ("10.1.1.1", [(FWD, 'For="[2001:db8:cafe::17]:4711"')], "2001:db8:cafe::17"),
    ("10.1.1.1", [(FWD, "for=198.51.100.60;proto=http;by=203.0.113.43")], "198.51.100.60"),
    ("10.1.1.1", [(FWD, 'proto=https;host="a.example:8443";FOR="198.51.100.60:80"')], "198.51.100.60"),
    ("10.1.1.1", [(FWD, "for=198.51.100.60"), (FWD, "for=10.2.2.2;by=10.1.1.1")], "198.51.100.60"),
    ("10.1.1.1", [(FWD, r'for="198.51.100\.60"')], "198.51.100.60"),
    *(
        ("10.1.1.1", [(FWD, f"for=198.51.100.1, {bad}, for=10.2.2.2")], "10.2.2.2")
        for bad in (
            "",
            "by=1.2.3.4",
            "for=unknown",
            "for=_a",
            "for",
            "for=1.1.1.1;for=2.2.2.2",
            "for = 1.1.1.1",
            "for=[::1]",
        )
    ),
    # A quote that the client leaves open swallows nothing.
    ("10.1.1.1", [(FWD, 'for=6.6.6.6;by="x'), (FWD, "for=198.51.100.1")], "198.51.100.1"),
    ("10.1.1.1", [(FWD, 'for=10.2.2.2;by="a,b"')], "10.1.1.1"),
    # Both: only where they agree.
    ("10.1.1.1", [(FWD, "for=198.51.100.1"), (XFF, "198.51.100.1, 10.2.2.2")], "198.51.100.1"),
    ("10.1.1.1", [(FWD, "for=6.6.6.6"), (XFF, "198.51.100.1")], "10.1.1.1"),
    ("10.1.1.1", [(FWD, "nonsense"), (XFF, "198.51.100.1")], "10.1.1.1"),
]


@pytest.mark.parametrize(("peer", "headers", "expected"), CASES)
def test_only_trusted_proxies_say_whom_they_speak_for(
    peer: str, headers: list[tuple[str, str]], expected: str
) -> None:
    found = Clients(TRUSTED).of(peer, CIMultiDictProxy(CIMultiDict(headers)))
    assert str(found) == expected


@pytest.mark.parametrize(("peer", "headers", "_"), CASES)
def test_without_trusted_proxies_the_connection_alone_counts(
    peer: str, headers: list[tuple[str, str]], _: str
) -> None:
    nothing: CIMultiDictProxy[str] = CIMultiDictProxy(CIMultiDict())
    assert Clients("").of(peer, CIMultiDictProxy(CIMultiDict(headers))) == Clients("").of(peer, nothing)


def test_an_ipv6_client_is_counted_by_its_network() -> None:
    def key(peer: str | None) -> str:
        return counted(Clients("").of(peer, CIMultiDictProxy(CIMultiDict())))

    assert key("2001:db8:1:2::1") == key("2001:db8:1:2:ffff::9") == "2001:db8:1:2::/64"
    assert key("2001:db8:1:3::1") != key("2001:db8:1:2::1")
    assert key("::ffff:198.51.100.1") == key("198.51.100.1") == "198.51.100.1"
    assert key(None) == key("") == ""


@pytest.mark.parametrize("networks", ["10.0.0.1/8", "proxy", "10.0.0.0/8;::1"])
def test_what_is_no_network_is_not_trusted_in_silence(networks: str) -> None:
    with pytest.raises(ValueError, match="gateway_trusted_proxies"):
        Clients(networks)
