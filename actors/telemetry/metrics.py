"""The metrics of a node, in Prometheus' terms. Asks the actors at each scrape; nothing here is on the path of an order.

:data:`METRICS` lists all of them: the collector publishes nothing else. Each node has a registry of its own.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import platform
import re
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any, Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from ...transport.numerals import written
from ...transport.plain import plain
from ..book.meters import MarketMeters
from ..book.requests import WAITING_MAX
from ..book.status import MarketStatus
from ..kit.meters import Histogram
from ..market.condition import NOT_OPEN, READY, condition
from ..peers.meters import LinkMeters
from .logs import LINES_MAX, LogOutput
from .status import NodeView

SCRAPE_S_MAX: Final = 1.0
"""Seconds that a scrape waits for the actors; it leaves out those that have not answered."""
ROLES: Final = ("leading", "following", "claiming", "observing", "stopped", "unresponsive", NOT_OPEN)


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its kind (``counter``, ``gauge``, ``histogram``), its meaning, its labels besides ``node``."""

    kind: str
    help: str
    labels: tuple[str, ...] = ()


_EXPONENT: Final = re.compile(rb"(?<= )-?[0-9.]+e[+-][0-9]+$", re.MULTILINE)
"""A sample's value as prometheus_client writes it above 999,999 and below 0.0001."""
_M: Final = ("market",)
METRICS: Final[Mapping[str, Metric]] = {
    "openoutcry_build_info": Metric("gauge", "1; the labels say what runs.", ("version", "python")),
    "openoutcry_node_failures": Metric("gauge", "Actors that have failed and are not running. 0 is healthy."),
    "openoutcry_actor_restarts_total": Metric("counter", "Actors that failed and were restarted.", ("actor",)),
    "openoutcry_log_lines_dropped_total": Metric("counter", "Log lines discarded because the reader was too slow."),
    # A market's replica.
    "openoutcry_market_ready": Metric("gauge", "1 if the market can be traded, and read up to date, here.", _M),
    "openoutcry_market_condition": Metric("gauge", "1 for the state that /readyz shows.", ("market", "state")),
    "openoutcry_market_role": Metric("gauge", "1 for the role of this replica.", ("market", "role")),
    "openoutcry_market_epoch": Metric("gauge", "The epoch; it grows by one whenever the leader changes.", _M),
    "openoutcry_in_sync_replicas": Metric("gauge", "Replicas of the in-sync set, as known here.", _M),
    "openoutcry_min_in_sync_replicas": Metric("gauge", "Replicas needed; below it commands are refused.", _M),
    "openoutcry_sequence": Metric(
        "gauge", "The last sequence number appended, durable, committed, applied here.", ("market", "at")
    ),
    "openoutcry_behind_commands": Metric("gauge", "Committed commands that are not applied here yet.", _M),
    "openoutcry_replica_lag_commands": Metric(
        "gauge", "Leader: commands that a replica does not hold durably.", ("market", "peer")
    ),
    "openoutcry_replica_lag_seconds": Metric(
        "gauge", "Leader: how long a replica that lags has made no progress.", ("market", "peer")
    ),
    "openoutcry_commands_total": Metric("counter", "Commands applied since the start.", _M),
    "openoutcry_records_total": Metric("counter", "Records applied since the start; commands travel in them.", _M),
    "openoutcry_events_total": Metric("counter", "Events that applied commands made.", _M),
    "openoutcry_trades": Metric("gauge", "Trades since the market was opened.", _M),
    "openoutcry_open_orders": Metric("gauge", "Orders in the book.", _M),
    "openoutcry_rejections_total": Metric("counter", "Commands that the book rejected, by code.", ("market", "code")),
    "openoutcry_ack_seconds": Metric("histogram", "Seconds from a request's submission here to its answer.", _M),
    "openoutcry_requests_failed_total": Metric(
        "counter",
        "Requests submitted here that failed, by the error's code.",
        ("market", "code"),
    ),
    "openoutcry_batch_commands": Metric("histogram", "Leader: commands in each record.", _M),
    "openoutcry_journal_sync_seconds": Metric("histogram", "Seconds to write and sync one batch to the journal.", _M),
    "openoutcry_queue_depth": Metric(
        "gauge", "Items in a queue; the market is empty for the node's own queues.", ("market", "queue")
    ),
    "openoutcry_queue_limit": Metric("gauge", "The bound of a queue that has one.", ("market", "queue")),
    "openoutcry_snapshot_sequence": Metric("gauge", "The sequence number of the last snapshot on disk.", _M),
    "openoutcry_snapshot_bytes": Metric("gauge", "The size of the last snapshot on disk.", _M),
    "openoutcry_snapshot_age_seconds": Metric("gauge", "The age of the last snapshot on disk.", _M),
    "openoutcry_snapshots_failed_total": Metric("counter", "Snapshots that failed; the node retries.", _M),
    "openoutcry_swaps_total": Metric("counter", "Attempts of this replica to change leader or in-sync set.", _M),
    "openoutcry_protocol_errors_total": Metric("counter", "Messages from peers that broke the protocol.", _M),
    "openoutcry_subscribers": Metric("gauge", "Subscribers to the market's events.", _M),
    "openoutcry_subscribers_cut_total": Metric("counter", "Subscribers cut because they were too slow.", _M),
    # Links, the directory, the coordinator.
    "openoutcry_peer_up": Metric("gauge", "1 if the link to a known node is up.", ("peer",)),
    "openoutcry_link_ups_total": Metric("counter", "How often the link came up.", ("peer",)),
    "openoutcry_frames_in_total": Metric("counter", "Frames received.", ("peer",)),
    "openoutcry_frames_out_total": Metric("counter", "Frames sent.", ("peer",)),
    "openoutcry_bytes_in_total": Metric("counter", "Bytes of the frames received.", ("peer",)),
    "openoutcry_bytes_out_total": Metric("counter", "Bytes of the frames sent.", ("peer",)),
    "openoutcry_frames_refused_total": Metric("counter", "Frames that broke the protocol; each closed its link."),
    "openoutcry_remote_messages_refused_total": Metric(
        "counter", "Messages from other nodes that did not fit an accepted type."
    ),
    "openoutcry_certificate_end_timestamp_seconds": Metric(
        "gauge", "When the node's certificate expires, in seconds since the Unix epoch."
    ),
    "openoutcry_clock_off": Metric("gauge", "1 if this machine's clock differs from most of its peers'."),
    "openoutcry_clock_offset_seconds": Metric(
        "gauge", "How far a peer's clock, or that of the coordinator's host, is ahead of this machine's.", ("peer",)
    ),
    "openoutcry_market_time_offset_seconds": Metric(
        "gauge", "How far the market's time is ahead of the time that most clocks agree on, if beyond the bound.", _M
    ),
    "openoutcry_coordinator_up": Metric("gauge", "1 if the coordinator answered the last request."),
    "openoutcry_coordinator_seconds": Metric("histogram", "Seconds of a request to the coordinator, answered or not."),
    "openoutcry_coordinator_failures_total": Metric("counter", "Requests to the coordinator that failed."),
}
"""Every metric by its name. All have the label ``node``; those of the process itself are named ``process_*``."""

_FAMILIES: Final = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}


class NodeCollector(Collector):
    """Collects one node's metrics when they are scraped."""

    def __init__(self, node: NodeView) -> None:
        self._node = node
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return _EXPONENT.sub(lambda found: written(float(found[0]), None).encode(), generate_latest(self.registry))

    def describe(self) -> list[Any]:
        """Return nothing: a node's metrics are known only when it is scraped."""
        return []

    def collect(self) -> Iterator[Any]:
        """Return the families that have samples."""
        return iter(_Samples(self._node).families.values())


class _Samples:
    """The samples of one scrape."""

    def __init__(self, node: NodeView) -> None:
        self._node = node.name
        self.families: dict[str, Any] = {}
        self._add_process()
        if node.phase == "running":
            self._add_node(node)
            for market, status in node.market_statuses(SCRAPE_S_MAX).items():
                self._add_market(node, market, status)
        for market, meters in list(node.meters.markets.items()):
            self._add_meters(market, meters)

    def _family(self, name: str) -> Any:
        family = self.families.get(name)
        if family is None:
            metric = METRICS[name]
            made = _FAMILIES[metric.kind](name, metric.help, labels=("node", *metric.labels))
            family = self.families[name] = made
        return family

    def _add(self, name: str, value: float, *labels: str) -> None:
        self._family(name).add_metric([plain(label) for label in (self._node, *labels)], value)

    def _add_histogram(self, name: str, found: Histogram, *labels: str) -> None:
        cumulated = list(itertools.accumulate(found.counts))
        buckets = [(written(bound), float(count)) for bound, count in zip(found.bounds, cumulated, strict=False)]
        buckets.append(("+Inf", float(cumulated[-1])))
        names = [plain(label) for label in (self._node, *labels)]
        self._family(name).add_metric(names, buckets=buckets, sum_value=found.total)

    def _add_process(self) -> None:
        self._add("openoutcry_build_info", 1, metadata.version("openoutcry"), platform.python_version())
        writers = [handler for handler in logging.getLogger().handlers if isinstance(handler, LogOutput)]
        self._add("openoutcry_log_lines_dropped_total", sum([writer.lines_dropped for writer in writers]))
        for writer in writers:
            self._add("openoutcry_queue_depth", writer.lines_waiting, "", "log")
            self._add("openoutcry_queue_limit", LINES_MAX, "", "log")

    def _add_node(self, node: NodeView) -> None:
        self._add("openoutcry_node_failures", len(node.dead_actors()))
        for actor, count in list(node.meters.restarts.items()):
            self._add("openoutcry_actor_restarts_total", count, actor)
        self._add("openoutcry_frames_refused_total", node.frames_refused)
        self._add("openoutcry_remote_messages_refused_total", node.messages_refused)
        for queue, (depth, limit) in node.remote_queues().items():
            self._add("openoutcry_queue_depth", depth, "", queue)
            self._add("openoutcry_queue_limit", limit, "", queue)
        if (ends_ns := node.certificate_ends_ns) is not None:
            self._add("openoutcry_certificate_end_timestamp_seconds", ends_ns / 1e9)
        up = node.links_up()
        for peer, meters in list(node.meters.links.items()):
            self._add("openoutcry_peer_up", peer in up, peer)
            self._add_link(peer, meters)
        clocks = node.clocks
        self._add("openoutcry_clock_off", clocks.off)
        for peer, offset in clocks.offsets.items():
            self._add("openoutcry_clock_offset_seconds", offset.offset_ns / 1e9, peer)
        self._add("openoutcry_coordinator_up", node.coordinator_answers())
        self._add_histogram("openoutcry_coordinator_seconds", node.meters.store.seconds)
        self._add("openoutcry_coordinator_failures_total", node.meters.store.failures)

    def _add_link(self, peer: str, meters: LinkMeters) -> None:
        self._add("openoutcry_link_ups_total", meters.ups, peer)
        self._add("openoutcry_frames_in_total", meters.frames_in, peer)
        self._add("openoutcry_frames_out_total", meters.frames_out, peer)
        self._add("openoutcry_bytes_in_total", meters.bytes_in, peer)
        self._add("openoutcry_bytes_out_total", meters.bytes_out, peer)

    def _add_market(self, node: NodeView, market: str, status: MarketStatus) -> None:
        state, _ = condition(status, node.node_id)
        self._add("openoutcry_market_ready", state == READY, market)
        self._add("openoutcry_market_condition", 1, market, state)
        role = "observing" if status.observer else status.role
        for each in ROLES:
            self._add("openoutcry_market_role", each == role, market, each)
        for queue, (depth, limit) in node.queues(market).items() if role != NOT_OPEN else ():
            self._add("openoutcry_queue_depth", depth, market, queue)
            if limit:
                self._add("openoutcry_queue_limit", limit, market, queue)
        if not status.answered:
            return
        self._add("openoutcry_market_time_offset_seconds", status.time_off_s, market)
        self._add("openoutcry_market_epoch", status.epoch, market)
        self._add("openoutcry_in_sync_replicas", len(status.in_sync), market)
        self._add("openoutcry_min_in_sync_replicas", status.min_in_sync, market)
        for at in ("appended", "durable", "committed", "applied"):
            self._add("openoutcry_sequence", getattr(status, at), market, at)
        self._add("openoutcry_behind_commands", max(0, status.known - status.applied), market)
        for peer, follower in status.followers.items():
            lag = max(0, status.appended - follower["durable"])
            self._add("openoutcry_replica_lag_commands", lag, market, peer)
            self._add("openoutcry_replica_lag_seconds", follower["behind_s"] if lag else 0, market, peer)
        for name in ("commands", "records", "events", "swaps", "protocol_errors"):
            self._add(f"openoutcry_{name}_total", status.counters[name], market)
        self._add("openoutcry_trades", status.trades, market)
        self._add("openoutcry_open_orders", status.open_orders, market)
        self._add("openoutcry_subscribers", status.subscribers, market)
        self._add("openoutcry_queue_depth", status.waiting, market, "to_order")
        self._add("openoutcry_queue_limit", WAITING_MAX, market, "to_order")

    def _add_meters(self, market: str, meters: MarketMeters) -> None:
        self._add_histogram("openoutcry_ack_seconds", meters.ack_s, market)
        self._add_histogram("openoutcry_batch_commands", meters.batch, market)
        self._add_histogram("openoutcry_journal_sync_seconds", meters.sync_s, market)
        for failure, count in list(meters.requests_failed.items()):
            self._add("openoutcry_requests_failed_total", count, market, failure)
        for code, count in list(meters.rejections.items()):
            self._add("openoutcry_rejections_total", count, market, code)
        self._add("openoutcry_subscribers_cut_total", meters.subscribers_cut, market)
        self._add("openoutcry_snapshots_failed_total", meters.snapshots_failed, market)
        if meters.snapshot is not None:
            sequence, size, written_s = meters.snapshot
            self._add("openoutcry_snapshot_sequence", sequence, market)
            self._add("openoutcry_snapshot_bytes", size, market)
            self._add("openoutcry_snapshot_age_seconds", max(0.0, time.time() - written_s), market)
