"""The test kit for programs built on Open Outcry: probes, a fake clock, exchanges with faults, and their fixtures.

Owns what it starts (probes; nodes, their rendezvous and their files) and stops exactly that. Never touches another
actor, never calls ``ActorRegistry.stop_all()``, and imports neither Pykka nor nng before a test asks for them: pytest
loads this module as the plugin ``openoutcry`` in every run. What it offers is defined in the modules of ``testkit``.

On slow machines set ``OPENOUTCRY_TEST_TIME_FACTOR`` (say, to 5): it multiplies every wait for something to happen.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from .testkit.clock import FakeClock
from .testkit.exchanges import Exchange, ProcessExchange
from .testkit.probes import ActorProbe
from .testkit.waits import TIME_FACTOR_VARIABLE, eventually

if TYPE_CHECKING:
    from .book.rules import MarketRules

_ExchangeT = TypeVar("_ExchangeT", Exchange, ProcessExchange)


@pytest.fixture
def actor_probe() -> Iterator[ActorProbe]:
    """A started :class:`ActorProbe`; ``actor_probe.another()`` makes more. All are stopped after the test."""
    with ActorProbe() as probe:
        yield probe


@pytest.fixture
def fake_clock() -> Iterator[FakeClock]:
    """A :class:`FakeClock` for the timers of every :class:`~.kit.actor.Actor` that is started in the test."""
    from .kit.actor import use_clock  # noqa: PLC0415

    clock = FakeClock()
    use_clock(clock)
    yield clock
    use_clock(None)


def _factory(kind: type[_ExchangeT], folder: Path, name: str) -> Iterator[Callable[..., _ExchangeT]]:
    """Give a factory of exchanges of a kind, each in a folder of its own; close them all in the end."""
    numbers = itertools.count()
    with contextlib.ExitStack() as started:

        def start(
            nodes: int = 2, markets: Mapping[str, MarketRules] | Sequence[str] = ("BTC-USD",), **node_options: Any
        ) -> _ExchangeT:
            own = folder / f"{name}-{next(numbers)}"
            return started.enter_context(kind(own, nodes=nodes, markets=markets, **node_options))

        yield start


@pytest.fixture
def exchange(tmp_path: Path) -> Iterator[Callable[..., Exchange]]:
    """A factory of exchanges: ``exchange(nodes=3, markets=["BTC-USD"], **node_options)`` returns an :class:`Exchange`.

    Each call makes an exchange of its own, with its files below ``tmp_path``; all are closed after the test.
    """
    yield from _factory(Exchange, tmp_path, "exchange")


@pytest.fixture
def exchange_processes(tmp_path: Path) -> Iterator[Callable[..., ProcessExchange]]:
    """A factory as ``exchange``, of exchanges whose nodes are processes: see :class:`ProcessExchange`.

    ``net[0].kill()`` is ``kill -9``; ``net[0].run(function, …)`` runs ``function(node, …)`` there.
    """
    yield from _factory(ProcessExchange, tmp_path, "processes")


__all__ = [
    "TIME_FACTOR_VARIABLE",
    "ActorProbe",
    "Exchange",
    "FakeClock",
    "ProcessExchange",
    "actor_probe",
    "eventually",
    "exchange",
    "exchange_processes",
    "fake_clock",
]
