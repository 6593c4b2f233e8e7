"""The durable log of one market: segment files, group commit, recovery. Owns its folder; never interprets a command.

A segment is a preallocated file ``<first sequence, 20 digits>.log``: a header (magic, the tail it follows), then
entries ``mark | crc32 | body length | durable | committed | chain | body``; the checksum is of all that follows it.
``durable`` and ``committed`` are the sequence numbers known to be so when the entry was written. They distinguish a
torn tail from corruption: each write is synced before the next begins, so a bad entry is torn if no later entry claims
that it was durable, and corrupt if one does. For the last entry a *seal* makes that claim: an entry without a body and
with a mark of its own, written behind the end if no entry follows soon. The next entry overwrites it.

One thread owns a :class:`Journal`. An error of write or sync is final: nothing is retried, the journal stays failed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import struct
import weakref
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Final
from zlib import crc32

from ...transport.errors import ConfigurationError, InvariantBroken, ProtocolError, StorageError, present
from ...transport.forks import guard, unforked
from .record import EMPTY, Record, Tail, chain_of
from .snapshots import NotKept, open_patiently, sync_folder

SEGMENT_SIZE: Final = 64 * 1024 * 1024
"""Size of a segment, in bytes; a new one starts when an entry would not fit."""
LOCK_SIZE_MAX: Final = 400
"""Most characters read from a folder's lock file."""
ALLOCATED_MIN: Final = 1024 * 1024
"""Bytes of a segment allocated before they are written; doubled each time they are full."""

_SEGMENT_HEADER: Final = struct.Struct("<8sIIQQ32s")  # magic, version, crc32, epoch, sequence, chain of the tail before
_SEGMENT_MAGIC: Final = b"OUTCRYJ\0"
_SEGMENT_VERSION: Final = 1
_ENTRY_HEADER: Final = struct.Struct("<4sIIQQ32s")  # mark, crc32, body length, durable, committed, chain
_CHECKED: Final = struct.Struct("<IQQ32s")
"""The part of the header that the checksum covers, together with the body."""
_CHECKED_FROM: Final = _ENTRY_HEADER.size - _CHECKED.size
_ENTRY_MARK: Final = b"\xf5rec"
_SEAL_MARK: Final = b"\xf5end"
_ANY_MARK: Final = re.compile(b"\xf5(?:rec|end)")
_OFFSET_BITS: Final = 40
_SPAN_SIZE: Final = 1024 * 1024
"""Bytes read at once when the log is replayed."""


class JournalDamaged(StorageError):
    """A journal is damaged (code ``corrupt``): at ``byte`` of ``path``, where ``sequence`` was expected."""

    default_code = "corrupt"

    def __init__(self, path: Path, byte: int, sequence: int, why: str) -> None:
        super().__init__(f"{path} at byte {byte} (sequence {sequence}): {why}")
        self.path = path
        self.byte = byte
        self.sequence = sequence
        self.why = why


class FolderLock:
    """Holds a folder for one process; the lock ends with the process, however it ends, even if it leaves children.

    The file ``lock`` says who holds it: ``PID HOST``, and nothing once it is released.

    Raises:
        ConfigurationError: another process, or another node of this one, holds it (code ``data_dir_in_use``).
    """

    _held: ClassVar[weakref.WeakSet[FolderLock]] = weakref.WeakSet()
    """The locks of this process."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        """``read_only``: the folder was used before; keep writers out, but not other readers, and change nothing."""
        if not read_only:
            folder.mkdir(parents=True, exist_ok=True)
        self._read_only = read_only
        path = folder / "lock"
        with unforked:
            self._file = path.open("rb" if read_only else "ab+", buffering=0)
            # A child of fork() has the same lock through its own descriptor, and would keep it after this process.
            guard(self, FolderLock._let_go, refuse=False)
        try:
            fcntl.flock(self._file, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            held = self._file.read(LOCK_SIZE_MAX).decode(errors="replace").split()
            here = [lock for lock in self._held if os.path.sameopenfile(self._file.fileno(), lock._file.fileno())]
            self._file.close()
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise ConfigurationError(f"{folder} cannot be locked: {error}", code="not_lockable") from error
            who = _holder(held, here)
            raise ConfigurationError(f"{folder} is in use by {who}", code="data_dir_in_use") from error
        if not read_only:
            with contextlib.suppress(OSError):  # a full disk: the lock holds anyway
                self._file.truncate(0)
                self._file.write(f"{os.getpid()} {socket.gethostname()}\n".encode())
        self._held.add(self)

    def _let_go(self) -> None:
        self._held.discard(self)
        self._file.close()

    def release(self) -> None:
        """Release the folder. Idempotent."""
        self._held.discard(self)
        if not self._file.closed and not self._read_only:
            with contextlib.suppress(OSError):
                self._file.truncate(0)
        if not self._file.closed:
            with contextlib.suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_UN)  # for a child, too, that was forked while the file is closed
        self._file.close()


def _holder(held: list[str], here: list[FolderLock]) -> str:
    """Return a message from a folder's lock file: who holds the folder, and what to do."""
    if any([not lock._read_only for lock in here]):
        return (
            f"this process itself, {os.getpid()}: a node that was started here before is still open (a cell of a "
            "notebook that was run again?). Call close() of that node first; openoutcry.actors.open_nodes() returns "
            "it where no variable holds it any more. Two nodes at once: give each a data directory of its own"
        )
    who = f"process {held[0]} on {held[1]}" if len(held) == 2 else "a process that reads it, or is starting"
    return f"{who}: stop it, or give each node a data directory of its own"


def put_aside(folder: Path, what: str) -> Path:
    """Rename a market's folder with the suffix ``what``, make an empty one in its place, and return the new path.

    Raises:
        OSError: the disk refused.
    """
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{what}-{number}")).exists():
        number += 1
    folder.rename(aside)
    folder.mkdir()
    sync_folder(folder.parent)
    return aside


class Journal:
    """Appends, syncs, reads back and cuts the records of one market's log.

    Invariant: once :meth:`append` has returned, its records are on disk, and :attr:`tail` is their end.
    """

    def __init__(self, folder: Path, *, segment_size: int = SEGMENT_SIZE, read_only: bool = False) -> None:
        """Open the log in ``folder``, created if absent; cut a torn tail.

        ``read_only``: change nothing on the disk. Ignore a torn tail, and everything behind damage instead of refusing
        it; see :attr:`damage`.

        Raises:
            StorageError: an entry before the tail is damaged (code ``corrupt``), or the folder cannot be read.
        """
        self._folder = self.folder = folder
        self._segment_size = segment_size
        self._failed: str | None = None
        self.base = EMPTY
        """The tail that the log's first record follows: EMPTY until the log is pruned."""
        self.tail = EMPTY
        self.committed = 0
        """Highest sequence number that an entry on disk says was committed."""
        self.cut_bytes = 0
        """Bytes of a torn tail that were cut on opening."""
        self.damage: JournalDamaged | None = None
        """For a journal opened for reading only: the damage at which it ends, if any."""
        # For record i: its last sequence number, and where its entry starts (segment number << 40 | offset). Segments
        # are numbered on from those that were pruned: segment n is at ``_paths[n - _pruned]``.
        self._last = array("Q")
        self._where = array("Q")
        self._paths: list[Path] = []
        self._pruned = 0
        self._fd = -1
        self._end = 0
        self._allocated = 0
        self._sealed = True
        try:
            if read_only:
                self._failed = "it is open for reading only"
                self._read_segments(sorted(folder.glob("*.log")), read_only=True)
                return
            folder.mkdir(parents=True, exist_ok=True)
            self._recover()
        except JournalDamaged as damage:
            if not read_only:
                raise
            self.damage = damage
        except OSError as error:
            raise StorageError(f"cannot open the journal in {folder}: {error}") from error

    # -- writing ------------------------------------------------------------------------------------------------

    def append(self, records: Sequence[Record], *, committed: int) -> None:
        """Write ``records``, which follow :attr:`tail`, and make them durable: one write and one fdatasync.

        Raises:
            StorageError: the disk refused, now or before; its contents are unknown, and the journal stays failed.
        """
        self._assert_usable()
        try:
            at = 0
            while at < len(records):
                at = self._append_to_segment(records, at, committed)
        except OSError as error:
            raise self._fail("write", error) from error

    def _append_to_segment(self, records: Sequence[Record], start: int, committed: int) -> int:
        parts: list[bytes] = []
        end = self._end
        at = start
        durable = self.tail.sequence
        tail = self.tail
        while at < len(records):
            record = records[at]
            if record.first_sequence != tail.sequence + 1:
                raise InvariantBroken(f"a gap in the journal: {record.first_sequence} after {tail.sequence}")
            size = _ENTRY_HEADER.size + len(record.body)
            if end + size + _ENTRY_HEADER.size > self._segment_size and end > _SEGMENT_HEADER.size:
                break
            parts += _entry_of(_ENTRY_MARK, record.body, durable, min(committed, durable), record.chain)
            self._last.append(record.last_sequence)
            self._where.append((self._pruned + len(self._paths) - 1) << _OFFSET_BITS | end)
            end += size
            tail = record.tail
            at += 1
        if parts:
            self._allocate(end + _ENTRY_HEADER.size)
            self._write(b"".join(parts), self._end)
            os.fdatasync(self._fd)
            self._end = end
            self.tail = tail
            self.committed = max(self.committed, min(committed, durable))
            self._sealed = False
        if at < len(records):
            self._start_segment()
        return at

    def seal(self) -> None:
        """Write a seal behind the end, unless there is one: everything before it is durable. For when no entry follows
        soon.

        Raises:
            StorageError: the disk refused.
        """
        if self._sealed:
            return
        self._assert_usable()
        try:
            self._seal()
        except OSError as error:
            raise self._fail("write", error) from error

    def _seal(self) -> None:
        # Not synced: it helps once it has reached the disk.
        seal = b"".join(_entry_of(_SEAL_MARK, b"", self.tail.sequence, self.committed, self.tail.chain))
        self._write(seal, self._end)
        self._sealed = True

    def _write(self, data: bytes, offset: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, offset)
            view = view[written:]
            offset += written

    def cut(self, sequence: int) -> Tail:
        """Remove every record that ends after ``sequence``, durably, and return the new tail.

        Raises:
            StorageError: the disk refused.
        """
        self._assert_usable()
        keep = bisect_right(self._last, sequence)
        if keep == len(self._last):
            return self.tail
        try:
            segment, offset = self._place(keep)
            while len(self._paths) > segment + 1:  # each durably before the next: a crash leaves no gap
                self._paths.pop().unlink()
                sync_folder(self._folder)
            self._close_segment()
            self._open_segment(self._paths[segment])
            self._end = offset
            self._erase_after_end()
            del self._last[keep:]
            del self._where[keep:]
            self.tail = self._tail_at(keep)
            self._seal()
        except OSError as error:
            raise self._fail("cut", error) from error
        return self.tail

    def prune(self, sequence: int) -> None:
        """Remove the segments that hold nothing after ``sequence``; the last one always stays.

        Raises:
            NotKept: the disk refused; the log is whole, from its first segment that is left, and can be pruned again.
            StorageError: a segment is damaged.
        """
        self._assert_usable()
        try:
            while len(self._paths) > 1:
                base = present(self._header_of(self._paths[1]), "a segment without a header before the last one")
                if base.sequence > sequence:
                    break
                sync_folder(self._folder)  # the previous removal is durable, even if that failed the last time
                self._paths[0].unlink()
                del self._paths[0]
                self._pruned += 1
                self.base = base
        except OSError as error:
            raise NotKept(f"the journal in {self._folder} cannot be pruned: {error}") from error
        finally:
            gone = bisect_right(self._last, self.base.sequence)
            del self._last[:gone]
            del self._where[:gone]

    def reset(self, tail: Tail) -> None:
        """Start an empty log after ``tail``, whose state is kept elsewhere; remove all records.

        Raises:
            StorageError: the disk refused.
        """
        self._assert_usable()
        try:
            while self._paths:  # the newest first: a crash leaves a prefix of the old log
                self._paths.pop().unlink()
                sync_folder(self._folder)
            del self._last[:]
            del self._where[:]
            self.base = self.tail = tail
            self.committed = tail.sequence
            self._start_segment()
        except OSError as error:
            raise self._fail("reset", error) from error

    def close(self) -> None:
        """Close the files. Idempotent."""
        if self._fd >= 0:
            if self._failed is None:
                with contextlib.suppress(OSError):  # only the seal can still be unwritten, or unsynced
                    if not self._sealed:
                        self._seal()
                    os.fdatasync(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._failed = self._failed or "it is closed"

    # -- reading ------------------------------------------------------------------------------------------------

    def tail_at(self, sequence: int) -> Tail | None:
        """Return the tail of the log up to ``sequence``, or None unless a record ends there."""
        if sequence == self.base.sequence:
            return self.base
        at = bisect_left(self._last, sequence)
        if at == len(self._last) or self._last[at] != sequence:
            return None
        return self._tail_at(at + 1)

    def bodies(self, after: int, *, size_max: int) -> list[bytes]:
        """Return record bodies after the boundary ``after``: about ``size_max`` bytes, but one if there is any."""
        return [body for _, body in self._entries(bisect_right(self._last, after), len(self._last), size_max)]

    def tails(self, sequence: int, *, count_max: int, size_max: int) -> list[tuple[int, bytes]]:
        """Return the last ends of records up to ``sequence``, in order, each with its chain; the last one at least.

        At most ``count_max``, of about ``size_max`` bytes of one segment. The place where the log begins counts as one.
        """
        end = bisect_right(self._last, sequence)
        newest = self._where[end - 1] if end else 0
        oldest = max(newest - size_max, newest >> _OFFSET_BITS << _OFFSET_BITS)
        start = max(end - count_max, bisect_left(self._where, oldest, 0, end), 0)
        found = [] if start else [(self.base.sequence, self.base.chain)]
        while start < end:
            entries = self._entries(start, end, size_max)
            found += [(self._last[start + at], chain) for at, (chain, _) in enumerate(entries)]
            start += len(entries)
        return found[-count_max:]

    def records(self, after: Tail | None = None) -> Iterator[Record]:
        """Yield the records after the boundary ``after`` (default: all), verified against the chain.

        Raises:
            StorageError: a record does not follow from the one before it (code ``corrupt``).
        """
        tail = self.base if after is None else after
        at = bisect_right(self._last, tail.sequence)
        while at < len(self._last):
            for chain, body in self._entries(at, len(self._last), _SPAN_SIZE):
                try:
                    record = Record.parse(tail, body)
                except ProtocolError as error:
                    raise self._corrupt(at, str(error)) from error
                if record.chain != chain:
                    raise self._corrupt(at, "the chain is broken")
                tail = record.tail
                at += 1
                yield record

    def damage_at(self, sequence: int, why: str) -> JournalDamaged:
        """Return the error for a bad record of ``sequence`` in this log."""
        return self._corrupt(bisect_left(self._last, sequence), why)

    # -- recovery -----------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        paths = sorted(self._folder.glob("*.log"))
        if paths:
            self._settle(paths[-1])
        self._read_segments(paths)
        if not self._paths:
            self._start_segment()
            return
        self._open_segment(self._paths[-1])
        self._erase_after_end(only_if_dirty=True)
        self._seal()

    def _read_segments(self, paths: list[Path], *, read_only: bool = False) -> None:
        self._paths = paths
        if paths and self._is_unborn(paths[-1]):
            unborn = paths.pop()
            if not read_only:
                unborn.unlink()
        for number, path in enumerate(self._paths):
            base = self._header_of(path)
            if number == 0 and base is not None:
                self.base = self.tail = base
                self.committed = base.sequence
            if base != self.tail:
                raise self._damaged(path, 0, "it does not follow the segment before it")
            self._end = self._scan(number, path, is_last=number == len(self._paths) - 1)

    def _settle(self, path: Path) -> None:
        """Sync the last segment, so that what is read from it is on the disk.

        A killed process may have left entries in the page cache only: they would count as durable, and a power cut
        would lose them. And after a failed sync the cache differs from the disk.
        """
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
        sync_folder(self._folder)

    def _is_unborn(self, path: Path) -> bool:
        """Whether a segment died before its header was synced, so that nothing can have been written behind it."""
        data = path.read_bytes()
        head = data[: _SEGMENT_HEADER.size].ljust(_SEGMENT_HEADER.size, b"\0")
        magic, version, check, *base = _SEGMENT_HEADER.unpack(head)
        ours = magic in (_SEGMENT_MAGIC, bytes(8)) and version in (_SEGMENT_VERSION, 0)
        torn = ours and check != _segment_check(*base)
        if torn and data[_SEGMENT_HEADER.size :].strip(b"\0"):
            raise self._damaged(path, 0, "its header is lost; restore this replica from another node")
        return torn

    def _scan(self, number: int, path: Path, *, is_last: bool) -> int:
        data = path.read_bytes()
        at = _SEGMENT_HEADER.size
        while at + _ENTRY_HEADER.size <= len(data):
            mark, _, length, _, committed, chain = _ENTRY_HEADER.unpack_from(data, at)
            body = data[at + _ENTRY_HEADER.size : at + _ENTRY_HEADER.size + length]
            if mark != _ENTRY_MARK or not _is_sound(data[at : at + _ENTRY_HEADER.size], body):
                break
            if chain_of(self.tail.chain, body) != chain:
                raise self._damaged(path, at, "the chain is broken")
            epoch, sequence = Record.span_of(body)  # parsed in full when it is replayed
            tail = self.tail = Tail(epoch, sequence, chain)
            self.committed = max(self.committed, committed)
            self._last.append(tail.sequence)
            self._where.append(number << _OFFSET_BITS | at)
            at += _ENTRY_HEADER.size + length
        else:
            return at
        behind = len(data[at:].rstrip(b"\0"))
        if self._read_seal(data[at : at + _ENTRY_HEADER.size]):
            behind = max(0, behind - _ENTRY_HEADER.size)
        if behind:
            self._refuse_corruption(path, data, at, is_last=is_last)
            self.cut_bytes += behind
        return at

    def _read_seal(self, seal: bytes) -> bool:
        """Whether this is the seal of the log as read so far."""
        if len(seal) < _ENTRY_HEADER.size or not _is_sound(seal, b""):
            return False
        mark, _, _, durable, committed, chain = _ENTRY_HEADER.unpack(seal)
        if mark != _SEAL_MARK or (durable, chain) != (self.tail.sequence, self.tail.chain):
            return False
        self.committed = max(self.committed, committed)
        return True

    def _refuse_corruption(self, path: Path, data: bytes, at: int, *, is_last: bool) -> None:
        """Raise if an entry or a seal behind the bad one at ``at`` claims that it was durable."""
        damaged = self.tail.sequence + 1
        later = not is_last
        for mark in _ANY_MARK.finditer(data, at):
            found = mark.start()
            if later or found + _ENTRY_HEADER.size > len(data):
                break
            _, _, length, durable, _, _ = _ENTRY_HEADER.unpack_from(data, found)
            body = data[found + _ENTRY_HEADER.size : found + _ENTRY_HEADER.size + length]
            later = durable >= damaged and _is_sound(data[found : found + _ENTRY_HEADER.size], body)
        if later:
            raise self._damaged(path, at, "damaged before the end of the log; restore this replica from another node")

    def _header_of(self, path: Path) -> Tail | None:
        with path.open("rb") as file:
            head = file.read(_SEGMENT_HEADER.size)
        if len(head) < _SEGMENT_HEADER.size or not any(head):
            return None
        magic, version, check, *base = _SEGMENT_HEADER.unpack(head)
        if magic != _SEGMENT_MAGIC or version != _SEGMENT_VERSION or check != _segment_check(*base):
            raise self._damaged(path, 0, "it is not a journal segment of a version that this program reads")
        return Tail(*base)

    # -- files --------------------------------------------------------------------------------------------------

    def _start_segment(self) -> None:
        if self._fd >= 0:
            os.fdatasync(self._fd)  # a torn seal is not damage at the end of the log, but would be inside it
            self._close_segment()
        tail = self.tail
        path = self._folder / f"{tail.sequence + 1:020d}.log"
        self._fd = open_patiently(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
        self._allocated = 0
        self._allocate(min(ALLOCATED_MIN, self._segment_size))
        base = (tail.epoch, tail.sequence, tail.chain)
        header = _SEGMENT_HEADER.pack(_SEGMENT_MAGIC, _SEGMENT_VERSION, _segment_check(*base), *base)
        self._write(header, 0)
        os.fsync(self._fd)
        self._close_segment()  # one descriptor serves both: no other may be free
        sync_folder(self._folder)
        self._open_segment(path)
        self._paths.append(path)
        self._end = _SEGMENT_HEADER.size

    def _close_segment(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)

    def _open_segment(self, path: Path) -> None:
        self._fd = open_patiently(path, os.O_RDWR | os.O_CLOEXEC)
        self._allocated = os.fstat(self._fd).st_size

    def _allocate(self, size: int) -> None:
        """Allocate at least ``size`` bytes of the segment: a sync is faster if the size does not change.

        Steps double, so a quiet market takes little disk, and is read quickly at a start.
        """
        if size <= self._allocated:
            return
        size = max(size, min(2 * self._allocated, self._segment_size))
        try:
            os.posix_fallocate(self._fd, self._allocated, size - self._allocated)
        except OSError as error:
            if error.errno not in (95, 22, 38):  # EOPNOTSUPP, EINVAL, ENOSYS: not every file system can
                raise
        self._allocated = size

    def _erase_after_end(self, *, only_if_dirty: bool = False) -> None:
        """Zero the bytes behind the tail, durably, so that no old entry can ever be read as a new one."""
        if only_if_dirty and not self.cut_bytes:
            return
        os.ftruncate(self._fd, self._end)
        self._allocated = self._end
        os.fsync(self._fd)

    def _place(self, at: int) -> tuple[int, int]:
        return (self._where[at] >> _OFFSET_BITS) - self._pruned, self._where[at] & ((1 << _OFFSET_BITS) - 1)

    def _entries(self, at: int, end: int, size_max: int) -> list[tuple[bytes, bytes]]:
        """Return chain and body of the records from number ``at`` on, before ``end``, checked against their checksums.

        They are read in one go: about ``size_max`` bytes of one segment, but at least one record if there is any.
        """
        if at >= end:
            return []
        segment, offset = self._place(at)
        behind = bisect_left(self._where, (self._where[at] >> _OFFSET_BITS) + 1 << _OFFSET_BITS, at, end)
        current = segment == len(self._paths) - 1 and self._fd >= 0
        fd = self._fd if current else os.open(self._paths[segment], os.O_RDONLY | os.O_CLOEXEC)
        found: list[tuple[bytes, bytes]] = []
        start = 0
        try:
            data = os.pread(fd, max(size_max, _ENTRY_HEADER.size), offset)
            while at + len(found) < behind and (not found or start + _ENTRY_HEADER.size <= len(data)):
                header = data[start : start + _ENTRY_HEADER.size]
                _, _, length, _, _, chain = _ENTRY_HEADER.unpack(header)
                start += _ENTRY_HEADER.size
                body = data[start : start + length]
                if len(body) < length:
                    if found:
                        break
                    body = os.pread(fd, length, offset + start)
                if not _is_sound(header, body):
                    raise self._corrupt(at + len(found), "the checksum does not match")
                found.append((chain, body))
                start += length
        except (OSError, struct.error) as error:
            raise StorageError(f"cannot read {self._paths[segment]}: {error}") from error
        finally:
            if not current:
                os.close(fd)
        return found

    def _entry(self, at: int) -> tuple[bytes, bytes]:
        """Return chain and body of record number ``at``, checked against its checksum."""
        return self._entries(at, at + 1, _ENTRY_HEADER.size)[0]

    def _tail_at(self, count: int) -> Tail:
        """Return the tail after the first ``count`` records."""
        if count == 0:
            return self.base
        chain, body = self._entry(count - 1)
        return Tail(Record.span_of(body)[0], self._last[count - 1], chain)

    def _corrupt(self, at: int, why: str) -> JournalDamaged:
        segment, offset = self._place(at)
        return self._damaged(self._paths[segment], offset, why, after=self._last[at - 1] if at else self.base.sequence)

    def _damaged(self, path: Path, byte: int, why: str, *, after: int | None = None) -> JournalDamaged:
        return JournalDamaged(path, byte, (self.tail.sequence if after is None else after) + 1, why)

    def _assert_usable(self) -> None:
        if self._failed is not None:
            raise StorageError(f"the journal in {self._folder} cannot be used: {self._failed}")

    def _fail(self, what: str, error: OSError) -> StorageError:
        self._failed = f"an earlier {what} failed: {error}"
        return StorageError(f"{what} to the journal in {self._folder} failed: {error}; the replica stops")


def _segment_check(epoch: int, sequence: int, chain: bytes) -> int:
    return crc32(chain, crc32(f"{epoch},{sequence}".encode()))


def _entry_of(mark: bytes, body: bytes, durable: int, committed: int, chain: bytes) -> tuple[bytes, bytes]:
    """Return header and body of an entry."""
    known = _CHECKED.pack(len(body), durable, committed, chain)
    return mark + crc32(body, crc32(known)).to_bytes(4, "little") + known, body


def _is_sound(header: bytes, body: bytes) -> bool:
    """Whether an entry's header and body match its checksum."""
    _, check, length, _, _, _ = _ENTRY_HEADER.unpack(header)
    return bool(len(body) == length and crc32(body, crc32(header[_CHECKED_FROM:])) == check)
