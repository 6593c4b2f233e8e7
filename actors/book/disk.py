"""A replica's disk state beside its log: its current life, and what it knows about the past.

An old copy of a disk (a backup, a restored volume) looks like the disk itself; only the memory of others tells them
apart. So every start of a replica begins a new *life* with a random name, on the disk first, then at the coordinator:
a disk without the name that the coordinator has is an older copy. And what this disk has seen of the coordinator's
record reveals an old copy of the coordinator's store.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ...transport.codec import INT64_MAX
from ...transport.coordinator import Seen
from ...transport.errors import InvariantBroken, StorageError, ensure
from .snapshots import write_durably

LIVES_MAX: Final = 16
"""Most consecutive starts without an answer of the coordinator that are remembered; older ones are dropped.

If the last report of a disk was dropped, the disk counts as an old copy, and is repaired from a peer.
"""
EPOCHS_MAX: Final = 256
"""Most epochs that are remembered; a log that ends before the oldest of them cannot be compared once it is pruned."""
FILE: Final = "disk.json"
"""Name of the file, in the folder of the market's log."""


class Begun(NamedTuple):
    """The first record of an epoch in a log: with it, all records of that epoch are those of one leader."""

    epoch: int
    sequence: int
    """Of its first command."""
    chain: bytes
    """At its end."""


def begun_at(epochs: Sequence[Begun], sequence: int) -> Begun | None:
    """Return the epoch to which ``sequence`` belongs in a log with these ``epochs``; None: it is older than they."""
    return max([each for each in epochs if each.sequence <= sequence], default=None)


@dataclasses.dataclass(frozen=True, slots=True)
class DiskState:
    """What is in the file; a value."""

    store: str = ""
    """Id of the coordinator's store to which the other fields belong."""
    number: int = 0
    """Number of the last life that was reported to the coordinator."""
    life: str = ""
    """Its name."""
    begun: tuple[str, ...] = ()
    """Names of later lives whose reports may not have arrived; this start's is the last."""
    version: int = 0
    """Version of the newest record of the market that was seen at the coordinator."""
    epoch: int = 0
    """Its epoch."""
    leader: str = ""
    """Its leader."""
    forked: bool = False
    """The store had a record that can have come neither before nor after that one: it goes on from an older copy."""
    committed_epoch: int = 0
    """The last epoch of which this log has held a committed entry."""
    committed: int = 0
    """Sequence number of the first such entry: a log that ends before it is not the one that was here."""
    epochs: tuple[Begun, ...] = ()
    """The epochs of which this log holds committed entries, oldest first: what can be compared after it is pruned."""

    def __post_init__(self) -> None:
        for name in (self.store, self.life, self.leader, *self.begun):
            ensure(type(name) is str, f"a name of a store, life or leader is {name!r:.80}, not a string")
        ensure(type(self.forked) is bool, f"forked is {self.forked!r:.80}, not true or false")
        counts = [self.number, self.version, self.epoch, self.committed_epoch, self.committed]
        for count in (*counts, *[each[at] for each in self.epochs for at in (0, 1)]):
            ensure(type(count) is int and 0 <= count <= INT64_MAX, f"a count is {count!r:.80}, not in [0, 2**63 - 1]")

    @property
    def seen(self) -> Seen:
        """The newest record of the market that was seen at the coordinator."""
        return Seen(self.version, self.epoch, self.leader)

    def begin(self) -> DiskState:
        """Return the state in which a new life has begun."""
        return dataclasses.replace(self, begun=(*self.begun, secrets.token_hex(8))[-LIVES_MAX:])

    def reported(self, number: int) -> DiskState:
        """Return the state in which this start's life is known to the coordinator."""
        return dataclasses.replace(self, number=number, life=self.begun[-1], begun=())


def read_disk(folder: Path, store: str) -> DiskState:
    """Return the state in ``folder``; a state for another coordinator's store does not count.

    Raises:
        StorageError: the file cannot be read (code ``corrupt``).
    """
    path = folder / FILE
    try:
        values = json.loads(path.read_text())
        begun, epochs = values["begun"], values["epochs"]
        values["begun"] = tuple(begun)
        values["epochs"] = tuple([Begun(at, first, bytes.fromhex(chain)) for at, first, chain in epochs])
        state = DiskState(**values)
        ensure(type(begun) is type(epochs) is list, "begun or epochs is not a list")
        missing = {each.name for each in dataclasses.fields(state)} - values.keys()
        ensure(not missing, f"without {', '.join(sorted(missing))}")
    except FileNotFoundError:
        state = DiskState()
    except (OSError, ValueError, TypeError, LookupError, InvariantBroken) as error:
        raise StorageError(
            f"{path} cannot be read: {error}; if another replica is in sync, move it away: then this one is repaired",
            code="corrupt",
        ) from error
    return state if state.store == store else DiskState(store=store, epochs=state.epochs)


def keep_disk(folder: Path, state: DiskState) -> None:
    """Make ``state`` durable.

    Raises:
        StorageError: the disk refused.
    """
    try:
        write_durably(folder / FILE, json.dumps(dataclasses.asdict(state), default=bytes.hex).encode())
    except OSError as error:
        raise StorageError(f"cannot write {folder / FILE}: {error}; the replica stops") from error
