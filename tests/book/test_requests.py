"""Where requests go: to the leader of now, once; again when it leads no more, or anew; and back with an error."""

from __future__ import annotations

import dataclasses
from typing import Any

from openoutcry.actors.book.record import EMPTY, Record
from openoutcry.actors.book.replica import Following, Replica, Send
from openoutcry.actors.book.requests import NOT_LEADER, FailRequests, Requests, Settled
from openoutcry.actors.book.wire import Forward, Refused

COMMANDS = ((3, "ann", "c1"),)


@dataclasses.dataclass(eq=False, slots=True)
class Asked:
    commands: tuple[Any, ...] = COMMANDS
    deadline_ns: int = 10**9
    first_sequence: int = 0
    sent_to: str | None = None
    sent_epoch: int = 0
    sent_ever: bool = False


def follower(leader: str, epoch: int) -> Replica:
    """Return a follower "b" whose leader has answered its join."""
    replica = Replica(market="M", node="b", applied=EMPTY, incarnation=1)
    replica._links.update("ac")
    led_by(replica, leader, epoch)
    return replica


def led_by(replica: Replica, leader: str, epoch: int) -> None:
    replica.leader, replica.epoch, replica.following = leader, epoch, Following.ALIGNED


def forwarded(effects: list[Any]) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (effect.nodes[0], tuple([number for number, _ in effect.message.requests]))
        for effect in effects
        if isinstance(effect, Send) and isinstance(effect.message, Forward)
    ]


def test_a_request_is_forwarded_once_and_again_to_the_next_leader() -> None:
    replica = follower("a", 1)
    requests: Requests[Asked] = Requests(replica, first_number=7)
    assert forwarded(requests.take([Asked()])) == [("a", (8,))]
    assert not requests.route_again()
    led_by(replica, "c", 2)
    assert forwarded(requests.route_again()) == [("c", (8,))]


def test_a_request_is_forwarded_again_when_the_same_node_leads_in_a_later_epoch() -> None:
    replica = follower("a", 1)
    requests: Requests[Asked] = Requests(replica, first_number=0)
    requests.take([Asked()])
    led_by(replica, "a", 3)  # in between another led, and the record with the request was cut
    assert forwarded(requests.route_again()) == [("a", (1,))]


def test_a_request_waits_until_the_leader_has_answered_the_join() -> None:
    replica = follower("a", 1)
    replica.following = Following.JOINING
    requests: Requests[Asked] = Requests(replica, first_number=0)
    assert not requests.take([Asked()])
    replica.following = Following.ALIGNED
    assert forwarded(requests.route_again()) == [("a", (1,))]


def test_a_refusal_of_one_that_leads_no_more_sends_the_request_again_and_any_other_fails_it() -> None:
    replica = follower("a", 1)
    requests: Requests[Asked] = Requests(replica, first_number=0)
    first, second = Asked(), Asked()
    requests.take([first, second])
    assert not requests.on_refused("a", Refused("M", 1, NOT_LEADER, "it leads no more"))
    assert forwarded(requests.route_again()) == [("a", (1,))]
    (failed,) = requests.on_refused("a", Refused("M", 2, "not_enough_in_sync", "too few"))
    assert isinstance(failed, FailRequests)
    assert failed.requests == (second,)
    assert failed.error.code == "not_enough_in_sync"
    assert list(requests.outstanding) == [1]


def test_a_refusal_by_a_former_leader_does_not_touch_a_request_that_was_sent_to_another() -> None:
    replica = follower("a", 1)
    requests: Requests[Asked] = Requests(replica, first_number=0)
    requests.take([Asked()])
    led_by(replica, "c", 2)
    requests.route_again()
    assert not requests.on_refused("a", Refused("M", 1, "overloaded", "late"))
    assert requests.outstanding


def test_a_record_answers_the_request_it_names_and_not_one_of_other_commands() -> None:
    requests: Requests[Asked] = Requests(follower("a", 1), first_number=0)
    mine, other = Asked(), Asked((((3, "bob", "x")),))
    requests.take([mine, other])
    record = Record.make(
        EMPTY, epoch=1, timestamp_ns=1, commands=COMMANDS * 3, origins=(("z", 9, 1), ("b", 1, 1), ("b", 2, 1))
    )
    settled: Settled[Asked] = Settled()
    requests.settle(record, settled)
    assert settled.others
    assert settled.answered == {1: mine}
    assert mine.first_sequence == 2
    (refused,) = requests.answered(settled)
    assert isinstance(refused, FailRequests)
    assert (refused.requests, refused.error.code) == ((other,), "answer_of_another")
    assert not requests.outstanding
