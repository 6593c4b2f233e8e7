"""ControlServer: a node's end of the control link: how the command line reaches it. Owns no market, keeps no state.

It writes ``control.json`` (process id, address, token) into the node's data directory and answers requests there with a
fixed number of threads. Only who can read the file has the token, and a request with another one is refused: a stale
file can reach nobody else's node.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hmac
import json
import os
import queue
import secrets
import threading
from typing import Any, Final, assert_never

import pynng

from ...transport import files, sockets
from ...transport.errors import InvalidRequest, OpenOutcryError, ProtocolError, Unavailable
from ...transport.forks import guard
from ...transport.interrupts import uninterrupted
from ...transport.log import get_logger
from ..market.border import RequestOptions
from ..market.views import MarketEvent, OrderRejected, as_json
from ..node import ExchangeNode
from .wire import (
    ANSWERS,
    CONTROL_FILE,
    ERRORS,
    ITEMS_MAX,
    REQUEST_SIZE_MAX,
    REQUESTS,
    AmendOrder,
    Answer,
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
    Request,
    Result,
    SetTime,
    SubmitOrder,
    Transfer,
    Value,
)

logger = get_logger(__name__)

WORKERS: Final = 4
"""Most requests served at once; others queue. Requests for a node's status have a queue of their own."""


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
        values = {"pid": os.getpid(), "name": self._node.name, "address": self.address, "token": self._token}
        values |= {"status_address": self._status_address, "metrics": self._node.metrics_address}
        with files.os_errors_as(f"{self._file} cannot be written"):
            scratch.unlink(missing_ok=True)
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
        answer: Answer
        try:
            request = REQUESTS.decode(frame)
            if not hmac.compare_digest(request.token.encode(), self._token.encode()):
                raise Unavailable(
                    "another node wrote the control file that was read; read it again, and retry", code="wrong_node"
                )
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

    def _execute(self, request: Request) -> Result | Value:
        match request:
            case SubmitOrder() | CancelOrder() | AmendOrder():
                return self._command(request)
            case Transfer() | SetTime() | CreateMarket() | GetForcePlan() | ForceLeader():
                found = self._operate(request)
            case _:
                found = self._query(request)
        return Value(json.dumps(as_json(found)).encode())

    def _command(self, request: SubmitOrder | CancelOrder | AmendOrder) -> Result:
        market, timeout = self._node.market(request.market), request.timeout_ms / 1000
        named = RequestOptions(account=request.account, client_order_id=request.client_order_id)
        try:
            match request:
                case SubmitOrder():
                    result = market.submit(
                        request.side,
                        request.price,
                        request.quantity,
                        timeout=timeout,
                        order_type=request.order_type,
                        time_in_force=request.time_in_force,
                        expire_ns=request.expire_ns,
                        self_trade_prevention=request.self_trade_prevention,
                        **named,
                    )
                case AmendOrder():
                    price, quantity = request.price, request.quantity
                    result = market.amend(request.order_id, price=price, quantity=quantity, timeout=timeout, **named)
                case CancelOrder():
                    if request.order_id is None:
                        result = market.cancel_all(timeout=timeout, **named)
                    else:
                        result = market.cancel(request.order_id, timeout=timeout, **named)
                case _:
                    assert_never(request)
        except OrderRejected as error:
            result = error.result
        return Result(
            result.market,
            result.sequence,
            result.duplicate,
            result.state_sequence,
            result.state_hash,
            market.rules.to_tuple(),
            tuple(result.raw_events),
        )

    def _operate(self, request: Transfer | SetTime | CreateMarket | GetForcePlan | ForceLeader) -> Any:
        node = self._node
        match request:
            case Transfer():
                node.transfer(request.market, request.to, timeout=request.timeout_ms / 1000)
                return node.market(request.market).status().leader
            case SetTime():
                return node.set_time(request.market, reason=request.reason, timeout=request.timeout_ms / 1000)
            case CreateMarket():
                return node.create_market(request.market, request.rules, timeout=request.timeout_ms / 1000)
            case GetForcePlan():
                return node.force_plan(request.market)
            case ForceLeader():
                plan = node.force_plan(request.market)
                agreed = dataclasses.replace(plan, version=request.version, sequence=request.sequence)
                timeout = request.timeout_ms / 1000
                return node.force_leader(request.market, reason=request.reason, plan=agreed, timeout=timeout)
            case _:
                assert_never(request)

    def _query(self, request: GetStatus | GetBook | GetTrades | GetOrders | GetEvents | ListMarkets) -> Any:
        node = self._node
        match request:
            case GetStatus():
                return node.status().to_dict()
            case GetTrades():
                return node.market(request.market).trades(request.limit)
            case GetOrders():
                return node.market(request.market).open_orders(request.account)[: request.limit]
            case GetEvents():
                return self._events(request)
            case ListMarkets():
                return self._markets()
            case GetBook():
                market = node.market(request.market)
                unchanged = request.known is not None and market.sequence == request.known
                return None if unchanged else market.book(request.depth)
            case _:
                assert_never(request)

    def _markets(self) -> list[dict[str, Any]]:
        joined, opened = self._node.markets, self._node.all_markets()
        found = []
        for market in sorted({*joined, *opened}):
            rules = None
            with contextlib.suppress(Unavailable, InvalidRequest):
                rules = self._node.market(market).rules
            found.append({"market": market, "joined": market in joined, "opened": market in opened, "rules": rules})
        return found

    def _events(self, request: GetEvents) -> dict[str, Any]:
        market = self._node.market(request.market)
        if request.after is None:
            return {"sequence": market.sequence, "events": []}
        subscription = market.subscribe(after=request.after)
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
    kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__name__ in ERRORS]
    return Failure(kinds[0], error.code[:64], error.message[:1000])
