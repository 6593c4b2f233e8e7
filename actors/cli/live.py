"""Live output, such as a view or progress: in place in a terminal, as lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import click

from ...transport.log import PROGRESS_S
from ...transport.plain import plain
from .output import say

WATCH_S: Final = 0.5
"""Seconds between two updates of a view; each costs the node a request."""


def watch(
    view: Callable[[], list[str] | None], ended: threading.Event, *, every_s: float = WATCH_S, in_place: bool = True
) -> None:
    """Show what ``view`` returns until ``ended``; None = nothing new.

    In a terminal it is shown in place, by rich if that is installed. Elsewhere, or if ``in_place`` is False, its lines
    follow each other.
    """
    with _terminal() if in_place and sys.stdout.isatty() else _Lines() as shown:
        while not ended.is_set():
            lines = view()
            if lines is not None:
                shown.show(lines)
            ended.wait(every_s)


class _Lines:
    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        return

    def show(self, lines: list[str]) -> None:
        say(*lines)


class _Cleared(_Lines):
    def show(self, lines: list[str]) -> None:
        click.clear()
        super().show(lines)


class _InPlace(_Lines):
    """A rich ``Live``: it redraws changes, and leaves the last view on the screen."""

    def __init__(self, live: Any, text: Callable[..., Any]) -> None:
        self._live = live
        self._text = text

    def __enter__(self) -> _InPlace:
        self._live.start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._live.stop()

    def show(self, lines: list[str]) -> None:
        text = self._text("\n".join([plain(line) for line in lines]), no_wrap=True, overflow="ellipsis")
        text.highlight_regex(r"\b(yes|up|ready|leading|equal)\b", "green")
        text.highlight_regex(r"\b(no|down|stopped|failed|DIFFER|error|failure)\b", "bold red")
        text.highlight_regex(r"(?m)^[A-Z][A-Z /]+$|^(NODE|MARKET) .*$", "bold")
        self._live.update(text, refresh=True)


def _terminal() -> _Lines:
    try:
        from rich.live import Live  # noqa: PLC0415 - an optional dependency
        from rich.text import Text  # noqa: PLC0415
    except ImportError:
        return _Cleared()
    return _InPlace(Live(auto_refresh=False), Text)


@contextlib.contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show progress on stderr; call the yielded function with the newly done amount and the total.

    In a terminal this is a bar, if rich is installed; elsewhere a line now and then, and none for short work.
    """
    if sys.stderr.isatty() and (bar := _bar()) is not None:
        with bar as shown:
            task = shown.add_task(plain(label).replace("[", "\\["))  # rich would read it as its markup
            yield lambda more, of: shown.update(task, advance=more, total=of)
        return
    done, said_s = 0, time.monotonic()

    def tell(more: int, of: int) -> None:
        nonlocal done, said_s
        done += more
        if time.monotonic() - said_s >= PROGRESS_S:
            said_s = time.monotonic()
            say(f"{label}: {done:,} of {of:,}", err=True)

    yield tell


def _bar() -> Any:
    try:
        from rich.console import Console  # noqa: PLC0415 - an optional dependency
        from rich.progress import Progress  # noqa: PLC0415
    except ImportError:
        return None
    return Progress(console=Console(stderr=True), transient=True)
