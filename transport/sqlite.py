"""The coordinator as a SQLite file: for nodes that all run on one machine, with nothing to install.

Owns the file: its schema, its settings and its locks. Never opens it other than through SQLite (closing any other
descriptor of it would drop the locks of this whole process) and never carries a connection across a ``fork``.

Why these settings:

- **No WAL.** Before 3.51.3 SQLite can corrupt a database in WAL mode when two processes write at once (its "WAL-reset
  bug"), and what WAL speeds up does not matter to a store of a few records.
- **synchronous=EXTRA**: FULL, and a sync of the folder after the rollback journal is unlinked. With FULL alone a power
  cut can bring the journal back and undo a swap that was reported as done: a follower that had been dropped would
  again count as one that holds every committed command.
- **BEGIN IMMEDIATE** for every write: writers wait for each other at the start, instead of in a deadlock half-way.
- **Waiting in short, even steps** instead of by SQLite's busy handler, whose steps grow to 100 ms: of four processes
  that never paused, one was now and then still waiting after 1.5 s.

A process killed in the middle of a swap leaves a journal, which the next one to open the file rolls back. The file must
be on a local disk: the locks of network file systems are not to be trusted.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import sqlite3
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from .coordinator import UNAVAILABLE_CODE, DiskMark, MarketRecord, OneThread, ToldTime, first_record, in_use, successor
from .errors import Closed, ConfigurationError, InvariantBroken, OpenOutcryError, StorageError, Unavailable, present
from .files import checked_path, os_errors_as
from .forks import guard
from .numerals import whole_of

APPLICATION_ID: Final = int.from_bytes(b"OOut")
"""SQLite's ``application_id`` of our files: what tells them from those of other programs."""

SCHEMA_VERSION: Final = 6
"""SQLite's ``user_version`` of our files."""

BUSY_MS: Final = 2_000
"""How long an operation waits for the locks of other processes, in milliseconds: once to begin, once to commit."""

_SCHEMA: Final = (
    """CREATE TABLE store (
        coordinator_id TEXT NOT NULL CHECK (typeof(coordinator_id) = 'text')
    )""",
    """CREATE TABLE market (
        market  TEXT NOT NULL PRIMARY KEY CHECK (typeof(market) = 'text'),
        version INTEGER NOT NULL CHECK (typeof(version) = 'integer' AND version >= 1),
        epoch   INTEGER NOT NULL CHECK (typeof(epoch) = 'integer' AND epoch >= 1),
        leader  TEXT NOT NULL CHECK (typeof(leader) = 'text'),
        in_sync TEXT NOT NULL CHECK (typeof(in_sync) = 'text'), -- a JSON array of names, sorted
        forced  INTEGER NOT NULL CHECK (typeof(forced) = 'integer' AND forced >= 0),
        yielding INTEGER NOT NULL CHECK (yielding IN (0, 1))
    )""",
    """CREATE TABLE lease (
        node       TEXT NOT NULL PRIMARY KEY CHECK (typeof(node) = 'text'),
        holder     TEXT NOT NULL CHECK (typeof(holder) = 'text'), -- names the data directory
        token      TEXT NOT NULL CHECK (typeof(token) = 'text'), -- random: the coordinator object of the process
        process    TEXT NOT NULL CHECK (typeof(process) = 'text'), -- boot id, pid, start time of the process
        expires_ns INTEGER NOT NULL CHECK (typeof(expires_ns) = 'integer') -- CLOCK_MONOTONIC
    )""",
    """CREATE TABLE disk (
        market   TEXT NOT NULL CHECK (typeof(market) = 'text'),
        node     TEXT NOT NULL CHECK (typeof(node) = 'text'),
        number   INTEGER NOT NULL CHECK (typeof(number) = 'integer' AND number >= 1),
        life     TEXT NOT NULL CHECK (typeof(life) = 'text'),
        epoch    INTEGER NOT NULL CHECK (typeof(epoch) = 'integer' AND epoch >= 0),
        sequence INTEGER NOT NULL CHECK (typeof(sequence) = 'integer' AND sequence >= 0),
        PRIMARY KEY (market, node)
    )""",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
_SELECT: Final = "SELECT market, version, epoch, leader, in_sync, forced, yielding FROM market"
_INSERT: Final = (
    "INSERT INTO market (version, epoch, leader, in_sync, forced, yielding, market) VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_LEASE: Final = "INSERT OR REPLACE INTO lease (node, holder, token, process, expires_ns) VALUES (?, ?, ?, ?, ?)"
_HOLDER: Final = "SELECT holder, token, process, expires_ns FROM lease WHERE node = ?"
_MARK: Final = "INSERT OR REPLACE INTO disk (market, node, number, life, epoch, sequence) VALUES (?, ?, ?, ?, ?, ?)"
_LIFE: Final = "SELECT life FROM disk WHERE market = ? AND node = ?"
_UPDATE: Final = (
    "UPDATE market SET version = ?, epoch = ?, leader = ?, in_sync = ?, forced = ?, yielding = ? WHERE market = ?"
)

_SIZE_MIN: Final = 512
"""Bytes of the smallest database that is not empty; SQLite takes a shorter file for an empty one, and overwrites it."""
_RETRY_S: Final = 0.002

_CANNOT_OPEN: Final = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY})
_TRANSIENT: Final = _CANNOT_OPEN | {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_NOMEM,
}

_T = TypeVar("_T")


class SqliteCoordinator:
    """The :class:`~openoutcry.transport.coordinator.Coordinator` in the SQLite file at ``path``, created if absent.

    1. Construction opens the file, creates its schema or checks it, and reads :attr:`coordinator_id`.
    2. Each operation is one transaction. Whatever fails, the connection is closed, which undoes the transaction and
       drops every lock; the next operation opens the file again.
    3. A file that was deleted or replaced under a running process is refused: two nodes must never use two stores.

    An operation waits at most twice ``BUSY_MS``, however long others keep the file locked.

    Raises:
        ConfigurationError: ``path`` cannot be opened, or is not a coordinator file of the version known here.
        Unavailable: others kept the file locked for too long.
    """

    def __init__(self, path: str | Path) -> None:
        with os_errors_as(f"the coordinator file {path} cannot be used"):
            self._path = checked_path(path, "the coordinator file").absolute()
            if self._path.exists():
                self._check_file(self._path.stat())
        guard(self, _keep_open)
        self._owned = OneThread()
        self._token = uuid.uuid4().hex
        """Which of all objects a lease belongs to: two may be in one process."""
        self._closed = False
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._id: str | None = None
        with self._transaction("BEGIN"):
            pass  # it opens, or creates, the file

    def _check_file(self, found: os.stat_result) -> None:
        """Refuse what SQLite would take, and overwrite or wait at. Not by a look inside: see the module's docstring."""
        if not stat.S_ISREG(found.st_mode):
            raise ConfigurationError(
                f"cannot open the coordinator file {self._path}: it is a folder, a device or the like; name a file",
                code="bad_path",
            )
        if 0 < found.st_size < _SIZE_MIN:
            raise ConfigurationError(
                f"{self._path} is not a SQLite database; give the coordinator a file of its own", code="bad_path"
            )

    @property
    def coordinator_id(self) -> str:
        return present(self._id, "a coordinator that is open has an id")

    def read(self, market: str) -> MarketRecord | None:
        with self._transaction("BEGIN") as connection:
            return self._select(connection, market)

    def read_all(self) -> tuple[MarketRecord, ...]:
        with self._transaction("BEGIN") as connection:
            return tuple(self._record(row) for row in connection.execute(f"{_SELECT} ORDER BY market"))

    def create(self, market: str, leader: str, in_sync: Iterable[str]) -> MarketRecord:
        record = first_record(market, leader, in_sync)
        with self._transaction("BEGIN IMMEDIATE") as connection:
            existing = self._select(connection, market)
            if existing is None:
                connection.execute(_INSERT, _values(record))
        return existing or record

    def swap(
        self,
        expected: MarketRecord,
        *,
        epoch: int,
        leader: str,
        in_sync: Iterable[str],
        force: bool = False,
        yielding: bool = False,
        lives: Mapping[str, str] | None = None,
    ) -> MarketRecord | None:
        record = successor(expected, epoch=epoch, leader=leader, in_sync=in_sync, force=force, yielding=yielding)
        with self._transaction("BEGIN IMMEDIATE") as connection:
            if self._select(connection, expected.market) != expected:
                return None
            for node, life in (lives or {}).items():
                row = connection.execute(_LIFE, (expected.market, node)).fetchone()
                if (row[0] if row is not None else "") != life:
                    return None
            connection.execute(_UPDATE, _values(record))
        return record

    def renew(self, node: str, *, holder: str, ttl_ms: int) -> None:
        with self._transaction("BEGIN IMMEDIATE") as connection:
            row = connection.execute(_HOLDER, (node,)).fetchone()
            if row is not None and row[1] != self._token and row[0] != holder and _holds(row[2], row[3]):
                raise in_use(node, f"pid {row[2].split()[1]} on this machine, data directory {row[0]}")
            expires_ns = time.monotonic_ns() + ttl_ms * 1_000_000
            connection.execute(_LEASE, (node, holder, self._token, _process(os.getpid()), expires_ns))

    def release(self, node: str) -> None:
        with self._transaction("BEGIN IMMEDIATE") as connection:
            connection.execute("DELETE FROM lease WHERE node = ? AND token = ?", (node, self._token))

    def lapsed(self, node: str) -> bool:
        """As the protocol says; a holder that was killed is seen to be gone at once, without waiting for its lease."""
        with self._transaction("BEGIN") as connection:
            row = connection.execute(_HOLDER, (node,)).fetchone()
            return row is None or not _holds(row[2], row[3])

    def mark(self, node: str, marks: Mapping[str, DiskMark]) -> None:
        with self._transaction("BEGIN IMMEDIATE") as connection:
            row = connection.execute(_HOLDER, (node,)).fetchone()
            if row is None or row[1] != self._token:
                raise in_use(node, "nobody" if row is None else f"pid {row[2].split()[1]} on this machine")
            rows = [(market, node, *dataclasses.astuple(mark)) for market, mark in marks.items()]
            connection.executemany(_MARK, rows)

    def marks(self, market: str) -> dict[str, DiskMark]:
        with self._transaction("BEGIN") as connection:
            rows = connection.execute(
                "SELECT node, number, life, epoch, sequence FROM disk WHERE market = ?", (market,)
            ).fetchall()
        return {node: DiskMark(*values) for node, *values in rows}

    @property
    def told_time(self) -> ToldTime | None:
        """None: the file is on this machine."""
        return None

    def close(self) -> None:
        with self._owned:
            self._closed = True
            self._disconnect()

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        """Run the body in one transaction and commit it; after a failure nothing stays open or locked."""
        with self._owned:
            if self._closed:
                raise Closed(f"the coordinator {self._path} is closed")
            try:
                connection = _patiently(lambda: self._begun(begin))
                yield connection
                _patiently(lambda: connection.execute("COMMIT"))
            except sqlite3.Error as error:
                self._disconnect()
                raise self._translated(error) from error
            except OSError as error:  # no descriptor, to look at a process or the file
                self._disconnect()
                if isinstance(error, OpenOutcryError):
                    raise
                raise Unavailable(
                    f"the coordinator file {self._path} cannot be used now: {error}; retry", code=UNAVAILABLE_CODE
                ) from error
            except BaseException:
                self._disconnect()
                raise

    def _begun(self, begin: str) -> sqlite3.Connection:
        """Return the connection in a transaction that holds every lock it needs until its commit."""
        connection = self._connected()
        connection.execute(begin)
        try:
            connection.execute("SELECT coordinator_id FROM store").fetchall()
        except sqlite3.Error:
            connection.rollback()
            raise
        return connection

    def _connected(self) -> sqlite3.Connection:
        if self._file is not None and self._file != self._file_now():
            raise StorageError(
                f"the coordinator file {self._path} was replaced while in use: stop all nodes that use it, decide "
                f"which file is right, and start them again"
            )
        if self._connection is None:
            connection = sqlite3.connect(self._path, timeout=0, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(connection)
                self._file = self._file_now()
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Set what a connection forgets; create the schema in an empty file, or check that the file is ours."""
        connection.execute("PRAGMA synchronous = EXTRA")
        (synchronous,) = connection.execute("PRAGMA synchronous").fetchone()
        if synchronous != 3:
            raise StorageError(f"SQLite did not accept synchronous=EXTRA: it reads back {synchronous}")
        connection.execute("BEGIN")
        if _is_empty(connection) and self._id is None:
            connection.execute("COMMIT")
            connection.execute("BEGIN IMMEDIATE")
            if _is_empty(connection):  # no other process was faster
                for statement in _SCHEMA:
                    connection.execute(statement)
                connection.execute("INSERT INTO store (coordinator_id) VALUES (?)", (str(uuid.uuid4()),))
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        (schema_version,) = connection.execute("PRAGMA user_version").fetchone()
        if application_id != APPLICATION_ID:
            raise ConfigurationError(
                f"{self._path} is a SQLite database of another program; give the coordinator a file of its own"
            )
        if schema_version != SCHEMA_VERSION:
            raise ConfigurationError(
                f"{self._path} has version {schema_version} of the coordinator's schema; this openoutcry knows only "
                f"version {SCHEMA_VERSION}: use the one that made the file, or another file"
            )
        ids = connection.execute("SELECT coordinator_id FROM store").fetchall()
        connection.execute("COMMIT")
        (journal_mode,) = connection.execute("PRAGMA journal_mode = DELETE").fetchone()
        if journal_mode != "delete":
            raise ConfigurationError(
                f"{self._path} is in journal mode {journal_mode}: stop what uses it and run PRAGMA journal_mode=DELETE"
            )
        if len(ids) != 1 or self._id not in (None, ids[0][0]):
            raise StorageError(f"the coordinator file {self._path} has the ids {ids}; expected {self._id or 'one'}")
        self._id = ids[0][0]

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _file_now(self) -> tuple[int, int]:
        try:
            status = os.stat(self._path)
        except OSError as error:
            raise Unavailable(
                f"the coordinator file is gone: {error}; put it back, or stop all nodes that use it",
                code=UNAVAILABLE_CODE,
            ) from error
        return status.st_dev, status.st_ino

    def _select(self, connection: sqlite3.Connection, market: str) -> MarketRecord | None:
        row = connection.execute(f"{_SELECT} WHERE market = ?", (market,)).fetchone()
        return None if row is None else self._record(row)

    def _record(self, row: Any) -> MarketRecord:
        market, version, epoch, leader, in_sync, forced, yielding = row
        try:
            return MarketRecord(market, version, epoch, leader, tuple(json.loads(in_sync)), forced, bool(yielding))
        except (ValueError, TypeError, InvariantBroken) as error:
            raise StorageError(f"the coordinator file {self._path} holds a wrong record {row}: {error}") from error

    def _translated(self, error: sqlite3.Error) -> OpenOutcryError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if self._id is None and code in _CANNOT_OPEN:
            return ConfigurationError(
                f"cannot open the coordinator file {self._path} for writing: {error}; does its folder exist, and may "
                f"this user write there?"
            )
        if self._id is None and code == sqlite3.SQLITE_NOTADB:
            return ConfigurationError(f"{self._path} is not a SQLite database; give the coordinator a file of its own")
        if code in _TRANSIENT:
            return Unavailable(
                f"the coordinator file {self._path} cannot be used now: {error}; retry", code=UNAVAILABLE_CODE
            )
        return StorageError(f"the coordinator file {self._path} cannot be trusted: {error}")


def _keep_open(coordinator: SqliteCoordinator) -> None:
    """In a forked child: have the connection never closed, not even by the garbage collector.

    SQLite would roll back what the parent is in the middle of, in the parent's file.
    """
    if coordinator._connection is not None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(coordinator._connection))


def _patiently(step: Callable[[], _T]) -> _T:
    """Return what ``step`` returns; try it for up to ``BUSY_MS`` while other processes hold the locks it needs."""
    deadline_s = time.monotonic() + BUSY_MS / 1000
    while True:
        try:
            return step()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline_s:
                raise
        time.sleep(_RETRY_S)


def _is_empty(connection: sqlite3.Connection) -> bool:
    """Return whether nothing was ever written to the file, by us or by others; call it inside a transaction."""
    query = "SELECT * FROM pragma_application_id, pragma_user_version, (SELECT count(*) FROM sqlite_master)"
    return bool(connection.execute(query).fetchone() == (0, 0, 0))


def _values(record: MarketRecord) -> tuple[int, int, str, str, int, bool, str]:
    in_sync = json.dumps(record.in_sync, ensure_ascii=False, separators=(",", ":"))
    return record.version, record.epoch, record.leader, in_sync, record.forced, record.yielding, record.market


def _holds(process: str, expires_ns: int) -> bool:
    """Whether a lease is in force, and its holder's process lives."""
    pid = whole_of(process.partition(" ")[2].partition(" ")[0])
    if pid is None or type(expires_ns) is not int:
        raise StorageError(f"the coordinator's file holds a lease that was not written by us: {process!r:.80}")
    return time.monotonic_ns() <= expires_ns and process == _process(pid)


def _process(pid: int) -> str:
    """Return what names process ``pid`` for ever: boot id, pid and start time; another text once it is dead.

    CLOCK_MONOTONIC is one clock for all processes of one boot, and restarts with the next boot: hence the boot id.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # After the command in parentheses, which may hold anything: state is field 3, start time field 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        if pid == os.getpid():
            return f"- {pid} -"  # no /proc: leases end by time alone
        return f"- {pid} -" if not Path("/proc/self/stat").exists() else "gone"
    return "gone" if fields[0] in "ZX" else f"{boot} {pid} {fields[19]}"
