"""The raw client of the upload benchmarks: blocking sockets, one thread a file, no HTTP library.

``python bench/driver.py`` reads a job as JSON from its input and answers JSON: {"seconds", "chunk_seconds"}, from
the first byte of the first chunk to the end of the last file (``complete`` included) and to the answer to the last
chunk. What a client has to compute (SHA-256) is computed before the clock starts: the server is measured.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


class Connection:
    """One HTTP/1.1 connection that is kept open."""

    def __init__(self, port: int, headers: dict[str, str]) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = bytearray()
        self._fixed = {"Host": f"127.0.0.1:{port}"} | headers

    def call(
        self, method: str, path: str, headers: dict[str, str], body: bytes | memoryview = b""
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (names in lower case) and body of the answer. Raises RuntimeError for 400 and above."""
        lines = [f"{method} {path} HTTP/1.1"]
        lines += [f"{k}: {v}" for k, v in (self._fixed | headers | {"Content-Length": str(len(body))}).items()]
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode())
        if body:
            self._socket.sendall(body)
        while (end := self._received.find(b"\r\n\r\n")) < 0:
            self._fill()
        first, *rest = bytes(self._received[:end]).decode().split("\r\n")
        del self._received[: end + 4]
        status = int(first.split()[1])
        answer = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in rest)}
        chunked = answer.get("transfer-encoding") == "chunked" and status != 204
        content = self._chunked() if chunked else self._take(int(answer.get("content-length", "0")))
        if status >= 400:
            raise RuntimeError(f"{method} {path} answered {status}: {content[:300]!r}")
        return status, answer, content

    def _take(self, length: int) -> bytes:
        while len(self._received) < length:
            self._fill()
        content = bytes(self._received[:length])
        del self._received[:length]
        return content

    def _chunked(self) -> bytes:
        content = b""
        while True:
            while (end := self._received.find(b"\r\n")) < 0:
                self._fill()
            length = int(self._take(end + 2), 16)
            content += self._take(length + 2)[:length]
            if length == 0:
                return content

    def _fill(self) -> None:
        data = self._socket.recv(65536)
        if not data:
            raise RuntimeError("the server hung up")
        self._received += data


@dataclass
class Pieces:
    """A file's chunks with their digests."""

    data: bytes
    chunk: int

    def __post_init__(self) -> None:
        view = memoryview(self.data)
        self.all = [view[at : at + self.chunk] for at in range(0, len(self.data), self.chunk)]
        self.digests = [hashlib.sha256(piece).digest() for piece in self.all]
        self.digest = hashlib.sha256(self.data).hexdigest()


class NativeFile:
    """Our chunk route, each chunk with its SHA-256."""

    def __init__(self, connection: Connection, pieces: Pieces, job: dict[str, Any]) -> None:
        self._connection, self._pieces = connection, pieces
        document = {
            "filename": "bench.mp4",
            "file_size": len(pieces.data),
            "mime_type": "video/mp4",
            "chunk_size": pieces.chunk,
        }
        kind = {"Content-Type": "application/json"}
        _, _, body = connection.call("POST", f"{job['path']}/initiate", kind, json.dumps(document).encode())
        self._url = f"{job['path']}/{json.loads(body)['session_id']}"

    def send(self) -> None:
        for number, (piece, digest) in enumerate(zip(self._pieces.all, self._pieces.digests, strict=True)):
            headers = {"Content-Type": "application/octet-stream", "X-Chunk-SHA256": digest.hex()}
            self._connection.call("POST", f"{self._url}/chunk/{number}", headers, piece)

    def complete(self) -> None:
        document = json.dumps({"file_hash": self._pieces.digest}).encode()
        self._connection.call("POST", f"{self._url}/complete", {"Content-Type": "application/json"}, document)


class TusFile:
    """tus 1.0; with ``checksum`` each PATCH carries its SHA-256 (the checksum extension)."""

    def __init__(self, connection: Connection, pieces: Pieces, job: dict[str, Any]) -> None:
        self._connection, self._pieces, self._checksum = connection, pieces, job["checksum"]
        names = {"filename": "bench.mp4", "filetype": "video/mp4"}
        metadata = ",".join(f"{k} {base64.b64encode(v.encode()).decode()}" for k, v in names.items())
        headers = {"Tus-Resumable": "1.0.0", "Upload-Length": str(len(pieces.data)), "Upload-Metadata": metadata}
        _, answer, _ = connection.call("POST", job["path"], headers)
        self._url = urlsplit(answer["location"]).path

    def send(self) -> None:
        offset = 0
        for piece, digest in zip(self._pieces.all, self._pieces.digests, strict=True):
            headers = {
                "Tus-Resumable": "1.0.0",
                "Content-Type": "application/offset+octet-stream",
                "Upload-Offset": str(offset),
            }
            if self._checksum:
                headers["Upload-Checksum"] = f"sha256 {base64.b64encode(digest).decode()}"
            _, answer, _ = self._connection.call("PATCH", self._url, headers, piece)
            offset += len(piece)
            if int(answer["upload-offset"]) != offset:
                raise RuntimeError(f"the server is at {answer['upload-offset']} instead of {offset}")

    def complete(self) -> None:
        """The last PATCH did it."""


def main() -> None:
    job = json.load(sys.stdin)
    kind = {"native": NativeFile, "tus": TusFile}[job["protocol"]]
    files = [
        kind(Connection(job["port"], job["headers"]), Pieces(Path(path).read_bytes(), job["chunk"]), job)
        for path in job["files"]
    ]
    failures: list[BaseException] = []
    sent: list[float] = []

    def run(file: NativeFile | TusFile) -> None:
        try:
            file.send()
            sent.append(time.perf_counter())
            if job["complete"]:
                file.complete()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(file,)) for file in files]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended = time.perf_counter()
    if failures:
        raise failures[0]
    print(json.dumps({"seconds": ended - started, "chunk_seconds": max(sent) - started}))


if __name__ == "__main__":
    main()
