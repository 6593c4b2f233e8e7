"""The coordinators of an exchange that is hurt: a SQLite file, and an etcd of which a member dies with each fault."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path

from etcd_cluster import EtcdCluster, Member


class SqliteStore:
    """A file, in the folder of the exchange."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = str(folder / "coordinator.sqlite")

    def lose_a_member(self) -> None:
        """A file has none."""

    def heal(self) -> None:
        """Nothing was lost."""

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """The file is not where it was."""
        path = Path(self.address)
        away = path.with_name("away.sqlite")
        path.rename(away)
        try:
            yield
        finally:
            away.rename(path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Another program holds the file."""
        connection = sqlite3.connect(self.address, timeout=10, isolation_level=None)
        connection.execute("BEGIN EXCLUSIVE")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")
            connection.close()


class EtcdStore:
    """Three members on loopback, shared with other tests; the keys are this exchange's own."""

    def __init__(self, folder: Path, cluster: EtcdCluster) -> None:
        self.folder = folder
        self.address = cluster.address(f"faults/{uuid.uuid4()}")
        self._cluster = cluster
        self._dead: list[Member] = []

    def lose_a_member(self) -> None:
        """kill -9 of etcd's own leader, or of another member, with equal chance."""
        leader = self._cluster.leader()
        others = [member for member in self._cluster.members if member is not leader]
        victim = random.choice([leader, random.choice(others)])
        self._cluster.kill(victim)
        self._dead.append(victim)

    def heal(self) -> None:
        """Start the member that was lost again."""
        while self._dead:
            self._cluster.start([self._dead.pop()])

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """No member does anything."""
        with self._cluster.stopped():
            yield


Store = SqliteStore | EtcdStore
