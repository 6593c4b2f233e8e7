"""Where the shared data lies, and how hard Hypothesis looks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

BESIDE_THE_REPOSITORY = Path(__file__).resolve().parents[3] / "shared"

# CI runs the same examples every time. OPENOUTCRY_EXAMPLES=20000 looks further, at other ones each time.
_examples = os.environ.get("OPENOUTCRY_EXAMPLES")
settings.register_profile(
    "book",
    max_examples=int(_examples or 300),
    derandomize=_examples is None,
    deadline=None,
    database=None,
)
settings.load_profile("book")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of recorded and published order flow; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("OPENOUTCRY_SHARED", BESIDE_THE_REPOSITORY)) / "data"
    if not folder.is_dir():
        pytest.skip(f"no recorded order flow at {folder}; set OPENOUTCRY_SHARED to the folder that holds data/")
    return folder
