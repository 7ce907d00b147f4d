"""Measures the gateway against nginx and bare gRPC: ``python -m bench.gateway [--rounds N] [--megabytes N]``.

With ``--processes N`` nginx has as many workers, and the results go to a file of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from urllib.parse import urlsplit

import grpc

from bench import egress
from bench.report import Result, against, publish
from bench.servers import Server, _process, _until_answers, ours
from bench.transfer import begin_merge, put
from mesh.ports import HOST
from mesh.swift import NAMES, SwiftServer
from services.common.adapters.s3_bucket import open_bucket
from services.common.settings import CommonSettings
from services.gateway.config import GatewaySettings
from tests.processes import free_port
from twotruths.merge.v1.merge_service_pb2 import GetMergeRequest
from twotruths.merge.v1.merge_service_pb2_grpc import MergeServiceStub

SUBSCRIBERS, READERS = 2_000, 200
S3_READERS: int = GatewaySettings.model_fields["gateway_store_readers"].default
"""As many as one process lets in, since who takes a connection of several is chance."""


def _bound(name: str, ours_: float, unit: str, target: float | None) -> Result:
    return Result(name, ours_, None, None, unit, target, at_most=True)


def _median(rounds: int, *measures: Callable[[], float]) -> list[float]:
    """Of each, in turn."""
    found = [[measure() for measure in measures] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*found, strict=True)]


def _egress(server: Server, url: str, peer: str, rounds: int, size: int) -> Iterator[Result]:
    auth, gigabytes = server.headers, 0.0
    egress.curl(url, auth)
    before = server.cpu("gateway")

    def full() -> float:
        nonlocal gigabytes
        speed = egress.curl(url, auth)
        gigabytes += size / 1e9
        return speed

    mine, other = _median(rounds, full, lambda: egress.curl(peer, {}))
    yield against("egress.full_1gb_vs_nginx", mine, other, "MB/s", 0.8, at_most=False)
    yield _bound("egress.cpu_s_per_gb", (server.cpu("gateway") - before) / gigabytes, "CPU-s/GB", None)
    for name, length, target in (("1mib", 1 << 20, 0.45), ("64kib", 64 << 10, 0.15)):
        asked = {"Range": f"bytes=1048576-{1048576 + length - 1}"}
        mine, other = _median(
            rounds,
            lambda asked=asked: egress.wrk(url, auth | asked, connections=8),  # type: ignore[misc]
            lambda asked=asked: egress.wrk(peer, asked, connections=8),  # type: ignore[misc]
        )
        yield against(f"egress.range_{name}_vs_nginx", mine, other, "requests/s", target, at_most=False)


async def _grpc_p50(server: Server, session: str, calls: int) -> float:
    metadata = tuple((name.lower(), value) for name, value in server.headers.items())
    async with grpc.aio.insecure_channel(f"{HOST}:{server.ports['merge']}") as channel:
        stub, seconds = MergeServiceStub(channel), []
        for _ in range(calls):
            began = time.perf_counter()
            await stub.GetMerge(GetMergeRequest(merge_session_id=session), metadata=metadata)
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1000


def _rest_p50(server: Server, path: str, calls: int) -> float:
    connection, seconds = http.client.HTTPConnection(HOST, server.port), []
    for _ in range(calls):
        began = time.perf_counter()
        connection.request("GET", path, headers=server.headers)
        connection.getresponse().read()
        seconds.append(time.perf_counter() - began)
    connection.close()
    return statistics.median(seconds) * 1000


def _calls(server: Server, session: str, rounds: int) -> Iterator[Result]:
    path = f"/api/v1/challenge-videos/merge-session/{session}/status"
    rest, bare = _median(
        rounds,
        lambda: _rest_p50(server, path, 1000),
        lambda: asyncio.run(_grpc_p50(server, session, 1000)),
    )
    yield against("gateway.rest_vs_grpc_p50", rest, bare, "ms", 2.0, at_most=True)
    url = f"http://{HOST}:{server.port}{path}"
    (speed,) = _median(rounds, lambda: egress.wrk(url, server.headers, connections=16))
    yield _bound("gateway.rest_rps", speed, "requests/s", None)


def _request(server: Server, path: str) -> bytes:
    token = server.headers["Authorization"]
    return f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n\r\n".encode()


def _slow_readers(server: Server, file: str, readers: int) -> float:
    """MiB that they make the gateway grow by."""
    before = server.rss("gateway")
    with egress.connections(server.port, _request(server, file), readers) as opened:
        egress.trickle(opened, rate=10_000, seconds=10)
        return server.rss("gateway") - before


def _idle_streams(server: Server, upload: str) -> float:
    """KiB of the gateway for each."""
    events = _request(server, f"/api/v1/upload/{upload}/events")
    with egress.connections(server.port, events, READERS):
        pass  # gRPC gives a call the memory that calls before it took
    before = server.rss("gateway")
    with egress.connections(server.port, events, SUBSCRIBERS):
        return (server.rss("gateway") - before) * 1024 / SUBSCRIBERS


def _all(folder: Path, rounds: int, size: int, processes: int) -> Iterator[Result]:
    with ours(folder / "ours", processes=processes, merge=True) as server:
        upload = put(server, size)
        (path,) = (folder / "ours" / "data" / "objects" / "uploads").iterdir()
        file = f"/api/v1/files/{upload}"
        with egress.nginx(folder / "nginx", workers=processes, root=path.parent) as peer:
            peer_url = f"http://{HOST}:{peer.port}/{path.name}"
            yield from _egress(server, f"http://{HOST}:{server.port}{file}", peer_url, rounds, size)
        yield from _calls(server, begin_merge(server), rounds)
        yield _bound("gateway.slow_readers_mib", _slow_readers(server, file, READERS), "MiB", 60)
        yield _bound("gateway.idle_sse_kib", _idle_streams(server, put(server, 10, complete=False)), "KiB", 40)


def _from_s3(folder: Path, rounds: int, size: int, processes: int) -> Iterator[Result]:
    folder.mkdir()
    swift = SwiftServer(folder / "swift", tuple(free_port() for _ in NAMES))
    with _process(swift.command(), folder / "swift.log"):
        for url in swift.health_urls():
            _until_answers(urlsplit(url).port or 0, urlsplit(url).path, folder / "swift.log")
        settings = swift.settings()
        os.environ |= {f"TWOTRUTHS_{name.upper()}": str(value) for name, value in settings.items()}
        with ours(folder / "ours", processes=processes) as server:
            path = f"/api/v1/files/{put(server, size)}"
            file = f"http://{HOST}:{server.port}{path}"
            upstream = asyncio.run(_presigned(settings))
            with egress.nginx(folder / "nginx", workers=processes, upstream=upstream) as peer:
                there = f"http://{HOST}:{peer.port}/"
                measures = (lambda: egress.curl(file, server.headers), lambda: egress.curl(there, {}))
                mine, other = _median(rounds, *measures)
            grown = _slow_readers(server, path, S3_READERS)
        yield _bound("gateway.slow_readers_s3_mib", grown, "MiB", 60)
        yield against("egress.s3_full_vs_nginx", mine, other, "MB/s", 0.4, at_most=False)


async def _presigned(settings: Mapping[str, object]) -> str:
    async with open_bucket(CommonSettings.model_validate(settings)) as bucket:
        (key,) = [info.key async for info in bucket.list("objects/")]
        now = datetime.now(UTC)
        return (await bucket.presign(key, now + timedelta(hours=1), now))[0]


def main() -> None:
    """Measures everything once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=1, help="of the gateway, and workers of nginx")
    options = parser.parse_args()
    size = options.megabytes * 10**6
    os.environ["TWOTRUTHS_UPLOAD_MAX_FILE_SIZE"] = str(2 * size)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        rounds, processes = options.rounds, options.processes
        found = chain(
            _all(here, rounds, size, processes), _from_s3(here / "s3", rounds, min(size, 300_000_000), processes)
        )
        publish(found, "gateway.jsonl" if processes == 1 else f"gateway_{processes}.jsonl")


if __name__ == "__main__":
    main()
