"""Help of the command line is quick, and says of each command what the command says of itself."""

from __future__ import annotations

import os
import subprocess
import sys

import click
from click.testing import CliRunner
from openoutcry.actors.cli import COMMANDS, main

HEAVY = {"pykka", "pynng", "msgpack", "structlog", "sqlite3", "http.server", "openoutcry.actors.node"}
OF_A_NODE = {"structlog", "openoutcry.actors.node", "openoutcry.actors.book.shell", "openoutcry.actors.group.leading"}


def test_commands_that_ask_a_running_node_import_no_part_of_a_node() -> None:
    modules = ["openoutcry.actors.cli.show", "openoutcry.actors.cli.trade", "openoutcry.actors.cli.admin"]
    code = f"import sys, {', '.join(modules)}\nprint(sorted({OF_A_NODE!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    assert found.stdout == "[]\n"


def test_help_and_version_import_no_part_of_a_node() -> None:
    for flag in ("--help", "--version"):
        code = (
            "import sys\nfrom openoutcry.actors.cli import main\n"
            f"try:\n    main([{flag!r}])\nexcept SystemExit as ended:\n    assert not ended.code\n"
            f"print(sorted({HEAVY!r} & set(sys.modules)))"
        )
        found = subprocess.run(
            [sys.executable, "-c", code], check=True, timeout=60, env=dict(os.environ), capture_output=True, text=True
        )
        assert found.stdout.splitlines()[-1] == "[]"


def test_list_of_commands_says_the_first_sentence_of_each_and_leaves_none_out() -> None:
    for name, (_, sentence) in COMMANDS.items():
        command = main.commands[name]
        assert (command.name, command.get_short_help_str(1000)) == (name, sentence)
    listed = " ".join(CliRunner().invoke(main, ["--help"], terminal_width=200).output.split())
    assert [name for name, (_, sentence) in COMMANDS.items() if f"{name} {sentence}" not in listed] == []
    assert set(main.list_commands(click.Context(main))) == set(main.commands)


def test_an_unknown_command_is_a_usage_error() -> None:
    result = CliRunner().invoke(main, ["noode"])
    assert (result.exit_code, "No such command 'noode'" in result.output) == (2, True)
