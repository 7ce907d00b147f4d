"""Mutual TLS between services, and what operators may ask, over real connections."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.common.errors import Unavailable
from services.common.keys import KeyRing
from services.common.settings import CommonSettings
from services.common.tls import Tls
from tests.rpc.common_fixtures import SESSION, calling, make_server, served
from twotruths.merge.v1 import merge_service_pb2 as pb

LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


async def get(request: Any, rpc: Any) -> pb.GetMergeResponse:
    answer = pb.GetMergeResponse()
    answer.merge_session.merge_session_id = request.merge_session_id
    return answer


class Authority:
    """Signs certificates for 127.0.0.1."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mesh")])
        self.certificate = self._signed(self._name, self._key, x509.BasicConstraints(ca=True, path_length=0))

    def issue(self, folder: Path, *, host: x509.GeneralName = LOOPBACK, days: float = 1) -> Tls:
        """Writes the three files, over those that lie there."""
        folder.mkdir(exist_ok=True)
        tls = Tls(folder / "tls.crt", folder / "tls.key", folder / "ca.crt")
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "service")])
        certificate = self._signed(name, key, x509.SubjectAlternativeName([host]), days)
        tls.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        tls.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        tls.authority.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        return tls

    def _signed(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType, days: float = 1
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(self._name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).add_extension(extension, critical=True)
        builder = builder.not_valid_before(now - timedelta(days=2)).not_valid_after(now + timedelta(days=days))
        return builder.sign(self._key, hashes.SHA256())


def settings(tls: Tls) -> Mapping[str, str]:
    return {"tls_cert_file": f"{tls.certificate}", "tls_key_file": f"{tls.key}", "tls_ca_file": f"{tls.authority}"}


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


async def test_services_with_certificates_of_one_authority_talk(
    keys: KeyRing, authority: Authority, tmp_path: Path
) -> None:
    server, client = authority.issue(tmp_path / "server"), authority.issue(tmp_path / "client")
    async with (
        served(keys, settings=settings(server), GetMerge=get) as one,
        calling(keys, one.port, tls=client) as caller,
    ):
        assert (await caller.call()).merge_session.merge_session_id == SESSION


async def test_a_target_of_several_addresses_has_the_name_of_the_first(
    keys: KeyRing, authority: Authority, tmp_path: Path
) -> None:
    tls = authority.issue(tmp_path / "tls")
    async with served(keys, settings=settings(tls), GetMerge=get) as one:
        target = f"ipv4:127.0.0.1:{one.port},127.0.0.1:{one.port + 1}"
        async with calling(keys, target, tls=tls) as caller:
            assert (await caller.call()).merge_session.merge_session_id == SESSION


async def test_whoever_is_not_of_the_mesh_gets_no_connection(
    keys: KeyRing, authority: Authority, tmp_path: Path
) -> None:
    """Neither in plaintext nor with another authority's certificate, nor with one that has ended."""
    server, stranger = authority.issue(tmp_path / "server"), Authority().issue(tmp_path / "stranger")
    (tmp_path / "stranger" / "ca.crt").write_bytes(server.authority.read_bytes())  # it trusts the server
    ended = authority.issue(tmp_path / "ended", days=-1)
    async with served(keys, settings=settings(server), GetMerge=get) as one:
        for tls in (None, stranger, ended):
            async with calling(keys, one.port, tls=tls) as caller:
                assert isinstance(await caller.refusal(timeout=5), Unavailable)


async def test_a_client_talks_to_no_server_of_another_name_or_authority(
    keys: KeyRing, authority: Authority, tmp_path: Path
) -> None:
    client = authority.issue(tmp_path / "client")
    for server in (
        authority.issue(tmp_path / "other", host=x509.DNSName("elsewhere.test")),
        Authority().issue(tmp_path / "stranger"),
    ):
        server.authority.write_bytes(client.authority.read_bytes())  # the server would take the client
        async with (
            served(keys, settings=settings(server), GetMerge=get) as one,
            calling(keys, one.port, tls=client) as caller,
        ):
            assert isinstance(await caller.refusal(timeout=5), Unavailable)


async def test_a_server_takes_new_certificates_without_a_restart(
    keys: KeyRing, authority: Authority, tmp_path: Path
) -> None:
    server = authority.issue(tmp_path / "server")
    newer = Authority()
    async with served(keys, settings=settings(server), GetMerge=get) as one:
        server.key.write_bytes(b"half written")
        async with calling(keys, one.port, tls=authority.issue(tmp_path / "client")) as caller:
            await caller.call()
        newer.issue(tmp_path / "server")
        async with calling(keys, one.port, tls=newer.issue(tmp_path / "client")) as caller:
            await caller.call()


def test_half_a_setting_and_files_that_do_not_belong_together_stop_the_start(
    keys: KeyRing, authority: Authority, tmp_path: Path
) -> None:
    tls = authority.issue(tmp_path / "server")
    with pytest.raises(ValueError, match="TWOTRUTHS_TLS_KEY_FILE, TWOTRUTHS_TLS_CA_FILE"):
        Tls.from_settings(CommonSettings(tls_cert_file=f"{tls.certificate}"))
    tls.key.write_bytes(authority.issue(tmp_path / "other").key.read_bytes())
    with pytest.raises(OSError, match="KEY_VALUES_MISMATCH"):
        tls.channel_credentials()
    with pytest.raises(OSError, match="KEY_VALUES_MISMATCH"):
        tls.server_credentials()


async def test_operators_see_health_connections_and_what_there_is_at_an_address_of_their_own(
    keys: KeyRing, authority: Authority, tmp_path: Path
) -> None:
    """In plaintext and without a token, also of a server with TLS; not at the server's own address."""
    tls = authority.issue(tmp_path / "server")
    given = {**settings(tls), "admin_listen": "127.0.0.1:0"}
    async with served(keys, settings=given, GetMerge=get) as server, calling(keys, server.port, tls=tls) as caller:
        await caller.call()
        assert server.admin is not None
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.admin.port}") as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=5)).status == 1
            channelz: Any = channelz_pb2_grpc.ChannelzStub(channel)
            servers = (await channelz.GetServers(channelz_pb2.GetServersRequest(), timeout=5)).server
            assert any(one.data.calls_succeeded >= 1 for one in servers)
            reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
            asked = reflection_pb2.ServerReflectionRequest(list_services="")
            listed = [answer async for answer in reflection.ServerReflectionInfo(iter([asked]), timeout=5)]
            assert "grpc.channelz.v1.Channelz" in {one.name for one in listed[0].list_services_response.service}
        own: Any = channelz_pb2_grpc.ChannelzStub(caller.channel)
        with pytest.raises(grpc.aio.AioRpcError, match="UNIMPLEMENTED"):
            await own.GetServers(channelz_pb2.GetServersRequest(), metadata=[caller.bearer()], timeout=5)


async def test_a_taken_address_for_operators_stops_the_start(keys: KeyRing) -> None:
    async with served(keys, settings={"admin_listen": "127.0.0.1:0"}) as first:
        assert first.admin is not None
        second = make_server(keys, settings={"admin_listen": f"127.0.0.1:{first.admin.port}"})
        with pytest.raises(OSError, match="for operators"):
            await second.start()
        await second.stop(0)
