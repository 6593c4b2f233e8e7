"""The command line and the control link under it: what people and programs see, and what a node survives."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import pynng
import pytest
from click.testing import CliRunner, Result
from openoutcry.actors import (
    Closed,
    ExchangeNode,
    InvalidRequest,
    Market,
    MarketRules,
    OpenOutcryError,
    OrderRejected,
    RequestTimeout,
    Unavailable,
)
from openoutcry.actors.cli import main
from openoutcry.actors.cli.show import status_lines
from openoutcry.actors.control import ControlClient
from openoutcry.actors.control.server import WORKERS, ControlServer
from openoutcry.actors.control.wire import ANSWERS, CONTROL_FILE, REQUESTS, Failure, GetStatus
from openoutcry.actors.tools.local import LocalExchange
from openoutcry.transport import sockets
from openoutcry.transport.errors import LinkBroken

MARKET = "BTC-USD"
RULES = MarketRules(tick_size="0.01", lot_size="0.001")
OPENOUTCRY = [sys.executable, "-c", "import sys; from openoutcry.actors.cli import main; sys.exit(main())"]
WITHIN_S = 20.0

Run = Callable[..., Result]
Start = Callable[..., "subprocess.Popen[str]"]


def wait_for(condition: Callable[[], object], what: str) -> Any:
    deadline = time.monotonic() + WITHIN_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {WITHIN_S} s: {what}"
        time.sleep(0.01)
    return found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in [name for name in os.environ if name.startswith("OPENOUTCRY_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("OPENOUTCRY_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def run(home: Path) -> Run:
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    """Start the command as a process, killed after the test if it still runs."""
    with ExitStack() as started:

        def begin(*arguments: str) -> subprocess.Popen[str]:
            # stderr goes to a file: a pipe that nobody reads would stop a process that logs.
            errors = started.enter_context((home / f"{arguments[0]}-{time.monotonic_ns()}.log").open("w"))
            process = subprocess.Popen([*OPENOUTCRY, *arguments], stdout=subprocess.PIPE, stderr=errors, text=True)
            started.enter_context(process)
            started.callback(process.kill)
            return process

        yield begin


@pytest.fixture
def desk(home: Path) -> Iterator[ExchangeNode]:
    """A node in this process that the command line reaches."""
    folder = home / "nodes" / "desk"
    with ExchangeNode("desk", markets={MARKET: RULES}, data_dir=folder) as node, ControlServer(node):
        node.wait_ready()
        yield node


def stop(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> int:
    process.send_signal(number)
    return process.wait(WITHIN_S)


# -- real processes ----------------------------------------------------------------------------------------------------


def test_two_nodes_and_a_directory_started_by_hand_trade_restart_and_agree(run: Run, start: Start, home: Path) -> None:
    rendezvous = start("directory", "--listen", "tcp://127.0.0.1:0")
    assert rendezvous.stdout is not None
    address = rendezvous.stdout.readline().strip()
    alice_command = ("node", "--name", "alice", "--market", f"{MARKET}:tick_size=0.01", "--directory", address)
    alice = start(*alice_command)
    bob = start("node", "--name", "bob", "--join", MARKET, "--directory", address)

    def market(name: str) -> dict[str, Any]:
        result = run("status", "--node", name, "--json")
        if result.exit_code != 0:
            return {"ready": False, "in_sync": ()}
        found: dict[str, Any] = json.loads(result.output)["markets"][MARKET]
        return found

    wait_for(lambda: len(market("alice")["in_sync"]) == 2 and market("bob")["ready"], "both nodes are in sync")

    assert run("status").exit_code == 1
    assert "several nodes run here: alice, bob; choose one with --node (ambiguous_node)" in run("status").output
    assert run("submit", MARKET, "sell", "100.25", "3", "--node", "alice").exit_code == 0
    bought = run("submit", MARKET, "buy", "100.50", "1", "--node", "bob")
    assert bought.output.splitlines()[1:] == ["  bought 1 at 100.25"]
    assert run("amend", MARKET, "2", "--price", "100.40", "--node", "alice").exit_code == 0
    wait_for(lambda: market("bob")["applied"] == market("alice")["applied"] == 4, "both have applied everything")
    assert market("bob")["state_hash"] == market("alice")["state_hash"]
    lines = [line.split() for line in run("status", "--node", "alice").output.splitlines()]
    assert [MARKET, "bob", "yes"] in [line[:3] for line in lines], "the leader tells of its followers"
    before = json.loads(run("book", MARKET, "--node", "alice", "--json").output)
    assert before["asks"] == [{"price": "100.40", "quantity": "2", "orders": 1}]
    assert json.loads(run("book", MARKET, "--node", "bob", "--json").output) == before

    assert stop(bob, signal.SIGINT) == 0
    assert stop(alice) == 0
    assert not list(home.glob(f"nodes/*/{CONTROL_FILE}"))
    assert run("status").output == f"no node runs below {home}; running there: none (node_not_running)\n"

    alice = start(*alice_command)
    wait_for(lambda: market("alice")["ready"], "alice is back")
    after = json.loads(run("book", MARKET, "--json").output)
    assert all(after[key] == before[key] for key in ("bids", "asks", "last_trade"))
    assert stop(alice) == 0
    assert stop(rendezvous) == 0


def test_a_market_is_created_from_the_command_line_on_all_nodes_also_on_one_that_is_down(
    run: Run, start: Start, home: Path
) -> None:
    rendezvous = start("directory", "--listen", "tcp://127.0.0.1:0")
    assert rendezvous.stdout is not None
    address = rendezvous.stdout.readline().strip()
    commands = {name: ("node", "--name", name, "--join-all", "--directory", address) for name in ("alice", "bob")}
    alice, bob = (start(*command) for command in commands.values())

    def listed(name: str) -> list[list[str]]:
        return [line.split() for line in run("market", "list", "--node", name).output.splitlines()[1:]]

    wait_for(lambda: run("status", "--node", "alice").exit_code == 0, "alice runs")
    wait_for(lambda: run("status", "--node", "bob").exit_code == 0, "bob runs")
    assert listed("alice") == []
    create = ("market", "create", "ETH-USD", "--tick", "0.05", "--lot", "0.1", "--timeout", "30")
    takes, held = run(*create, "--node", "alice").output.splitlines()
    assert takes == "ETH-USD takes orders, in ticks of 0.05 and lots of 0.1"
    known = r"alice alone so far; bob will join it, as every market|alice, bob so far"
    assert re.fullmatch(rf"held by ({known}); other nodes join it with --join ETH-USD, .*", held)
    again = run(*create, "--node", "bob")
    assert again.exit_code == 0, f"the same again changes nothing: {again.output}"
    assert run("submit", "ETH-USD", "buy", "10.05", "0.1", "--node", "bob").exit_code == 0
    other = run("market", "create", "ETH-USD", "--tick", "1", "--node", "bob")
    assert (other.exit_code, other.output.split()[-1]) == (1, "(market_exists)")
    assert listed("bob") == [["ETH-USD", "yes", "0.05", "0.1"]]

    assert stop(bob) == 0
    more = run("market", "create", "SOL-USD", "--tick", "0.01", "--rule", "open_orders_max=5", "--timeout", "30")
    assert more.exit_code == 0, more.output
    start(*commands["bob"])
    wait_for(lambda: ["SOL-USD", "yes", "0.01", "1"] in listed("bob"), "bob has joined what was created meanwhile")
    wait_for(lambda: run("submit", "SOL-USD", "buy", "1", "1", "--node", "bob").exit_code == 0, "bob can trade it")
    rows = json.loads(run("market", "list", "--node", "bob", "--json").output)
    assert [row["rules"]["open_orders_max"] for row in rows] == [0, 5]
    assert stop(alice) == 0


def test_rules_that_are_wrong_are_refused_before_anything_is_asked(run: Run) -> None:
    for pair in ("open_orders_max=-1", "open_orders=5", "nonsense", "open_orders_max=many"):
        result = run("market", "create", "ETH-USD", "--tick", "0.05", "--rule", pair)
        assert (result.exit_code, result.output.split()[-1]) == (1, "(configuration)"), pair


def test_a_market_that_lost_all_in_sync_disks_can_be_led_by_force(run: Run, start: Start, home: Path) -> None:
    rendezvous = start("directory", "--listen", "tcp://127.0.0.1:0")
    assert rendezvous.stdout is not None
    where = ("--directory", rendezvous.stdout.readline().strip())

    def begin(name: str) -> subprocess.Popen[str]:
        return start("node", "--name", name, "--market", MARKET, *where)

    def market(name: str) -> dict[str, Any]:
        result = run("status", "--node", name, "--json")
        found: dict[str, Any] = json.loads(result.output)["markets"][MARKET] if result.exit_code == 0 else {}
        return found

    nodes = {name: begin(name) for name in ("alice", "bob", "carol")}
    wait_for(lambda: all(len(market(name).get("in_sync", ())) == 3 for name in nodes), "all are in sync")
    assert run("submit", MARKET, "buy", "99", "1", "--node", "carol").exit_code == 0
    assert stop(nodes["carol"]) == 0
    wait_for(lambda: len(market("alice")["in_sync"]) == 2, "carol is left out")
    assert run("submit", MARKET, "buy", "98", "1", "--node", "bob").exit_code == 0
    for name in ("alice", "bob"):
        stop(nodes[name], signal.SIGKILL)
        shutil.rmtree(home / "nodes" / name)
    nodes["carol"] = begin("carol")
    wait_for(lambda: market("carol").get("leader"), "carol knows who has led")
    assert run("submit", MARKET, "buy", "97", "1", "--timeout", "0.5").output.endswith("(leader_unreachable)\n")

    force = ("force-leader", MARKET, "--reason", "dan: two disks burnt")
    asked = run(*force)
    assert (asked.exit_code, market("carol")["role"]) == (1, "following"), "who does not say yes changes nothing"
    assert "LOST: everything that was answered after sequence" in asked.output
    done = run(*force, "--yes")
    assert done.exit_code == 0, done.output
    assert run("submit", MARKET, "buy", "97", "1").exit_code == 0
    assert run(*force, "--yes").output.endswith("(already_leading)\n")
    for name in ("alice", "bob"):
        nodes[name] = begin(name)
    wait_for(lambda: all(len(market(name).get("in_sync", ())) == 3 for name in nodes), "all are in sync again")
    bids = [json.loads(run("book", MARKET, "--node", name, "--json").output)["bids"] for name in nodes]
    assert [level["price"] for level in bids[0]] == ["99.00", "97.00"], "98 was lost, and nothing else"
    for name, node in nodes.items():
        assert stop(node) == 0
        assert run("log", home / "nodes" / name, MARKET).output.count("reason: dan: two disks burnt") == 1
    assert stop(rendezvous) == 0


def test_killed_node_leaves_a_control_file_that_misleads_nobody(run: Run, start: Start, home: Path) -> None:
    command = ("node", "--name", "solo", "--market", MARKET)
    solo = start(*command)
    wait_for(lambda: run("status").exit_code == 0, "the node answers")
    stop(solo, signal.SIGKILL)
    file = home / "nodes" / "solo" / CONTROL_FILE
    stale = json.loads(file.read_text())

    assert run("status").output.endswith("(node_not_running)\n")
    file.write_text(json.dumps({**stale, "pid": os.getpid()}))  # the process id was given to somebody else
    assert run("status").output.endswith("(node_not_running)\n")

    again = start(*command)
    wait_for(lambda: run("status").exit_code == 0, "the node answers again")
    current = json.loads(file.read_text())
    file.write_text(json.dumps({**current, "token": stale["token"]}))
    assert run("status").output.endswith("(wrong_node)\n")
    assert stop(again) == 0


@pytest.mark.parametrize("command", ["book", "trades"])
def test_watch_follows_what_happens_until_it_is_interrupted(desk: ExchangeNode, start: Start, command: str) -> None:
    watcher = start(command, MARKET, "--watch", "--json")
    assert watcher.stdout is not None
    if command == "book":
        assert json.loads(watcher.stdout.readline())["bids"] == []
        desk.submit_order(MARKET, "buy", "99.5", "2")
        assert json.loads(watcher.stdout.readline())["bids"] == [{"price": "99.50", "quantity": "2.000", "orders": 1}]
    else:
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(watcher.stdout or ()))
        reader.start()

        def traded() -> list[str]:
            desk.submit_order(MARKET, "buy", "99.5", "1")
            desk.submit_order(MARKET, "sell", "99.5", "1")
            return lines

        wait_for(lambda: len(traded()) >= 3, "three trades are printed")
    assert stop(watcher, signal.SIGINT) == 0
    if command == "trades":
        reader.join(WITHIN_S)
        numbers = [json.loads(line)["trade_id"] for line in lines]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "no gap, no repeat"


# -- what is printed, and the exit codes -------------------------------------------------------------------------------


def test_orders_go_in_and_books_come_out_as_text_and_as_json(desk: ExchangeNode, run: Run) -> None:
    assert run("submit", MARKET, "sell", "100.5", "2").output == (
        f"order 2 resting, sequence 2, state {desk.state_hash(MARKET)}\n"
    )
    assert run("submit", MARKET, "BUY", "99", "0.25", "--account", "eve", "--type", "post_only").exit_code == 0
    filled = json.loads(run("submit", MARKET, "buy", "-", "0.5", "--type", "market", "--json").output)
    assert (filled["status"], filled["filled_quantity"]) == ("filled", "0.500")
    assert [event["kind"] for event in filled["events"]] == ["accepted", "trade"]

    assert run("book", MARKET).output == (
        f"{MARKET} at sequence 4, state {desk.state_hash(MARKET)}\n"
        "orders       bid   price  ask       orders\n"
        "                  100.50  1.500     1\n"
        "     1     0.250   99.00\n"
        "last trade: 0.500 at 100.50\n"
    )
    when, _, trade = run("trades", MARKET).output.partition("Z")
    assert trade == "         4  #1  0.500 at 100.50, desk bought, desk made\n"
    assert abs(datetime.datetime.fromisoformat(when[:26]).timestamp() - time.time()) < 24 * 3600
    assert run("orders", MARKET).output == "       2  sell  1.500 of 2.000 at 100.50\n"
    (order,) = json.loads(run("orders", MARKET, "--account", "eve", "--json").output)
    assert (order["order_id"], order["post_only"]) == (3, True)
    market, replica = run("status").output.split("\n\n")[1:]
    epoch = str(desk.status().markets[MARKET].epoch)
    row = [MARKET, "leading", "yes", epoch, "desk", "desk", "4", "2", "1", desk.state_hash(MARKET)]
    assert [line.split() for line in market.splitlines()[1:]] == [row]
    assert [line.split() for line in replica.splitlines()[1:]] == [[MARKET, "desk", "leader", "4", "4", "0"]]

    assert run("amend", MARKET, "2", "--quantity", "1").output.startswith("order 2 amended, sequence 5")
    assert run("cancel", MARKET, "2").output.startswith("order 2 cancelled, sequence 6")
    assert run("cancel", MARKET, "--all", "--account", "eve").output.startswith("1 order cancelled: 3, sequence 7")
    assert run("orders", MARKET).output == f"no open orders of desk in {MARKET}\n"


def test_cancelling_says_how_many_orders_and_why(desk: ExchangeNode, run: Run) -> None:
    def said(*arguments: str) -> list[str]:
        first, *others = run(*arguments).output.splitlines()
        return [first.partition(", sequence ")[0], *others]

    def submitted(*arguments: str) -> list[str]:
        return said("submit", MARKET, *arguments)

    assert said("cancel", MARKET, "--all") == ["no open orders"]
    assert submitted("buy", "-", "1", "--type", "market") == ["order 3 cancelled: nothing to trade with at its price"]
    assert submitted("sell", "100", "1") == ["order 4 resting"]
    assert submitted("buy", "100", "3", "--tif", "ioc", "--account", "eve") == [
        "order 5 cancelled: nothing more to trade with at its price",
        "  bought 1.000 at 100.00",
    ]
    assert submitted("sell", "100", "2") == ["order 6 resting"]
    newest = submitted("buy", "100", "1", "--stp", "cancel_newest")
    assert newest == ["order 7 cancelled: self-trade prevented"]
    both = submitted("buy", "100", "0.5", "--stp", "decrement_and_cancel")
    assert both == [
        "order 8 cancelled: self-trade prevented",
        "  order 6: 0.500 cancelled, self-trade prevented, 1.500 left open",
    ]
    oldest = submitted("buy", "100", "1", "--stp", "cancel_oldest")
    assert oldest == ["order 9 resting", "  order 6: 1.500 cancelled, self-trade prevented"]
    assert submitted("buy", "99", "1") == ["order 10 resting"]
    assert said("cancel", MARKET, "--all") == ["2 orders cancelled: 9, 10"]
    desk.submit_many(MARKET, [desk.order(MARKET, "buy", "9", "1") for _ in range(25)])
    (told,) = said("cancel", MARKET, "--all")
    assert told.startswith("25 orders cancelled: 12, 13")
    assert told.endswith(" 31 and 5 more")


def test_leadership_is_given_to_the_node_that_is_named(home: Path, run: Run, exchange: Any) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES})
    first, second = net[0], net[1]
    net[0].submit_order(MARKET, "buy", "99", "1")
    with ControlServer(first), ControlServer(second):
        at_first = ("--data-dir", first.data_dir)
        refused = run("transfer", MARKET, "--to", "nobody", *at_first)
        assert refused.output.endswith(f"there are: {second.name} (unknown_node)\n")
        assert (
            run("transfer", MARKET, "--to", second.name, *at_first).output == f"{MARKET} is led by {second.node_id}\n"
        )
        second.submit_order(MARKET, "buy", "99", "1")
        itself = ("transfer", MARKET, "--to", second.name, "--data-dir", second.data_dir)
        assert run(*itself).output == f"{MARKET} is led by {second.node_id} already\n"
        to_first = run("transfer", MARKET, "--to", first.name, *at_first)
        assert to_first.output == f"market {MARKET} is led by {second.name}: ask that node (not_leader)\n"
        assert run("transfer", MARKET, *at_first).output.endswith("not by this node (not_leader)\n")
        back = run("transfer", MARKET, "--data-dir", second.data_dir, "--json")
        assert json.loads(back.output) == {"market": MARKET, "leader": first.node_id}
    assert first.status().markets[MARKET].role == "leading"


def test_status_shows_every_replica_that_a_leader_knows_of_and_every_trouble() -> None:
    market = {"role": "leading", "ready": True, "epoch": 3, "leader": "al.1", "in_sync": ["al.1", "bo.2"]}
    numbers = {"appended": 1200, "durable": 1200, "applied": 1190, "open_orders": 5, "trades": 30}
    followers = {
        "bo.2": {"durable": 1195, "applied": 1180, "streaming": True, "in_sync": True},
        "bo.3": {"durable": 200, "applied": 200, "streaming": False, "in_sync": False},
    }
    leading = {**market, **numbers, "state_hash": "ab12", "followers": followers, "error": None, "repairing": "a bit"}
    found = {
        "name": "al",
        "node_id": "al.1",
        "address": "tcp://h:1",
        "peers": {
            "bo.2": {"name": "bo", "up": True, "other_coordinator": False},
            "bo.3": {"name": "bo", "up": False, "other_coordinator": False},
            "cy.4": {"name": "cy", "up": False, "other_coordinator": True},
        },
        "identity": None,
        "clock": {"off": True, "ahead_s": 60.5, "offsets_s": {"bo.2": -60.5, "dee.9": -61.0}},
        "coordinator_error": "it is away",
        "failures": ["PeerActor: x"],
        "markets": {"A": leading, "BTC": {"role": "stopped", "ready": False, "error": "EIO (storage)"}},
    }
    assert status_lines(found) == [
        "node al (al.1) at tcp://h:1",
        "peer bo (bo.2): up",
        "peer bo (bo.3): down",
        "peer cy (cy.4): uses another coordinator: it belongs to another exchange",
        "clock: off: others are ahead by bo.2 -60.500 s, dee.9 -61.000 s; set this machine's clock",
        "coordinator: it is away",
        "failure: PeerActor: x",
        "",
        "MARKET  ROLE     READY  EPOCH  LEADER  IN SYNC  SEQUENCE  ORDERS  TRADES  STATE",
        "A       leading  yes        3  al      al,bo.2      1190       5      30  ab12",
        "BTC     stopped  no         -  -       -               -       -       -  -",
        "",
        "MARKET  REPLICA  IN SYNC  APPLIED  DURABLE   LAG",
        "A       al       leader      1190     1200     0",
        "A       bo.2     yes         1180     1195     5",
        "A       bo.3     no           200      200  1000",
        "A: repairing: a bit",
        "BTC: failed: EIO (storage)",
    ]


def test_an_unopened_market_is_reported_as_waiting(home: Path, run: Run) -> None:
    folder = home / "nodes" / "late"
    with ExchangeNode("late", markets=["NOPE-USD"], data_dir=folder) as node, ControlServer(node):
        book = run("book", "NOPE-USD")
        assert (book.exit_code, book.stdout) == (1, "")
        assert book.stderr.endswith("not ready: nothing is known of it yet; `openoutcry status` says why (not_ready)\n")
        order = run("submit", "NOPE-USD", "buy", "1", "1")
        assert order.output.startswith("market NOPE-USD is not ready: no leader is known here; has a node opened ")
        assert order.output.count("\n") == 1
        (_, row) = run("market", "list").output.splitlines()
        assert row.split("  ")[:2] == ["NOPE-USD", "waiting: no node has opened it"]
        assert json.loads(run("market", "list", "--json").output)[0]["opened"] is False
        assert run("status").output.splitlines()[-1].startswith("NOPE-USD: no leader: ")


def test_node_that_waits_for_a_market_says_so_in_its_log(start: Start, home: Path) -> None:
    log = home / "node.log"
    node = start("node", "--join", "NOPE-USD", "--log-file", str(log))
    wait_for(lambda: log.exists() and "node_waits" in log.read_text(), "it says what it waits for")
    assert "market NOPE-USD is not ready" in log.read_text()
    assert "has a node opened the market" in log.read_text()
    assert stop(node) == 0


def test_retry_with_the_same_client_order_id_gets_the_first_answer(desk: ExchangeNode, run: Run) -> None:
    command = ("submit", MARKET, "buy", "99", "1", "--client-order-id", "mine", "--json")
    first, second = [json.loads(run(*command).output) for _ in range(2)]
    assert (first["sequence"], first["duplicate"]) == (second["sequence"], False)
    assert second["duplicate"] is True
    assert len(desk.open_orders(MARKET)) == 1


@pytest.mark.parametrize(
    ("arguments", "exit_code", "ending"),
    [
        (("submit", MARKET, "buy", "100.123", "1"), 1, "is not a whole number of ticks of 0.01 (price_off_tick)"),
        (("submit", MARKET, "buy", "-1", "1"), 1, "lowest and highest price (price_out_of_range)"),
        (("submit", MARKET, "buy", "1", "1", "--account", "x" * 300), 1, "got str of length 300 (invalid_request)"),
        (("submit", "NOPE", "buy", "1", "1"), 1, "it has: BTC-USD (unknown_market)"),
        (("cancel", MARKET, "7"), 1, "(unknown_order)"),
        (("status", "--node", "eve"), 1, "running there: desk (node_not_running)"),
        (("node", "--name", "desk", "--market", "A"), 1, "(data_dir_in_use)"),
        (("node", "--name", "other"), 78, "a section [markets.NAME] in the file (configuration)"),
        (("submit", MARKET, "purchase", "1", "1"), 2, "'purchase' is not one of 'buy', 'sell'."),
        (("submit", MARKET, "buy", "1"), 2, "Missing argument 'QUANTITY'."),
        (("cancel", MARKET), 2, "give an ORDER_ID, or --all"),
        (("amend", MARKET, "2"), 2, "give --price, --quantity, or both"),
        (("book", MARKET, "--depth", "0"), 2, "0 is not in the range 1<=x<=10000."),
        (("status", "--node", "desk", "--data-dir", "x"), 2, "name the same thing: give one of them"),
        (("replay", "nowhere.csv"), 2, "File 'nowhere.csv' does not exist."),
    ],
)
def test_what_cannot_be_done_is_one_line_with_a_code(
    desk: ExchangeNode, run: Run, arguments: tuple[str, ...], exit_code: int, ending: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == exit_code
    assert result.output.endswith(f"{ending}\n")
    assert "Traceback" not in result.output
    assert exit_code == 2 or result.output.count("\n") == 1


def test_settings_that_no_restart_mends_exit_with_78_and_what_passes_with_1(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def node(*options: Any) -> tuple[int, str]:
        result = run("node", "--name", "solo", "--market", MARKET, *options)
        return result.exit_code, result.output

    assert node("--listen", "tcp://192.0.2.1:7500")[0] == 78, "an address of no machine"
    assert node("--coordinator", home)[0] == 78, "a folder is no file"
    assert node("--log-file", home)[0] == 78
    assert run("directory", "--listen", "tcp://192.0.2.1:7400").exit_code == 78
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "etcd3gw", None)
        code, told = node("--coordinator", "etcd://127.0.0.1:1/x")
        assert code == 78
        assert "pip install etcd3gw" in told, "not this program's own name, which no registry keeps for it"
        patch.setitem(sys.modules, "prometheus_client", None)
        patch.delitem(sys.modules, "openoutcry.actors.telemetry.metrics", raising=False)
        assert node("--metrics", "127.0.0.1:0")[0] == 78

    with sockets.open_socket(pynng.Rep0) as predecessor:
        taken = sockets.listen(predecessor, "tcp://127.0.0.1:0")
        for option, address in (("--listen", taken), ("--metrics", taken.removeprefix("tcp://"))):
            code, told = node(option, address)
            assert (code, told.split()[-1]) == (1, "(address_in_use)"), option
        assert run("directory", "--listen", taken).exit_code == 1

    store, folder = home / "coordinator.sqlite", home / "nodes" / "solo"
    with ExchangeNode("solo", markets={MARKET: RULES}, data_dir=folder, coordinator=store) as solo:
        solo.wait_ready()
        code, told = node()
        assert (code, told.split()[-1]) == (1, "(data_dir_in_use)")
    assert run("node", "--name", "other", "--market", MARKET, "--data-dir", folder).exit_code == 78
    code, told = node("--log-file", home / "node.log")
    assert (code, told.split()[-1]) == (78, "(rules_mismatch)")
    assert f"use --join {MARKET}, or join = true in the file" in told


def test_a_rules_mismatch_names_the_market(run: Run, home: Path) -> None:
    store, folder = home / "coordinator.sqlite", home / "nodes" / "solo"
    markets = {"EUR": MarketRules(), "EUR USD": RULES}
    with ExchangeNode("solo", markets=markets, data_dir=folder, coordinator=store) as solo:
        solo.wait_ready()
    result = run("node", "--name", "solo", "--market", "EUR", "--market", "EUR USD", "--log-file", home / "node.log")
    assert result.exit_code == 78
    assert "use --join 'EUR USD', or join = true" in result.output


def test_rejection_with_json_prints_the_whole_answer_and_fails(desk: ExchangeNode, run: Run) -> None:
    result = run("cancel", MARKET, "7", "--json")
    assert result.exit_code == 1
    answer = json.loads(result.output.splitlines()[0])
    assert (answer["status"], answer["code"], answer["sequence"]) == ("rejected", "unknown_order", 2)


# -- the control link --------------------------------------------------------------------------------------------------


def test_client_raises_what_the_node_raises(desk: ExchangeNode) -> None:
    with ControlClient(desk.data_dir) as client:
        with pytest.raises(OrderRejected) as rejected:
            client.cancel_order(MARKET, 7)
        assert (rejected.value.code, rejected.value.result.sequence) == ("unknown_order", 2)
        with pytest.raises(InvalidRequest) as invalid:
            client.submit_order(MARKET, "buy", "one", "1")
        assert invalid.value.code == "invalid_price"
        with pytest.raises(Unavailable) as unavailable:
            client.events(MARKET, 99)
        assert unavailable.value.code == "too_far_behind"
        result = client.submit_order(MARKET, "buy", "99.5", "1")
        assert result.events == desk.subscribe(MARKET, after=2).get(timeout=1).events  # type: ignore[union-attr]
        assert client.events(MARKET, 2)[0] == 3
        assert client.book(MARKET, known=3) is None
    with pytest.raises(Closed):
        client.status()


def test_malformed_requests_are_answered_by_an_error_and_harm_nobody(desk: ExchangeNode) -> None:
    control = json.loads((desk.data_dir / CONTROL_FILE).read_text())
    good = REQUESTS.encode(GetStatus(control["token"]))
    with sockets.open_socket(pynng.Req0, recv_timeout_ms=5000, send_timeout_ms=5000) as rude:
        rude.dial(control["address"], block=True)
        unknown = (b"\x02" + good[1:], b"\x01\xff" + good[2:])
        for frame in (b"\x00", b"\x01", good[:-1], good + b"\x00", *unknown, bytes(9000)):
            rude.send(frame)
            answer = ANSWERS.decode(rude.recv_msg().bytes)
            assert isinstance(answer, Failure)
            assert (answer.kind, answer.code) == ("ProtocolError", "protocol")
        rude.send(REQUESTS.encode(GetStatus("another")))
        answer = ANSWERS.decode(rude.recv_msg().bytes)
        assert (answer.kind, answer.code) == ("Unavailable", "wrong_node")
    with sockets.open_socket(pynng.Req0, recv_timeout_ms=500, send_timeout_ms=500) as rude:
        rude.resend_time = -1
        rude.dial(control["address"], block=True)
        rude.send(bytes(1_000_000))
        with pytest.raises((pynng.ConnectionReset, pynng.Timeout)):
            rude.recv_msg()
    with ControlClient(desk.data_dir) as client:
        assert client.status()["name"] == "desk"


def test_command_whose_answer_is_lost_is_not_sent_again_by_itself(tmp_path: Path) -> None:
    received = []
    with sockets.open_socket(pynng.Rep0, recv_timeout_ms=1500) as server:
        address = sockets.listen(server, "tcp://127.0.0.1:0")
        control = {"pid": os.getpid(), "name": "x", "address": address, "status_address": address, "token": "t"}
        (tmp_path / CONTROL_FILE).write_text(json.dumps(control))

        def lose() -> None:
            while True:
                try:
                    message = server.recv_msg()
                except pynng.Timeout:
                    return
                received.append(message.bytes)
                message.pipe.close()

        losing = threading.Thread(target=lose)
        losing.start()
        with ControlClient(tmp_path) as client:
            with pytest.raises(LinkBroken, match="the outcome is unknown; this request's client order id is mine"):
                client.submit_order(MARKET, "buy", "1", "1", client_order_id="mine")
            losing.join()
    assert len(received) == 1


def test_node_without_a_leader_answers_within_the_clients_timeout(tmp_path: Path) -> None:
    with (
        ExchangeNode("late", markets=[MARKET], data_dir=tmp_path) as node,
        ControlServer(node),
        ControlClient(tmp_path, timeout=0.3) as client,
    ):
        started = time.monotonic()
        with pytest.raises((Unavailable, RequestTimeout)):
            client.submit_order(MARKET, "buy", "1", "1")
        assert time.monotonic() - started < 1.5


def test_server_closes_under_load_and_leaves_no_thread_and_no_file(tmp_path: Path) -> None:
    threads_before = threading.active_count()
    counts = [0] * 6

    def hammer(number: int) -> None:
        try:
            with ControlClient(tmp_path, timeout=1) as client:
                while True:
                    client.submit_order(MARKET, "buy", "1", "1", account=f"a{number}")
                    counts[number] += 1
        except OpenOutcryError:
            return

    for _ in range(3):
        counts[:] = [0] * 6
        with ExchangeNode("busy", markets={MARKET: RULES}, data_dir=tmp_path) as node:
            node.wait_ready()
            server = ControlServer(node)
            clients = [threading.Thread(target=hammer, args=(number,)) for number in range(6)]
            for client in clients:
                client.start()
            wait_for(lambda: min(counts) > 5, "every client, though more than there are workers, is served")
            server.withdraw()
            node.close()
            server.close()
            server.close()
        for client in clients:
            client.join(WITHIN_S)
        assert not (tmp_path / CONTROL_FILE).exists()
        wait_for(lambda: threading.active_count() == threads_before, "all threads are gone")


def test_settings_are_checked_and_shown_before_a_node_runs_with_them(run: Run, home: Path) -> None:
    file = home / "node.toml"
    file.write_text('[node]\nname = "alice"\n[markets.BTC-USD]\ntick_size = "0.01"\n')
    checked = run("config", "check", file)
    assert checked.exit_code == 0
    assert checked.output == f"{file} is sound: node alice, markets BTC-USD\n"
    shown = run("config", "show", "--config", file, "--min-in-sync", 2)
    assert f"name              alice  ({file})" in shown.output.splitlines()
    assert "min_in_sync       2  (--min-in-sync)" in shown.output.splitlines()
    assert "ttl_ms            2000  (default)" in shown.output.splitlines()
    as_json = json.loads(run("config", "show", "--config", file, "--json").output)
    assert as_json["markets.BTC-USD"]["value"]["tick_size"] == "0.01"

    file.write_text('[node]\nmin_insync = 2\n[markets.BTC-USD]\ntick_size = "0.01"\n')
    refused = run("config", "check", file)
    assert refused.exit_code == 1
    assert "'min_insync' does not exist; did you mean min_in_sync? (configuration)" in refused.output
    file.write_text(
        '[node]\nmin_insync = 2\nttl_ms = "1"\n[other]\n'
        '[markets.BTC-USD]\ntick_size = "none"\nlot = "1"\ndedupe_window = -1\n[markets.ETH-USD]\njoin = 3\n'
    )
    refused = run("config", "check", file)
    assert (refused.exit_code, refused.stdout) == (1, "")
    lines = refused.stderr.splitlines()
    assert all(line.startswith(f"{file}: ") and line.endswith(" (configuration)") for line in lines)
    wrong = ("'min_insync'", "ttl_ms", "'other'", "'lot'", "tick_size", "dedupe_window", "join = true")
    assert len(lines) == len(wrong)
    for line, what in zip(lines, wrong, strict=True):
        assert what in line


def test_status_is_answered_while_all_that_can_be_served_at_once_is_stuck(
    desk: ExchangeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    let, stuck = threading.Event(), threading.Semaphore(0)
    monkeypatch.setattr(Market, "cancel_all", lambda *_, **__: (stuck.release(), let.wait(30), desk.nothing)[2])

    def get_stuck() -> None:
        with ControlClient(desk.data_dir, timeout=30) as client, pytest.raises(OpenOutcryError):
            client.cancel_all(MARKET)

    callers = [threading.Thread(target=get_stuck) for _ in range(WORKERS)]
    for caller in callers:
        caller.start()
    try:
        assert all([stuck.acquire(timeout=WITHIN_S) for _ in callers])
        with ControlClient(desk.data_dir, timeout=5) as client:
            assert client.status()["markets"][MARKET]["ready"]
    finally:
        let.set()
        for caller in callers:
            caller.join()


def test_watched_status_is_shown_again_and_again_until_ctrl_c(desk: ExchangeNode, start: Start) -> None:
    watching = start("status", "--watch", "--json", "--data-dir", str(desk.data_dir))
    assert watching.stdout is not None
    shown = [json.loads(watching.stdout.readline()) for _ in range(3)]
    assert {each["name"] for each in shown} == {"desk"}
    watching.send_signal(signal.SIGINT)
    assert watching.wait(WITHIN_S) == 0


def test_demo_trades_ends_equal_and_leaves_nothing_behind(home: Path, start: Start, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    os.environ["TMPDIR"] = str(temporary)
    try:
        demo = start("demo", "--nodes", "2", "--bots", "2", "--orders-per-s", "50")
    finally:
        del os.environ["TMPDIR"]
    assert demo.stdout is not None
    lines: list[str] = []
    for line in demo.stdout:
        lines.append(line.rstrip())
        if line.startswith("2 bots: ") and not line.startswith("2 bots: 0 "):
            break
    pids = {int(line.split()[1]) for line in lines if line.startswith("node-")}
    assert len(pids) == 2
    demo.send_signal(signal.SIGINT)
    rest, _ = demo.communicate(timeout=60)
    assert demo.returncode == 0
    assert "all nodes are at sequence" in rest
    assert list(temporary.iterdir()) == []
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_demo_whose_node_was_killed_ends_well_and_takes_none_of_the_users_settings(
    home: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "openoutcry.toml").write_text('[node]\nlisten = "tcp://192.0.2.1:1"\n')  # an address of no machine
    monkeypatch.setenv("OPENOUTCRY_METRICS", "nonsense")
    demo = start("demo", "--nodes", "2", "--bots", "1")
    assert demo.stdout is not None
    pids: list[int] = []
    for line in demo.stdout:
        if line.startswith("node-"):
            pids.append(int(line.split()[1]))
        if line.startswith("1 bots: ") and not line.startswith("1 bots: 0 "):
            break
    os.kill(pids[1], signal.SIGKILL)
    for line in demo.stdout:
        if line.startswith("node-2") and "down" in line.split():
            break
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=60)
    assert demo.returncode == 0


def test_node_of_a_local_exchange_that_ends_says_why(tmp_path: Path) -> None:
    with LocalExchange(tmp_path, markets=[MARKET], options=("--listen", "nowhere")) as exchange:
        exchange.start("a")
        with pytest.raises(RequestTimeout, match=r"a ended: .*'nowhere' is not an address to listen at"):
            exchange.wait_in_sync()


def test_nodes_of_a_demo_that_was_killed_end_by_themselves(home: Path, start: Start) -> None:
    demo = start("demo", "--nodes", "2", "--bots", "0")
    assert demo.stdout is not None
    pids: set[int] = set()
    for line in demo.stdout:
        if line.startswith("node-"):
            pids.add(int(line.split()[1]))
        if len(pids) == 2:
            break
    demo.kill()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the nodes have ended")


# -- a node that is stopped, and an output that cannot be written ------------------------------------------------------


def asking() -> dict[str, tuple[str, ...]]:
    """Every command that asks a node, with arguments; none is missing."""
    commands = {
        "submit": ("submit", MARKET, "buy", "1", "1"),
        "cancel": ("cancel", MARKET, "--all"),
        "amend": ("amend", MARKET, "1", "--price", "2"),
        "book": ("book", MARKET),
        "trades": ("trades", MARKET),
        "orders": ("orders", MARKET),
        "status": ("status",),
        "transfer": ("transfer", MARKET),
        "clock show": ("clock", "show"),
        "clock reset": ("clock", "reset", MARKET, "--reason", "a test"),
        "market create": ("market", "create", "X", "--tick", "1"),
        "market list": ("market", "list"),
        "force-leader": ("force-leader", MARKET, "--reason", "a test", "--yes"),
    }
    watched = {f"{name} --watch": (*commands[name], "--watch") for name in ("book", "trades", "status")}

    def found(group: click.Group, before: tuple[str, ...]) -> Iterator[str]:
        for name, command in group.commands.items():
            if isinstance(command, click.Group):
                yield from found(command, (*before, name))
            elif "node_name" in [parameter.name for parameter in command.params]:
                yield " ".join((*before, name))

    assert set(found(main, ())) == set(commands)
    return commands | watched


@pytest.fixture
def lone(start: Start, home: Path) -> subprocess.Popen[str]:
    """A node process called desk, without others, that can trade."""
    process = start("node", "--name", "desk", "--market", MARKET, "--serve-directory", "tcp://127.0.0.1:0")
    wait_for((home / "nodes" / "desk" / CONTROL_FILE).exists, "it runs")
    with ControlClient(home / "nodes" / "desk") as client:
        wait_for(lambda: client.status()["markets"][MARKET]["ready"], "it can trade")
    return process


def connects(process: subprocess.Popen[str]) -> bool:
    """Whether the process has got as far as to open a connection."""
    with contextlib.suppress(FileNotFoundError):  # one is closed meanwhile, such as that of a module
        return any(["socket:" in os.readlink(each) for each in Path(f"/proc/{process.pid}/fd").iterdir()])
    return False


def a_few_at_once() -> Iterator[dict[str, tuple[str, ...]]]:
    """The commands of :func:`asking`: as many at once as a small machine starts within seconds."""
    commands = list(asking().items())
    for first in range(0, len(commands), 4):
        yield dict(commands[first : first + 4])


def test_every_command_keeps_its_timeout_and_heeds_ctrl_c_beside_a_stopped_node(
    lone: subprocess.Popen[str], start: Start, home: Path
) -> None:
    lone.send_signal(signal.SIGSTOP)
    try:
        for few in a_few_at_once():
            late = {name: start(*arguments, "--timeout", "1") for name, arguments in few.items()}
            for name, process in late.items():
                assert process.wait(WITHIN_S) == 1, name
        waiting: dict[str, subprocess.Popen[str]] = {}
        for few in a_few_at_once():
            started = {name: start(*arguments, "--timeout", "60") for name, arguments in few.items()}
            for name, process in started.items():
                wait_for(lambda process=process: connects(process), f"{name} waits for the node")
            waiting |= started
        began_s = time.monotonic()
        for process in waiting.values():
            process.send_signal(signal.SIGINT)
        for name, process in waiting.items():
            assert process.wait(WITHIN_S) == (0 if "--watch" in name else 1), name
        assert time.monotonic() - began_s < WITHIN_S, "long before the timeout of 60 s"
    finally:
        lone.send_signal(signal.SIGCONT)
    said = [file.read_text() for file in sorted(home.glob("*.log"))]
    late_said = [text for text in said if "(node_not_answering)" in text]
    assert len(late_said) == len(asking()), said
    assert all(["node desk does not answer: its process" in text for text in late_said])
    assert not any(["not running" in text or "Traceback" in text for text in said])
    assert stop(lone) == 0


def test_watch_ends_at_ctrl_c_even_if_the_node_was_stopped_meanwhile(
    lone: subprocess.Popen[str], start: Start, home: Path
) -> None:
    watching = {
        name: start(*arguments) for name, arguments in asking().items() if name in ("book --watch", "status --watch")
    }
    for process in watching.values():
        assert process.stdout is not None
        assert process.stdout.readline()
    lone.send_signal(signal.SIGSTOP)
    try:
        time.sleep(1)  # into the next request
        for process in watching.values():
            process.send_signal(signal.SIGINT)
        for name, process in watching.items():
            assert process.wait(2) == 0, name
    finally:
        lone.send_signal(signal.SIGCONT)


def test_an_interrupted_order_says_how_to_learn_its_outcome(
    lone: subprocess.Popen[str], start: Start, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ControlClient(home / "nodes" / "desk", timeout=30) as client:
        lone.send_signal(signal.SIGSTOP)
        try:
            timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                client.submit_order(MARKET, "buy", "1", "1", client_order_id="mine")
            monkeypatch.setattr("openoutcry.actors.cli.trade.connect", lambda *_: contextlib.nullcontext(client))
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
            result = CliRunner().invoke(main, ["submit", MARKET, "buy", "1", "1", "--client-order-id", "mine"])
        finally:
            lone.send_signal(signal.SIGCONT)
    assert result.exit_code == 1
    assert result.output.endswith("repeat this with --client-order-id mine (interrupted)\n")


@pytest.mark.parametrize("output", ["full", "closed", "nobody reads"])
@pytest.mark.parametrize("as_json", [False, True])
def test_an_order_that_was_entered_is_not_reported_as_failed_because_nothing_can_be_printed(
    desk: ExchangeNode, output: str, as_json: bool
) -> None:
    command = [*OPENOUTCRY, "submit", MARKET, "buy", "1.25", "2", *(["--json"] if as_json else [])]
    if output == "closed":
        command = ["sh", "-c", '"$@" >&-', "sh", *command]
    read, write = os.pipe()
    os.close(read)
    with Path("/dev/full").open("wb") as full, os.fdopen(write, "wb") as unread:
        to = {"full": full, "nobody reads": unread}.get(output)
        done = subprocess.run(command, stdout=to, stderr=subprocess.PIPE, text=True, timeout=WITHIN_S, check=False)
        queried = subprocess.run(
            [*OPENOUTCRY, "book", MARKET], stdout=to, stderr=subprocess.PIPE, text=True, check=False
        )
        helped = subprocess.run([*OPENOUTCRY, "--help"], stdout=to, stderr=subprocess.PIPE, text=True, check=False)
    assert [str(order.price) for order in desk.open_orders(MARKET)] == ["1.25"]
    assert done.returncode == 74, done.stderr
    assert done.stderr.startswith("what was asked is done, but standard output cannot be written (")
    assert "resting" in done.stderr
    assert done.stderr.endswith(" (output_failed)\n")
    for other in (queried, helped):
        if output == "full":
            assert other.returncode == 74
            assert other.stderr == "standard output cannot be written (No space left on device) (output_failed)\n"
        elif output == "nobody reads":
            assert other.stderr == ""


# -- what messages say -------------------------------------------------------------------------------------------------


def test_a_gtd_order_without_an_expiry_gets_an_error_that_says_how_to_give_one(desk: ExchangeNode, run: Run) -> None:
    result = run("submit", MARKET, "buy", "1", "1", "--tif", "gtd")
    assert result.exit_code == 1
    assert result.output.startswith("a gtd order says when it lapses, by expire_ns: give time.time_ns() + 3600 * 10**9")
    assert result.output.endswith(" (invalid_expiry)\n")
    assert desk.open_orders(MARKET) == [], "nothing was sent"
    with pytest.raises(InvalidRequest, match="a post_only order needs a price"):
        desk.submit_order(MARKET, "buy", None, "1", order_type="post_only")


def test_empty_lists_say_that_they_are_empty_and_are_lists_in_json(home: Path, run: Run, tmp_path: Path) -> None:
    with ExchangeNode("empty", data_dir=tmp_path / "e", coordinator=tmp_path / "c") as node, ControlServer(node):
        at = ("--data-dir", str(tmp_path / "e"))
        assert run("market", "list", *at).output.startswith("no markets yet; ")
        assert run("market", "list", *at, "--json").output == "[]\n"
        assert "no markets: " in run("status", *at).output
        node.create_market(MARKET, RULES)
        assert run("trades", MARKET, *at).output == f"no trades in {MARKET} yet\n"
        assert run("trades", MARKET, *at, "--json").output == "[]\n"
        assert run("orders", MARKET, *at).output == f"no open orders of empty in {MARKET}\n"
        assert run("orders", MARKET, *at, "--account", "bob").output == f"no open orders of bob in {MARKET}\n"
        assert run("orders", MARKET, *at, "--json").output == "[]\n"
    authority = str(tmp_path / "authority")
    assert run("identity", "create-authority", authority).exit_code == 0
    assert run("identity", "list", "--authority", authority).output.startswith(
        f"{authority} has issued no certificates"
    )


def test_the_check_of_a_file_says_which_markets_a_node_that_joins_all_will_have(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('[node]\nname = "al"\njoin_all = true\n')
    assert run("config", "check", file).output == f"{file} is sound: node al, markets all, also those created later\n"
    file.write_text('[node]\nname = "al"\njoin_all = true\n[markets.M]\n')
    assert run("config", "check", file).output.endswith("markets M, and all others, also those created later\n")
    file.write_text('[node]\nname = "al"\n')
    assert run("config", "check", file).output.endswith("markets none: give them by --market, --join or --join-all\n")


def test_creating_a_market_prints_which_nodes_will_join_it(home: Path, run: Run, exchange: Any) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES}, join_all=True)
    first, second = net[0], net[1]
    wait_for(lambda: first.status().peers.get(second.node_id, {}).get("joins_all"), "it is announced")
    with ControlServer(first):
        made = json.loads(run("market", "create", "X", "--tick", "1", "--data-dir", first.data_dir, "--json").output)
    assert set(made["in_sync"]) | set(made["joining"]) == {first.name, second.name}


def test_a_name_that_several_nodes_have_is_never_taken_for_one_of_them(home: Path, run: Run, tmp_path: Path) -> None:
    shared = {"coordinator": tmp_path / "c", "markets": {MARKET: RULES}}
    with (
        ExchangeNode("twin", data_dir=tmp_path / "1", serve_directory="tcp://127.0.0.1:0", **shared) as first,
        ExchangeNode("twin", data_dir=tmp_path / "2", directory=first.directory_address, **shared) as second,
        ControlServer(first),
    ):
        first.wait_in_sync(MARKET, 2)
        result = run("transfer", MARKET, "--to", "twin", "--data-dir", tmp_path / "1")
        assert result.exit_code == 1
        ids = " or ".join(sorted([first.node_id, second.node_id]))
        assert f"several nodes are called 'twin': give the id instead, {ids}" in result.output
        assert result.output.endswith("(ambiguous_node)\n")
        assert first.status().markets[MARKET].role == "leading"
        assert run("transfer", MARKET, "--to", second.node_id, "--data-dir", tmp_path / "1").exit_code == 0


def test_a_leader_knows_how_far_followers_are_that_have_nothing_to_do(exchange: Any) -> None:
    net = exchange(nodes=3, markets={MARKET: RULES})
    leader = next(node for node in net if node.status().markets[MARKET].role == "leading")

    def applied() -> dict[str, int]:
        followers = leader.status().markets[MARKET].followers
        return {name: follower["applied"] for name, follower in followers.items()}

    wait_for(lambda: len(applied()) == 2 and set(applied().values()) == {leader.sequence(MARKET)}, "at the start")
    leader.submit_order(MARKET, "buy", "1", "1")
    wait_for(lambda: set(applied().values()) == {leader.sequence(MARKET)}, "after an order")
