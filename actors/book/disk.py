"""What a replica's disk says of itself, beside its log: in which life it is, and what it knows to have been there.

An old copy of a disk (a backup, a restored volume) looks like the disk itself; only what others remember tells them
apart. So every start of a replica begins a new *life* with a random name, on the disk first, then at the coordinator:
a disk that does not hold the name that the coordinator has is an older copy. And what this disk has seen of the
coordinator's record tells an old copy of the coordinator's store.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from pathlib import Path
from typing import Final

from ...transport.errors import StorageError
from .snapshots import write_durably

LIVES_MAX: Final = 16
"""Most starts in a row that are remembered though the coordinator has not answered their reports; older are dropped.

A disk whose last report was one of those dropped counts as an old copy, and is repaired from a peer.
"""
FILE: Final = "disk.json"
"""Name of the file, in the folder of the market's log."""


@dataclasses.dataclass(frozen=True, slots=True)
class DiskState:
    """What is in the file; a value."""

    store: str = ""
    """Id of the coordinator's store that all of this is about."""
    number: int = 0
    """Number of the last life that was reported to the coordinator."""
    life: str = ""
    """Its name."""
    begun: tuple[str, ...] = ()
    """Names of lives that have begun since, and whose report is not known to have arrived; this start's is the last."""
    version: int = 0
    """Version of the newest record of the market that was seen at the coordinator."""
    epoch: int = 0
    """Its epoch."""
    committed_epoch: int = 0
    """The last epoch of which this log has held a committed entry."""
    committed: int = 0
    """Sequence number of the first such entry: a log that ends before it is not the one that was here."""

    def begin(self) -> DiskState:
        """Return the state in which a new life has begun."""
        return dataclasses.replace(self, begun=(*self.begun, secrets.token_hex(8))[-LIVES_MAX:])

    def reported(self, number: int) -> DiskState:
        """Return the state in which this start's life is known to the coordinator."""
        return dataclasses.replace(self, number=number, life=self.begun[-1], begun=())


def read_disk(folder: Path, store: str) -> DiskState:
    """Return what ``folder`` says of itself; what it says of another coordinator's store does not count.

    Raises:
        StorageError: the file cannot be read (code ``corrupt``).
    """
    path = folder / FILE
    try:
        values = json.loads(path.read_text())
        values["begun"] = tuple(values["begun"])
        state = DiskState(**values)
    except FileNotFoundError:
        state = DiskState()
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise StorageError(f"{path} cannot be read: {error}", code="corrupt") from error
    return state if state.store == store else DiskState(store=store)


def keep_disk(folder: Path, state: DiskState) -> None:
    """Make ``state`` durable.

    Raises:
        StorageError: the disk refused.
    """
    try:
        write_durably(folder / FILE, json.dumps(dataclasses.asdict(state)).encode())
    except OSError as error:
        raise StorageError(f"cannot write {folder / FILE}: {error}; the replica stops") from error
