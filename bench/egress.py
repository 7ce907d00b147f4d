"""Clients and the peer of bench/gateway.py: nginx with the same file, wrk, curl, and readers that hardly read."""

from __future__ import annotations

import os
import re
import resource
import selectors
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from bench.servers import Server, _process, _until_answers
from mesh.ports import HOST
from tests.processes import free_port

_NGINX = """daemon off; {processes} pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log {folder}/access.log; sendfile on; tcp_nopush on; keepalive_requests 1000000; default_type video/mp4;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  open_file_cache max=128;
  server {{ listen {host}:{port}; {location} }}
}}
"""


@contextmanager
def nginx(folder: Path, *, workers: int = 1, root: Path | None = None, upstream: str = "") -> Iterator[Server]:
    """nginx, one process or a master with ``workers``, access log on as ours has: files below ``root``, or what
    the URL ``upstream`` answers."""
    folder.mkdir(parents=True)
    port, config = free_port(), folder / "nginx.conf"
    host = urlsplit(upstream).netloc
    passing = f"location / {{ proxy_pass {upstream}; proxy_set_header Host {host}; }}"
    location = passing if upstream else f"location / {{ root {root}; }}"
    processes = "master_process off;" if workers == 1 else f"worker_processes {workers};"
    if workers > 1 and os.geteuid() == 0:
        processes += " user root;"  # who else could not read our folders
    config.write_text(_NGINX.format(folder=folder, processes=processes, host=HOST, port=port, location=location))
    with _process(("/usr/sbin/nginx", "-c", config, "-p", folder), folder / "log") as pid:
        _until_answers(port, "/", folder / "log")
        yield Server(port, "http", "/", pids={"peer": pid})


def _options(headers: dict[str, str]) -> list[str]:
    return [word for name, value in headers.items() for word in ("-H", f"{name}: {value}")]


def curl(url: str, headers: dict[str, str]) -> float:
    """MB/s of one whole download."""
    command = ["curl", "-sf", "-o", "/dev/null", "-w", "%{size_download} %{time_total}", *_options(headers), url]
    size, seconds = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(size) / float(seconds) / 1e6


def wrk(url: str, headers: dict[str, str], *, connections: int, seconds: int = 4) -> float:
    """Requests a second. Raises RuntimeError when an answer is an error."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", *_options(headers), url]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Requests/sec:\s+([0-9.]+)", said)
    if found is None or "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(said)
    return float(found[1])


def open_many(port: int, request: bytes, count: int) -> Iterator[Sequence[socket.socket]]:
    """Connections that each have sent ``request`` and had the first bytes of its answer, closed afterwards."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with ExitStack() as stack:
        opened = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
            sock.settimeout(30)
            sock.connect((HOST, port))
            sock.sendall(request)
            opened.append(sock)
        for sock in opened:
            if b" 200 " not in (said := sock.recv(64)):
                raise RuntimeError(f"a connection was refused: {said!r}")
        yield opened


connections = contextmanager(open_many)


def trickle(opened: Sequence[socket.socket], *, rate: int, seconds: float) -> None:
    """Reads ``rate`` bytes a second from each."""
    with selectors.DefaultSelector() as selector:
        for sock in opened:
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for key, _ in selector.select(0):
                assert isinstance(key.fileobj, socket.socket)
                key.fileobj.recv(rate)
            time.sleep(1)
