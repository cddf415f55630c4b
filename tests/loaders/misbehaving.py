"""An HTTP server on loopback that serves files with the faults that a test asks for."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

_PIECE = 1 << 16


@dataclass
class Served:
    """A file, the HTTP features that its server supports, and the faults of its next requests, in order.

    A fault is "close:N" (the connection closes after N bytes of the body), "stall:N" (the body stalls after N bytes),
    "mute" (no response), "status:N", "whole" (200 in response to a range request), "change" (other bytes and another
    ETag from now on), "length:N" (N bytes fewer are announced and sent), "garbage" (not HTTP) or "ok".
    """

    body: bytes | int  # an int is that number of zeros
    version: int = 0
    etag: bool = True
    modified: bool = True
    ranges: bool = True
    if_match: bool = True
    head: bool = True
    pause_s: float = 0.0  # between the pieces of a body
    faults: list[str] = field(default_factory=list)
    changed: bytes = b""
    requests: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    redirect: str = ""

    def __len__(self) -> int:
        return self.body if isinstance(self.body, int) else len(self.body)

    @property
    def gets(self) -> int:
        """The number of GET requests."""
        return sum(request.startswith("GET") for request in self.requests)

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        for at in range(start, end, _PIECE):
            stop = min(end, at + _PIECE)
            yield bytes(stop - at) if isinstance(self.body, int) else self.body[at:stop]


class Misbehaving(ThreadingHTTPServer):
    """Serves `files` by path. As a context manager, it ends all its threads, stalled ones included."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, Served] = {}
        self.over = threading.Event()
        self.lock = threading.Lock()

    def add(self, path: str, body: bytes | int, **how: Any) -> str:
        """Serve `body` at `path` and return its address."""
        self.files[path] = Served(body, **how)
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that have disconnected, which faults provoke."""

    def __enter__(self) -> Misbehaving:
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Misbehaving

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, body: bool) -> None:
        self.close_connection = True
        path = self.path.partition("?")[0]
        file = self.server.files.get(path, self.server.files.get(unquote(path)))
        if file is None:
            return self._status(404)
        with self.server.lock:
            file.requests.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
            file.headers.append(dict(self.headers))
            fault, _, number = (file.faults.pop(0) if file.faults else "ok").partition(":")
            if fault == "change":
                file.body, file.version = file.changed, file.version + 1
        if file.redirect:
            self.send_response(302)
            self.send_header("Location", file.redirect)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if fault == "status":
            return self._status(int(number))
        if fault == "garbage":
            self.wfile.write(b"\x00\xff nonsense\r\n\r\n")
            return None
        if fault == "mute":
            self.server.over.wait(5)
            return None
        if not body and not file.head:
            return self._status(403)
        etag = f'"v{file.version}"'
        if file.if_match and file.etag and self.headers.get("If-Match", etag) != etag:
            return self._status(412)
        start, end, total = 0, len(file), len(file)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and file.ranges and fault != "whole":
            start, end = int(asked[1]), min(end, int(asked[2]) + 1) if asked[2] else end
            if start >= total:
                return self._status(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{total}")
        else:
            self.send_response(200)
        if fault == "length":
            end = max(start, end - int(number))
        self.send_header("Content-Length", str(end - start))
        if file.etag:
            self.send_header("ETag", etag)
        if file.modified:
            self.send_header("Last-Modified", f"Wed, 21 Oct 2015 07:28:{file.version:02d} GMT")
        self.end_headers()
        if body:
            self._send(file, start, end, fault, int(number or 0))
        return None

    def _send(self, file: Served, start: int, end: int, fault: str, number: int) -> None:
        if fault in ("close", "stall"):
            end = min(end, start + number)
        for piece in file.pieces(start, end):
            self.wfile.write(piece)
            if file.pause_s and self.server.over.wait(file.pause_s):
                return
        if fault == "stall":
            self.server.over.wait(5)
        elif fault == "close":
            self.connection.shutdown(socket.SHUT_RDWR)

    def _status(self, status: int) -> None:
        text = f"{self.path} and a key AKIA0123456789 that no message may repeat".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)


def wait_until(true: Any, within_s: float = 10.0) -> None:
    """Wait until `true()` holds."""
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.005)
