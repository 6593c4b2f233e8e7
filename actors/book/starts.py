"""Numbers that grow from one start of a replica to the next, even if the machine's clock jumps."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ...transport.errors import StorageError
from ...transport.numerals import whole_of
from .snapshots import write_durably

SPAN: Final = 2**40
"""Most numbers that one start may use, for its requests and its attempts to join."""


def next_start(path: Path, now_ns: int) -> int:
    """Return a number that is larger, by ``SPAN`` at least, than any that was returned for ``path`` before.

    It is the time in nanoseconds unless the clock was set back. ``path`` stores it durably before it is used.

    Raises:
        StorageError: the disk refused.
    """
    try:
        last = whole_of(path.read_text().removesuffix("\n")) if path.exists() else -SPAN
        if last is None:
            raise ValueError("it holds no whole number")
        number = max(now_ns, last + SPAN)
        write_durably(path, f"{number}\n".encode())
    except (OSError, ValueError) as error:
        raise StorageError(
            f"cannot count the starts of this replica in {path}: {error}; if the file is damaged, and the clock is "
            "right, remove it"
        ) from error
    return number
