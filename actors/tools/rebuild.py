"""Rebuilds a coordinator's lost records from the disks of stopped nodes.

Every member of an in-sync set holds all answered commands. If a member's disk is among the given ones, then the log
that reaches furthest, by epoch and then by sequence, holds them too: within an epoch all logs are prefixes of the
leader's. Only the lost store knew which nodes were members, so the new records are made by force: if another disk holds
more, its log is put aside when it joins, never cut.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

from ...transport.coordinator import Coordinator, MarketRecord, first_record
from ...transport.errors import ConfigurationError, StorageError
from ..group.folder import owner_of
from .inspection import MarketReport, market_folders, verify_market


@dataclasses.dataclass(frozen=True, slots=True)
class Holder:
    """What one node's disk holds of a market. ``unfit``: why the market cannot continue from it, None if it can."""

    node: str
    sequence: int
    epoch: int
    state_hash: str | None
    unfit: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Rebuilt:
    """How a market continues: ``leader`` alone is in sync at first, and leads from ``epoch`` on."""

    market: str
    leader: Holder
    epoch: int
    others: tuple[Holder, ...]


def plan(folders: Iterable[Path], on_progress: Callable[[str], object] = lambda _market: None) -> list[Rebuilt]:
    """Return how each market with a log in the data directories ``folders`` continues. Changes nothing.

    ``on_progress`` is called with the name of each market before its whole log is executed.

    Raises:
        ConfigurationError: a folder is not a data directory (code ``not_a_data_dir``), or two belong to one node.
        StorageError: no disk holds a sound log of some market (code ``corrupt``), or one cannot be read.
    """
    found: dict[str, list[Holder]] = {}
    nodes: dict[str, Path] = {}
    for folder in folders:
        node = _node_of(folder)
        if node in nodes:
            raise ConfigurationError(f"{folder} and {nodes[node]} are both the disk of {node}: give one of them")
        nodes[node] = folder
        markets, _ = market_folders(folder)
        for market, path in markets.items():
            on_progress(market)
            report = verify_market(market, path)
            if report.sequence or report.damage:
                found.setdefault(market, []).append(_holder(node, report))
    plans = []
    for market, holders in sorted(found.items()):
        fit = [holder for holder in holders if holder.unfit is None]
        if not fit:
            reasons = "; ".join([f"{holder.node}: {holder.unfit}" for holder in holders])
            raise StorageError(f"market {market}: no disk holds a log to go on from ({reasons})", code="corrupt")
        leader = max(fit, key=lambda holder: (holder.epoch, holder.sequence))
        epoch = max([holder.epoch for holder in holders]) + 1
        plans.append(Rebuilt(market, leader, epoch, tuple([h for h in holders if h is not leader])))
    return plans


def carry_out(store: Coordinator, plans: Iterable[Rebuilt]) -> list[MarketRecord]:
    """Write the records; after an error, another call continues.

    Raises:
        ConfigurationError: the store already has a record of one of the markets (code ``market_listed``): nothing was
            written.
        Unavailable: the store cannot be reached; the outcome is unknown.
    """
    plans = list(plans)
    begun = {each.market: first_record(each.market, each.leader.node, (each.leader.node,)) for each in plans}
    for record in store.read_all():
        if record.market in begun and record != begun[record.market] and not _is_done(record, plans):
            raise ConfigurationError(
                f"the store has a record of market {record.market} already, led by {record.leader} in epoch "
                f"{record.epoch}: it is not empty, so give another, or remove that one if it is not in use",
                code="market_listed",
            )
    done = []
    for each in plans:
        node = each.leader.node
        record = store.create(each.market, node, (node,))
        if not _is_done(record, plans):
            swapped = store.swap(record, epoch=each.epoch, leader=node, in_sync=(node,), force=True)
            if swapped is None:
                raise ConfigurationError(
                    f"somebody else writes the record of market {each.market}: stop all nodes first",
                    code="market_listed",
                )
            record = swapped
        done.append(record)
    return done


def _is_done(record: MarketRecord, plans: Iterable[Rebuilt]) -> bool:
    wanted = [(each.market, each.leader.node, each.epoch, each.epoch) for each in plans]
    return (record.market, record.leader, record.epoch, record.forced) in wanted and record.version == record.epoch


def _node_of(folder: Path) -> str:
    if (owner := owner_of(folder)) is None:
        raise ConfigurationError(f"{folder} is not a node's data directory: it has no node.json", code="not_a_data_dir")
    return owner[0]


def _holder(node: str, report: MarketReport) -> Holder:
    unfit = None
    if not report.sound:
        unfit = "; ".join([str(damage) for damage in report.damage])
    elif report.repairing:
        unfit = f"it was being repaired: {report.repairing}"
    return Holder(node, report.sequence, report.epoch, report.state_hash, unfit)
