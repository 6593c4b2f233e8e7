"""How this library logs: events with stable names and fields, sent to the standard library's loggers.

It configures nothing: the application decides where lines go, and in which form. A log record's message is
``event key=value …``; its fields are attributes of the record too, ``event`` among them, for formatters that want them.
:data:`EVENTS` lists all events; no field holds a secret.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Mapping, MutableMapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, cast

from .errors import OpenOutcryError
from .numerals import in_json, times_in_json, written
from .plain import plain

if TYPE_CHECKING:
    import structlog

PROGRESS_S: Final = 5.0
"""Seconds between two progress reports of long work, in the log or by a command that has no terminal."""

EVENTS: Final[Mapping[str, str]] = {
    # A node's life.
    "node_started": "The node listens, is announced, and has recovered what is on its disk.",
    "node_ready": "Every market of the node can be traded at this node.",
    "node_waits": "A market is still unusable some seconds after the start; the node keeps waiting for it.",
    "node_closing": "The node is shutting down: it hands over the markets it leads and answers what it can.",
    "node_closed": "The node has shut down in order.",
    "node_stuck": "The node did not shut down in time; its process ends without further cleanup.",
    "fork_not_let_go": "A forked child could not close something that it inherited.",
    "log_reopened": "The log file was opened again, as SIGHUP asks for.",
    "log_not_reopened": "The log file could not be opened again; the node keeps writing to the old one.",
    "log_line_failed": "A record could not be formatted: its arguments do not fit its text or the log format.",
    "log_lines_dropped": "The reader of the log was too slow; this many lines were discarded.",
    # A market's replica.
    "recovering": "The replica is rebuilding the book from its disk: done so far, and left to do.",
    "catching_up": "The replica lacks committed commands: done so far, and at least this much left to do.",
    "recovered": "The book matches the disk, up to this sequence number.",
    "journal_put_aside": "The journal is damaged: it was moved aside, and the replica is repaired from a peer.",
    "log_lost": "The replica had a journal, and it is missing: the replica is repaired from a peer before it can lead.",
    "disk_behind": "The disk is an older copy, or its log is missing: the replica is repaired before it can lead.",
    "trouble": "A person has to act, and the error says how: a disk, or the coordinator's store, is an older copy.",
    "trouble_over": "The cause of the last `trouble` event is gone.",
    "snapshot_damaged": "A snapshot is damaged; the replica uses an older one.",
    "snapshot_failed": "A snapshot could not be written or kept: the market goes on, and the node tries again.",
    "snapshot_taken_again": "A snapshot was written, after earlier ones had failed.",
    "disk_state_not_kept": "The disk state beside the log could not be written: the node tries again.",
    "log_not_read": "The log could not be read for a follower; the leader tries again.",
    "repaired": "The replica has repaired its damaged log from the leader, or an operator gave that log up.",
    "state_taken_over": "The replica was far behind and has installed the leader's snapshot.",
    "leading": "This replica leads the market from this epoch on.",
    "not_leading": "This replica no longer leads the market; a warning if it did not hand leadership over.",
    "replica_left": "The leader removed a replica from the in-sync set and no longer waits for its disk.",
    "replica_in_sync": "The leader added a replica to the in-sync set and now waits for its disk.",
    "leader_forced": "An operator makes this node lead: commands that only the former in-sync set held are lost.",
    "log_outlived": "Leadership was forced past this log: commands that only this log holds are lost, answered or not.",
    "log_put_aside": "The log that leadership was forced past is kept in this folder; the replica joins as new.",
    "leader_lapsed": "The leader's lease has expired or its process has ended: an in-sync replica takes over.",
    "leader_yields": "This leader has too few replicas to commit: a replica that has enough may take over.",
    "market_not_opened": "A market could not be opened: file descriptors, space or threads ran out; it is retried.",
    "market_opened": "A market was opened after earlier attempts had failed.",
    "market_joined": "The node has joined a market that it found in the coordinator.",
    "market_not_joined": "A market could not be joined; the node tries again.",
    "market_moved": "This node handed the market over to a peer, to balance leadership.",
    "market_not_moved": "The market could not be handed over and stays here for now.",
    "command_rejected": "The book rejected a command; logged at level debug, at every node.",
    "answer_of_another": "The log has other commands under this node's request numbers: a copy of this node may run.",
    "requests_expired": "This many requests got no answer in time; the first one's client order id is named.",
    "replica_stopped": "The replica has stopped: restart the node, which may need repair first.",
    # Links and the directory.
    "link_up": "The link to a peer is up.",
    "link_down": "The link to a peer is down.",
    "link_not_made": "An announced peer is still unlinked after some seconds: see the hint.",
    "identity_exposed": "Users other than its owner may read an identity file, which holds the node's private key.",
    "certificate_ends_soon": "The node's certificate expires within 30 days: issue another, and restart the node.",
    "peer_ended": "Nothing listens at a peer's address: its process has ended, and nobody waits for its lease.",
    "peer_replaced": "Another node is linked at this peer's address; this peer is no longer dialled.",
    "link_reset": "The link to a peer was closed because of what the peer sent.",
    "coordinator_differs": "A peer uses another coordinator; no link is made.",
    "peer_unreachable": "A peer announces an address that cannot be dialled.",
    "name_refused": "A node announces a name that its id does not have: no link is made.",
    "peer_refused": "This node keeps links to as many peers as it may; it makes no link to this one.",
    "frame_refused": "A frame broke the protocol; the sender's connection is closed.",
    "frame_failed": "A frame could not be handled: a bug in this program.",
    "receive_failed": "A socket could not be read; the node tries again.",
    "directory_silent": "No rendezvous answers, or some do not.",
    "directory_answers": "All rendezvous answer again.",
    "directory_malformed": "A rendezvous' answer broke the protocol; its connection is closed.",
    "directory_learned": "A rendezvous has named another rendezvous.",
    "directory_address_refused": "A rendezvous has named another whose address cannot be dialled.",
    "announcements_refused": "A rendezvous refused this node's announcements.",
    "goodbye_failed": "The directory could not be notified that the node shuts down; its entry will expire.",
    "rendezvous_failed": "The rendezvous goes on after an unexpected error.",
    "rendezvous_refused": "A request to the rendezvous broke the protocol; the connection is closed.",
    "rendezvous_unread": "A client of the rendezvous does not read its answers; the connection is closed.",
    # Clocks.
    "clock_off": "This machine's clock differs from most of its peers': set it. Another node leads where one can.",
    "clock_right": "This machine's clock agrees with most of its peers' again.",
    "clock_jump_refused": "The wall clock has jumped; the market's time goes on without it.",
    "log_time_off": "The market's time is off by more than the bound: see `openoutcry clock reset`.",
    "log_time_right": "The market's time is right again.",
    "log_time_set": "An operator has set the market's time to that of this machine's clock.",
    # The coordinator.
    "coordinator_unusable": "The coordinator cannot be used; markets go on as they are.",
    "coordinator_usable": "The coordinator can be used again.",
    "node_id_in_use": "Another process holds this node's lease, so its data directory was copied: replicas stop.",
    "coordinator_call_failed": "The coordinator did not answer; the node retries, and logs later failures at debug.",
    "coordinator_call_broken": "A request to the coordinator failed with an error that is not the store's.",
    "lease_not_released": "The node could not release its lease at shutdown; the lease will expire.",
    # Actors, subscribers, the control link.
    "inbox_failed": "An actor's own inbox raised an exception and did not take a message; the sender is notified.",
    "message_refused": "A message from another node does not fit its type, or its actor does not accept that type.",
    "actor_restarted": "A failed actor was restarted.",
    "actor_failed_ending": "A failed actor failed again while it released its resources.",
    "actor_stuck": "An actor did not stop in time.",
    "child_failed": "A supervised actor has failed; its supervisor restarts it after a pause.",
    "child_given_up": "A supervised actor has failed more often than its policy allows; its supervisor gives it up.",
    "watcher_failed": "An actor has ended, and one of its watchers could not be notified.",
    "unhandled_failed": "An actor's ``on_unhandled`` raised an exception; the message is discarded all the same.",
    "item_not_sent": "A message to another node could not be encoded and was discarded: a bug in this program.",
    "supervisor_failed": "The actor that restarts others has failed: nothing is restarted any more.",
    "subscriber_cut": "A subscriber fell too far behind and was cut; it may subscribe again.",
    "subscriber_failed": "A subscriber raised an exception and was cut.",
    "subscriber_blocked": "A subscriber blocks the thread that delivers its events.",
    "control_failed": "A request over the control link failed: a bug in this program.",
    "health_failed": "A request for the node's health or metrics failed: a bug in this program.",
    "control_unread": "A client of the control link did not read its answer.",
}
"""Every event that is logged: its name and its meaning."""

_RESERVED: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_SECRET: Final = re.compile(r"(://[^/@:\s]*:)[^/\s]*(?=@)|(\b(?:password|token)=)[^&\s]+")


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a module; it logs through ``logging.getLogger(name)``.

    Its methods take an event of :data:`EVENTS` and keyword fields. Use these where they apply: ``market``,
    ``sequence``, ``epoch``, ``node``, ``peer``, ``client_order_id``, and ``error``, an exception or its text.
    """
    return cast("structlog.stdlib.BoundLogger", _Lazy(name))


class _Lazy:
    """Makes a module's logger when it is used first: a command that logs nothing does not wait for structlog."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, method: str) -> Any:
        return getattr(_made(self._name), method)


@functools.cache
def _made(name: str) -> Any:
    import structlog  # noqa: PLC0415

    return structlog.wrap_logger(
        logging.getLogger(name),
        processors=[structlog.stdlib.filter_by_level, _to_record],
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
        cache_logger_on_first_use=True,
    )


def without_secrets(text: str) -> str:
    """Return ``text`` with passwords and tokens in addresses masked."""
    return _SECRET.sub(r"\1\2***", text)


def _to_record(_logger: Any, _method: str, values: MutableMapping[str, Any]) -> tuple[tuple[str], dict[str, Any]]:
    """Return the arguments of the standard logger's method."""
    event = str(values.pop("event"))
    options = {key: values.pop(key) for key in ("exc_info", "stack_info") if key in values}
    plain_values = times_in_json({key: _plain(value) for key, value in values.items()})
    fields = {f"{key}_" if key in _RESERVED else key: value for key, value in plain_values.items()}
    if isinstance(error := values.get("error"), OpenOutcryError):
        fields["code"] = error.code
    line = " ".join([event, *[f"{key}={_quoted(value)}" for key, value in fields.items()]])
    # structlog adds this many frames between the caller and the standard logger.
    return (line,), {"extra": {**fields, "event": event}, "stacklevel": 4, **options}


def _plain(value: object) -> object:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return in_json(value)
    if isinstance(value, Decimal):
        return written(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each) for each in value]
    if isinstance(value, BaseException) and not isinstance(value, OpenOutcryError):
        return plain(without_secrets(repr(value)))
    return plain(without_secrets(str(value)))


def _quoted(value: object) -> str:
    text = str(value)
    return repr(text) if not text or any(sign in text for sign in " =\n\"'") else text
