"""How hard Hypothesis looks, and what happens where there is no recorded order flow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings
from recorded import DATA

# The same examples every time. OPENOUTCRY_EXAMPLES=20000 looks further, at other ones each time.
_examples = os.environ.get("OPENOUTCRY_EXAMPLES")
settings.register_profile(
    "book",
    max_examples=int(_examples or 100),
    derandomize=_examples is None,
    deadline=None,
    database=None,
)
settings.load_profile("book")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of recorded and published order flow; tests that need it are skipped where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"no recorded order flow at {DATA}; set OPENOUTCRY_SHARED to the folder that holds data/")
    return DATA
