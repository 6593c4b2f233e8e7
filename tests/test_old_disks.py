"""Disks that are not what the coordinator believes: copies beside the original, and old copies that come back."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from openoutcry.actors import ExchangeNode, MarketRules
from openoutcry.transport.errors import ConfigurationError

MARKET = "X"
RULES = MarketRules(tick_size="1", lot_size="1")


def start(folder: Path, name: str, **options: Any) -> ExchangeNode:
    options = {"markets": {MARKET: RULES}, "data_dir": folder / name, "balance": False, **options}
    return ExchangeNode(name, coordinator=folder / "c.sqlite", **options)


def test_a_copy_of_a_data_directory_beside_the_original_is_refused(tmp_path: Path) -> None:
    with start(tmp_path, "a") as original:
        original.wait_ready()
        first = original.submit_order(MARKET, "buy", "10", "1").sequence
        shutil.copytree(original.data_dir, tmp_path / "copy")
        began_s = time.monotonic()
        with pytest.raises(ConfigurationError, match="copy of the other") as refused:
            start(tmp_path, "a", data_dir=tmp_path / "copy", lease_ms=500)
        assert refused.value.code == "node_id_in_use"
        assert time.monotonic() - began_s < 10
        assert original.submit_order(MARKET, "buy", "11", "1").sequence == first + 1
