"""NodeFolder: a node's data directory: its owner, the markets created there, and the folder of each market's log."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

from ...transport.errors import ConfigurationError, StorageError
from ...transport.files import read_file, refusal
from ..book.rules import MarketRules
from ..book.snapshots import write_durably
from ..book.storage import LOGGED

_OWNER: Final = "node.json"
"""The file in a data directory that says whose it is."""


class NodeFolder:
    """The data directory at ``path`` of the node ``name``, which holds its lock."""

    def __init__(self, path: Path, name: str) -> None:
        """Read the directory, or claim it for the node.

        Raises:
            ConfigurationError: it belongs to another node (code ``other_data_dir``).
            StorageError: a file cannot be read, or is damaged (code ``corrupt``).
        """
        self.path = path
        self.node_id = _claim(path, name)
        """The id of this disk: a wiped directory is a new replica, even if its node keeps its name."""
        self.created = _read_created(path)
        """The markets that were created at this node, and the rules given for each."""

    def of_market(self, market: str) -> Path:
        """Return the folder of a market's log."""
        return self.path / "markets" / quote(market, safe="")

    def logged(self) -> list[str]:
        """Return the markets that have, or had, a log here."""
        found = self.of_market("").glob(f"*{LOGGED}")
        return sorted([unquote(path.name.removesuffix(LOGGED)) for path in found])

    def add_created(self, market: str, rules: MarketRules) -> None:
        """Note on disk that a market was created here."""
        self._write_created(self.created | {market: rules})

    def remove_created(self, market: str) -> None:
        """Undo :meth:`add_created`."""
        self._write_created({name: rules for name, rules in self.created.items() if name != market})

    def _write_created(self, created: Mapping[str, MarketRules]) -> None:
        values = {market: dataclasses.asdict(rules) for market, rules in created.items()}
        _write_json(self.path / "markets.json", values)
        self.created = dict(created)


def owner_of(folder: Path) -> tuple[str, str] | None:
    """Return the id and the name of the node that owns a data directory, None if it has no owner yet.

    Raises:
        StorageError: its ``node.json`` cannot be read, or is damaged (code ``corrupt``).
    """
    path = folder / _OWNER
    stored = _read_json(path)
    if stored is None:
        return None
    node_id, name = stored.get("node_id"), stored.get("name")
    if not isinstance(node_id, str) or not isinstance(name, str):
        raise StorageError(f"{path} names no node: restore it from a backup", code="corrupt")
    return node_id, name


def _claim(folder: Path, name: str) -> str:
    """Return the node id of a data directory; write a new one if it has no owner yet."""
    owner = owner_of(folder)
    if owner is None:
        node_id = f"{name}.{uuid.uuid4().hex[:8]}"
        _write_json(folder / _OWNER, {"node_id": node_id, "name": name})
        return node_id
    if owner[1] != name:
        raise ConfigurationError(
            f"{folder} belongs to node {owner[1]!r}, not {name!r}; give each node its own data directory",
            code="other_data_dir",
        )
    return owner[0]


def _read_created(folder: Path) -> dict[str, MarketRules]:
    path = folder / "markets.json"
    try:
        return {market: MarketRules(**rules) for market, rules in (_read_json(path) or {}).items()}
    except (TypeError, ConfigurationError) as error:
        raise StorageError(f"{path} cannot be read: {error}", code="corrupt") from error


def _read_json(path: Path) -> dict[str, Any] | None:
    """Return the contents of a file in a data directory, None if there is no such file."""
    try:
        found = json.loads(read_file(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refusal(error, f"{path} cannot be read") from error
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path} cannot be read: {error}", code="corrupt") from error
    if not isinstance(found, dict):
        raise StorageError(f"{path} cannot be read: it holds no JSON object", code="corrupt")
    return found


def _write_json(path: Path, value: object) -> None:
    try:
        write_durably(path, json.dumps(value).encode())
    except OSError as error:
        raise StorageError(f"{path} cannot be written, and nothing was changed: {error.strerror}") from error
