"""A real etcd of several members on loopback, for tests that kill some of them: start, kill -9, stop, start again."""

from __future__ import annotations

import base64
import contextlib
import http.client
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

READY_S_MAX = 30.0
FAST = ("--heartbeat-interval=50", "--election-timeout=500")
"""Options for members that are near to each other: a new leader in half the time, and leases of 1 s."""
_ATTEMPTS = 3


def missing() -> str | None:
    """Return why no etcd can be used here; None: one can."""
    if shutil.which("etcd") is None:
        return "no etcd program on PATH (Debian: apt-get install etcd-server)"
    if importlib.util.find_spec("etcd3gw") is None:
        return "the package etcd3gw is not installed (pip install etcd3gw)"
    return None


class Member:
    """One member of the cluster: its ports, its folder and, while it runs, its process."""

    def __init__(self, name: str, folder: Path, client_port: int, peer_port: int) -> None:
        self.name = name
        self.folder = folder
        self.client_port = client_port
        self.peer_port = peer_port
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")


class EtcdCluster:
    """Members of one etcd, each with a data folder below ``folder``; they are running when this returns."""

    def __init__(self, folder: Path, *, size: int = 3, tls: bool = False, options: Sequence[str] = ()) -> None:
        """``options``: of every member, beside what it needs."""
        self.folder = folder
        self._options = options
        self._context: ssl.SSLContext | None = None
        if tls:
            make_certificates(folder)
            self._context = ssl.create_default_context(cafile=folder / "ca.crt")
            self._context.load_cert_chain(folder / "client.crt", folder / "client.key")
        for attempt in range(_ATTEMPTS):
            ports = _free_ports(2 * size)
            self.members = [Member(f"m{n}", folder / f"m{n}", ports[2 * n], ports[2 * n + 1]) for n in range(size)]
            try:
                self.start(self.members)
            except AssertionError:  # another program took one of the ports
                self.close()
                if attempt == _ATTEMPTS - 1:
                    raise
                for member in self.members:
                    shutil.rmtree(member.folder, ignore_errors=True)
            else:
                return

    @property
    def endpoints(self) -> list[str]:
        return [f"127.0.0.1:{member.client_port}" for member in self.members]

    def address(self, prefix: str, **parameters: str | Path) -> str:
        """Return the address of a coordinator in this etcd."""
        scheme = "etcds" if self._context else "etcd"
        query = "&".join([f"{key}={value}" for key, value in parameters.items()])
        return f"{scheme}://{','.join(self.endpoints)}/{prefix}" + (f"?{query}" if query else "")

    def start(self, members: Iterable[Member]) -> None:
        """Start members, or start them again on their old folders, and wait until each follows a leader."""
        started = list(members)
        for member in started:
            self._spawn(member)
        deadline = time.monotonic() + READY_S_MAX
        for member in started:
            while not self._healthy(member):
                assert member.process is not None
                assert member.process.poll() is None, f"etcd ended: {member.log.read_text()[-2000:]}"
                assert time.monotonic() < deadline, f"etcd is not ready: {member.log.read_text()[-2000:]}"
                time.sleep(0.05)

    def kill(self, member: Member) -> None:
        """kill -9."""
        assert member.process is not None
        member.process.kill()
        member.process.wait()
        member.process = None

    def leader(self) -> Member:
        """Return the member that leads etcd."""
        deadline = time.monotonic() + READY_S_MAX
        while time.monotonic() < deadline:
            for member in self._running():
                with contextlib.suppress(OSError, http.client.HTTPException):
                    status = self.call("/v3/maintenance/status", {}, member)
                    if status.get("leader") == status["header"]["member_id"]:
                        return member
            time.sleep(0.05)
        raise AssertionError("etcd has no leader")

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Let no member do anything for a while: SIGSTOP, and SIGCONT at the end."""
        try:
            for member in self._running():
                _signal(member, signal.SIGSTOP)
            for member in self._running():
                assert member.process is not None
                os.waitid(os.P_PID, member.process.pid, os.WSTOPPED)  # on a busy machine its threads run on for a while
            yield
        finally:
            for member in self._running():
                _signal(member, signal.SIGCONT)

    def enable_authentication(self, user: str, password: str, prefix: str) -> None:
        """Let only ``user`` use what is below ``/prefix/``, and make up a root that nobody is."""
        root = secrets.token_hex()
        whole = {"key": _b64(f"/{prefix}/"), "range_end": _b64(f"/{prefix}0"), "permType": "READWRITE"}
        for path, body in (
            ("user/add", {"name": "root", "password": root}),
            ("role/add", {"name": "root"}),
            ("user/grant", {"user": "root", "role": "root"}),
            ("user/add", {"name": user, "password": password}),
            ("role/add", {"name": "exchange"}),
            ("role/grant", {"name": "exchange", "perm": whole}),
            ("user/grant", {"user": user, "role": "exchange"}),
            ("enable", {}),
        ):
            answer = self.call(f"/v3/auth/{path}", body)
            assert "error" not in answer, answer

    def call(self, path: str, body: dict[str, Any], member: Member | None = None) -> Any:
        """Ask etcd's gateway, and return its answer."""
        return json.loads(self._request("POST", path, json.dumps(body), member or self._running()[0]))

    def close(self) -> None:
        for member in self._running():
            self.kill(member)

    def _running(self) -> list[Member]:
        return [member for member in self.members if member.process is not None]

    def _spawn(self, member: Member) -> None:
        scheme = "https" if self._context else "http"
        client, peer = f"{scheme}://127.0.0.1:{member.client_port}", f"http://127.0.0.1:{member.peer_port}"
        peers = ",".join([f"{other.name}=http://127.0.0.1:{other.peer_port}" for other in self.members])
        command = ["etcd", "--name", member.name, "--data-dir", str(member.folder), "--log-level", "warn"]
        command += ["--logger", "zap", "--log-outputs", "stderr"]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", peers]
        if self._context:
            command += ["--cert-file", str(self.folder / "server.crt"), "--key-file", str(self.folder / "server.key")]
            command += ["--client-cert-auth", "--trusted-ca-file", str(self.folder / "ca.crt")]
        command += self._options
        if shutil.which("setpriv"):
            command = ["setpriv", "--pdeathsig", "KILL", *command]  # no etcd outlives tests that were killed
        with member.log.open("ab") as log:
            member.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _healthy(self, member: Member) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            return json.loads(self._request("GET", "/health", None, member)) == {"health": "true"}
        return False

    def _request(self, method: str, path: str, body: str | None, member: Member) -> bytes:
        port = member.client_port
        connection: http.client.HTTPConnection
        if self._context:
            connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=self._context)
        else:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.closing(connection):
            connection.request(method, path, body)
            return connection.getresponse().read()


def make_certificates(folder: Path) -> None:
    """Make ``ca``, ``server`` (127.0.0.1), ``client`` and a ``foreign`` authority, each ``.crt`` and ``.key``."""
    usage = "extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=IP:127.0.0.1\nkeyUsage=critical,digitalSignature\n"
    ids = "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    (folder / "leaf.cnf").write_text(f"basicConstraints=critical,CA:FALSE\n{usage}{ids}")
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    sign = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "leaf.cnf"]
    for name in ("ca", "foreign"):
        own = ["-subj", f"/CN={name}", "-days", "2", "-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        _openssl(folder, "req", "-x509", *new, *own, "-keyout", f"{name}.key", "-out", f"{name}.crt")
    for name in ("server", "client"):  # etcd's gateway takes no passwords from clients that have a common name
        _openssl(folder, "req", *new, "-subj", f"/O={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        _openssl(folder, "x509", "-req", "-in", f"{name}.csr", *sign, "-out", f"{name}.crt")


@contextlib.contextmanager
def etcd_cluster(
    folder: Path, *, size: int = 3, tls: bool = False, options: Sequence[str] = ()
) -> Iterator[EtcdCluster]:
    """Start an etcd; stop all of its members at the end."""
    cluster = EtcdCluster(folder, size=size, tls=tls, options=options)
    try:
        yield cluster
    finally:
        cluster.close()


def _signal(member: Member, number: signal.Signals) -> None:
    assert member.process is not None
    member.process.send_signal(number)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _openssl(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
