"""A small read-only web server beside the gRPC one: metrics for Prometheus, a status page for people."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable
from importlib import resources
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ..runtime.errors import UsageError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

    from prometheus_client import CollectorRegistry

_log = logging.getLogger(__name__)

_HEADERS = [
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    # The page is whole in itself: nothing is loaded from, or sent to, anywhere else.
    (
        "Content-Security-Policy",
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'",
    ),
]


class _Server(ThreadingMixIn, WSGIServer):
    """One slow reader must not keep Prometheus waiting."""

    daemon_threads = True


class _Handler(WSGIRequestHandler):
    timeout = 10  # a connection that says nothing is closed

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        _log.debug(format, *args)


class WebServer:
    """Serves `/metrics`, `/status.json` and the page `/` on a thread.

    Args:
        host, port: where to listen; port 0 takes any free one.
        registry: what `/metrics` shows.
        status: makes the content of `/status.json`.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry, status: Callable[[], object]) -> None:
        """Listen.

        Raises:
            UsageError: the address cannot be listened on.
        """
        page = resources.files(__package__).joinpath("status.html").read_bytes()
        self._pages: dict[str, tuple[str, Callable[[], bytes]]] = {
            "/": ("text/html; charset=utf-8", lambda: page),
            "/status.json": ("application/json", lambda: json.dumps(status()).encode()),
            "/metrics": (CONTENT_TYPE_LATEST, lambda: generate_latest(registry)),
        }
        try:
            self._server = make_server(host, port, self._answer, _Server, _Handler)
        except OSError as error:
            raise UsageError(f"cannot listen on {host}:{port} for metrics ({error.strerror})") from None
        self.address = f"{host}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        kind, make = self._pages.get(environ.get("PATH_INFO", "/"), ("", None))
        if make is None or environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            start_response("404 Not Found", [("Content-Type", "text/plain"), *_HEADERS])
            return [b"there are /, /status.json and /metrics\n"]
        body = make()
        start_response("200 OK", [("Content-Type", kind), ("Content-Length", str(len(body))), *_HEADERS])
        return [body]
