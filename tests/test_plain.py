"""What others chose is shown plainly; names that look alike are refused where they come in."""

from __future__ import annotations

import io
import json
import logging
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from openoutcry.actors import ExchangeNode, MarketRules
from openoutcry.actors.cli import live, main
from openoutcry.actors.cli.output import Failure, say
from openoutcry.actors.cli.show import table
from openoutcry.actors.control.server import ControlServer
from openoutcry.actors.market import border
from openoutcry.actors.peers.wire import LINK_CODEC, Hello, checked_node_name
from openoutcry.actors.remote.actors import _checked_name
from openoutcry.actors.telemetry.logs import LogOutput
from openoutcry.transport import certificates, codec, survey
from openoutcry.transport.errors import (
    ConfigurationError,
    InvalidRequest,
    OpenOutcryError,
    ProtocolError,
    RemoteFailure,
    quoted,
)
from openoutcry.transport.log import get_logger
from openoutcry.transport.plain import fault_of, plain, plain_lines
from openoutcry.transport.survey import ServiceEntry

LOOK_ALIKES = {
    "ANSI": "bob\x1b[2J\x1b[1;1Hfilled 1000 @ 1",
    "title of the window": "bob\x1b]0;pwned\x07",
    "C1 control": "bob\x9b2J",
    "delete": "bo\x7fb",
    "null": "bob\0",
    "new line": "bob\nFAKE LINE",
    "carriage return": "eve\rbob",
    "tab": "bob\t",
    "backspace": "eve\b\b\bbob",
    "line separator": "a\u2028b",
    "next line": "a\x85b",
    "right to left": "a\u202eecila",
    "isolate": "\u2066bob\u2069",
    "Arabic mark": "bob\u061c",
    "zero width space": "bob\u200b",
    "joiner": "b\u200dob",
    "byte order mark": "\ufeffbob",
    "soft hyphen": "b\u00adob",
    "tag": "bob\U000e0041",
    "variation selector": "bob\ufe0f",
    "filler": "bob\u3164",
    "half-width filler": "bob\uffa0",
    "grapheme joiner": "b\u034fob",
    "blank Braille": "bob\u2800",
    "not composed": "e\u0301",
    "full width": "\uff42\uff4f\uff42",
    "ligature": "\ufb01n",
    "Kelvin": "\u212a",
    "no-break space": "a\u00a0b",
    "wide blank": "a\u3000b",
    "before": " bob",
    "after": "bob ",
    "twice": "a  b",
    "private": "bob\ue000",
    "unassigned": "bob\u0378",
    "Cyrillic among Latin": "b\u043eb",
    "Greek among Latin": "b\u03bfb",
    "Armenian among Latin": "b\u0585b",
    "hyphen": "BTC\u2010USD",
    "figure dash": "BTC\u2012USD",
    "en dash": "BTC\u2013USD",
    "minus": "BTC\u2212USD",
    "Armenian hyphen": "BTC\u058aUSD",
    "modifier minus": "BTC\u02d7USD",
    "long vowel as a dash": "BTC\u30fcUSD",
    "hyphen bullet": "BTC\u2043USD",
    "Yezidi hyphen": "BTC\U00010eadUSD",
    "division slash": "BTC\u2215USD",
    "fraction slash": "BTC\u2044USD",
    "ratio": "a\u2236b",
    "modifier colon": "a\ua789b",
    "Hebrew colon": "a\u05c3b",
    "low quote as a comma": "a\u201ab",
    "modifier apostrophe": "o\u02bcneil",
    "curly apostrophe": "o\u2019neil",
    "click as a bar": "a\u01c0b",
    "dot above i": "bi\u0307ll",
    "dot above dotless i": "b\u0131\u0307ll",
    "dot above j": "j\u0307",
    "stroke through o": "o\u0338",
    "accent twice": "x\u0301\u0301",
    "accent of a digit": "1\u0301",
    "accent of nothing": "\u0301b",
    "phonetic a": "\u0251bc",
    "phonetic g": "\u0261",
    "small capital": "b\u1d0fb",
    "Arabic digit among ASCII": "desk 1\u0661",
    "two kinds of Arabic digits": "\u0661\u06f1",
    "Devanagari among Bengali digits": "\u0967\u09e7",
}
GOOD = (
    *(
        "bob",
        "BTC-USD",
        "bob/desk 1",
        "a.b_c-d:e",
        "\u00e9l\u00e8ve",
        "\u0431\u043e\u0431",
        "\u03b1\u03b2",
        "\u5f20\u4f1f",
        "\U0001f600" * 64,
    ),
    *(
        "\u05d3\u05d5\u05d3",
        "\u0645\u062d\u0645\u062f",
        "na\u00efve-1",
        "\u30c8\u30e8\u30bftoyota",
        "\u30bd\u30cb\u30fc-1",
        "\u1eb9\u0301k\u1ecd\u0301",
        "\u0921\u0947\u0938\u094d\u0915 \u0967\u0968",
        "\u0431\u043e\u0431-\u0661",
        "\u0e1a\u0e34\u0e17\u0e17\u0e35\u0e48",
        "\u20ac",
        "\u0131\u015f\u0131k",
        "[bold]",
        "a\\nb",
        "$(x)",
        "*",
    ),
)
EVIL = LOOK_ALIKES["ANSI"] + "[bold]\nFAKE LINE\u202e"


def hidden(text: str) -> list[str]:
    """Return what of a text of several lines is invisible or moves a cursor."""
    return sorted(
        {f"U+{ord(c):04X}" for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")}
    )


@pytest.mark.parametrize("name", LOOK_ALIKES.values(), ids=LOOK_ALIKES)
def test_a_name_that_looks_like_another_is_refused_wherever_it_comes_in(name: str) -> None:
    assert fault_of(name)
    for check in (border.checked_account, border.checked_client_order_id, border.checked_service, _checked_name):
        with pytest.raises(InvalidRequest) as refused:
            check(name)
        assert hidden(str(refused.value)) == []
    for command in ((3, name, ""), (3, "ann", name)):
        with pytest.raises(InvalidRequest):
            border.checked([command])
    with pytest.raises(ConfigurationError) as unfit:
        checked_node_name(name)
    assert hidden(str(unfit.value)) == []
    with pytest.raises(ProtocolError):
        codec.Name(64)(name, "name")
    good = Hello("ann.12345678", "ann", "tcp://127.0.0.1:7400", "c", 1, 0, "bob.12345678")
    assert LINK_CODEC.decode(LINK_CODEC.encode(good)) == good
    for wrong in ({"node": f"{name}.12345678"} if name.strip() == name else {"node": name}, {"name": name}):
        values = {**{key: getattr(good, key) for key in Hello.__slots__}, **wrong}
        with pytest.raises(ProtocolError):
            LINK_CODEC.decode(LINK_CODEC.encode(Hello(**values)))
    for entry in (ServiceEntry(name, "n", "tcp://127.0.0.1:1"), ServiceEntry("s", name, "tcp://127.0.0.1:1")):
        with pytest.raises(InvalidRequest):
            survey._requested(entry)


@pytest.mark.parametrize("name", GOOD, ids=ascii)
def test_names_of_any_language_are_taken(name: str) -> None:
    assert (fault_of(name), plain(name)) == (None, name)
    assert border.checked_account(name) == name
    assert border.checked([(3, name, name)]) == ((3, name, name),)


def test_certificates_are_neither_issued_nor_accepted_for_names_that_look_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = certificates.Authority.create(tmp_path)
    with pytest.raises(InvalidRequest):
        certificates.Authority.create(tmp_path / "other", name=EVIL)
    sound = certificates.Identity(authority.issue("ann", accounts=["\u00e9mile", "desk *", "*"]))
    for name in LOOK_ALIKES.values():
        with pytest.raises(InvalidRequest):
            authority.issue(name)
        with pytest.raises(InvalidRequest) as refused:
            authority.issue("ann", accounts=[name.rstrip() if name == "bob " else name, "b\u200b*"])
        assert hidden(str(refused.value)) == []
        with monkeypatch.context() as careless:  # an authority of another program
            careless.setattr(certificates, "fault_of", lambda _: None)
            try:
                issued = authority.issue("eve", accounts=[name])
            except (ValueError, UnicodeError):
                continue
            der = certificates.Identity(issued).certificate
        with pytest.raises(ProtocolError, match="that of eve is for") as unfit:
            sound.verified(der)
        assert unfit.value.code == "certificate_refused"
        assert hidden(str(unfit.value)) == []


@given(st.text())
def test_what_is_plain_is_one_line_and_stays_as_it_is(text: str) -> None:
    found = plain(text)
    assert hidden(found.replace("\n", "\x00")) == []
    assert plain(found) == found
    assert len(plain_lines(text).split("\n")) == len(text.split("\n"))
    if not fault_of(text):
        assert found == text


@given(st.text())
def test_an_error_never_carries_what_a_terminal_obeys(text: str) -> None:
    for error in (OpenOutcryError(f"the peer said {text}"), RemoteFailure(text), InvalidRequest(quoted(text))):
        assert hidden(f"{error}{error.message}{error.args[0]}".replace("\n", "\x00")) == []


def test_everything_that_the_command_line_prints_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    say(EVIL, f"  {EVIL}")
    say(EVIL, err=True)
    Failure(EVIL, "code").show()
    say(*table([("NAME", "N"), (EVIL, "1"), ("b", "22")]))
    with live.progress(EVIL) as more:
        more(1, 1)
    found = capsys.readouterr()
    assert hidden(found.out + found.err) == []
    assert not [line for line in (found.out + found.err).splitlines() if line.startswith("FAKE")]
    rows = found.out.splitlines()[-3:]
    assert len({len(row) for row in rows}) == 1, "columns are as wide as what is printed"


def test_a_view_in_place_shows_names_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    console = pytest.importorskip("rich.console")
    shown_text: list[Any] = []

    class Live:
        def update(self, text: Any, *, refresh: bool) -> None:
            del refresh
            shown_text.append(text)

    text = pytest.importorskip("rich.text").Text
    live._InPlace(Live(), text).show([EVIL])
    out = io.StringIO()
    console.Console(file=out, width=200).print(shown_text[0])
    assert hidden(out.getvalue()) == []
    assert "[bold]" in out.getvalue()
    bar = pytest.importorskip("rich.progress")
    monkeypatch.setattr(live, "_bar", lambda: bar.Progress(console=console.Console(file=out, width=200)))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with live.progress(EVIL):
        pass
    assert hidden(out.getvalue()) == []
    assert out.getvalue().count("[bold]") == 2


@pytest.fixture
def careless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ExchangeNode]:
    """Return a node with the trades and orders of an account that a member with a changed program has let in."""
    monkeypatch.setenv("OPENOUTCRY_HOME", str(tmp_path))
    with ExchangeNode("alice", markets={"M": MarketRules()}, data_dir=tmp_path / "nodes/alice") as node:
        node.wait_ready()
        with monkeypatch.context() as other_program:
            other_program.setattr(border, "fault_of", lambda _: None)
            node.submit_order("M", "buy", "5", "1", account=EVIL, client_order_id=EVIL)
            node.submit_order("M", "sell", "5", "1", account="eve", client_order_id="x\r\nFAKE LINE")
            node.submit_order("M", "buy", "4", "1", account=EVIL)
            node.submit_order("M", "sell", "6", "1", account="ann")
        server = ControlServer(node)
        try:
            yield node
        finally:
            server.close()


@pytest.mark.parametrize(
    "arguments",
    [
        ["trades", "M"],
        ["trades", "M", "--json"],
        ["book", "M"],
        ["status"],
        ["market", "list"],
        ["orders", "M", "--account", EVIL],
        ["cancel", "M", "99", "--account", EVIL],
        ["submit", "M", "buy", "1", "1", "--client-order-id", EVIL],
        ["submit", "M", EVIL, "1", "1"],
        ["transfer", EVIL],
        ["transfer", "M", "--to", EVIL],
        ["market", "create", EVIL, "--tick", "1"],
        ["market", "create", "X", "--tick", "1", "--rule", EVIL],
        ["book", EVIL],
        ["log", EVIL, EVIL],
        ["verify", EVIL],
        ["identity", "show", EVIL],
        ["coordinator", EVIL],
        ["status", f"--{EVIL}"],
        ["status", EVIL],
        [EVIL],
    ],
    ids=ascii,
)
def test_no_command_prints_what_moves_a_cursor(careless: ExchangeNode, arguments: list[str]) -> None:
    assert careless.trades("M")[0].maker_account == EVIL
    found = CliRunner().invoke(main, arguments, color=True)
    text = found.stdout + found.stderr
    assert text
    assert hidden(text) == [], text
    assert not [line for line in text.splitlines() if line.startswith("FAKE LINE")]


def test_a_log_that_people_read_shows_names_as_they_are(
    careless: ExchangeNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data_dir = tmp_path / "nodes/alice"
    careless.close()
    for arguments in (["log", str(data_dir), "M"], ["log", str(data_dir), "M", "--events"], ["verify", str(data_dir)]):
        found = CliRunner().invoke(main, arguments, color=True)
        assert (found.exit_code, hidden(found.stdout + found.stderr)) == (0, [])
    logger = get_logger("openoutcry.test")
    logger.warning("link_reset", peer=EVIL, error=ProtocolError(EVIL), names=[EVIL], other=ValueError(EVIL))
    (said,) = [record for record in caplog.records if record.name == "openoutcry.test"]
    assert hidden(f"{said.message}{said.__dict__}".replace("\n", "\x00")) == []
    assert hidden(str(said.__dict__["peer"])) == []
    for form in ("console", "json"):
        file = tmp_path / f"{form}.log"
        with LogOutput(form=form, file=file, node=EVIL):
            logger.warning("link_reset", peer=EVIL, error=ProtocolError(EVIL), names=[EVIL], other=ValueError(EVIL))
            try:
                raise ValueError(EVIL)
            except ValueError:
                logger.exception("frame_failed", peer=EVIL)
            logging.getLogger("another.library").error("it says %s", EVIL, extra={"field": EVIL})
        text = file.read_text(encoding="utf-8")
        assert hidden(text) == [], form
        assert not [line for line in text.splitlines() if line.startswith("FAKE LINE")]
    assert [json.loads(line)["event"] for line in text.splitlines()][:2] == ["link_reset", "frame_failed"]
