"""The journal: what was synced is found again, a torn tail is cut, damage before it is refused."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from openoutcry.actors.book.commands import CANCEL_ALL
from openoutcry.actors.book.journal import FolderLock, Journal
from openoutcry.actors.book.record import EMPTY, Record, Tail
from openoutcry.transport.errors import ConfigurationError, StorageError

SEGMENT = 4096


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
    journal = Journal(tmp_path, segment_size=SEGMENT)
    last_entry = journal._where[-1] & 0xFFFFFFFF
    journal.close()
    at = chance.randrange(8, last_entry)
    data[at] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    with pytest.raises(StorageError) as caught:
        list(Journal(tmp_path, segment_size=SEGMENT).records())
    assert caught.value.code == "corrupt"


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
