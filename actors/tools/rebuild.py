"""A coordinator's records made anew from nodes' disks, when its store was lost. Nodes stand still meanwhile.

Every member of an in-sync set holds all that was answered. So does, of any number of disks with a member's among them,
the log that reaches furthest, by epoch and then by sequence: within an epoch all logs are beginnings of its leader's.
Which nodes were members only the lost store knew, so the new records are made by force: what another disk holds beyond
is put aside when it joins, never cut.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from ...transport.coordinator import Coordinator, MarketRecord, first_record
from ...transport.errors import ConfigurationError, StorageError
from .inspection import MarketReport, market_folders, verify_market


@dataclasses.dataclass(frozen=True, slots=True)
class Holder:
    """What one node's disk holds of a market. ``unfit``: why it cannot be gone on from, None if it can."""

    node: str
    sequence: int
    epoch: int
    state_hash: str | None
    unfit: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Rebuilt:
    """How a market goes on: ``leader`` alone is in sync at first, and leads from ``epoch`` on."""

    market: str
    leader: Holder
    epoch: int
    others: tuple[Holder, ...]


def plan(folders: Iterable[Path], on_progress: Callable[[str], object] = lambda _market: None) -> list[Rebuilt]:
    """Return how each market goes on of which the data directories ``folders`` hold a log. Changes nothing.

    ``on_progress`` is called with the name of each market before it is read: its log is executed whole.

    Raises:
        ConfigurationError: a folder is no data directory (code ``not_a_data_dir``), or two are one node's.
        StorageError: no disk holds a sound log of some market (code ``corrupt``), or one refuses to be read.
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
    """Write the records; done again after an error it goes on where it was.

    Raises:
        ConfigurationError: the store has a record of one of the markets already (code ``market_listed``): nothing was
            written then.
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
    return (record.market, record.leader, record.epoch, record.forced) in wanted and record.version == 2


def _node_of(folder: Path) -> str:
    path = folder / "node.json"
    try:
        return str(json.loads(path.read_text())["node_id"])
    except FileNotFoundError:
        raise ConfigurationError(
            f"{folder} is no node's data directory: it has no node.json", code="not_a_data_dir"
        ) from None
    except (ValueError, LookupError, TypeError) as error:
        raise StorageError(f"{path} cannot be read: {error}", code="corrupt") from error


def _holder(node: str, report: MarketReport) -> Holder:
    unfit = None
    if not report.sound:
        unfit = "; ".join([str(damage) for damage in report.damage])
    elif report.repairing:
        unfit = f"it was being repaired: {report.repairing}"
    return Holder(node, report.sequence, report.epoch, report.state_hash, unfit)
