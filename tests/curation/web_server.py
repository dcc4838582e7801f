"""A small web on loopback for the tests of downloads: answers by path, remembers what was asked for."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.curation.pairs import image


class Web:
    """`pages` maps a path to (status, headers, body); `asked` counts requests; any other path is a picture of its number."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: Counter[str] = Counter()
        self.gate = threading.Event()
        self.gate.set()
        self.seen = threading.Event()
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.asked[self.path] += 1
                web.seen.set()
                web.gate.wait(60)
                status, headers, body = web.pages.get(self.path) or (200, {}, web.picture(self.path))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing: the tests look at `asked`."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    @staticmethod
    def picture(path: str) -> bytes:
        number = int("".join(c for c in path if c.isdigit()) or 0)
        return image(seed=number, kind="PNG" if path.endswith(".png") else "JPEG")


@contextmanager
def serving() -> Iterator[Web]:
    web = Web()
    thread = threading.Thread(target=web.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        web.gate.set()
        web.server.shutdown()
        web.server.server_close()
