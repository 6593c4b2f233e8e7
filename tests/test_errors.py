"""Every exception of the project reaches its caller whole: copied, pickled, from another thread or another process."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openoutcry.actors
import openoutcry.transport
import pytest
from openoutcry.actors import ExchangeNode, MarketRules, OpenOutcryError, OrderRejected, RequestTimeout, as_json
from openoutcry.actors.book.commands import REJECTED
from openoutcry.actors.market.views import OrderResult
from openoutcry.actors.testing import ProcessExchange
from openoutcry.transport.errors import ConfigurationError, Unavailable, copied

MARKET = "BTC-USD"
TEXTS = ("it was refused: 5 is above 4", "", "ü\n\x1b[2J 'quoted' %s {0}", "a lone surrogate: \udc80", "x" * 10_000)
RESULT = OrderResult(
    MARKET,
    7,
    ((REJECTED, 7, 5, 0, "unknown_order"),),
    duplicate=False,
    state_sequence=7,
    state_hash="ab",
    rules=MarketRules(),
    cancel_all=False,
)


def exceptions() -> list[type[BaseException]]:
    """Every exception that a module of the project defines, the private ones too."""
    found = set()
    for package in (openoutcry.transport, openoutcry.actors):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                for value in vars(importlib.import_module(module.name)).values():
                    if isinstance(value, type) and issubclass(value, BaseException):
                        found.add(value)
    return sorted([kind for kind in found if kind.__module__.startswith("openoutcry.")], key=str)


def made(kind: type[BaseException], text: str) -> BaseException:
    """An instance, by what its class's arguments are called."""
    values: dict[str, Any] = {"path": Path("/x"), "byte": 1, "sequence": 2, "done": None, "result": RESULT}
    values |= {"slips": [text, "and another"], "code": "a_code", "market": MARKET}
    if kind.__init__ is Exception.__init__:
        return kind(text)
    parameters = list(inspect.signature(kind).parameters.values())
    given = {each.name: values.get(each.name, text) for each in parameters if each.name not in ("final", "args")}
    positional = [given.pop(each.name) for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    return kind(*positional, **given)


def clones(error: BaseException) -> Iterator[BaseException]:
    yield copy.copy(error)
    yield copy.deepcopy(error)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.loads(pickle.dumps(error, protocol))
    if isinstance(error, OpenOutcryError):
        yield copied(error)
        yield copied(pickle.loads(pickle.dumps(error)))


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:10]))
@pytest.mark.parametrize("kind", exceptions(), ids=lambda kind: kind.__name__)
def test_every_exception_survives_copy_and_pickle_with_its_text_code_and_attributes(
    kind: type[BaseException], text: str
) -> None:
    error = made(kind, text)
    if isinstance(error, OpenOutcryError):
        assert str(error) == error.message
    error.extra = ("kept", 1)  # type: ignore[attr-defined] # what an application hangs on it
    for clone in clones(error):
        assert clone is not error
        assert type(clone) is kind
        assert (str(clone), repr(clone), clone.args) == (str(error), repr(error), error.args)
        assert as_json_of(clone) == as_json_of(error)


def as_json_of(error: BaseException) -> dict[str, Any]:
    """All its attributes; a result, which is equal to no other, as JSON."""
    return {key: as_json(value) if key == "result" else value for key, value in vars(error).items()}


def test_an_exception_of_an_application_that_has_other_arguments_survives_too() -> None:
    class Mine(Unavailable):
        def __init__(self, market: str, *, seconds: float) -> None:
            super().__init__(f"{market} is away for {seconds:g} s", code="away")
            self.seconds = seconds

    for clone in (copied(Mine("X", seconds=2.0)), copy.copy(Mine("X", seconds=2.0))):
        assert isinstance(clone, Mine)
        assert (str(clone), clone.code, clone.seconds) == ("X is away for 2 s", "away", 2.0)


def test_another_text_leaves_everything_else_as_it_was() -> None:
    error = ConfigurationError("first", code="rules_mismatch", market=MARKET)
    other = copied(error, "second")
    assert (str(error), str(other), other.message, other.args) == ("first", "second", "second", ("second",))
    assert (other.code, other.market) == (error.code, error.market)
    assert str(copied(RequestTimeout("first"), "second")) == "second"


def raises(_node: ExchangeNode, error: Exception) -> None:
    raise error


def test_every_exception_comes_out_of_a_node_s_process_as_it_was_raised(
    exchange_processes: Callable[..., ProcessExchange],
) -> None:
    net = exchange_processes(nodes=1)
    for kind in exceptions():
        error = made(kind, "its text")
        with pytest.raises(kind) as caught:
            net[0].run(raises, error)
        assert (str(caught.value), caught.value.args) == (str(error), error.args)
        assert as_json_of(caught.value) == as_json_of(error)
    with pytest.raises(OrderRejected) as rejected:
        net[0].cancel_order(MARKET, 999_999)
    assert rejected.value.code == "unknown_order"
    assert rejected.value.result.code == "unknown_order"
    assert str(rejected.value) == rejected.value.message != ""


def test_a_time_out_says_what_it_is_in_the_caller_s_hands(
    exchange_processes: Callable[..., ProcessExchange],
) -> None:
    net = exchange_processes(nodes=2)
    leader, other = sorted(net, key=lambda node: str(node.status().markets[MARKET].role) != "leading")
    leader.pause()
    try:
        with pytest.raises(RequestTimeout) as caught:
            other.submit_order(MARKET, "buy", "1", "1", timeout=0.5)
    finally:
        leader.resume()
    assert str(caught.value) == caught.value.message
    assert "same client order id" in str(caught.value)
