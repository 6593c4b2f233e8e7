"""A setting is declared once: the constructor, flags, environment, file, `config show` and the page follow from it."""

from __future__ import annotations

import importlib.util
import inspect
import json
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from openoutcry.actors import ConfigurationError, ExchangeNode
from openoutcry.actors.cli import main
from openoutcry.actors.settings import NODE, SETTINGS, Setting, checked_options
from pages import ROOT, blocks_of

SAMPLES: dict[str, Any] = {
    "advertise": "tcp://10.0.0.1:7500",
    "coordinator": "/c.sqlite",
    "directory": ["tcp://10.0.0.1:7400", "tcp://10.0.0.2:7400"],
    "listen": "tcp://10.0.0.1:7500",
    "metrics": "127.0.0.1:9464",
    "serve_directory": "tcp://10.0.0.1:7400",
}
"""Values of settings whose kind does not say what may be written."""
PAGE = ROOT / "docs/reference/configuration.md"


def sample(name: str, setting: Setting) -> Any:
    """Return an allowed value that is not the default, as a TOML file has it."""
    kind, default = setting.kind, setting.default
    if kind.choices:
        return kind.choices[-1]
    of_kind = {str: "other", Path: "/there", tuple: ["one", "two"], bool: not default}
    return SAMPLES.get(name) or (of_kind[kind.python] if kind.python in of_kind else default + 1)


def quoted(home: Path, *flags: str, text: str = "", **environment: str) -> dict[str, Any]:
    """Return what `config show` prints."""
    (home / "openoutcry.toml").write_text(text)
    result = CliRunner().invoke(
        main, ["config", "show", "--json", *flags], env={"OPENOUTCRY_HOME": str(home), **environment}
    )
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_flag_variable_and_key_of_the_file_say_the_same(tmp_path: Path, name: str) -> None:
    value = sample(name, SETTINGS[name])
    assert quoted(tmp_path)[name]["source"] == "default"
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        flags, text = [flag if value else flag.replace("--", "--no-", 1)], str(value).lower()
    elif isinstance(value, list):
        flags, text = [part for each in value for part in (flag, each)], ",".join(value)
    else:
        flags, text = [flag, str(value)], str(value)
    file = str(tmp_path / "openoutcry.toml")

    assert quoted(tmp_path, *flags)[name] == {"value": value, "source": flag}
    assert quoted(tmp_path, **{f"OPENOUTCRY_{name.upper()}": text})[name] == {
        "value": value,
        "source": f"OPENOUTCRY_{name.upper()}",
    }
    assert quoted(tmp_path, text=f"[node]\n{name} = {json.dumps(value)}\n")[name] == {"value": value, "source": file}


def test_node_takes_every_setting_of_its_own_as_a_keyword() -> None:
    parameters = dict(inspect.signature(ExchangeNode).parameters)
    assert [(name, each.default) for name, each in parameters.items() if name not in ("name", "markets")] == [
        (name, setting.default) for name, setting in NODE.items()
    ]
    explained = inspect.getdoc(ExchangeNode.__init__) or ""
    assert [name for name, setting in NODE.items() if f"\n    {name}: {setting.help[:20]}" not in explained] == []
    assert set(SETTINGS) - set(NODE) == {"name", "log_format", "log_level", "log_file"}


def test_keyword_that_does_not_exist_is_a_type_error_with_a_suggestion() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'min_insync'; did you mean 'min_in_sync'"):
        ExchangeNode("a", min_insync=2)  # type: ignore[call-arg]


WRONG: dict[type, list[Any]] = {
    str: [1, True, [], ""],
    int: [0, -1, 1.0, True, "1", 2**63],
    float: [0, -1.0, float("nan"), float("inf"), True, "5", 1e9],
    bool: [1, 0, "true"],
    tuple: [1, [1], ["x", 2], [""]],
    Path: [1, True, [], ""],
}


MAY_BE_ZERO: set[str] = set()
"""Settings that are numbers and for which 0 is a value."""


@pytest.mark.parametrize("name", NODE)
def test_node_refuses_what_the_file_refuses_in_the_same_words(tmp_path: Path, name: str) -> None:
    for value in WRONG[NODE[name].kind.python]:
        if value == 0 and name in MAY_BE_ZERO:
            continue
        with pytest.raises(ConfigurationError, match=f"^{name}") as caught:
            ExchangeNode("a", **{"data_dir": tmp_path / "a", name: value})
        assert not (tmp_path / "a").exists()
        if value not in (float("inf"), 2**63) and not isinstance(value, float):
            (tmp_path / "a.toml").write_text(f"[node]\n{name} = {json.dumps(value)}\n")
            result = CliRunner().invoke(main, ["config", "check", str(tmp_path / "a.toml")])
            assert f"{tmp_path / 'a.toml'}: node: {caught.value.message} (" in result.output


def test_options_that_are_not_given_have_their_defaults() -> None:
    assert checked_options({}) == {name: setting.default for name, setting in NODE.items()}
    assert checked_options({"listen": None, "directory": "tcp://h:1", "timeout": 1})["timeout"] == 1.0
    assert {
        name: setting.kind.check(name, setting.default) for name, setting in SETTINGS.items() if setting.default
    } == {name: setting.default for name, setting in SETTINGS.items() if setting.default}


def test_page_lists_every_setting_and_its_example_has_no_other() -> None:
    spec = importlib.util.spec_from_file_location("lists", ROOT / "docs/lists.py")
    assert spec is not None
    assert spec.loader is not None
    lists = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lists)
    page = lists.on_page_markdown(PAGE.read_text())
    assert [
        name
        for name, setting in SETTINGS.items()
        if f"| `{name}` | `{setting.default_text}` | {setting.help}" not in page
    ] == []
    (whole,) = [block for block in blocks_of(PAGE) if block.language == "toml"]
    assert set(tomllib.loads(whole.text)["node"]) <= set(SETTINGS)


def test_help_of_every_setting_is_one_line_of_plain_sentences() -> None:
    for name, setting in SETTINGS.items():
        assert setting.help[0].isupper(), name
        assert setting.help.endswith("."), name
        assert len(setting.help.partition(". ")[0]) <= 110, name


def test_every_command_that_takes_settings_takes_all_of_them() -> None:
    config = main.commands["config"]
    assert isinstance(config, click.Group)
    for command in (main.commands["node"], config.commands["show"]):
        flags = {flag for parameter in command.params for flag in parameter.opts}
        assert {f"--{name.replace('_', '-')}" for name in SETTINGS} - flags == set()
