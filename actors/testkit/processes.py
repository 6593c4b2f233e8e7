"""NodeProcess: a node in a process of its own, for tests that kill it; its methods are called over a pipe.

Part of the test kit: whoever starts the process trusts it, and it trusts them, so arguments and results are pickled.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, Final

from ...transport.errors import present, shown
from ...transport.forks import guard
from ...transport.numerals import written

STOP_S: Final = 30.0
"""How long a process has to end in order before it is killed, in seconds."""
START_S: Final = 60.0
"""How long a node has to start, in seconds."""
CALL_S: Final = 120.0
"""How long a call may take before the process counts as stuck, and is killed, in seconds."""

_spawn = multiprocessing.get_context("spawn")  # nng must not be used after a fork


class NodeProcess:
    """A running node that is another process; it takes the methods of :class:`~..node.ExchangeNode` and passes them on.

    What cannot be pickled cannot be passed: give :meth:`run` a function for what needs the node itself, to start actors
    there or to subscribe. One call at a time; the calls of several threads queue up.
    """

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        self.name = name
        self._calls = threading.Lock()
        guard(self)
        self._pipe, theirs = _spawn.Pipe()
        self._process = _spawn.Process(target=_serve, args=(name, dict(options), theirs), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self.node_id, self.listen_address, self.address = self._receive(START_S)
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
        """Call ``function(node, *args, **kwargs)`` in the process and return what it returns, or raise what it raises.

        It is a function of a module, not one that is defined within another. The process waits for it.
        """
        return self._call((function, args, kwargs))

    def kill(self) -> None:
        """``kill -9`` it and wait until it has gone. Idempotent."""
        self._process.kill()
        self._process.join()

    def pause(self) -> None:
        """Stop it in its tracks (SIGSTOP), as if its machine hung."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after :meth:`pause`."""
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

    def _call(self, what: tuple[Any, ...]) -> Any:
        with self._calls:
            try:
                self._send(what)
                return self._receive(CALL_S)
            except (EOFError, BrokenPipeError, ConnectionResetError):
                raise AssertionError(f"{self!r} ended before it answered") from None

    def _send(self, what: tuple[Any, ...]) -> None:
        """Send; a process that does not read is killed, which ends a send that the pipe has no room for."""
        unread = threading.Timer(CALL_S, self._process.kill)
        unread.daemon = True
        unread.start()
        try:
            self._pipe.send(what)
        finally:
            unread.cancel()

    def _receive(self, timeout_s: float) -> Any:
        if not self._pipe.poll(timeout_s):
            self.kill()  # an answer that came later would be taken for that of the next call
            raise AssertionError(f"{self.name} did not answer within {written(timeout_s)} s, and was killed")
        well, value = self._pipe.recv()
        if not well:
            raise value
        return value


def _serve(name: str, options: dict[str, Any], pipe: Connection) -> None:
    from ..node import ExchangeNode  # noqa: PLC0415

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the test, which then ends this process
    try:
        node = ExchangeNode(name, **options)
    except Exception as error:
        _answer(pipe, False, error)
        return
    with node:
        _answer(pipe, True, (node.node_id, node.listen_address, node.address))
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
                _answer(pipe, False, error)
            else:
                _answer(pipe, True, answer)


def _answer(pipe: Connection, well: bool, value: Any) -> None:
    try:
        whole = pickle.dumps((well, value))
        pickle.loads(whole)  # noqa: S301 (our own: some exceptions can be pickled but not made again)
    except Exception as error:
        what = shown(value, 500) if not well else f"a {type(value).__qualname__}, which cannot be passed on: {error!r}"
        whole = pickle.dumps((False, AssertionError(f"the node's process answered with {what}")))
    with contextlib.suppress(OSError):
        pipe.send_bytes(whole)
