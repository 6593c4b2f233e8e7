"""The local control link: how the command line reaches a running node on this machine. Owns no market, keeps no state.

:class:`ControlServer` writes ``control.json`` (process id, address, token) into the node's data directory and answers
requests there with a fixed number of threads; :class:`ControlClient` finds it by that file. Only users who can read
the file have the token. A request with another token is refused, so a stale file cannot reach another node.

The link is nng's Req/Rep with re-sending switched off (by default Req repeats a request silently). A client that gets
no answer does not know the outcome; every command carries a client order id, so repeating it is safe.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hmac
import json
import os
import queue
import re
import secrets
import select
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, cast

import pynng

from ...transport import errors, sockets
from ...transport.codec import Array, Bool, Bytes, Codec, Int, Optional, Str
from ...transport.errors import (
    Closed,
    ConfigurationError,
    InvalidRequest,
    InvariantBroken,
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
from ...transport.interrupts import uninterrupted
from ...transport.log import get_logger
from ...transport.numerals import written
from ..book.commands import Event
from ..book.rules import MarketRules
from ..market.border import ExpiryLike, checked_expiry
from ..market.views import MarketEvent, OrderRejected, OrderResult, as_json
from ..node import REASON_LENGTH_MAX, ExchangeNode

logger = get_logger(__name__)

CONTROL_FILE: Final = "control.json"
WORKERS: Final = 4
"""Most requests served at once; others queue. Requests for a node's status have a queue of their own."""
TIMEOUT_MS_MAX: Final = 60_000
REQUEST_SIZE_MAX: Final = 16 * 1024
ITEMS_MAX: Final = 10_000
"""Most levels, trades, orders or events of one answer."""
_LATE_S: Final = 0.5
"""Seconds that a client waits for the answer beyond its timeout; after that the outcome is unknown."""
_PIECE_MS: Final = 100
"""Longest single wait of a client in milliseconds: in between it checks for signals and for its end."""
_ADDRESS: Final = re.compile(r"tcp://127\.0\.0\.1:[0-9]{1,5}")

Token = Annotated[str, Str(64, 1)]
Name = Annotated[str, Str(255, 1)]
Name_ = Annotated[str | None, Optional(Str(255, 1))]
Number = Annotated[str, Str(64, 1)]
Number_ = Annotated[str | None, Optional(Str(64, 1))]
Limit = Annotated[int, Int(1, ITEMS_MAX)]
Timeout = Annotated[int, Int(1, TIMEOUT_MS_MAX)]


def _rules(value: Any, _name: str) -> MarketRules:
    return MarketRules.from_tuple(value)


# -- requests: the arguments of ExchangeNode's methods; a price or quantity is a decimal string ----------------------


@dataclasses.dataclass(frozen=True, slots=True)
class SubmitOrder:
    """:meth:`ExchangeNode.submit_order`."""

    token: Token
    timeout_ms: Timeout
    market: Name
    side: Name
    price: Number_
    quantity: Number
    order_type: Name
    time_in_force: Name_
    expire_ns: Annotated[int, Int()]
    self_trade_prevention: Name
    account: Name_
    client_order_id: Name


@dataclasses.dataclass(frozen=True, slots=True)
class CancelOrder:
    """:meth:`ExchangeNode.cancel_order`; without an order id :meth:`ExchangeNode.cancel_all`."""

    token: Token
    timeout_ms: Timeout
    market: Name
    order_id: Annotated[int | None, Optional(Int(1))]
    account: Name_
    client_order_id: Name


@dataclasses.dataclass(frozen=True, slots=True)
class AmendOrder:
    """:meth:`ExchangeNode.amend_order`."""

    token: Token
    timeout_ms: Timeout
    market: Name
    order_id: Annotated[int, Int(1)]
    price: Number_
    quantity: Number_
    account: Name_
    client_order_id: Name


@dataclasses.dataclass(frozen=True, slots=True)
class GetBook:
    """:meth:`ExchangeNode.get_order_book`, or null while the node is at sequence ``known``."""

    token: Token
    market: Name
    depth: Limit
    known: Annotated[int | None, Optional(Int())]


@dataclasses.dataclass(frozen=True, slots=True)
class GetTrades:
    """:meth:`ExchangeNode.trades`."""

    token: Token
    market: Name
    limit: Limit


@dataclasses.dataclass(frozen=True, slots=True)
class GetOrders:
    """:meth:`ExchangeNode.open_orders`, the oldest ``limit`` of them."""

    token: Token
    market: Name
    account: Name_
    limit: Limit


@dataclasses.dataclass(frozen=True, slots=True)
class GetEvents:
    """Events applied after sequence ``after``, without waiting; None: only the current sequence number."""

    token: Token
    market: Name
    after: Annotated[int | None, Optional(Int())]


@dataclasses.dataclass(frozen=True, slots=True)
class GetStatus:
    """:meth:`ExchangeNode.status`."""

    token: Token


@dataclasses.dataclass(frozen=True, slots=True)
class Transfer:
    """:meth:`ExchangeNode.transfer`; answers the new leader."""

    token: Token
    timeout_ms: Timeout
    market: Name
    to: Name_


@dataclasses.dataclass(frozen=True, slots=True)
class SetClock:
    """:meth:`ExchangeNode.set_time`; answers its result."""

    token: Token
    timeout_ms: Timeout
    market: Name
    reason: Annotated[str, Str(REASON_LENGTH_MAX)]


@dataclasses.dataclass(frozen=True, slots=True)
class CreateMarket:
    """:meth:`ExchangeNode.create_market`; answers null."""

    token: Token
    timeout_ms: Timeout
    market: Name
    rules: Annotated[Any, _rules]
    """On the wire :meth:`MarketRules.to_tuple`."""


@dataclasses.dataclass(frozen=True, slots=True)
class ListMarkets:
    """Every market that the node has joined or the coordinator lists: ``market``, ``joined``, ``opened`` (the
    coordinator lists it: some node has opened it), ``rules`` if known.
    """

    token: Token


@dataclasses.dataclass(frozen=True, slots=True)
class GetForcePlan:
    """:meth:`ExchangeNode.force_plan`."""

    token: Token
    market: Name


@dataclasses.dataclass(frozen=True, slots=True)
class ForceLeader:
    """:meth:`ExchangeNode.force_leader`, if the plan still has the same version and sequence."""

    token: Token
    timeout_ms: Timeout
    market: Name
    reason: Annotated[str, Str(REASON_LENGTH_MAX, 1)]
    version: Annotated[int, Int(1)]
    sequence: Annotated[int, Int()]


# -- answers -----------------------------------------------------------------------------------------------------------


def _event(value: Any, name: str) -> Event:
    if type(value) is not tuple or len(value) < 3 or type(value[0]) is not int:
        raise ProtocolError(f"{name}: not an event")
    return value


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """An :class:`OrderResult`, also of a rejection."""

    market: Name
    sequence: Annotated[int, Int()]
    duplicate: Annotated[bool, Bool()]
    state_sequence: Annotated[int, Int()]
    state_hash: Annotated[str, Str(128)]
    rules: Annotated[Any, _rules]
    """On the wire :meth:`MarketRules.to_tuple`."""
    events: Annotated[tuple[Event, ...], Array(_event)]


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """The answer to a query: the result of :func:`as_json`, as JSON in UTF-8."""

    body: Annotated[bytes, Bytes()]


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """The exception that the request raised."""

    kind: Annotated[str, Str(64)]
    """The name of its class in :mod:`openoutcry.transport.errors`."""
    code: Annotated[str, Str(64)]
    message: Annotated[str, Str(1000)]


REQUESTS: Final[Codec[Any]] = Codec(
    {
        1: SubmitOrder,
        2: CancelOrder,
        3: AmendOrder,
        4: GetBook,
        5: GetTrades,
        6: GetOrders,
        7: GetEvents,
        8: GetStatus,
        9: Transfer,
        11: CreateMarket,
        12: ListMarkets,
        13: GetForcePlan,
        14: ForceLeader,
        15: SetClock,
    }
)
ANSWERS: Final[Codec[Any]] = Codec({17: Result, 18: Value, 19: Failure})
_ERRORS: Final[dict[str, type[OpenOutcryError]]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, OpenOutcryError)
}


# -- the node's side ---------------------------------------------------------------------------------------------------


class ControlServer:
    """Serves one node's control link from construction until :meth:`close`.

    To stop soon and in order: call :meth:`withdraw`, close the node (its waiting calls fail), then :meth:`close`.
    """

    def __init__(self, node: ExchangeNode) -> None:
        self._node = node
        self._file = node.data_dir / CONTROL_FILE
        self._token = secrets.token_hex(16)
        self._stopping = threading.Event()
        self._closed = False
        guard(self)
        self._sockets: list[Any] = []
        self._contexts: list[Any] = []
        try:
            self.address = self._listen(WORKERS)
            self._status_address = self._listen(1)
            self._write_file()
        except BaseException:
            self._close_sockets()
            raise
        self._threads = [
            threading.Thread(target=self._serve, args=(context,), name=f"{node.name}-control-{at}", daemon=True)
            for at, context in enumerate(self._contexts)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> ControlServer:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def withdraw(self) -> None:
        """Remove the file, so that no new client connects, and refuse further requests. Idempotent."""
        if not self._stopping.is_set():
            self._stopping.set()
            with contextlib.suppress(FileNotFoundError):
                self._file.unlink()

    def close(self) -> None:
        """Withdraw, answer the current requests, join the threads, then close the socket. Idempotent."""
        uninterrupted(self._close)

    def _close(self) -> None:
        self.withdraw()
        if self._closed:
            return
        self._closed = True
        for thread in self._threads:
            thread.join()
        self._close_sockets()

    def _listen(self, workers: int) -> str:
        socket = sockets.open_socket(pynng.Rep0, frame_size_max=REQUEST_SIZE_MAX)
        self._sockets.append(socket)
        address = sockets.listen(socket, "tcp://127.0.0.1:0")
        self._contexts += [socket.new_context() for _ in range(workers)]
        return address

    def _close_sockets(self) -> None:
        for opened in (*self._contexts, *self._sockets):
            opened.close()

    def _write_file(self) -> None:
        scratch = self._file.with_suffix(".new")
        scratch.unlink(missing_ok=True)
        values = {"pid": os.getpid(), "name": self._node.name, "address": self.address, "token": self._token}
        values |= {"status_address": self._status_address, "metrics": self._node.metrics_address}
        with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(values, file)
        scratch.replace(self._file)

    def _serve(self, context: Any) -> None:
        while not self._stopping.is_set():
            try:
                frame = context.recv_msg().bytes
            except pynng.Timeout:
                continue
            except pynng.NNGException:
                logger.exception("receive_failed", node=self._node.node_id, address=self.address)
                self._stopping.wait(0.1)
                continue
            answer = self._answer(frame)
            try:
                context.send(answer)
            except pynng.NNGException as error:
                logger.warning("control_unread", node=self._node.node_id, error=error)

    def _answer(self, frame: bytes) -> bytes:
        answer: Result | Value | Failure
        try:
            request = REQUESTS.decode(frame)
            if not hmac.compare_digest(request.token.encode(), self._token.encode()):
                raise Unavailable("this is not the node that the control file was written by", code="wrong_node")
            answer = self._execute(request)
        except OpenOutcryError as error:
            answer = _failure(error)
        except Exception as error:
            logger.exception("control_failed", node=self._node.node_id)
            answer = _failure(OpenOutcryError(f"the node failed to serve the request: {error!r}", code="internal"))
        try:
            return ANSWERS.encode(answer)
        except ProtocolError as error:
            if not isinstance(answer, Result):
                return ANSWERS.encode(_failure(error))
            # The command was executed, even if its answer cannot be sent: say so, without its events.
            return ANSWERS.encode(
                _failure(OpenOutcryError(f"executed at sequence {answer.sequence}; {error}", code="answer_too_large"))
            )

    def _execute(self, request: Any) -> Result | Value:
        if isinstance(request, (SubmitOrder, CancelOrder, AmendOrder)):
            try:
                result = self._command(request)
            except OrderRejected as error:
                result = error.result
            return Result(
                result.market,
                result.sequence,
                result.duplicate,
                result.state_sequence,
                result.state_hash,
                self._node.rules(result.market).to_tuple(),
                tuple(result.raw_events),
            )
        return Value(json.dumps(as_json(self._query(request))).encode())

    def _command(self, request: SubmitOrder | CancelOrder | AmendOrder) -> OrderResult:
        values = {field.name: getattr(request, field.name) for field in dataclasses.fields(request)}
        del values["token"]
        values["timeout"] = values.pop("timeout_ms") / 1000
        if isinstance(request, SubmitOrder):
            return self._node.submit_order(**values)
        if isinstance(request, AmendOrder):
            return self._node.amend_order(**values)
        if request.order_id is not None:
            return self._node.cancel_order(**values)
        del values["order_id"]
        return self._node.cancel_all(**values)

    def _query(self, request: Any) -> Any:
        node = self._node
        if isinstance(request, GetStatus):
            return node.status()
        if isinstance(request, GetTrades):
            return node.trades(request.market, request.limit)
        if isinstance(request, GetOrders):
            return node.open_orders(request.market, request.account)[: request.limit]
        if isinstance(request, GetEvents):
            return self._events(request)
        if isinstance(request, SetClock):
            return node.set_time(request.market, reason=request.reason, timeout=request.timeout_ms / 1000)
        if isinstance(request, Transfer):
            node.transfer(request.market, request.to, timeout=request.timeout_ms / 1000)
            return node.status()["markets"][request.market]["leader"]
        if isinstance(request, CreateMarket):
            return node.create_market(request.market, request.rules, timeout=request.timeout_ms / 1000)
        if isinstance(request, ListMarkets):
            return self._markets()
        if isinstance(request, GetForcePlan):
            return node.force_plan(request.market)
        if isinstance(request, ForceLeader):
            plan = dataclasses.replace(
                node.force_plan(request.market), version=request.version, sequence=request.sequence
            )
            timeout = request.timeout_ms / 1000
            return node.force_leader(request.market, reason=request.reason, plan=plan, timeout=timeout)
        if not isinstance(request, GetBook):
            raise InvariantBroken(f"unknown request {type(request).__name__}")
        if request.known is not None and node.sequence(request.market) == request.known:
            return None
        return node.get_order_book(request.market, request.depth)

    def _markets(self) -> list[dict[str, Any]]:
        joined, opened = self._node.markets, self._node.all_markets()
        found = []
        for market in sorted({*joined, *opened}):
            rules = None
            with contextlib.suppress(Unavailable, InvalidRequest):
                rules = self._node.rules(market)
            found.append({"market": market, "joined": market in joined, "opened": market in opened, "rules": rules})
        return found

    def _events(self, request: GetEvents) -> dict[str, Any]:
        if request.after is None:
            return {"sequence": self._node.sequence(request.market), "events": []}
        subscription = self._node.subscribe(request.market, after=request.after)
        try:
            sequence = request.after
            events: list[MarketEvent] = []
            with contextlib.suppress(queue.Empty):
                while len(events) < ITEMS_MAX and (update := subscription.get(timeout=0)) is not None:
                    sequence = update.sequence
                    events += update.events
        finally:
            subscription.close()
        if len(events) > ITEMS_MAX:  # cut between two commands
            sequence = max(events[ITEMS_MAX].sequence - 1, events[0].sequence)
            events = [event for event in events if event.sequence <= sequence]
        return {"sequence": sequence, "events": events}


def _failure(error: OpenOutcryError) -> Failure:
    kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _ERRORS]
    return Failure(kinds[0], error.code[:64], error.message[:1000])


# -- the command line's side -------------------------------------------------------------------------------------------

_T = TypeVar("_T")


class ControlClient:
    """Talks to the node that runs on a data directory. Used by one thread at a time; ``timeout`` is in seconds.

    Methods are those of :class:`ExchangeNode` and raise what they raise; commands return an :class:`OrderResult`,
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
        self,
        market: str,
        side: str,
        price: str | None,
        quantity: str,
        *,
        order_type: str = "limit",
        time_in_force: str | None = None,
        expire_ns: ExpiryLike = 0,
        self_trade_prevention: str = "none",
        account: str | None = None,
        client_order_id: str | None = None,
    ) -> OrderResult:
        """As :meth:`ExchangeNode.submit_order`."""
        named = fresh_id() if client_order_id is None else client_order_id
        return self._command(
            SubmitOrder(
                self._token,
                self._timeout_ms,
                market,
                side,
                price,
                quantity,
                order_type,
                time_in_force,
                checked_expiry(expire_ns),
                self_trade_prevention,
                account,
                named,
            )
        )

    def cancel_order(
        self, market: str, order_id: int, *, account: str | None = None, client_order_id: str | None = None
    ) -> OrderResult:
        """As :meth:`ExchangeNode.cancel_order`."""
        named = fresh_id() if client_order_id is None else client_order_id
        return self._command(CancelOrder(self._token, self._timeout_ms, market, order_id, account, named))

    def cancel_all(self, market: str, *, account: str | None = None, client_order_id: str | None = None) -> OrderResult:
        """As :meth:`ExchangeNode.cancel_all`."""
        named = fresh_id() if client_order_id is None else client_order_id
        return self._command(CancelOrder(self._token, self._timeout_ms, market, None, account, named))

    def amend_order(
        self,
        market: str,
        order_id: int,
        *,
        price: str | None = None,
        quantity: str | None = None,
        account: str | None = None,
        client_order_id: str | None = None,
    ) -> OrderResult:
        """As :meth:`ExchangeNode.amend_order`."""
        named = fresh_id() if client_order_id is None else client_order_id
        return self._command(
            AmendOrder(self._token, self._timeout_ms, market, order_id, price, quantity, account, named)
        )

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
        return cast("dict[str, Any]", self._query(SetClock(self._token, self._timeout_ms, market, reason)))

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
            raise LinkBroken(f"node {self.name} has gone ({error.message}): the outcome is unknown") from error
        if isinstance(answer, Failure):
            raise _ERRORS.get(answer.kind, OpenOutcryError)(answer.message, code=answer.code)
        if not isinstance(answer, wanted):
            raise ProtocolError(f"expected a {wanted.__name__}, got a {type(answer).__name__}")
        return answer


def fresh_id() -> str:
    """Return a client order id that nobody has used."""
    return uuid.uuid4().hex


class _Line:
    """One connection to the node, for one request and its answer at a time.

    It waits in short pieces, none of them in nng. So signals are handled, and a stopped node (its kernel still accepts
    connections) costs its timeout, but leaves no nng socket in a handshake.
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
            return cast("bytes", self._socket.recv_msg().bytes)  # at once: there is an answer, or none to come
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
    with contextlib.suppress(OSError, ValueError):  # nobody's home
        for file in sorted(home.glob(f"nodes/*/{CONTROL_FILE}")):
            with contextlib.suppress(ConfigurationError):  # another user's
                control = read_control_file(file.parent)
                if control is not None:
                    found[str(control["name"])] = file.parent
    return found
