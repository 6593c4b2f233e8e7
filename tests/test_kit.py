"""The actor kit: mailboxes that refuse and never deadlock, timers that are messages, restarts with a limit."""

from __future__ import annotations

import doctest
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pykka
import pytest
from openoutcry.actors.kit import actor as kit
from openoutcry.actors.kit import node_actor, supervision
from openoutcry.actors.kit.actor import Actor, Mailbox, SystemClock, stop_and_join
from openoutcry.actors.kit.node_actor import QUIET, TICK, ActorFailed, NodeActor, TickingInbox, tell, tell_or_handle
from openoutcry.actors.kit.supervision import (
    CurrentRef,
    Escalation,
    Release,
    RestartLimit,
    RestartPolicy,
    Supervise,
    Supervisor,
)
from openoutcry.actors.testing import ActorProbe, FakeClock, eventually
from openoutcry.actors.testkit import clock, exchanges, probes, waits
from openoutcry.transport.errors import ConfigurationError, InvalidRequest, Overloaded
from pykka._envelope import Envelope


class Runner(Actor):
    """Runs what it is told on its own thread."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Any] = []
        self.unhandled: list[Any] = []

    def on_receive(self, message: Any) -> Any:
        if callable(message):
            return message(self)
        self.heard.append(message)
        return None

    def on_unhandled(self, message: Any) -> None:
        self.unhandled.append(message)


class Narrow(Runner):
    mailbox_size_max = 3


def fail(_actor: Actor) -> None:
    raise ValueError("told to fail")


@pytest.fixture
def start() -> Iterator[Callable[..., pykka.ActorRef[Any]]]:
    started: list[pykka.ActorRef[Any]] = []

    def start(kind: type[Actor] = Runner, **options: Any) -> pykka.ActorRef[Any]:
        started.append(kind.start(**options))
        return started[-1]

    yield start
    for ref in started:
        stop_and_join(ref, timeout_s=5)


def on(ref: pykka.ActorRef[Any], run: Callable[[Any], Any]) -> Any:
    return ref.ask(run, timeout=5)


def mailbox_of(ref: pykka.ActorRef[Any]) -> Mailbox:
    assert isinstance(ref.actor_inbox, Mailbox)
    return ref.actor_inbox


@pytest.mark.slow
@pytest.mark.parametrize("module", [kit, supervision, probes, clock, exchanges, waits])
def test_examples_in_the_documentation_of_the_kit_run(module: Any) -> None:
    failed, tried = doctest.testmod(module)
    assert tried > 0
    assert failed == 0


# -- mailboxes ------------------------------------------------------------------------------------------------------


def test_full_mailbox_refuses_tell_and_ask_of_others_and_takes_a_stop_and_its_own(start: Any) -> None:
    ref = start(Narrow)
    actor = on(ref, lambda actor: actor)
    busy, go = threading.Event(), threading.Event()

    def block(actor: Narrow) -> None:
        busy.set()
        assert go.wait(10)
        for number in range(10):
            actor.actor_ref.tell(("own", number))

    ref.tell(block)
    assert busy.wait(10)
    for number in range(3):
        ref.tell(number)
    for send in (ref.tell, ref.ask):
        with pytest.raises(Overloaded) as caught:
            send("one too many")
        assert caught.value.code == "mailbox_full"
    assert mailbox_of(ref).refused == 2
    stopped = ref.stop(block=False)
    go.set()
    assert stopped.get(timeout=5)
    assert actor.heard == [0, 1, 2]
    eventually(lambda: actor.unhandled == [("own", number) for number in range(10)], "its own came after the stop")


def test_what_was_taken_before_a_stop_is_handled_and_what_comes_later_is_given_up(start: Any) -> None:
    ref = start(Narrow)
    actor = on(ref, lambda actor: actor)
    busy, go = threading.Event(), threading.Event()
    ref.tell(lambda _: busy.set() or go.wait(10))
    assert busy.wait(10)
    ref.tell("before")
    stopped = ref.stop(block=False)
    asked = ref.ask("after", block=False)
    go.set()
    assert stopped.get(timeout=5)
    with pytest.raises(pykka.ActorDeadError):
        asked.get(timeout=5)
    assert actor.heard == ["before"]
    assert actor.unhandled == ["after"]


def test_ask_that_slips_in_after_the_end_is_answered(start: Any) -> None:
    ref = start()
    assert stop_and_join(ref, timeout_s=5)
    answer = pykka.ThreadingFuture()
    mailbox_of(ref).put(kit.Envelope("late", answer))
    with pytest.raises(pykka.ActorDeadError):
        answer.get(timeout=5)


@pytest.mark.parametrize("end", ["stop", "fail", "fail in on_start"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_end_is_told_once_with_its_cause_to_early_and_late_watchers(start: Any, end: str) -> None:
    class Stillborn(Runner):
        def on_start(self) -> None:
            if end == "fail in on_start":
                raise ValueError("stillborn")

    ref = start(Stillborn)
    told: list[Any] = []
    mailbox_of(ref).on_end(lambda error: told.append(("early", error)))
    if end == "stop":
        ref.stop()
    elif end == "fail":
        ref.tell(fail)
    eventually(lambda: told, "the early watcher is told")
    mailbox_of(ref).on_end(lambda error: told.append(("late", error)))
    assert [who for who, _ in told] == ["early", "late"]
    for _, error in told:
        assert error is None if end == "stop" else isinstance(error, ValueError)


class Clumsy(Runner):
    def on_stop(self) -> None:
        raise ValueError("cannot even stop")

    def on_unhandled(self, message: Any) -> None:
        del message
        raise ValueError("cannot even give up")


def test_on_unhandled_that_raises_costs_nobody_the_answer_or_the_notice(start: Any) -> None:
    ref = start(Clumsy)
    told: list[Any] = []
    mailbox_of(ref).on_end(told.append)
    busy, go = threading.Event(), threading.Event()
    ref.tell(lambda _: busy.set() or go.wait(10))
    assert busy.wait(10)
    stopped = ref.stop(block=False)
    asked = [ref.ask(number, block=False) for number in range(2)]
    go.set()
    assert stopped.get(timeout=5)
    for ask in asked:
        with pytest.raises(pykka.ActorDeadError):
            ask.get(timeout=5)
    eventually(lambda: told == [None], "it was stopped, and its watchers are told so")
    eventually(lambda: ref.actor_urn not in kit._threads, "its thread is forgotten")


def test_actor_may_ask_to_be_stopped_and_joined_on_its_own_thread(start: Any) -> None:
    ref = start()
    ref.tell(lambda actor: stop_and_join(actor.actor_ref, timeout_s=0.01))
    assert ref.actor_stopped.wait(10)


# -- timers ---------------------------------------------------------------------------------------------------------


def test_timers_tell_once_or_again_and_again_in_the_order_in_which_they_are_due(
    fake_clock: FakeClock, start: Any
) -> None:
    ref = start()
    on(ref, lambda actor: (actor.tell_after(2.5, "once"), actor.tell_every(1, "often"), actor.tell_after(0, "now")))
    assert on(ref, lambda actor: actor.heard) == []
    fake_clock.advance(0.5)
    assert on(ref, lambda actor: actor.heard) == ["now"]
    fake_clock.advance(3.5)
    assert on(ref, lambda actor: actor.heard) == ["now", "often", "often", "once", "often", "often"]
    for seconds in (-5, float("inf")):
        with pytest.raises(InvalidRequest):
            fake_clock.advance(seconds)


def test_cancelled_timer_is_heard_no_more_even_if_its_message_waited_already(fake_clock: FakeClock, start: Any) -> None:
    ref = start()
    timer = on(ref, lambda actor: actor.tell_every(1, "tick"))
    fake_clock.advance(1)
    busy, go = threading.Event(), threading.Event()

    def cancel(_actor: Runner) -> None:
        busy.set()
        assert go.wait(10)
        timer.cancel()

    ref.tell(cancel)
    assert busy.wait(10)
    assert timer.fire(2)
    assert timer.pending
    go.set()
    assert on(ref, lambda actor: actor.heard) == ["tick"]
    fake_clock.advance(10)
    assert on(ref, lambda actor: actor.heard) == ["tick"]


def test_an_actor_whose_ticks_take_too_long_receives_a_message_between_two(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(node_actor.time, "monotonic", lambda: next(seconds))
    inbox = TickingInbox("slow", 0, 1, lambda _: None)
    for number in range(3):
        inbox.put(Envelope(number))
    assert [inbox.get().message for _ in range(8)] == [TICK, 0, TICK, 1, TICK, 2, TICK, TICK]


def test_busy_actor_is_told_a_tick_once_not_all_that_it_missed(start: Any) -> None:
    ref = start()
    timer = on(ref, lambda actor: actor.tell_every(0.001, "tick"))
    go = threading.Event()
    ref.tell(lambda _: go.wait(10))
    eventually(lambda: timer.pending, "the timer has fired")
    due_s = timer.due_s
    eventually(lambda: timer.due_s > due_s + 0.01, "it was due again and again")
    assert mailbox_of(ref).qsize() == 1
    go.set()


@pytest.mark.parametrize("end", [lambda ref: ref.stop(), lambda ref: ref.tell(fail)])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_timers_end_with_their_actor(fake_clock: FakeClock, start: Any, end: Any) -> None:
    ref = start()
    timers = on(ref, lambda actor: (actor.tell_every(1, "tick"), actor.tell_after(5, "once")))
    end(ref)
    eventually(lambda: all(timer.cancelled for timer in timers), "both are cancelled")
    fake_clock.advance(10)


def test_timer_of_the_machines_clock_fires_and_a_thousand_cancelled_ones_are_forgotten(start: Any) -> None:
    ref = start()
    clock = SystemClock()

    def set_timers(actor: Runner) -> None:
        actor.clock = clock
        actor.tell_after(0.01, "later")
        for _ in range(5000):
            actor.tell_after(1000, "never").cancel()

    on(ref, set_timers)
    eventually(lambda: on(ref, lambda actor: actor.heard) == ["later"], "the timer fires")
    assert len(clock._due) <= 1024


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), True, "1", None])
def test_delay_that_is_no_number_of_seconds_is_refused(start: Any, seconds: Any) -> None:
    for method in ("tell_after", "tell_every"):
        with pytest.raises(InvalidRequest, match="a timer's delay"):
            on(start(), lambda actor, method=method: getattr(actor, method)(seconds, "message"))
    with pytest.raises(InvalidRequest, match="more than 0"):
        on(start(), lambda actor: actor.tell_every(0, "message"))


# -- supervision ----------------------------------------------------------------------------------------------------

POLICY = RestartPolicy(restarts_max=2, window_s=60, backoff_min_s=1, backoff_max_s=10, jitter=0)
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


class Nursery:
    """Starts children and remembers them."""

    def __init__(self, name: str = "child") -> None:
        self.name = name
        self.refs: list[pykka.ActorRef[Any]] = []
        self.broken = False

    def __call__(self) -> pykka.ActorRef[Any]:
        if self.broken:
            raise OSError("cannot be started")
        self.refs.append(Runner.start())
        return self.refs[-1]

    def fail(self, supervisor: pykka.ActorRef[Any]) -> None:
        """Have the latest child fail, and wait until the supervisor knows."""
        self.refs[-1].tell(fail)
        eventually(lambda: supervisor.ask(CurrentRef(self.name), timeout=5) is None, "the supervisor knows")

    def wait_for(self, count: int) -> None:
        eventually(lambda: len(self.refs) == count, f"{count} have been started")


def test_failed_child_is_started_again_after_a_pause_that_grows_and_its_sibling_goes_on(
    fake_clock: FakeClock, start: Any
) -> None:
    supervisor, nursery, sibling = start(Supervisor, policy=POLICY), Nursery(), Nursery("sibling")
    assert supervisor.ask(Supervise("child", nursery), timeout=5) is nursery.refs[0]
    supervisor.ask(Supervise("sibling", sibling), timeout=5)
    for pause_s in (1, 2):
        started = len(nursery.refs)
        nursery.fail(supervisor)
        fake_clock.advance(pause_s - 0.01)
        assert len(nursery.refs) == started, "the pause is not over"
        fake_clock.advance(0.01)
        assert supervisor.ask(CurrentRef("child"), timeout=5) is nursery.refs[started]
    assert len(sibling.refs) == 1
    assert sibling.refs[0].is_alive()


def test_child_over_its_limit_fails_the_supervisor_which_stops_the_others(fake_clock: FakeClock, start: Any) -> None:
    supervisor, nursery, sibling = start(Supervisor, policy=POLICY), Nursery(), Nursery("sibling")
    supervisor.ask(Supervise("child", nursery), timeout=5)
    supervisor.ask(Supervise("sibling", sibling), timeout=5)
    ended: list[Any] = []
    mailbox_of(supervisor).on_end(ended.append)
    for _ in range(2):
        nursery.fail(supervisor)
        fake_clock.advance(10)
    nursery.refs[-1].tell(fail)
    eventually(lambda: ended, "the supervisor has failed")
    assert isinstance(ended[0], RestartLimit)
    assert isinstance(ended[0].__cause__, ValueError)
    assert not sibling.refs[0].is_alive()


def test_escalation_may_be_a_call_and_failures_outside_the_window_do_not_count(
    fake_clock: FakeClock, start: Any
) -> None:
    escalations: list[Escalation] = []
    supervisor = start(Supervisor, policy=POLICY, on_escalation=escalations.append)
    nursery = Nursery()
    supervisor.ask(Supervise("child", nursery), timeout=5)
    for _ in range(5):
        nursery.fail(supervisor)
        fake_clock.advance(40)
    assert escalations == []
    for _ in range(2):
        nursery.fail(supervisor)
        fake_clock.advance(10)
    eventually(lambda: escalations, "the child is given up")
    assert (escalations[0].name, escalations[0].restarts) == ("child", 2)
    assert supervisor.ask(Supervise("child", nursery), timeout=5).is_alive(), "its name is free again"


def test_child_that_cannot_be_started_again_counts_as_failed(fake_clock: FakeClock, start: Any) -> None:
    escalations: list[Escalation] = []
    supervisor = start(Supervisor, policy=POLICY, on_escalation=escalations.append)
    nursery = Nursery()
    supervisor.ask(Supervise("child", nursery), timeout=5)
    nursery.broken = True
    nursery.fail(supervisor)
    fake_clock.advance(20)
    assert isinstance(escalations[0].error, OSError)
    with pytest.raises(OSError, match="cannot be started"):
        supervisor.ask(Supervise("other", nursery), timeout=5)


def test_stopped_and_released_children_stay_stopped_and_all_stop_with_the_supervisor(
    fake_clock: FakeClock, start: Any
) -> None:
    supervisor, nurseries = start(Supervisor, policy=POLICY), [Nursery(name) for name in ("one", "two", "three")]
    for nursery in nurseries:
        supervisor.ask(Supervise(nursery.name, nursery), timeout=5)
    with pytest.raises(ConfigurationError, match="supervised already"):
        supervisor.ask(Supervise("three", nurseries[2]), timeout=5)
    nurseries[0].refs[0].stop()
    eventually(lambda: supervisor.ask(CurrentRef("one"), timeout=5) is None, "the supervisor knows")
    nurseries[1].fail(supervisor)
    assert supervisor.ask(Release("two"), timeout=5)
    assert not supervisor.ask(Release("two"), timeout=5)
    fake_clock.advance(100)
    assert [len(nursery.refs) for nursery in nurseries] == [1, 1, 1]
    supervisor.stop()
    assert not nurseries[2].refs[0].is_alive()


def test_stopped_child_whose_on_stop_raises_is_not_started_again(fake_clock: FakeClock, start: Any) -> None:
    supervisor = start(Supervisor)
    child = supervisor.ask(Supervise("child", Clumsy.start))
    child.stop()
    eventually(lambda: "child" not in supervisor._actor_weakref()._children, "its end is noticed")
    fake_clock.advance(60)
    assert supervisor.ask(CurrentRef("child")) is None


def test_name_that_was_released_may_be_used_again_before_the_end_of_its_child_is_noticed(
    fake_clock: FakeClock, start: Any
) -> None:
    class Replacing(Supervisor):
        def on_receive(self, message: Any) -> Any:
            if message != "replace":
                return super().on_receive(message)
            self.release("child")
            return self.supervise("child", nursery)

    supervisor, nursery = start(Replacing, policy=POLICY), Nursery()
    supervisor.ask(Supervise("child", nursery), timeout=5)
    supervisor.ask("replace", timeout=5)
    assert supervisor.ask(CurrentRef("child"), timeout=5) is nursery.refs[1]
    nursery.fail(supervisor)
    fake_clock.advance(1)
    assert supervisor.ask(CurrentRef("child"), timeout=5) is nursery.refs[2]


def test_actor_whose_failure_cannot_be_seen_is_no_child(start: Any, actor_probe: ActorProbe) -> None:
    with pytest.raises(ConfigurationError, match="cannot be supervised"):
        start(Supervisor).ask(Supervise("probe", lambda: actor_probe.another().ref), timeout=5)


def test_pauses_double_up_to_a_bound_and_spread() -> None:
    policy = RestartPolicy(backoff_min_s=0.1, backoff_max_s=3, jitter=0.5)
    assert [policy.pause_s(restart, 0.5) for restart in (1, 2, 3, 6, 500)] == [0.1, 0.2, 0.4, 3, 3]
    assert policy.pause_s(1, 0) == pytest.approx(0.05)
    assert policy.pause_s(1, 1) == pytest.approx(0.15)
    for wrong in ({"restarts_max": -1}, {"window_s": 0}, {"backoff_min_s": 20}, {"jitter": 2}):
        with pytest.raises(ConfigurationError):
            RestartPolicy(**wrong)  # type: ignore[arg-type]


# -- turns ----------------------------------------------------------------------------------------------------------


class Ledger(NodeActor):
    """Notes what it handles, on which thread, and whether two threads were ever in it at once."""

    tick_ms = 20

    def __init__(self, report: Callable[[ActorFailed], None] = lambda _: None) -> None:
        super().__init__(report=report)
        self.handled: list[tuple[Any, int]] = []
        self.inside = self.overlaps = self.ticks = self.quiet = 0

    def on_receive(self, message: Any) -> Any:
        self.inside += 1
        self.overlaps += self.inside != 1
        if message is TICK:
            self.ticks += 1
        elif message is QUIET:
            self.quiet += 1
        elif callable(message):
            return self.leave(message(self))
        else:
            self.handled.append((message, threading.get_ident()))
        return self.leave(None)

    def leave(self, answer: Any) -> Any:
        self.inside -= 1
        return answer


def test_an_idle_actor_lends_its_turn_and_handles_what_comes_meanwhile_afterwards(start: Any) -> None:
    ref = start(Ledger)
    actor: Ledger = on(ref, lambda actor: actor)
    waiting, go = threading.Event(), threading.Event()

    def lent(actor: Ledger) -> None:
        waiting.set()
        assert go.wait(10)

    lender = threading.Thread(target=lambda: eventually(lambda: actor.mailbox.lend_turn(lent), "it is idle"))
    lender.start()
    assert waiting.wait(10)
    assert not actor.mailbox.lend_turn("second"), "one thread at a time has the turn"
    assert tell(ref, "told")
    assert tell_or_handle(ref, "told too")
    assert actor.handled == []
    go.set()
    lender.join(10)
    eventually(lambda: len(actor.handled) == 2, "both are handled")
    own = on(ref, lambda _: threading.get_ident())
    assert actor.handled == [("told", own), ("told too", own)]
    eventually(lambda: tell_or_handle(ref, "mine") and actor.handled[-1] == ("mine", threading.get_ident()), "lent")


def test_messages_of_each_thread_keep_their_order_whoever_handles_them(start: Any) -> None:
    ref = start(Ledger)
    actor: Ledger = on(ref, lambda actor: actor)
    count = 3_000

    def send(name: str) -> None:
        for number in range(count):
            (tell_or_handle, tell)[(number * 7 + len(name)) % 3 == 0](ref, (name, number))

    senders = [threading.Thread(target=send, args=("s" * length,)) for length in range(1, 5)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join(60)
    eventually(lambda: len(actor.handled) == 4 * count, "all are handled", within=60)
    for length in range(1, 5):
        name = "s" * length
        assert [number for (sent_by, number), _ in actor.handled if sent_by == name] == list(range(count))
    assert not actor.overlaps
    assert len({thread for _, thread in actor.handled}) > 1, "no turn was ever lent"
    ticks = actor.ticks
    eventually(lambda: actor.ticks > ticks + 2, "it ticks on")


def test_what_a_lent_message_raises_ends_the_actor_and_is_reported_before_what_came_meanwhile() -> None:
    failures: list[ActorFailed] = []
    ref = Ledger.start(failures.append)
    actor: Ledger = on(ref, lambda actor: actor)

    def raising(actor: Ledger) -> None:
        tell(ref, "meanwhile")
        raise ValueError("on the thread of another")

    eventually(lambda: actor.mailbox.lend_turn(raising), "it is idle")
    eventually(lambda: bool(failures), "the failure is reported")
    assert repr(failures[0].error) == "ValueError('on the thread of another')"
    assert actor.handled == []
    assert actor.failed_by is failures[0].error
    assert not tell_or_handle(ref, "too late")


def test_no_turn_is_lent_for_a_while_after_a_message_that_took_long(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = start(Ledger)
    actor: Ledger = on(ref, lambda actor: actor)
    monkeypatch.setattr(node_actor, "TURN_S_MAX", 0.0)
    eventually(lambda: actor.mailbox.lend_turn("long"), "it is idle")
    monkeypatch.setattr(node_actor, "TURN_S_MAX", 3600.0)
    assert tell_or_handle(ref, "told")
    own = on(ref, lambda _: threading.get_ident())
    assert actor.handled == [("long", threading.get_ident()), ("told", own)]


def test_an_actor_that_lingers_in_a_lent_turn_hears_when_it_is_quiet(start: Any) -> None:
    ref = start(Ledger)
    actor: Ledger = on(ref, lambda actor: actor)
    eventually(lambda: actor.mailbox.lend_turn(lambda actor: actor.linger(0.001)), "it is idle")
    eventually(lambda: actor.quiet == 1, "it was quiet")
    for _ in range(3):
        eventually(lambda: actor.mailbox.lend_turn(lambda actor: actor.linger(3600)), "it is idle")
    ticks = actor.ticks
    eventually(lambda: actor.ticks > ticks + 2, "it ticks on")
    assert actor.quiet == 1
