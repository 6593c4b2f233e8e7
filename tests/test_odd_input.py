"""Whatever is given to a public call or a command is taken, or refused by an error of this project: never another."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from openoutcry.actors import ExchangeNode, MarketRules, OpenOutcryError
from openoutcry.actors.cli import main
from openoutcry.actors.control.server import ControlServer
from signatures import parameters_of

ODD: tuple[Any, ...] = (
    None, 5, -1, 0, 1.5, float("nan"), "", "x", "a\0b", "\udcff", b"x", [], {}, object(), True, 10**400, "x" * 5000,
    (1,), print,
)  # fmt: skip
ODD_WORDS = ("", "x", "-1", "0", "1e400", "nan", "\udcff", "a/../b", "é\u202e", "x" * 3000, "/dev/full", "/", "=", ":",
             "a=b,c", "tcp://", "etcd://", "etcd://:/", "etcd://[", "~", "~nobody-x")  # fmt: skip
GOOD: dict[str, Any] = {
    "market": "M", "side": "buy", "price": "1", "quantity": "1", "order_id": 1, "commands": [], "rules": MarketRules(),
    "reason": "a test", "nodes": 1, "sequence": 0, "service": "s", "address": "tcp://127.0.0.1:1", "name": "Q",
    "ref": None, "accepts": [], "watcher": None, "to": "a", "limit": 1, "subscriber": None,
}  # fmt: skip
LEFT_OUT = {"close", "wait_ready", "wait_actor"}
"""They end the node, or wait as long as they are told."""


def take(what: str, call: Callable[[], object], others: list[str]) -> None:
    try:
        call()
    except OpenOutcryError as error:
        if len(str(error)) < 12:
            others.append(f"{what} says only {error}")
    except Exception as error:
        others.append(f"{what} raises {type(error).__name__}: {error}")


def test_no_public_call_raises_anything_else_whatever_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where a data_dir "x" is made
    others: list[str] = []
    with ExchangeNode("a", markets={"M": MarketRules()}, data_dir=tmp_path / "a", timeout=1) as node:
        node.wait_ready()
        for name, method in inspect.getmembers(ExchangeNode, callable):
            if name.startswith("_") or name in LEFT_OUT:
                continue
            parameters = parameters_of(method)
            for odd in parameters:
                for value in ODD:
                    given = {each.name: GOOD.get(each.name, "x") for each in parameters if each.default is each.empty}
                    if "timeout" in [each.name for each in parameters]:
                        given["timeout"] = 0.05
                    given[odd.name] = value
                    what = f"{name}({odd.name}={value!r:.30})"
                    take(what, lambda name=name, given=given: getattr(node, name)(**given), others)  # type: ignore[misc]
    for name in inspect.signature(ExchangeNode).parameters:
        for value in ODD:
            given = {"name": "b", "data_dir": tmp_path / "b", "markets": {"M": MarketRules()}, name: value}
            take(f"ExchangeNode({name}={value!r:.30})", lambda given=given: ExchangeNode(**given).close(), others)  # type: ignore[misc]
    for name in inspect.signature(MarketRules).parameters:
        for value in ODD:
            take(f"MarketRules({name})", lambda name=name, value=value: MarketRules(**{name: value}), others)  # type: ignore[misc]
    assert others == []


def test_a_wrong_option_of_a_command_is_told_in_the_words_of_the_caller() -> None:
    with ExchangeNode("a", markets={"M": MarketRules()}) as node:
        node.wait_ready()
        market = node.market("M")
        wrong: Any = {"acount": "x"}
        for call in (
            lambda: node.submit_order("M", "buy", "1", "1", **wrong),
            lambda: node.cancel_order("M", 1, **wrong),
            lambda: node.cancel_all("M", **wrong),
            lambda: node.amend_order("M", 1, price="1", **wrong),
            lambda: node.order("M", "buy", "1", "1", **wrong),
            lambda: node.cancel(1, **wrong),
            lambda: market.submit("buy", "1", "1", **wrong),
            lambda: market.make_cancel(1, **wrong),
        ):
            with pytest.raises(TypeError, match="unexpected keyword argument 'acount'; did you mean 'account'") as told:
                call()
            assert not any(name in str(told.value) for name in ("_named", "_command"))
        with pytest.raises(TypeError, match="'zzz'; there are account, client_order_id"):
            node.cancel_order("M", 1, zzz=1)  # type: ignore[call-arg]


def commands(group: click.Group, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*before, name))
        elif name not in ("demo", "replay"):
            yield (*before, name), command


def test_no_command_ends_in_a_traceback_whatever_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENOUTCRY_HOME", str(tmp_path))
    monkeypatch.setenv("OPENOUTCRY_TRACEBACK", "1")
    folder = tmp_path / "nodes" / "desk"
    (tmp_path / "x.toml").write_text('[node]\nname = "al"\n')
    good = GOOD | {"order_id": "1", "tick": "1", "folder": folder, "folders": folder, "file": tmp_path / "x.toml"}
    good |= {"address": tmp_path / "another"}
    wrong = []
    with ExchangeNode("desk", markets={"M": MarketRules()}, data_dir=folder) as node, ControlServer(node):
        node.wait_ready()
        for path, command in commands(main):
            needed = [each for each in command.params if each.required or isinstance(each, click.Argument)]
            stays = path in (("node",), ("directory",))
            for odd in command.params:
                for value in ODD_WORDS if not getattr(odd, "is_flag", False) else ():
                    words = list(path)
                    for each in needed if odd in needed else [*needed, odd]:
                        word = value if each is odd else str(good.get(str(each.name), "x"))
                        words += [word] if isinstance(each, click.Argument) else [each.opts[0], word]
                    if stays:  # which must not start here
                        words += (
                            ["--log-file", "/proc/x/y"] if odd.name == "listen" else ["--listen", "tcp://192.0.2.1:1"]
                        )
                    names = [each.name for each in command.params]
                    words += ["--yes"] if "yes" in names else []
                    words += ["--timeout", "0.3"] if "timeout" in names and odd.name != "timeout" and not stays else []
                    result = CliRunner().invoke(main, words)
                    if not isinstance(result.exception, SystemExit | None):
                        wrong.append(f"{words!r:.200}: {result.exception!r}")
                    elif result.exit_code in (1, 78) and not result.output.rstrip().endswith(")"):
                        wrong.append(f"{words!r:.200}: no code: {result.output!r:.200}")
                    elif result.exit_code not in (0, 1, 2, 75, 78):
                        wrong.append(f"{words!r:.200}: {result.exit_code}")
    assert wrong == []
