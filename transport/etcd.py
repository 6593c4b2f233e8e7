"""The coordinator in etcd 3.4 or newer: for nodes on many machines. It needs the package etcd3gw.

Owns the keys below one prefix, through etcd's JSON gateway and the client ``etcd3gw``::

    /PREFIX/id              the coordinator's id, written once
    /PREFIX/markets/NAME    a market's record, as JSON in one spelling
    /PREFIX/leases/NODE     there while the node holds its lease: the key hangs on a lease of etcd's own
    /PREFIX/disks/MARKET/NODE   what the node's disk held of the market when that was last reported, as JSON

Why it is done this way:

- **Every operation is a transaction that compares the id**, reads included: they are linearizable, and a store that was
  wiped or swapped for another is refused. So is one whose revision went back: it was restored from a backup.
- **A swap compares the key's revision**, after the content was read and compared at that revision. An answer that is
  lost leaves a request that etcd may still carry out, even seconds later (a member that was stopped goes on). "Read
  before deciding" must mean something all the same, so the next read of that market settles it first: it writes the old
  value once more, which changes the revision, and with that the lost request can never match again. A create that was
  lost is settled by carrying it out.
- **Only what is safe to repeat is sent again** (reads, leases, creates), and what surely never left: a connection that
  was refused.
- **A lease is renewed without a write**: etcd keeps every old value until it is compacted, and fills up.

A lease's time is in whole seconds, rounded up, and etcd has a least one: 2 s with its default settings. It expires up
to half a second late, and restarts when etcd's own leader changes. Until then nobody notices that a process was killed.

Give endpoints by address: looking up a name may take longer than an operation is bounded to.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import importlib
import json
import os
import re
import socket
import ssl
import time
import urllib.parse
import uuid
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final

from .coordinator import (
    MARKS_MAX,
    UNAVAILABLE_CODE,
    DiskMark,
    MarketRecord,
    OneThread,
    ToldTime,
    first_record,
    in_use,
    successor,
)
from .errors import (
    Closed,
    ConfigurationError,
    Copied,
    InvariantBroken,
    OpenOutcryError,
    StorageError,
    Unavailable,
    ensure,
    present,
)
from .files import read_file
from .forks import guard
from .identity import CLOCK_BEHIND, date_of
from .numerals import port_of, whole_of

SCHEMES: Final = ("etcd://", "etcds://")
"""Prefixes of the addresses that :func:`open_etcd` accepts."""

_NO_HOST: Final = re.compile(r"[\s\[\]/?#@\\\x00-\x1f\x7f]")
"""Characters that cannot occur in a host's name or number."""
PORT_DEFAULT: Final = 2379
PREFIX_DEFAULT: Final = "openoutcry"

OPERATION_S: Final = 4.0
"""The longest that an operation takes, in seconds, however many endpoints it tries."""

CONNECT_S: Final = 0.5
ANSWER_S: Final = 1.0
"""How long one endpoint may take to connect and to answer, in seconds, before the next is tried."""

_RETRY_S: Final = 0.05
_PARAMETERS: Final = ("ca", "cert", "key", "user", "password", "password_file")

# Codes of gRPC, in which the gateway reports errors.
_INVALID_ARGUMENT: Final = 3
_NOT_FOUND: Final = 5
_PERMISSION_DENIED: Final = 7
_FAILED_PRECONDITION: Final = 9
_DATA_LOSS: Final = 15
_UNAUTHENTICATED: Final = 16

_BAD_CERTIFICATE: Final = ("CERTIFICATE_VERIFY_FAILED", "ALERT_BAD_CERTIFICATE", "CERTIFICATE_REQUIRED", "UNKNOWN_CA")
_CUT_HANDSHAKE: Final = "EOF occurred in violation of protocol"
"""A server that wants a client's certificate may hang up before the client has read that it does."""
_STALE_TOKEN: Final = ("user name is empty", "auth store is old")
_REFUSED_USER: Final = ("authentication failed", "user name is empty", "authentication is not enabled")


@dataclasses.dataclass(frozen=True, slots=True)
class _Entry:
    """One key as etcd holds it."""

    key: bytes
    value: bytes
    revision: int
    """Of its last change; a key that is not there has 0."""
    lease: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Unsettled:
    """A change whose answer was lost: it may take effect as long as the key is at ``revision``."""

    revision: int
    value: bytes
    """What to write at that revision to settle it: the old value, or for a create the new one."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Lease:
    lease: int
    ttl_s: int
    value: bytes
    """What the key of the lease holds, of no other object's."""


class _Failed(Copied):
    """One endpoint failed. ``done``: None if etcd may have done what was asked, False if it surely did not."""

    def __init__(self, reason: str, *, done: bool | None, final: OpenOutcryError | None = None) -> None:
        super().__init__(reason)
        self.done = done
        self.final = final
        """Set where another endpoint, or another try, would say the same."""


class _LeaseGone(Exception):
    """The named lease has expired."""


class EtcdCoordinator:
    """The :class:`~openoutcry.transport.coordinator.Coordinator` in etcd, at ``endpoints``, below ``prefix``.

    1. Construction creates the id below ``prefix``, unless it is there, and reads :attr:`coordinator_id`.
    2. Each operation goes to the endpoint that worked last, and to the others in turn when that one fails, for at
       most ``OPERATION_S`` in all; an operation after a failure gives up sooner. It succeeds as soon as a majority of
       etcd's members has a leader.
    3. A store that was wiped, replaced or restored from a backup under a running process is refused.

    Args:
        endpoints: each ``HOST:PORT`` or ``HOST``; members of one etcd cluster.
        prefix: what this exchange's keys begin with; a user of etcd's needs to read and write ``/PREFIX/`` and below.
        tls: speak TLS. All that follow need it.
        ca: file of the authorities to trust; None: those that ``requests`` trusts.
        cert, key: files of the client's certificate and its key, for etcd's ``--client-cert-auth``. Together with a
            user it must be one without a common name: etcd's gateway refuses others.
        user, password: for an etcd whose authentication is enabled.

    Raises:
        ConfigurationError: ``etcd3gw`` is not installed, an argument is wrong, or etcd refuses the user or certificate.
        Unavailable: etcd cannot be reached, or has no leader.
        StorageError: what is below ``prefix`` is not ours.
    """

    def __init__(
        self,
        endpoints: Iterable[str],
        *,
        prefix: str = PREFIX_DEFAULT,
        tls: bool = False,
        ca: str | Path | None = None,
        cert: str | Path | None = None,
        key: str | Path | None = None,
        user: str | None = None,
        password: str | None = None,
    ) -> None:
        guard(self)
        hosts = [_endpoint(endpoint) for endpoint in endpoints]
        if not hosts:
            raise ConfigurationError("an etcd coordinator needs at least one endpoint: HOST:PORT")
        if not tls and (ca or cert or key or user or password):
            raise ConfigurationError("certificates and passwords need TLS: use etcds://, or tls=True")
        if bool(cert) != bool(key):
            raise ConfigurationError("a client certificate needs both cert and key")
        if bool(user) != bool(password):
            raise ConfigurationError("etcd's authentication needs both user and password")
        if tls:
            _check_certificates(ca, cert, key)
        self._etcd3gw: Any = _package("etcd3gw")
        self._requests: Any = _package("requests")
        self._where = f"etcd at {', '.join([f'{host}:{port}' for host, port in hosts])}"
        self._root = f"/{prefix.strip('/')}/"
        self._user, self._password = user, password
        self._owned = OneThread()
        self._closed = False
        self._at = 0
        self._away = False
        self._revision = 0
        self._id: str | None = None
        self._token: str | None = None
        self._leases: dict[str, _Lease] = {}
        self._holder = f"{uuid.uuid4().hex} {socket.gethostname()} {os.getpid()}"
        """Which object a lease belongs to, and what a person who looks at it wants to know."""
        self._unsettled: dict[str, _Unsettled] = {}
        self._session: Any = self._requests.Session()
        self._session.hooks["response"].append(self._note_time)
        self._told_time: ToldTime | None = None
        self._session.trust_env = False  # no proxy and no password out of the environment or ~/.netrc
        self._session.verify = str(ca) if ca else True
        self._session.cert = (str(cert), str(key)) if cert else None
        self._clients: list[Any] = [
            self._etcd3gw.client(host=host, port=port, protocol="https" if tls else "http", api_path="/v3/")
            for host, port in hosts
        ]
        for client in self._clients:
            client.session = self._session
        try:
            with self._operation() as until_s:
                self._id = self._create_id(until_s)
        except BaseException:
            self._session.close()
            raise

    @property
    def coordinator_id(self) -> str:
        return present(self._id, "a coordinator that is open has an id")

    def read(self, market: str) -> MarketRecord | None:
        with self._operation() as until_s:
            entry = self._find(market, until_s)
            return None if entry is None else self._record(entry)

    def read_all(self) -> tuple[MarketRecord, ...]:
        with self._operation() as until_s:
            for market in tuple(self._unsettled):
                self._find(market, until_s)
            key = self._key("markets/", "")
            entries = self._read(until_s, _range(key, end=key[:-1] + bytes([key[-1] + 1])))
            return tuple(sorted([self._record(entry) for entry in entries], key=lambda record: record.market))

    def create(self, market: str, leader: str, in_sync: Iterable[str]) -> MarketRecord:
        record = first_record(market, leader, in_sync)
        value = _encoded(record)
        with self._operation() as until_s:
            while True:
                entry = self._find(market, until_s)
                if entry is not None:
                    return self._record(entry)
                if self._write(market, value, _Unsettled(0, value), until_s, repeatable=True):
                    return record

    def swap(
        self,
        expected: MarketRecord,
        *,
        epoch: int,
        leader: str,
        in_sync: Iterable[str],
        force: bool = False,
        yielding: bool = False,
        lives: Mapping[str, str] | None = None,
    ) -> MarketRecord | None:
        record = successor(expected, epoch=epoch, leader=leader, in_sync=in_sync, force=force, yielding=yielding)
        with self._operation() as until_s:
            while True:
                entry = self._find(expected.market, until_s)
                if entry is None or self._record(entry) != expected:
                    return None
                still = self._still_of(expected.market, lives or {}, until_s)
                if still is None:
                    return None
                unsettled = _Unsettled(entry.revision, entry.value)
                if self._write(expected.market, _encoded(record), unsettled, until_s, repeatable=False, also=still):
                    return record

    def _still_of(self, market: str, lives: Mapping[str, str], until_s: float) -> list[dict[str, Any]] | None:
        """Return comparisons that hold while the marks of these nodes are as now; None: one is of another life."""
        compare = []
        for node, life in lives.items():
            key = self._disk_key(market, node)
            entries = self._read(until_s, _range(key))
            if (self._mark_of(entries[0]).life if entries else "") != life:
                return None
            compare.append(_at_revision(key, entries[0].revision if entries else 0))
        return compare

    def renew(self, node: str, *, holder: str, ttl_ms: int) -> None:
        """As the protocol says; the time is rounded up to whole seconds, and to the least that etcd grants."""
        ttl_s = -(-ttl_ms // 1000)
        key = self._key("leases/", node)
        value = f"{holder} {self._holder}".encode()
        with self._operation() as until_s:
            while True:
                entries = self._read(until_s, _range(key))
                entry = entries[0] if entries else None
                if entry is not None and entry.value != value and entry.value.split(b" ")[0] != holder.encode():
                    raise in_use(node, entry.value.decode(errors="replace"))
                held = self._leases.get(node)
                if held is None or held.ttl_s != ttl_s or not self._keep_alive(held.lease, until_s):
                    answer = self._post("/lease/grant", {"TTL": ttl_s}, until_s)
                    held = self._leases[node] = _Lease(_int(answer, "ID"), ttl_s, value)
                if entry is not None and entry.lease == held.lease and entry.value == value:
                    return
                with contextlib.suppress(_LeaseGone):
                    unchanged = _at_revision(key, entry.revision if entry else 0)
                    if self._transact([unchanged], [_put(key, value, held.lease)], until_s)[0]:
                        return

    def release(self, node: str) -> None:
        with self._operation() as until_s:
            held = self._leases.get(node)
            if held is None:
                return
            key = self._key("leases/", node)
            delete = {"request_delete_range": {"key": _b64(key)}}
            self._transact([_of_value(key, held.value)], [delete], until_s)
            with contextlib.suppress(_LeaseGone):  # a renewal that was lost must not bring the key back
                self._post("/lease/revoke", {"ID": str(held.lease)}, until_s)
            del self._leases[node]

    def mark(self, node: str, marks: Mapping[str, DiskMark]) -> None:
        """As the protocol says. A request whose answer was lost changes nothing once another process has the lease."""
        held = self._leases.get(node)
        if held is None:
            raise in_use(node, "nobody")
        key = self._key("leases/", node)
        puts = [
            _put(self._disk_key(market, node), json.dumps(dataclasses.astuple(mark)).encode())
            for market, mark in marks.items()
        ]
        with self._operation() as until_s:
            for at in range(0, len(puts), MARKS_MAX):
                if not self._transact([_of_value(key, held.value)], puts[at : at + MARKS_MAX], until_s)[0]:
                    raise in_use(node, "the lease has expired, or another process has it")

    def marks(self, market: str) -> dict[str, DiskMark]:
        with self._operation() as until_s:
            key = self._disk_key(market, "")
            entries = self._read(until_s, _range(key, end=key[:-1] + bytes([key[-1] + 1])))
        return {urllib.parse.unquote(entry.key[len(key) :].decode()): self._mark_of(entry) for entry in entries}

    def _mark_of(self, entry: _Entry) -> DiskMark:
        try:
            return DiskMark(*json.loads(entry.value))
        except (ValueError, TypeError, InvariantBroken) as error:
            raise StorageError(f"{self._where} holds a wrong mark at {entry.key!r}: {error}") from error

    def _disk_key(self, market: str, node: str) -> bytes:
        """Return the key of a mark; names are escaped, as they may hold any sign."""
        return self._key("disks/", f"{urllib.parse.quote(market, safe='')}/{urllib.parse.quote(node, safe='')}")

    def lapsed(self, node: str) -> bool:
        with self._operation() as until_s:
            return not self._read(until_s, _range(self._key("leases/", node)))

    @property
    def told_time(self) -> ToldTime | None:
        """What the ``Date`` of etcd's last answer said: of the member that gave it."""
        return self._told_time

    def _note_time(self, answer: Any, *_: object, **__: object) -> None:
        """Take in the ``Date`` of an answer."""
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            told = parsedate_to_datetime(answer.headers.get("Date"))
            round_trip_ns = int(answer.elapsed.total_seconds() * 1e9)
            self._told_time = ToldTime(int(told.timestamp()) * 10**9, round_trip_ns, time.monotonic_ns())

    def close(self) -> None:
        with self._owned:
            self._closed = True
            self._session.close()

    @contextlib.contextmanager
    def _operation(self) -> Iterator[float]:
        """Yield when the operation has to be over, on the clock of ``time.monotonic``.

        While etcd is away an operation takes no longer than one answer may: others wait in line for the same thread.
        """
        with self._owned:
            if self._closed:
                raise Closed(f"the coordinator, {self._where}, is closed")
            away, self._away = self._away, True
            yield time.monotonic() + (min(ANSWER_S, OPERATION_S) if away else OPERATION_S)
            self._away = False

    def _key(self, kind: str, name: str) -> bytes:
        return f"{self._root}{kind}{name}".encode()

    def _create_id(self, until_s: float) -> str:
        key = self._key("id", "")
        made = str(uuid.uuid4())
        body = {"compare": [_at_revision(key, 0)], "success": [_put(key, made.encode())], "failure": [_range(key)]}
        answer = self._post("/kv/txn", body, until_s)
        if answer.get("succeeded"):
            return made
        found = [entry.value.decode(errors="replace") for entries in _responses(answer) for entry in entries]
        try:
            (made,) = found
            return str(uuid.UUID(made))
        except ValueError as error:
            raise StorageError(f"{self._where} holds no id of a coordinator in {self._root}id: {found}") from error

    def _find(self, market: str, until_s: float) -> _Entry | None:
        """Return the record's key, None if there is none, once nothing that was sent before can change it any more."""
        key = self._key("markets/", market)
        while True:
            entries = self._read(until_s, _range(key))
            entry = entries[0] if entries else None
            unsettled = self._unsettled.get(market)
            if unsettled is None or unsettled.revision != (entry.revision if entry else 0):
                self._unsettled.pop(market, None)
                return entry
            self._transact([_at_revision(key, unsettled.revision)], [_put(key, unsettled.value)], until_s)

    def _write(
        self,
        market: str,
        value: bytes,
        unsettled: _Unsettled,
        until_s: float,
        *,
        repeatable: bool,
        also: Iterable[dict[str, Any]] = (),
    ) -> bool:
        """Write the record's key if it is still at that revision, and ``also`` holds; return whether that was so."""
        key = self._key("markets/", market)
        self._unsettled[market] = unsettled
        done, _ = self._transact(
            [_at_revision(key, unsettled.revision), *also], [_put(key, value)], until_s, repeatable=repeatable
        )
        del self._unsettled[market]
        return done

    def _keep_alive(self, lease: int, until_s: float) -> bool:
        """Return whether the lease was still there to be kept."""
        answer = self._post("/lease/keepalive", {"ID": str(lease)}, until_s)
        return _int(answer.get("result", {}), "TTL") > 0

    def _record(self, entry: _Entry) -> MarketRecord:
        try:
            values = json.loads(entry.value)
            values["in_sync"] = tuple(values["in_sync"])
            record = MarketRecord(**values)
            good = (
                type(record.version) is type(record.epoch) is type(record.forced) is int
                and type(record.yielding) is bool
            )
            good = good and _encoded(record) == entry.value and self._key("markets/", record.market) == entry.key
        except (ValueError, TypeError, KeyError, InvariantBroken) as error:
            raise StorageError(f"{self._where} holds a wrong record {entry.key!r} {entry.value!r}: {error}") from error
        if not good:
            raise StorageError(
                f"{self._where} holds a record that was not written by us: {entry.key!r} {entry.value!r}"
            )
        return record

    def _read(self, until_s: float, wanted: dict[str, Any]) -> list[_Entry]:
        done, (entries,) = self._transact([], [wanted], until_s)
        ensure(done, "a transaction failed that compares nothing but the id")
        return entries

    def _transact(
        self, compare: list[dict[str, Any]], then: list[dict[str, Any]], until_s: float, *, repeatable: bool = True
    ) -> tuple[bool, list[list[_Entry]]]:
        """Do ``then`` if all of ``compare`` holds, and return whether it did, and what each of ``then`` found."""
        key = self._key("id", "")
        ours = _of_value(key, self.coordinator_id.encode())
        body = {"compare": [ours, *compare], "success": then, "failure": [_range(key)]}
        answer = self._post("/kv/txn", body, until_s, repeatable=repeatable)
        revision = _int(answer.get("header", {}), "revision")
        found = _responses(answer)
        done = bool(answer.get("succeeded", False))
        ids = None if done else [entry.value.decode(errors="replace") for entry in found[0]]
        if revision < self._revision or ids not in (None, [self._id]):
            raise StorageError(
                f"{self._where} was wiped, replaced or restored from a backup while in use (id {ids or [self._id]}, "
                f"revision {revision}; expected {self._id}, at least {self._revision}): stop all nodes that use it, "
                f"decide what is right, and start them again"
            )
        self._revision = revision
        return done, found

    def _post(self, path: str, body: dict[str, Any], until_s: float, *, repeatable: bool = True) -> dict[str, Any]:
        """Return etcd's answer, from whichever endpoint gives one in time.

        Raises:
            _LeaseGone: the request names an expired lease.
            OpenOutcryError: as the protocol says.
        """
        reason = "no answer in time"
        failures = 0
        while time.monotonic() < until_s:
            try:
                return self._ask(path, body, until_s)
            except _Failed as failed:
                if failed.final is not None:
                    raise failed.final from failed
                if failed.done is None and not repeatable:
                    self._at = (self._at + 1) % len(self._clients)
                    raise Unavailable(
                        f"{self._where} gave no answer, and may have done it or not: {failed}; read, then decide",
                        code=UNAVAILABLE_CODE,
                    ) from failed
                reason = str(failed)
            self._at = (self._at + 1) % len(self._clients)
            failures += 1
            if failures % len(self._clients) == 0:
                time.sleep(_RETRY_S)
        if self._id is None and _CUT_HANDSHAKE in reason:  # every time, until now
            raise _distrust(self._where, reason)
        raise Unavailable(f"{self._where} cannot be used now: {reason}; retry", code=UNAVAILABLE_CODE)

    def _ask(self, path: str, body: dict[str, Any], until_s: float) -> dict[str, Any]:
        """Ask the endpoint whose turn it is; with a new token if etcd no longer knows the one there was."""
        for _ in range(2):
            if self._user and self._token is None:
                self._session.headers.pop("Authorization", None)  # etcd refuses an old one even here
                answer = self._send("/auth/authenticate", {"name": self._user, "password": self._password}, until_s)
                self._token = self._session.headers["Authorization"] = str(answer["token"])
            token = self._token
            try:
                return self._send(path, body, until_s)
            except _Failed:
                if token is None or self._token is not None:
                    raise
        raise _Failed("etcd forgets its tokens at once", done=False)

    def _send(self, path: str, body: dict[str, Any], until_s: float) -> dict[str, Any]:
        client = self._clients[self._at]
        left_s = max(until_s - time.monotonic(), 0.01)
        client.timeout = (min(CONNECT_S, left_s), min(ANSWER_S, left_s))
        try:
            answer = client.post(client.get_url(path), json=body)
        except self._etcd3gw.exceptions.Etcd3Exception as error:
            failure = self._failure(error)
        except (self._requests.RequestException, ValueError, OSError) as error:
            failure = _Failed(f"{client.base_url}: {error}", done=None)  # an answer cut short, or not of etcd's
        else:
            if isinstance(answer, dict) and "error" not in answer:
                return answer
            failure = _Failed(f"{client.base_url} answered {answer!r:.200}", done=None)
        raise failure

    def _failure(self, error: Any) -> _Failed:
        """Return what ``etcd3gw`` means: an error that etcd reported, or one of the connection."""
        where = self._clients[self._at].base_url
        cause = error.__context__
        if not error.args and isinstance(cause, self._requests.RequestException):  # else: etcd's status and reason
            failed = _Failed(f"{where}: {cause}", done=False if self._never_left(cause) else None)
            if self._id is None and any([part in str(cause) for part in _BAD_CERTIFICATE]):
                failed.final = _distrust(where, cause)
            return failed
        try:
            reported = json.loads(error.detail_text)
            text, code = str(reported["error"]), _number(reported["code"])
        except (ValueError, TypeError, KeyError):
            text, code = f"{' '.join(map(str, error.args))} {error.detail_text or ''!s:.200}".strip(), -1
            if self._id is None and "CommonName" in text:
                hint = (
                    "etcd's gateway takes users with a password only from clients whose certificate has no common name"
                )
                return _Failed(text, done=False, final=ConfigurationError(f"{where}: {text}: {hint}"))
            if self._id is None and error.args == ("Not Found",):
                final = ConfigurationError(f"{where} has no /v3 gateway: is it etcd 3.4 or newer?")
                return _Failed(text, done=False, final=final)
        if code == _NOT_FOUND:
            raise _LeaseGone
        if code == _DATA_LOSS:
            return _Failed(text, done=None, final=StorageError(f"{where} is damaged: {text}"))
        stale = code == _UNAUTHENTICATED or (code == _INVALID_ARGUMENT and any([part in text for part in _STALE_TOKEN]))
        if stale and self._token is not None:
            self._token = None
            return _Failed(f"{where}: {text}", done=False)
        refused = code in (_INVALID_ARGUMENT, _FAILED_PRECONDITION) and any([part in text for part in _REFUSED_USER])
        if refused or code == _PERMISSION_DENIED:
            who = f"user {self._user}" if self._user else "no user was given"
            message = f"{where} refuses access to {self._root} ({who}): {text}"
            opening = self._id is None
            denied = ConfigurationError(message) if opening else Unavailable(message, code=UNAVAILABLE_CODE)
            return _Failed(text, done=False, final=denied)
        return _Failed(f"{where}: {text}", done=None)

    def _never_left(self, error: BaseException) -> bool:
        """Return whether the connection was not even made."""
        if isinstance(error, self._requests.exceptions.ConnectTimeout):
            return True
        reason = getattr(error.args[0] if error.args else None, "reason", None)
        return any([kind.__name__ == "NewConnectionError" for kind in type(reason).__mro__])


def is_etcd(coordinator: object) -> bool:
    """Return whether ``coordinator`` is an address for :func:`open_etcd`, and not the path of a file."""
    return isinstance(coordinator, str) and coordinator.startswith(SCHEMES)


def open_etcd(address: str) -> EtcdCoordinator:
    """Return the coordinator at ``etcd://HOST:PORT,HOST:PORT/PREFIX``, or with TLS at ``etcds://…?ca=FILE&…``.

    The parameters are ``ca``, ``cert``, ``key``, ``user``, and ``password`` or ``password_file``, which keeps the
    password out of process lists. Signs that have a meaning in addresses are written ``%2B`` for ``+``, and so on.

    Raises:
        ConfigurationError: it is not of that form; and as :class:`EtcdCoordinator`.
    """
    scheme, separator, rest = address.partition("://")
    if scheme + separator not in SCHEMES:
        raise ConfigurationError("the address of an etcd coordinator begins with etcd:// or etcds://")
    rest, _, query = rest.partition("?")
    hosts, _, prefix = rest.partition("/")
    if "@" in hosts:
        raise ConfigurationError("etcd's user and password are parameters: etcds://HOST:PORT/PREFIX?user=…&password=…")
    try:
        pairs = urllib.parse.parse_qsl(query, strict_parsing=True) if query else []
    except ValueError as error:
        raise ConfigurationError("the parameters of an etcd address are key=value, separated by &") from error
    given: dict[str, str] = dict(pairs)
    for key, _ in pairs:
        if key not in _PARAMETERS:
            raise ConfigurationError(f"etcd parameter {key!r} does not exist; there are: {', '.join(_PARAMETERS)}")
    if len(given) != len(pairs) or {"password", "password_file"} <= given.keys():
        raise ConfigurationError("a parameter of the etcd address is given twice")
    file = given.pop("password_file", None)
    if file is not None:
        try:
            given["password"] = read_file(Path(file)).decode().strip()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"the password file cannot be read: {error}") from error
    return EtcdCoordinator(
        hosts.split(","), prefix=urllib.parse.unquote(prefix) or PREFIX_DEFAULT, tls=scheme == "etcds", **given
    )


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigurationError(
            f"the etcd coordinator needs another package: pip install etcd3gw ({error})"
        ) from error


def _distrust(where: str, why: object) -> ConfigurationError:
    if "not yet valid" in str(why):
        return ConfigurationError(
            f"{where}: its certificate is not valid yet by this machine's clock, which says "
            f"{date_of(datetime.now(UTC))}: if that is wrong, set the clock ({why})",
            code=CLOCK_BEHIND,
        )
    return ConfigurationError(
        f"{where} and this node do not trust each other's certificates: {why}; check ca=, cert= and key="
    )


def _endpoint(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST``, ``HOST:PORT``, ``[IPV6]`` or ``[IPV6]:PORT``."""
    host, colon, port = text.strip().rpartition(":")
    if not colon or port.endswith("]"):
        host, port = text.strip(), str(PORT_DEFAULT)
    number = port_of(port)
    bare = host[1:-1] if host[:1] + host[-1:] == "[]" else host
    if not bare or not number or _NO_HOST.search(bare) or (":" in bare and bare == host):
        raise ConfigurationError(f"an etcd endpoint is HOST:PORT, not {text!r:.80}")
    return bare, number


def _check_certificates(ca: str | Path | None, cert: str | Path | None, key: str | Path | None) -> None:
    """Check at once for errors that would otherwise look like a failing connection."""
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert is not None and key is not None:
            context.load_cert_chain(cert, key, password="")  # ours are not encrypted; never ask at the terminal
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"ca={ca}, cert={cert} or key={key} cannot be used: {error}") from error


def _encoded(record: MarketRecord) -> bytes:
    return json.dumps(dataclasses.asdict(record), ensure_ascii=False, separators=(",", ":")).encode()


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _int(answer: dict[str, Any], key: str) -> int:
    """Return a number of the gateway's, which writes those of 64 bits as text and leaves out what is 0."""
    return _number(answer.get(key, 0))


def _number(value: object) -> int:
    found = whole_of(value) if isinstance(value, str) else value
    if type(found) is not int:
        raise ValueError(f"expected a whole number, got {value!r:.80}")
    return found


def _range(key: bytes, *, end: bytes | None = None) -> dict[str, Any]:
    return {"request_range": {"key": _b64(key), **({} if end is None else {"range_end": _b64(end)})}}


def _put(key: bytes, value: bytes, lease: int = 0) -> dict[str, Any]:
    return {"request_put": {"key": _b64(key), "value": _b64(value), "lease": str(lease)}}


def _at_revision(key: bytes, revision: int) -> dict[str, Any]:
    """Return the comparison that holds while the key's last change is of ``revision``; 0: while it is not there."""
    return {"key": _b64(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}


def _of_value(key: bytes, value: bytes) -> dict[str, Any]:
    """Return the comparison that holds while the key is there with that value."""
    return {"key": _b64(key), "target": "VALUE", "result": "EQUAL", "value": _b64(value)}


def _responses(answer: dict[str, Any]) -> list[list[_Entry]]:
    """Return what each request of a transaction found."""
    return [
        [
            _Entry(
                base64.b64decode(found["key"]),
                base64.b64decode(found.get("value", "")),
                _int(found, "mod_revision"),
                _int(found, "lease"),
            )
            for found in response.get("response_range", {}).get("kvs", ())
        ]
        for response in answer.get("responses", ())
    ]
