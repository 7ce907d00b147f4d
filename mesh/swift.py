"""An S3 server for one machine: OpenStack Swift from PyPI, ``python -m mesh.swift FOLDER PORT PORT PORT PORT``.

Swift is four servers: a proxy, which speaks S3, and behind it the object, container and account servers, here
with one replica on one "device", a directory below FOLDER. This process writes their configuration and their
rings (which say that everything is on that device), runs the four and ends when one of them does, so that a
supervisor sees one process. It needs neither root nor memcached, and is meant for development and tests alone:
its one user is known to everyone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import mesh.launch
from mesh.errors import MeshError
from mesh.ports import HOST

ACCOUNT, USER, SECRET = "mesh", "mesh", "mesh-development"
BUCKET = "twotruths"
NAMES = ("s3", "s3-object", "s3-container", "s3-account")
"""What needs a port, in the order of the command's arguments."""

_STORAGE = ("object", "container", "account")
_STOP_SECONDS = 5.0

_COMMON = """\
[DEFAULT]
bind_ip = {host}
bind_port = {port}
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
disable_fallocate = true
fallocate_reserve = 0
workers = 0
log_udp_host =
log_level = WARNING
"""
_HASH = """\
[swift-hash]
swift_hash_path_prefix = mesh
swift_hash_path_suffix = mesh

[storage-policy:0]
name = only
default = yes

[swift-constraints]
max_file_size = 5368709122
max_object_name_length = 1024
"""
# No updater runs here: an object whose listing could not be updated in time would stay unlisted, so wait longer.
_SERVER = """\
[pipeline:main]
pipeline = healthcheck {kind}-server

[app:{kind}-server]
use = egg:swift#{kind}
recon_cache_path = {folder}/cache
replication_server =
container_update_timeout = 30
node_timeout = 30
conn_timeout = 5

[filter:healthcheck]
use = egg:swift#healthcheck
"""
# Objects move in pieces of 1 MiB instead of 64 KiB: fewer switches between green threads.
_PROXY = """\
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck cache listing_formats bulk s3api tempauth copy slo versioned_writes symlink proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
object_chunk_size = 1048576
client_chunk_size = 1048576
node_timeout = 60
recoverable_node_timeout = 60
conn_timeout = 5

[filter:catch_errors]
use = egg:swift#catch_errors

[filter:gatekeeper]
use = egg:swift#gatekeeper

[filter:healthcheck]
use = egg:swift#healthcheck

[filter:cache]
paste.filter_factory = mesh.swift_cache:filter_factory

[filter:listing_formats]
use = egg:swift#listing_formats

[filter:bulk]
use = egg:swift#bulk

[filter:s3api]
use = egg:swift#s3api
location = us-east-1
s3_acl = false
dns_compliant_bucket_names = true

[filter:tempauth]
use = egg:swift#tempauth
user_{account}_{user} = {secret} .admin .reseller_admin

[filter:copy]
use = egg:swift#copy

[filter:slo]
use = egg:swift#slo

[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_object_versioning = true

[filter:symlink]
use = egg:swift#symlink
"""  # noqa: E501 - a pipeline is one line
_RINGS = """\
import sys
from swift.common.ring import RingBuilder

folder, *ports = sys.argv[1:]
for kind, port in zip(("object", "container", "account"), ports):
    builder = RingBuilder(2, 1, 0)
    builder.add_dev(dict(id=0, region=1, zone=1, ip="127.0.0.1", port=int(port), device="one", weight=1, meta="",
                         replication_ip="127.0.0.1", replication_port=int(port)))
    builder.rebalance(seed="mesh")
    builder.get_ring().save(f"{folder}/{kind}.ring.gz")
"""


@dataclass(frozen=True, slots=True)
class SwiftServer:
    """Where one runs: its folder, and its ports in the order of :data:`NAMES`."""

    folder: Path
    ports: tuple[int, ...]

    @property
    def url(self) -> str:
        """The S3 endpoint (path style, region us-east-1)."""
        return f"http://{HOST}:{self.ports[0]}"

    def command(self) -> tuple[str, ...]:
        """What runs it."""
        return (sys.executable, "-m", "mesh.swift", str(self.folder), *map(str, self.ports))

    def health_urls(self) -> tuple[str, ...]:
        """All of them answer 200 when it serves."""
        return tuple(f"http://{HOST}:{port}/healthcheck" for port in self.ports)

    def settings(self) -> dict[str, object]:
        """The settings with which services use it, by their names."""
        return {
            "s3_bucket": BUCKET,
            "s3_endpoint_url": self.url,
            "s3_region": "us-east-1",
            "s3_access_key_id": f"{ACCOUNT}:{USER}",
            "s3_secret_access_key": SECRET,
            "s3_path_style": True,
            "s3_create_bucket": True,
        }


def require_installed() -> None:
    """Raises MeshError when Swift is not installed."""
    if find_spec("swift") is None or find_spec("pyeclib") is None:
        raise MeshError("--s3 needs OpenStack Swift: install the packages swift and pyeclib")


def write_configuration(folder: Path, ports: Sequence[int]) -> None:
    """Writes the configuration of the four servers below ``folder``, which is made if missing."""
    for name in ("devices/one", "cache"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "swift.conf").write_text(_HASH)
    values: Mapping[str, object] = {
        "host": HOST,
        "folder": folder,
        "user": _user(),
        "account": ACCOUNT,
        "secret": SECRET,
    }
    for kind, port in zip(("proxy", *_STORAGE), ports, strict=True):
        common = _COMMON.format(**values, port=port)
        rest = _PROXY.format(account=ACCOUNT, user=USER, secret=SECRET) if kind == "proxy" else ""
        path = folder / f"{kind}-server.conf"
        path.touch(mode=0o600)
        path.write_text(common + "\n" + (rest or _SERVER.format(**values, kind=kind)))


def _user() -> str:
    """The name of whoever runs this: the servers want to be told whom to become."""
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name


def main(arguments: Sequence[str]) -> int:
    """Runs the four servers until SIGTERM, or until one of them ends."""
    folder, ports = Path(arguments[0]).absolute(), [int(port) for port in arguments[1:]]
    write_configuration(folder, ports)
    rings = [sys.executable, "-W", "ignore", "-c", _RINGS, str(folder), *map(str, ports[1:])]
    subprocess.run(rings, check=True)
    signal.signal(signal.SIGTERM, _leave)
    children: list[subprocess.Popen[bytes]] = []
    try:
        for kind in ("account", "container", "object", "proxy"):
            children.append(_start(folder, kind))
        while all(child.poll() is None for child in children):
            time.sleep(0.1)
        return 1
    finally:
        _stop(children)


def _start(folder: Path, kind: str) -> subprocess.Popen[bytes]:
    program = str(Path(sys.executable).with_name(f"swift-{kind}-server"))
    launcher = (sys.executable, "-I", "-S", mesh.launch.__file__, str(os.getpid()))
    command = (*launcher, sys.executable, "-W", "ignore", program, str(folder / f"{kind}-server.conf"))
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)


def _leave(*_: object) -> None:
    raise SystemExit(0)


def _stop(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        child.terminate()
    for child in children:
        try:
            child.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
