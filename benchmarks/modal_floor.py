"""The floor in sandboxes at Modal: a kept-alive request through a tunnel, and bytes by the file system interface, no more."""

from __future__ import annotations

import http.client
import os
import ssl
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import modal
from measures import Answer, Task, serve
from modal_cells import CALLS, SIZES, TIMES, WARM_UP, text

SERVER = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    def do_GET(self):
        self.wfile.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
"""


def sandbox(*command: str, **arguments: Any) -> modal.Sandbox:
    app = modal.App.lookup("rlm-bench-floor", create_if_missing=True)
    return modal.Sandbox.create(*command, app=app, **arguments)


def calls(task: Task) -> Answer:
    probe = modal.Probe.with_tcp(8080)
    made = sandbox("python", "-c", SERVER, encrypted_ports=[8080], readiness_probe=probe)
    try:
        made.wait_until_ready()
        address = urlsplit(made.tunnels()[8080].url)
        trusted = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
        connection = http.client.HTTPSConnection(str(address.hostname), address.port, context=trusted, timeout=30)
        samples = []
        for _ in range(CALLS + WARM_UP):
            began = time.perf_counter()
            connection.request("GET", "/")
            if connection.getresponse().read() != b"ok":
                raise RuntimeError("the tunnel gave something else")
            samples.append(time.perf_counter() - began)
        return Answer(samples[WARM_UP:])
    finally:
        made.terminate()


def written(size: str) -> Callable[[Task], Answer]:
    def measure(task: Task) -> Answer:
        data = text(SIZES[size]).encode()
        made = sandbox()
        try:
            made.filesystem.write_bytes(b"warm", "/tmp/warm")
            samples = []
            for number in range(TIMES[size]):
                began = time.perf_counter()
                made.filesystem.write_bytes(data, f"/tmp/context-{number}")
                samples.append(time.perf_counter() - began)
            return Answer(samples)
        finally:
            made.terminate()

    return measure


if __name__ == "__main__":
    serve({"calls": calls, **{f"context {size}": written(size) for size in SIZES}})
