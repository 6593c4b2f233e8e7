"""What tests of several modules share: one etcd."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from etcd_cluster import FAST, EtcdCluster, etcd_cluster, missing


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """Three members of an etcd; a test that kills one starts it again. Skips where there is no etcd."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with etcd_cluster(tmp_path_factory.mktemp("etcd"), options=FAST) as cluster:
        yield cluster
