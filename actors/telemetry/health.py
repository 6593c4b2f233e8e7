"""The state of a node over HTTP: ``/metrics``, ``/healthz`` and ``/readyz``, for monitoring. Changes nothing.

==========  ======================================================  ================================================
path        200                                                     503
==========  ======================================================  ================================================
/healthz    the process lives, and no actor has failed              an actor or a replica has failed, or is stuck
/readyz     every market can be traded, and read up to date, here   JSON says which cannot, and why
/metrics    the metrics of :data:`~.metrics.METRICS`                never
==========  ======================================================  ================================================

There is no authentication: listen on the loopback interface, or on an address that only authorised people can reach.
"""

from __future__ import annotations

import contextlib
import errno
import http.server
import json
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from ...transport.errors import ConfigurationError
from ...transport.forks import guard
from ...transport.log import get_logger
from ...transport.numerals import port_of
from ..market.condition import READY, condition
from .status import NodeView

logger = get_logger(__name__)

REQUESTS_MAX: Final = 32
"""Most connections at once; a further one is closed."""
ANSWER_S_MAX: Final = 5.0
"""Seconds that an actor may take to answer before it counts as stuck."""
_LOOK_S: Final = 0.1
_CLIENT_S: Final = 2.0
"""Seconds of silence after which a client's connection is closed."""


def healthz(node: NodeView) -> tuple[bool, dict[str, Any]]:
    """Return whether no part of the node has failed, and what ``/healthz`` says."""
    if node.phase != "running":
        return True, {"status": node.phase, "node": node.name}
    failures = node.dead_actors()
    for market, status in node.market_statuses(ANSWER_S_MAX).items():
        state, why = condition(status, node.node_id)
        if state in ("failed", "unresponsive"):
            failures.append(f"market {market}: {state}: {why}")
    return not failures, {"status": "failed" if failures else "ok", "node": node.name, "failures": failures}


def readyz(node: NodeView) -> tuple[bool, dict[str, Any]]:
    """Return whether every market of the node can be used from here, and what ``/readyz`` says."""
    markets: dict[str, dict[str, Any]] = {}
    if node.phase == "running":
        for market, status in node.market_statuses(ANSWER_S_MAX).items():
            state, why = condition(status, node.node_id)
            markets[market] = {"state": state, "why": why, "sequence": status.applied if status.answered else None}
            if status.answered:
                markets[market]["time_off_s"] = status.time_off_s
    ready = node.phase == "running" and all([market["state"] == READY for market in markets.values()])
    found = {"ready": ready, "state": node.phase, "node": node.name, "markets": markets}
    return ready, found | ({"clock": node.clocks.as_json()} if node.phase == "running" else {})


def endpoint(address: str) -> tuple[str, int]:
    """Return the host and the port of ``HOST:PORT``; an IPv6 host is in brackets.

    Raises:
        ConfigurationError: it is not of that form.
    """
    host, _, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    number = port_of(port)
    if not bare or number is None or (":" in bare and bare == host):
        raise ConfigurationError(
            f"metrics are served at HOST:PORT, as in 127.0.0.1:9464 or [::1]:9464, not at {address!r:.80}"
        )
    return bare, number


class HealthServer:
    """Serves one node's health from construction until :meth:`close`, while the node starts and ends too."""

    def __init__(self, node: NodeView, address: str, scrape: Callable[[], bytes]) -> None:
        """Listen at ``address``, ``HOST:PORT``; port 0 = any. ``scrape`` returns the text of ``/metrics``.

        Raises:
            ConfigurationError: the address is in use (code ``address_in_use``), malformed, or none of this machine.
        """
        host, port = endpoint(address)
        try:
            self._server = _Server((host, port), _handler(node, scrape))
        except OSError as error:
            in_use = "address_in_use" if error.errno == errno.EADDRINUSE else None
            raise ConfigurationError(f"metrics cannot be served at {address}: {error}", code=in_use) from error
        self.address = f"{f'[{host}]' if ':' in host else host}:{self._server.server_address[1]}"
        """``HOST:PORT``, with the port filled in."""
        guard(self, lambda server: server._server.socket.close())
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name=f"{node.name}-health", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Refuse further requests, finish the current ones, close the socket."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    request_queue_size = 16

    def __init__(self, address: tuple[str, int], handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        self._room = threading.BoundedSemaphore(REQUESTS_MAX)
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def get_request(self) -> Any:
        try:
            return super().get_request()
        except OSError:  # no descriptor is free: the connection waits, so pause before the next try
            time.sleep(_LOOK_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except BaseException:  # no thread for it
                self._room.release()
                raise
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 (as its base class calls it)
        """Ignore a client that disconnected; log anything else."""
        if not isinstance(sys.exception(), OSError):
            logger.exception("health_failed", client=client_address)


def _handler(node: NodeView, scrape: Callable[[], bytes]) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = _CLIENT_S
        server_version = "openoutcry"
        sys_version = ""

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            try:
                answer = self._found(path)
            except Exception as error:
                logger.exception("health_failed", path=path)
                answer = 500, "text/plain", f"{path} failed: {type(error).__name__}; see the node's log\n".encode()
            self._answer(*answer)

        do_HEAD = do_GET  # noqa: N815 (what its base class calls)

        def _found(self, path: str) -> tuple[int, str, bytes]:
            if path == "/metrics":
                return 200, "text/plain; version=0.0.4; charset=utf-8", scrape()
            if path in ("/healthz", "/readyz"):
                good, found = healthz(node) if path == "/healthz" else readyz(node)
                return 200 if good else 503, "application/json", json.dumps(found).encode() + b"\n"
            return 404, "text/plain", b"there are /metrics, /healthz and /readyz\n"

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            if self.command != "HEAD":
                with contextlib.suppress(OSError):  # it has gone
                    self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing: monitoring asks every few seconds."""

    return Handler
