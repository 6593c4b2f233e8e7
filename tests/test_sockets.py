"""nng as this project uses it survives whatever the other side does, and the end of the process."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from openoutcry.transport.errors import LinkBroken, WouldBlock
from openoutcry.transport.rendezvous import Rendezvous
from openoutcry.transport.sockets import Inbox, Outlet

HELLO_OF_A_PULL = b"\0SP\0" + struct.pack(">HH", 0x51, 0)
"""What an nng socket says first over TCP."""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Listens on TCP, without nng."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(10)
        yield made


def test_outlet_whose_connection_has_ended_sends_nothing_more_and_does_not_connect_again(
    listener: socket.socket,
) -> None:
    connected, broken = threading.Event(), threading.Event()
    address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    outlet = Outlet(address, on_connected=connected.set, on_broken=broken.set)
    with listener.accept()[0] as peer:
        peer.sendall(HELLO_OF_A_PULL)
        assert connected.wait(10)
        assert outlet.send_nowait(b"a frame")
    assert broken.wait(10)
    assert not outlet.send_nowait(b"a frame")
    with pytest.raises(LinkBroken):
        outlet.send(b"a frame", timeout_ms=1000)
    listener.settimeout(0.5)  # nng would try within 0.01 s
    with pytest.raises(TimeoutError):
        listener.accept()
    outlet.close()
    outlet.close()


def test_outlet_that_is_closed_while_it_connects_is_connected_to_nobody(listener: socket.socket) -> None:
    told: list[str] = []
    address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    outlet = Outlet(address, on_connected=lambda: told.append("up"), on_broken=lambda: told.append("down"))
    with listener.accept()[0] as peer:
        peer.settimeout(10)
        outlet.close()
        peer.sendall(HELLO_OF_A_PULL)
        while peer.recv(64):
            pass
    assert told == []


def test_sender_that_waits_for_room_is_told_at_once_that_its_peer_has_gone(listener: socket.socket) -> None:
    connected, ended = threading.Event(), threading.Event()
    address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    outlet = Outlet(address, on_connected=connected.set, on_broken=lambda: None)

    def send() -> None:
        with pytest.raises(LinkBroken):
            outlet.send(b"one frame too many", timeout_ms=60_000)
        ended.set()

    with listener.accept()[0] as peer:
        peer.sendall(HELLO_OF_A_PULL)
        assert connected.wait(10)
        with contextlib.suppress(WouldBlock):
            while True:
                outlet.send(bytes(1_000_000), timeout_ms=200)
        sender = threading.Thread(target=send)
        sender.start()
        assert not ended.wait(0.1)
    assert ended.wait(10)
    sender.join()
    outlet.close()


HANG_UP = """
import random, socket, struct, threading, time
from openoutcry.transport.sockets import Outlet
from openoutcry.transport.survey import Directory

HELLO = b"\\0SP\\0" + struct.pack(">HH", 0x51, 0)
RESET = struct.pack("ii", 1, 0)
END_S = time.monotonic() + 4


def hang_up():
    at = random.Random(1)
    while True:
        peer, _ = listener.accept()
        with peer:
            try:
                if at.random() < 0.8:
                    peer.sendall(HELLO)
                if at.random() < 0.5:
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            except OSError:
                pass


def use(number):
    at = random.Random(number)
    while time.monotonic() < END_S:
        connected = threading.Event()
        outlet = Outlet(at.choice(addresses), on_connected=connected.set, on_broken=lambda: None)
        directory = Directory([refused], ttl_ms=2000) if at.random() < 0.2 else None
        if at.random() < 0.7:
            connected.wait(0.02 * at.random())
        if connected.is_set():
            outlet.send_nowait(b"a frame")
        outlet.close()
        if directory is not None:
            directory.close()


listener = socket.create_server(("127.0.0.1", 0), backlog=128)
with socket.socket() as unused:
    unused.bind(("127.0.0.1", 0))
    refused = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
addresses = [f"tcp://127.0.0.1:{listener.getsockname()[1]}"] * 4 + [refused]
threading.Thread(target=hang_up, daemon=True).start()
threads = [threading.Thread(target=use, args=(number,)) for number in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_process_survives_peers_that_hang_up_as_soon_as_they_are_connected_and_closes_at_any_moment() -> None:
    done = subprocess.run([sys.executable, "-c", HANG_UP], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


LEFT_OPEN = """
import atexit, threading
import pynng  # registers what ends nng, which is called last; this is called before it
atexit.register(lambda: print([thread.name for thread in threading.enumerate() if thread.daemon]))
from openoutcry.transport.rendezvous import Rendezvous
from openoutcry.transport.sockets import Inbox

Rendezvous("tcp://127.0.0.1:0").start()
Inbox("tcp://127.0.0.1:0", on_frame=print, on_pipe_removed=print).start()
assert len([thread for thread in threading.enumerate() if thread.daemon]) == 2
"""


def test_no_thread_receives_any_more_when_the_process_ends_and_ends_nng() -> None:
    done = subprocess.run([sys.executable, "-c", LEFT_OPEN], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def quiet_inbox() -> Inbox:
    return Inbox("tcp://127.0.0.1:0", on_frame=lambda *_: None, on_pipe_removed=lambda _: None)


@pytest.mark.parametrize("make", [quiet_inbox, lambda: Rendezvous("tcp://127.0.0.1:0")], ids=["inbox", "rendezvous"])
def test_who_waits_for_what_does_not_come_is_closed_at_once(make: Callable[[], Inbox | Rendezvous]) -> None:
    reader = make()
    reader._socket.recv_timeout = 600_000
    reader.start()
    closing = threading.Thread(target=reader.close, daemon=True)
    closing.start()
    closing.join(20)
    assert not closing.is_alive(), "nothing tells the thread that it is to end"
