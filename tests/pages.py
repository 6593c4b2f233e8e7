"""The README and the pages of ``docs/``: their code blocks, and a sandbox in which those of one page run in order.

A comment on the line before a block says what is special about it:

- ``<!-- not run: WHY -->``: it needs what a test does not have. What can be checked without running it is.
- ``<!-- file: NAME -->``: it is the contents of a file, beside which the following blocks run.
- ``<!-- terminals -->``: each line is typed in a terminal of its own; what runs on is ended when the page is done.
- ``<!-- fails: CODE -->``: the command ends with this error, as the page says.
- ``<!-- test-command -->``, ``<!-- example-command -->``: ``.ci/run`` runs it, in a fresh clone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
PAGES: Final = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
LANGUAGES: Final = ("python", "sh", "toml", "text", "ini", "yaml", "json")
MARKS: Final = ("not run", "file", "terminals", "fails", "test-command", "example-command")
BLOCK_S_MAX: Final = 90.0
SERVERS: Final = re.compile(r"openoutcry (directory|node|demo)\b|--watch\b")

_FENCE: Final = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK: Final = re.compile(r"<!-- ([a-z -]+?)(?:: (.*?))? -->")
_ERROR: Final = re.compile(r"\([a-z_]+\)\s*\Z")
"""The end of a line by which a command says what it failed by."""
_PORT: Final = re.compile(r"(127\.0\.0\.1:)([1-9][0-9]{3,4})")
_DRIVER: Final = """
import json, os, sys, traceback
names = sys.modules["__main__"].__dict__
for line in sys.stdin:
    where, text = json.loads(line)
    try:
        exec(compile(text, where, "exec"), names)
        answer = b"+"
    except BaseException:
        traceback.print_exc()
        answer = b"-"
    sys.stdout.flush()
    os.write(int(sys.argv[1]), answer)
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    marks: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def not_run(self) -> bool:
        return "not run" in self.marks

    @property
    def is_test(self) -> bool:
        """Whether it is a module of tests for pytest."""
        return self.language == "python" and re.search(r"^(async )?def test_", self.text, re.MULTILINE) is not None


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(text):
        marks: dict[str, str] = {}
        for line in reversed(text[: fence.start()].splitlines()):
            mark = _MARK.fullmatch(line.strip())
            if mark is None:
                break
            marks[mark[1]] = mark[2] or ""
        found.append(Block(page, text.count("\n", 0, fence.start()) + 1, fence[1], fence[2], marks))
    return found


def commands_of(text: str) -> Iterator[str]:
    """Yield the command lines of a block: continued ones joined, comments and empty ones left out."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.strip().startswith("#"):
            yield line.strip()


def openoutcry_arguments(command: str) -> list[str] | None:
    """Return the arguments of an ``openoutcry`` command in a line of shell; None: it is another's."""
    try:
        words = list(shlex.split(command, comments=True))
    except ValueError:
        return None
    while words and (words[0] in ("sudo", "exec") or re.fullmatch(r"[A-Z_]+=.*", words[0])):
        del words[0]
        while words and words[0] == "-u":
            del words[:2]
    if not words or Path(words[0]).name != "openoutcry":
        return None
    end = next((at for at, word in enumerate(words) if word in ("|", "&", "&&", ">", "<", ";", "||")), len(words))
    return words[1:end]


class Sandbox:
    """A folder, a home and ports of its own, in which the blocks of one page run in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ports: dict[str, str] = {}
        self._outputs = 0
        self._python: subprocess.Popen[str] | None = None
        self._answers = -1
        self._groups: list[int] = []
        self._servers: list[tuple[str, subprocess.Popen[bytes], Path]] = []
        self._outputs_folder = folder / ".outputs"
        self._outputs_folder.mkdir()
        here = str(Path(sys.executable).parent)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENOUTCRY_", "PYTEST_"))}
        self._environment = kept | {
            "HOME": str(folder),
            "PATH": os.pathsep.join([here, os.environ.get("PATH", os.defpath)]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "NO_COLOR": "1",
        }

    def run(self, block: Block) -> None:
        """Run one block; an AssertionError says what went wrong, and shows what it printed."""
        text = self._own(block.text)
        if "file" in block.marks:
            path = self.folder / block.marks["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        if block.language == "toml":
            path = self.folder / block.marks.get("file", f"line-{block.line}.toml")
            path.write_text(text)
            self._shell(f"openoutcry config check {shlex.quote(path.name)}", str(block))
        elif block.language == "sh" and "terminals" in block.marks:
            for command in commands_of(text):
                self._terminal(command, f"{block}: {command}", block.marks.get("fails"))
        elif block.language == "sh":
            self._shell(text, str(block), fails=block.marks.get("fails"))
        elif block.language == "python" and "file" not in block.marks:
            if block.is_test:
                path = self.folder / f"test_line_{block.line}.py"
                path.write_text(text)
                self._shell(f"python -m pytest -q -p no:cacheprovider {path.name}", str(block))
            else:
                self._exec(text, str(block))

    def close(self) -> None:
        """End all that still runs; servers have to end in order."""
        codes: list[tuple[str, int, Path]] = []
        for where, server, output in reversed(self._servers):
            killed = server.poll() == -signal.SIGKILL  # as the page asks for
            server.send_signal(signal.SIGINT)
            codes.append((where, 0 if killed else _wait(server, 40), output))
        if self._python is not None:
            assert self._python.stdin is not None
            self._python.stdin.close()
            codes.append(("python", _wait(self._python, 40), self._output(0)))
            os.close(self._answers)
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        for where, code, output in codes:
            assert code == 0, f"{where} ended with {code}:\n{_text(output)}"

    def _own(self, text: str) -> str:
        """Return ``text`` with the ports of the page put in the place of the written ones."""

        def own_port(found: re.Match[str]) -> str:
            if found[2] not in self._ports:
                with socket.socket() as free:
                    free.bind(("127.0.0.1", 0))
                    self._ports[found[2]] = str(free.getsockname()[1])
            return found[1] + self._ports[found[2]]

        return _PORT.sub(own_port, text)

    def _output(self, number: int) -> Path:
        return self._outputs_folder / f"output-{number}"

    def _new_output(self) -> Path:
        self._outputs += 1
        return self._output(self._outputs)

    def _spawn(self, command: str, output: IO[bytes]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._groups.append(process.pid)
        return process

    def _shell(self, command: str, where: str, fails: str | None = None) -> None:
        path = self._new_output()
        with path.open("wb") as output:
            code = _wait(self._spawn(command, output), BLOCK_S_MAX)
        said = _text(path)
        if fails is None:
            assert code == 0, f"{where} ended with {code}:\n{said}"
        else:
            assert code, f"{where} should have failed with {fails}, and said:\n{said}"
            assert said.rstrip().endswith(f"({fails})"), f"{where} failed otherwise than with {fails}:\n{said}"

    def _terminal(self, command: str, where: str, fails: str | None) -> None:
        """Type one line: a server runs on; another command is typed again while what it needs is still starting."""
        deadline_s = time.monotonic() + BLOCK_S_MAX
        while SERVERS.search(command):
            path = self._new_output()
            with path.open("wb") as output:
                default = f"export OPENOUTCRY_DIRECTORY=tcp://{self._own('127.0.0.1:7400')}"
                server = self._spawn(f"{default}; exec {command}", output)
            while not path.stat().st_size and server.poll() is None and time.monotonic() < deadline_s:
                time.sleep(0.02)
            if _ERROR.search(_text(path)):  # what it needs is held by one that is still ending
                server.wait(BLOCK_S_MAX)
            if server.poll() is None:
                self._servers.append((where, server, path))
                return
            assert time.monotonic() < deadline_s, f"{where}\n{_text(path)}"
            time.sleep(0.2)
        while True:
            try:
                self._shell(command, where, fails)
            except AssertionError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.2)
            else:
                return

    def _exec(self, text: str, where: str) -> None:
        if self._python is None:
            self._answers, theirs = os.pipe()
            with self._output(0).open("wb") as output:
                self._python = subprocess.Popen(
                    [sys.executable, "-c", _DRIVER, str(theirs)],
                    cwd=self.folder,
                    env=self._environment,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=[theirs],
                    text=True,
                    start_new_session=True,
                )
            os.close(theirs)
            self._groups.append(self._python.pid)
        assert self._python.stdin is not None
        self._python.stdin.write(json.dumps([where, text]) + "\n")
        self._python.stdin.flush()
        ready, _, _ = select.select([self._answers], [], [], BLOCK_S_MAX)
        answer = os.read(self._answers, 1) if ready else b"no answer in time"
        assert answer == b"+", f"{where}: {answer!r}\n{_text(self._output(0))}"


def _wait(process: subprocess.Popen[Any], seconds: float) -> int:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        return -1


def _text(path: Path) -> str:
    return path.read_text(errors="replace")[-8000:]
