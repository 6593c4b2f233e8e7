"""What tests of several modules share: one etcd, the guard of the quick ones, and turns where tests run in parallel."""

from __future__ import annotations

import multiprocessing
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from alone import Turns, is_alone
from etcd_cluster import FAST, EtcdCluster, etcd_cluster, missing
from quick import Guard, is_slow

# A node's process is a fork of one that has imported all that a node needs, and nothing else: half a second less each.
multiprocessing.set_start_method("forkserver")
multiprocessing.set_forkserver_preload(
    ["structlog", "etcd3gw"]  # which are imported when they are used first
    + [
        f"openoutcry.{name}"
        for name in ("actors.node", "actors.cli.serve", "actors.testing", "transport.certificates", "transport.etcd")
    ]
)
GUARD = Guard()
TURNS = pytest.StashKey[Turns]()


@pytest.hookimpl(trylast=True)  # after pytest's own, which makes the folder
def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # a worker of pytest-xdist: its folder lies in one that all workers share
        config.stash[TURNS] = Turns(config._tmp_path_factory.getbasetemp().parent)  # type: ignore[attr-defined]


def pytest_itemcollected(item: pytest.Item) -> None:
    if is_slow(item):
        item.add_marker("slow")
    if is_alone(item):
        item.add_marker("alone")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    turns = item.config.stash.get(TURNS, None)
    if turns is None:
        return (yield)
    with turns.take(alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    # A worker of pytest-xdist that has to send a lone surrogate, as some tests log, ends the whole run.
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name a test in ASCII whatever it is given: what is not UTF-8 could not be told to another process."""
    return ascii(val) if isinstance(val, str) and not val.isascii() else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    return (yield from GUARD.watch(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    return (yield from GUARD.watch(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    return (yield from GUARD.watch(item))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """Three members of an etcd; a test that kills one starts it again. Skips where there is no etcd."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with etcd_cluster(tmp_path_factory.mktemp("etcd"), options=FAST) as cluster:
        yield cluster
