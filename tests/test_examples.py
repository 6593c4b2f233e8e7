"""What a newcomer runs first: the examples and the replay of recorded order flow, each as a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("OPENOUTCRY_SHARED", ROOT.parent / "shared")) / "data"
OPENOUTCRY = "import sys; from openoutcry.actors.cli import main; sys.exit(main())"

HEADER = "seq,ts_ns,cmd,order_id,side,price_ticks,qty,expect\n"
FLOW = """\
1,10,SNAP,a,A,100,5,
2,10,SNAP,b,A,101,4,
3,10,SNAP,c,B,99,7,
4,11,AMEND,a,A,100,3,
5,12,NEW,d,A,100,2,
6,13,TAKE,e,B,101,7,a:3@100;d:2@100;b:2@101
7,14,TAKEA,c,B,101,3,b:2@101
8,15,NEW,f,A,103,6,
9,16,NEW,g,B,98,5,
10,17,CANCEL,g,B,,,
"""
"""By hand: a stays before d, with 3; e takes a, d and 2 of b; c moves to 101, takes b's last 2 and rests with 1."""
FINAL_BOOK = [("B", 101, "c", 1), ("A", 103, "f", 6)]


def run(*arguments: str | Path, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=ROOT)


def replay(file: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    done = run("-c", OPENOUTCRY, "replay", file, "--json", *options)
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


@pytest.mark.wheel
def test_two_processes_find_each_other_trade_and_show_one_book() -> None:
    done = run("examples/two_nodes.py", timeout_s=30)

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "One book."
    (state,) = [line.split() for line in lines if line.startswith("  state")]
    assert state[0] == state[2] == "state"
    assert state[1] == state[3]
    assert sum(" to bob" in line for line in lines) == 3
    assert done.stderr == ""


@pytest.mark.wheel
def test_node_inside_another_application_serves_it_and_ends() -> None:
    done = run("examples/embed.py", timeout_s=30)

    assert done.returncode == 0, done.stderr
    assert "order 2 rests; order 3 is filled for 120" in done.stdout
    assert "(quantity_too_large)" in done.stdout
    assert done.stderr == ""


@pytest.mark.wheel
def test_market_making_bot_quotes_trades_and_withdraws() -> None:
    done = run("examples/market_maker.py")

    assert done.returncode == 0, done.stderr
    assert "  quotes 19.95 / 20.15, owns -5\n" in done.stdout
    assert done.stdout.endswith("0 price levels are left in the book\n")
    assert done.stderr == ""


@pytest.mark.wheel
def test_the_bots_own_test_passes_beside_it() -> None:
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "examples/test_market_maker.py")

    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.wheel
def test_price_feed_is_used_by_another_process_which_hears_of_its_death() -> None:
    done = run("examples/price_feed.py")

    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "feed: prices@desk listens" in lines
    assert lines[-3:] == [
        "desk: 20 prices, in order, none missing",
        "desk: the feed is unreachable",
        "desk: unreachable",
    ]
    assert done.stderr == ""


@pytest.mark.wheel
def test_asyncio_application_awaits_orders_and_reads_the_tape() -> None:
    done = run("examples/asyncio_app.py")

    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("tape:")] == [
        "tape: 4 at 20.05",
        "tape: 6 at 20.05",
        "tape: 1 at 20.10",
        "tape: 3 at 20.10",
    ]
    assert done.stderr == ""


@pytest.mark.parametrize("options", [("--nodes", "1"), ("--nodes", "3", "--via", "follower", "--batch", "1")])
def test_replay_of_a_small_flow_ends_as_computed_by_hand_everywhere(tmp_path: Path, options: tuple[str, ...]) -> None:
    file = tmp_path / "flow.csv"
    file.write_text(HEADER + FLOW)

    code, report, errors = replay(file, *options)

    assert code == 0, errors
    assert (report["commands"], report["fills"], report["differences"], report["sequence"]) == (10, 4, 0, 11)
    assert report["equal"] is True
    assert len(report["nodes"]) == int(options[1])
    assert {end["book_hash"] for end in report["nodes"]} == {hashlib.sha256(repr(FINAL_BOOK).encode()).hexdigest()}
    assert len({end["state_hash"] for end in report["nodes"]}) == 1


def test_a_replay_that_trades_differently_from_the_recording_fails_and_says_so(tmp_path: Path) -> None:
    file = tmp_path / "flow.csv"
    file.write_text(HEADER + FLOW.replace("a:3@100;d:2@100;", "d:2@100;a:3@100;"))

    code, report, errors = replay(file, "--nodes", "1")

    assert code == 1
    assert report["differences"] == 1
    (line,) = report["first_differences"]
    assert line.startswith(
        "row 6, TAKE of e: the recorded one traded d:2@100;a:3@100;b:2@101, the book traded a:3@100;"
    )
    assert errors.endswith("(replay_differs)\n")


def test_replay_of_a_malformed_file_names_the_line_before_any_node_starts(tmp_path: Path) -> None:
    file = tmp_path / "flow.csv"
    file.write_text(HEADER + "1,10,BUY,a,A,100,5,\n")

    code, _, errors = replay(file)

    assert code == 1
    assert errors == f"{file}, line 2: cmd is one of SNAP, NEW, TAKE, AMEND, TAKEA, CANCEL, not 'BUY' (invalid_flow)\n"


def test_hour_at_the_cme_through_two_node_processes_ends_as_the_exchange_did() -> None:
    file = DATA / "cme" / "es_20231225.commands.csv.gz"
    if not file.exists():
        pytest.skip(f"no recorded order flow at {DATA}; set OPENOUTCRY_SHARED to the folder that holds data/")

    code, report, errors = replay(file, "--nodes", "2")

    assert code == 0, errors
    assert (report["commands"], report["fills"], report["differences"]) == (55_587, 5_853, 0)
    assert report["equal"] is True
    assert [end["book_hash"][:16] for end in report["nodes"]] == ["76dba82ff7162031"] * 2
    assert [end["open_orders"] for end in report["nodes"]] == [11_217] * 2
