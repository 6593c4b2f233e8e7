"""Snapshots of one market's book on disk, beside its journal: written whole or not at all. Never interprets a book.

A file ``<sequence, 20 digits>.snap`` is ``magic | version | epoch, sequence, chain of the log there | BLAKE2b of the
rest | the book's bytes``. It is written to a temporary name, synced, renamed, and the folder synced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import time
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Final

from ...transport.errors import StorageError
from ...transport.log import get_logger
from ...transport.numerals import whole_of
from .record import Tail

logger = get_logger(__name__)

KEPT: Final = 2
"""Number of snapshots to keep: the log is pruned only up to the older one."""

DESCRIPTOR_S: Final = 2.0
"""Seconds that the log waits for a free descriptor; then its replica stops."""
_LOOK_S: Final = 0.02
_SUFFIX: Final = ".snap"
_UNFINISHED: Final = ".new"
_HEADER: Final = struct.Struct("<8sIQQ32s32s")  # magic, version, epoch, sequence, chain, digest of the body
_MAGIC: Final = b"OUTCRYS\0"
_VERSION: Final = 1
_SYNC_SIZE: Final = 1024 * 1024
"""Bytes of a snapshot to write before each sync: the log waits for the same disk."""


class NotKept(StorageError):
    """Something beside the log could not be written or removed: a snapshot, or unneeded segments.

    The log is whole, and the step may be retried.
    """


class Snapshots:
    """The snapshots in one folder. One thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"*{_UNFINISHED}"):
            leftover.unlink()

    def write(self, tail: Tail, book: bytes) -> int:
        """Keep ``book``, which is the state at ``tail``; drop all but the last ``KEPT``.

        Return the sequence number of the oldest snapshot kept: no recovery needs the log before it.

        Raises:
            NotKept: the disk refused.
        """
        scratch = self.scratch(tail)
        write_scratch(scratch, tail, [book])
        return self.adopt(scratch)

    def scratch(self, tail: Tail) -> Path:
        """Return the path to which :func:`write_scratch` must write the state at ``tail``, for :meth:`adopt`."""
        return self._folder / f"{tail.sequence:020d}{_SUFFIX}{_UNFINISHED}"

    def adopt(self, scratch: Path) -> int:
        """Keep a snapshot that was written aside; drop all but the last ``KEPT``; return what :meth:`write` does.

        Raises:
            NotKept: the disk refused.
        """
        try:
            scratch.replace(scratch.with_suffix(""))
            sync_folder(self._folder)
            paths = self._paths()
            for old in paths[:-KEPT]:
                old.unlink()
        except OSError as error:
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)
            raise NotKept(f"cannot keep the snapshot {scratch}: {error}") from error
        return sequence_of(paths[-KEPT:][0]) or 0

    def newest(self) -> tuple[Tail, bytes] | None:
        """Return the last snapshot that is sound, None if there is none; a damaged one is logged and skipped."""
        for path in reversed(self._paths()):
            try:
                return read_snapshot(path)
            except StorageError as error:
                logger.error("snapshot_damaged", error=error)
        return None

    def last(self) -> tuple[int, int, float] | None:
        """Return sequence number, bytes and time (seconds since the Unix epoch) of the last one; None without any."""
        for path in reversed(self._paths()):
            found = path.stat()
            return sequence_of(path) or 0, found.st_size - _HEADER.size, found.st_mtime
        return None

    def _paths(self) -> list[Path]:
        return sorted([path for path in self._folder.glob(f"*{_SUFFIX}") if sequence_of(path) is not None])


def sequence_of(path: Path) -> int | None:
    """Return the sequence number in a snapshot's file name, None if it is another program's file."""
    return whole_of(path.stem.lstrip("0") or "0")


def write_scratch(scratch: Path, tail: Tail, book: Iterable[bytes]) -> int:
    """Write ``book``, in pieces, which is the state at ``tail``, to the file ``scratch``, durably; return its size.

    Raises:
        NotKept: the disk refused.
    """
    digest = blake2b(digest_size=32)
    size = unsynced = 0
    try:
        if not scratch.parent.exists():  # it was removed while the market ran
            scratch.parent.mkdir()
            sync_folder(scratch.parent.parent)
        with scratch.open("wb") as file:
            file.seek(_HEADER.size)
            for piece in book:
                digest.update(piece)
                file.write(piece)
                size += len(piece)
                unsynced += len(piece)
                if unsynced >= _SYNC_SIZE:
                    file.flush()
                    os.fdatasync(file.fileno())
                    unsynced = 0
            file.seek(0)
            header = _HEADER.pack(_MAGIC, _VERSION, tail.epoch, tail.sequence, tail.chain, digest.digest())
            file.write(header)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        with contextlib.suppress(OSError):  # the log may need the space
            scratch.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise NotKept(f"cannot write the snapshot {scratch}: {error}") from error
        raise
    return size


def read_snapshot(path: Path) -> tuple[Tail, bytes]:
    """Return the tail of the log at which a snapshot was taken, and the book's bytes.

    Raises:
        StorageError: it cannot be read, or is damaged (code ``corrupt``).
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    body = data[_HEADER.size :]
    if len(data) < _HEADER.size:
        raise StorageError(f"{path} is cut short", code="corrupt")
    magic, version, epoch, sequence, chain, digest = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != _VERSION:
        raise StorageError(f"{path} is not a snapshot of a version that this program reads", code="corrupt")
    if blake2b(body, digest_size=32).digest() != digest:
        raise StorageError(f"{path} is damaged", code="corrupt")
    return Tail(epoch, sequence, chain), body


def write_durably(path: Path, *parts: bytes) -> None:
    """Replace the file's contents by ``parts``, whole or not at all, and durably."""
    scratch = path.with_name(f"{path.name}.new")
    with scratch.open("wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    opened = open_patiently(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def open_patiently(path: Path, flags: int) -> int:
    """Open a file as ``os.open`` does; if no descriptor is free, wait for one, at most ``DESCRIPTOR_S``.

    For the log: its replica stops if this fails.
    """
    deadline_s = time.monotonic() + DESCRIPTOR_S
    while True:
        try:
            return os.open(path, flags, 0o644)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or time.monotonic() > deadline_s:
                raise
        time.sleep(_LOOK_S)
