"""Fills the lists of the reference in from the package, when the site is built: ``<!-- list: NAME -->`` in a page."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

import click
from openoutcry.actors import MarketRules
from openoutcry.actors.book.commands import MESSAGES
from openoutcry.actors.cli import main
from openoutcry.actors.group import CODEC
from openoutcry.actors.settings import SETTINGS
from openoutcry.actors.telemetry.metrics import METRICS
from openoutcry.transport.log import EVENTS

MARK: Final = re.compile(r"<!-- list: ([a-z ]+) -->")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    lines = [list(head), *[[cell.replace("|", "\\|") for cell in row] for row in rows]]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join([f"| {' | '.join(line)} |" for line in lines])


def events() -> str:
    """Return every event that is logged."""
    return table(("event", "meaning"), ((f"`{event}`", meaning) for event, meaning in EVENTS.items()))


def metrics() -> str:
    """Return every metric."""
    return table(
        ("metric", "kind", "labels besides `node`", "meaning"),
        (
            (f"`{name}`", metric.kind, ", ".join(f"`{label}`" for label in metric.labels), metric.help)
            for name, metric in METRICS.items()
        ),
    )


def rejections() -> str:
    """Return every code with which a book rejects a command."""
    return table(("code", "meaning"), ((f"`{code}`", meaning) for code, meaning in MESSAGES.items()))


def rules() -> str:
    """Return every rule of a market with its default."""
    return table(
        ("key", "default"), ((f"`{field.name}`", f"`{field.default!r}`") for field in dataclasses.fields(MarketRules))
    )


def settings() -> str:
    """Return every setting of a node with its default."""
    return table(
        ("key", "default", "meaning"),
        ((f"`{name}`", f"`{setting.default_text}`", setting.help) for name, setting in SETTINGS.items()),
    )


def frames() -> str:
    """Return every kind of frame between nodes, with its fields."""
    rows = []
    for kind, number in sorted(CODEC._kind_of.items(), key=lambda item: item[1]):
        names = ", ".join(f"`{field.name}`" for field in dataclasses.fields(kind))
        rows.append((str(number), f"`{kind.__name__}`", names, _plain(inspect.getdoc(kind) or "")))
    return table(("kind", "message", "fields, in order", "meaning"), rows)


def commands() -> str:
    """Return the help of every command."""
    parts: list[str] = []

    def add(command: click.Command, context: click.Context | None, depth: int) -> None:
        within = click.Context(command, info_name=command.name or "openoutcry", parent=context, max_content_width=100)
        within.terminal_width = 100
        parts.append(f"{'#' * min(depth, 3)} {within.command_path}\n\n```text\n{command.get_help(within)}\n```")
        if isinstance(command, click.Group):
            for each in command.commands.values():
                add(each, within, depth + 1)

    for command in main.commands.values():
        add(command, click.Context(main, info_name="openoutcry", **main.context_settings), 2)
    return "\n\n".join(parts)


def _plain(text: str) -> str:
    """Return the first paragraph of a docstring as one line of Markdown."""
    first = " ".join(text.partition("\n\n")[0].split())
    return re.sub(r":\w+:`[~.]*(?:[\w.]*\.)?(\w+)`", r"`\1`", first).replace("``", "`")


LISTS: Final[dict[str, Callable[[], str]]] = {
    "commands": commands,
    "events": events,
    "frames": frames,
    "metrics": metrics,
    "rejections": rejections,
    "rules": rules,
    "settings": settings,
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put each list where its mark is; called by MkDocs for every page."""
    return MARK.sub(lambda mark: LISTS[mark[1]](), markdown)
