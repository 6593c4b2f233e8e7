"""Links of nodes with TLS come back soon after each restart, under load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RESTARTS = Path(__file__).parents[1] / "benchmarks" / "restarts.py"
COUNT = os.environ.get("OPENOUTCRY_RESTARTS", "8")
"""How many restarts; the wanted figure is of 500."""


@pytest.mark.alone
def test_every_link_is_back_within_five_seconds_of_a_restart_under_load() -> None:
    pytest.importorskip("cryptography")
    done = subprocess.run(
        [sys.executable, str(RESTARTS), "--restarts", COUNT, "--any", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert found["restarts"] == int(COUNT)
    assert found["late"] == []
