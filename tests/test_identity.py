"""Identities: who has no certificate of the exchange gets in nowhere, and nobody is taken for another."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import queue
import random
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pynng
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from openoutcry.actors import AsyncNode, ConfigurationError, ExchangeNode, InvalidRequest, MarketRules, message
from openoutcry.actors.cli import main
from openoutcry.actors.group import CODEC
from openoutcry.actors.kit.actor import Actor
from openoutcry.actors.peers import links
from openoutcry.actors.peers.messages import PeerFound
from openoutcry.actors.peers.wire import Credentials, Hello
from openoutcry.actors.testing import eventually
from openoutcry.transport import rendezvous, sockets
from openoutcry.transport.certificates import Authority, Identity
from openoutcry.transport.errors import AccessDenied, ProtocolError, Unavailable
from openoutcry.transport.identity import CERTIFICATE_REFUSED, MEMBER
from openoutcry.transport.rendezvous import Rendezvous
from openoutcry.transport.sockets import Inbox
from openoutcry.transport.survey import REQUESTS, Announce, Directory, ServiceEntry

MARKET = "BTC-USD"
RULES = MarketRules()
ANY_PORT = "tls+tcp://127.0.0.1:0"
SHORT_MS = 400
"""How long a connection that is not to come about is waited for; one that is takes some 10 ms."""
LONG_MS = 20_000
"""How long one that is to come about is waited for, where the machine is busy."""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "authority")


@pytest.fixture
def alice(authority: Authority) -> Iterator[ExchangeNode]:
    """A node with an identity that stands alone, is a rendezvous, and has a market."""
    identity = Identity(authority.issue("alice"))
    with ExchangeNode("alice", markets={MARKET: RULES}, serve_directory=ANY_PORT, identity=identity) as node:
        node.wait_ready()
        yield node


# -- making odd certificates -------------------------------------------------------------------------------------------


def issued_by(
    folder: Path,
    name: str,
    *,
    begins: int = -1,
    ends: int = 30,
    names: tuple[str, ...] = (),
    key: Any = None,
    subject: x509.Name | None = None,
    member: bool = True,
) -> str:
    """Return an identity that the authority in ``folder`` would not issue itself; days are counted from now."""
    authority = x509.load_pem_x509_certificate((folder / "authority.pem").read_bytes())
    signer: Any = load_pem_private_key((folder / "authority.key").read_bytes(), None)
    key = key or ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) if subject is None else subject)
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=begins))
        .not_valid_after(now + timedelta(days=ends))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(each) for each in (*names, name, *[MEMBER] * member)]),
            critical=False,
        )
        .sign(signer, SHA256())
    )
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return "".join([text, pem(certificate), pem(authority)])


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def der(identity: str) -> bytes:
    """Return the node's own certificate in an identity's text."""
    return x509.load_pem_x509_certificates(identity.encode())[0].public_bytes(Encoding.DER)


def tls(identity: str | None, name: str, trusted: str) -> pynng.TLSConfig:
    """Return what a client would use that checks nothing of what is its own."""
    config = pynng.TLSConfig(
        pynng.TLSConfig.MODE_CLIENT, auth_mode=pynng.TLSConfig.AUTH_MODE_REQUIRED, server_name=name, ca_string=trusted
    )
    if identity is not None:
        key, certificate = re.findall(r"-----BEGIN.*?-----END.*?-----\n", identity, re.DOTALL)[:2]
        config.set_own_cert(certificate, key)
    return config


@contextlib.contextmanager
def connected(
    address: str, config: pynng.TLSConfig | None, *, refused: bool = False
) -> Iterator[Callable[[bytes], bool]]:
    """Dial an inbox by hand; what is given sends one frame, and returns whether there was a connection to take it."""
    socket = sockets.open_socket(pynng.Push0, send_timeout_ms=SHORT_MS if refused else LONG_MS, tls=config)
    try:
        sockets.dial(socket, address)

        def send(frame: bytes) -> bool:
            try:
                socket.send(frame)
            except pynng.Timeout:
                return False
            return True

        yield send
    finally:
        sockets.close_dialled(socket)  # it may be at it again: who is refused is


def hello(to: ExchangeNode, name: str, node_id: str, address: str = "tls+tcp://127.0.0.1:9") -> bytes:
    return CODEC.encode(Hello(node_id, name, address, "-", 1, 0, to.node_id))


@message("test_identity.say")
class Say:
    what: str


class Echo(Actor):
    def on_receive(self, message: Any) -> Any:
        return message.what


# -- who gets in -------------------------------------------------------------------------------------------------------


def test_nodes_with_identities_share_one_book_over_tls_and_a_remote_actor_answers(exchange: Any) -> None:
    net = exchange(nodes=3, markets={MARKET: RULES}, identities=True)
    assert all(node.address.startswith("tls+tcp://") for node in net)
    net[0].submit_order(MARKET, "sell", "10", "2")
    assert net[1].submit_order(MARKET, "buy", "10", "1").status == "filled"
    net[2].submit_order(MARKET, "buy", "9", "1", account="node-2/algo")
    net.assert_same_hash(MARKET)
    assert [order.account for order in net[0].open_orders(MARKET, "node-2/algo")] == ["node-2/algo"]

    echo = Echo.start()
    net[0].register("echo", echo, accepts=[Say])
    try:
        assert net[1].actor("echo@node-0").ask(Say("hi")) == "hi"
    finally:
        echo.stop()
    assert net[0].status().identity["accounts"] == ["node-0", "node-0/*"]


def test_another_takes_over_when_the_leader_s_process_is_killed_and_it_comes_back(exchange_processes: Any) -> None:
    net = exchange_processes(nodes=3, markets={MARKET: RULES}, identities=True)
    order = net[0].submit_order(MARKET, "sell", "10", "1")
    net[0].kill()
    assert net[1].submit_order(MARKET, "buy", "10", "1", timeout=20).trades[0].maker_order_id == order.order_id
    net.restart(0)
    net.assert_same_hash(MARKET)


OUTSIDERS: dict[str, Callable[[Path, Path], str | None]] = {
    "a member": lambda own, _: issued_by(own, "bob"),
    "no certificate": lambda _own, _foreign: None,
    "another exchange's": lambda _, foreign: issued_by(foreign, "bob"),
    "one that has ended": lambda own, _: issued_by(own, "bob", begins=-3, ends=-1),
    "one that has not begun": lambda own, _: issued_by(own, "bob", begins=1),
}


@pytest.mark.slow
@pytest.mark.parametrize("who", OUTSIDERS)
def test_only_nodes_with_a_valid_certificate_of_the_exchange_can_connect(
    alice: ExchangeNode, authority: Authority, tmp_path: Path, who: str
) -> None:
    foreign = Authority.create(tmp_path / "foreign")
    text = OUTSIDERS[who](authority.folder, foreign.folder)
    trusted = (authority.folder / "authority.pem").read_text()
    with connected(alice.address, tls(text, "alice", trusted), refused=who != "a member") as send:
        assert send(CODEC.encode(Credentials(der(text) if text else b"-"))) == (who == "a member")
    with connected(alice.address.removeprefix("tls+"), None, refused=True) as send:
        assert not send(hello(alice, "bob", "bob.1")), "without TLS nobody does"


@pytest.mark.slow
def test_a_certificate_that_was_revoked_is_refused_where_the_list_is_known(
    authority: Authority, tmp_path: Path
) -> None:
    bob, carol = authority.issue("bob"), authority.issue("carol")
    assert authority.revoke("bob") == 1
    identity = Identity(authority.issue("alice"))
    with pytest.raises(ProtocolError, match="that of bob is revoked"):
        identity.verified(der(bob))
    assert identity.verified(der(carol)).name == "carol"
    trusted = (authority.folder / "authority.pem").read_text()
    with ExchangeNode("alice", data_dir=tmp_path / "alice", identity=identity) as node:
        with connected(node.address, tls(bob, "alice", trusted), refused=True) as send:
            assert not send(b"frame")
        with connected(node.address, tls(carol, "alice", trusted)) as send:
            assert send(b"frame")
    assert [(member.name, revoked) for member, revoked in authority.issued()] == [
        ("alice", False),
        ("bob", True),
        ("carol", False),
    ]


@pytest.mark.slow
def test_members_of_two_authorities_link_where_both_are_trusted(tmp_path: Path) -> None:
    """As while one authority takes the place of another."""
    old, new = Authority.create(tmp_path / "old"), Authority.create(tmp_path / "new")
    both = "".join([(each.folder / "authority.pem").read_text() for each in (old, new)])
    shared = {"coordinator": tmp_path / "c", "markets": {MARKET: RULES}}
    with (
        ExchangeNode("a", identity=Identity(old.issue("a") + pem_of(new)), serve_directory=ANY_PORT, **shared) as a,
        ExchangeNode(
            "b", identity=Identity(new.issue("b") + pem_of(old)), directory=a.directory_address, **shared
        ) as b,
    ):
        b.wait_in_sync(MARKET, 2)
    assert both.count("BEGIN CERTIFICATE") == 2


@pytest.mark.slow
@pytest.mark.parametrize("revoking", ["the old", "the new"])
def test_what_one_of_two_authorities_has_revoked_shuts_out_nobody_of_the_other(tmp_path: Path, revoking: str) -> None:
    """TLS takes a list for that of every authority of its issuer's name."""
    old, new = Authority.create(tmp_path / "old"), Authority.create(tmp_path / "new")
    by = {"the old": old, "the new": new}[revoking]
    gone = by.issue("gone")
    by.revoke("gone")
    identity = Identity(old.issue("alice") + pem_of(new) + (by.revocations() if by is new else ""))
    with ExchangeNode("alice", data_dir=tmp_path / "alice", identity=identity) as node:
        for text, gets_in in ((old.issue("bob"), True), (new.issue("carol"), True), (gone, False)):
            with connected(node.address, tls(text, "alice", pem_of(old)), refused=not gets_in) as send:
                assert send(b"frame") == gets_in


def pem_of(authority: Authority) -> str:
    return (authority.folder / "authority.pem").read_text()


# -- nobody is taken for another ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("credentials", "name", "node_id", "refused"),
    [
        ("mallory", "mallory", "mallory.1", False),
        ("mallory", "alice", "alice.00000000", True),
        ("mallory", "mallory", "bob.00000000", True),
        ("mallory", "bob", "mallory.00000000", True),
        ("bob", "bob", "bob.00000000", True),
        (None, "mallory", "mallory.1", True),
    ],
)
def test_a_member_that_says_it_is_another_loses_the_link(
    alice: ExchangeNode, authority: Authority, credentials: str | None, name: str, node_id: str, refused: bool
) -> None:
    """Certificates are public: to have seen bob's is not to be bob."""
    known = {each: authority.issue(each) for each in ("mallory", "bob")}
    with connected(alice.address, tls(known["mallory"], "alice", pem_of(authority))) as send:
        if credentials is not None:
            assert send(CODEC.encode(Credentials(der(known[credentials]))))
        assert send(hello(alice, name, node_id))
        if refused:
            eventually(lambda: alice.status().frames_refused == 1, "it is refused")
        eventually(lambda: refused or node_id in alice.group.links.peers, "it is known")
    assert (node_id in alice.group.links.peers) != refused


@pytest.mark.slow
def test_a_node_that_is_announced_under_the_name_of_another_is_not_known(
    alice: ExchangeNode, authority: Authority
) -> None:
    """The rendezvous looks at its id only: the name is in what else is announced, which is anybody's to choose."""

    def entry(node: str, name: str) -> ServiceEntry:
        return ServiceEntry("openoutcry.node", node, "tls+tcp://127.0.0.1:9", (("name", name),))

    with Directory([str(alice.directory_address)], identity=Identity(authority.issue("mallory"))) as directory:
        eventually(lambda: directory.connected, "it is connected")
        assert directory.announce(entry("mallory.1", "bob")) == 1
        assert directory.announce(entry("mallory.2", "mallory")) == 1
        eventually(lambda: "mallory.2" in alice.group.links.known(), "it is known")
        assert "mallory.1" not in alice.group.links.known()


@pytest.mark.slow
def test_nothing_is_kept_of_a_member_for_which_there_is_no_room(
    alice: ExchangeNode, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may come again and again, each time as another node of its name."""
    monkeypatch.setattr(links, "PEERS_MAX", 2)
    mallory = authority.issue("mallory")
    for number in range(6):
        refused = max(0, number - 1)
        with connected(alice.address, tls(mallory, "alice", pem_of(authority))) as send:
            assert send(CODEC.encode(Credentials(der(mallory))))
            assert send(hello(alice, "mallory", f"mallory.{number}"))
            eventually(lambda: alice.status().frames_refused == refused, "what is too much is refused")  # noqa: B023
            eventually(lambda: len(alice.group.links.peers) == min(2, number + 1), "what is not is known")  # noqa: B023
    assert set(alice.group.links.members) <= {"mallory.0", "mallory.1"}


@pytest.mark.slow
def test_a_second_certificate_over_one_connection_ends_it(alice: ExchangeNode, authority: Authority) -> None:
    mallory = authority.issue("mallory")
    with connected(alice.address, tls(mallory, "alice", pem_of(authority))) as send:
        assert send(CODEC.encode(Credentials(der(mallory))))
        assert send(CODEC.encode(Credentials(der(mallory))))
        eventually(lambda: alice.status().frames_refused == 1, "it is refused")


@pytest.mark.slow
def test_an_inbox_closes_a_connection_that_has_fallen_silent(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As nng may leave it of one that has been closed."""
    monkeypatch.setattr(sockets, "SILENT_S", 0.3)
    heard: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
    removed: queue.SimpleQueue[int] = queue.SimpleQueue()
    inbox = Inbox(
        ANY_PORT,
        on_frame=lambda pipe_id, frame: heard.put((pipe_id, frame)),
        on_pipe_removed=removed.put,
        identity=Identity(authority.issue("alice")),
    )
    inbox.start()
    config = tls(authority.issue("bob"), "alice", pem_of(authority))
    try:
        with connected(inbox.address, config) as silent, connected(inbox.address, config) as alive:
            assert silent(b"silent")
            gone, _ = heard.get(timeout=20)
            assert alive(b"alive")
            stays, _ = heard.get(timeout=20)
            ended = []
            while len(ended) < 3:
                assert alive(b"alive")
                with contextlib.suppress(queue.Empty):
                    ended.append(removed.get(timeout=0.01))
        assert ended[0] == gone, "what said something once"
        assert stays not in ended, "then what is dialled instead, and says nothing; but not what says something"
    finally:
        inbox.close()


@pytest.mark.slow
def test_a_rendezvous_closes_a_connection_that_has_fallen_silent(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "SILENT_S", 0.3)
    identity = Identity(authority.issue("place"))
    with Rendezvous(ANY_PORT, identity=identity) as place, Directory([place.address], identity=identity) as directory:
        eventually(lambda: directory.connected, "it is connected")
        directory.reconnected()
        assert directory.announce(ServiceEntry("prices", "place.1", "tls+tcp://127.0.0.1:1")) == 1
        eventually(directory.reconnected, "it was closed, and is dialled again")
        eventually(lambda: not place.services(), "what it has announced has gone")


def odd(what: str, folder: Path) -> bytes:
    """Return a certificate for which cryptography raises what is not one of Python's own errors."""
    good = der(issued_by(folder, "bob"))
    if what == "no known version":
        return good.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020107"), 1)
    if what == "no known algorithm":
        return good.replace(bytes.fromhex("06082a8648ce3d040302"), bytes.fromhex("06082a8648ce3d04037f"))
    if what == "a name in bits":
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "unlikely")])
        good = der(issued_by(folder, "bob", subject=subject))
        return good.replace(b"\x0c\x08unlikely", b"\x03\x08\x00nlikely")
    return {"nothing like it": b"-", "a part": good[:100], "more": good + b"-"}[what]


ODD = ["no known version", "no known algorithm", "a name in bits", "nothing like it", "a part", "more"]


@pytest.mark.parametrize("what", ODD)
def test_an_odd_certificate_is_refused_whatever_is_wrong_with_it(authority: Authority, what: str) -> None:
    identity = Identity(authority.issue("alice"))
    with pytest.raises(ProtocolError, match="a certificate was refused") as refused:
        identity.verified(odd(what, authority.folder))
    assert refused.value.code == CERTIFICATE_REFUSED


@pytest.mark.slow
def test_a_member_cannot_announce_a_node_of_another_nor_take_it_back(alice: ExchangeNode, authority: Authority) -> None:
    entries = {name: ServiceEntry("prices", f"{name}.1", f"tls+tcp://127.0.0.1:{port}") for name, port in PORTS.items()}
    address = str(alice.directory_address)

    def directory(name: str) -> Directory:
        return Directory([address], identity=Identity(authority.issue(name)))

    def found() -> list[str]:
        return [entry.node for entry in bob.lookup("prices", deadline=time.monotonic() + 20).entries]

    with directory("bob") as bob, directory("mallory") as mallory:
        eventually(lambda: bob.connected and mallory.connected, "both are connected")
        assert bob.announce(entries["bob"]) == 1
        assert mallory.announce(entries["mallory"]) == 1
        assert found() == ["bob.1", "mallory.1"]
        assert mallory.unannounce(entries["bob"]) == 0
        eventually(lambda: found() == ["bob.1"], "who tries loses the connection, and with it what it has announced")
        eventually(lambda: mallory.connected, "it is connected again")
        assert mallory.announce(ServiceEntry("prices", "bob.2", "tls+tcp://127.0.0.1:3")) == 0
        assert found() == ["bob.1"]


@pytest.mark.slow
@pytest.mark.parametrize("parts", [[], [(x509.NameOID.ORGANIZATION_NAME, "x" * 64)] * 20])
def test_who_has_a_certificate_without_a_name_is_refused_and_no_thread_ends(
    alice: ExchangeNode, authority: Authority, parts: list[tuple[x509.ObjectIdentifier, str]]
) -> None:
    """The authority may be another program; of a subject without a common name, or a long one, nng makes no name."""
    subject = x509.Name([x509.NameAttribute(kind, value) for kind, value in parts])
    nameless = issued_by(authority.folder, "bob", subject=subject)
    with connected(alice.address, tls(nameless, "alice", pem_of(authority))) as send:
        assert send(CODEC.encode(Credentials(der(authority.issue("bob")))))
        eventually(lambda: alice.status().frames_refused == 1, "it is refused")
    place = sockets.open_socket(pynng.Surveyor0, recv_timeout_ms=5000, tls=tls(nameless, MEMBER, pem_of(authority)))
    try:
        place.dial(str(alice.directory_address), block=True)
        place.send(REQUESTS.encode(Announce(1000, (("prices", "bob", "tls+tcp://127.0.0.1:1", ()),))))
        with pytest.raises(pynng.NNGException):
            place.recv()
    finally:
        sockets.close_dialled(place)
    with connected(alice.address, tls(authority.issue("bob"), "alice", pem_of(authority))) as send:
        assert send(b"frame")
        eventually(lambda: alice.status().frames_refused == 2, "the node hears on")


PORTS = {"bob": 1, "mallory": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("said_to_be", "is_told"), [("mallory", True), ("bob", False), ("Mallory", False), ("OpenOutcry", False)]
)
def test_a_node_says_nothing_to_who_is_not_the_one_that_it_was_told_of(
    alice: ExchangeNode, authority: Authority, said_to_be: str, is_told: bool
) -> None:
    """Whoever plays rendezvous may name any address for bob; who listens there has to be bob."""
    frames: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    mallory = Identity(authority.issue("mallory"))
    inbox = Inbox(ANY_PORT, on_frame=lambda _, f: frames.put(f), on_pipe_removed=lambda _: None, identity=mallory)
    inbox.start()
    try:
        alice.group.supervisor.tell(PeerFound(f"{said_to_be}.1", said_to_be, inbox.address))
        if is_told:
            assert CODEC.decode(frames.get(timeout=20)) == Credentials(alice.group.identity.certificate)  # type: ignore[union-attr]
        else:
            with pytest.raises(queue.Empty):
                frames.get(timeout=SHORT_MS / 1000)
    finally:
        inbox.close()


@pytest.mark.slow
def test_an_address_without_tls_is_never_dialled_whoever_names_it(alice: ExchangeNode, authority: Authority) -> None:
    bob = authority.issue("bob")
    listener = sockets.open_socket(pynng.Pull0, recv_timeout_ms=SHORT_MS)
    try:
        plain = sockets.listen(listener, "tcp://127.0.0.1:0")
        with connected(alice.address, tls(bob, "alice", pem_of(authority))) as send:
            assert send(CODEC.encode(Credentials(der(bob))))
            assert send(hello(alice, "bob", "bob.1", plain))
            eventually(lambda: "bob.1" in alice.group.links.peers, "it is known")
            with pytest.raises(pynng.Timeout):
                listener.recv()
    finally:
        listener.close()


@pytest.mark.slow
def test_a_rendezvous_without_tls_is_not_taken_from_another_that_names_it(authority: Authority) -> None:
    plain, secure = "tcp://127.0.0.1:9", "tls+tcp://127.0.0.1:9"
    identity = Identity(authority.issue("place"))
    with (
        Rendezvous(ANY_PORT, peers=[plain, secure], identity=identity) as place,
        Directory([place.address], identity=identity) as directory,
    ):
        directory.lookup("prices", deadline=time.monotonic() + 20)
        assert directory.rendezvous == (place.address, secure)


def test_nodes_with_and_without_identities_say_so_when_they_are_started_together(
    authority: Authority, tmp_path: Path
) -> None:
    identity = Identity(authority.issue("alice"))
    for name, options, code in (
        ("alice", {"identity": identity, "listen": "tcp://127.0.0.1:0"}, "insecure_address"),
        ("alice", {"identity": identity, "directory": "tcp://127.0.0.1:7400"}, "insecure_address"),
        ("alice", {"identity": identity, "serve_directory": "tcp://127.0.0.1:0"}, "insecure_address"),
        ("bob", {"identity": identity}, "identity"),
        ("bob", {"listen": ANY_PORT}, "no_identity"),
        ("bob", {"directory": "tls+tcp://127.0.0.1:7400"}, "no_identity"),
    ):
        with pytest.raises(ConfigurationError) as refused:
            ExchangeNode(name, data_dir=tmp_path / name, **options)  # type: ignore[arg-type]
        assert refused.value.code == code
    with pytest.raises(ConfigurationError, match="needs an identity"):
        Rendezvous(ANY_PORT)


# -- for whom a node acts ----------------------------------------------------------------------------------------------


def test_a_node_acts_for_the_accounts_of_its_certificate_only(exchange: Any) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES}, identities=True)
    order = net[1].submit_order(MARKET, "sell", "10", "1")
    node = net[0]
    assert node.status().markets[MARKET].leader == node.node_id, "nobody but itself refuses"
    theirs = {"account": "node-1"}
    attempts: list[Callable[[], Any]] = [
        lambda: node.submit_order(MARKET, "buy", "10", "1", **theirs),
        lambda: node.cancel_order(MARKET, order.order_id, **theirs),
        lambda: node.amend_order(MARKET, order.order_id, quantity="2", **theirs),
        lambda: node.cancel_all(MARKET, **theirs),
        lambda: node.submit_many(MARKET, [node.cancel(1), node.cancel(order.order_id, **theirs)]),
        lambda: asyncio.run(_in_a_loop(node, order.order_id)),
    ]
    for attempt in attempts:
        with pytest.raises(AccessDenied, match="node node-0 may act for node-0, node-0/\\*, not for account 'node-1'"):
            attempt()
    assert net.wait_same_sequence(MARKET) == order.sequence, "nothing was executed"
    assert node.get_order(MARKET, order.order_id) is not None


async def _in_a_loop(node: ExchangeNode, order_id: int) -> None:
    await AsyncNode(node).cancel_order(MARKET, order_id, account="node-1")


def test_the_leader_refuses_foreign_accounts_of_a_node_that_does_not_check(exchange: Any) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES}, identities=True)
    order = net[0].submit_order(MARKET, "sell", "10", "1")
    net[1].group.identity = None  # it does not look any more; its links are as they were
    with pytest.raises(AccessDenied, match="not for account 'node-0'"):
        net[1].cancel_order(MARKET, order.order_id, account="node-0")
    assert net[1].submit_order(MARKET, "buy", "9", "1").status == "resting"
    assert net.wait_same_sequence(MARKET) == order.sequence + 1


def test_a_leader_that_has_forgotten_a_node_asks_it_to_try_again(
    exchange: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no AccessDenied, which is for good."""
    net = exchange(nodes=2, markets={MARKET: RULES}, identities=True)
    net.wait_same_sequence(MARKET)
    frames = net[0].market(MARKET).read(lambda shell: shell.frames)
    monkeypatch.setattr(frames, "_member_of", lambda _node: None)
    with pytest.raises(Unavailable, match="is not known now"):
        net[1].submit_order(MARKET, "buy", "9", "1")


@pytest.mark.parametrize(
    ("patterns", "allowed", "denied"),
    [
        ((), ["desk", "desk/a", "desk/"], ["desk2", "Desk", "des", "", "other/desk"]),
        (("a", "b*"), ["a", "b", "bc", "b*"], ["ab", "A", "desk", "desk/a"]),
        (("*",), ["anybody", "desk"], []),
        (("Zoë Ünal", "x%20*"), ["Zoë Ünal", "x%20y"], ["Zoe Unal", "x y"]),
    ],
)
def test_accounts_are_given_by_name_or_by_their_beginning(
    authority: Authority, patterns: tuple[str, ...], allowed: list[str], denied: list[str]
) -> None:
    member = Identity(authority.issue("desk", accounts=patterns)).member
    assert member.accounts == (patterns or ("desk", "desk/*"))
    assert [account for account in allowed if member.denied([account])] == []
    assert [account for account in denied if not member.denied([account])] == []
    assert member.denied(allowed) is None
    assert (member.denied([*allowed, *denied]) is None) == (not denied)


# -- files -------------------------------------------------------------------------------------------------------------


def named(**parts: str) -> x509.Name:
    kinds = {"CN": x509.NameOID.COMMON_NAME, "O": x509.NameOID.ORGANIZATION_NAME}
    return x509.Name([x509.NameAttribute(kinds[kind], value) for kind, value in parts.items()])


def twin(folder: Path) -> str:
    """Return another authority of the name that the one in ``folder`` has, which then revokes something."""
    authority = Authority(folder / "authority")
    authority.issue("gone")
    authority.revoke("gone")
    (own,) = x509.load_pem_x509_certificates(pem_of(authority).encode())
    key = ec.generate_private_key(ec.SECP256R1())
    constraints = x509.BasicConstraints(ca=True, path_length=0)
    return pem(
        x509.CertificateBuilder(own.subject, own.subject, key.public_key(), 1)
        .not_valid_before(own.not_valid_before_utc)
        .not_valid_after(own.not_valid_after_utc)
        .add_extension(constraints, critical=True)
        .sign(key, SHA256())
    )


def broken(what: str, folder: Path, good: str) -> str:
    key, own, authority = re.findall(r"-----BEGIN.*?-----END.*?-----\n", good, re.DOTALL)
    foreign = Authority.create(folder / "foreign")
    other = foreign.issue("other")
    foreign.revoke("other")
    password = BestAvailableEncryption(b"secret")
    locked = load_pem_private_key(key.encode(), None).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, password)
    return {
        "holds 0 private keys": own + authority,
        "holds 2 private keys": good + other.partition("-----BEGIN CERT")[0],
        "holds 0 certificates of its private key": key + authority,
        "holds an encrypted private key": locked.decode() + own + authority,
        "holds a malformed private key": key.replace("\nMI", "\nAA", 1) + own + authority,
        "holds a malformed block": key + own.replace("\nMI", "\nAA", 1) + authority,
        "is issued by no authority": key + own + pem_of(foreign),
        "which is no authority": good + pem(x509.load_pem_x509_certificates(other.encode())[0]),
        "a list of revoked certificates that none of its authorities has signed": good + foreign.revocations(),
        "holds two authorities of the same name": good + twin(folder) + Authority(folder / "authority").revocations(),
        "is in force from": issued_by(folder / "authority", "alice", begins=-3, ends=-1),
        "is of no node: its DNS names": issued_by(folder / "authority", "www.acme.example", member=False),
        "is of no node: its DNS names are not bob": issued_by(folder / "authority", "alice", subject=named(CN="bob")),
        "its subject does not end with": issued_by(folder / "authority", "alice", subject=named(CN="alice", O="Acme")),
        "cannot be a node's name": issued_by(folder / "authority", "no name"),
        "cannot be used for TLS": issued_by(folder / "authority", "alice", key=ed25519.Ed25519PrivateKey.generate()),
    }[what]


@pytest.mark.parametrize(
    "what",
    [
        "holds 0 private keys",
        "holds 2 private keys",
        "holds 0 certificates of its private key",
        "holds an encrypted private key",
        "holds a malformed private key",
        "holds a malformed block",
        "is issued by no authority",
        "which is no authority",
        "a list of revoked certificates that none of its authorities has signed",
        "holds two authorities of the same name",
        "is in force from",
        "is of no node: its DNS names",
        "is of no node: its DNS names are not bob",
        "its subject does not end with",
        "cannot be a node's name",
        "cannot be used for TLS",
    ],
)
def test_an_identity_that_cannot_be_used_says_why_when_it_is_read(
    authority: Authority, tmp_path: Path, what: str
) -> None:
    path = tmp_path / "identity.pem"
    path.write_text(broken(what, tmp_path, authority.issue("alice")))
    with pytest.raises(ConfigurationError, match=what) as refused:
        Identity.load(path)
    assert refused.value.code == "identity"
    assert str(path) in refused.value.message
    assert "PRIVATE" not in refused.value.message


def test_a_certificate_that_is_not_valid_yet_is_a_problem_of_the_clock_that_a_restart_may_mend(
    authority: Authority, tmp_path: Path
) -> None:
    """A machine boots in 1970, and a service that exits with 78 would stay away when its clock is set."""
    path = tmp_path / "alice.pem"
    path.write_text(issued_by(authority.folder, "alice", begins=2, ends=9))
    with pytest.raises(ConfigurationError) as refused:
        Identity.load(path)
    assert refused.value.code == "clock_behind"
    begins = datetime.now(UTC) + timedelta(days=2)
    for shown in (f"not valid before {begins:%Y-%m-%d}", f"clock says {datetime.now(UTC):%Y-%m-%d}", str(path)):
        assert shown in refused.value.message
    node = ["node", "--name", "alice", "--market", "M", "--data-dir", str(tmp_path / "a"), "--identity", str(path)]
    for command in (node, ["directory", "--listen", "tls+tcp://127.0.0.1:0", "--identity", str(path)]):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == os.EX_TEMPFAIL, result.output
        assert "(clock_behind)" in result.output
    unit = (Path(__file__).parent.parent / "deploy" / "openoutcry.service").read_text()
    assert "RestartPreventExitStatus=78\n" in unit
    assert "Restart=on-failure" in unit


def test_a_certificate_ends_with_that_of_its_authority(tmp_path: Path) -> None:
    """As for TLS: a node that could see its own date only would be told of nothing."""
    authority = Authority.create(tmp_path / "short", days=2)
    assert 1 < Identity(authority.issue("alice", days=365)).seconds_left / 86_400 <= 2
    assert 0 < Identity(authority.issue("alice", days=1)).seconds_left / 86_400 <= 1


def test_an_identity_of_bytes_that_nobody_has_written_is_refused_and_shows_no_key(
    authority: Authority, tmp_path: Path
) -> None:
    authority.issue("gone")
    authority.revoke("gone")
    good, at = authority.issue("alice"), random.Random(3)
    blocks = re.findall(r"-----BEGIN.*?-----END.*?-----\n", good, re.DOTALL)
    secrets = blocks[0].splitlines()[1:-1]
    path, said = tmp_path / "identity.pem", []
    for _ in range(600):
        odd = list(blocks)
        which = at.randrange(len(odd))
        head, *lines, tail = odd[which].splitlines()
        block = bytearray(base64.b64decode("".join(lines)))
        block[at.randrange(at.choice((40, len(block))))] = at.randrange(256)
        odd[which] = "\n".join([head, base64.b64encode(block).decode(), tail, ""])
        path.write_text("".join(odd))
        try:
            Identity.load(path)
        except ConfigurationError as error:
            said.append(str(error))
    assert not [each for each in said if any(secret in each for secret in secrets)]
    for nowhere in ("a\0b", "~nobody-is-called-so/alice.pem", tmp_path):
        with pytest.raises(ConfigurationError, match="cannot be read"):
            Identity.load(nowhere)


def test_keys_are_for_their_owner_only_and_never_overwritten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = CliRunner().invoke
    folder, out = tmp_path / "ca", tmp_path / "bob.pem"
    assert run(main, ["identity", "create-authority", str(folder)]).exit_code == 0
    issue = ["identity", "issue", "bob", "--authority", str(folder), "--out", str(out), "--account", "desk/*"]
    assert run(main, issue).exit_code == 0
    text = out.read_text()
    for path in (out, folder / "authority.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert run(main, issue).exit_code == 1
    assert run(main, ["identity", "create-authority", str(folder)]).exit_code == 1
    assert out.read_text() == text
    Identity.load(out)
    assert not caplog.records
    out.chmod(0o640)
    Identity.load(out)
    assert "identity_exposed" in caplog.text
    shown = json.loads(run(main, ["identity", "show", str(out), "--json"]).output)
    assert (shown["name"], shown["accounts"]) == ("bob", ["desk/*"])
    assert run(main, ["identity", "revoke", "bob", "--authority", str(folder)]).exit_code == 0
    (again,) = json.loads(run(main, ["identity", "list", "--authority", str(folder), "--json"]).output)
    by_serial = ["identity", "revoke", "bob", "--authority", str(folder), "--serial"]
    assert [run(main, [*by_serial, serial]).exit_code for serial in (again["serial"], "abc", "x")] == [0, 1, 2]
    listed = json.loads(run(main, ["identity", "list", "--authority", str(folder), "--json"]).output)
    assert [(each["name"], each["revoked"]) for each in listed] == [("bob", True)]
    out.write_text(text + (folder / "revoked.pem").read_text())
    assert "that of bob is revoked" in run(main, ["identity", "show", str(out)]).output


@pytest.mark.parametrize("pattern", ["", "*a", "a**", "x" * 66, "\ud800", 3])
def test_an_authority_issues_no_certificate_for_what_cannot_be_an_account(authority: Authority, pattern: Any) -> None:
    with pytest.raises(InvalidRequest):
        authority.issue("alice", accounts=[pattern])


@pytest.mark.parametrize("name", ["", "a b", "-x", "x" * 64, "zoë", "*.x", MEMBER, 3])
def test_an_authority_issues_no_certificate_whose_name_cannot_stand_in_one(authority: Authority, name: Any) -> None:
    with pytest.raises(InvalidRequest):
        authority.issue(name)
    assert authority.issued() == []


# -- from the command line ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_processes_started_by_hand_with_identities_trade_and_one_without_stays_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in [name for name in os.environ if name.startswith("OPENOUTCRY_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("OPENOUTCRY_HOME", str(tmp_path))
    openoutcry = [sys.executable, "-m", "openoutcry.actors.cli"]

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(main, list(arguments))

    assert run("identity", "create-authority", str(tmp_path / "ca")).exit_code == 0
    for name in ("place", "alice", "bob"):
        out = str(tmp_path / f"{name}.pem")
        assert run("identity", "issue", name, "--authority", str(tmp_path / "ca"), "--out", out).exit_code == 0

    with contextlib.ExitStack() as started:

        def start(*arguments: str) -> subprocess.Popen[str]:
            log = started.enter_context((tmp_path / f"{len(list(tmp_path.glob('*.log')))}.log").open("w"))
            process = subprocess.Popen([*openoutcry, *arguments], stdout=subprocess.PIPE, stderr=log, text=True)
            started.enter_context(process)
            started.callback(process.kill)
            return process

        place = start("directory", "--listen", ANY_PORT, "--identity", str(tmp_path / "place.pem"))
        assert place.stdout is not None
        address = place.stdout.readline().strip()
        for name, joined in (("alice", ("--market", MARKET)), ("bob", ("--join", MARKET))):
            pem = str(tmp_path / f"{name}.pem")
            start("node", "--name", name, *joined, "--directory", address, "--identity", pem)

        def in_sync() -> bool:
            result = run("status", "--node", "bob", "--json")
            return result.exit_code == 0 and len(json.loads(result.output)["markets"][MARKET].get("in_sync", ())) == 2

        eventually(in_sync, "both are in sync")
        assert run("submit", MARKET, "sell", "10", "1", "--node", "alice").exit_code == 0
        denied = run("cancel", MARKET, "2", "--node", "bob", "--account", "alice")
        assert (denied.exit_code, "(access_denied)" in denied.output) == (1, True)
        assert run("submit", MARKET, "buy", "10", "1", "--node", "bob").output.splitlines()[1:] == [
            "  bought 1 at 10.00"
        ]
        assert "\nacts for bob, bob/*; its certificate ends 20" in run("status", "--node", "bob").output

        outsider = Directory([address.removeprefix("tls+")])
        with outsider, pytest.raises(Unavailable):
            outsider.lookup("openoutcry.node", deadline=time.monotonic() + SHORT_MS / 1000)
