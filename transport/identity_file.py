"""Opens an identity's file, where the package that reads certificates is installed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .errors import ConfigurationError

if TYPE_CHECKING:
    from .certificates import Identity


def open_identity(path: str | Path) -> Identity:
    """Read an identity's file.

    Raises:
        ConfigurationError: it cannot be read, or is not a usable identity (code ``identity``), or the package
            ``cryptography`` is not installed.
    """
    return cast("Identity", certificates().Identity.load(path))


def certificates() -> Any:
    """Return the module :mod:`.certificates`, or raise ConfigurationError if the package that it needs is missing."""
    try:
        return importlib.import_module(".certificates", __package__)
    except ImportError as error:
        raise ConfigurationError(
            f"identities need another package: pip install cryptography ({error})", code="identity"
        ) from error
