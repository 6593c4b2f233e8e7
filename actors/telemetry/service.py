"""What a node's process tells the service manager that has started it: systemd's notification protocol (sd_notify(3)).

=================  ================================================================================================
READY=1            the node has recovered what is on its disk, is announced, and answers the command line
STATUS=…           how its markets are, in words, for ``systemctl status``
WATCHDOG=1         the process is at work; what is not said in time has it ended and restarted
EXTEND_TIMEOUT…    while it recovers: it is at work, however long that takes
STOPPING=1         it was told to end, hands over and closes
=================  ================================================================================================
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Final

from ...transport.numerals import whole_of
from ...transport.plain import plain

EXTEND_S: Final = 60
"""By how much a start that goes on is extended, in seconds; said anew every quarter of that."""


class ServiceManager:
    """Tells the service manager how the process is; does nothing where there is none."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """``environment``: of the process: ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID``."""
        self._address = environment.get("NOTIFY_SOCKET", "")
        mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        period = environment.get("WATCHDOG_USEC", "") if mine else ""
        self.watchdog_s = (whole_of(period) or 0) / 1e6
        """The process is ended if it says nothing for so long, in seconds; 0: never."""
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def tell(self, **states: object) -> bool:
        """Tell states, as ``READY=1``; return whether somebody took them."""
        if not self._address:
            return False
        # A name that begins with @ is in the kernel's namespace of its own.
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        lines = [f"{key}={plain(' '.join(str(value).splitlines()))}" for key, value in states.items()]
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
            to.settimeout(1.0)
            to.sendto("\n".join(lines).encode(), address)
            return True
        return False

    def begin(self, condition: Callable[[], tuple[bool, str]] | None) -> None:
        """Tell from now on, on a thread, how the process is.

        ``condition`` returns whether it is at work, and how it is in words; None: it starts, for as long as it takes.
        """
        self.end()
        if not self._address:
            return
        self._ended = ended = threading.Event()
        every_s = EXTEND_S / 4 if condition is None else min(self.watchdog_s / 3 or 5.0, 5.0)

        def go_on() -> None:
            while True:
                if condition is None:
                    self.tell(STATUS="recovering", EXTEND_TIMEOUT_USEC=EXTEND_S * 1_000_000)
                else:
                    at_work, words = condition()
                    self.tell(STATUS=words, **({"WATCHDOG": 1} if at_work and self.watchdog_s else {}))
                if ended.wait(every_s):
                    return

        self._thread = threading.Thread(target=go_on, name="service-manager", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Tell no more. Idempotent."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
