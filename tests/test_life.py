"""The life of a link: it begins again within a bound from every state, and comes up where two can connect."""

from __future__ import annotations

import itertools
import random

import pytest
from openoutcry.actors.peers.life import DIAL_S_MAX, PAUSE_S_MAX, SILENCE_MS_MAX, Effect, Life, State

TICK_S = 0.2


def reached(state: State) -> Life:
    life = Life(100, 0.0)
    if state is not State.WAITING:
        life.tick(0.0, 0.0)
    if state in (State.GREETING, State.UP):
        life.made(100, 0.0)
    if state is State.UP:
        life.hello(7, 100, 1, 0.0)
    assert life.state is state
    return life


@pytest.mark.parametrize("state", State)
def test_every_silent_state_ends_with_a_new_connection(state: State) -> None:
    life, now_s = reached(state), 0.0
    bound_s = max(DIAL_S_MAX, PAUSE_S_MAX, SILENCE_MS_MAX / 1000) + 2 * TICK_S
    for _ in range(5):
        began_s = now_s
        while Effect.OPEN not in life.tick(now_s := now_s + TICK_S, 0.0):
            assert now_s - began_s <= bound_s


def test_peer_that_ends_each_connection_is_dialled_ever_less_often() -> None:
    life, now_s, dialled_s = Life(100, 0.0), 0.0, []
    while now_s < 20:
        if Effect.OPEN in life.tick(now_s, 0.0):
            dialled_s.append(now_s)
            life.made(life.session, now_s)
            assert Effect.OPEN not in life.broke(life.session, now_s, "it broke")
        now_s += TICK_S
    pauses_s = [later - sooner for sooner, later in itertools.pairwise(dialled_s)]
    assert [round(pause_s, 3) for pause_s in pauses_s] == sorted(round(pause_s, 3) for pause_s in pauses_s)
    assert pauses_s[-1] == pytest.approx(PAUSE_S_MAX, abs=TICK_S)


def test_what_belongs_to_a_session_that_is_over_changes_nothing() -> None:
    life = reached(State.UP)
    assert life.made(99, 1.0) == life.broke(99, 1.0, "late") == life.pipe_removed(9, 1.0) == []
    assert life.state is State.UP


def test_a_replaced_process_that_is_still_there_does_not_take_the_link_from_its_successor() -> None:
    life = reached(State.UP)
    assert life.hello(6, 0, 2, 1.0) == []
    assert life.state is State.UP
    effects = life.hello(8, 0, 3, 1.0)
    assert effects == [Effect.CLOSE, Effect.OPEN, Effect.DOWN], "a later one takes it"


def test_a_peer_whose_clock_went_back_is_linked_once_its_last_life_is_silent() -> None:
    life = reached(State.UP)
    life.tick(SILENCE_MS_MAX / 1000 + 0.1, 0.0)
    life.made(life.session, 2.2)
    life.hello(3, life.session, 2, 2.3)
    assert life.state is State.UP


class Side:
    """One of two nodes in a simulated network."""

    def __init__(self, session: int) -> None:
        self.life = Life(session, 0.0)
        self.ups = 0


@pytest.mark.parametrize("seed", range(200))
def test_two_nodes_are_linked_within_five_seconds_of_the_last_fault(seed: int) -> None:
    """Connections take time, hang, break; frames are late; processes are replaced. Then all goes well."""
    chance = random.Random(seed)
    sides = [Side(1_000), Side(2_000)]
    events: list[tuple[float, int, str, int, int, int]] = []
    pipes = 0
    faults_end_s = 5 + 5 * chance.random()
    now_s = 0.0

    def do(at: int, effects: list[Effect]) -> None:
        nonlocal pipes
        side, other = sides[at], 1 - at
        for effect in effects:
            session = side.life.session
            if effect is Effect.OPEN:
                pipes += 1
                fate = chance.random()
                if now_s > faults_end_s or fate < 0.4:
                    events.append((now_s + 0.01, at, "made", session, 0, 0))
                elif fate < 0.7:
                    events.append((now_s + chance.random(), at, "broke", session, 0, 0))
                # else the handshake hangs
            elif effect is Effect.HELLO and (now_s > faults_end_s or chance.random() < 0.8):
                pipe = side.life.session * 2 + at + 1
                sent = (side.life.session, side.life.their_session)
                events.append((now_s + 0.005, other, "hello", *sent, pipe))
            elif effect is Effect.UP:
                side.ups += 1
            elif effect is Effect.CLOSE:
                events.append((now_s + 0.01, other, "removed", (session - 1) * 2 + at + 1, 0, 0))

    linked_s = None
    while now_s < faults_end_s + 5:
        now_s = round(now_s + 0.01, 3)
        due = sorted(event for event in events if event[0] <= now_s)
        events = [event for event in events if event[0] > now_s]
        for _, at, what, first, second, third in due:
            life = sides[at].life
            if what == "made":
                do(at, life.made(first, now_s))
            elif what == "broke":
                do(at, life.broke(first, now_s, "broke"))
            elif what == "removed":
                do(at, life.pipe_removed(first, now_s))
            else:
                do(at, life.hello(first, second, third, now_s))
        for at, side in enumerate(sides):
            if round(now_s * 100) % 20 == at * 7:
                do(at, side.life.tick(now_s, 0.0))
            if now_s < faults_end_s and chance.random() < 0.003:
                sides[at] = Side(side.life.session + 50)  # a new process; its connections end untold, or not
                if chance.random() < 0.5:
                    pipe = side.life.session * 2 + at + 1
                    events.append((now_s + 0.01, 1 - at, "removed", pipe, 0, 0))
                    events.append((now_s + 0.01, 1 - at, "broke", sides[1 - at].life.session, 0, 0))
        if now_s > faults_end_s and all(side.life.state is State.UP for side in sides):
            one, two = (side.life for side in sides)
            if one.their_session == two.session and two.their_session == one.session:
                linked_s = now_s if linked_s is None else linked_s
        else:
            linked_s = None
    assert linked_s is not None
    assert linked_s - faults_end_s < 5
