"""The directory: leases as a pure table, then announce, lookup and watch over real sockets and processes."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pynng
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openoutcry.transport.errors import (
    Closed,
    ConfigurationError,
    InvalidRequest,
    Overloaded,
    ProtocolError,
    Unavailable,
)
from openoutcry.transport.rendezvous import LeaseTable, Rendezvous
from openoutcry.transport.survey import (
    ANSWERS,
    REQUESTS,
    Acknowledge,
    Announce,
    Changes,
    Directory,
    Find,
    Found,
    ServiceEntry,
    Unchanged,
    _PipeEvents,
    row_of,
)

MS = 1_000_000
SURVEY_LONG_MS = 10_000
WITHIN_S = 5.0
ANY_PORT = "tcp://127.0.0.1:0"

Step = tuple[str, str, str, int, int]

CHILD = """
import select, sys, time
from openoutcry.transport.survey import Directory, ServiceEntry
address, node, ttl_ms = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Directory([address], ttl_ms=ttl_ms) as directory:
    while not directory.connected:
        time.sleep(0.005)
    assert directory.announce(ServiceEntry("book", node, "tcp://10.0.0.9:1")) == 1
    print("announced", flush=True)
    while not select.select([sys.stdin], [], [], ttl_ms / 3000)[0]:
        directory.refresh()
"""


def entry(node: str, service: str = "book", address: str = "tcp://10.0.0.1:1") -> ServiceEntry:
    return ServiceEntry(service, node, address, (("role", "leader"),))


def by(seconds: float = WITHIN_S) -> float:
    return time.monotonic() + seconds


def wait_for(condition: Callable[[], object], what: str, within_s: float = WITHIN_S) -> None:
    deadline = by(within_s)
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.002)


def nodes_of(directory: Directory, service: str = "book") -> list[str]:
    return [found.node for found in directory.lookup(service, deadline=by()).entries]


class Scripted:
    """A rendezvous that gives the answers it was told, in order: bytes, or None to close the pipe; then it is mute."""

    def __init__(self, address: str, *answers: bytes | None) -> None:
        self.requests: list[object] = []
        self.pipe_removed = threading.Event()
        self._answers = answers
        self._socket = pynng.Respondent0(recv_timeout=5000)
        self._socket.add_post_pipe_remove_cb(lambda _pipe: self.pipe_removed.set())
        self.address = str(self._socket.listen(address).url)
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        for answer in self._answers:
            message = self._socket.recv_msg()
            self.requests.append(REQUESTS.decode(message.bytes))
            if answer is None:
                message.pipe.close()
            else:
                self._socket.send(answer)

    def __enter__(self) -> Scripted:
        self._thread.start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._thread.join()
        self._socket.close()


def flood(stream: socket.socket, data: bytes) -> None:
    deadline = by()
    while time.monotonic() < deadline:
        stream.sendall(data)
        time.sleep(0.0005)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as entered:
        yield entered


@pytest.fixture
def rendezvous(stack: ExitStack) -> Rendezvous:
    return stack.enter_context(Rendezvous(ANY_PORT))


@pytest.fixture
def client(stack: ExitStack, rendezvous: Rendezvous) -> Directory:
    return connected(stack, rendezvous.address, survey_ms=SURVEY_LONG_MS)


def connected(stack: ExitStack, *addresses: str, survey_ms: int = 500, ttl_ms: int = 60_000) -> Directory:
    directory = stack.enter_context(Directory(addresses, survey_ms=survey_ms, ttl_ms=ttl_ms))
    wait_for(lambda: directory.connected == len(addresses), "connected to every rendezvous")
    return directory


@contextmanager
def announcing_process(address: str, node: str, *, ttl_ms: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", CHILD, address, node, str(ttl_ms)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"announced\n"
            yield process
        finally:
            process.kill()


class TestLeaseTable:
    def test_a_lease_expires_when_its_ttl_has_passed_and_not_before(self) -> None:
        table = LeaseTable()
        table.announce(row_of(entry("a")), pipe_id=1, ttl_ms=100, now_ns=0)
        assert table.lapse(100 * MS - 1) == 0
        assert table.lapse(100 * MS) == 1
        assert table.services() == {}

    def test_renewal_extends_the_lease_and_changes_no_version(self) -> None:
        table = LeaseTable()
        table.announce(row_of(entry("a")), pipe_id=1, ttl_ms=100, now_ns=0)
        version = table.find("book").version
        table.announce(row_of(entry("a")), pipe_id=1, ttl_ms=100, now_ns=60 * MS)
        assert table.lapse(100 * MS) == 0
        assert table.find("book").version == version
        table.announce(row_of(entry("a", address="tcp://10.0.0.2:2")), pipe_id=1, ttl_ms=100, now_ns=60 * MS)
        assert table.find("book").version != version

    def test_pipe_that_goes_takes_its_leases_and_no_others_with_it(self) -> None:
        table = LeaseTable()
        for node, pipe_id in (("a", 1), ("b", 1), ("c", 2)):
            table.announce(row_of(entry(node)), pipe_id=pipe_id, ttl_ms=100, now_ns=0)
        assert table.drop_pipe(1) == 2
        assert table.drop_pipe(1) == 0
        assert table.services() == {"book": (entry("c"),)}
        table.check()

    def test_lease_belongs_to_the_pipe_that_announced_last(self) -> None:
        table = LeaseTable()
        table.announce(row_of(entry("a", address="tcp://old:1")), pipe_id=1, ttl_ms=100, now_ns=0)
        table.announce(row_of(entry("a", address="tcp://new:1")), pipe_id=2, ttl_ms=100, now_ns=0)
        assert not table.withdraw("book", "a", pipe_id=1)
        assert table.drop_pipe(1) == 0
        assert table.services() == {"book": (entry("a", address="tcp://new:1"),)}
        assert table.withdraw("book", "a", pipe_id=2)
        assert len(table) == 0
        table.check()

    def test_table_refuses_what_exceeds_its_bounds_and_still_renews_what_it_holds(self) -> None:
        table = LeaseTable(leases_max=3, leases_per_pipe_max=2)
        for node, pipe_id in (("a", 1), ("b", 1), ("c", 2)):
            table.announce(row_of(entry(node)), pipe_id=pipe_id, ttl_ms=100, now_ns=0)
        with pytest.raises(Overloaded) as full:
            table.announce(row_of(entry("d")), pipe_id=3, ttl_ms=100, now_ns=0)
        with pytest.raises(Overloaded) as too_many:
            table.announce(row_of(entry("c")), pipe_id=1, ttl_ms=100, now_ns=0)
        table.announce(row_of(entry("a")), pipe_id=1, ttl_ms=200, now_ns=0)
        assert (full.value.code, too_many.value.code) == ("directory_full", "too_many_announcements")
        with pytest.raises(ProtocolError):
            table.announce(("book", "a", "x" * 2048, ()), pipe_id=1, ttl_ms=100, now_ns=0)
        assert table.lapse(100 * MS) == 2
        table.check()

    def test_pages_join_to_the_whole_service(self) -> None:
        table = LeaseTable()
        rows = [row_of(entry(f"node-{number:02}")) for number in range(20)]
        for row in reversed(rows):
            table.announce(row, pipe_id=1, ttl_ms=100, now_ns=0)
        gathered, after, more = [], "", True
        while more:
            page = table.find("book", after=after, size_max=200)
            gathered += page.rows
            assert 0 < len(page.rows) < 20
            after, more = page.rows[-1][1], page.more
        assert gathered == rows

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["announce", "announce", "announce", "withdraw", "drop", "tick"]),
                st.sampled_from(["book", "feed"]),
                st.sampled_from("abcd"),
                st.integers(1, 3),
                st.integers(1, 5),
            ),
            max_size=60,
        )
    )
    def test_table_agrees_with_a_naive_one_after_any_commands(self, steps: list[Step]) -> None:
        table = LeaseTable()
        naive: dict[tuple[str, str], tuple[str, int, int]] = {}  # address, pipe, expiry
        versions: dict[str, dict[int, object]] = {"book": {}, "feed": {}}
        now_ns = 0
        for what, service, node, pipe_id, number in steps:
            if what == "announce":
                row = (service, node, f"tcp://{number}:1", ())
                table.announce(row, pipe_id=pipe_id, ttl_ms=number, now_ns=now_ns)
                naive[service, node] = (row[2], pipe_id, now_ns + number * MS)
            elif what == "withdraw":
                mine = naive.get((service, node), ("", 0, 0))[1] == pipe_id
                assert table.withdraw(service, node, pipe_id=pipe_id) == mine
                if mine:
                    del naive[service, node]
            elif what == "drop":
                table.drop_pipe(pipe_id)
                naive = {key: lease for key, lease in naive.items() if lease[1] != pipe_id}
            else:
                now_ns += number * MS // 2
                table.lapse(now_ns)
                naive = {key: lease for key, lease in naive.items() if lease[2] > now_ns}
            table.check()
            for name in ("book", "feed"):
                page = table.find(name)
                assert list(page.rows) == sorted((*key, lease[0], ()) for key, lease in naive.items() if key[0] == name)
                assert versions[name].setdefault(page.version, page.rows) == page.rows


class TestAnnounceAndLookup:
    def test_announced_service_is_found_by_another_client_without_waiting_out_the_survey(
        self, stack: ExitStack, rendezvous: Rendezvous, client: Directory
    ) -> None:
        other = connected(stack, rendezvous.address, survey_ms=SURVEY_LONG_MS)
        assert other.announce(entry("b")) == 1
        assert other.announce(entry("a")) == 1
        assert other.announce(entry("c", service="feed")) == 1
        found = client.lookup("book", deadline=by())
        assert found.entries == (entry("a"), entry("b"))
        assert (found.complete, found.answered, found.connected) == (True, 1, 1)
        assert rendezvous.services() == {"book": (entry("a"), entry("b")), "feed": (entry("c", service="feed"),)}

    def test_goodbye_removes_the_entry_at_once(self, client: Directory) -> None:
        client.announce(entry("a"))
        assert client.unannounce(entry("a")) == 1
        assert nodes_of(client) == []
        assert client.refresh() == 0

    def test_lookup_before_the_rendezvous_listens_waits_for_it(self, stack: ExitStack, tmp_path: Path) -> None:
        address = f"ipc://{tmp_path}/rendezvous"
        client = stack.enter_context(Directory([address], survey_ms=SURVEY_LONG_MS))
        late = threading.Timer(0.1, lambda: stack.enter_context(Rendezvous(address)))
        late.start()
        try:
            assert client.lookup("book", deadline=by()).complete
        finally:
            late.join()

    def test_lookup_without_any_rendezvous_fails_by_its_deadline_with_a_clear_code(self, stack: ExitStack) -> None:
        client = stack.enter_context(Directory(["tcp://127.0.0.1:9"], survey_ms=SURVEY_LONG_MS))
        started = time.monotonic()
        with pytest.raises(Unavailable) as raised:
            client.lookup("book", deadline=by(0.2))
        assert raised.value.code == "directory_unavailable"
        assert 0.2 <= time.monotonic() - started < 2
        assert client.announce(entry("a")) == 0

    def test_more_entries_than_fit_one_frame_are_found_page_by_page(self, stack: ExitStack, client: Directory) -> None:
        other = connected(stack, *client.rendezvous, survey_ms=SURVEY_LONG_MS)
        wide = tuple((f"key-{number}", "v" * 250) for number in range(7))
        entries = [ServiceEntry("book", f"node-{number:03}", "tcp://10.0.0.1:1", wide) for number in range(300)]
        assert [other.announce(one) for one in entries] == [1] * 300
        assert other.refresh() == 1
        found = client.lookup("book", deadline=by())
        assert found.complete
        assert list(found.entries) == entries
        assert list(client.poll("book").added) == entries
        assert other.unannounce(entries[150]) == 1
        assert client.poll("book").removed == (entries[150],)

    def test_pages_of_rendezvous_that_know_different_nodes_leave_none_out(self, stack: ExitStack) -> None:
        low, high = stack.enter_context(Rendezvous(ANY_PORT)), stack.enter_context(Rendezvous(ANY_PORT))
        wide = tuple((f"key-{number}", "v" * 250) for number in range(7))
        entries = [ServiceEntry("book", f"node-{number:03}", "tcp://10.0.0.1:1", wide) for number in range(400)]
        for one, some in ((low, entries[:200]), (high, entries[200:])):
            other = connected(stack, one.address, survey_ms=SURVEY_LONG_MS)
            assert [other.announce(announced) for announced in some] == [1] * 200
        client = connected(stack, low.address, high.address, survey_ms=SURVEY_LONG_MS)
        found = client.lookup("book", deadline=by())
        assert found.complete
        assert list(found.entries) == entries

    def test_entry_outside_the_limits_is_refused_before_it_is_sent(
        self, client: Directory, rendezvous: Rendezvous
    ) -> None:
        for bad in (
            entry(""),
            entry("n" * 129),
            ServiceEntry("book", "a", "tcp://x:1", (("k", "v"),) * 17),
            ServiceEntry("book", "a", "tcp://x:1", tuple((str(number), "\u20ac" * 255) for number in range(3))),
            ServiceEntry("book", "\ud800", "tcp://x:1"),
        ):
            with pytest.raises(InvalidRequest):
                client.announce(bad)
        with pytest.raises(InvalidRequest):
            client.lookup("", deadline=by())
        assert client.refresh() == 0
        assert rendezvous.frames_refused == 0

    @pytest.mark.slow
    def test_constructors_refuse_settings_that_cannot_work(self) -> None:
        for bad in ([], [f"tcp://127.0.0.1:{port}" for port in range(1, 9)], ["nonsense"]):
            with pytest.raises(ConfigurationError):
                Directory(bad)
        with pytest.raises(ConfigurationError):
            Directory([ANY_PORT], ttl_ms=1)
        with pytest.raises(ConfigurationError):
            Rendezvous("tcp://127.0.0.1:0", peers=["tcp://x:1"] * 8)

    def test_full_rendezvous_does_not_acknowledge_and_says_so_once(
        self, client: Directory, rendezvous: Rendezvous, caplog: pytest.LogCaptureFixture
    ) -> None:
        rendezvous._table._leases_max = 1
        assert client.announce(entry("a")) == 1
        assert client.announce(entry("b")) == 0
        assert client.refresh() == 0
        assert nodes_of(client) == ["a"]
        assert [record.message for record in caplog.records] == [
            "announcements_refused refused=1 reason='the rendezvous holds 1 entries, its limit'"
        ]


class TestProcessesThatFail:
    def test_killed_process_is_gone_long_before_its_ttl(self, rendezvous: Rendezvous, client: Directory) -> None:
        with announcing_process(rendezvous.address, "victim", ttl_ms=60_000) as process:
            assert nodes_of(client) == ["victim"]
            process.send_signal(signal.SIGKILL)
            wait_for(lambda: nodes_of(client) == [], "the killed process is gone")

    def test_stopped_process_is_gone_when_its_ttl_lapses(self, rendezvous: Rendezvous, client: Directory) -> None:
        with announcing_process(rendezvous.address, "victim", ttl_ms=600) as process:
            assert nodes_of(client) == ["victim"]
            process.send_signal(signal.SIGSTOP)
            wait_for(lambda: nodes_of(client) == [], "the stopped process is gone")
            process.send_signal(signal.SIGCONT)
            wait_for(lambda: nodes_of(client) == ["victim"], "it is back when it goes on")

    def test_node_is_found_again_after_the_rendezvous_was_killed_and_restarted(self, stack: ExitStack) -> None:
        first = stack.enter_context(Rendezvous(ANY_PORT))
        told = threading.Event()
        node = stack.enter_context(Directory([first.address], ttl_ms=60_000, on_change=told.set))
        wait_for(node.reconnected, "the first connection is reported")
        assert not node.reconnected()
        assert node.announce(entry("a")) == 1
        client = connected(stack, first.address, survey_ms=SURVEY_LONG_MS)
        assert client.poll("book").added == (entry("a"),)
        told.clear()
        first.close()
        assert told.wait(WITHIN_S)
        second = stack.enter_context(Rendezvous(first.address))
        wait_for(lambda: client.lookup("book", deadline=by()).complete, "the new rendezvous answers")
        changes = client.poll("book")
        assert (changes.added, changes.removed) == ((), ()), "an empty rendezvous does not empty a view within the TTL"
        wait_for(lambda: node.reconnected() and node.refresh() == 1, "announced again")
        assert nodes_of(client) == ["a"]
        assert second.services() == {"book": (entry("a"),)}

    def test_with_one_of_three_rendezvous_closed_lookups_go_on_and_wait_for_nothing(self, stack: ExitStack) -> None:
        three = [stack.enter_context(Rendezvous(ANY_PORT)) for _ in range(3)]
        addresses = [one.address for one in three]
        client = connected(stack, *addresses, survey_ms=SURVEY_LONG_MS)
        other = connected(stack, *addresses, survey_ms=SURVEY_LONG_MS)
        assert other.announce(entry("a")) == 3
        three[0].close()
        for _ in range(10):
            found = client.lookup("book", deadline=by())
            assert (found.entries, found.complete) == ((entry("a"),), True)
        wait_for(lambda: client.connected == 2, "the closed one is no longer counted")
        three[1].close()
        assert client.lookup("book", deadline=by()).entries == (entry("a"),)

    def test_rendezvous_that_dies_during_a_survey_ends_the_wait_for_it(self, stack: ExitStack) -> None:
        dying = stack.enter_context(Scripted(ANY_PORT, None))
        alive = stack.enter_context(Rendezvous(ANY_PORT))
        client = connected(stack, dying.address, alive.address, survey_ms=SURVEY_LONG_MS)
        found = client.lookup("book", deadline=by())
        assert (found.complete, found.answered, found.connected) == (True, 1, 2)

    def test_silent_rendezvous_costs_one_survey_time_and_then_only_a_moment(self, stack: ExitStack) -> None:
        mute = stack.enter_context(Scripted(ANY_PORT))
        alive = stack.enter_context(Rendezvous(ANY_PORT))
        client = connected(stack, mute.address, alive.address, survey_ms=1500)
        other = connected(stack, alive.address)
        other.announce(entry("a"))
        first = client.lookup("book", deadline=by())
        started = time.monotonic()
        second = client.lookup("book", deadline=by())
        assert time.monotonic() - started < 1
        for found in (first, second):
            assert found.entries == (entry("a"),)
            assert (found.complete, found.answered, found.connected) == (False, 1, 2)

    def test_learned_rendezvous_carry_on_when_the_only_one_given_is_closed(self, stack: ExitStack) -> None:
        second = stack.enter_context(Rendezvous(ANY_PORT))
        first = stack.enter_context(Rendezvous(ANY_PORT, peers=[second.address, "bogus://x"]))
        client = connected(stack, first.address, survey_ms=SURVEY_LONG_MS)
        client.announce(entry("a"))
        assert client.rendezvous == (first.address, second.address)
        wait_for(lambda: client.connected == 2, "connected to the one that was learned")
        assert client.reconnected()
        assert client.refresh() == 2
        first.close()
        assert nodes_of(client) == ["a"]


class TestMalformedFrames:
    @pytest.mark.parametrize(
        "frame",
        [
            b"",
            b"junk",
            REQUESTS.encode(Announce(1, ())),
            REQUESTS.encode(Announce(1000, (("", "n", "a", ()),))),
            REQUESTS.encode(Announce(1000, (("s", "n", "a", (("k" * 64, "\u20ac" * 255),) * 16),))),
        ],
        ids=["empty", "junk", "ttl", "name", "size"],
    )
    def test_malformed_survey_costs_its_sender_the_pipe_and_is_counted(
        self, stack: ExitStack, rendezvous: Rendezvous, client: Directory, frame: bytes
    ) -> None:
        removed = threading.Event()
        rogue = stack.enter_context(pynng.Surveyor0())
        rogue.add_post_pipe_remove_cb(lambda _pipe: removed.set())
        rogue.dial(rendezvous.address, block=True)
        rogue.send(frame)
        assert removed.wait(WITHIN_S)
        assert rendezvous.frames_refused == 1
        assert client.announce(entry("a")) == 1
        assert nodes_of(client) == ["a"]

    @pytest.mark.parametrize(
        "answer",
        [
            b"junk",
            ANSWERS.encode(Found(1, 1, tuple(("book", f"{n:04}", "a" * 255, ()) for n in range(1024)), False, ())),
            ANSWERS.encode(Acknowledge(1, 0, "", ())),
            ANSWERS.encode(Unchanged(1)),
            ANSWERS.encode(Found(1, 1, (), True, ())),
            ANSWERS.encode(Found(1, 1, (row_of(entry("a", service="feed")),), False, ())),
            ANSWERS.encode(Found(1, 1, (row_of(entry("b")), row_of(entry("a"))), False, ())),
        ],
        ids=["junk", "size", "kind", "unchanged", "empty", "service", "order"],
    )
    def test_malformed_answer_costs_the_rendezvous_the_pipe_and_is_counted(
        self, stack: ExitStack, answer: bytes
    ) -> None:
        liar = stack.enter_context(Scripted("inproc://liar", answer))
        alive = stack.enter_context(Rendezvous(ANY_PORT))
        client = connected(stack, liar.address, alive.address, survey_ms=SURVEY_LONG_MS)
        found = client.lookup("book", deadline=by())
        assert found.complete
        assert (found.answered, client.answers_refused) == (1, 1)
        assert liar.pipe_removed.wait(WITHIN_S)

    def test_client_that_never_reads_its_answers_loses_the_pipe_and_stops_nobody(
        self, rendezvous: Rendezvous, client: Directory
    ) -> None:
        wide = tuple((f"key-{number}", "v" * 250) for number in range(7))
        for number in range(60):
            client.announce(ServiceEntry("wide", f"node-{number:03}", "tcp://10.0.0.1:1", wide))
        host, port = rendezvous.address.removeprefix("tcp://").split(":")
        survey = REQUESTS.encode(Find("wide", "", ()))
        header = struct.pack(">QI", len(survey) + 4, 0x80000001)
        with socket.create_connection((host, int(port)), timeout=WITHIN_S) as rogue:
            rogue.sendall(b"\x00SP\x00\x00\x62\x00\x00")  # the greeting of a surveyor
            with pytest.raises(ConnectionError):
                flood(rogue, header + survey)
        assert len(nodes_of(client, "wide")) == 60


class TestWatch:
    def test_polls_report_what_was_added_changed_and_removed_and_nothing_else(
        self, stack: ExitStack, rendezvous: Rendezvous, client: Directory
    ) -> None:
        other = connected(stack, rendezvous.address, survey_ms=SURVEY_LONG_MS)
        assert client.poll("book").complete
        other.announce(entry("a"))
        other.announce(entry("b"))
        changes = client.poll("book")
        assert (changes.added, changes.removed) == ((entry("a"), entry("b")), ())
        other.refresh()
        changes = client.poll("book")
        assert (changes.added, changes.removed, changes.complete) == ((), (), True)
        moved = entry("a", address="tcp://10.0.0.7:1")
        other.announce(moved)
        changes = client.poll("book")
        assert (changes.added, changes.removed) == ((moved,), (entry("a"),))
        other.close()
        wait_for(lambda: not rendezvous.services(), "the pipe has gone and its leases with it")
        assert client.poll("book").removed == (moved, entry("b"))
        client.forget("book")
        assert client.poll("book").added == ()

    def test_unchanged_service_is_neither_asked_for_nor_sent_again(
        self, stack: ExitStack, rendezvous: Rendezvous, client: Directory
    ) -> None:
        client.announce(entry("a"))
        asking = stack.enter_context(pynng.Surveyor0(survey_time=5000))
        asking.dial(rendezvous.address, block=True)

        def ask(known: tuple[tuple[int, int], ...]) -> object:
            asking.send(REQUESTS.encode(Find("book", "", known)))
            return ANSWERS.decode(asking.recv_msg().bytes)

        found = ask(())
        assert isinstance(found, Found)
        assert ask(((found.instance, found.version),)) == Unchanged(found.instance)
        client.announce(entry("b"))
        assert isinstance(ask(((found.instance, found.version),)), Found)

        answers = (ANSWERS.encode(found), ANSWERS.encode(Unchanged(found.instance)))
        scripted = stack.enter_context(Scripted(ANY_PORT, *answers))
        watching = connected(stack, scripted.address, survey_ms=SURVEY_LONG_MS)
        assert watching.poll("book").added == (entry("a"),)
        assert watching.poll("book") == Changes((), (), complete=True)
        assert scripted.requests == [Find("book", "", ()), Find("book", "", ((found.instance, found.version),))]

    def test_without_any_rendezvous_a_view_stays_for_one_ttl_and_then_goes(self, stack: ExitStack) -> None:
        rendezvous = stack.enter_context(Rendezvous(ANY_PORT))
        client = connected(stack, rendezvous.address, ttl_ms=500)
        client.announce(entry("a"))
        assert client.poll("book").added == (entry("a"),)
        seen = time.monotonic()
        rendezvous.close()
        wait_for(lambda: client.connected == 0, "the rendezvous is gone")
        changes = client.poll("book")
        while not changes.removed:
            assert not changes.complete
            assert not changes.added
            assert time.monotonic() < seen + WITHIN_S
            time.sleep(0.005)
            changes = client.poll("book")
        assert changes.removed == (entry("a"),)
        assert not changes.complete
        assert time.monotonic() - seen >= 0.5


class TestLifetimes:
    @pytest.mark.slow
    def test_pipe_whose_removal_is_reported_before_its_connection_is_not_counted(self) -> None:
        unused = pynng.Surveyor0()
        events = _PipeEvents(unused, None)
        for pipe_id, up in ((1, False), (1, True), (2, True)):
            events._tell(pipe_id, up)
        events.drain()
        assert events.connected == {2}
        events.close()
        unused.close()

    @pytest.mark.slow
    def test_closing_leaves_no_thread_and_no_file_descriptor_behind(self) -> None:
        def use() -> None:
            with Rendezvous(ANY_PORT) as rendezvous, ExitStack() as stack:
                client = connected(stack, rendezvous.address)
                client.announce(entry("a"))
                assert nodes_of(client) == ["a"]

        def threads() -> set[threading.Thread]:
            return {thread for thread in threading.enumerate() if type(thread).__name__ != "_DummyThread"}

        use()  # nng keeps what it opens at its first use
        threads_before, files_before = threads(), len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            use()
        assert threads() == threads_before
        wait_for(lambda: len(os.listdir("/proc/self/fd")) <= files_before, "nng has closed its files")

    def test_closed_directory_says_so_and_both_ends_close_twice(
        self, rendezvous: Rendezvous, client: Directory
    ) -> None:
        for _ in range(2):
            client.close()
            rendezvous.close()
        for call in (client.refresh, client.reconnected, lambda: client.poll("book")):
            with pytest.raises(Closed):
                call()
