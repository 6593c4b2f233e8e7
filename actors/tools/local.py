"""An exchange on this machine, for a demonstration or a soak: node processes like those of the command line, and bots.

Owns its processes and threads: :meth:`LocalExchange.close` ends them all, and nodes end by themselves if this process
ends. All files are in one folder: the coordinator, and for each node its data and its log, ``NAME.log``, as JSON.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ...transport.errors import OpenOutcryError, RequestTimeout, Unavailable
from ...transport.forks import guard
from ...transport.identity_file import certificates
from ...transport.numerals import written
from ...transport.rendezvous import Rendezvous
from ..control.client import ControlClient, read_control_file
from ..market.views import OrderRejected, OrderResult
from .config import ENV_PREFIX

if TYPE_CHECKING:
    from ...transport.certificates import Authority

START_S_MAX: Final = 60.0
STOP_S_MAX: Final = 40.0
"""Seconds from SIGTERM until a node is killed; longer than its own limit."""
_POLL_S: Final = 0.05
_WORDS_MAX: Final = 500


class LocalExchange:
    """A rendezvous in this process, and node processes to stop, kill and restart."""

    def __init__(
        self, folder: Path, *, markets: Sequence[str], options: Sequence[str] = (), identities: bool = False
    ) -> None:
        """``markets``: as the command line's ``--market``. ``options``: further ones of ``openoutcry node``, for all
        nodes.

        ``identities``: each node has one and may act for every account, since the bots have accounts of their own.
        """
        guard(self)
        self.folder = folder
        self.markets = tuple([market.partition(":")[0] for market in markets])
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        """The latest process of each started node, by its name."""
        self._options = [*[part for market in markets for part in ("--market", market)], *options]
        self._authority: Authority | None = None
        if identities:
            made = certificates()
            self._authority = made.Authority.create(folder / "authority")
            identity = made.Identity(self._authority.issue("rendezvous"))
            self._rendezvous = Rendezvous("tls+tcp://127.0.0.1:0", identity=identity)
        else:
            self._rendezvous = Rendezvous("tcp://127.0.0.1:0")
        self._rendezvous.start()

    def __enter__(self) -> LocalExchange:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def data_dir(self, name: str) -> Path:
        """Return a node's data directory."""
        return self.folder / name

    def start(self, name: str) -> None:
        """Start a node; returns at once."""
        command = [
            sys.executable,
            "-m",
            "openoutcry.actors.cli",
            "node",
            "--name",
            name,
            "--exit-with",
            str(os.getpid()),
        ]
        command += ["--directory", self._rendezvous.address, "--data-dir", str(self.data_dir(name))]
        command += ["--coordinator", str(self.folder / "coordinator.sqlite")]
        command += ["--log-format", "json", "--log-file", str(self.folder / f"{name}.log"), *self._options]
        if self._authority is not None:
            file = self.folder / f"{name}.pem"
            if not file.exists():
                self._authority.issue_file(file, name, accounts=["*"])
            command += ["--identity", str(file)]
        with (self.folder / f"{name}.err").open("ab") as errors:
            # In a session of its own: Ctrl-C reaches only this process, which then ends the nodes in order.
            self.processes[name] = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
                env=self._environment(),
            )

    def _environment(self) -> dict[str, str]:
        """Return the environment of a node's process, without the user's own settings of nodes."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(ENV_PREFIX)}
        return {**kept, f"{ENV_PREFIX}HOME": str(self.folder)}

    def last_words(self, name: str) -> str:
        """Return the last line that a node's process wrote to stderr, else to its log; empty if there is none."""
        for file in (self.folder / f"{name}.err", self.folder / f"{name}.log"):
            with contextlib.suppress(OSError):
                lines = file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                if lines:
                    return f"{lines[-1]:.{_WORDS_MAX}}"
        return ""

    def stop(self, name: str) -> int:
        """End a node in order and return its exit code, or -9 if it had to be killed."""
        self.processes[name].send_signal(signal.SIGTERM)
        return self._wait(name)

    def kill(self, name: str) -> None:
        """End a node by SIGKILL."""
        self.processes[name].kill()
        self.processes[name].wait()

    def alive(self) -> list[str]:
        """Return the nodes whose processes run."""
        return [name for name, process in self.processes.items() if process.poll() is None]

    def client(self, name: str, *, timeout: float = 5.0) -> ControlClient:
        """Return a link to a node.

        Raises:
            Unavailable: it does not run, or is not ready yet (code ``node_not_running``).
        """
        control = read_control_file(self.data_dir(name))
        if control is None or control["pid"] != self.processes[name].pid:
            raise Unavailable(f"node {name} does not run", code="node_not_running")
        return ControlClient(self.data_dir(name), timeout=timeout)

    def status(self, name: str) -> dict[str, Any] | None:
        """Return a node's status, None if it does not answer."""
        try:
            with self.client(name, timeout=2.0) as client:
                return client.status()
        except OpenOutcryError:
            return None

    def wait_in_sync(self, *, within_s: float = START_S_MAX) -> None:
        """Wait until every node has every market ready, and all of them are in sync.

        Raises:
            RequestTimeout: it took too long, or a process has ended.
        """
        deadline_s = time.monotonic() + within_s
        while not all([self._in_sync(name) for name in self.processes]):
            ended = set(self.processes) - set(self.alive())
            if ended or time.monotonic() > deadline_s:
                if not ended:
                    what = f"not all in sync after {written(within_s)} s: see the logs in {self.folder}"
                else:
                    what = "; ".join([f"{name} ended: {self.last_words(name)}" for name in sorted(ended)])
                raise RequestTimeout(what, code="not_ready")
            time.sleep(_POLL_S)

    def _in_sync(self, name: str) -> bool:
        found = self.status(name)
        return found is not None and all(
            [market["ready"] and len(market["in_sync"]) == len(self.processes) for market in found["markets"].values()]
        )

    def wait_same_sequence(self, market: str) -> dict[str, tuple[int, str]]:
        """Wait until all nodes are at one sequence number; return each one's sequence number and state hash.

        Raises:
            RequestTimeout: it took too long.
        """
        deadline_s = time.monotonic() + START_S_MAX
        while True:
            found = {name: self.status(name) for name in self.processes}
            ends = {
                name: (status["markets"][market]["applied"], status["markets"][market]["state_hash"])
                for name, status in found.items()
                if status is not None and "applied" in status["markets"][market]
            }
            if len(ends) == len(found) and len({sequence for sequence, _ in ends.values()}) == 1:
                return ends
            if time.monotonic() > deadline_s:
                raise RequestTimeout(f"the nodes do not come to one sequence number: {ends}", code="not_settled")
            time.sleep(_POLL_S)

    def close(self) -> dict[str, int]:
        """End all nodes in order, at the same time; return their exit codes. Idempotent."""
        for name in self.alive():
            self.processes[name].send_signal(signal.SIGTERM)
        codes = {name: self._wait(name) for name in self.processes}
        self._rendezvous.close()
        return codes

    def _wait(self, name: str) -> int:
        process = self.processes[name]
        try:
            return process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


class Bot:
    """A trader on a thread of its own: quotes around a moving price, sometimes takes, and cancels old orders.

    If its node ends, it uses another, and retries lost requests with the same client order id.
    """

    def __init__(
        self,
        exchange: LocalExchange,
        name: str,
        market: str,
        *,
        orders_per_s: float,
        seed: int = 0,
        remember: bool = False,
    ) -> None:
        self.name = name
        self.answered = 0
        """Submitted orders that were answered."""
        self.acked: list[tuple[int, str]] = []
        """``(sequence, client order id)`` of each, if ``remember`` is set: it grows without bound."""
        self._remember = remember
        self.failures = 0
        """Requests that failed and were retried."""
        self._exchange = exchange
        self._market = market
        self._pause_s = 1 / orders_per_s
        self._chance = random.Random(f"{name}/{seed}")  # noqa: S311
        self._price = Decimal(100)
        self._open: deque[int] = deque()
        self._client: ControlClient | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._trade, name=name, daemon=True)

    def start(self) -> None:
        """Begin to trade."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the current request, and end. Idempotent."""
        self._stopping.set()
        self._thread.join()

    def _trade(self) -> None:
        number = 0
        next_s = time.monotonic()
        while not self._stopping.is_set():
            number += 1
            self._submit(f"{self.name}-{number}")
            if len(self._open) > 20:
                self._cancel(self._open.popleft(), f"{self.name}-c{number}")
            next_s = max(next_s + self._pause_s, time.monotonic() - 1)
            self._stopping.wait(max(0.0, next_s - time.monotonic()))
        if self._client is not None:
            self._client.close()

    def _submit(self, named: str) -> None:
        chance = self._chance
        self._price = min(max(self._price + Decimal(chance.randint(-5, 5)) / 100, Decimal(50)), Decimal(150))
        side = chance.choice(("buy", "sell"))
        away = Decimal(chance.choice((-10, 1, 2, 5, 10, 20))) / 100  # one in six crosses
        price = str(self._price - away if side == "buy" else self._price + away)
        quantity = str(Decimal(chance.randint(1, 100)) / 100)
        result = self._ask(
            lambda client: client.submit_order(
                self._market, side, price, quantity, account=self.name, client_order_id=named
            )
        )
        if result is not None:
            self.answered += 1
            if self._remember:
                self.acked.append((result.sequence, named))
            if result.status == "resting" and result.order_id is not None:
                self._open.append(result.order_id)

    def _cancel(self, order_id: int, named: str) -> None:
        self._ask(lambda client: client.cancel_order(self._market, order_id, account=self.name, client_order_id=named))

    def _ask(self, call: Any) -> OrderResult | None:
        """Return the answer to a request; retry at this node or another until there is one or the bot is stopped."""
        while True:
            try:
                if self._client is None:
                    self._client = self._exchange.client(self._chance.choice(list(self._exchange.processes)))
                answer: OrderResult = call(self._client)
            except OrderRejected:
                return None  # an order that was filled meanwhile cannot be cancelled
            except OpenOutcryError:
                self.failures += 1
                with contextlib.suppress(OpenOutcryError):
                    if self._client is not None:
                        self._client.close()
                self._client = None
                if self._stopping.wait(_POLL_S):
                    return None
            else:
                return answer
