"""One market's replica: the order book, the log, the replication protocol, and the actor that owns them."""

from __future__ import annotations

from importlib.util import find_spec


def engine_build() -> str:
    """Return ``"compiled"`` if the matching engine in use was built with mypyc, else ``"pure Python"``."""
    spec = find_spec(f"{__name__}.orderbook")
    return "pure Python" if spec is None or str(spec.origin).endswith(".py") else "compiled"
