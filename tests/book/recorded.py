"""Where recorded and published order flow lies: beside the repository, or where the environment says."""

from __future__ import annotations

import os
from pathlib import Path

DATA = Path(os.environ.get("OPENOUTCRY_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data"
