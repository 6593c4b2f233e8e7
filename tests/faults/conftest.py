"""What the fault tests share: rounds, the findings of each run, and the table at the end."""

from __future__ import annotations

import dataclasses
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))
from exchange import ROUNDS, Exchange
from stores import EtcdStore, SqliteStore, Store


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "failover: is tried over every coordinator in CI too, not in a soak only")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "round_" in metafunc.fixturenames:
        metafunc.parametrize("round_", range(ROUNDS), ids=[f"round{number}" for number in range(ROUNDS)])
    chosen = any(["store" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")])
    if "store" in metafunc.fixturenames and not chosen:
        every = ROUNDS > 1 or metafunc.definition.get_closest_marker("failover") is not None
        metafunc.parametrize("store", ["sqlite", "etcd"] if every else ["sqlite"], indirect=True)


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """The coordinator of the test's exchange, whole again afterwards: of the kind that the test was given."""
    if request.param == "sqlite":
        yield SqliteStore(tmp_path)
    else:
        made = EtcdStore(tmp_path, request.getfixturevalue("cluster"))
        yield made
        made.heal()


@pytest.fixture
def finish(request: pytest.FixtureRequest) -> Callable[[Exchange, Sequence[str]], None]:
    """Check and report: ``finish(exchange, the nodes whose clients were to go on)``, when all faults are healed."""

    def finished(net: Exchange, watched: Sequence[str]) -> None:
        # Not by record_property: that warns, and so fails, where a JUnit report is asked for.
        request.node.user_properties.append(("findings", dataclasses.asdict(net.findings(net.finish(), watched))))

    return finished


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print one line for each fault: how often it passed, and the gaps in the answers."""
    rows: dict[str, list[tuple[bool, dict[str, Any] | None]]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, ()):
            found = dict(report.user_properties).get("findings")
            if report.when == "call" and "/faults/test_faults.py" in report.nodeid:
                name = re.sub(r"\[round\d+-?", "[", report.nodeid.rpartition("::")[2]).replace("[]", "")
                rows.setdefault(name, []).append((outcome == "passed", found))
    if not rows:
        return
    terminalreporter.section("faults: the longest time without an answer, in seconds")
    write = terminalreporter.write_line
    write(f"{'passed':>8} {'median':>7} {'max':>7} {'operations':>10} {'lost':>5} {'doubled':>7}  fault")
    for name, runs in rows.items():
        found = [findings for _, findings in runs if findings is not None]
        gaps = [findings["gap_s"] for findings in found] or [float("nan")]
        operations, lost, doubled = [sum([f[key] for f in found]) for key in ("operations", "lost", "doubled")]
        passed = f"{sum([ok for ok, _ in runs])}/{len(runs)}"
        write(
            f"{passed:>8} {statistics.median(gaps):7.3f} {max(gaps):7.3f} {operations:10} {lost:5} {doubled:7}  {name}"
        )
