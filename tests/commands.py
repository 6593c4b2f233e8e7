"""The command line in a process of its own, which is a fork of one that has imported it: a tenth of a new one's time.

For tests that run it dozens of times. What only a new interpreter does, such as its exit, takes ``subprocess``.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_forked = multiprocessing.get_context("forkserver")


def run_command(arguments: list[str], environment: dict[str, str], within_s: float) -> subprocess.CompletedProcess[str]:
    """Run ``openoutcry`` with these arguments, and nothing to read; kill it if it takes longer."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = _forked.Process(target=_main, args=(arguments, environment, out, err))
        process.start()
        process.join(within_s)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(arguments, within_s, out.read_text(), err.read_text())
        return subprocess.CompletedProcess(arguments, process.exitcode, out.read_text(), err.read_text())


def _main(arguments: list[str], environment: dict[str, str], out: Path, err: Path) -> None:
    from openoutcry.actors.cli import main  # noqa: PLC0415 (it has been imported in the process that is forked)

    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path, flags in ((0, os.devnull, os.O_RDONLY), (1, out, os.O_CREAT), (2, err, os.O_CREAT)):
        opened = os.open(path, flags | os.O_RDWR)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.argv = ["openoutcry", *arguments]
    main()
