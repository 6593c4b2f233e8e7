"""One grammar of the numbers that come in, wherever they do; one form of those that go out."""

from __future__ import annotations

import ast
import copy
import gzip
import json
import math
import os
import pickle
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
import openoutcry.actors
import openoutcry.transport
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from openoutcry.actors import ExchangeNode, MarketRules, as_json
from openoutcry.actors.cli import main
from openoutcry.actors.market.border import checked_timeout
from openoutcry.actors.remote.schema import _decimal_from_wire
from openoutcry.actors.telemetry.health import endpoint
from openoutcry.actors.tools.config import load_config
from openoutcry.actors.tools.replay import read_flow
from openoutcry.transport.errors import ConfigurationError, InvalidRequest, OpenOutcryError, ProtocolError
from openoutcry.transport.etcd import _endpoint, _int
from openoutcry.transport.numerals import (
    PlainDecimal,
    decimal_of,
    float_of,
    hexadecimal_of,
    in_json,
    port_of,
    times_in_json,
    whole_of,
    written,
)
from openoutcry.transport.sockets import checked_address

NOT_NUMBERS = (
    *("1_000", "_1", "1_", "1__0", "\uff11\uff10\uff10", "٣", "\U0001d7d3", "१२", "²", "½", "Ⅷ", "一"),
    *(" 1", "1 ", "1\n", "\t1", "1\u00a00", "\u200b5", "1\x000", "1\u2009000", "\ufeff1"),
    *(
        "",
        "-",
        "+5",
        "--1",
        "-0",
        "-0.0",
        "007",
        "-01",
        "0x10",
        "0b1",
        "0o7",
        "1,5",
        "1.000,5",
        "1'000",
        "5.",
        ".5",
        "1.2.3",
    ),
    *("NaN", "nan", "sNaN", "inf", "Infinity", "-Infinity", "1e", "e5", "1e+", "1e5.0", "1e-400", "1e400", "9" * 41),
    *("$5", "5%", "1/2", "five", "1f", "(5)", "5;", "\u22125"),
)
SCIENTIFIC = re.compile(r"(?<![0-9a-zA-Z.])-?\d+(\.\d+)?[eE][+-]?\d+(?![0-9a-zA-Z])")
SMALL = MarketRules(tick_size="0.00000001", lot_size="1E-7")
FLOW = "seq,ts_ns,cmd,order_id,side,price_ticks,qty,expect\n"


@pytest.mark.parametrize("text", NOT_NUMBERS, ids=ascii)
def test_what_is_no_number_is_refused_by_every_reader(text: str) -> None:
    assert [read(text) for read in (whole_of, decimal_of, float_of, port_of)] == [None] * 4
    rules = MarketRules()
    for refused in (rules.price_to_ticks, rules.quantity_to_lots):
        with pytest.raises(InvalidRequest):
            refused(text)
        with pytest.raises(InvalidRequest):
            refused(type("Text", (str,), {})(text))
    for name in ("tick_size", "lot_size"):
        with pytest.raises(ConfigurationError, match=name):
            MarketRules(**{name: text})
    for port in (
        lambda: endpoint(f"127.0.0.1:{text}"),
        lambda: checked_address(f"tcp://127.0.0.1:{text}"),
        lambda: checked_address(f"tls+tcp://127.0.0.1:{text}", to_listen=True),
        lambda: _endpoint(f"127.0.0.1:{text or 'x'}") if text == text.strip() else endpoint(""),
    ):
        with pytest.raises(ConfigurationError):
            port()
    with pytest.raises(ValueError, match="expected a whole number"):
        _int({"TTL": text}, "TTL")
    if text not in ("-0", "-0.0", "1e400", "1e-400", "9" * 41):  # a Decimal that an application may send
        with pytest.raises(ProtocolError):
            _decimal_from_wire(text, "price")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("1", 1),
        ("-1", -1),
        ("100", 100),
        ("0.05", "0.05"),
        ("-2.50", "-2.50"),
        ("1E+2", 100),
        ("1e-8", "1e-8"),
    ],
)
def test_what_is_a_number_is_read(text: str, value: Any) -> None:
    assert decimal_of(text) == Decimal(value)
    assert float_of(text) == float(value)
    assert whole_of(text) == (value if type(value) is int and "E" not in text else None)
    assert (port_of("65535"), port_of("65536"), hexadecimal_of("fF"), hexadecimal_of("0x1")) == (65535, None, 255, None)


@pytest.mark.parametrize("text", [text for text in NOT_NUMBERS if text and "\0" not in text], ids=ascii)
def test_environment_settings_and_rules_refuse_what_is_no_number(text: str, tmp_path: Path) -> None:
    home = {"OPENOUTCRY_HOME": str(tmp_path)}
    for key in ("TTL_MS", "MIN_IN_SYNC", "SNAPSHOT_EVERY", "TIMEOUT"):
        with pytest.raises(ConfigurationError, match=key.lower()):
            load_config(environment={**home, f"OPENOUTCRY_{key}": text}, flags={})
    for key in ("tick_size", "dedupe_window"):
        with pytest.raises(ConfigurationError):
            load_config(environment=home, flags={}, market_flags=[f"M:{key}={text}".replace(f"={text}", f"=_{text}_")])


@pytest.mark.parametrize("text", ["1_000", "0x10", "0o17", "0b1", "+5", "inf", "nan", "-nan", "1_0.5", "1e-400"])
def test_a_settings_file_refuses_numbers_that_only_toml_knows(text: str, tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(
        f'[node]\nname = \'x = 1_0\'  # ttl_ms = 1_0\ntimeout={text}\n[markets."a = 0x1"]\ntick_size = "1"\n'
    )
    with pytest.raises(ConfigurationError, match=rf"line 3: '{re.escape(text)}' is not a number"):
        load_config(file=file, environment={}, flags={})
    file.write_text(f"[node]\ntimeout = 2.5\nttl_ms = 3000\n[markets]\nM = {{ dedupe_window = {text} }}\n")
    with pytest.raises(ConfigurationError, match="line 5: "):
        load_config(file=file, environment={}, flags={})
    file.write_text(
        "[node]\ntimeout = 2.5\nttl_ms = 3000\n[markets]\nM = { dedupe_window = 100, price_min_ticks = -5 }\n"
    )
    found = load_config(file=file, environment={}, flags={})
    assert (found.options["timeout"], found.options["ttl_ms"], found.markets["M"]) == (
        2.5,
        3000,
        MarketRules(dedupe_window=100, price_min_ticks=-5),
    )


def numeric_parameters() -> Iterator[tuple[list[str], click.Parameter]]:
    """Yield every parameter of the command line that is a number, with the words that name its command."""

    def within(command: click.Command, words: list[str]) -> Iterator[tuple[list[str], click.Parameter]]:
        for parameter in command.params:
            if isinstance(parameter.type, (click.types.IntParamType, click.types.FloatParamType)):
                yield words, parameter
        if isinstance(command, click.Group):
            for name, each in command.commands.items():
                yield from within(each, [*words, name])

    return within(main, [])


@pytest.mark.parametrize(
    "text", ["1_0", "\uff11\uff10", "٣", " 5", "5 ", "+5", "0x10", "1e4h", "nan", "0o7"], ids=ascii
)
def test_every_number_of_the_command_line_is_in_ascii_digits(text: str) -> None:
    seen = list(numeric_parameters())
    assert len(seen) > 15
    for words, parameter in seen:
        with pytest.raises(click.BadParameter, match="write it in digits"):
            parameter.type.convert(text, parameter, None)
        assert type(parameter.type).__module__.startswith("openoutcry."), (words, parameter.name)
    ran = CliRunner().invoke(main, ["book", "M", f"--depth={text}"])
    assert (ran.exit_code, "write it in digits" in ran.output) == (2, True)
    assert (
        "hexadecimal"
        in CliRunner().invoke(main, ["identity", "revoke", "x", "--authority", ".", "--serial", text]).output
    )


@pytest.mark.parametrize("column", ["seq", "ts_ns", "price_ticks", "qty", "expect", "expect price"])
@pytest.mark.parametrize("text", ["1_0", "\uff11", " 1", "1 ", "+1", "1.0", "0x1", "01"], ids=ascii)
def test_a_replay_refuses_what_is_no_number(column: str, text: str, tmp_path: Path) -> None:
    row = {
        "seq": "1",
        "ts_ns": "1",
        "cmd": "TAKE",
        "order_id": "a",
        "side": "B",
        "price_ticks": "1",
        "qty": "1",
        "expect": "b:1@1",
    }
    file = tmp_path / "flow.csv.gz"
    file.write_bytes(gzip.compress((FLOW + ",".join(row.values()) + "\n").encode()))
    assert len(read_flow(file)) == 1
    change = {"expect": f"b:{text}@1", "expect price": f"b:1@{text}"}.get(column, text)
    row[column.partition(" ")[0]] = change
    file.write_bytes(gzip.compress((FLOW + ",".join(row.values()) + "\n").encode()))
    with pytest.raises(InvalidRequest, match="line 2"):
        read_flow(file)


@pytest.mark.parametrize("name", ["flow.csv", "flow.csv.gz"])
def test_a_replay_of_a_file_that_never_ends_a_line_is_refused(name: str, tmp_path: Path) -> None:
    file, packed = tmp_path / name, gzip.compress if name.endswith(".gz") else bytes
    for content in (b"\0" * 5_000_000, b"x" * 5_000_000, FLOW.encode() + b"1" * 5_000_000, b'"' + b"a\n" * 500_000):
        file.write_bytes(packed(content))
        with pytest.raises(InvalidRequest, match=r"more than 1,048,576 characters|field larger|first line") as refused:
            read_flow(file)
        assert refused.value.code == "invalid_flow"
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/full"), Path("/dev/zero"), tmp_path / "pipe", tmp_path):
        with pytest.raises(InvalidRequest, match="no ordinary file"):
            read_flow(path)
    (tmp_path / "text.gz").write_text(FLOW)
    with pytest.raises(InvalidRequest, match=r"text\.gz"):
        read_flow(tmp_path / "text.gz")
    assert CliRunner().invoke(main, ["replay", "/dev/full"]).exit_code == 1


def test_no_sample_of_the_metrics_has_an_exponent(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = pytest.importorskip("openoutcry.actors.telemetry.metrics")
    values = (1e6, 1234567.0, 2.0**53, -1e15, 0.00001234, 1e21, 5.0, math.inf)
    monkeypatch.setattr(
        metrics._Samples,
        "_add_process",
        lambda self: [self._add("openoutcry_peer_up", value, f"p {at} 1e+06") for at, value in enumerate(values)],
    )
    node = types.SimpleNamespace(name="a", phase="starting", meters=types.SimpleNamespace(markets={}))
    text = metrics.NodeCollector(node).text().decode()
    lines = [line for line in text.splitlines() if line[:1] != "#"]
    found = [line.rpartition(" ")[2] for line in lines if line.startswith("openoutcry_peer_up")]
    assert [float(value) for value in found] == list(values)
    assert not [line for line in lines if SCIENTIFIC.search(line.rpartition(" ")[2])]


@pytest.mark.parametrize("value", [True, "5", math.nan, math.inf, -1, None, Decimal(1)])
def test_a_timeout_is_a_number(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="timeout"):
        checked_timeout(value)


@given(st.integers(0, 2**63 - 1), st.decimals("1e-20", "1e5", allow_nan=False))
def test_a_price_is_written_so_that_it_can_be_given_back(ticks: int, tick: Decimal) -> None:
    try:
        rules = MarketRules(tick_size=str(tick))
    except ConfigurationError:
        return
    assert rules.tick_size == f"{tick:f}"
    assert MarketRules(tick_size=rules.tick_size) == rules == MarketRules.from_tuple(rules.to_tuple())
    price = rules.ticks_to_price(ticks)
    for text in (str(price), f"{price}", f"{price:>60}".strip(), repr(price)[9:-2], as_json(price), written(price)):
        assert not SCIENTIFIC.search(text)
        assert Decimal(text) == price
    for again in (copy.copy(price), copy.deepcopy(price), pickle.loads(pickle.dumps(price))):
        assert (again, str(again), hash(again)) == (price, str(price), hash(Decimal(price)))
    if ticks and len(str(price)) <= 40:
        assert rules.price_to_ticks(str(price)) == rules.price_to_ticks(price) == ticks


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**39), 10**39))
def test_no_number_is_written_with_an_exponent(value: float) -> None:
    text = written(value, None)
    assert re.fullmatch(r"-?[0-9]+(\.[0-9]+)?|a number of more than 40 digits", text)
    assert not SCIENTIFIC.search(json.dumps(in_json(value)))
    if text[0] != "a":
        assert type(value)(text) == value


@pytest.mark.parametrize("text", ["NaN", "sNaN", "Infinity", "-Infinity"])
def test_what_is_not_finite_is_called_so_in_a_message(text: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{text} is not a price"):
        MarketRules().price_to_ticks(Decimal(text))


def test_a_plain_decimal_is_formatted_as_a_decimal() -> None:
    small = PlainDecimal("1E-8")
    assert [f"{small}", f"{small:>12}", f"{small:.2f}", f"{small:.1e}", f"{small:,}", f"{small!r}"] == [
        "0.00000001",
        "  0.00000001",
        "0.00",
        "1.0e-8",
        "0.00000001",
        "Decimal('0.00000001')",
    ]
    assert small == Decimal("1E-8")


@pytest.mark.slow
def test_the_views_of_a_market_with_small_ticks_show_no_exponent() -> None:
    with ExchangeNode("alice", markets={"S": SMALL, "B": MarketRules(tick_size="1E+2", lot_size="1000")}) as node:
        node.wait_ready()
        for market, price, quantity in (("S", "0.00000001", "0.0000001"), ("B", "100", "1000")):
            node.submit_order(market, "buy", price, quantity)
            sold = node.submit_order(market, "sell", price, quantity)
            resting = node.submit_order(market, "buy", price, quantity)
            (trade,), order = node.trades(market), node.get_order(market, resting.order_id or 0)
            found = [sold, resting, trade, order, node.get_order_book(market), node.rules(market), *sold.events]
            found += [node.cancel_order(market, resting.order_id or 0), *node.cancel_all(market).events]
            values = [value for view in found for value in (str(view), repr(view), json.dumps(as_json(view)))]
            values += [f"{trade.price} {trade.quantity} {resting.filled_quantity} {order and order.open_quantity}"]
            assert [value for value in values if SCIENTIFIC.search(value)] == []
            assert (str(trade.price), str(trade.quantity)) == (price, quantity)
            for wrong in (Decimal("1E-9"), Decimal("1E+60"), 1e-9, "1E-9"):
                with pytest.raises(OpenOutcryError) as caught:
                    node.submit_order(market, "buy", wrong, quantity)  # type: ignore[arg-type]
                if not isinstance(wrong, str):  # what was given is quoted as it was
                    assert not SCIENTIFIC.search(str(caught.value)), caught.value


def test_json_has_times_as_strings_and_in_iso_8601() -> None:
    assert times_in_json({"timestamp_ns": 1_600_000_000_000_000_001, "expire_ns": 0, "orders": 3}) == {
        "timestamp_ns": "1600000000000000001",
        "timestamp": "2020-09-13T12:26:40.000000001Z",
        "expire_ns": None,
        "expire": None,
        "orders": 3,
    }
    assert as_json([{"at_ns": 1, "wait_s": 1e-7, "many": 1e20, "few": 0.25}]) == [
        {"at_ns": "1", "at": "1970-01-01T00:00:00.000000001Z", "wait_s": 0.0, "many": 10**20, "few": 0.25}
    ]


@pytest.mark.slow
def test_numbers_are_read_and_written_in_one_module_that_opens_no_socket() -> None:
    code = "import sys; sys.modules['pynng'] = None; import openoutcry.transport.numerals, openoutcry.transport.plain"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=dict(os.environ))
    readers: dict[str, Callable[..., Any]] = {"int": int, "float": float, "Decimal": Decimal}
    found = {}
    for package in (openoutcry.actors, openoutcry.transport):
        for path in Path(str(package.__file__)).parent.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in readers:
                    found[f"{path.name}: {ast.unparse(node)}"] = path.name
    of_text = {
        call
        for call, name in found.items()
        if name != "numerals.py" and re.search(r"text|\.stem|split|\.get\(|part", call)
    }
    assert of_text == set(), "int(), float() and Decimal() take more than numbers: read text by numerals"
    formats = [
        path.name
        for package in (openoutcry.actors, openoutcry.transport)
        for path in Path(str(package.__file__)).parent.rglob("*.py")
        if re.search(r":[0-9.,]*[geEG]\}", path.read_text(encoding="utf-8"))
    ]
    assert formats == [], "a number is formatted by numerals.written"
