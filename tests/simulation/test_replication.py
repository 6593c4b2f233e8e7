"""The replication protocol under seeded schedules of crashes, cut links, slow disks and an unreliable coordinator."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from world import World

SEEDS = int(os.environ.get("OPENOUTCRY_SEEDS", "200"))
FIRST = int(os.environ.get("OPENOUTCRY_FIRST_SEED", "0"))


@pytest.mark.parametrize("block", range(10))
def test_replicas_agree_and_lose_nothing_under_any_schedule(block: int) -> None:
    """A failure names its seed; ``OPENOUTCRY_FIRST_SEED=<seed> OPENOUTCRY_SEEDS=1`` replays it."""
    acknowledged = 0
    for seed in range(FIRST + block, FIRST + SEEDS, 10):
        world = World(seed, nodes=2 + seed % 3)
        try:
            world.run(600)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        acknowledged += world.acknowledged
    assert SEEDS < 10 or acknowledged > 0, "the simulation did nothing"
