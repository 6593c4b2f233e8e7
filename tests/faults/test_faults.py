"""Every fault that a machine room has, done to real processes under load: nothing acknowledged is lost or doubled.

Each test hurts one exchange in one way, heals it, and then checks all that its clients recorded; see ``exchange.py``
and ``history.py``. ``OPENOUTCRY_FAULT_ROUNDS=20 python -m pytest tests/faults`` tries every variant of every fault 20
times, at other moments, and prints how long nobody was answered. Tests marked ``alone`` check what the project promises
within a time, such as that a lease lives on.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from exchange import NAMES, ROUNDS, Exchange, Node, StartFailed, exchange
from openoutcry.actors.testing import eventually
from stores import Store

Finish = Callable[[Exchange, Sequence[str]], None]

DISK_FAULTS = [
    ("fdatasync", "EIO", "leader"),
    ("pwrite", "ENOSPC", "follower"),
    ("fdatasync", "EIO", "follower"),
    ("pwrite", "ENOSPC", "leader"),
]
UNREACHABLE = [("sqlite", "locked"), ("etcd", "away"), ("sqlite", "away")]
IN_A_SWAP = [
    *([("sqlite", "in_the_commit")] if shutil.which("strace") else []),
    ("etcd", "after_the_write"),
    ("sqlite", "before_the_commit"),
    ("etcd", "before_the_write"),
]
TORN = ["torn", "truncated"]
RESTARTS = 3 if ROUNDS == 1 else 10
if ROUNDS == 1:
    DISK_FAULTS, TORN, UNREACHABLE, IN_A_SWAP = DISK_FAULTS[:2], TORN[:1], UNREACHABLE[:2], IN_A_SWAP[:2]


# -- processes ---------------------------------------------------------------------------------------------------------


@pytest.mark.failover
def test_kill_9_of_the_leader_in_a_history_of_20_000_operations(store: Store, round_: int, finish: Finish) -> None:
    with exchange(store, batch_max=100, lease_ms=3_600_000) as net:  # nobody waits for the lease of the dead
        leader, *others = net.begin()
        eventually(lambda: len(net.history.operations) > 10_000, "half of it is called", within=60)
        net.mark()
        net.nodes[leader].kill()
        net.wait_answers(20, *others)
        net.start(leader)
        net.wait_deposed(leader)
        eventually(lambda: len(net.history.operations) > 20_000, "all of it is called", within=60)
        finish(net, others)


@pytest.mark.failover
def test_kill_9_of_a_follower(store: Store, round_: int, finish: Finish) -> None:
    with exchange(store) as net:
        leader, victim, other = net.begin()
        net.mark()
        net.nodes[victim].kill()
        net.wait_answers(20, leader, other)
        net.start(victim)
        net.wait_answers(20)
        finish(net, (leader, other))


@pytest.mark.failover
def test_kill_9_of_all(store: Store, round_: int, finish: Finish) -> None:
    with exchange(store) as net:
        net.begin()
        net.mark()
        for name in random.sample(NAMES, 3):
            net.nodes[name].kill()
        net.start(*NAMES)
        net.wait_answers(20)
        finish(net, NAMES)


@pytest.mark.failover
def test_a_leader_frozen_for_longer_than_its_lease_is_deposed_and_follows_when_it_thaws(
    store: Store, round_: int, finish: Finish
) -> None:
    with exchange(store) as net:
        leader, *others = net.begin()
        net.mark()
        net.nodes[leader].freeze()
        net.wait_answers(20, *others)
        net.nodes[leader].thaw()
        net.wait_answers(20)
        net.wait_deposed(leader)
        finish(net, others)


def links_of(node: Node) -> int:
    """The links of a node that are up now."""
    return sum([peer["up"] for peer in node.status["peers"].values()])


@pytest.mark.alone
@pytest.mark.failover
def test_nodes_with_tls_links_that_restart_again_and_again(store: Store, round_: int, finish: Finish) -> None:
    with exchange(store, identities=True) as net:
        net.begin()
        net.mark()
        for name in random.choices(NAMES, k=RESTARTS):
            others = [other for other in NAMES if other != name]
            if random.random() < 0.5:
                net.nodes[name].kill()
            else:
                net.nodes[name].stop()
            net.wait_answers(5, *others)
            net.start(name)
            eventually(lambda: all([links_of(net.nodes[each]) == len(NAMES) - 1 for each in NAMES]), "links", within=5)
            net.wait_answers(5)
        finish(net, NAMES)


def test_a_follower_slowed_tenfold_holds_nobody_up(store: Store, round_: int, finish: Finish) -> None:
    with exchange(store) as net:
        leader, victim, other = net.begin()
        net.mark()
        ends = time.monotonic() + 2
        while time.monotonic() < ends:
            net.nodes[victim].freeze()
            time.sleep(0.09)
            net.nodes[victim].thaw()
            time.sleep(0.01)
        net.wait_answers(20)
        finish(net, (leader, other))


# -- the network -------------------------------------------------------------------------------------------------------


def test_links_that_are_cut_again_and_again(store: Store, round_: int, finish: Finish) -> None:
    with exchange(store, proxied=True) as net:
        net.begin()
        net.mark()
        for _ in range(6):
            net.proxies[random.choice(NAMES)].cut()
            time.sleep(random.uniform(0, 0.4))
        net.wait_answers(20)
        finish(net, NAMES)


def test_links_that_are_slow_and_narrow(store: Store, round_: int, finish: Finish) -> None:
    with exchange(store, proxied=True) as net:
        net.begin()
        net.mark()
        for proxy in net.proxies.values():
            proxy.delay_s = random.uniform(0.01, 0.05)
        net.wait_answers(20)
        net.proxies[random.choice(NAMES)].bytes_per_s = 50_000
        net.wait_answers(20)
        for proxy in net.proxies.values():
            proxy.heal()
        net.wait_answers(20)
        finish(net, NAMES)


@pytest.mark.alone
def test_a_leader_that_can_speak_but_hears_nobody(store: Store, round_: int, finish: Finish) -> None:
    with exchange(store, proxied=True) as net:
        leader, *_ = net.begin()
        net.mark()
        net.proxies[leader].swallow()
        # It reaches the coordinator, and its lease lives: it leaves the others out and goes on alone.
        eventually(lambda: len(net.nodes[leader].market["in_sync"]) == 1, "the leader goes on alone")
        net.wait_answers(20, leader)
        net.proxies[leader].heal()
        net.wait_answers(20)
        net.wait_in_sync()
        assert net.wait_leader(*NAMES) == leader
        finish(net, (leader,))


def test_a_leader_that_one_follower_does_not_hear(store: Store, round_: int, finish: Finish) -> None:
    with exchange(store, proxied=True) as net:
        leader, deaf, other = net.begin()
        net.mark()
        net.proxies[deaf].swallow([leader])
        eventually(lambda: len(net.nodes[leader].market["in_sync"]) == 2, "the leader goes on without it")
        net.wait_answers(20, leader, other)
        net.proxies[deaf].heal()
        net.wait_answers(20)
        finish(net, (leader, other))


@pytest.mark.failover
def test_a_leader_cut_off_from_everybody_and_from_the_coordinator(store: Store, round_: int, finish: Finish) -> None:
    with exchange(store, proxied=True) as net:
        leader, *others = net.begin()
        net.mark()
        net.nodes[leader].hurt("take_store_away")
        net.proxies[leader].swallow()
        for name in others:
            net.proxies[name].swallow([leader])
        net.wait_answers(20, *others)
        # It still takes itself for the leader, but nothing that it has ordered since is acknowledged.
        new = net.wait_leader(*others)
        before = len(net.history.times_ns([leader]))
        assert net.nodes[leader].market["epoch"] < net.nodes[new].market["epoch"]
        assert "store is away" in net.nodes[leader].status["coordinator_error"]
        assert len(net.history.times_ns([leader])) == before
        net.nodes[leader].hurt("give_store_back")
        for proxy in net.proxies.values():
            proxy.heal()
        net.wait_answers(20)
        net.wait_deposed(leader)
        finish(net, others)


@pytest.mark.failover
def test_a_leader_cut_off_from_the_nodes_but_not_from_the_coordinator(
    store: Store, round_: int, finish: Finish
) -> None:
    with exchange(store, proxied=True, min_in_sync=2) as net:
        leader, *others = net.begin()
        net.mark()
        net.proxies[leader].swallow()
        for name in others:
            net.proxies[name].swallow([leader])
        net.wait_answers(20, *others)
        net.wait_leader(*others)
        for proxy in net.proxies.values():
            proxy.heal()
        net.wait_answers(20)
        net.wait_deposed(leader)
        finish(net, others)


# -- disks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "error", "who"), DISK_FAULTS)
def test_a_disk_that_fails(store: Store, round_: int, finish: Finish, call: str, error: str, who: str) -> None:
    with exchange(store) as net:
        victim = net.begin()[0 if who == "leader" else 1]
        net.mark()
        net.nodes[victim].hurt("fail", call, error, random.randrange(5))
        go_on_without_and_take_back(net, victim)
        finish(net, [name for name in NAMES if name != victim])


def go_on_without_and_take_back(net: Exchange, victim: str, heal: Callable[[], object] = lambda: None) -> None:
    """The victim's replica stops and says so, the others go on; restarted on a healthy disk it is in sync again."""
    others = [name for name in NAMES if name != victim]
    net.wait_stopped(victim, "failed")
    net.wait_answers(20, *others)
    assert net.nodes[net.wait_leader(*others)].market["in_sync"] == sorted(
        [net.nodes[name].status["node_id"] for name in others]
    )
    assert "storage" in net.history.refusals[victim], "its clients are told"
    net.nodes[victim].stop()
    heal()
    net.start(victim)
    net.wait_answers(20)


def test_a_file_that_may_not_grow(store: Store, round_: int, finish: Finish) -> None:
    with exchange(store, shims={"segment_size": 256 * 1024}) as net:
        victim = net.begin()[round_ % 2]
        net.mark()
        net.nodes[victim].hurt("limit_file_size", 128 * 1024)
        go_on_without_and_take_back(net, victim)
        finish(net, [name for name in NAMES if name != victim])


def test_a_full_disk(store: Store, round_: int, finish: Finish) -> None:
    with contextlib.ExitStack() as stack:
        for name in NAMES:
            stack.enter_context(small_disk(store.folder / name))
        net = stack.enter_context(exchange(store, shims={"segment_size": 64 * 1024}))
        victim = net.begin()[round_ % 2]
        net.mark()
        ballast = store.folder / victim / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass  # until nothing is left, whatever the node takes meanwhile
        go_on_without_and_take_back(net, victim, ballast.unlink)
        finish(net, [name for name in NAMES if name != victim])


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a tmpfs; the test is skipped where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_a_sync_that_the_kernel_fails(store: Store, round_: int, finish: Finish) -> None:
    with exchange(store) as net:
        victim = net.begin()[round_ % 2]
        net.mark()
        (segment,) = net.nodes[victim].segments()
        with traced(net.nodes[victim], "fdatasync", f"error=EIO:when={random.randint(1, 5)}+", segment):
            go_on_without_and_take_back(net, victim)
        finish(net, [name for name in NAMES if name != victim])


@contextlib.contextmanager
def traced(node: Node, call: str, fault: str, path: Path) -> Iterator[None]:
    """strace does ``fault`` to the calls of the node that concern ``path``."""
    inject = ["-P", str(path), "-e", f"trace={call}", "-e", f"inject={call}:{fault}"]
    command = ["strace", "-f", "-qq", "-o", str(node.folder.parent / "strace.txt"), *inject, "-p", str(node.pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        try:
            threads = Path(f"/proc/{node.pid}/task")
            eventually(
                lambda: (
                    tracer.poll() is not None
                    or all(["TracerPid:\t0\n" not in (task / "status").read_text() for task in threads.iterdir()])
                ),
                "strace is attached",
            )
            if tracer.poll() is not None:
                assert tracer.stderr is not None
                pytest.skip(f"strace cannot be attached here: {tracer.stderr.read().strip()}")
            yield
        finally:
            tracer.terminate()


# -- journals ----------------------------------------------------------------------------------------------------------


def flip_a_bit(segments: list[Path]) -> None:
    """Any bit of any segment but the last."""
    path = random.choice(segments[:-1])
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def truncate_a_segment(segments: list[Path]) -> None:
    """Any segment but the last ends early."""
    path = random.choice(segments[:-1])
    end = len(path.read_bytes().rstrip(b"\0"))
    os.truncate(path, random.randrange(1, end))


def lose_a_segment(segments: list[Path]) -> None:
    """Any segment but the last is gone."""
    random.choice(segments[:-1]).unlink()


DAMAGE = [flip_a_bit, truncate_a_segment, lose_a_segment]


@pytest.mark.parametrize("damage", DAMAGE[:1] if ROUNDS == 1 else DAMAGE, ids=lambda damage: damage.__name__)
def test_a_journal_damaged_before_its_tail_is_put_aside_and_repaired_from_a_peer(
    store: Store, round_: int, finish: Finish, damage: Callable[[list[Path]], None]
) -> None:
    with exchange(store, shims={"segment_size": 16 * 1024}) as net:
        victim = random.choice(net.begin())
        others = [name for name in NAMES if name != victim]
        net.mark()
        net.nodes[victim].kill()
        damage(net.nodes[victim].segments())
        net.wait_answers(20, *others)
        net.start(victim)
        (aside,) = (net.nodes[victim].folder / "markets").glob("*.damaged-*")
        assert list(aside.glob("*.log")), "what was damaged is kept"
        eventually(lambda: net.nodes[victim].market["repairing"] is None, "it is repaired")
        (said,) = [line for line in net.nodes[victim].said_in_its_log().splitlines() if "journal_put_aside" in line]
        assert str(aside) in said, "it says so"
        net.wait_answers(20)
        finish(net, others)


def begin_with_an_old_copy(net: Exchange) -> tuple[str, list[str], Path]:
    """Begin, with an old copy of one disk: return whose it is, the other nodes, and where the copy is."""
    victim = random.choice(net.begin())
    others = [name for name in NAMES if name != victim]
    copy = net.folder / "copy"
    net.nodes[victim].kill()
    shutil.copytree(net.nodes[victim].folder, copy)
    net.wait_answers(20, *others)
    net.start(victim)
    net.wait_in_sync()
    net.wait_answers(20)
    net.mark()
    return victim, others, copy


@pytest.mark.failover
@pytest.mark.parametrize("comes", ["first", "last", "while_others_live"])
def test_an_old_copy_of_a_disk_is_repaired_before_it_leads_or_counts(
    store: Store, round_: int, finish: Finish, comes: str
) -> None:
    with exchange(store) as net:
        victim, others, copy = begin_with_an_old_copy(net)
        folder = net.nodes[victim].folder
        killed = [victim] if comes == "while_others_live" else random.sample(NAMES, 3)
        for name in killed:
            net.nodes[name].kill()
        shutil.rmtree(folder)
        shutil.copytree(copy, folder)
        net.start(*{"first": [victim, *others], "last": [*others, victim]}.get(comes, [victim]))
        net.wait_answers(20)
        net.wait_in_sync()
        finish(net, others if comes == "while_others_live" else NAMES)


@pytest.mark.alone
@pytest.mark.failover
@pytest.mark.parametrize("original", ["at_work", "frozen"])
def test_an_old_copy_beside_the_original_takes_nothing_from_it(
    store: Store, round_: int, finish: Finish, original: str
) -> None:
    with exchange(store) as net:
        victim, others, copy = begin_with_an_old_copy(net)
        if original == "frozen":
            net.nodes[victim].freeze()
            net.wait_answers(20, *others)
        second = net.start_copy(victim, copy)
        if original == "frozen":  # it takes the place, and is repaired; the original finds its place taken
            second.expect("listening")
            second.expect("ready")
            eventually(lambda: second.market["repairing"] is None, "the copy is repaired")
            net.nodes[victim].thaw()
            net.wait_stopped(victim, "node id")
            second.stop()
            net.nodes[victim].stop()
            net.start(victim)
        else:
            with pytest.raises(StartFailed) as refused:
                second.expect("listening")
            assert refused.value.code == "node_id_in_use"
        net.wait_answers(20)
        net.wait_in_sync()
        finish(net, others if original == "frozen" else NAMES)


@pytest.mark.parametrize("how", TORN)
def test_a_journal_torn_at_its_tail_is_cut(store: Store, round_: int, finish: Finish, how: str) -> None:
    with exchange(store) as net:
        victim = random.choice(net.begin())
        others = [name for name in NAMES if name != victim]
        net.mark()
        if how == "torn":
            net.nodes[victim].hurt("tear", random.randrange(5))
            net.nodes[victim].wait_gone()
        else:
            net.nodes[victim].kill()
        net.wait_answers(20, *others)
        if how == "truncated":
            (path,) = net.nodes[victim].segments()
            os.truncate(path, len(path.read_bytes().rstrip(b"\0")) - random.randrange(1, 60))
        net.start(victim)
        net.wait_answers(20)
        finish(net, others)


# -- the clock ---------------------------------------------------------------------------------------------------------


def test_a_wall_clock_that_jumps_by_hours(store: Store, round_: int, finish: Finish) -> None:
    with exchange(store) as net:
        leader, *others = net.begin()
        net.mark()
        for seconds in (3 * 3600, -7 * 3600, 2 * 3600):
            net.nodes[leader].hurt("step_clock", seconds)
            net.wait_answers(20)
        net.nodes[others[0]].hurt("step_clock", -24 * 3600)
        net.nodes[others[1]].hurt("step_clock", -24 * 3600)
        net.nodes[leader].kill()  # whose time comes next is a day behind the log's
        net.wait_answers(20, *others)
        net.start(leader, clock_off_by_s=-48 * 3600)
        net.wait_answers(20)
        finish(net, others)
        stamps = [record.timestamp_ns for record in net.logged(leader)]
        assert stamps == sorted(stamps)
        assert abs(stamps[-1] - time.time_ns()) < 60 * 10**9, "the log's time follows no clock that jumps"


@pytest.mark.failover
@pytest.mark.parametrize("days", [3, -3])
def test_a_leader_whose_clock_is_off_by_days(store: Store, round_: int, finish: Finish, days: int) -> None:
    with exchange(store) as net:
        leader, *others = net.begin()
        net.mark()
        net.nodes[leader].hurt("step_clock", days * 86_400)
        net.wait_answers(20)
        net.wait_leader(*others)
        net.wait_deposed(leader)
        clock = eventually(lambda: (c := net.nodes[leader].status["clock"])["off"] and c, "it says so")
        assert abs(clock["ahead_s"] - days * 86_400) < 60, clock
        assert not [name for name in others if net.nodes[name].status["clock"]["off"]]
        net.wait_answers(20)
        net.nodes[leader].hurt("step_clock", -days * 86_400)
        eventually(lambda: not net.nodes[leader].status["clock"]["off"], "it is right again")
        net.wait_answers(20)
        finish(net, others)
        off = [record.timestamp_ns - time.time_ns() for record in net.logged(leader)]
        assert max(off) < 10**9, "nothing is dated in the future"
        assert min(off) > -600 * 10**9, "nor in the past"


@pytest.mark.alone
@pytest.mark.failover
@pytest.mark.parametrize("days", [3, -3])
def test_a_node_that_starts_with_a_clock_off_by_days_does_not_lead(
    store: Store, round_: int, finish: Finish, days: int
) -> None:
    with exchange(store) as net:
        leader, victim, other = net.begin()
        net.mark()
        net.nodes[victim].kill()
        net.start(victim, clock_off_by_s=days * 86_400)
        net.wait_in_sync()
        eventually(lambda: net.nodes[victim].status["clock"]["off"], "it says so")
        net.nodes[leader].kill()
        net.wait_answers(20, other)
        assert net.wait_leader(other, victim) == other
        net.start(leader)
        net.wait_answers(20, leader, other)
        finish(net, (leader, other))
        off = [record.timestamp_ns - time.time_ns() for record in net.logged(other)]
        assert max(off) < 10**9
        assert min(off) > -600 * 10**9


@pytest.mark.alone
@pytest.mark.failover
@pytest.mark.parametrize("days", [3, -3])
def test_a_leader_that_restarts_with_a_clock_off_by_days_does_not_stamp_the_log(
    store: Store, round_: int, finish: Finish, days: int
) -> None:
    with exchange(store) as net:
        leader, *others = net.begin()
        net.mark()
        for name in random.sample(NAMES, 3):
            net.nodes[name].kill()
        with ThreadPoolExecutor(2) as starting:
            started = [
                starting.submit(net.start, leader, clock_off_by_s=days * 86_400),
                starting.submit(net.start, *others),
            ]
        for each in started:
            each.result()
        net.wait_answers(20)
        net.wait_leader(*others)
        finish(net, NAMES)
        off = [record.timestamp_ns - time.time_ns() for record in net.logged(leader)]
        assert max(off) < 10**9, "nothing is dated in the future"
        assert min(off) > -600 * 10**9, "nor in the past"


# -- the coordinator ---------------------------------------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.parametrize(("store", "how"), UNREACHABLE, indirect=["store"])
def test_a_coordinator_that_cannot_be_reached_while_orders_flow(
    store: Store, round_: int, finish: Finish, how: str
) -> None:
    with exchange(store) as net:
        net.begin()
        net.mark()
        with getattr(store, how)():
            for node in net.nodes.values():
                eventually(lambda node=node: node.status["coordinator_error"], f"{node.name} says so")
            net.wait_answers(20)
        net.wait_answers(20)
        for node in net.nodes.values():
            eventually(lambda node=node: not node.status["coordinator_error"], f"{node.name} can use it again")
        assert {node.market["epoch"] for node in net.nodes.values()} == {net.nodes["ann"].market["epoch"]}
        finish(net, NAMES)


def test_a_follower_that_dies_while_the_coordinator_cannot_be_reached(
    store: Store, round_: int, finish: Finish
) -> None:
    with exchange(store) as net:
        leader, victim, other = net.begin()
        net.mark()
        with store.away():
            net.nodes[victim].kill()
            time.sleep(random.uniform(0.5, 1.5))
            before = len(net.history.times_ns())
            time.sleep(0.5)
            assert len(net.history.times_ns()) == before, "nothing is acknowledged that a member of the set may lack"
        net.wait_answers(20, leader, other)
        net.start(victim)
        net.wait_answers(20)
        finish(net, (leader, other))


@pytest.mark.parametrize(("store", "moment"), IN_A_SWAP, indirect=["store"])
def test_a_leader_killed_in_a_swap(store: Store, round_: int, finish: Finish, moment: str) -> None:
    with exchange(store) as net:
        leader, victim, other = net.begin()
        net.mark()
        with contextlib.ExitStack() as stack:
            if moment == "in_the_commit":
                # The new record is in the file, but the rollback journal, whose end is the commit, is there too.
                net.nodes[leader].hurt("keep_lease_as_it_is")
                journal = Path(f"{store.address}-journal")
                stack.enter_context(traced(net.nodes[leader], "unlink", "signal=SIGKILL", journal))
            else:
                net.nodes[leader].hurt("die_in_swap", moment)
            net.nodes[victim].kill()
            net.nodes[leader].wait_gone()
        net.wait_answers(20, other)
        net.start(leader, victim)
        net.wait_answers(20)
        finish(net, (other,))
