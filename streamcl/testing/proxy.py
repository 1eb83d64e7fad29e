"""A loopback HTTP proxy that loses, delays and repeats conditional PUTs and their replies, and a store behind it.

`bucket` needs moto (with flask), which is the S3 server, and s3fs.
"""

from __future__ import annotations

import http.client
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from streamcl.registry.objectstore import FsspecStore

FAULTS = ("request lost", "reply lost", "request late", "reply late", "repeated", "409", "503", "503 after writing")
"""What may happen to a conditional PUT."""
TIMEOUT_S = 2.0
"""How long the client waits for a reply; a late one comes after that."""
_HOP = {"connection", "keep-alive", "expect", "transfer-encoding", "content-length", "host"}


class Proxy:
    """Forwards to a server on this machine. Mutable.

    `faults`: what happens to the next conditional PUTs, one word of FAULTS each, "" for nothing.
    `strip`: whether conditions get lost, as on a server that does not know them. `met`: how often each fault came.
    """

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.faults: list[str] = []
        self.strip = False
        self.met: Counter[str] = Counter()
        self.late: list[threading.Thread] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def land(self) -> None:
        """Wait until every late request has arrived."""
        while self.late:
            self.late.pop().join()

    def close(self) -> None:
        self.land()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, proxy: Proxy, *arguments: Any) -> None:
        self.proxy = proxy
        super().__init__(*arguments)  # which serves the connection

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:  # the client waits no longer
            self.close_connection = True

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        conditional = self.command == "PUT" and "If-None-Match" in self.headers
        fault = self.proxy.faults.pop(0) if conditional and self.proxy.faults else ""
        self.proxy.met[fault] += bool(fault)
        match fault:
            case "request lost":
                self._hang_up()
            case "request late":
                late = threading.Thread(target=self._forward_later, args=(body,))
                self.proxy.late.append(late)
                late.start()
                self._hang_up()
            case "reply lost":
                self._forward(body)
                self._hang_up()
            case "409" | "503":
                self._answer(int(fault), [], b"")
            case "503 after writing":
                self._forward(body)
                self._answer(503, [], b"")
            case "repeated":
                self._forward(body)
                self._answer(*self._forward(body))
            case "reply late":
                reply = self._forward(body)
                time.sleep(1.5 * TIMEOUT_S)
                self._answer(*reply)
            case _:
                self._answer(*self._forward(body))

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _serve

    def _forward_later(self, body: bytes) -> None:
        time.sleep(0.02)
        self._forward(body)

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        dropped = _HOP | ({"if-none-match"} if self.proxy.strip else set())
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.upstream, timeout=30)
        try:
            connection.request(self.command, self.path, body, {**headers, "Host": self.headers["Host"]})
            reply = connection.getresponse()
            return reply.status, reply.getheaders(), reply.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        length = {"content-length": str(len(body))} if self.command != "HEAD" else {}
        kept = {name: value for name, value in headers if name.lower() not in _HOP or self.command == "HEAD"}
        for name, value in {**kept, **length}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def bucket(*, retries: int = 1) -> Iterator[tuple[FsspecStore, Proxy]]:
    """A new bucket on a moto server in this process, reached through a proxy. `retries`: the client's own tries."""
    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    proxy = Proxy(server.get_host_and_port()[1])
    try:
        filesystem = s3fs.S3FileSystem(
            endpoint_url=f"http://127.0.0.1:{proxy.port}",
            key="key",
            secret="secret",
            config_kwargs={"read_timeout": TIMEOUT_S, "retries": {"max_attempts": 0}},
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        filesystem.retries = retries
        name = f"bucket-{proxy.port}"  # moto's buckets outlive its servers
        filesystem.mkdir(name)
        yield FsspecStore(f"s3://{name}/run", filesystem=filesystem), proxy
    finally:
        proxy.close()
        server.stop()
