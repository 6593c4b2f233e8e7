"""AsyncNode: what a node promises to threads holds for the tasks of an event loop, and the loop is never blocked."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from openoutcry.actors import (
    AsyncNode,
    Closed,
    ExchangeNode,
    InvalidRequest,
    MarketRules,
    OrderRejected,
    Overloaded,
    RequestTimeout,
    StorageError,
    Trade,
    Unavailable,
)
from openoutcry.actors.book.messages import Query
from openoutcry.actors.market import queries

MARKET = "BTC-USD"
RULES = MarketRules(tick_size="0.01", open_orders_max=1000)


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[AsyncNode]:
    """A node that stands alone and can trade; closed on the way out."""
    node = await asyncio.to_thread(ExchangeNode, "alice", markets={MARKET: RULES}, **options)
    async with AsyncNode(node) as made:
        await made.wait_ready()
        yield made


@contextmanager
def held(node: AsyncNode) -> Iterator[Callable[[], None]]:
    """Keep the market's thread from doing anything until what is yielded is called, or to the end."""
    entered, go = threading.Event(), threading.Event()
    node.node.market(MARKET).ref.tell(Query(lambda _: entered.set() or go.wait(60)))
    assert entered.wait(30)
    try:
        yield go.set
    finally:
        go.set()


async def until(condition: Callable[[], Any], what: str) -> None:
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s, what
        await asyncio.sleep(0.005)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def test_many_tasks_submit_at_once_and_each_gets_the_answer_to_its_own_order() -> None:
    async def test() -> None:
        async with running() as node:

            async def trader(number: int) -> list[int]:
                sequences = []
                for turn in range(20):
                    name = f"{number}-{turn}"
                    result = await node.submit_order(
                        MARKET, "buy", f"{1 + number}.{turn:02}", 1 + turn, account=f"a{number}", client_order_id=name
                    )
                    (event,) = result.events
                    assert (event.client_order_id, event.account) == (name, f"a{number}")  # type: ignore[union-attr]
                    sequences.append(result.sequence)
                return sequences

            found = await asyncio.gather(*[trader(number) for number in range(50)])
            assert all(sequences == sorted(sequences) for sequences in found), "a task's orders keep their order"
            taken = sorted(sequence for sequences in found for sequence in sequences)
            assert taken == list(range(2, 1002)), "after the market's rules, without a gap"
            assert await node.position(MARKET) == (1001, node.node.state_hash(MARKET))

    run(test)


def test_all_commands_do_what_the_nodes_own_do() -> None:
    async def test() -> None:
        async with running() as node:
            order = await node.submit_order(MARKET, "sell", "100.25", 5, account="ann")
            assert order.order_id is not None
            amended = await node.amend_order(MARKET, order.order_id, price="100.50", account="ann")
            assert amended.status == "amended"
            batch = [node.node.order(MARKET, "buy", "100.50", 1, account="ben") for _ in range(3)]
            bought = await node.submit_many(MARKET, batch)
            assert [result.status for result in bought] == ["filled"] * 3
            many = [node.node.order(MARKET, "buy", "90", 1, account="cat") for _ in range(2500)]
            results = await node.submit_many(MARKET, many)
            assert [result.code for result in results] == [None] * 1000 + ["too_many_open_orders"] * 1500
            cancelled = await node.cancel_order(MARKET, order.order_id, account="ann")
            assert cancelled.status == "cancelled"
            gone = await node.cancel_all(MARKET, account="cat")
            assert (gone.status, gone.order_id, len(gone.cancelled_ids)) == ("accepted", None, 1000)
            assert await node.get_order(MARKET, order.order_id) is None
            assert await node.open_orders(MARKET, "cat") == []
            assert len(await node.trades(MARKET)) == 3
            assert await node.get_order_book(MARKET) == node.node.get_order_book(MARKET)

    run(test)


def test_errors_are_those_of_the_node() -> None:
    async def test() -> None:
        async with running() as node:
            with pytest.raises(OrderRejected) as rejected:
                await node.cancel_order(MARKET, 10**9)
            assert rejected.value.code == "unknown_order"
            for wrong in (
                node.submit_order(MARKET, "hold", "100", 1),
                node.submit_order(MARKET, "buy", 1.5, 1),  # type: ignore[arg-type]
                node.submit_order("NONE", "buy", "100", 1),
                node.get_order_book("NONE"),
                node.get_order_book(MARKET, depth=-1),
                node.submit_many(MARKET, [(9,)]),
            ):
                with pytest.raises(InvalidRequest):
                    await wrong

    run(test)


def test_a_task_that_is_cancelled_takes_nothing_back_and_holds_up_nobody() -> None:
    async def test() -> None:
        async with running() as node:
            tasks = [
                asyncio.create_task(node.submit_order(MARKET, "buy", "100", 1, client_order_id=f"o{number}"))
                for number in range(40)
            ]
            await asyncio.sleep(0)  # all have been sent
            for task in tasks[::2]:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert [isinstance(result, asyncio.CancelledError) for result in done] == [True, False] * 20
            for number in range(40):
                again = await node.submit_order(MARKET, "buy", "100", 1, client_order_id=f"o{number}")
                assert again.duplicate
            assert not node.unanswered

    run(test)


def test_what_waits_when_the_node_is_closed_fails_and_so_does_all_that_comes_later() -> None:
    async def test() -> None:
        async with running(min_in_sync=1) as node:
            book = node.node.market(MARKET).ref
            book.tell(Query(lambda _: time.sleep(0.3)))  # busy: nothing is answered meanwhile
            waiting = asyncio.create_task(node.submit_order(MARKET, "buy", "100", 1))
            reading = asyncio.create_task(node.position(MARKET))
            await asyncio.sleep(0)
            await node.close()
            outcome = await asyncio.gather(waiting, return_exceptions=True)
            assert isinstance(outcome[0], Closed) or outcome[0].status == "resting"
            await asyncio.gather(reading, return_exceptions=True)
            with pytest.raises(Closed):
                await node.submit_order(MARKET, "buy", "100", 1)
            with pytest.raises((Closed, StorageError)):
                await node.position(MARKET)

    run(test)


@pytest.mark.parametrize("dies", [False, True], ids=["stops", "fails"])
def test_what_was_asked_of_a_replica_that_ends_fails_at_once_as_it_does_for_a_thread(dies: bool) -> None:
    async def test() -> None:
        async with running(timeout=60) as node:
            book = node.node.market(MARKET).ref
            with held(node) as go:
                if dies:
                    book.tell("a message that no BookActor understands")
                else:
                    book.stop(block=False)
                asked = [
                    asyncio.create_task(asked)
                    for asked in (
                        asyncio.to_thread(node.node.get_order_book, MARKET),
                        node.get_order_book(MARKET),
                        node.subscribe(MARKET),
                        node.wait_ready(),
                    )
                ]
                await until(lambda: book.actor_inbox.qsize() == 5, "all have asked")
                go()
            errors = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 20)
            assert {(type(error), str(error).split(":")[0]) for error in errors} == {
                (StorageError, "BookActor of node alice has failed")
            }
            with pytest.raises(StorageError, match="BookActor of node alice has failed"):
                await node.position(MARKET)

    run(test)


def test_a_query_that_fails_fails_alone() -> None:
    async def test() -> None:
        async with running() as node:

            def fail(actor: Any) -> None:
                raise RequestTimeout("of its own")

            with pytest.raises(RequestTimeout, match="of its own"):
                await node.market(MARKET).read(fail)
            assert await node.position(MARKET) == (1, node.node.state_hash(MARKET))

    run(test)


def test_nothing_but_the_end_takes_a_thread_of_the_application() -> None:
    class NoThreads(ThreadPoolExecutor):
        def submit(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("a thread was asked for")

    async def test() -> None:
        made = await asyncio.to_thread(ExchangeNode, "alice", markets={MARKET: RULES})
        other = await asyncio.to_thread(ExchangeNode, "carol", markets={MARKET: RULES})
        spare = await asyncio.to_thread(ExchangeNode, "bob", markets=["nobody's"])
        loop = asyncio.get_running_loop()
        loop.set_default_executor(NoThreads())
        try:
            node = AsyncNode(made)
            await node.wait_ready()
            order = await node.submit_order(MARKET, "buy", "100", 1)
            await node.amend_order(MARKET, order.order_id or 0, price="99")
            fresh = AsyncNode(other).market(MARKET)
            while not (await fresh.read(queries.readiness))[0]:
                await asyncio.sleep(0.005)
            await fresh.submit("buy", "100", 1)  # its rules are not known: they are asked for
            (await node.subscribe(MARKET)).close()
            await node.get_order_book(MARKET)
            with pytest.raises(RequestTimeout, match=r"not ready after 0\.05 s: no leader"):
                await AsyncNode(spare).wait_ready(0.05)
            with pytest.raises(Unavailable, match="is not ready: no leader is known here"):
                await AsyncNode(spare).submit_order("nobody's", "buy", "100", 1)
        finally:
            loop.set_default_executor(ThreadPoolExecutor(2))
            await asyncio.gather(*[AsyncNode(each).close() for each in (made, other, spare)])

    run(test)


def test_the_loop_goes_on_while_the_book_is_stuck_and_the_caller_gets_an_error_in_its_time() -> None:
    async def test() -> None:
        async with running(timeout=0.3) as node:
            node.node.market(MARKET).ref.tell(Query(lambda _: time.sleep(3)))
            began_s = time.monotonic()
            order = asyncio.create_task(node.submit_order(MARKET, "buy", "100", 1))
            with pytest.raises(RequestTimeout):
                await node.position(MARKET)
            ticks = 0
            while not order.done():
                await asyncio.sleep(0.01)
                ticks += 1
            with pytest.raises(RequestTimeout):
                await order
            assert ticks > 20
            assert time.monotonic() - began_s < 2.9, "not only when the book was well again"

    run(test)


def test_a_caller_beyond_the_bound_waits_for_room_and_the_loop_does_not() -> None:
    async def test() -> None:
        async with running() as node:
            submissions = node.node.market(MARKET).submissions
            submissions._limit = 10
            batch = [node.node.order(MARKET, "buy", "90", 1) for _ in range(10)]
            with held(node) as go:
                first = asyncio.create_task(node.submit_many(MARKET, batch, timeout=30))
                await asyncio.sleep(0)
                with pytest.raises(Overloaded):
                    await node.submit_order(MARKET, "buy", "91", 1, timeout=0.05)
                second = asyncio.create_task(node.submit_order(MARKET, "buy", "91", 1, timeout=30))
                await until(lambda: submissions._standing_by, "it waits for room")
                go()
                assert (await second).sequence == 12
            assert len(await first) == 10

    run(test)


def test_those_who_wait_for_room_cost_no_thread_and_get_in_by_turns_but_for_those_who_have_given_up() -> None:
    async def test() -> None:
        async with running() as node:
            submissions = node.node.market(MARKET).submissions
            submissions._limit = 10
            with held(node) as go:
                tasks = [
                    asyncio.create_task(
                        node.submit_order(MARKET, "buy", "90", 1, client_order_id=f"o{number}", timeout=30)
                    )
                    for number in range(110)
                ]
                await until(lambda: len(submissions._standing_by) == 100, "all but ten wait for room")
                await asyncio.wait_for(asyncio.to_thread(lambda: None), 10)
                for task in tasks[10::2]:
                    task.cancel()
                await until(lambda: len(submissions._standing_by) == 50, "half of them wait no longer")
                go()
            found = await asyncio.gather(*tasks[:10], *tasks[11::2])
            sequences = [result.sequence for result in found]
            assert sequences == sorted(sequences)
            assert not (await node.submit_order(MARKET, "buy", "90", 1, client_order_id="o10")).duplicate
            assert not node.unanswered
            assert submissions.in_flight == 0

    run(test)


def test_those_who_wait_for_room_fail_when_the_replica_ends() -> None:
    async def test() -> None:
        async with running() as node:
            submissions = node.node.market(MARKET).submissions
            submissions._limit = 10
            with held(node) as go:
                tasks = [asyncio.create_task(node.submit_order(MARKET, "buy", "90", 1, timeout=60)) for _ in range(110)]
                await until(lambda: len(submissions._standing_by) == 100, "all but ten wait for room")
                node.node.market(MARKET).ref.stop(block=False)
                go()
            done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
            assert {type(outcome) for outcome in done[50:]} == {Closed}

    run(test)


def test_market_data_comes_in_order_and_ends_with_the_node() -> None:
    async def test() -> None:
        async with running() as node:
            stream = await node.subscribe(MARKET)
            await asyncio.gather(*[node.submit_order(MARKET, "sell", "100", 1, account="ann") for _ in range(100)])
            await node.submit_order(MARKET, "buy", "100", 30, account="ben")
            trades: list[Trade] = []
            expected = 2
            async for update in stream:
                assert update.first_sequence == expected
                expected = update.sequence + 1
                trades += [event for event in update.events if isinstance(event, Trade)]
                if trades:
                    break
            assert len(trades) == 30
            assert stream.last_sequence == 102
            resumed = await node.subscribe(MARKET, after=1)
            first = await resumed.get()
            assert first is not None
            assert first.first_sequence == 2
            waiting = asyncio.create_task(stream.get())
            await asyncio.sleep(0)
            await node.close()
            assert await waiting is None
            async with resumed:
                assert await resumed.get() is None
            assert resumed.error is None or isinstance(resumed.error, Closed)

    run(test)


def test_a_subscription_that_nobody_waits_for_any_more_is_none() -> None:
    async def test() -> None:
        async with running() as node:
            mailbox = node.node.market(MARKET).ref.actor_inbox
            with held(node):
                given_up = asyncio.create_task(node.subscribe(MARKET))
                await until(lambda: mailbox.qsize() == 1, "it has asked")
                given_up.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await given_up
            await until(mailbox.empty, "the market has heard of it")
            assert await node.market(MARKET).read(lambda actor: len(actor.feed)) == 0
            node.node.timeout = 0.2
            with held(node), pytest.raises(RequestTimeout):
                await node.subscribe(MARKET)
            node.node.timeout = 5
            await until(mailbox.empty, "the market has heard of the second")
            assert await node.market(MARKET).read(lambda actor: len(actor.feed)) == 0
            assert not node.node.market(MARKET).subscriptions

    run(test)


def test_a_reader_that_has_much_to_read_lets_others_have_their_turns() -> None:
    async def test() -> None:
        async with running() as node:
            stream = await node.subscribe(MARKET)
            for _ in range(100):
                await node.submit_order(MARKET, "buy", "100", 1)
            turns = 0

            async def others() -> None:
                nonlocal turns
                while True:
                    await asyncio.sleep(0)
                    turns += 1

            running_on = asyncio.create_task(others())
            last = stream.last_sequence + 100
            async for update in stream:
                time.sleep(0.002)  # the reader's own work
                if update.sequence == last:
                    break
            running_on.cancel()
            assert 10 < turns < 100, "every few updates"

    run(test)


def test_a_slow_reader_is_cut_and_told_so() -> None:
    async def test() -> None:
        async with running() as node:
            stream = await node.subscribe(MARKET, queue_size_max=3)
            for _ in range(10):
                await node.submit_order(MARKET, "buy", "100", 1)
            received = [update async for update in stream]
            assert len(received) == 3
            assert isinstance(stream.error, Overloaded)
            again = await node.subscribe(MARKET, after=stream.last_sequence)
            update = await again.get()
            assert update is not None
            assert update.first_sequence == stream.last_sequence + 1

    run(test)


def test_answers_for_a_loop_that_is_gone_are_dropped() -> None:
    kept: list[AsyncNode] = []

    async def leave() -> None:
        node = await asyncio.to_thread(ExchangeNode, "alice", markets={MARKET: RULES})
        made = AsyncNode(node)
        kept.append(made)
        await made.wait_ready()
        node.market(MARKET).ref.tell(Query(lambda _: time.sleep(0.2)))
        asyncio.get_running_loop().create_task(made.submit_order(MARKET, "buy", "100", 1, client_order_id="left"))
        await made.subscribe(MARKET)
        await asyncio.sleep(0)

    asyncio.run(leave())
    with kept[0].node as node:
        assert node.submit_order(MARKET, "buy", "100", 1, client_order_id="left").duplicate
    with pytest.raises(InvalidRequest, match="event loop that uses it"):
        AsyncNode(node)
