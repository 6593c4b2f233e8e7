"""Every path that people name may be wrong: it is told in one line, as a setting that no restart mends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import run_command
from openoutcry.actors import ConfigurationError, ExchangeNode, MarketRules, OpenOutcryError, StorageError
from openoutcry.actors.control.server import ControlServer
from openoutcry.actors.control.wire import CONTROL_FILE
from openoutcry.actors.testing import eventually
from openoutcry.transport.certificates import Authority
from openoutcry.transport.files import checked_path, refusal
from openoutcry.transport.identity_file import open_identity
from openoutcry.transport.sqlite import SqliteCoordinator

OPENOUTCRY = [sys.executable, "-c", "import sys; from openoutcry.actors.cli import main; sys.exit(main())"]
RULES = {"M": MarketRules()}
DIRECTORY = ("--serve-directory", "tcp://127.0.0.1:0", "--directory", "tcp://127.0.0.1:1")
WITHIN_S = 20


def wrong_paths(folder: Path) -> dict[str, str]:
    """Paths by what is wrong with them, for whoever wants a folder there, and most for a file."""
    (folder / "file").write_text("x")
    (folder / "dangling").symlink_to(folder / "nowhere" / "deep")
    (folder / "loop").symlink_to(folder / "pool")
    (folder / "pool").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")
    return {
        "a file": str(folder / "file"),
        "below a file": str(folder / "file" / "x"),
        "dangling": str(folder / "dangling"),
        "loop": str(folder / "loop"),
        "below a loop": str(folder / "loop" / "x"),
        "too long": str(folder / ("x" * 300)),
        "all of it too long": str(folder) + "/x" * 3000,
        "a pipe": str(folder / "pipe"),
        "a device": "/dev/full",
        "not there": "/proc/x/y",
        "of nobody": "~no-such-user/x",
    }


def told(call: Callable[[], object]) -> OpenOutcryError:
    with pytest.raises(OpenOutcryError) as caught:
        call()
    assert len(str(caught.value)) > 20, "it says what is wrong"
    return caught.value


def test_every_wrong_path_is_a_configuration_error_of_every_public_call(tmp_path: Path) -> None:
    paths = {**wrong_paths(tmp_path), "NUL": "a\0b", "empty": ""}
    authority = Authority.create(tmp_path / "authority")
    for what, path in paths.items():
        for call in (
            lambda path=path: ExchangeNode("a", markets=RULES, data_dir=path),
            lambda path=path: ExchangeNode("a", identity=path),
            lambda path=path: open_identity(path),
            lambda path=path: Authority(path),
            lambda path=path: Authority.create(path),
        ):
            assert isinstance(told(call), ConfigurationError), what
        if what != "dangling":
            at = tmp_path / f"data {what}"
            with pytest.raises(ConfigurationError):
                ExchangeNode("a", markets=RULES, data_dir=at, coordinator=path)
            with pytest.raises(ConfigurationError):
                SqliteCoordinator(path)
        if what not in ("empty", "of nobody", "dangling"):
            told(lambda path=path: authority.issue_file(Path(path), "bob"))
    assert [len(authority.issued())] == [0], "nothing is issued that cannot be written"
    for value in (5, None, b"x\0", ["x"]):
        assert told(lambda value=value: checked_path(value, "the data directory")).code == "bad_path"


@pytest.mark.parametrize("name", ["\udcff not UTF-8", "ü x", "-dash", " ", "'quo\"te", "new\nline", "%s {0}", "~"])
def test_odd_names_that_a_disk_takes_are_paths_like_others(tmp_path: Path, name: str) -> None:
    at = tmp_path / name
    with ExchangeNode("a", markets=RULES, data_dir=at, coordinator=at / "c.sqlite") as node:
        node.wait_ready()
        assert node.submit_order("M", "buy", "1", "1").status == "resting"
    with ExchangeNode("a", markets=["M"], data_dir=str(at), coordinator=str(at / "c.sqlite")) as node:
        node.wait_ready()
        assert len(node.open_orders("M")) == 1


def test_what_is_wrong_with_a_file_of_a_data_directory_is_told(tmp_path: Path) -> None:
    with ExchangeNode("a", markets=RULES, data_dir=tmp_path / "good") as node:
        node.wait_ready()
        node.create_market("X", MarketRules())
    for name in ("node.json", "markets.json", "lock", "coordinator.sqlite", "markets"):
        for kind in ("garbage", "an array", "deep", "a folder", "a pipe", "a loop", "a file"):
            at = tmp_path / f"{name} {kind}"
            shutil.copytree(tmp_path / "good", at)
            (shutil.rmtree if name == "markets" else Path.unlink)(at / name)
            if kind == "a folder":
                (at / name).mkdir()
            elif kind == "a pipe":
                os.mkfifo(at / name)
            elif kind == "a loop":
                (at / name).symlink_to(at / name)
            else:
                content = {"garbage": b"\xff{", "an array": b"[1]", "deep": b"[" * 100_000, "a file": b"x"}
                (at / name).write_bytes(content[kind])
            if (name == "lock" and kind in ("garbage", "an array", "deep", "a file", "a pipe")) or (
                name == "markets" and kind == "a folder"
            ):
                continue  # nobody reads what is in it
            error = told(lambda at=at: ExchangeNode("a", markets=RULES, data_dir=at).close())
            assert isinstance(error, (ConfigurationError, StorageError)), (name, kind)


def test_a_call_that_needs_the_disk_tells_that_it_fails_and_works_later(tmp_path: Path) -> None:
    with ExchangeNode("a", markets=RULES, data_dir=tmp_path / "a") as node:
        node.wait_ready()
        (tmp_path / "a" / "markets.json.new").mkdir()  # where it is to be written first
        error = told(lambda: node.create_market("X", MarketRules()))
        assert (type(error), error.code) == (StorageError, "storage")
        assert "nothing was changed" in str(error)
        assert node.submit_order("M", "buy", "1", "1").status == "resting"
        (tmp_path / "a" / "markets.json.new").rmdir()
        node.create_market("X", MarketRules())
        assert node.submit_order("X", "buy", "1", "1").status == "resting"


def test_a_control_file_that_cannot_be_written_is_told_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with ExchangeNode("a", markets=RULES, data_dir=tmp_path / "a") as node:
        (tmp_path / "a" / "control.new").mkdir()
        assert told(lambda: ControlServer(node)).code == "bad_path"
        (tmp_path / "a" / "control.new").rmdir()
        with ControlServer(node):
            assert (tmp_path / "a" / CONTROL_FILE).exists()


def test_what_the_system_lacks_is_no_setting_and_may_pass() -> None:
    assert refusal(RuntimeError("can't start new thread"), "it").code == "out_of_resources"
    assert refusal(OSError(24, "Too many open files"), "it").code == "out_of_resources"
    assert refusal(MemoryError(), "it").code == "out_of_resources"
    assert refusal(OSError(28, "No space left on device"), "it").code == "storage"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OPENOUTCRY_")}
    done = run_command(list(arguments), kept | environment, WITHIN_S)
    assert "Traceback" not in done.stderr, done.stderr
    assert "internal" not in done.stderr, done.stderr
    return done


def assert_wrong(done: subprocess.CompletedProcess[str]) -> None:
    """A configuration error in one line with its code; or wrong usage, where the option itself wants what is there."""
    assert done.returncode in (78, 2), (done.args, done.stderr)
    if done.returncode == 78:
        assert done.stderr.count("\n") == 1
        assert done.stderr.rstrip().endswith(")")


def test_every_wrong_path_of_a_process_that_stays_exits_with_78(tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    for what, path in wrong_paths(tmp_path).items():
        if what == "all of it too long":
            continue  # one of "too long" is enough here: each is a process
        assert_wrong(run("node", "--market", "M", *DIRECTORY, "--data-dir", path, OPENOUTCRY_HOME=home))
        assert_wrong(run("node", "--market", "M", "--config", path, OPENOUTCRY_HOME=home))
        if what not in ("dangling", "a device", "a file"):  # these can be a file
            assert_wrong(run("directory", "--listen", "tcp://127.0.0.1:0", "--log-file", path))
        if what not in ("dangling",):
            assert_wrong(run("node", "--market", "M", *DIRECTORY, OPENOUTCRY_HOME=path))
            assert_wrong(run("node", "--market", "M", *DIRECTORY, "--coordinator", path, OPENOUTCRY_HOME=home))


def test_a_damaged_file_of_a_node_ends_it_with_78(tmp_path: Path) -> None:
    with ExchangeNode("a", markets=RULES, data_dir=tmp_path / "good") as node:
        node.wait_ready()
    node, markets = "node.json", "markets.json"
    for name, content in ((node, b"\xff{"), (node, b'{"name": 5}'), (node, b"null"), (markets, b"[" * 100_000)):
        at = tmp_path / f"{name} {len(content)}"
        shutil.copytree(tmp_path / "good", at)
        (at / name).write_bytes(content)
        done = run("node", "--name", "a", "--market", "M", *DIRECTORY, "--data-dir", str(at))
        assert (done.returncode, done.stderr.split()[-1]) == (78, "(corrupt)"), done.stderr


def test_without_a_home_every_command_says_what_to_set() -> None:
    code = (
        "import os, sys; os.setresuid(54321, 0, 0); os.execve(sys.argv[1], sys.argv[1:], {'PATH': os.environ['PATH']})"
    )
    for arguments in (["config", "show"], ["status"], ["node", "--market", "M"], ["submit", "M", "buy", "1", "1"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *OPENOUTCRY, *arguments],
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
        )
        if os.getuid() != 0:
            pytest.skip("another user can be had by root only")
        assert done.returncode == 78, done.stderr
        assert "set HOME" in done.stderr
        assert "(bad_path)" in done.stderr


def test_a_query_on_a_wrong_path_is_answered_in_one_line(tmp_path: Path) -> None:
    for what, path in wrong_paths(tmp_path).items():
        for arguments in (("status", "--data-dir", path), ("verify", path), ("log", path, "M"), ("replay", path)):
            if what in ("a pipe", "a device") and arguments[0] == "replay":
                continue  # ways to feed it
            if arguments[0] == "status" or what in ("a file", "a pipe", "a device", "of nobody"):
                done = run(*arguments)
                assert done.returncode in (1, 2, 78), (what, arguments)
                assert done.stderr.strip()
    (tmp_path / "stale").mkdir()
    for content in (b"", b"\xff", b"[1]", b"[" * 100_000, b'{"pid": 1e400}', b'{"pid": 99999999999999999999}'):
        (tmp_path / "stale" / "control.json").write_bytes(content)
        assert run("status", "--data-dir", str(tmp_path / "stale")).stderr.endswith("(node_not_running)\n")


def test_a_process_without_standard_streams_keeps_its_files_clean(tmp_path: Path) -> None:
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *OPENOUTCRY, "node", "--market", "M", *DIRECTORY]
    process = subprocess.Popen([*command, "--data-dir", str(tmp_path / "a"), "--coordinator", str(tmp_path / "c")])
    try:
        order = ("submit", "M", "buy", "1", "1", "--data-dir", str(tmp_path / "a"), "--timeout", "20")
        eventually(lambda: process.poll() is not None or run(*order).returncode == 0, "it trades", within=WITHIN_S)
    finally:
        process.terminate()
        ended = process.wait(WITHIN_S)
    assert ended == 0
    assert run("verify", str(tmp_path / "a")).returncode == 0
