"""Printing, and failing in one line: the only module that every command imports, so that help is quick."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, Final

import click

from ...transport.errors import Copied, OpenOutcryError, text_of
from ...transport.files import refusal
from ...transport.plain import plain

_SHOWN_MAX: Final = 500
"""Most characters of unprinted output that are repeated on stderr."""


class Failure(Copied, click.ClickException):
    """An error of the library as one line on stderr, and exit code 1."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(f"{' '.join(message.split())} ({code})")

    def show(self, file: Any = None) -> None:
        """Print the line."""
        del file
        say(self.message, err=True)


class BadSettings(Failure):
    """The settings are wrong: the service manager does not restart the process."""

    exit_code = os.EX_CONFIG


class OutputFailed(Failure):
    """Standard output cannot be written: it has its own exit code, since the command may have been carried out."""

    exit_code = os.EX_IOERR

    def __init__(self, reason: str, text: str = "", *, done: bool = False) -> None:
        """``done``: the command was carried out, and ``text`` says with which result."""
        self._quiet = reason == os.strerror(errno.EPIPE) and not done
        """The reader has closed the pipe."""
        shown = text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}…"
        what = f"{'what was asked is done, but ' if done else ''}standard output cannot be written ({reason})"
        super().__init__(f"{what}; it was to say: {shown}" if done else what, "output_failed")

    def show(self, file: Any = None) -> None:
        """Print the line, unless the reader left."""
        if not self._quiet:
            super().show(file)


class Group(click.Group):
    """Commands that print their errors in one line."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command. A terminal that lacks a letter shows its number; file descriptors 0 to 2 are open.

        A process that was started without one of them would open its own files there, and then print into them.
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
            if "OPENOUTCRY_TRACEBACK" in os.environ:
                raise
            raise Failure(
                f"an error that nobody has thought of, {text_of(error)}; please report it, with what "
                "OPENOUTCRY_TRACEBACK=1 shows",
                "internal",
            ) from error


@contextlib.contextmanager
def _plain_usage() -> Iterator[None]:
    """Escape what a usage error quotes: a script may have passed on text from a peer."""
    try:
        yield
    except click.UsageError as error:
        vars(error)["message"] = plain(error.message)
        raise


def say(*lines: str, err: bool = False, done: bool = False) -> None:
    """Print ``lines``, escaped, since they may hold text from a peer. Ignore a full stderr.

    ``done``: they report the result of a change.

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
    """Discard what ``stream`` still holds: otherwise Python retries at exit, and makes the exit code 120."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # there is none, or it is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
