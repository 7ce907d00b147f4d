"""Mutual TLS between the processes of the mesh: each shows a certificate, all are signed by one authority.

A server takes only connections from clients whose certificate the authority signed, and a client talks only to a
server whose certificate names the host of its target (RFC 9110, section 4.3.4). That says that both belong to the
mesh; who calls, and what they may, is still said by the call's token.
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from services.common.settings import CommonSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files: this process's certificate with its chain, its private key, and the authority's certificate."""

    certificate: Path
    key: Path
    authority: Path

    @classmethod
    def from_settings(cls, settings: CommonSettings) -> Tls | None:
        """None means plaintext. Raises ValueError when some of the three files are set, but not all."""
        files = {
            "tls_cert_file": settings.tls_cert_file,
            "tls_key_file": settings.tls_key_file,
            "tls_ca_file": settings.tls_ca_file,
        }
        missing = [name for name, file in files.items() if not file]
        if len(missing) == len(files):
            return None
        if missing:
            raise ValueError(f"TLS needs {', '.join(f'TWOTRUTHS_{name.upper()}' for name in missing)}, too")
        return cls(*map(Path, files.values()))

    def server_credentials(self) -> grpc.ServerCredentials:
        """Files that were replaced count from the next connection on. Raises OSError."""
        current = _Current(self)
        return grpc.dynamic_ssl_server_credentials(current.first, current.changed, True)  # type: ignore[arg-type]  # it may return None

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """The files as they are now: a client has to be started again before its certificate ends. Raises
        OSError."""
        files = _read(self)
        return grpc.ssl_channel_credentials(files.authority, files.key, files.certificate)


@dataclass(frozen=True, slots=True)
class _Files:
    certificate: bytes
    key: bytes
    authority: bytes

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], self.authority)


def _read(tls: Tls) -> _Files:
    """Raises OSError (SSLError is one), also for files that do not belong together: gRPC would say of these only
    that no handshake succeeds."""
    context = ssl.create_default_context(cafile=tls.authority)
    context.load_cert_chain(tls.certificate, tls.key)
    return _Files(tls.certificate.read_bytes(), tls.key.read_bytes(), tls.authority.read_bytes())


class _Current:
    """What a server asks, from a thread of gRPC's, before each handshake."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._seen = self._versions()
        self.first = _read(tls).configuration()

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The new files; None while they are the old ones, or cannot be used."""
        try:
            versions = self._versions()
            if versions == self._seen:
                return None
            configuration = _read(self._tls).configuration()
        except OSError as error:  # perhaps half replaced: it is looked at again next time
            log.warning("the TLS files cannot be read, the old ones stay in force: %s", error)
            return None
        self._seen = versions
        log.info("the TLS files have changed")
        return configuration

    def _versions(self) -> tuple[tuple[int, int], ...]:
        stats = (file.stat() for file in (self._tls.certificate, self._tls.key, self._tls.authority))
        return tuple((stat.st_mtime_ns, stat.st_ino) for stat in stats)
