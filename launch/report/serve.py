"""`report --watch`: the report of a run that goes on, served to this machine alone and rewritten as records come."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from common.errors import ConfigError
from launch.graph.plan import Plan
from launch.report.render import as_watching
from launch.report.write import Written, write
from launch.store import StoreError

ADDRESS = "127.0.0.1"
PAUSE = 2.0  # seconds between looks at the records, and ten times what a look takes where that is longer
ASKED = "/made-from"  # answers with what the page was made from
PAGE = "/report.html"


class Handler(SimpleHTTPRequestHandler):
    """Serves the report's folder, read-only and without listings, to a browser that asks for this host by its address.

    A page of elsewhere whose name was pointed at this machine is refused by its Host header.
    """

    server: Server

    def do_GET(self) -> None:
        """The page with the script that reloads it, the digest, or a file of the folder."""
        path = urlsplit(self.path).path
        if not self._is_own_host():
            self.send_error(403)
        elif path == "/":
            self.send_response(302)
            self.send_header("Location", PAGE)
            self.end_headers()
        elif path == ASKED:
            self._send("text/plain; charset=utf-8", self.server.latest.made_from)
        elif path == PAGE:
            latest = self.server.latest
            script = as_watching(ASKED, latest.made_from, PAUSE)
            self._send("text/html; charset=utf-8", latest.path.read_text(encoding="utf-8") + script)
        else:
            super().do_GET()

    def do_HEAD(self) -> None:
        """As of a file."""
        if self._is_own_host():
            super().do_HEAD()
        else:
            self.send_error(403)

    def list_directory(self, path: Any) -> None:
        """None is given."""
        self.send_error(404)

    def translate_path(self, path: str) -> str:
        """The file of a path; what a link leads to outside the folder does not exist."""
        found = Path(super().translate_path(path))
        folder = Path(self.directory).resolve()
        return str(found if found.resolve().is_relative_to(folder) else folder / "not-there")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""

    def _is_own_host(self) -> bool:
        port = self.server.server_address[1]
        return self.headers.get("Host") in (f"{ADDRESS}:{port}", f"localhost:{port}")

    def _send(self, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """The server and what it shows: the report as it was last written."""

    daemon_threads = True

    def __init__(self, port: int, latest: Written) -> None:
        self.latest = latest
        folder = str(latest.path.parent)
        super().__init__((ADDRESS, port), lambda *given: Handler(*given, directory=folder))

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self.server_address[1]}{PAGE}"


def watch(plan: Plan, *, port: int = 0, output: Path | None = None, wait: Callable[[float], None] = time.sleep) -> int:
    """Serves the report of a plan and writes it again whenever its records change, until Ctrl-C; returns 0.

    port: 0 chooses a free one. Raises ConfigError where the port is taken.
    """
    server: Server | None = None
    said = ""
    try:
        latest = write(plan, output)
        server = _started(port, latest)
        print(f"report: {server.url} shows {latest.path}; Ctrl-C ends it", flush=True)
        while True:
            begun = time.monotonic()
            try:
                server.latest, said = write(plan, output), ""
            except StoreError as error:  # a store in work may be odd for a moment
                if str(error) != said:
                    said = str(error)
                    print(f"report: not written: {said}", file=sys.stderr, flush=True)
            wait(max(PAUSE, 10 * (time.monotonic() - begun)))
    except KeyboardInterrupt:
        print("report: no longer served")
        return 0
    finally:
        if server is not None:
            server.shutdown()
            server.server_close()


def _started(port: int, latest: Written) -> Server:
    try:
        server = Server(port, latest)
    except OSError as error:
        raise ConfigError(f"--port {port}: {error.strerror}; leave it out for a free one") from None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
