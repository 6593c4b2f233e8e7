"""nng sockets as this project uses them: options that are read back, ordered closing, our errors.

Owns every pynng socket of the stream links between nodes: one :class:`Inbox` (``Pull0``) a node and one
:class:`Outlet` (``Push0``) a remote peer. Never decodes a frame and never decides what a frame means.

Rules that keep nng safe (each was a crash or a hang once): a socket has short time-outs; the one thread that
receives is stopped by a flag and joined before the socket is closed; callbacks run on nng's threads and only
hand over; ``recv_max_size`` is set before dial or listen, and read back; a ``Push0`` has one pipe in its life, and is
left alone once that is gone (see :meth:`Outlet._pipe_removed`); what has been dialled is closed by
:func:`close_dialled`; no thread receives any more when the process ends (see :func:`close_at_exit`), and nng is never
torn down (see :func:`_leave_nng`).
"""

from __future__ import annotations

import atexit
import contextlib
import ipaddress
import os
import queue
import re
import stat
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from socket import create_connection
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import pynng

from .codec import FRAME_SIZE_MAX
from .errors import Closed, ConfigurationError, LinkBroken, TransportError, WouldBlock
from .forks import check_nng, guard, guard_nng
from .log import get_logger
from .numerals import port_of

if TYPE_CHECKING:
    from .certificates import Identity

logger = get_logger(__name__)


_HEADER_ALLOWANCE = 64
_POLL_MS = 100
_SEND_MS = 20
_NEVER_MS: Final = 1_000_000_000
_RETIRED_S: Final = 2.0
"""Seconds to keep a closed socket that may still be connecting: longer than ``reconnect_ms`` and a look-up."""
_PROBE_S = 0.1
_AT_HAND_S: Final = 50e-6
"""Seconds within which a frame is received that was there already."""
_TCP = ("tcp", "tls+tcp")
SCHEMES: Final = ("tcp", "tls+tcp", "ipc", "inproc")
"""The transports of nng that an address may name."""

_SocketT = TypeVar("_SocketT", bound=pynng.Socket)


_PEER_NAME: Final = pynng.nng.StringOption("tls-peer-cn")
_WILDCARD: Final = re.compile(r"[a-z0-9+]+://(0\.0\.0\.0|\[::\]|\*|):")


_opened: weakref.WeakSet[pynng.Socket] = weakref.WeakSet()
"""Every socket of this project, as long as Python holds it."""
_pids: Final[set[int]] = set()
"""Ids of this process, once it has opened a socket, and of its parents by fork, whose sockets it must not touch."""


def open_socket(
    kind: type[_SocketT],
    *,
    recv_timeout_ms: int = _POLL_MS,
    send_timeout_ms: int = _POLL_MS,
    frame_size_max: int = FRAME_SIZE_MAX,
    reconnect_ms: tuple[int, int] = (10, 500),
    tls: pynng.TLSConfig | None = None,
) -> _SocketT:
    """Return a new socket of ``kind`` with every option set and read back, and with ``tls``, for addresses of TLS.

    Raises:
        TransportError: an option did not take (pynng swallows some failures).
        ConfigurationError: this process was forked from one that uses nng (code ``forked``).
    """
    check_nng()
    socket: _SocketT = kind()
    _opened.add(socket)
    _pids.add(os.getpid())
    if (ends_nng := getattr(pynng.nng, "_pynng_atexit", None)) is not None:
        atexit.unregister(ends_nng)  # see `_leave_nng`
    guard_nng(socket)
    try:
        wanted = {
            "recv_timeout": recv_timeout_ms,
            "send_timeout": send_timeout_ms,
            "recv_max_size": frame_size_max + _HEADER_ALLOWANCE,
            "reconnect_time_min": reconnect_ms[0],
            "reconnect_time_max": reconnect_ms[1],
        }
        for option, value in wanted.items():
            setattr(socket, option, value)
            if (got := getattr(socket, option)) != value:
                raise TransportError(f"nng did not accept {option}={value} on {kind.__name__}: it reads back {got}")
        if tls is not None:
            socket.tls_config = tls
    except BaseException:
        socket.close()
        raise
    return socket


def listen(socket: pynng.Socket, address: str) -> str:
    """Listen at ``address`` and return it with the port filled in where the caller asked for port 0.

    Raises:
        ConfigurationError: the address is in use (code ``address_in_use``), malformed, none of this machine, or an
            ``ipc`` path that holds an ordinary file (nng would delete it).
    """
    if address.startswith("ipc://"):
        path = address.removeprefix("ipc://")
        if os.path.lexists(path) and not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ConfigurationError(
                f"cannot listen at {address}: {path} exists and is not a socket; choose another path"
            )
    try:
        listener = socket.listen(address)
    except pynng.AddressInUse as error:
        raise ConfigurationError(
            f"cannot listen at {address}: another socket does; is its process still ending?", code="address_in_use"
        ) from error
    except (pynng.NNGException, ValueError) as error:
        raise ConfigurationError(f"cannot listen at {address}: {error}; is it an address of this machine?") from error
    return str(listener.url)


def is_wildcard(address: str) -> bool:
    """Return whether ``address`` is every address of this machine: one to listen at, but none to dial."""
    return _WILDCARD.match(address) is not None


def checked_address(address: str, *, to_listen: bool = False) -> str:
    """Return ``address`` if others can be told to dial it, or, with ``to_listen``, if it can be listened at.

    Raises:
        ConfigurationError: it names no transport of nng, or no port; or port 0, to dial.
    """
    scheme, separator, rest = address.partition("://")
    good = bool(separator and rest and scheme in SCHEMES)
    if good and scheme in _TCP:
        host, _, port = rest.rpartition(":")
        number = port_of(port)
        good = number is not None and (to_listen or bool(host and number))
    if not good:
        what = "to listen at" if to_listen else "to dial"
        raise ConfigurationError(f"{address!r:.255} is not an address {what}; expected tcp://HOST:PORT or ipc:///PATH")
    return address


def dial(socket: pynng.Socket, address: str) -> None:
    """Connect to ``address`` in the background, again and again, until the socket is closed.

    Raises:
        ConfigurationError: the address is malformed.
    """
    try:
        socket.dial(address, block=False)
    except (pynng.NNGException, ValueError) as error:
        raise ConfigurationError(f"cannot dial {address}: {error}; expected tcp://HOST:PORT or ipc:///PATH") from error


def certified_name(pipe: pynng.Pipe) -> str:
    """Return the common name in the certificate of the other end of ``pipe``.

    Empty without TLS, after the pipe has closed, and if nng cannot read a name: there is none, or it is too long.
    """
    try:
        return str(_PEER_NAME.__get__(pipe, type(pipe)))
    except (pynng.NNGException, RuntimeError):  # cffi's, of nng's null pointer
        return ""


def refuses(address: str) -> bool:
    """Return whether the host of ``address`` answers that nothing listens there: the process there has ended.

    False if that is uncertain: no answer within 0.1 s, a transport other than TCP, a host given by name (looking it
    up may take long), or a malformed address.
    """
    scheme, _, rest = address.partition("://")
    host, _, port = rest.rpartition(":")
    host = host.strip("[]")
    try:
        checked_address(address)
        ipaddress.ip_address(host)
    except (ConfigurationError, ValueError):
        return False
    if scheme not in _TCP:
        return False
    for _ in range(2):  # a process that is just ending takes the first connection with it
        try:
            with create_connection((host, int(port)), timeout=_PROBE_S) as probe:
                if probe.recv(1):
                    return False
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            return False
        except OSError:
            continue
    return False


_retired: deque[tuple[float, pynng.Socket]] = deque()
"""Sockets to be closed, and the time since when."""


def close_dialled(socket: pynng.Socket) -> None:
    """Close a dialled socket: its connections at once, and the rest when nng can do it safely.

    For each attempt to connect, nng resolves the address on a thread of its own, even a number. If a close frees the
    attempt just as this ends, nng aborts the process (nanomsg/nng#2110). So a socket that may be connecting makes no
    further attempts. It is closed when a later one is opened or closed, or by the kernel with the process.
    """
    _close_retired()
    dialers = socket.dialers
    for dialer in dialers:
        _stop_dialling(dialer.dialer)
    connected = {pynng.lib.nng_dialer_id(pynng.lib.nng_pipe_dialer(pipe.pipe)) for pipe in socket.pipes}
    if connected.issuperset([dialer.id for dialer in dialers]):
        socket.close()
        return
    socket.add_pre_pipe_connect_cb(_close_pipe)  # an attempt that is under way may succeed yet
    for pipe in socket.pipes:
        _close_pipe(pipe)
    _retired.append((time.monotonic(), socket))


def _stop_dialling(dialer: Any) -> None:
    """Stop nng from connecting again after its next attempt, or after the current connection ends."""
    pynng.lib.nng_dialer_set_ms(dialer, b"reconnect-time-min", _NEVER_MS)  # it waits for a random part of that


def _close_pipe(pipe: pynng.Pipe) -> None:
    with contextlib.suppress(pynng.NNGException):  # its peer has gone already
        pipe.close()


def _close_retired() -> None:
    while _retired and time.monotonic() - _retired[0][0] > _RETIRED_S:
        with contextlib.suppress(IndexError):  # another thread was quicker
            _retired.popleft()[1].close()


@contextlib.contextmanager
def woken(socket: pynng.Socket, kind: type[pynng.Socket]) -> Iterator[None]:
    """Wake the one thread that receives from ``socket``, so that the block can join it at once.

    Otherwise it would notice its stop flag only at its next timeout. ``kind`` is the class that sends to that socket.
    """
    address = f"inproc://{uuid.uuid4()}"
    waker = kind(send_timeout=_POLL_MS)
    try:
        with contextlib.suppress(pynng.NNGException):  # the time-out passes all the same
            socket.listen(address)
            waker.dial(address, block=True)
            waker.send(b"wake")
        yield
    finally:
        waker.close()


class Closable(Protocol):
    """An object that :func:`close_at_exit` can close."""

    def close(self) -> None:
        """Close it. Idempotent."""


_readers: weakref.WeakSet[Closable] = weakref.WeakSet()


def close_at_exit(reader: Closable) -> None:
    """Close what has a receiving thread before the interpreter ends: a daemon thread inside nng aborts the process."""
    _readers.add(reader)


@atexit.register
def _leave_nng() -> None:
    """Stop our readers, and let the process end without ``nng_fini``; this replaces pynng's exit handler.

    ``nng_fini`` frees the locks that the end of a connection still needs. A connection in its handshake, ours to a
    frozen peer or a stranger's to one of our listeners, ends later than ``nng_close`` returns: nng then aborts the
    process ("panic: pthread_mutex_lock: Invalid argument"; one exit in two, with a listener that never accepts).
    The kernel frees all of it anyway.

    While the interpreter ends, the remaining sockets must not call Python, and Python must not close them: a thread of
    nng inside a callback would never return, and a close would wait for it. So afterwards no pipe in this process has a
    callback, not even those of a host program, and ``__del__`` does not close our sockets.
    """
    for reader in list(_readers):
        reader.close()
    newest = 0
    if os.getpid() in _pids:
        with pynng.Pair0() as last:
            newest = last.socket.id
    for number in range(1, newest):  # nng numbers its sockets from 1
        socket = pynng.ffi.new("nng_socket *", {"id": number})
        for event in (pynng.lib.NNG_PIPE_EV_ADD_PRE, pynng.lib.NNG_PIPE_EV_ADD_POST, pynng.lib.NNG_PIPE_EV_REM_POST):
            pynng.lib.nng_pipe_notify(socket[0], event, pynng.ffi.NULL, pynng.ffi.NULL)
    for opened in list(_opened):
        opened._socket = pynng.ffi.new("nng_socket *")  # number 0 is no socket: `close` does nothing


SILENT_S: Final = 60.0
"""Seconds of silence after which an inbox closes a TLS connection: a living node sends hellos all the time."""
_TURN_S: Final = 1.0


class SilentPipes:
    """Closes the pipes of a socket over which nothing arrives for ``silent_s``. Used by one thread only.

    If the other end closes a TLS connection very early, or while frames are unread, nng may never report it, and
    never closes its file.
    """

    def __init__(self, socket: pynng.Socket, silent_s: float) -> None:
        """Call this before the socket listens."""
        self._silent_s = silent_s
        self._made: queue.SimpleQueue[pynng.Pipe] = queue.SimpleQueue()
        socket.add_post_pipe_connect_cb(self._made.put)
        self._pipes: dict[int, pynng.Pipe] = {}
        self._active: set[int] = set()
        self._turn_s = time.monotonic()
        self._look_at_s = self._turn_s + silent_s

    def received(self, pipe_id: int, pipe: pynng.Pipe) -> None:
        """Note that something arrived over ``pipe``."""
        self._pipes[pipe_id] = pipe
        self._active.add(pipe_id)

    def removed(self, pipe_id: int) -> None:
        """Forget a closed pipe."""
        self._pipes.pop(pipe_id, None)
        self._active.discard(pipe_id)

    def close_silent(self) -> list[int]:
        """Call this before each receive. Return the pipes that turn out to be closed, without a report by nng."""
        now_s = time.monotonic()
        if now_s - self._turn_s > _TURN_S:
            self._look_at_s = now_s + self._silent_s  # the thread was busy: frames may wait unread
        self._turn_s = now_s
        if now_s < self._look_at_s:
            return []
        self._look_at_s = now_s + self._silent_s
        gone = []
        while not self._made.empty():
            pipe = self._made.get()
            self.received(pipe.id, pipe)
        for pipe_id in self._pipes.keys() - self._active:
            try:
                self._pipes.pop(pipe_id).close()
            except pynng.NNGException:
                gone.append(pipe_id)
        self._active.clear()
        return gone


class Inbox:
    """A listening ``Pull0`` with one reader thread: every frame that peers send to this node.

    ``on_frame(pipe_id, frame)`` runs on the reader thread, in order of arrival for each pipe; if it raises, the
    error is counted and logged, and the pipe is closed: the frame is lost, and its sender must notice.
    ``on_pipe_removed(pipe_id)`` runs on the reader thread too, after the last frame of the pipe. With an ``identity``
    only members of the exchange can connect.
    """

    def __init__(
        self,
        address: str,
        *,
        on_frame: Callable[[int, bytes], None],
        on_pipe_removed: Callable[[int], None],
        name: str = "inbox",
        identity: Identity | None = None,
    ) -> None:
        self._on_frame = on_frame
        self._on_pipe_removed = on_pipe_removed
        self._removed: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._socket = open_socket(pynng.Pull0, tls=identity and identity.server())
        guard(self)
        self._certified: dict[int, str] = {}
        self._silent = SilentPipes(self._socket, SILENT_S) if identity is not None else None
        self.frames_refused = 0
        """Frames that broke the protocol, since the start; each closed its sender's link."""
        self.waited = False
        """Whether the current frame arrived while the reader had nothing to do. The reader's."""
        self._socket.add_post_pipe_remove_cb(lambda pipe: self._removed.put(pipe.id))
        try:
            self.address = listen(self._socket, address)
        except BaseException:
            self._socket.close()
            raise
        self._thread = threading.Thread(target=self._read, name=f"{name}-reader", daemon=True)

    def start(self) -> None:
        """Begin to read. Frames that arrived since construction wait in nng's buffers."""
        close_at_exit(self)
        self._thread.start()

    def certified(self, pipe_id: int) -> str:
        """Return the certified name of the sender of the current frame. Call this on the reader thread only."""
        return self._certified[pipe_id]

    def close(self) -> None:
        """Stop the reader, join it, then close the socket. Idempotent."""
        self._stopping.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            with woken(self._socket, pynng.Push0):
                self._thread.join()
        self._socket.close()

    def _read(self) -> None:
        while not self._stopping.is_set():
            while not self._removed.empty():
                removed = self._removed.get()
                self._certified.pop(removed, None)
                if self._silent is not None:
                    self._silent.removed(removed)
                self._on_pipe_removed(removed)
            for gone in self._silent.close_silent() if self._silent is not None else ():
                self._removed.put(gone)
            asked_s = time.monotonic()
            try:
                message = self._socket.recv_msg()
            except pynng.Timeout:
                continue
            except pynng.Closed:
                return
            except pynng.NNGException:
                logger.exception("receive_failed", address=self.address)
                self._stopping.wait(_POLL_MS / 1000)
                continue
            self.waited = time.monotonic() - asked_s > _AT_HAND_S
            if self._stopping.is_set():
                return
            pipe = message.pipe
            if pipe is None:
                continue  # the pipe is already gone: its removal has been, or will be, reported
            pipe_id = pipe.id
            if pipe_id not in self._certified:
                self._certified[pipe_id] = certified_name(pipe)
            if self._silent is not None:
                self._silent.received(pipe_id, pipe)
            try:
                self._on_frame(pipe_id, message.bytes)
            except TransportError as error:
                logger.warning("frame_refused", address=self.address, pipe=pipe.id, error=error)
                self._refuse(pipe)
            except Exception:
                logger.exception("frame_failed", address=self.address, pipe=pipe.id)
                self._refuse(pipe)

    def _refuse(self, pipe: pynng.Pipe) -> None:
        self.frames_refused += 1
        with contextlib.suppress(pynng.NNGException):  # its sender has gone already
            pipe.close()


class Outlet:
    """A ``Push0`` that is dialled to one remote :class:`Inbox` and carries one session of one link.

    Frames arrive in order or not at all, and none is lost silently while the session lives:
    when the pipe closes (``on_broken``), the owner closes this outlet and opens another. Both callbacks run on nng's
    threads and may only hand over. With an ``identity`` it connects only to the node called ``name``.
    """

    def __init__(
        self,
        address: str,
        *,
        on_connected: Callable[[], None],
        on_broken: Callable[[], None],
        name: str = "",
        identity: Identity | None = None,
    ) -> None:
        self._name = name if identity is not None else None
        self._on_connected = on_connected
        self._on_broken = on_broken
        self._made = self._broken = False
        self._sending = threading.Lock()
        _close_retired()
        tls = identity.client(name) if identity is not None else None
        self._socket = open_socket(pynng.Push0, send_timeout_ms=_SEND_MS, tls=tls)
        guard(self)
        self._socket.send_buffer_size = 8
        self._socket.add_pre_pipe_connect_cb(self._pipe_made)
        self._socket.add_post_pipe_connect_cb(self._pipe_connected)
        self._socket.add_post_pipe_remove_cb(self._pipe_removed)
        self._closed = False
        try:
            dial(self._socket, address)
        except BaseException:
            self._socket.close()
            raise

    def _pipe_made(self, pipe: pynng.Pipe) -> None:
        if self._name is not None and certified_name(pipe) != self._name:
            _close_pipe(pipe)  # TLS compares names as DNS does: it takes Alice for alice
            return
        with self._sending:
            wanted = not (self._made or self._closed)
            self._made = True
        if not wanted:
            _close_pipe(pipe)  # before nng puts it on its list, behind one that was freed: see below

    def _pipe_connected(self, _pipe: Any) -> None:
        if not self._broken:  # nng may tell the end of a pipe first
            self._on_connected()

    def _pipe_removed(self, pipe: pynng.Pipe) -> None:
        """Let nng free the pipe once nothing can reach it any more.

        A pipe that ends just as it becomes ready stays on the list of the pipes that are ready (nanomsg/nng#1653), and
        is freed when this returns. The next send, or the next pipe, would write into what was freed.
        """
        self._broken = True
        _stop_dialling(pynng.lib.nng_pipe_dialer(pipe.pipe))
        self._on_broken()
        with self._sending:  # what began before ends first, within _SEND_MS
            pass

    def send(self, frame: bytes, *, timeout_ms: int) -> None:
        """Hand ``frame`` to nng, waiting up to ``timeout_ms`` while the peer is slow.

        Raises:
            Closed: :meth:`close` was called.
            WouldBlock: the peer took nothing for ``timeout_ms``; the frame was not sent.
            LinkBroken: nng reports the link as unusable.
        """
        if self._closed:
            raise Closed("the outlet is closed")
        if len(frame) > FRAME_SIZE_MAX:
            raise TransportError(
                f"a frame of {len(frame)} bytes exceeds the limit of {FRAME_SIZE_MAX}", code="frame_too_large"
            )
        deadline = time.monotonic() + timeout_ms / 1000
        while True:
            try:
                with self._sending:
                    if self._broken:
                        raise LinkBroken("the connection has ended")
                    self._socket.send(frame)
            except pynng.Timeout:
                if time.monotonic() >= deadline:
                    raise WouldBlock(f"the peer took no frame for {timeout_ms} ms") from None
            except pynng.NNGException as error:
                raise LinkBroken(f"the link cannot send: {error}") from error
            else:
                return

    def send_nowait(self, frame: bytes) -> bool:
        """Hand ``frame`` to nng if it takes it at once; return whether it did. Any thread, but not during a close."""
        if len(frame) > FRAME_SIZE_MAX or not self._sending.acquire(blocking=False):
            return False
        try:
            if self._broken:
                return False
            self._socket.send(frame, block=False)
        except pynng.NNGException:
            return False
        finally:
            self._sending.release()
        return True

    def close(self) -> None:
        """Close the socket, while no other thread sends. Idempotent."""
        with self._sending:
            closed, self._closed = self._closed, True
            made = self._made  # a pipe that comes later is refused, and nng attempts another
        if made:  # then it stops connecting
            self._socket.close()
        elif not closed:
            close_dialled(self._socket)
