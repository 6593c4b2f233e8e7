"""What is promised to programs that fork, start a node twice, or are interrupted while one closes."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openoutcry.actors import (
    Actor,
    AsyncNode,
    Closed,
    ConfigurationError,
    ExchangeNode,
    InvalidRequest,
    MarketRules,
    message,
    open_nodes,
)
from openoutcry.actors.book.journal import FolderLock
from openoutcry.actors.control import ControlClient
from openoutcry.actors.control.server import ControlServer
from openoutcry.transport.rendezvous import Rendezvous
from openoutcry.transport.sqlite import SqliteCoordinator
from openoutcry.transport.survey import Directory

MARKET = "BTC-USD"
RULES = MarketRules()
SOON_S = 3.0
"""Longest that anything in a child may take, in seconds; what asks an actor in vain takes 5."""

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


@message("test.forks.hello")
class Hello:
    """Nothing but its type."""


class Echo(Actor):
    def on_receive(self, received: object) -> object:
        return received


class Ticker(Actor):
    def on_start(self) -> None:
        self.tell_after(0.01, "tick")

    def on_receive(self, _received: object) -> None:
        self.actor_ref.stop(block=False)


def in_child(function: Callable[[], Any]) -> Any:
    """Return what ``function`` returns in a forked child, which has to end soon, and with exit code 0."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            answer = function()
        except BaseException:
            answer = traceback.format_exc()
        os.write(write, pickle.dumps(answer))
        os._exit(0)
    os.close(write)
    deadline_s = time.monotonic() + SOON_S
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > deadline_s:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError("the child hangs")
        time.sleep(0.005)
    assert os.waitstatus_to_exitcode(ended[1]) == 0
    with os.fdopen(read, "rb") as pipe:
        return pickle.loads(pipe.read())


def script(text: str, *args: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", textwrap.dedent(text), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def codes_of(holders: list[Any]) -> dict[str, str]:
    """Call every public name of every holder; return the code of each error, or what came in its place."""
    found = {}
    for holder in holders:
        names = [name for name in dir(type(holder)) if not name.startswith("_") and name != "close"]
        for name in names:
            try:
                called = getattr(holder, name)
                found[f"{type(holder).__name__}.{name}"] = f"returned {called!r}"
            except Closed as error:
                found[f"{type(holder).__name__}.{name}"] = error.code
        assert "inherited by a fork" in repr(holder)
    return found


def test_in_a_child_every_public_call_is_refused_at_once_and_close_does_nothing(tmp_path: Path) -> None:
    async def make(node: ExchangeNode) -> AsyncNode:
        return AsyncNode(node)

    with ExchangeNode("a", markets={MARKET: RULES}, data_dir=tmp_path, serve_directory="tcp://127.0.0.1:0") as node:
        node.wait_ready()
        echo = Echo.start()
        node.register("echo", echo, accepts=[Hello])
        remote = node.actor("echo@a")
        asked = remote.ask(Hello(), block=False)
        submit, later = node.submit_order, node.submit_many_async(MARKET, [node.order(MARKET, "buy", "1", "1")])
        subscription = node.subscribe(MARKET)
        rendezvous = Rendezvous("tcp://127.0.0.1:0")
        server = ControlServer(node)
        client = ControlClient(tmp_path)
        holders: list[Any] = [
            node,
            asyncio.run(make(node)),
            subscription,
            asked,
            rendezvous,
            server,
            client,
            Directory([rendezvous.address]),
            SqliteCoordinator(tmp_path / "other.sqlite"),
        ]

        def child() -> dict[str, str]:
            found = codes_of(holders)
            calls: dict[str, Callable[[], Any]] = {
                "a method that was looked up before": lambda: submit(MARKET, "buy", "1", "1"),
                "answers of a batch": later,
                "tell": lambda: remote.tell(Hello()),
                "ask": lambda: remote.ask(Hello()),
                "an actor": lambda: echo.ask("x"),
                "iteration": lambda: list(subscription),
                "asyncio": lambda: asyncio.run(holders[1].submit_order(MARKET, "buy", "1", "1")),
            }
            for what, call in calls.items():
                try:
                    found[what] = f"returned {call()!r}"
                except Closed as error:
                    found[what] = error.code
            for holder in holders[2:]:
                if hasattr(type(holder), "close"):
                    holder.close()
            asyncio.run(holders[1].close())
            with node:
                pass
            return found

        found = in_child(child)
        assert isinstance(found, dict), found
        assert {what: code for what, code in found.items() if code != "forked"} == {}
        assert len(found) > 100
        assert in_child(gc.isenabled)
        assert gc.isenabled()
        assert len(later()) == 1
        assert node.submit_order(MARKET, "buy", "1", "1").status == "resting", "the parent goes on"
        for holder in (client, server, rendezvous, subscription, *holders[-2:]):
            holder.close()
        echo.stop()


def test_a_child_ends_in_order_and_takes_nothing_back_of_its_parents() -> None:
    done = script(
        """
        import os, sys, time
        from openoutcry.actors import ExchangeNode, MarketRules
        with ExchangeNode("a", markets={"M": MarketRules()}, serve_directory="tcp://127.0.0.1:0") as node:
            node.wait_ready()
            node.announce("service", "tcp://127.0.0.1:1")
            for how in ("with", "exit", "end"):
                began = time.monotonic()
                if not (pid := os.fork()):
                    if how == "with":
                        break
                    sys.exit(0)
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
                assert time.monotonic() - began < 3
            else:
                assert node.data_dir.exists()
                assert node.lookup("service").entries
                print(node.submit_order("M", "buy", "1", "1").status)
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "resting\n", "")


def test_an_orphan_keeps_no_port_no_connection_and_no_data_directory(tmp_path: Path) -> None:
    text = """
        import os, signal, socket, sys, time
        from openoutcry.actors import ExchangeNode, MarketRules
        folder, *ports = sys.argv[1:]
        options = dict(
            markets={"M": MarketRules()}, data_dir=folder, listen=f"tcp://127.0.0.1:{ports[0]}",
            serve_directory=f"tcp://127.0.0.1:{ports[1]}", metrics=f"127.0.0.1:{ports[2]}",
        )
        node = ExchangeNode("a", **options)
        node.wait_ready()
        other = ExchangeNode("b", directory=node.directory_address)
        while not node.links_up() or not other.links_up():
            time.sleep(0.01)
        read, write = os.pipe()
        if os.fork():
            os.read(read, 1)
            os.kill(os.getpid(), signal.SIGKILL)
        kept = [link for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")
                and (link := os.readlink(f"/proc/self/fd/{fd}")).startswith(("socket", folder))
                and not link.endswith((".log", "coordinator.sqlite"))]  # files without a lock
        print(os.getpid(), kept, flush=True)
        os.write(write, b"x")
        os.close(1)
        os.close(2)
        time.sleep(60)
    """
    holders = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [holder.getsockname()[1] for holder in holders]
    for holder in holders:
        holder.close()
    done = script(text, tmp_path, *ports)
    orphan, _, kept = done.stdout.partition(" ")
    try:
        assert (done.returncode, kept, done.stderr) == (-signal.SIGKILL, "[]\n", "")
        with ExchangeNode(
            "a",
            markets={MARKET: RULES},
            data_dir=tmp_path,
            listen=f"tcp://127.0.0.1:{ports[0]}",
            serve_directory=f"tcp://127.0.0.1:{ports[1]}",
            metrics=f"127.0.0.1:{ports[2]}",
        ) as node:
            node.wait_ready()
    finally:
        os.kill(int(orphan), signal.SIGKILL)


def test_a_child_forked_while_folders_are_locked_and_released_ends_and_keeps_none(tmp_path: Path) -> None:
    done, ended, failed = threading.Event(), 0, list[BaseException]()

    def churn(folder: Path) -> None:
        try:
            while not done.is_set():
                FolderLock(folder).release()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=churn, args=(tmp_path / str(number),)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(40):
            assert in_child(lambda: 1) == 1
            ended += 1
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert (ended, failed) == (40, [])


def test_a_node_in_a_child_is_refused_before_nng_ends_the_process_and_actors_work_there(tmp_path: Path) -> None:
    ExchangeNode("parent", data_dir=tmp_path / "parent").close()

    def child() -> list[str]:
        made: list[Callable[[], Any]] = [
            lambda: ExchangeNode("child", data_dir=tmp_path / "child"),
            lambda: Rendezvous("tcp://127.0.0.1:0"),
            lambda: Directory(["tcp://127.0.0.1:1"]),
        ]
        codes = []
        for make in made:
            try:
                make()
            except ConfigurationError as error:
                codes.append(error.code)
        ticker = Ticker.start()
        assert ticker.actor_stopped.wait(2), "timers have no thread in the child"
        return codes

    assert in_child(child) == ["forked"] * 3
    assert not (tmp_path / "child").exists()


def test_a_child_of_a_process_that_has_no_node_yet_makes_its_own() -> None:
    done = script(
        """
        import os, sys
        from openoutcry.actors import ExchangeNode, MarketRules
        if pid := os.fork():
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        with ExchangeNode("a", markets={"M": MarketRules()}) as node:
            node.wait_ready()
            print(node.submit_order("M", "buy", "1", "1").status)
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "resting\n", "")


@pytest.mark.parametrize("how", ["fork", "spawn", "forkserver"])
def test_multiprocessing_works_beside_a_node(how: str) -> None:
    done = script(
        """
        import math, multiprocessing, sys
        from openoutcry.actors import ExchangeNode, MarketRules
        if __name__ == "__main__":
            context = multiprocessing.get_context(sys.argv[1])
            with ExchangeNode("a", markets={"M": MarketRules()}) as node:
                node.wait_ready()
                with context.Pool(2) as pool:
                    print(pool.map(math.sqrt, [1, 4]))
                print(node.submit_order("M", "buy", "1", "1").status)
        """,
        how,
    )
    assert (done.returncode, done.stdout) == (0, "[1.0, 2.0]\nresting\n"), done.stderr


def test_an_error_names_the_process_that_holds_a_data_directory(tmp_path: Path) -> None:
    node = ExchangeNode("a", data_dir=tmp_path)
    with pytest.raises(ConfigurationError, match=r"this process itself, \d+.*Call close\(\)") as caught:
        node = ExchangeNode("a", data_dir=tmp_path)  # a cell of a notebook, run again
    assert caught.value.code == "data_dir_in_use"
    assert open_nodes() == [node]
    node.close()
    assert open_nodes() == []
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from openoutcry.actors import ExchangeNode\n"
            "node = ExchangeNode('a', data_dir=sys.argv[1]); print('held', flush=True); sys.stdin.read()",
            str(tmp_path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigurationError, match=f"is in use by process {holder.pid} on ") as caught:
            ExchangeNode("a", data_dir=tmp_path)
        assert caught.value.code == "data_dir_in_use"
    finally:
        holder.communicate(b"")
    ExchangeNode("a", data_dir=tmp_path).close()


def test_every_call_of_an_async_node_is_refused_in_another_event_loop_or_none_before_it_sends() -> None:
    with ExchangeNode("a", markets={MARKET: RULES}) as node:
        node.wait_ready()

        async def make() -> tuple[AsyncNode, Any]:
            made = AsyncNode(node)
            return made, await made.subscribe(MARKET)

        made, subscription = asyncio.run(make())
        order, sequence = node.order(MARKET, "buy", "1", "1"), node.sequence(MARKET)
        calls = {
            "wait_ready": (),
            "submit_order": (MARKET, "buy", "1", "1"),
            "cancel_order": (MARKET, 1),
            "cancel_all": (MARKET,),
            "amend_order": (MARKET, 1),
            "submit_many": (MARKET, [order]),
            "get_order_book": (MARKET,),
            "get_order": (MARKET, 1),
            "open_orders": (MARKET,),
            "trades": (MARKET,),
            "position": (MARKET,),
            "subscribe": (MARKET,),
        }
        assert {*calls, "close", "node", "unanswered", "market"} >= {
            name for name in vars(AsyncNode) if not name.startswith("_")
        }

        async def call(method: Callable[..., Any], *args: Any) -> Any:
            return await method(*args)

        for method, args in [*((getattr(made, name), args) for name, args in calls.items()), (subscription.get, ())]:
            with pytest.raises(InvalidRequest, match="nothing was sent") as caught:
                asyncio.run(call(method, *args))
            assert caught.value.code == "other_event_loop"
            waiting = method(*args)
            with pytest.raises(InvalidRequest, match="nothing was sent") as caught:
                waiting.send(None)  # as another library's event loop would
            assert caught.value.code == "no_event_loop"
        with pytest.raises(InvalidRequest) as caught:
            made.market(MARKET)
        assert caught.value.code == "no_event_loop"
        assert node.sequence(MARKET) == sequence
        asyncio.run(call(made.close))
        assert node.phase == "closed"


def interrupt_when(event: threading.Event, times: int = 1) -> threading.Thread:
    def interrupt() -> None:
        for _ in range(times):
            assert event.wait(30)
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)

    thread = threading.Thread(target=interrupt)
    thread.start()
    return thread


def test_a_node_that_is_interrupted_while_it_closes_is_closed(tmp_path: Path) -> None:
    node = ExchangeNode("a", markets={MARKET: RULES}, data_dir=tmp_path)
    node.wait_ready()
    entered = threading.Event()
    node.group.undo.callback(lambda: (entered.set(), time.sleep(0.5)))
    interrupting = interrupt_when(entered)
    with pytest.raises(KeyboardInterrupt):
        node.close()
    assert node.phase == "closed"
    interrupting.join()
    node.close()
    with ExchangeNode("a", markets={MARKET: RULES}, data_dir=tmp_path) as again:
        again.wait_ready()


def test_a_node_whose_closing_is_interrupted_twice_is_closed_by_another_call(tmp_path: Path) -> None:
    node = ExchangeNode("a", markets={MARKET: RULES}, data_dir=tmp_path)
    node.wait_ready()
    entered, go = threading.Event(), threading.Event()
    node.group.undo.callback(lambda: (entered.set(), go.wait(30)))
    interrupting = interrupt_when(entered, 2)
    began_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        node.close()
    assert time.monotonic() - began_s < 5
    assert node.phase == "closing"
    interrupting.join()
    go.set()
    node.close()
    assert node.phase == "closed"
    ExchangeNode("a", data_dir=tmp_path).close()
