"""The documentation tells the truth: every block of code runs, every name exists, every list is whole."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import openoutcry.actors
import openoutcry.transport
import pytest
from openoutcry.actors.book.commands import MESSAGES
from openoutcry.actors.cli import main
from pages import LANGUAGES, MARKS, PAGES, ROOT, Block, Sandbox, blocks_of, commands_of, openoutcry_arguments

NOT_RUN_MAX = 12
"""How many blocks may go without being run."""
SOURCES = [
    path
    for package in (openoutcry.actors, openoutcry.transport)
    for path in Path(str(package.__file__)).parent.rglob("*.py")
]
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUN_BY_THE_GATE = ("test-command", "example-command")
OTHERS_FLAGS = {"--strict", "--heartbeat-interval", "--election-timeout", "--auto-compaction-retention"}
"""Flags in the text of pages that are MkDocs' and etcd's; those of a script that is named with them are its own."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.slow
@pytest.mark.wheel
@pytest.mark.parametrize("page", [page for page in PAGES if any(block.page == page for block in BLOCKS)], ids=name_of)
def test_blocks_of_a_page_run_in_order(page: Path, tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    try:
        for block in blocks_of(page):
            if not block.not_run and not any(mark in block.marks for mark in RUN_BY_THE_GATE):
                sandbox.run(block)
    finally:
        sandbox.close()


def test_blocks_are_marked_as_pages_py_says() -> None:
    assert [f"{block}: {block.language!r}" for block in BLOCKS if block.language not in LANGUAGES] == []
    assert [f"{block}: {block.marks}" for block in BLOCKS if set(block.marks) - set(MARKS)] == []
    for mark in RUN_BY_THE_GATE:
        assert len([block for block in BLOCKS if mark in block.marks]) == 1


def test_blocks_that_are_not_run_say_why_and_are_few() -> None:
    left_out = [block for block in BLOCKS if block.not_run]
    assert [str(block) for block in left_out if len(block.marks["not run"]) < 10] == []
    assert len(left_out) <= NOT_RUN_MAX, [f"{block}: {block.marks['not run']}" for block in left_out]


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.not_run], ids=str)
def test_block_that_is_not_run_would_be_understood(block: Block) -> None:
    if block.language == "python":
        for statement in ast.parse(block.text).body:
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                exec(compile(ast.Module([statement], []), str(block), "exec"), {})
    elif block.language == "sh":
        for command in commands_of(block.text):
            arguments = openoutcry_arguments(command)
            if arguments is not None:
                understood(arguments, f"{block}: {command}")


def understood(arguments: list[str], where: str) -> None:
    """Check that the command line would take these arguments; files need not be there."""
    group: click.Command = main
    context: click.Context | None = None
    try:
        while isinstance(group, click.Group):
            context = group.make_context(group.name, arguments, parent=context)
            rest = [*context._protected_args, *context.args]
            _, found, arguments = group.resolve_command(context, rest)
            assert found is not None
            group = found
        group.make_context(group.name, arguments, parent=context)
    except click.UsageError as error:
        if "does not exist" not in error.message:
            raise AssertionError(f"{where}: {error.format_message()}") from None


def all_commands(command: click.Command) -> Iterator[click.Command]:
    yield command
    if isinstance(command, click.Group):
        for each in command.commands.values():
            yield from all_commands(each)


def test_every_flag_that_a_page_names_exists() -> None:
    flags = {"--help", "--version"}
    for command in all_commands(main):
        for parameter in command.params:
            flags |= {*parameter.opts, *parameter.secondary_opts}
    unknown = {
        f"{name_of(page)}: {flag}"
        for page in PAGES
        for words in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S))
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", words)
        if flag not in flags | OTHERS_FLAGS and ".py" not in words
    }
    assert unknown == set()


def codes_in_the_source() -> set[str]:
    """Return every error code that the source spells out."""
    found: set[str] = set()

    def add(node: ast.expr | None) -> None:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)

    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                for keyword in node.keywords:
                    add(keyword.value if keyword.arg == "code" else None)
                add(node.args[1] if ast.unparse(node.func) == "Failure" and len(node.args) == 2 else None)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                spelt = node.target.id in ("default_code", "NOT_LEADER") or node.target.id.endswith("_CODE")
                add(node.value if spelt else None)
    return found


def test_every_error_code_is_explained_and_every_explained_one_is_in_use() -> None:
    explained = re.findall(r"^\| `([a-z_]+)` \|", (ROOT / "docs/reference/errors.md").read_text(), re.MULTILINE)
    assert len(explained) == len(set(explained))
    assert codes_in_the_source() - set(explained) - set(MESSAGES) == set()
    source = "".join([path.read_text(encoding="utf-8") for path in SOURCES])
    made = re.compile(r"invalid_\w+|\w+_off_\w+")  # of f-strings
    assert [code for code in explained if f'"{code}"' not in source and not made.fullmatch(code)] == []


def test_every_test_that_a_page_names_exists() -> None:
    tests = "".join([path.read_text() for path in (ROOT / "tests").rglob("test_*.py")])
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text())}
    assert {name for name in named if f"def {name}(" not in tests} == set()
    a_path = re.compile(r"`((?:tests|benchmarks|examples|deploy)/[\w/.-]+)")
    paths = {path for page in PAGES for path in a_path.findall(page.read_text())}
    assert {path for path in paths if not (ROOT / path).exists()} == set()


def test_every_name_that_a_page_gives_is_in_the_source() -> None:
    known = {word for path in SOURCES for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))}
    made = re.compile(r"test_\w+|invalid_\w+|\w+_off_\w+")  # of tests, and of f-strings
    named = {
        (name_of(page), name)
        for page in PAGES
        for name in re.findall(r"`([a-z]+(?:_[a-z]+)+)\b(?!\.py)", page.read_text())
    }
    assert {each for each in named if each[1] not in known and not made.fullmatch(each[1])} == set()


def test_every_page_is_in_the_navigation() -> None:
    named = set(re.findall(r"[\w/.-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert named == {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]}


def test_a_command_in_a_block_is_found_behind_variables_and_before_pipes() -> None:
    assert openoutcry_arguments("OPENOUTCRY_HOME=x openoutcry status --json | jq .") == ["status", "--json"]
    assert openoutcry_arguments("sudo -u exchange openoutcry verify DIR") == ["verify", "DIR"]
    assert openoutcry_arguments(shlex.join(["echo", "openoutcry"])) is None
    with pytest.raises(AssertionError, match="No such option"):
        understood(["node", "--nmae", "alice"], "here")
