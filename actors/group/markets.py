"""Markets: opens, creates, joins and closes one node's markets, and retries those that could not be opened."""

from __future__ import annotations

import dataclasses
import functools
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

import pykka

from ...transport.codec import NAME_LENGTH_MAX
from ...transport.coordinator import MarketRecord
from ...transport.errors import (
    ConfigurationError,
    InvalidRequest,
    OpenOutcryError,
    RequestTimeout,
    StorageError,
    Unavailable,
    quoted,
)
from ...transport.files import refusal
from ...transport.log import get_logger
from ...transport.numerals import written
from ...transport.plain import fault_of
from ..book.messages import ProposeRules, Query, Retire
from ..book.meters import MarketMeters
from ..book.rules import MarketRules, difference
from ..book.status import MarketStatus, unanswered
from ..book.storage import forget_log
from ..book.submission import Submissions
from ..kit.backoff import Backoff
from ..kit.node_actor import stop_and_join, tell
from ..market import queries
from ..market.border import checked_market, checked_rules, checked_timeout
from ..market.condition import NOT_OPEN
from ..market.handle import UNANSWERED_MAX, Host, Market
from ..peers.links import Links
from .folder import NodeFolder

if TYPE_CHECKING:
    from ..book.actor import BookActor

logger = get_logger(__name__)

MARKETS_MAX: Final = 1000
"""Most markets of one node: each has two threads, an open file and a journal of 1 MiB at least."""
LOOK_S: Final = 2.0
"""Most seconds to look at an existing market before it is joined."""
OPEN_RETRY_S: Final = 1.0
"""Seconds before opening a market is retried; doubled with each further failure."""
OPEN_RETRY_S_MAX: Final = 60.0
"""Most seconds before opening a market is retried."""
_MARKET_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:/+-]{0,62}[A-Za-z0-9+]|[A-Za-z0-9]")


class StartBook(Protocol):
    """Starts the actor of a market's replica."""

    def __call__(
        self, market: str, *, rules: MarketRules | None, submissions: Submissions, meters: MarketMeters, observer: bool
    ) -> pykka.ActorRef[BookActor]:
        """Return the BookActor, which recovers from disk; raises the reason if it cannot start."""


@dataclasses.dataclass(slots=True)
class _Unopened:
    """A market that could not be opened."""

    rules: MarketRules | None
    observer: bool
    error: OpenOutcryError = dataclasses.field(default_factory=lambda: Unavailable("it was not tried yet"))
    backoff: Backoff = dataclasses.field(default_factory=lambda: Backoff(OPEN_RETRY_S, OPEN_RETRY_S_MAX))


class Markets:
    """Every market of one node, even those that could not be opened because descriptors, space or threads ran out."""

    def __init__(
        self,
        host: Host,
        folder: NodeFolder,
        *,
        meters: dict[str, MarketMeters],
        start_book: StartBook,
        links: Links,
        records: Callable[[], tuple[MarketRecord, ...]],
        actors_only: bool,
    ) -> None:
        """``records`` returns the coordinator's records. With ``actors_only`` the node can have no market."""
        self.books: dict[str, pykka.ActorRef[BookActor]] = {}
        """The actors of the replicas, by market."""
        self.opening = threading.Lock()
        """Held while a market is opened; no market is opened once the node is closed."""
        self._host = host
        self._folder = folder
        self._meters = meters
        self._start_book = start_book
        self._links = links
        self._records = records
        self._actors_only = actors_only
        self._markets: dict[str, Market] = {}
        self._unopened: dict[str, _Unopened] = {}
        self._creating = threading.Lock()

    # -- finding ------------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """The markets that the node has joined."""
        return (*self.books, *self._unopened)

    def find(self, name: str) -> Market:
        """Return a market that the node has joined.

        Raises:
            InvalidRequest: it has not joined it (code ``unknown_market``).
            Closed: the node is closed.
        """
        market = self._markets.get(checked_market(name))
        if self._host.is_closed():
            raise self._host.closed()
        if market is None:
            raise self._unknown(name)
        return market

    def _unknown(self, name: str) -> InvalidRequest:
        known = ", ".join(sorted(self.books)) or "none"
        return InvalidRequest(
            f"node {self._host.requester.name} has not joined market {quoted(name, 80)}; it has: {known}",
            code="unknown_market",
        )

    def _not_open(self, name: str) -> OpenOutcryError:
        """Return the error of a market that is not open: it could not be opened yet, or it is not joined."""
        unopened = self._unopened.get(name)
        if unopened is None:
            return self._unknown(name)
        return Unavailable(
            f"market {name} could not be opened at node {self._host.requester.name} ({unopened.error}); it is tried "
            f"again by itself, the next time in {max(0.0, unopened.backoff.due_s - time.monotonic()):.1f} s",
            code="market_not_open",
        )

    def queues(self, name: str) -> dict[str, tuple[int, int]]:
        """Return the lengths of a market's queues, also while the node closes; see :meth:`Market.queues`."""
        market = self._markets.get(checked_market(name))
        if market is None:
            raise self._unknown(name)
        return market.queues()

    def statuses(self, timeout: float) -> dict[str, MarketStatus]:
        """Return each market's status; one that does not answer in ``timeout`` seconds is ``unresponsive``."""
        deadline_s = time.monotonic() + checked_timeout(timeout)
        query = Query(queries.status)
        asked: dict[str, pykka.Future[Any] | None] = {}
        for market, book in list(self.books.items()):
            try:
                asked[market] = book.ask(query, block=False)
            except pykka.ActorDeadError:
                asked[market] = None
        found = {
            market: unanswered(market, NOT_OPEN, str(unopened.error))
            for market, unopened in list(self._unopened.items())
        }
        for market, answer in asked.items():
            role, why = "stopped", str(self._host.gone(market))
            try:
                if answer is not None:
                    found[market] = answer.get(timeout=max(0.0, deadline_s - time.monotonic()))
                    continue
            except pykka.Timeout:
                role, why = "unresponsive", f"no answer within {written(timeout)} s"
            except pykka.ActorDeadError:
                pass
            found[market] = unanswered(market, role, why)
        return found

    # -- opening ------------------------------------------------------------------------------------------------

    def start(
        self, markets: Mapping[str, MarketRules | None], *, listed: Iterable[str], observe: Collection[str]
    ) -> None:
        """Join, as the node starts, those of ``markets``, those created here before, and those ``listed``.

        Raises:
            StorageError, Unavailable: none of them can be opened.
        """
        for name, rules in (dict.fromkeys(listed) | self._folder.created | dict(markets)).items():
            self._check(name)
            self._try_to_open(name, rules, observer=name in observe)
            self._markets[name].proposed = markets.get(name)
        if self._unopened and not self.books:  # then the other markets are not affected
            raise next(iter(self._unopened.values())).error

    def _open(self, name: str, rules: MarketRules | None, *, observer: bool) -> Market:
        """Join a market; raises the reason if it cannot be opened."""
        self._check(name)
        try:
            market = self._start(name, rules, observer=observer)
        except BaseException:
            if name not in self._unopened:
                del self._markets[name]
            raise
        self._unopened.pop(name, None)
        return market

    def _try_to_open(self, name: str, rules: MarketRules | None, *, observer: bool) -> None:
        """Join a market; if a resource ran out, note that and retry later, without affecting the others.

        ``opening`` is held, unless the node is starting.
        """
        unopened = self._unopened.get(name) or _Unopened(rules, observer)
        try:
            self._start(name, rules, observer=observer)
        except (StorageError, Unavailable, OSError, MemoryError, RuntimeError) as error:
            what = f"market {name} cannot be opened"
            unopened.error = error if isinstance(error, OpenOutcryError) else refusal(error, what)
            retry_s = unopened.backoff.failed(time.monotonic())
            self._unopened[name] = unopened
            node = self._host.node_id
            logger.error("market_not_opened", node=node, market=name, retry_s=retry_s, error=unopened.error)
        else:
            if self._unopened.pop(name, None) is not None:
                logger.info("market_opened", node=self._host.node_id, market=name)

    def _start(self, name: str, rules: MarketRules | None, *, observer: bool) -> Market:
        meters = self._meters.setdefault(name, MarketMeters())
        market = self._markets.get(name)
        if market is None:
            market = Market(name, self._host, meters, functools.partial(self._not_open, name))
            self._markets[name] = market
        submissions = Submissions(UNANSWERED_MAX, meters)
        book = self._start_book(name, rules=rules, submissions=submissions, meters=meters, observer=observer)
        submissions.open(functools.partial(tell, book))
        self.books[name] = book
        market.open(book, submissions)
        self._links.listen(book)
        return market

    def _check(self, name: str) -> None:
        if not isinstance(name, str) or not 1 <= len(name) <= NAME_LENGTH_MAX or name in (".", ".."):
            raise ConfigurationError(f"a market's name has 1 to {NAME_LENGTH_MAX} characters, not {quoted(name, 80)}")
        if fault := fault_of(name):
            raise ConfigurationError(f"{quoted(name, 80)} cannot be a market's name: {fault}")
        if self._actors_only:
            raise ConfigurationError(
                f"node {self._host.requester.name} was started for actors only; to have markets, give it a coordinator "
                "or markets",
                code="no_coordinator",
            )
        self._check_room()

    def _check_room(self) -> None:
        if len(self.books) >= MARKETS_MAX:
            raise ConfigurationError(
                f"node {self._host.requester.name} has {MARKETS_MAX} markets, the most that one can",
                code="too_many_markets",
            )

    def _check_running(self) -> None:
        if self._host.is_closed():
            raise self._host.closed()

    def open_again(self) -> None:
        """Retry the markets that could not be opened, if they are due."""
        for name, unopened in list(self._unopened.items()):
            if unopened.backoff.is_due(time.monotonic()):
                with self.opening:
                    if not self._host.is_closed() and name in self._unopened:
                        self._try_to_open(name, unopened.rules, observer=unopened.observer)

    def join(self, name: str) -> None:
        """Join a market that the coordinator lists, unless it is joined."""
        if name in self.books:
            return
        with self.opening:
            if not self._host.is_closed() and name not in self.books and name not in self._unopened:
                self._check(name)
                self._try_to_open(name, None, observer=False)
                if name in self.books:
                    logger.info("market_joined", node=self._host.node_id, market=name)

    def open_market(self, name: str, rules: MarketRules | None, timeout: float) -> None:
        """Join one more market and wait until it can trade; see :meth:`~..node.ExchangeNode.open_market`."""
        checked_market(name)
        rules = None if rules is None else checked_rules(rules)
        deadline_s = time.monotonic() + checked_timeout(timeout)
        with self.opening:
            self._check_running()
            if name in self.books:
                raise ConfigurationError(
                    f"node {self._host.requester.name} has joined market {name} already", code="market_joined"
                )
            market = self._open(name, rules, observer=False)
            market.proposed = rules
        market.wait_ready_until(deadline_s, timeout)

    # -- creating -----------------------------------------------------------------------------------------------

    def create_market(self, name: str, rules: MarketRules, timeout: float) -> None:
        """Create a market for the whole exchange; see :meth:`~..node.ExchangeNode.create_market`."""
        if type(name) is not str or not _MARKET_NAME.fullmatch(name):
            raise InvalidRequest(
                f"a new market's name has 1 to {NAME_LENGTH_MAX} letters, digits and any of . _ : / + - or blanks "
                f"between, not {quoted(name, 80)}; names that begin with _ are reserved",
                code="invalid_market",
            )
        checked_rules(rules)
        deadline_s = time.monotonic() + checked_timeout(timeout)
        with self._creating:
            if name not in self.books and not self._folder.of_market(name).exists() and name in self._listed():
                existing = self.look_at(name)
                if existing is not None:
                    _refuse_other(name, existing, rules)
        with self.opening:
            self._check_running()
            market = self._create(name, rules)
        market.wait_ready_until(deadline_s, timeout)
        try:
            _refuse_other(name, market.rules, rules)
        except InvalidRequest:
            with self.opening:
                self._folder.remove_created(name)
            raise

    def _create(self, name: str, rules: MarketRules) -> Market:
        """Note a market on disk and join it, or propose its rules if it is joined already."""
        found = self.books.get(name)
        if found is None:
            self._check_room()
        if found is None or not self._markets[name].read(queries.configured):
            self._folder.add_created(name, rules)
        if found is None:
            return self._open(name, rules, observer=False)
        tell(found, ProposeRules(rules))
        return self._markets[name]

    def _listed(self) -> list[str]:
        return [record.market for record in self._records()]

    def look_at(self, name: str) -> MarketRules | None:
        """Return the rules of a market that others hold, from its log: observe it for that time, and keep nothing.

        None: they did not arrive within ``LOOK_S``; perhaps the market lacks one more replica to have a log at all. Or
        this node joins all markets, and has just joined this one: then wait for it like for any other.
        """
        with self.opening:
            self._check_running()
            if name in self.books:
                return None
            market = self._open(name, None, observer=True)
        try:
            market.wait_ready_until(time.monotonic() + LOOK_S, LOOK_S)
            return market.rules
        except RequestTimeout:
            return None
        finally:
            book = self.books.pop(name)
            for found in (self._markets, self._meters):
                found.pop(name, None)
            market.shut(functools.partial(self._unknown, name))
            self._links.ignore(book)
            stop_and_join(book, timeout_s=10)
            forget_log(self._folder.of_market(name))

    # -- closing ------------------------------------------------------------------------------------------------

    def retire(self) -> None:
        """Notify the replicas that the node closes."""
        for book in list(self.books.values()):
            tell(book, Retire())

    def close_subscriptions(self) -> None:
        """End every subscription."""
        for market in list(self._markets.values()):
            for subscription in market.subscriptions:
                subscription.close()

    def stop(self) -> None:
        """Stop the replicas."""
        for book in list(self.books.values()):
            stop_and_join(book, timeout_s=30)


def _refuse_other(name: str, existing: MarketRules, rules: MarketRules) -> None:
    if existing != rules:
        raise InvalidRequest(
            f"market {name} exists with other rules: {difference(existing, rules)}", code="market_exists"
        )
