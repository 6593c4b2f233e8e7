"""NodeProcess: a node in a process of its own, for tests that kill it; its methods are called over a pipe.

Part of the test kit: parent and process trust each other, so arguments and results are pickled.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from typing import Any, Final

from ...transport.errors import present, quoted
from ...transport.forks import guard
from ...transport.numerals import written

STOP_S: Final = 30.0
"""Seconds for a process to shut down before it is killed."""
START_S: Final = 60.0
"""Seconds for a node to start."""
CALL_S: Final = 120.0
"""Seconds for a call before the process counts as stuck and is killed."""


def _context() -> SpawnContext | ForkServerContext:
    """Return how processes are started: never by a fork of this one, in which nng could not be used."""
    if multiprocessing.get_start_method(allow_none=True) == "forkserver":
        return multiprocessing.get_context("forkserver")
    return multiprocessing.get_context("spawn")


class NodeProcess:
    """A running node that is another process; it takes the methods of :class:`~..node.ExchangeNode` and passes them on.

    Arguments and results must be picklable: to start actors there or to subscribe, give :meth:`run` a function. One
    call at a time; calls of several threads queue. :func:`report` sends news from the process, also between calls.
    """

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any],
        *,
        prepare: Callable[[], object] | None = None,
        on_report: Callable[[Any], object] | None = None,
        patient: bool = False,
        wait: bool = True,
    ) -> None:
        """Start the process, and its node in it.

        Args:
            name: the node's name.
            options: of the :class:`~..node.ExchangeNode`.
            prepare: called in the process before the node is created; a function of a module, or a ``partial`` of one.
            on_report: receives the reports of the process, on a thread of its own, in order, until its end.
            patient: a call may take any time, as long as the process reports something within each 120 s.
            wait: False returns before the node runs; call :meth:`wait_started` then, before anything else.
        """
        self.name = name
        self._on_report = on_report
        self._patient = patient
        self._reported_s = -math.inf
        self._calls = threading.Lock()
        guard(self)
        self._answers: queue.SimpleQueue[tuple[bool, Any] | None] = queue.SimpleQueue()
        context = _context()
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, dict(options), prepare, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._reader = threading.Thread(target=self._read, name=f"pipe of {name}", daemon=True)
        self._reader.start()
        if wait:
            self.wait_started()

    def wait_started(self) -> None:
        """Wait until the node runs; raise its error if it fails."""
        try:
            self.node_id, self.listen_address, self.address = self._receive(START_S)
        except EOFError:
            self.kill()
            raise AssertionError(f"{self!r} ended before its node ran") from None
        except BaseException:
            self.kill()
            raise

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self._call((name, args, kwargs))

    def __repr__(self) -> str:
        return f"<NodeProcess {self.name}, process {self.pid}{'' if self.is_alive() else ' (ended)'}>"

    @property
    def pid(self) -> int:
        """The process's id."""
        return present(self._process.pid, "the process was never started")

    def is_alive(self) -> bool:
        """Return whether the process runs."""
        return self._process.is_alive()

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call ``function(node, *args, **kwargs)`` in the process, and return its result or raise its exception.

        It must be a function of a module, not a nested one. The process waits for it.
        """
        return self._call((function, args, kwargs))

    def kill(self) -> None:
        """``kill -9`` it, and wait until it has ended and its reports were received. Idempotent."""
        self._process.kill()
        self.wait_ended(None)

    def wait_ended(self, within: float | None) -> None:
        """Wait until the process has ended by itself, and its reports were received.

        Raises:
            AssertionError: it has not, ``within`` seconds.
        """
        self._process.join(within)
        if self.is_alive():
            raise AssertionError(f"{self!r} was to end")
        self._reader.join(STOP_S)

    def pause(self) -> None:
        """Stop it in its tracks (SIGSTOP), as if its machine hung."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Continue it after :meth:`pause`."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Close the node in order and wait for its process; kill it if that takes too long. Idempotent."""
        if self.is_alive():
            self.resume()
        if self._calls.acquire(timeout=STOP_S):
            with contextlib.suppress(OSError):
                self._pipe.send(None)
            self._calls.release()
            self._process.join(STOP_S)
        if self.is_alive():
            self.kill()
        self._reader.join(STOP_S)

    def _call(self, what: tuple[Any, ...]) -> Any:
        with self._calls:
            try:
                self._send(what)
                return self._receive(CALL_S)
            except (EOFError, BrokenPipeError, ConnectionResetError):
                self._process.join(STOP_S)  # its pipe is closed a moment before it has ended
                raise AssertionError(f"{self!r} ended before it answered") from None

    def _send(self, what: tuple[Any, ...]) -> None:
        """Send; kill a process that does not read, which ends a blocked send."""
        unread = threading.Timer(CALL_S, self._process.kill)
        unread.daemon = True
        unread.start()
        try:
            self._pipe.send(what)
        finally:
            unread.cancel()

    def _receive(self, timeout_s: float) -> Any:
        try:
            answer = self._answer(timeout_s)
        except queue.Empty:
            self.kill()  # a late answer would be mistaken for that of the next call
            raise AssertionError(f"{self.name} did not answer within {written(timeout_s)} s, and was killed") from None
        if answer is None:
            self._answers.put(None)  # for the next call
            raise EOFError
        well, value = answer
        if not well:
            raise value
        return value

    def _answer(self, timeout_s: float) -> tuple[bool, Any] | None:
        left_s = timeout_s
        while True:
            try:
                return self._answers.get(timeout=left_s)
            except queue.Empty:
                left_s = self._reported_s + timeout_s - time.monotonic()
                if not self._patient or left_s <= 0:
                    raise

    def _read(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                kind, value = self._pipe.recv()
                if kind != "report":
                    self._answers.put((kind == "answer", value))
                    continue
                self._reported_s = time.monotonic()
                if self._on_report is not None:
                    self._on_report(value)
        self._answers.put(None)


class _Sender:
    """The way from a node's process to its test: each message whole, of any thread."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._one_at_a_time = threading.Lock()

    def send(self, kind: str, value: Any) -> None:
        try:
            whole = pickle.dumps((kind, value))
            pickle.loads(whole)  # noqa: S301 (our own: some exceptions can be pickled but not made again)
        except Exception as error:
            what = f"a {type(value).__qualname__}, which cannot be passed on: {error!r}"
            what = quoted(value, 500) if kind == "failed" else what
            whole = pickle.dumps(("failed", AssertionError(f"the node's process answered with {what}")))
        with contextlib.suppress(OSError), self._one_at_a_time:
            self._pipe.send_bytes(whole)


_to_test: _Sender | None = None


def report(value: Any) -> None:
    """Send ``value`` from within a node's process to its test: to ``on_report``. Callable from any thread there.

    What was reported is not lost when the process is killed a moment later.
    """
    present(_to_test, "report() is called in the process of a NodeProcess").send("report", value)


def _serve(name: str, options: dict[str, Any], prepare: Callable[[], object] | None, pipe: Connection) -> None:
    global _to_test  # noqa: PLW0603 (one process is one node)
    from ..node import ExchangeNode  # noqa: PLC0415

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the test, which then ends this process
    to_test = _to_test = _Sender(pipe)
    try:
        if prepare is not None:
            prepare()
        node = ExchangeNode(name, **options)
    except Exception as error:
        to_test.send("failed", error)
        return
    with node:
        to_test.send("answer", (node.node_id, node.listen_address, node.address))
        while True:
            try:
                asked = pipe.recv()
                if asked is None:
                    return
                what, args, kwargs = asked
                answer = what(node, *args, **kwargs) if callable(what) else getattr(node, what)(*args, **kwargs)
            except EOFError:
                return  # the test has died
            except Exception as error:
                to_test.send("failed", error)
            else:
                to_test.send("answer", answer)
