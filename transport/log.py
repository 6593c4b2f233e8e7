"""How this library logs: events with stable names and fields, given to the standard library's loggers.

Configures nothing: where lines go, and in what form, is the application's. A record's message is
``event key=value …``; its fields are attributes of the record too, ``event`` among them, for formatters that want them.
:data:`EVENTS` is the list of all events; nothing secret is a field of any.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, MutableMapping
from decimal import Decimal
from typing import Any, Final, cast

import structlog

from .errors import OpenOutcryError
from .numerals import in_json, times_in_json, written
from .plain import plain

PROGRESS_S: Final = 5.0
"""Seconds between two reports of how far long work is: lines of the log, or of a command without a terminal."""

EVENTS: Final[Mapping[str, str]] = {
    # A node's life.
    "node_started": "The node listens, is announced, and has recovered what is on its disk.",
    "node_ready": "Every market of the node can be traded from here.",
    "node_waits": "A market could not be used for some seconds since the start; the node goes on waiting.",
    "node_closing": "The node was asked to end, hands over what it leads and answers what it can.",
    "node_closed": "The node has ended in order.",
    "node_stuck": "The node did not end in time; its process is ended as it is.",
    "fork_not_let_go": "A forked child could not close something that it inherited.",
    "log_reopened": "The log file was opened anew, as SIGHUP asks for.",
    "log_not_reopened": "The log file could not be opened anew; the old one is written on.",
    "log_line_failed": "No line could be made of a record: its arguments do not fit its text, or the form of the log.",
    "log_lines_dropped": "Whoever takes the log was too slow: so many lines were left out.",
    # A market's replica.
    "recovering": "The book is being made from the disk: how far it is, and has to go.",
    "catching_up": "The replica lacks what is committed: how far it is, and has to go at least.",
    "recovered": "The book is as the disk has it, up to this sequence number.",
    "journal_put_aside": "The journal is damaged: it was put aside, and the replica is repaired from a peer.",
    "log_lost": "The replica had a journal, and it is gone: it is repaired from a peer, and leads no more before.",
    "disk_behind": "The disk is an older copy of itself, or its log is gone: it is repaired, and does not lead before.",
    "trouble": "A person has to act, and the error says how: a disk, or the coordinator's store, is an older copy.",
    "trouble_over": "What the last `trouble` was about is over.",
    "snapshot_damaged": "A snapshot is damaged and was passed over for an older one.",
    "snapshot_failed": "A snapshot could not be written or kept: the market goes on, and it is tried again.",
    "snapshot_taken_again": "A snapshot was written, after others had failed.",
    "log_not_read": "The log could not be read for a follower now; that is tried again.",
    "repaired": "What was damaged has been made good from the leader, or given up by an operator.",
    "state_taken_over": "The replica was far behind and has taken over the leader's state as a whole.",
    "leading": "This replica leads the market from this epoch on.",
    "not_leading": "This replica leads the market no more; a warning where it did not hand it over.",
    "replica_left": "A replica is in the in-sync set no more: its disk is waited for no more. Told by the leader.",
    "replica_in_sync": "A replica is in the in-sync set now: its disk is waited for. Told by the leader.",
    "leader_forced": "An operator makes this node lead: what only the former in-sync set held is lost.",
    "log_outlived": "Leadership was forced past this log: what it holds may have been answered, and is lost.",
    "log_put_aside": "The log that leadership was forced past is kept in this folder; the market is joined as new.",
    "leader_lapsed": "The leader's lease or its process has ended: a replica of the in-sync set takes over.",
    "leader_yields": "This node leads and has too few replicas to commit: one that has enough may take over.",
    "market_not_opened": "A market could not be opened, for want of descriptors, room, threads; that is tried again.",
    "market_opened": "A market was opened that could not be opened before.",
    "market_joined": "The node has joined a market that it found with the coordinator.",
    "market_not_joined": "A market could not be joined; that is tried again.",
    "market_moved": "The market was handed over to a peer, to even out who leads.",
    "market_not_moved": "The market could not be handed over, and stays here for now.",
    "command_rejected": "The book rejected a command; at level debug, at every node.",
    "answer_of_another": "The log has other commands under the numbers of requests: a copy of this node may run.",
    "requests_expired": "So many requests had no answer in time; the first one's client order id is named.",
    "replica_stopped": "The replica has stopped for good; the node has to be restarted, and may need repair.",
    # Links and the directory.
    "link_up": "The link to a peer is up.",
    "link_down": "The link to a peer is down.",
    "link_not_made": "A node that is announced could not be linked to for some seconds: see the hint.",
    "identity_exposed": "Others than its owner may read the file of an identity, which holds the node's private key.",
    "certificate_ends_soon": "The node's certificate ends within 30 days: issue another, and restart the node.",
    "peer_ended": "Nobody listens where a peer did: its process has ended, and nobody waits for its lease.",
    "peer_replaced": "Another node is linked where this one was, which is dialled no more.",
    "link_reset": "The link to a peer is ended because of what it sent.",
    "coordinator_differs": "A peer uses another coordinator; no link is made.",
    "peer_unreachable": "A peer gives an address that cannot be dialled.",
    "name_refused": "A node is announced under a name that its id does not have: it is not linked to.",
    "peer_refused": "So many nodes are known already that no link is made to this one.",
    "frame_refused": "A frame broke the protocol; its sender's connection is ended.",
    "frame_failed": "A frame could not be handled: a fault of this program.",
    "receive_failed": "A socket could not be read; it is tried again.",
    "directory_silent": "No rendezvous answers, or not all do.",
    "directory_answers": "All rendezvous answer again.",
    "directory_malformed": "A rendezvous' answer broke the protocol; its connection is ended.",
    "directory_learned": "A rendezvous has told of another.",
    "directory_address_refused": "A rendezvous has told of one whose address cannot be dialled.",
    "announcements_refused": "A rendezvous did not take this node's announcements.",
    "goodbye_failed": "The directory was not told that the node ends; its entry will lapse.",
    "rendezvous_failed": "The rendezvous goes on after an unexpected error.",
    "rendezvous_refused": "A request to the rendezvous broke the protocol; its connection is ended.",
    "rendezvous_unread": "A client of the rendezvous takes no answers; its connection is ended.",
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
    "node_id_in_use": "Another process has the lease of this node, so its data directory was copied: replicas stop.",
    "coordinator_call_failed": "A question to the coordinator had no answer, and is asked again; later ones at debug.",
    "coordinator_call_broken": "A question to the coordinator failed in a way that is no error of the store.",
    "lease_not_released": "The lease was not given up at the end, and will lapse.",
    # Actors, subscribers, the control link.
    "inbox_failed": "An actor's own inbox did not take a message and raised an exception; its sender is told.",
    "message_refused": "A message from another node is of no type that its actor accepts, or not as the type says.",
    "actor_restarted": "An actor had failed and runs again.",
    "actor_failed_ending": "A failed actor failed again while it gave up what it owned.",
    "actor_stuck": "An actor did not stop in time.",
    "child_failed": "A supervised actor has failed, and is started again after a pause.",
    "child_given_up": "A supervised actor has failed more often than its policy allows, and is not started again.",
    "watcher_failed": "An actor has ended, and telling one of those who watch it failed.",
    "unhandled_failed": "An actor's ``on_unhandled`` raised an exception; the message is given up all the same.",
    "item_not_sent": "What an actor sent to another node cannot be encoded, and was left out: a fault of this program.",
    "supervisor_failed": "The actor that restarts others has failed: nothing is restarted any more.",
    "subscriber_cut": "A subscriber fell too far behind and was cut; it may subscribe again.",
    "subscriber_failed": "A subscriber raised an exception and was cut.",
    "subscriber_blocked": "A subscriber keeps the thread that delivers to it.",
    "control_failed": "A request over the control link could not be served: a fault of this program.",
    "health_failed": "A request for the node's health or its metrics could not be served: a fault of this program.",
    "control_unread": "A client of the control link did not take its answer.",
}
"""Every event that is logged, by its name, and what it means."""

_RESERVED: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_SECRET: Final = re.compile(r"(://[^/@:\s]*:)[^/\s]*(?=@)|(\b(?:password|token)=)[^&\s]+")


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a module; it logs through ``logging.getLogger(name)``.

    Its methods take an event of :data:`EVENTS` and keyword fields: where they apply ``market``, ``sequence``,
    ``epoch``, ``node``, ``peer``, ``client_order_id``, and ``error``, an exception or its text.
    """
    logger = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[structlog.stdlib.filter_by_level, _to_record],
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    return cast("structlog.stdlib.BoundLogger", logger)


def without_secrets(text: str) -> str:
    """Return ``text`` with passwords and tokens in addresses made unreadable."""
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
    # The frames between the caller and the standard logger are structlog's.
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
