"""The rooms of the code: who may import whom, whose names are private, how long things may be. Starts nothing."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = (
    "cli", "gateways", "tools", "testing", "testkit", "control", "aio", "node", "group", "settings", "telemetry",
    "market", "remote", "book", "leadership", "peers", "kit", "transport",
)  # fmt: skip
"""Every room, from the top: each imports only what stands below it. ``actors/__init__.py`` only names things."""
FACADES = {
    ("actors/node.py", "ExchangeNode"),
    ("actors/aio.py", "AsyncNode"),
    ("actors/market/handle.py", "Market"),
    ("actors/book/actor.py", "BookActor"),
    ("actors/book/shell.py", "Shell"),
}
"""Classes that stay thin."""
CLASS_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
LONG = {
    ("actors/book/orderbook.py", "_execute"),  # the hot loop
}
"""Functions that may be longer, and why."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def sources() -> dict[str, ast.Module]:
    """Return every module of the product, by its path."""
    paths = [path for folder in ("actors", "transport") for path in sorted((ROOT / folder).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def room_of(path: str) -> str:
    parts = path.split("/")
    return "transport" if parts[0] == "transport" else parts[1].removesuffix(".py")


def imports(path: str, module: ast.Module) -> Iterator[tuple[str, int, list[str]]]:
    """Yield the room, the line and the names of every import within the product; those for types only count."""
    package = ["openoutcry", *path.removesuffix(".py").split("/")[:-1]]
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            target = [*base, *(node.module or "").split(".")] if node.module else base
            names = [alias.name for alias in node.names]
            for name in names if not node.module else [""]:
                full = [*target, name] if name else target
                if full[:2] == ["openoutcry", "transport"]:
                    yield "transport", node.lineno, names
                elif full[:2] == ["openoutcry", "actors"] and len(full) > 2:
                    yield full[2], node.lineno, names


def test_every_room_imports_only_what_stands_below_it() -> None:
    wrong = []
    for path, module in sources().items():
        room = room_of(path)
        for other, line, _ in imports(path, module):
            if room not in ("__init__", other) and ROOMS.index(room) >= ROOMS.index(other):
                wrong.append(f"{path}:{line}: {room} imports {other}, which does not stand below it")
    assert wrong == []


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined(module: ast.Module) -> set[str]:
    """Return the private names that a module defines."""
    names = set()
    for node in ast.walk(module):
        if isinstance(node, Function | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)  # of __slots__
    return set(filter(private, names))


@functools.cache
def privates() -> dict[str, set[str]]:
    """Return the private names that each room defines."""
    found: dict[str, set[str]] = {room: set() for room in (*ROOMS, "__init__")}
    for path, module in sources().items():
        found[room_of(path)] |= defined(module)
    return found


def reaches(module: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield each private attribute of something else than ``self`` that a module uses."""
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and private(node.attr):
            holder = node.value
            if not (isinstance(holder, ast.Name) and holder.id in ("self", "cls")):
                yield node.attr, node.lineno


def test_no_room_uses_a_private_name_of_another() -> None:
    wrong = []
    for path, module in sources().items():
        room = room_of(path)
        own = privates()[room]
        ours = set().union(*privates().values())
        wrong += [f"{path}:{line}: {name}" for name, line in reaches(module) if name in ours - own]
        for other, line, names in imports(path, module):
            if other != room:
                wrong += [f"{path}:{line}: imports {name}" for name in names if private(name)]
    assert wrong == []


DOOR = ("node", "aio", "group", "market", "control")
"""Rooms whose private names tests and benchmarks leave alone: they have public ways in."""


def test_no_test_or_benchmark_uses_a_private_name_of_a_node_or_a_market() -> None:
    guarded = set().union(*[names for room, names in privates().items() if room in DOOR])
    guarded -= set().union(*[names for room, names in privates().items() if room not in DOOR])
    wrong = []
    for path in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        module = ast.parse(path.read_text(encoding="utf-8"))
        for name, line in reaches(module):
            if name in guarded - defined(module):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {name}")
    assert wrong == []


def functions(module: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(module) if isinstance(node, Function))


def lines_of(function: Function) -> int:
    """Return how many lines the statements of a function take, without its signature and docstring."""
    statements = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (statements[-1].end_lineno or 0) - statements[0].lineno + 1 if statements else 0


def test_no_function_is_long() -> None:
    long = {
        (path, function.name)
        for path, module in sources().items()
        for function in functions(module)
        if lines_of(function) > FUNCTION_LINES_MAX
    }
    assert long - LONG == set()


@pytest.mark.parametrize(("path", "name"), sorted(FACADES))
def test_a_facade_stays_thin(path: str, name: str) -> None:
    found = next(node for node in sources()[path].body if isinstance(node, ast.ClassDef) and node.name == name)
    assert (found.end_lineno or 0) - found.lineno + 1 < CLASS_LINES_MAX


def test_the_order_book_and_the_codec_need_no_nng() -> None:
    code = """
import sys
sys.modules["pynng"] = None  # as if it were not installed
import openoutcry.actors.book.orderbook, openoutcry.transport.codec
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
