"""The command line's link to a node: what travels (:mod:`.wire`), the node's end (:mod:`.server`), the other one.

The names below are imported when they are first used: what only looks for nodes pays for no server.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import ControlClient, read_control_file

__all__ = ["ControlClient", "read_control_file"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        globals()[name] = found = getattr(importlib.import_module(".client", __name__), name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
