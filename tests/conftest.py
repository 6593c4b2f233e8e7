"""What tests of several modules share: one etcd, and the guard of the quick ones."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import pytest
from etcd_cluster import FAST, EtcdCluster, etcd_cluster, missing
from quick import Guard, is_slow

GUARD = Guard()


def pytest_itemcollected(item: pytest.Item) -> None:
    if is_slow(item):
        item.add_marker("slow")


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
