"""What is logged, and where it goes: events that are listed, fields that correlate, lines that never stall a node."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openoutcry.actors
import openoutcry.transport
import pytest
from openoutcry.actors import ExchangeNode, MarketRules, OrderRejected, Unavailable
from openoutcry.actors.telemetry.logs import LogOutput
from openoutcry.actors.testing import eventually
from openoutcry.transport.errors import ConfigurationError, ProtocolError
from openoutcry.transport.log import EVENTS, get_logger, without_secrets

MARKET = "BTC-USD"
SOURCES = [
    path
    for package in (openoutcry.actors, openoutcry.transport)
    for path in Path(str(package.__file__)).parent.rglob("*.py")
]
LEVELS = ("debug", "info", "warning", "error", "critical", "exception")


def logged_events() -> Iterator[tuple[str, Path]]:
    """Yield the first argument of every call of a logger's method."""
    for path in SOURCES:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "log" and isinstance(call.args[0], ast.IfExp):
                # Which method it is goes with which of two events.
                for event in (call.args[0].body, call.args[0].orelse):
                    yield ast.literal_eval(event), path
                continue
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            owner = ast.unparse(call.func.value)
            if call.func.attr in LEVELS and owner in ("logger", "self._log", "log"):
                assert len(call.args) == 1, f"{path}: {ast.unparse(call)}: an event and keyword fields"
                yield ast.literal_eval(call.args[0]), path
            elif call.func.attr == "log" and owner == "self._log":
                assert len(call.args) == 2, f"{path}: {ast.unparse(call)}: a level, an event and keyword fields"
                yield ast.literal_eval(call.args[1]), path
            elif getattr(call.func, "id", "") == "_said_here":
                yield ast.literal_eval(call.args[1]), path


class Stuck(io.StringIO):
    """A stream that takes nothing until it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.let = threading.Event()

    def write(self, text: str) -> int:
        self.let.wait(30)
        return super().write(text)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_event_is_in_the_list_and_every_listed_event_is_logged() -> None:
    said = dict(logged_events())
    from_writer = {"log_lines_dropped", "log_line_failed", "log_reopened", "log_not_reopened"}
    assert {event: path for event, path in said.items() if event not in EVENTS} == {}
    assert set(EVENTS) - set(said) - from_writer == set()
    assert all(meaning.endswith(".") for meaning in EVENTS.values())


@pytest.mark.slow
def test_embedded_node_logs_to_the_applications_loggers_and_configures_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    with caplog.at_level(logging.INFO, "openoutcry"), ExchangeNode("a", markets={MARKET: MarketRules()}) as node:
        node.wait_ready()
        assert (root.level, list(root.handlers)) == before
        (leading,) = [record for record in caplog.records if getattr(record, "event", "") == "leading"]
        assert vars(leading)["market"] == MARKET
        assert vars(leading)["epoch"] == (epoch := node.status().markets[MARKET].epoch)
        assert leading.getMessage().startswith(f"leading market={MARKET} node={node.node_id} epoch={epoch} ")
        assert Path(leading.pathname).name == "shell.py"
    assert capfd.readouterr() == ("", "")


def test_json_lines_carry_event_level_time_and_fields_but_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "node.log"
    with LogOutput(form="json", level="info", file=file, node_name="alice"):
        log = get_logger("openoutcry.test").bind(market=MARKET)
        log.info("link_up", address="etcds://user:hush@10.0.0.1/x?password=hush", name="taken by the record", epoch=3)
        log.debug("link_down")
        try:
            raise ProtocolError("nonsense")
        except ProtocolError as error:
            log.exception("frame_failed", error=error)
        logging.getLogger("another.library").warning("%d things", 3)
    first, second, third = lines(file.read_text())
    assert first["timestamp"].endswith("Z")
    del first["timestamp"]
    assert first == {
        "level": "info",
        "event": "link_up",
        "logger": "openoutcry.test",
        "node_name": "alice",
        "market": MARKET,
        "address": "etcds://user:***@10.0.0.1/x?password=***",
        "name_": "taken by the record",
        "epoch": 3,
    }
    assert (second["error"], second["code"]) == ("nonsense", "protocol")
    assert "ProtocolError: nonsense" in second["exception"]
    assert (third["event"], third["logger"]) == ("3 things", "another.library")


def test_reader_that_takes_no_lines_stalls_nobody_and_learns_how_many_it_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stuck = Stuck()
    monkeypatch.setattr("sys.stderr", stuck)
    log = get_logger("openoutcry.test")
    with LogOutput(form="json", lines_max=10) as writer:
        for number in range(1000):
            log.info("link_up", number=number)
        missing = writer.lines_dropped
        assert 980 <= missing < 1000, "what was not taken was counted, and nobody has waited"
        stuck.let.set()
        eventually(writer._queue.empty, "the lines that wait are written")
    written = lines(stuck.getvalue())
    assert sum([line["count"] for line in written if line["event"] == "log_lines_dropped"]) == missing
    assert len([line for line in written if line["event"] == "link_up"]) == 1000 - missing


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_record_that_cannot_be_formatted_is_reported_and_logging_goes_on(tmp_path: Path, form: str) -> None:
    file = tmp_path / "node.log"
    other = logging.getLogger("another.library")
    with LogOutput(form=form, file=file) as writer:
        other.warning("count %d", "x")
        other.warning("well", extra={"keyed": {(1, 2): 3}})  # JSON has no such key
        other.warning("the last")
    written = file.read_text()
    assert writer.lines_failed == written.count("log_line_failed") == (2 if form == "json" else 1)
    assert "another.library" in written
    assert f"{Path(__file__).name}:" in written
    assert "the last" in written.splitlines()[-1]


def test_password_is_hidden_whatever_signs_it_has() -> None:
    assert without_secrets("etcd://u:p@ss@host:2379/x") == "etcd://u:***@host:2379/x"
    assert without_secrets("etcd://u:p@h/x, etcd://v:q@i/y") == "etcd://u:***@h/x, etcd://v:***@i/y"


def test_a_log_file_that_was_moved_away_is_opened_again(tmp_path: Path) -> None:
    file = tmp_path / "node.log"
    log = get_logger("openoutcry.test")
    with LogOutput(form="json", file=file) as writer:
        log.info("link_up", number=1)
        eventually(file.read_text, "the first line is written")
        os.rename(file, tmp_path / "node.log.1")
        writer.reopen()
        log.info("link_up", number=2)
    assert [line.get("number") for line in lines((tmp_path / "node.log.1").read_text())] == [1]
    assert [(line["event"], line.get("number")) for line in lines(file.read_text())] == [
        ("log_reopened", None),
        ("link_up", 2),
    ]
    with pytest.raises(ConfigurationError, match="log file"):
        LogOutput(file=tmp_path)


def test_rejected_command_can_be_followed_by_its_order_id_at_every_node(
    exchange: Any, caplog: pytest.LogCaptureFixture
) -> None:
    net = exchange(nodes=2, markets={MARKET: MarketRules()})
    with caplog.at_level(logging.DEBUG, "openoutcry"):
        with pytest.raises(OrderRejected) as refused:
            net[1].cancel_order(MARKET, 99, account="me", client_order_id="mine")
        net.wait_same_sequence(MARKET)
    told = [vars(record) for record in caplog.records if getattr(record, "event", "") == "command_rejected"]
    assert {record["node"] for record in told} == {node.node_id for node in net}
    where = (refused.value.result.sequence, "me", "mine", "unknown_order")
    assert {(each["sequence"], each["account"], each["client_order_id"], each["code"]) for each in told} == {where}


def test_the_leader_logs_who_leaves_the_in_sync_set_and_who_comes_back(
    exchange: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def told(event: str) -> list[str]:
        return [vars(record)["peer"] for record in caplog.records if getattr(record, "event", "") == event]

    with caplog.at_level(logging.INFO, "openoutcry"):
        net = exchange(nodes=2, markets={MARKET: MarketRules()}, balance=False)
        follower = net[1].node_id
        net[0].wait_in_sync(MARKET, 2)
        net[1].close()
        eventually(lambda: told("replica_left"), "the leader has told of it")
    assert (told("replica_in_sync"), told("replica_left")) == ([follower], [follower])


def test_an_orderly_hand_over_logs_no_warning(exchange: Any, caplog: pytest.LogCaptureFixture) -> None:
    net = exchange(nodes=2, markets={MARKET: MarketRules()}, balance=False)
    net[0].wait_in_sync(MARKET, 2)
    with caplog.at_level(logging.INFO, "openoutcry"):
        net[0].transfer(MARKET, net[1].name)
    (told,) = [record for record in caplog.records if getattr(record, "event", "") == "not_leading"]
    assert told.levelno == logging.INFO


@pytest.mark.slow
def test_an_error_that_an_actor_answers_with_leaves_no_traceback_in_the_log(tmp_path: Path) -> None:
    file = tmp_path / "node.log"
    with LogOutput(file=file), ExchangeNode("a", markets={MARKET: MarketRules()}) as node:
        node.wait_ready()
        with pytest.raises(Unavailable):
            node.subscribe(MARKET, after=10**6)
    assert "Traceback" not in file.read_text()
