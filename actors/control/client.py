"""ControlClient: the command line's end of the control link to a node on this machine."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import select
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, Unpack, cast

import pynng

from ...transport import sockets
from ...transport.errors import (
    Closed,
    ConfigurationError,
    InvalidRequest,
    LinkBroken,
    OpenOutcryError,
    ProtocolError,
    RequestTimeout,
    TransportError,
    Unavailable,
    copied,
)
from ...transport.files import read_file, refusal
from ...transport.forks import guard
from ...transport.numerals import written
from ..book.commands import OrderType, SelfTradePrevention, Side
from ..book.rules import MarketRules
from ..market.border import OrderOptions, RequestOptions, as_word, checked_expiry, known
from ..market.views import OrderRejected, OrderResult
from .wire import (
    ANSWERS,
    CONTROL_FILE,
    ERRORS,
    ITEMS_MAX,
    REQUESTS,
    TIMEOUT_MS_MAX,
    AmendOrder,
    CancelOrder,
    CreateMarket,
    Failure,
    ForceLeader,
    GetBook,
    GetEvents,
    GetForcePlan,
    GetOrders,
    GetStatus,
    GetTrades,
    ListMarkets,
    Result,
    SetTime,
    SubmitOrder,
    Transfer,
    Value,
)

_LATE_S: Final = 0.5
"""Seconds that a client waits for the answer beyond its timeout; after that the outcome is unknown."""
_PIECE_MS: Final = 100
"""Longest single wait in milliseconds: between two waits a client notices signals, its deadline and ``ended``."""
_ADDRESS: Final = re.compile(r"tcp://127\.0\.0\.1:[0-9]{1,5}")

_T = TypeVar("_T")


class ControlClient:
    """Talks to the node that runs on a data directory. Used by one thread at a time; ``timeout`` is in seconds.

    Methods are those of :class:`ExchangeNode` and raise the same errors; commands return an :class:`OrderResult`,
    queries the JSON form of their views. Also raised:

    - ``Unavailable``: no node runs on the data directory (code ``node_not_running``), or it accepts no
      connection within the timeout (code ``node_not_answering``); nothing was sent;
    - ``LinkBroken``: the node has ended; the outcome of a command is unknown, as after a ``RequestTimeout``;
    - ``Closed``: ``ended`` was set meanwhile; the outcome of a command is unknown.
    """

    def __init__(self, data_dir: Path, *, timeout: float = 5.0, ended: threading.Event | None = None) -> None:
        """``ended``: once it is set, no call waits any more; for a caller that handles signals itself."""
        control = read_control_file(data_dir)
        if control is None:
            raise Unavailable(f"no node is running on {data_dir}", code="node_not_running")
        self.name = control["name"]
        self._token = control["token"]
        self._timeout_ms = max(1, min(int(timeout * 1000), TIMEOUT_MS_MAX))
        self._closed = False
        self._control = control
        guard(self)
        self._ended = ended or threading.Event()
        self._line = self._dial(control["address"])
        self._status_line: _Line | None = None

    def _dial(self, address: str) -> _Line:
        pid, seconds = self._control["pid"], self._timeout_ms / 1000
        try:
            return _Line(address, time.monotonic() + seconds, self._ended)
        except RequestTimeout:
            raise Unavailable(
                f"node {self.name} does not answer: its process, {pid}, runs, but took no connection within "
                f"{written(seconds)} s; is it stopped (as by Ctrl-Z), or overloaded? Nothing was sent",
                code="node_not_answering",
            ) from None
        except LinkBroken as error:
            raise Unavailable(
                f"node {self.name} is not running: process {pid} has not written its control file, or is ending "
                f"({error.message})",
                code="node_not_running",
            ) from error

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the link. Idempotent."""
        self._closed = True
        self._line.close()
        if self._status_line is not None:
            self._status_line.close()

    def submit_order(
        self, market: str, side: str | Side, price: str | None, quantity: str, **options: Unpack[OrderOptions]
    ) -> OrderResult:
        """As :meth:`Market.submit`, with prices and quantities as decimal strings."""
        request = SubmitOrder(
            self._token,
            self._timeout_ms,
            market,
            as_word(side),
            price,
            quantity,
            as_word(options.get("order_type", OrderType.LIMIT)),
            as_word(options.get("time_in_force")),
            checked_expiry(options.get("expire_ns", 0)),
            as_word(options.get("self_trade_prevention", SelfTradePrevention.NONE)),
            *_named(options),
        )
        return self._command(request)

    def cancel_order(self, market: str, order_id: int, **options: Unpack[RequestOptions]) -> OrderResult:
        """As :meth:`Market.cancel`."""
        return self._command(CancelOrder(self._token, self._timeout_ms, market, order_id, *_named(options)))

    def cancel_all(self, market: str, **options: Unpack[RequestOptions]) -> OrderResult:
        """As :meth:`Market.cancel_all`."""
        return self._command(CancelOrder(self._token, self._timeout_ms, market, None, *_named(options)))

    def amend_order(
        self,
        market: str,
        order_id: int,
        *,
        price: str | None = None,
        quantity: str | None = None,
        **options: Unpack[RequestOptions],
    ) -> OrderResult:
        """As :meth:`Market.amend`, with prices and quantities as decimal strings."""
        named = _named(options)
        return self._command(AmendOrder(self._token, self._timeout_ms, market, order_id, price, quantity, *named))

    def book(self, market: str, *, depth: int = 10, known: int | None = None) -> dict[str, Any] | None:
        """Return the book as :class:`BookView` has it, or None while its sequence number is ``known``."""
        return cast("dict[str, Any] | None", self._query(GetBook(self._token, market, depth, known)))

    def trades(self, market: str, *, limit: int = 100) -> list[dict[str, Any]]:
        """Return the last trades, newest first."""
        return cast("list[dict[str, Any]]", self._query(GetTrades(self._token, market, limit)))

    def orders(self, market: str, *, account: str | None = None, limit: int = ITEMS_MAX) -> list[dict[str, Any]]:
        """Return the oldest ``limit`` open orders of an account (default: the node's own)."""
        return cast("list[dict[str, Any]]", self._query(GetOrders(self._token, market, account, limit)))

    def events(self, market: str, after: int | None) -> tuple[int, list[dict[str, Any]]]:
        """Return the node's sequence number, or that of the end of the page, and the events after ``after``."""
        found = self._query(GetEvents(self._token, market, after))
        return found["sequence"], found["events"]

    def status(self) -> dict[str, Any]:
        """Return the node's status."""
        return cast("dict[str, Any]", self._query(GetStatus(self._token)))

    def create_market(self, market: str, rules: MarketRules) -> None:
        """As :meth:`ExchangeNode.create_market`."""
        self._query(CreateMarket(self._token, self._timeout_ms, market, rules.to_tuple()))

    def markets(self) -> list[dict[str, Any]]:
        """Return every market: its name, whether the node has ``joined`` it and some node has ``opened`` it, and its
        ``rules`` as far as known.
        """
        return cast("list[dict[str, Any]]", self._query(ListMarkets(self._token)))

    def set_time(self, market: str, *, reason: str) -> dict[str, Any]:
        """As :meth:`ExchangeNode.set_time`."""
        return cast("dict[str, Any]", self._query(SetTime(self._token, self._timeout_ms, market, reason)))

    def transfer(self, market: str, to: str | None = None) -> str | None:
        """As :meth:`ExchangeNode.transfer`; return the id of the new leader, None if not known yet."""
        return cast("str | None", self._query(Transfer(self._token, self._timeout_ms, market, to)))

    def force_plan(self, market: str) -> dict[str, Any]:
        """As :meth:`ExchangeNode.force_plan`."""
        return cast("dict[str, Any]", self._query(GetForcePlan(self._token, market)))

    def force_leader(self, market: str, *, reason: str, plan: Mapping[str, Any]) -> int:
        """As :meth:`ExchangeNode.force_leader`, for a plan as :meth:`force_plan` returned it."""
        request = ForceLeader(self._token, self._timeout_ms, market, reason, plan["version"], plan["sequence"])
        return cast("int", self._query(request))

    def _command(self, request: Any) -> OrderResult:
        try:
            answer = self._ask(request, Result)
        except (LinkBroken, RequestTimeout) as error:
            text = f"{error.message}; this request's client order id is {request.client_order_id}"
            raise copied(error, text) from error
        result = OrderResult(
            answer.market,
            answer.sequence,
            answer.events,
            duplicate=answer.duplicate,
            state_sequence=answer.state_sequence,
            state_hash=answer.state_hash,
            rules=answer.rules,
            cancel_all=isinstance(request, CancelOrder) and request.order_id is None,
        )
        if result.code is not None:
            raise OrderRejected(result)
        return result

    def _query(self, request: Any) -> Any:
        return json.loads(self._ask(request, Value).body)

    def _ask(self, request: Any, wanted: type[_T]) -> _T:
        if self._closed:
            raise Closed("the control client is closed")
        try:
            REQUESTS.decode(frame := REQUESTS.encode(request))
        except ProtocolError as error:
            raise InvalidRequest(error.message) from error
        line = self._line
        if isinstance(request, GetStatus):
            # In a queue of its own: it must work when nothing else gets through.
            self._status_line = self._status_line or self._dial(self._control["status_address"])
            line = self._status_line
        try:
            answer = ANSWERS.decode(line.ask(frame, time.monotonic() + self._timeout_ms / 1000 + _LATE_S))
        except RequestTimeout:
            raise RequestTimeout(f"node {self.name} did not answer in time: the outcome is unknown") from None
        except LinkBroken as error:
            raise LinkBroken(f"node {self.name} has ended ({error.message}): the outcome is unknown") from error
        if isinstance(answer, Failure):
            raise ERRORS.get(answer.kind, OpenOutcryError)(answer.message, code=answer.code)
        if not isinstance(answer, wanted):
            raise ProtocolError(f"expected a {wanted.__name__}, got a {type(answer).__name__}")
        return answer


def _named(options: RequestOptions) -> tuple[str | None, str]:
    """Return the account and the client order id of a request: a new one, if it has none."""
    named = known(options, OrderOptions, "a request").get("client_order_id")
    return options.get("account"), fresh_id() if named is None else named


def fresh_id() -> str:
    """Return a client order id that nobody has used."""
    return uuid.uuid4().hex


class _Line:
    """One connection to the node, for one request and its answer at a time.

    It waits in short pieces, none of them in nng. So signals are handled, and a stopped node (its kernel still accepts
    connections) costs the caller its timeout, but leaves no nng socket in a handshake.
    """

    def __init__(self, address: str, deadline_s: float, ended: threading.Event) -> None:
        """Connect.

        Raises:
            RequestTimeout: there was no answer in time.
            LinkBroken: nothing listens there.
            Closed: ``ended`` was set.
        """
        self._ended = ended
        self._await_greeting(address, deadline_s)
        connected, self._gone = threading.Event(), threading.Event()
        self._socket = sockets.open_socket(pynng.Req0, recv_timeout_ms=_PIECE_MS, send_timeout_ms=_PIECE_MS)
        try:
            self._socket.resend_time = -1
            if self._socket.resend_time != -1:
                raise TransportError("nng did not accept resend_time=-1: a command might be sent twice")
            self._socket.add_post_pipe_connect_cb(lambda _: connected.set())
            self._socket.add_post_pipe_remove_cb(lambda _: self._gone.set())
            sockets.dial(self._socket, address)
            self._wait_for(connected.wait, deadline_s)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close it. Idempotent."""
        sockets.close_dialled(self._socket)

    def ask(self, frame: bytes, deadline_s: float) -> bytes:
        """Send ``frame`` and return the answer; raises as the constructor; the outcome is then unknown."""
        try:
            self._wait_for(lambda _: self._sent(frame), deadline_s)
            self._wait_for(lambda seconds: self._gone.is_set() or _readable(self._socket.recv_fd, seconds), deadline_s)
            return cast(
                "bytes", self._socket.recv_msg().bytes
            )  # does not wait: the answer is there, or the connection has ended
        except pynng.Timeout:
            raise LinkBroken("the connection has ended") from None
        except pynng.NNGException as error:
            raise LinkBroken(str(error)) from error

    def _sent(self, frame: bytes) -> bool:
        try:
            self._socket.send(frame)
        except pynng.Timeout:
            if self._gone.is_set():
                raise LinkBroken("the connection has ended") from None
            return False
        return True

    def _await_greeting(self, address: str, deadline_s: float) -> None:
        """Wait until the listener at ``address`` sends anything, as nng does on each connection."""
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        with socket.socket() as probe:
            probe.setblocking(False)
            code = probe.connect_ex((host, int(port)))
            if code == errno.EINPROGRESS:
                self._wait_for(lambda seconds: _readable(probe.fileno(), seconds), deadline_s)
                code = probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            try:
                if code:
                    raise OSError(code, os.strerror(code))
                self._wait_for(lambda seconds: _readable(probe.fileno(), seconds), deadline_s)
                if not probe.recv(1):
                    raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            except OSError as error:
                raise LinkBroken(error.strerror or str(error)) from error

    def _wait_for(self, done: Callable[[float], object], deadline_s: float) -> None:
        while not done(_PIECE_MS / 1000):
            if self._ended.is_set():
                raise Closed("the wait was given up")
            if time.monotonic() >= deadline_s:
                raise RequestTimeout("no answer in time")


def _readable(fd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def read_control_file(data_dir: Path) -> Mapping[str, Any] | None:
    """Return the control file of the node that runs on ``data_dir``, None if none runs.

    Raises:
        ConfigurationError: this user may not read the file, or the path is invalid (code ``bad_path``).
    """
    try:
        text = read_file(data_dir / CONTROL_FILE)
    except PermissionError as error:
        raise refusal(error, f"cannot read {data_dir / CONTROL_FILE}") from error
    except (OSError, ValueError):
        return None
    try:
        values = json.loads(text)
        pid, strings = values["pid"], [values[key] for key in ("name", "address", "status_address", "token")]
        if type(pid) is not int or pid < 1 or not all([isinstance(value, str) for value in strings]):
            return None
        if not all([_ADDRESS.fullmatch(values[key]) for key in ("address", "status_address")]):
            return None
        with contextlib.suppress(PermissionError):  # another user's: it runs
            os.kill(pid, 0)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return cast("Mapping[str, Any]", values)


def running_nodes(home: Path) -> dict[str, Path]:
    """Return the data directories below ``home`` whose nodes run and can be reached, by the node's name."""
    found = {}
    with contextlib.suppress(OSError, ValueError):  # there is no such folder
        for file in sorted(home.glob(f"nodes/*/{CONTROL_FILE}")):
            with contextlib.suppress(ConfigurationError):  # another user's
                control = read_control_file(file.parent)
                if control is not None:
                    found[str(control["name"])] = file.parent
    return found
