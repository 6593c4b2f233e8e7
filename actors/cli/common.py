"""What the commands share: errors in one line, signals, the options that name a node, JSON."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from ...transport.errors import Closed, Copied, InvalidRequest, OpenOutcryError, Unavailable, text_of
from ...transport.files import checked_path, refusal
from ...transport.plain import plain
from ..control.server import ControlClient, read_control_file, running_nodes
from ..market.views import as_json
from ..tools.config import ENV_PREFIX, home_folder
from .numbers import Number

_LOOK_S: Final = 0.2
_SHOWN_MAX: Final = 500
"""Most characters of what could not be printed that stderr is told."""


class Failure(Copied, click.ClickException):
    """An error of the library as one line on stderr, and exit code 1."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(f"{' '.join(message.split())} ({code})")

    def show(self, file: Any = None) -> None:
        """Print the line."""
        del file
        say(self.message, err=True)


class BadSettings(Failure):
    """The settings are wrong: the service manager starts no such process again."""

    exit_code = os.EX_CONFIG


class OutputFailed(Failure):
    """Standard output cannot be written: an exit code of its own, since what was asked may be done all the same."""

    exit_code = os.EX_IOERR

    def __init__(self, reason: str, text: str = "", *, done: bool = False) -> None:
        """``done``: what was asked is done, and ``text`` says what came of it."""
        self._quiet = reason == os.strerror(errno.EPIPE) and not done
        """Whoever reads has seen enough."""
        shown = text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}…"
        what = f"{'what was asked is done, but ' if done else ''}standard output cannot be written ({reason})"
        super().__init__(f"{what}; it was to say: {shown}" if done else what, "output_failed")

    def show(self, file: Any = None) -> None:
        """Print the line, if anybody is to know."""
        if not self._quiet:
            super().show(file)


class Group(click.Group):
    """Commands whose errors are told in one line, not thrown."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command, where a terminal that lacks a letter shows its number, and 0 to 2 are the standard streams.

        A process that was started without one of them would open its files there, and then print into these.
        """
        for number in range(3):
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)
        if sys.stderr is None:
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for as long as the process lives)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().main(*args, **kwargs)
        except OSError as error:  # of what click prints: help, the version
            _discard(sys.stdout)
            failed = OutputFailed(error.strerror or str(error))
            failed.show()
            sys.exit(failed.exit_code)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the arguments."""
        with _plain_usage():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            with _plain_usage():
                return super().invoke(ctx)
        except OpenOutcryError as error:
            kind = BadSettings if error.code == "bad_path" else Failure
            raise kind(error.message, error.code) from error
        except OSError as error:
            refused = refusal(error, f"`{ctx.invoked_subcommand}` cannot go on")
            if refused.code == "bad_path":
                raise BadSettings(refused.message, refused.code) from error
            raise Failure(str(error), "os_error") from error
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if f"{ENV_PREFIX}TRACEBACK" in os.environ:
                raise
            raise Failure(
                f"an error that nobody has thought of, {text_of(error)}; please report it, with what "
                f"{ENV_PREFIX}TRACEBACK=1 shows",
                "internal",
            ) from error


@contextlib.contextmanager
def _plain_usage() -> Iterator[None]:
    """Make plain what an error of usage quotes: a script may have put there what a peer has sent."""
    try:
        yield
    except click.UsageError as error:
        vars(error)["message"] = plain(error.message)
        raise


def say(*lines: str, err: bool = False, done: bool = False) -> None:
    """Print ``lines``, each made plain: they may hold what a peer has sent. A stderr that is full is passed over.

    ``done``: they say what came of a change that was asked for.

    Raises:
        OutputFailed: standard output cannot be written, or is closed.
    """
    text = "\n".join([plain(line) for line in lines])
    try:
        if not err and sys.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        click.echo(text, err=err)
    except OSError as error:
        _discard(sys.stderr if err else sys.stdout)
        if not err:
            raise OutputFailed(error.strerror or str(error), text, done=done) from error


def _discard(stream: Any) -> None:
    """Have what ``stream`` still holds go nowhere: Python tries it again at the end, and makes the exit code 120."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # there is none, or it is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def wait_for(ended: threading.Event) -> None:
    """Wait for the event of :func:`until_signalled`.

    The kernel may give a signal to a thread other than the main one, as it does with the second of two at once: then
    nothing but a look now and then has Python call the handler.
    """
    while not ended.wait(_LOOK_S):
        pass


@contextlib.contextmanager
def until_signalled(on_hangup: Callable[[], None] | None = None) -> Iterator[threading.Event]:
    """Set the event on SIGTERM or SIGINT, and call ``on_hangup`` on SIGHUP, instead of what these do otherwise."""
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
    """Set the event on SIGTERM or SIGINT: so ends what is shown until somebody has seen enough of it."""
    with until_signalled() as ended:
        try:
            yield ended
        except Closed:
            if not ended.is_set():
                raise


_Command = TypeVar("_Command", bound=Callable[..., Any])


def options(*options: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


class GivenPath(click.Path):
    """A path; an empty one, as of a variable that is not set, would else be the current folder."""

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
    """Return the link to the node that the options mean; it waits for nothing once ``ended`` is set."""
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
                raise Unavailable(f"{what} below {home}; there run: {listed}", code="node_not_running")
    return ControlClient(data_dir, timeout=timeout, ended=ended)


def print_json(value: Any, *, done: bool = False) -> None:
    say(json.dumps(as_json(value)), done=done)


def choice(kind: Any) -> click.Choice[str]:
    return click.Choice([member.name.lower() for member in kind], case_sensitive=False)
