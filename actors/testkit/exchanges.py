"""Whole exchanges for a test: nodes here or in processes, their shared services, and faults between them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar, cast

from ...transport.numerals import written
from .waits import POLL_S, scaled

if TYPE_CHECKING:
    from ...transport.certificates import Authority
    from ..book.rules import MarketRules
    from ..node import ExchangeNode
    from .processes import NodeProcess
    from .proxy import Proxy

_START_S: Final = 15.0
"""Seconds for the nodes of an exchange to become ready and in sync."""

_T = TypeVar("_T")
_NodeT = TypeVar("_NodeT", bound="ExchangeNode | NodeProcess")


class _AnyExchange(Generic[_NodeT]):
    """Nodes of one exchange, started, ready and in sync, with their shared services."""

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 2,
        markets: Mapping[str, MarketRules] | Sequence[str] = ("BTC-USD",),
        faults: bool = False,
        identities: bool = False,
        **node_options: Any,
    ) -> None:
        """Start ``nodes`` nodes.

        Args:
            folder: where all files are: a data folder for each node, and the SQLite coordinator that they share.
            nodes: how many.
            markets: names with their rules, or just names: markets with default rules. May be empty.
            faults: put a proxy before each node, for :meth:`cut`, :meth:`drop` and :meth:`delay`.
            identities: give each node an identity of :attr:`authority`: links are TLS, and ``node-0`` may act for the
                accounts ``node-0`` and ``node-0/…`` only. Not together with ``faults``: a proxy cannot read TLS.
            node_options: for every :class:`~openoutcry.actors.node.ExchangeNode`.
        """
        # Imported here, so that a run without an exchange pays nothing.
        from ...transport.forks import guard  # noqa: PLC0415
        from ...transport.rendezvous import Rendezvous  # noqa: PLC0415
        from ..book.rules import MarketRules  # noqa: PLC0415

        guard(self)
        assert nodes >= 1, "an exchange has at least one node"
        assert not (faults and identities), "faults and identities exclude each other: a proxy cannot read TLS"
        self._folder = folder
        self._markets = dict(markets if isinstance(markets, Mapping) else {name: MarketRules() for name in markets})
        self._node_options = node_options
        self._proxies: list[Proxy] | None = [] if faults else None
        self.nodes: list[_NodeT] = []
        """The nodes, in order; :meth:`restart` replaces one in place."""
        folder.mkdir(parents=True, exist_ok=True)
        self.authority: Authority | None = None
        """The authority of the nodes' identities, if they have any."""
        if identities:
            from ...transport.certificates import Authority, Identity  # noqa: PLC0415

            self.authority = Authority.create(folder / "authority")
            identity = Identity(self.authority.issue("rendezvous"))
            self._rendezvous = Rendezvous("tls+tcp://127.0.0.1:0", identity=identity)
        else:
            self._rendezvous = Rendezvous("tcp://127.0.0.1:0")
        try:
            self._rendezvous.start()
            for index in range(nodes):
                self.nodes.append(self._start_node(index))
            self.wait_in_sync()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def __getitem__(self, index: int) -> _NodeT:
        return self.nodes[index]

    def __iter__(self) -> Iterator[_NodeT]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    def wait_same_sequence(self, market: str, *, timeout: float = 10.0) -> int:
        """Wait until all nodes have applied the same sequence number of ``market``, and return it.

        Call it when the orders of the test are answered: while more are in flight, "the same" does not last.
        ``timeout`` is in seconds.

        Raises:
            AssertionError: they did not; the message shows how far each node is.
        """
        __tracebackhide__ = True
        deadline_s = time.monotonic() + scaled(timeout)
        while True:
            first, *others = sequences = [_outcome(node.sequence, market) for node in self.nodes]
            if isinstance(first, int) and all(other == first for other in others):
                return first
            if time.monotonic() >= deadline_s:
                raise self._failure(
                    f"{market}: no common sequence number within {written(scaled(timeout))} s", sequences
                )
            time.sleep(POLL_S)

    def assert_same_hash(self, market: str, *, timeout: float = 10.0) -> str:
        """Wait as :meth:`wait_same_sequence` does, check that all books are equal, and return their state hash.

        Raises:
            AssertionError: the books differ at the same sequence number, or there is none in time.
        """
        __tracebackhide__ = True
        sequence = self.wait_same_sequence(market, timeout=timeout)
        first, *others = positions = [_outcome(node.position, market) for node in self.nodes]
        if isinstance(first, Exception) or any(other != first for other in others):
            raise self._failure(f"{market}: (sequence, state hash) differ, after all had {sequence}", positions)
        return str(first[1])

    @property
    def directory_address(self) -> str:
        """The address of the rendezvous that the nodes share."""
        return self._rendezvous.address

    def cut(self, one: int, other: int) -> None:
        """Cut the link between two nodes, as a firewall that resets connections would; both notice at once."""
        self._proxy(one).refuse(self.nodes[other].name)
        self._proxy(other).refuse(self.nodes[one].name)

    def drop(self, source: int, target: int) -> None:
        """Discard everything that ``source`` sends to ``target``, without an error: silence, one way."""
        self._proxy(target).swallow([self.nodes[source].name])

    def delay(self, source: int, target: int, seconds: float) -> None:
        """Delay everything that ``source`` sends to ``target`` by ``seconds``."""
        self._proxy(target).delays_s[self.nodes[source].name] = seconds

    def heal(self) -> None:
        """Undo every :meth:`cut`, :meth:`drop` and :meth:`delay`; the nodes find each other again."""
        for index in range(len(self.nodes)):
            self._proxy(index).heal()

    def _proxy(self, index: int) -> Proxy:
        assert self._proxies is not None, "to inject faults, start the exchange with faults=True"
        return self._proxies[index]

    def add(self, **node_options: Any) -> _NodeT:
        """Start one more node and return it at once, before it is ready; it counts in all later waits."""
        self.nodes.append(self._start_node(len(self.nodes), **node_options))
        return self.nodes[-1]

    def restart(self, index: int, *, wait: bool = True) -> _NodeT:
        """Close node ``index`` if it is open, and start it again on its data folder.

        Return the new node once all nodes are in sync, or at once without ``wait`` (if others are closed too).
        """
        self.nodes[index].close()
        self.nodes[index] = self._start_node(index)
        if wait:
            self.wait_in_sync()
        return self.nodes[index]

    def close(self) -> None:
        """Close all nodes, the last one first, then the rendezvous, even if one fails. Idempotent."""
        with contextlib.ExitStack() as closing:
            closing.callback(self._rendezvous.close)
            for proxy in self._proxies or ():
                closing.callback(proxy.close)
            for node in self.nodes:
                closing.callback(node.close)

    def make_node(self, name: str, options: dict[str, Any]) -> _NodeT:
        """Start a node: for a subclass that has nodes of its own kind."""
        raise NotImplementedError

    def _start_node(self, index: int, **more: Any) -> _NodeT:
        name = f"node-{index}"
        options = {
            "markets": self._markets,
            "data_dir": self._folder / name,
            "directory": [self._rendezvous.address],
            "coordinator": self._folder / "coordinator.sqlite",
            **self._node_options,
            **more,
        }
        if self.authority is not None and "identity" not in options:
            path = self._folder / f"{name}.pem"
            if not path.exists():
                self.authority.issue_file(path, name)
            options["identity"] = path
        if self._proxies is None:
            return self.make_node(name, options)
        from .proxy import Proxy  # noqa: PLC0415

        if index == len(self._proxies):
            self._proxies.append(Proxy())
        proxy = self._proxies[index]
        node: Any = self.make_node(name, {**options, "advertise": proxy.address})
        host, _, port = node.listen_address.removeprefix("tcp://").rpartition(":")
        proxy.target = (host, int(port))
        return cast("_NodeT", node)

    def wait_in_sync(self) -> None:
        """Wait until all nodes can trade in every market, and hold it in sync."""
        for node in self.nodes:
            node.wait_ready(timeout=scaled(_START_S))
        for market in self._markets:
            for node in self.nodes:
                node.wait_in_sync(market, len(self.nodes), scaled(_START_S))

    def _failure(self, what: str, found: Sequence[object]) -> AssertionError:
        return AssertionError("\n".join([what, *(f"    node-{index}  {value}" for index, value in enumerate(found))]))


class Exchange(_AnyExchange["ExchangeNode"]):
    """Nodes in this process; made by the fixture ``exchange``.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Exchange(Path(folder), nodes=2) as net:
    ...     order = net[0].submit_order("BTC-USD", "buy", "99", "1")
    ...     net.wait_same_sequence("BTC-USD") == order.sequence
    ...     net.assert_same_hash("BTC-USD") == order.state_hash
    True
    True
    """

    def make_node(self, name: str, options: dict[str, Any]) -> ExchangeNode:
        from ..node import ExchangeNode  # noqa: PLC0415

        return ExchangeNode(name, **options)


class ProcessExchange(_AnyExchange["NodeProcess"]):
    """Nodes in processes of their own, which can be killed; made by the fixture ``exchange_processes``.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, ProcessExchange(Path(folder), nodes=2) as net:
    ...     order = net[0].submit_order("BTC-USD", "buy", "99", "1")
    ...     net[0].kill()
    ...     _ = net.restart(0)
    ...     _ = net.assert_same_hash("BTC-USD")
    ...     net[0].get_order("BTC-USD", order.order_id).price
    Decimal('99.00')
    """

    def make_node(self, name: str, options: dict[str, Any]) -> NodeProcess:
        from .processes import NodeProcess  # noqa: PLC0415

        return NodeProcess(name, options)


def _outcome(call: Callable[[str], _T], market: str) -> _T | Exception:
    """Return the result or the exception of ``call``: a node that is not ready raises; a failure should list that."""
    from ...transport.errors import OpenOutcryError  # noqa: PLC0415

    try:
        return call(market)
    except OpenOutcryError as error:
        return error
