"""Files and folders that people name: an error of this project says what is wrong with a path.

Owns no file. An error of the operating system becomes one of two kinds. The path is wrong, and a restart does not help
(ConfigurationError). Or space, file descriptors or threads ran out, or the disk fails, which may pass.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .errors import ConfigurationError, OpenOutcryError, StorageError, Unavailable, quoted

FILE_SIZE_MAX: Final = 4 * 1024 * 1024
"""Most bytes of a file of settings, names or certificates; a longer one is refused."""

_ADVICE: Final = {
    errno.ENOENT: "a folder on the way does not exist, or is a link that leads nowhere",
    errno.ENOTDIR: "what is to be a folder is a file",
    errno.EEXIST: "there is something that is no folder, perhaps a link that leads nowhere",
    errno.EISDIR: "it is a folder, and should be a file",
    errno.ELOOP: "its symbolic links lead round in a circle",
    errno.ENAMETOOLONG: "a part of it is longer than 255 bytes, or all of it than 4,095",
    errno.EACCES: "this user may not; give the rights, or run it as the user who has them",
    errno.EPERM: "this user may not; give the rights, or run it as the user who has them",
    errno.EROFS: "the disk can only be read; choose another, or mount it writable",
    errno.EINVAL: "it is no path of an ordinary file or folder",
    errno.ENXIO: "it is no ordinary file or folder",
    errno.ENODEV: "it is no ordinary file or folder",
    errno.ETXTBSY: "it is a program that runs",
    errno.EILSEQ: "this disk does not take such a name",
}
"""Errors that a restart does not cure, and what each means for a path."""
_PASSING: Final = {
    errno.EMFILE: "this process has as many files and connections open as it may; raise `ulimit -n`",
    errno.ENFILE: "this machine has as many files open as it can",
    errno.ENOMEM: "this machine has no memory left",
    errno.EAGAIN: "this machine starts no more threads or processes for this user; see `ulimit -u`",
}


def checked_path(value: object, what: str) -> Path:
    """Return ``value`` as a path, ``~`` as its user's home; ``what`` names it in errors.

    Raises:
        ConfigurationError: wrong type, empty, with a NUL byte, or ``~`` of an unknown user (``bad_path``).
    """
    if not isinstance(value, (str, os.PathLike)):
        raise ConfigurationError(f"{what} is a path, not {quoted(value)}", code="bad_path")
    text = os.fsdecode(value)
    if not text:
        raise ConfigurationError(f"{what} is an empty path; for the current folder write .", code="bad_path")
    if "\0" in text:
        raise ConfigurationError(f"{what} is {quoted(text, 80)}: no path has a NUL byte", code="bad_path")
    return expanded(Path(text), what)


def expanded(path: Path, what: str) -> Path:
    """Return ``path`` with ``~`` as its user's home.

    Raises:
        ConfigurationError: the user is unknown, or this process's user is (code ``bad_path``).
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise ConfigurationError(
            f"{what} is {str(path)!r:.255}, but there is no such home: set HOME, or OPENOUTCRY_HOME, or give "
            "a whole path",
            code="bad_path",
        ) from None


def refusal(error: BaseException, what: str, *, said: bool = False) -> OpenOutcryError:
    """Return our error for an error of the operating system; its message begins with ``what``.

    ``said``: ``what`` already names the file and quotes the system's message.
    """
    code = error.errno if isinstance(error, OSError) else None
    reason = what if said else f"{what}: {_words(error, what)}"
    if code in _ADVICE:
        return ConfigurationError(f"{reason}: {_ADVICE[code]}", code="bad_path")
    if code in _PASSING:
        return Unavailable(f"{reason}: {_PASSING[code]}", code="out_of_resources")
    if isinstance(error, (MemoryError, RuntimeError)):  # "can't start new thread"
        return Unavailable(f"{reason}: this machine, or this user's limits, leave no room", code="out_of_resources")
    if isinstance(error, ValueError):  # a name that no encoding has, or with a NUL byte
        return ConfigurationError(reason, code="bad_path")
    return StorageError(reason)


def _words(error: BaseException, what: str) -> str:
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error) or type(error).__name__
    name = f" ({os.fsdecode(error.filename)})" if isinstance(error.filename, (str, bytes)) else ""
    return error.strerror if name[2:-1] in what else f"{error.strerror}{name}"


@contextlib.contextmanager
def os_errors_as(what: str) -> Iterator[None]:
    """Raise errors of the operating system in the block as :func:`refusal` does: ``what`` says what failed."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, OpenOutcryError):
            raise
        raise refusal(error, what) from error


def read_file(path: Path) -> bytes:
    """Return the contents of an ordinary file; reading a pipe or a device could block for ever.

    Raises:
        OSError: it is not an ordinary file, is longer than ``FILE_SIZE_MAX``, or cannot be read.
        ValueError: no file can have that path.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(mode := os.fstat(file.fileno()).st_mode):
            code = errno.EISDIR if stat.S_ISDIR(mode) else errno.ENXIO
            raise OSError(code, os.strerror(code), str(path))
        found = file.read(FILE_SIZE_MAX + 1)
    if len(found) > FILE_SIZE_MAX:
        raise OSError(errno.EFBIG, f"it has more than {FILE_SIZE_MAX} bytes", str(path))
    return found
