"""A TCP proxy for tests: stands before one node's inbox; delays, throttles, swallows or cuts what goes through."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Coroutine, Iterable
from typing import Any

from ...transport.errors import present

_NODE_ID = re.compile(rb"([\w.-]+)\.[0-9a-f]{8}")
_PIECE = 16 * 1024


class _Connection:
    """One connection through the proxy, and whose it is: known from the hello that it begins with."""

    def __init__(self, *ends: asyncio.StreamWriter) -> None:
        self._ends = ends
        self.source = ""
        self.spoilt = False
        """Something of it was swallowed: what follows makes no sense any more."""

    def close(self) -> None:
        for end in self._ends:
            end.transport.abort()


class Proxy:
    """Forwards connections to ``target``; all of its faults may be changed at any time, from any thread.

    A connection of which something was swallowed stays silent for as long as it lasts, as behind a cut cable;
    :meth:`heal` ends it, as a reset would.
    """

    def __init__(self) -> None:
        self.target: tuple[str, int] | None = None
        self.delay_s = 0.0
        """How much later everything arrives, each way."""
        self.bytes_per_s: float | None = None
        """How fast each direction of a connection is at most."""
        self.refusing = False
        """New connections are closed at once."""
        self.delays_s: dict[str, float] = {}
        """How much later still what the named nodes send arrives."""
        self._refused: set[str] = set()
        self._silenced: frozenset[str] | None = frozenset()
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server: asyncio.Server = self._call(asyncio.start_server(self._accept, "127.0.0.1", 0))
        host, port = self._server.sockets[0].getsockname()
        self.address = f"tcp://{host}:{port}"

    def swallow(self, sources: Iterable[str] | None = None) -> None:
        """What the named nodes (None: all) send goes nowhere from now on, and they get no error: a one-way cut."""
        self._silenced = None if sources is None else frozenset(sources)

    def refuse(self, source: str) -> None:
        """Close the connections of the named node, old and new: a cut that it notices."""
        self._refused.add(source)
        self._loop.call_soon_threadsafe(self._cut_refused)

    def cut(self) -> None:
        """Close every connection; those who dial again get a new one."""
        self._loop.call_soon_threadsafe(self._cut, False)

    def heal(self) -> None:
        """Take every fault back, and close the connections that were spoilt."""
        self._silenced = frozenset()
        self.delay_s, self.bytes_per_s, self.refusing = 0.0, None, False
        self.delays_s.clear()
        self._refused.clear()
        self._loop.call_soon_threadsafe(self._cut, True)

    def close(self) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _cut(self, only_spoilt: bool) -> None:
        for connection in list(self._connections):
            if connection.spoilt or not only_spoilt:
                connection.close()

    def _cut_refused(self) -> None:
        for connection in list(self._connections):
            if connection.source in self._refused:
                connection.close()

    async def _close(self) -> None:
        self._server.close()
        self._cut(False)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = present(asyncio.current_task(), "a connection without a task")
        self._tasks.add(task)
        outward: asyncio.StreamWriter | None = None
        try:
            if self.refusing or self.target is None:
                return
            inward, outward = await asyncio.open_connection(*self.target)
            connection = _Connection(writer, outward)
            self._connections.add(connection)
            try:
                await asyncio.gather(
                    self._forward(connection, reader, outward, inbound=True),
                    self._forward(connection, inward, writer, inbound=False),
                )
            finally:
                self._connections.discard(connection)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for end in (writer, outward):
                if end is not None:
                    end.transport.abort()
            self._tasks.discard(task)

    async def _forward(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, inbound: bool
    ) -> None:
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
        sending = asyncio.create_task(self._send(waiting, writer))
        try:
            while piece := await reader.read(_PIECE):
                if inbound and not connection.source and (found := _NODE_ID.search(piece)):
                    connection.source = found[1].decode()
                if connection.source in self._refused:
                    return
                silenced = self._silenced
                if inbound and (silenced is None or connection.source in silenced):
                    connection.spoilt = True
                if inbound and connection.spoilt:
                    continue
                delay_s = self.delay_s + self.delays_s.get(connection.source, 0.0)
                await waiting.put((self._loop.time() + delay_s, piece))
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await sending
            connection.close()

    async def _send(self, waiting: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        broken = False
        while True:
            due, piece = await waiting.get()
            await asyncio.sleep(max(due - self._loop.time(), 0))
            if self.bytes_per_s is not None:
                await asyncio.sleep(len(piece) / self.bytes_per_s)
            try:
                if not broken:
                    writer.write(piece)
                    await writer.drain()
            except OSError:
                broken = True  # the other direction finds out, and closes both; until then nobody may wait here
