"""The yardstick of ``pipeline.py``: the least that a durable, replicated order book could do, without the product.

Two processes and one loop: encode a batch, send it, append and sync it here and there, acknowledge it, match it here
and there. Same sockets, same engine, same orders; no actors, no protocol, no recovery, no answers, one batch at a time.

    python benchmarks/bare.py [--batch 64,256] [--seconds 2] [--rounds 5]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import msgpack
import pynng
from cluster import CORES, RULES, on_core
from openoutcry.actors import spare_gc
from openoutcry.actors.book.commands import CONFIGURE
from openoutcry.actors.book.orderbook import OrderBook
from orders import Orders
from reporting import ROUNDS, Report, numbers

_FILE_SIZE = 1 << 30


class _Side:
    """One side's file and book."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.posix_fallocate(self._file, 0, _FILE_SIZE)
        self._end = 0
        self.book = OrderBook()
        self.book.apply(1, 1, ((CONFIGURE, "", "", RULES.to_tuple()),))

    def keep(self, frame: bytes) -> None:
        if self._end + len(frame) > _FILE_SIZE:
            self._end = 0
        os.pwrite(self._file, frame, self._end)
        os.fdatasync(self._file)
        self._end += len(frame)

    def match(self, commands: tuple[tuple[object, ...], ...]) -> None:
        self.book.apply(self.book.sequence + 1, time.time_ns(), commands)


def _follow(folder: Path, pipe: Connection, core: int | None) -> None:
    side = _Side(folder / "follower")
    with on_core(core), pynng.Pull0(listen="tcp://127.0.0.1:0") as frames, pynng.Push0() as acks:
        pipe.send(str(frames.listeners[0].url))
        acks.dial(pipe.recv(), block=True)
        spare_gc()
        while True:
            frame = frames.recv()
            if frame == b"end":
                return
            side.keep(frame)
            acks.send(b"ack")
            side.match(msgpack.unpackb(frame, use_list=False))


@contextmanager
def bare(*, pin: bool = False) -> Iterator[BareLoop]:
    """Run the two processes of the loop; ``pin``: each on a core of its own."""
    ours_core, theirs_core = (CORES[0], CORES[-1]) if pin else (None, None)
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="openoutcry-bench-") as folder:
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=_follow, args=(Path(folder), theirs, theirs_core), daemon=True)
        process.start()
        with on_core(ours_core), pynng.Push0() as frames, pynng.Pull0(listen="tcp://127.0.0.1:0") as acks:
            frames.dial(ours.recv(), block=True)
            ours.send(str(acks.listeners[0].url))
            spare_gc()
            yield BareLoop(_Side(Path(folder) / "leader"), frames, acks)
            frames.send(b"end")
            process.join(10)


class BareLoop:
    """The leader's side of the loop."""

    def __init__(self, side: _Side, frames: pynng.Push0, acks: pynng.Pull0) -> None:
        self._side = side
        self._frames = frames
        self._acks = acks
        self._orders = Orders()

    def run(self, *, batch: int, seconds: float) -> float:
        """Return commands a second, ``batch`` a frame."""
        done = 0
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            commands = self._orders.batch(batch)
            frame = msgpack.packb(commands)
            self._frames.send(frame)
            self._side.keep(frame)
            self._acks.recv()
            self._side.match(commands)
            done += batch
        return done / (time.perf_counter() - started)


def main() -> None:
    """Run the loop from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--batch", type=numbers, default=[64, 256], help="commands a frame (default 64,256)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a round (default 2)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds of each (default {ROUNDS})")
    options = parser.parse_args()
    report = Report("bare")
    with bare() as loop:
        for batch in options.batch:
            loop.run(batch=batch, seconds=0.5)
            rates = [loop.run(batch=batch, seconds=options.seconds) for _ in range(options.rounds)]
            report.add(f"bare loop, batch {batch}", "commands/s", rates, batch=batch)
    report.finish()


if __name__ == "__main__":
    main()
