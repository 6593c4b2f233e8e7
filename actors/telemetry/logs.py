"""Where the log of a process goes: one thread that writes lines, as JSON or for people to read. For programs only.

An embedded node never configures logging; the command line does, with a :class:`LogOutput` on the root logger.
"""

from __future__ import annotations

import datetime
import io
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TextIO

from ...transport.errors import OpenOutcryError
from ...transport.files import checked_path, os_errors_as
from ...transport.forks import guard
from ...transport.log import without_secrets
from ...transport.plain import plain, plain_lines

FORMATS: Final = ("console", "json")
LEVELS: Final = ("debug", "info", "warning", "error")
LINES_MAX: Final = 10_000
"""Most lines that wait to be written; further lines are discarded and counted, and a line says how many."""
_CLOSE_S: Final = 2.0

_PLAIN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "event", "taskName"}


def _is_news(record: logging.LogRecord) -> bool:
    """Whether to log a record of Pykka's: it also logs errors that an actor has already returned to its asker."""
    return record.levelno != logging.INFO or not record.name.startswith("pykka")


class LogOutput(logging.Handler):
    """Writes log lines on a thread of its own, so that a slow terminal, pipe or disk stalls no actor.

    While it is entered it is the root logger's handler.
    """

    def __init__(
        self,
        *,
        form: str = "console",
        level: str = "info",
        file: Path | None = None,
        lines_max: int = LINES_MAX,
        **fields: str,
    ) -> None:
        """``form``: one of :data:`FORMATS`. ``file``: None = stderr. ``fields``: added to every line.

        Raises:
            ConfigurationError: the file cannot be opened.
        """
        super().__init__(level.upper())
        self.addFilter(_is_news)
        self._file = file
        self._fields = fields
        self._before: tuple[int, list[logging.Handler]] | None = None
        self._thread = threading.Thread(target=self._write_all, name="log-writer", daemon=True)
        self._stream: TextIO = sys.stderr
        self._open()
        self._render = _renderer(form, colors=file is None and sys.stderr.isatty())
        self._queue: queue.Queue[logging.LogRecord | None] = queue.Queue(lines_max)
        self._reopen = threading.Event()
        self.lines_dropped = 0
        """Lines discarded since the start."""
        self.lines_failed = 0
        """Records that could not be formatted, since the start; a line reports each."""
        self._dropped_said = 0

    def __enter__(self) -> LogOutput:
        root = logging.getLogger()
        self._before = root.level, root.handlers
        root.handlers = [self]
        guard(self, LogOutput._withdraw, refuse=False)
        root.setLevel(self.level)
        self._thread.start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record; never blocks."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self.lines_dropped += 1  # under the handler's lock

    @property
    def lines_waiting(self) -> int:
        """Lines that wait to be written."""
        return self._queue.qsize()

    def reopen(self) -> None:
        """Open the file again before the next line, because it was moved away. Safe in a signal handler."""
        self._reopen.set()

    def close(self) -> None:
        """Write the waiting lines, for two seconds at most, and restore the root logger. Idempotent."""
        before, self._before = self._before, None
        if before is not None:
            root = logging.getLogger()
            root.level, root.handlers = before
            try:
                self._queue.put(None, timeout=_CLOSE_S)
            except queue.Full:
                return  # nobody reads what the thread writes: it ends with the process
            self._thread.join(_CLOSE_S)
        if self._stream is not sys.stderr and not self._thread.is_alive():
            self._stream.close()
        super().close()

    def _withdraw(self) -> None:
        """In a forked child, where its thread does not run: accept no more lines."""
        root = logging.getLogger()
        root.handlers = [handler for handler in root.handlers if handler is not self]

    def _open(self) -> None:
        if self._file is None:
            return
        path = checked_path(self._file, "the log file")
        with os_errors_as(f"the log file {path} cannot be opened"):
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = open(path, "a", encoding="utf-8", errors="backslashreplace", buffering=1, opener=_opened)  # noqa: SIM115
        if self._stream is not sys.stderr:
            self._stream.close()
        self._stream = stream

    def _write_all(self) -> None:
        while True:
            record = self._queue.get()
            if self._reopen.is_set():
                self._reopen.clear()
                self._open_again()
            if self.lines_dropped > self._dropped_said:
                count = self.lines_dropped - self._dropped_said
                self._dropped_said += count
                self._write(_said_here(logging.WARNING, "log_lines_dropped", count=count))
            if record is None:
                return
            self._write(record)

    def _open_again(self) -> None:
        try:
            self._open()
        except OpenOutcryError as error:
            self._write(_said_here(logging.ERROR, "log_not_reopened", error=str(error)))
        else:
            self._write(_said_here(logging.INFO, "log_reopened"))

    def _write(self, record: logging.LogRecord) -> None:
        try:
            line = self._line(record)
        except Exception as error:  # another library's wrong arguments must not end this thread
            self.lines_failed += 1
            where = f"{record.pathname}:{record.lineno}"
            failed = without_secrets(f"{type(error).__name__}: {error}")
            line = self._line(_said_here(logging.ERROR, "log_line_failed", said_by=record.name, at=where, error=failed))
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # a full disk, a closed pipe
            self.lines_dropped += 1

    def _line(self, record: logging.LogRecord) -> str:
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        values: dict[str, Any] = {
            "timestamp": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", None) or record.getMessage(),
            "logger": record.name,
            **self._fields,
            **{key: value for key, value in vars(record).items() if key not in _PLAIN},
        }
        if record.exc_info:
            values["exc_info"] = record.exc_info
        return str(self._render(values))


def _opened(path: str, flags: int) -> int:
    """Open a file for writing, without blocking on a pipe that nobody reads."""
    opened = os.open(path, flags | os.O_NONBLOCK, 0o666)
    os.set_blocking(opened, True)
    return opened


def _renderer(form: str, *, colors: bool) -> Callable[[dict[str, Any]], str | bytes]:
    import structlog  # noqa: PLC0415 (a command that only checks settings needs none)

    if form == "json":
        to_json = structlog.processors.JSONRenderer(default=str)
        return lambda values: to_json(None, "", structlog.processors.format_exc_info(None, "", values))
    console = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=_traceback)
    # Text of other libraries needs escaping; ours is plain already.
    return lambda values: console(
        None, "", {key: plain(value) if isinstance(value, str) else value for key, value in values.items()}
    )


def _traceback(stream: TextIO, exc_info: Any) -> None:
    import structlog  # noqa: PLC0415

    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    # Indented, so that no line of an exception looks like a log line.
    stream.write("\n".join([f"  {line}".rstrip() for line in plain_lines(text.getvalue()).split("\n")]))


def _said_here(level: int, event: str, **fields: object) -> logging.LogRecord:
    record = logging.LogRecord(__name__, level, __file__, 0, event, (), None)
    vars(record).update(fields, event=event)
    return record
