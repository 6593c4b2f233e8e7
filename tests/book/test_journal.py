"""The journal: what was synced is found again, a torn tail is cut, damage before it is refused."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from openoutcry.actors.book.commands import CANCEL_ALL
from openoutcry.actors.book.journal import ALLOCATED_MIN, FolderLock, Journal
from openoutcry.actors.book.record import EMPTY, Record, Tail
from openoutcry.transport.errors import ConfigurationError, StorageError

SEGMENT = 4096
HEADER = 64
"""Bytes of a segment's header."""
SEAL = 60
"""Bytes of the seal behind the last entry."""


def records_after(tail: Tail, count: int, *, epoch: int = 1, name: str = "x") -> list[Record]:
    """Return ``count`` records of one to three commands that follow ``tail``."""
    records = []
    for number in range(count):
        commands = tuple([(CANCEL_ALL, name, f"{name}{number}.{at}") for at in range(1 + number % 3)])
        record = Record.make(tail, epoch=epoch, timestamp_ns=number, commands=commands, origins=(("n", 7, 1),))
        records.append(record)
        tail = record.tail
    return records


def write(folder: Path, batches: list[int]) -> list[Record]:
    """Write batches of records, each synced, and return all records."""
    journal = Journal(folder, segment_size=SEGMENT)
    written: list[Record] = []
    for size in batches:
        records = records_after(journal.tail, size)
        journal.append(records, committed=journal.tail.sequence)
        written += records
    journal.close()
    return written


def only_segment(folder: Path) -> Path:
    (path,) = folder.glob("*.log")
    return path


def test_a_journal_takes_as_much_of_the_disk_as_its_market_needs(tmp_path: Path) -> None:
    size_max = 16 * ALLOCATED_MIN
    journal = Journal(tmp_path, segment_size=size_max)
    sizes = [only_segment(tmp_path).stat().st_size]
    while journal.tail.sequence * 64 < size_max // 4:
        journal.append(records_after(journal.tail, 2000), committed=journal.tail.sequence)
        sizes.append(only_segment(tmp_path).stat().st_size)
        assert sizes[-1] >= journal._end, "what is written was allocated before"
    journal.close()
    assert sizes[0] == ALLOCATED_MIN
    assert len(set(sizes)) > 2, "the test is meant to grow it"
    assert all(after in (before, 2 * before) for before, after in pairwise(sizes))


def test_what_was_appended_is_read_back_across_segments_and_restarts(tmp_path: Path) -> None:
    written = write(tmp_path, [3, 1, 20, 7, 90])
    assert len(list(tmp_path.glob("*.log"))) > 2, "the test is meant to cross segments"
    journal = Journal(tmp_path, segment_size=SEGMENT)
    assert list(journal.records()) == written
    assert journal.tail == written[-1].tail
    assert journal.committed == written[-91].last_sequence
    middle = written[30]
    assert journal.tail_at(middle.last_sequence) == middle.tail
    assert journal.tail_at(middle.first_sequence - 1) == written[29].tail
    assert list(journal.records(middle.tail)) == written[31:]
    assert journal.bodies(middle.last_sequence, size_max=1) == [written[31].body]
    more = records_after(journal.tail, 5)
    journal.append(more, committed=0)
    journal.close()
    assert list(Journal(tmp_path, segment_size=SEGMENT).records()) == written + more


def test_a_span_of_records_is_read_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    written = records_after(EMPTY, 1000)
    journal.append(written, committed=0)
    reads = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *given: reads.append(given) or pread(*given))
    assert journal.bodies(0, size_max=1024 * 1024) == [record.body for record in written]
    assert len(reads) == 1
    assert list(journal.records()) == written
    assert len(reads) == 2
    assert len(journal.bodies(0, size_max=1000)) < 20


def test_the_ends_of_the_last_records_up_to_a_place_are_returned(tmp_path: Path) -> None:
    written = write(tmp_path, [3, 1, 20, 7, 90])
    journal = Journal(tmp_path, segment_size=SEGMENT)
    ends = [(0, EMPTY.chain), *((record.last_sequence, record.chain) for record in written)]
    assert journal.tails(0, count_max=9, size_max=SEGMENT) == ends[:1]
    for at, record in enumerate(written, 1):
        for sequence in (record.last_sequence, written[at].last_sequence - 1 if at < len(written) else 10**9):
            for count_max, size_max in ((1000, SEGMENT), (4, SEGMENT), (1000, 500)):
                found = journal.tails(sequence, count_max=count_max, size_max=size_max)
                assert 1 <= len(found) <= count_max
                assert found == ends[at + 1 - len(found) : at + 1], "the last ones, in order, without a gap"
    assert len(journal.tails(written[9].last_sequence, count_max=4, size_max=SEGMENT)) == 4


@pytest.mark.parametrize("seed", range(40))
def test_a_write_torn_anywhere_is_cut_and_all_before_it_is_kept(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    kept = write(tmp_path, [2, 2])
    path = only_segment(tmp_path)
    before = path.read_bytes()
    torn = records_after(kept[-1].tail, 4)
    journal = Journal(tmp_path, segment_size=SEGMENT)
    journal.append(torn, committed=0)
    journal.close()
    after = bytearray(path.read_bytes())
    after[journal._end :] = bytes(len(after) - journal._end)  # the seal is written once the entries are synced
    start = next(at for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new)
    end = len(after.rstrip(b"\0"))
    # Pages of an unsynced write reach the disk in any order: lose some sectors of it.
    for at in range(start, end, 32):
        if chance.random() < 0.5:
            after[at : min(at + 32, end)] = before[at : min(at + 32, end)]
    path.write_bytes(after)
    journal = Journal(tmp_path, segment_size=SEGMENT)
    found = list(journal.records())
    assert found[: len(kept)] == kept
    assert found == (kept + torn)[: len(found)]
    again = records_after(journal.tail, 3, name="again")
    journal.append(again, committed=0)
    journal.close()
    assert list(Journal(tmp_path, segment_size=SEGMENT).records()) == found + again


@pytest.mark.parametrize("seed", range(40))
def test_damage_before_the_end_of_the_log_is_refused_never_cut(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    write(tmp_path, [3, 3, 1])
    path = only_segment(tmp_path)
    data = bytearray(path.read_bytes())
    at = chance.randrange(8, len(data.rstrip(b"\0")) - SEAL)
    data[at] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    with pytest.raises(StorageError) as caught:
        list(Journal(tmp_path, segment_size=SEGMENT).records())
    assert caught.value.code == "corrupt"


@pytest.mark.parametrize("seed", range(20))
def test_damage_to_the_last_acknowledged_record_is_refused_never_taken_for_a_torn_write(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    write(tmp_path, [3, 1 + seed % 3])
    path = only_segment(tmp_path)
    journal = Journal(tmp_path, segment_size=SEGMENT)
    last, end = journal._where[-1] & 0xFFFFFFFF, journal._end
    os.close(journal._fd)  # as a kill does: nothing is written on the way out
    data = bytearray(path.read_bytes())
    data[chance.randrange(last, end)] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    with pytest.raises(StorageError) as caught:
        Journal(tmp_path, segment_size=SEGMENT)
    assert caught.value.code == "corrupt"


def test_a_lost_or_torn_seal_costs_nothing(tmp_path: Path) -> None:
    written = write(tmp_path, [2, 2])
    path = only_segment(tmp_path)
    whole = path.read_bytes()
    journal = Journal(tmp_path, segment_size=SEGMENT)
    end = journal._end + SEAL
    journal.close()
    for keep in (0, 1, 4, 30, 59):
        start = end - SEAL + keep
        path.write_bytes(whole[:start] + bytes(len(whole) - start))
        journal = Journal(tmp_path, segment_size=SEGMENT)
        assert list(journal.records()) == written
        journal.close()


def test_what_a_killed_process_left_in_memory_is_synced_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, [2, 2])
    inode = only_segment(tmp_path).stat().st_ino
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_ino), fsync(fd)))
    Journal(tmp_path, segment_size=SEGMENT).close()
    assert inode in synced
    assert tmp_path.stat().st_ino in synced


class Crash(BaseException):
    """The power goes."""


class Power:
    """Lets the power go at the n-th call that changes the disk; an unlink counts only once the folder is synced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, calls_left: int) -> None:
        self.calls_left = calls_left
        self.removed: dict[Path, bytes] = {}
        for name in ("ftruncate", "posix_fallocate", "pwrite"):
            monkeypatch.setattr(os, name, self.counted(getattr(os, name)))
        fsync, unlink = self.counted(os.fsync), self.counted(Path.unlink)

        def sync(fd: int) -> None:
            fsync(fd)
            if os.fstat(fd).st_ino == folder.stat().st_ino:
                self.removed.clear()

        def remove(path: Path) -> None:
            content = path.read_bytes()
            unlink(path)
            self.removed[path] = content

        monkeypatch.setattr(os, "fsync", sync)
        monkeypatch.setattr(Path, "unlink", remove)

    def counted(self, call: Any) -> Any:
        def run(*arguments: Any) -> Any:
            self.calls_left -= 1
            if self.calls_left < 0:
                raise Crash
            return call(*arguments)

        return run

    def come_back(self) -> None:
        """What was removed without a sync of the folder is there again."""
        for path, content in self.removed.items():
            path.write_bytes(content)


@pytest.mark.parametrize("keep", [0, 5, 33])
@pytest.mark.parametrize("calls", range(16))
def test_a_cut_across_segments_that_is_interrupted_leaves_the_old_log_up_to_some_point(
    tmp_path: Path, keep: int, calls: int
) -> None:
    written = write(tmp_path, [10] * 20)
    assert len(list(tmp_path.glob("*.log"))) > 3
    journal = Journal(tmp_path, segment_size=SEGMENT)
    with pytest.MonkeyPatch.context() as patch:
        power = Power(patch, tmp_path, calls)
        with contextlib.suppress(Crash):
            journal.cut(written[keep].last_sequence if keep else 0)
    power.come_back()
    os.close(journal._fd)
    journal = Journal(tmp_path, segment_size=SEGMENT)
    found = list(journal.records())
    assert len(found) >= (keep + 1 if keep else 0)
    assert found == written[: len(found)]
    more = records_after(journal.tail, 40, name="more")
    journal.append(more, committed=0)
    journal.close()
    assert list(Journal(tmp_path, segment_size=SEGMENT).records()) == found + more


@pytest.mark.parametrize("calls", range(14))
def test_a_new_segment_that_is_interrupted_anywhere_is_begun_again(tmp_path: Path, calls: int) -> None:
    written = write(tmp_path, [20])
    journal = Journal(tmp_path, segment_size=SEGMENT)
    batch = records_after(journal.tail, 60, name="batch")
    with pytest.MonkeyPatch.context() as patch:
        Power(patch, tmp_path, calls)
        with contextlib.suppress(Crash):
            journal.append(batch, committed=0)
    with contextlib.suppress(OSError):
        os.close(journal._fd)
    journal = Journal(tmp_path, segment_size=SEGMENT)
    found = list(journal.records())
    assert found == (written + batch)[: len(found)]
    assert len(found) >= 20
    journal.append(records_after(journal.tail, 40), committed=0)
    journal.close()


def test_a_last_segment_without_entries_is_read_and_written_on(tmp_path: Path) -> None:
    written = write(tmp_path, [20])
    journal = Journal(tmp_path, segment_size=SEGMENT)
    journal._start_segment()
    journal.close()
    journal = Journal(tmp_path, segment_size=SEGMENT)
    assert list(journal.records()) == written
    assert journal.cut(written[5].last_sequence) == written[5].tail
    journal.close()
    assert list(Journal(tmp_path, segment_size=SEGMENT).records()) == written[:6]


@pytest.mark.parametrize("lost", [0, 8, 59])
def test_a_segment_without_a_header_is_dropped_if_empty_and_refused_if_not(tmp_path: Path, lost: int) -> None:
    written = write(tmp_path, [20])
    journal = Journal(tmp_path, segment_size=SEGMENT)
    journal._start_segment()
    path = journal._paths[-1]
    journal.close()
    empty = bytearray(path.read_bytes())
    empty[lost:HEADER] = bytes(HEADER - lost)
    path.write_bytes(empty)
    journal = Journal(tmp_path, segment_size=SEGMENT)
    assert list(journal.records()) == written
    journal._start_segment()
    journal.append(records_after(journal.tail, 2, name="more"), committed=0)
    journal.close()
    full = bytearray(path.read_bytes())
    full[lost:HEADER] = bytes(HEADER - lost)
    path.write_bytes(full)
    with pytest.raises(StorageError) as caught:
        Journal(tmp_path, segment_size=SEGMENT)
    assert caught.value.code == "corrupt"


def test_a_disk_that_is_full_when_a_segment_begins_stops_the_journal_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, segment_size=SEGMENT)
    first = records_after(journal.tail, 10)
    journal.append(first, committed=0)

    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    batch = records_after(journal.tail, 60)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", refuse)
        with pytest.raises(StorageError, match="no space left"):
            journal.append(batch, committed=0)
        with pytest.raises(StorageError, match="earlier write failed"):
            journal.append(batch, committed=0)
    journal.close()
    journal = Journal(tmp_path, segment_size=SEGMENT)
    found = list(journal.records())
    assert found[:10] == first
    assert found == (first + batch)[: len(found)]
    journal.append(records_after(journal.tail, 40), committed=0)


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:61], offset))
    written = write(tmp_path, [3, 20, 40])
    monkeypatch.undo()
    assert list(Journal(tmp_path, segment_size=SEGMENT).records()) == written


def test_a_cut_log_forgets_what_followed_even_after_a_restart(tmp_path: Path) -> None:
    written = write(tmp_path, [10] * 8)
    journal = Journal(tmp_path, segment_size=SEGMENT)
    keep = written[33]
    assert journal.cut(keep.last_sequence) == keep.tail
    other = records_after(keep.tail, 2, epoch=5, name="other")
    journal.append(other, committed=0)
    journal.close()
    journal = Journal(tmp_path, segment_size=SEGMENT)
    assert list(journal.records()) == written[:34] + other
    assert journal.cut(0) == EMPTY
    journal.close()
    assert list(Journal(tmp_path, segment_size=SEGMENT).records()) == []


def test_a_failed_sync_is_final_and_never_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    first = records_after(EMPTY, 1)
    journal.append(first, committed=0)

    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(StorageError, match="input/output error"):
            journal.append(records_after(journal.tail, 1), committed=0)
    assert journal.tail == first[-1].tail
    with pytest.raises(StorageError, match="earlier write failed"):
        journal.append(records_after(journal.tail, 1), committed=0)
    journal.close()


@pytest.mark.slow
def test_a_data_directory_belongs_to_one_process_until_that_dies(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from openoutcry.actors.book.journal import FolderLock;"
        "lock = FolderLock(pathlib.Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(ConfigurationError) as caught:
            FolderLock(tmp_path)
        assert caught.value.code == "data_dir_in_use"
        process.kill()
        process.wait()
    FolderLock(tmp_path).release()
