"""Shared by the commands: errors in one line, signals, the options that name a node, JSON."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from ...transport.errors import Closed, InvalidRequest, Unavailable
from ...transport.files import checked_path
from ..control.client import ControlClient, read_control_file, running_nodes
from ..market.views import as_json
from ..tools.config import ENV_PREFIX, home_folder
from .numbers import Number
from .output import say

_LOOK_S: Final = 0.2
"""Seconds between two looks of a waiting main thread at whether a signal came."""


def wait_for(ended: threading.Event) -> None:
    """Wait for the event of :func:`until_signalled`.

    The kernel may deliver a signal to a thread other than the main one, such as the second of two at once. Then Python
    calls the handler only if the main thread runs now and then.
    """
    while not ended.wait(_LOOK_S):
        pass


@contextlib.contextmanager
def until_signalled(on_hangup: Callable[[], None] | None = None) -> Iterator[threading.Event]:
    """Set the event on SIGTERM or SIGINT, and call ``on_hangup`` on SIGHUP, instead of their default actions."""
    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    if on_hangup is not None:
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda *_: on_hangup())
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def watching() -> Iterator[threading.Event]:
    """Set the event on SIGTERM or SIGINT, which ends a live view."""
    with until_signalled() as ended:
        try:
            yield ended
        except Closed:
            if not ended.is_set():
                raise


_Command = TypeVar("_Command", bound=Callable[..., Any])


def options(*options: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    """Return a decorator that gives a command all of ``options``, in this order."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


class GivenPath(click.Path):
    """A path; an empty one, such as from an unset variable, would mean the current folder."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if value == "":
            self.fail("it is an empty path; for the current folder write .", param, ctx)
        return super().convert(value, param, ctx)


at_node = options(
    click.option("--node", "node_name", metavar="NAME", help="The node to ask.  [default: the only one that runs]"),
    click.option("--data-dir", type=GivenPath(), help="The same, by its data directory."),
    click.option("--timeout", type=Number(), default=5.0, show_default=True, help="Seconds to wait for the answer."),
    click.option("--json", "as_json_text", is_flag=True, help="Print JSON."),
)
as_request = options(
    click.option("--account", help="On whose behalf.  [default: the node's name]"),
    click.option("--client-order-id", help="Names the request: a retry gets the first answer back."),
    at_node,
)


def connect(
    node_name: str | None, data_dir: Path | None, timeout: float, ended: threading.Event | None = None
) -> ControlClient:
    """Return the link to the node that the options name; it stops waiting once ``ended`` is set."""
    if node_name and data_dir:
        raise click.UsageError("--node and --data-dir name the same thing: give one of them")
    if not 0 < timeout <= 60:
        raise click.UsageError("--timeout is above 0 and at most 60 seconds")
    if data_dir is None and node_name is None and (variable := os.environ.get(f"{ENV_PREFIX}DATA_DIR")):
        data_dir = checked_path(variable, f"{ENV_PREFIX}DATA_DIR")
    if data_dir is not None:
        data_dir = checked_path(data_dir, "--data-dir")
    if data_dir is None:
        home = home_folder(os.environ)
        data_dir = home / "nodes" / node_name if node_name else None
        if data_dir is None or read_control_file(data_dir) is None:
            running = running_nodes(home)
            listed = ", ".join(running) or "none"
            if node_name is None and len(running) == 1:
                (data_dir,) = running.values()
            elif node_name in running:
                data_dir = running[node_name]
            elif node_name is None and running:
                raise InvalidRequest(f"several nodes run here: {listed}; choose one with --node", code="ambiguous_node")
            else:
                what = f"node {node_name} does not run" if node_name else "no node runs"
                raise Unavailable(f"{what} below {home}; running there: {listed}", code="node_not_running")
    return ControlClient(data_dir, timeout=timeout, ended=ended)


def print_json(value: Any, *, done: bool = False) -> None:
    """Print ``value`` as one line of JSON; ``done``: see :func:`~.output.say`."""
    say(json.dumps(as_json(value)), done=done)


def choice(kind: Any) -> click.Choice[str]:
    """Return the type of an option that takes the name of a member of the enum ``kind``."""
    return click.Choice([member.name.lower() for member in kind], case_sensitive=False)
