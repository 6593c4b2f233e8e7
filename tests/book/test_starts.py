"""Numbers of starts only grow: what a former life of a replica sent can never be taken for this one's."""

from __future__ import annotations

from pathlib import Path

import pytest
from openoutcry.actors.book.starts import SPAN, next_start
from openoutcry.transport.errors import StorageError


def test_each_start_is_beyond_all_that_the_one_before_could_use_though_the_clock_is_set_back(tmp_path: Path) -> None:
    path = tmp_path / "market=starts"
    hour_ns = 3_600_000_000_000
    numbers = [next_start(path, now_ns) for now_ns in (10 * hour_ns, 2 * hour_ns, 2 * hour_ns, 20 * hour_ns)]
    assert numbers == [10 * hour_ns, 10 * hour_ns + SPAN, 10 * hour_ns + 2 * SPAN, 20 * hour_ns]


def test_an_unreadable_count_is_not_restarted(tmp_path: Path) -> None:
    path = tmp_path / "market=starts"
    path.write_text("?")
    with pytest.raises(StorageError):
        next_start(path, 1)
