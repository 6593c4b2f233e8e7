"""The command line's settings: reads a TOML file, the environment and flags. Starts nothing.

A flag goes before the environment, the environment before the file, the file before the default. The file::

    [node]
    name = "alice"                              # OPENOUTCRY_NAME, --name, and so on for each key
    directory = ["tcp://10.0.0.1:7400"]         # OPENOUTCRY_DIRECTORY: separated by commas

    [markets.BTC-USD]                           # fields of MarketRules, or join = true: opened by another node
    tick_size = "0.01"
    lot_size = "0.001"

``--config`` or ``OPENOUTCRY_CONFIG`` names the file, else it is ``openoutcry.toml`` in the home folder, if it exists;
its relative paths are relative to its own folder. A key that does not exist is an error, never ignored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast

from ...transport.errors import ConfigurationError
from ...transport.files import checked_path, read_file, refusal
from ...transport.identity import check_addresses
from ...transport.log import without_secrets
from ...transport.numerals import decimal_of, float_of, whole_of
from ..book.rules import MarketRules
from ..settings import DIRECTORY_DEFAULT, LISTEN_DEFAULT, SETTINGS, ProcessOptions, with_tls

ENV_PREFIX: Final = "OPENOUTCRY_"


_TOML_TEXT: Final = re.compile(
    r""""{3}(?:[^\\]|\\.)*?"{3}|'{3}.*?'{3}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|\#[^\n]*""", re.DOTALL
)
"""Matches strings and comments of a TOML file."""
_LINE: Final = "\n"
_TOML_NUMBER: Final = re.compile(r"=[ \t]*([+-]?(?:[0-9]|inf|nan)[^\s,}\]]*)")


class WrongFile(ConfigurationError):
    """The settings file is wrong; ``slips`` has a sentence for each error in it."""

    def __init__(self, path: Path, slips: Iterable[str]) -> None:
        self.slips = tuple([f"{path}: {slip}" for slip in slips])
        super().__init__("; ".join(self.slips))


@dataclasses.dataclass(frozen=True, slots=True)
class NodeConfig:
    """The settings of a node's process."""

    options: ProcessOptions
    """Every setting, given or default; with an identity, the default addresses use TLS."""
    markets: Mapping[str, MarketRules | None]
    """None: this node joins the market, and another opens it."""
    sources: Mapping[str, str]
    """The source of each setting that is not a default: a file, a variable or a flag; a market is ``markets.NAME``."""


def home_folder(environment: Mapping[str, str]) -> Path:
    """Return the folder of the command line's files: ``OPENOUTCRY_HOME``, else ``~/.local/state/openoutcry``."""
    home = environment.get(f"{ENV_PREFIX}HOME")
    return checked_path(home or "~/.local/state/openoutcry", f"{ENV_PREFIX}HOME" if home else "the home folder")


def load_config(
    *,
    file: Path | None = None,
    environment: Mapping[str, str],
    flags: Mapping[str, Any],
    market_flags: Iterable[str] = (),
) -> NodeConfig:
    """Return the settings of a node.

    Args:
        file: the TOML file; None: the default one, which need not exist.
        environment: the process' environment.
        flags: values of the node's keys; None = not given.
        market_flags: each ``NAME`` or ``NAME:key=value,…``: a market to open, in place of the file's of that name.

    Raises:
        WrongFile: the file has an unknown key, or a value of the wrong type.
        ConfigurationError: the same in the environment or a flag, or the file cannot be read.
    """
    home = home_folder(environment)
    path, node, markets = _read_file(file, environment, home)
    sources = dict.fromkeys([*node, *(f"markets.{name}" for name in markets)], str(path))
    variables = _from_environment(environment)
    node.update(variables)
    sources |= {key: f"{ENV_PREFIX}{key.upper()}" for key in variables}
    given = {key: _checked(key, value, "flag") for key, value in flags.items() if value not in (None, ())}
    node.update(given)
    sources |= {key: f"--{key.replace('_', '-')}" for key in given}
    for flag in market_flags:
        name, rules = _market_flag(flag, markets)
        markets[name] = rules
        sources[f"markets.{name}"] = "--market"
    name = node.get("name", SETTINGS["name"].default)
    listen, directory = (with_tls(each) if "identity" in node else each for each in (LISTEN_DEFAULT, DIRECTORY_DEFAULT))
    options = {
        **{key: setting.default for key, setting in SETTINGS.items()},
        "data_dir": home / "nodes" / name,
        "coordinator": home / "coordinator.sqlite",
        "listen": listen,
        "directory": (directory,),
        **node,
    }
    addresses = (options["listen"], options["advertise"], options["serve_directory"], *options["directory"])
    check_addresses([address for address in addresses if address], options["identity"])
    return NodeConfig(cast("ProcessOptions", options), markets, sources)


def settings(config: NodeConfig) -> list[tuple[str, Any, str]]:
    """Return each setting's key, value and source (``default`` where none is given); passwords are masked."""
    values: dict[str, Any] = {
        key: without_secrets(str(value)) if isinstance(value, (str, Path)) else value
        for key, value in config.options.items()
    }
    for name, rules in sorted(config.markets.items()):
        values[f"markets.{name}"] = {"join": True} if rules is None else dataclasses.asdict(rules)
    return [(key, value, config.sources.get(key, "default")) for key, value in values.items()]


def parse_market(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the rules' values in ``NAME`` or ``NAME:key=value,…``.

    Raises:
        ConfigurationError: the text does not have that form.
    """
    name, _, rest = text.partition(":")
    values: dict[str, Any] = {}
    for pair in rest.split(",") if rest else ():
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigurationError(f"market {name}: expected key=value, not {pair!r}; as in {name}:tick_size=0.01")
        values[key.strip()] = _parsed(key.strip(), value.strip())
    return name, values


def parse_rules(pairs: Iterable[str]) -> MarketRules:
    """Return the rules from ``key=value`` pairs, with defaults for the others.

    Raises:
        ConfigurationError: a pair does not have that form, a key does not exist, or a value is wrong.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        values |= parse_market(f"rules:{pair}")[1]
    for key in values:
        _known(key, _RULES, "rule")
    return MarketRules(**values)


def _market_flag(flag: str, markets: Mapping[str, MarketRules | None]) -> tuple[str, MarketRules | None]:
    name, values = parse_market(flag)
    if not values and name in markets:
        return name, markets[name]
    return name, _rules(name, values)


def _read_file(
    file: Path | None, environment: Mapping[str, str], home: Path
) -> tuple[Path, dict[str, Any], dict[str, MarketRules | None]]:
    named = file or environment.get(f"{ENV_PREFIX}CONFIG")
    path = checked_path(named, "the file of settings") if named else home / "openoutcry.toml"
    try:
        text = read_file(path).decode()
    except UnicodeDecodeError as error:
        raise WrongFile(path, [f"it is not UTF-8: {error.reason} at byte {error.start}"]) from error
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            if named:
                raise ConfigurationError(f"{path} does not exist", code="bad_path") from None
            return path, {}, {}
        raise refusal(error, f"{path} cannot be read") from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise WrongFile(path, [str(error)]) from error
    slips = _numbers_otherwise(text)
    node, markets = _parse(values, path.parent, slips)
    if slips:
        raise WrongFile(path, slips)
    return path, node, markets


def _numbers_otherwise(text: str) -> list[str]:
    """Return a sentence for each number of a TOML file that breaks the grammar of numbers.

    TOML allows more: underscores, a plus sign, other bases, NaN.
    """
    bare = _TOML_TEXT.sub(lambda found: '""' + _LINE * found[0].count(_LINE), text)
    return [
        f"line {bare[: found.start(1)].count(_LINE) + 1}: {found[1]!r:.60} is not a number here: write digits and a "
        "point, as 1000 or 2.5"
        for found in _TOML_NUMBER.finditer(bare)
        if decimal_of(found[1]) is None
    ]


def _parse(
    values: dict[str, Any], folder: Path, slips: list[str]
) -> tuple[dict[str, Any], dict[str, MarketRules | None]]:
    """Return the valid settings of the sections; add errors to ``slips``."""
    node: dict[str, Any] = {}
    markets: dict[str, MarketRules | None] = {}
    for section, fields in values.items():
        with _noted(slips):
            _known(section, ("node", "markets"), "section")
            if not isinstance(fields, dict):
                raise ConfigurationError(f"{section} is a section: write [{section}]")
            for key, value in fields.items():
                with _noted(slips):
                    if section == "node":
                        node[key] = _checked(key, value, "node")
                    elif not isinstance(value, dict):
                        raise ConfigurationError(f"market {key} is a section: write [markets.{key}]")
                    else:
                        markets[key] = _rules_of_file(key, value, slips)
    return {key: folder / value if isinstance(value, Path) else value for key, value in node.items()}, markets


def _rules_of_file(name: str, fields: dict[str, Any], slips: list[str]) -> MarketRules | None:
    """Return a market's valid rules; add errors to ``slips``."""
    if "join" in fields or not name:
        return _rules(name, fields)
    right: dict[str, Any] = {}
    for key, value in fields.items():
        with _noted(slips):
            _known(key, (*_RULES, "join"), f"market {name}: key")
            right[key] = value
    while True:
        try:
            return MarketRules(**right)
        except ConfigurationError as error:
            slips.append(f"market {name}: {error}")
            # The message begins with the wrong rule: without that rule, the next error is found.
            if right.pop(error.message.partition(" ")[0], None) is None:
                return None


@contextlib.contextmanager
def _noted(slips: list[str]) -> Iterator[None]:
    """End the block at a ConfigurationError, and add its message to ``slips``."""
    try:
        yield
    except ConfigurationError as error:
        slips.append(error.message)


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for variable, text in environment.items():
        key = variable.removeprefix(ENV_PREFIX).lower()
        if not variable.startswith(ENV_PREFIX) or not text or key in ("home", "config"):
            continue
        if key in SETTINGS:
            value = _parsed(key, text)
            found[key] = _checked(key, value, variable)
        elif close := difflib.get_close_matches(key, SETTINGS, 1, 0.8):
            # Other programs may use variables with that prefix: report only probable typing errors.
            raise ConfigurationError(f"{variable} is no setting; did you mean {ENV_PREFIX}{close[0].upper()}?")
    return found


def _parsed(key: str, text: str) -> Any:
    """Return ``text`` converted to the type of ``key``, of a node or a market's rules; unchanged if it does not fit."""
    kind = _KINDS.get(key, str)
    if kind is tuple:
        return text.split(",")
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    found = whole_of(text) if kind is int else float_of(text) if kind is float else None
    return text if found is None else found


def _rules(name: str, fields: Mapping[str, Any]) -> MarketRules | None:
    if not name:
        raise ConfigurationError("a market has a name")
    if "join" in fields:
        if fields != {"join": True}:
            raise ConfigurationError(f"market {name}: join = true stands alone: the rules are those of who opens it")
        return None
    for key in fields:
        _known(key, (*_RULES, "join"), f"market {name}: key")
    try:
        return MarketRules(**fields)
    except ConfigurationError as error:
        raise ConfigurationError(f"market {name}: {error}") from error


def _checked(key: str, value: Any, where: str) -> Any:
    _known(key, SETTINGS, f"{where}: key")
    return SETTINGS[key].kind.check(f"{where}: {key}", value)


def _known(key: str, allowed: Iterable[str], what: str) -> None:
    every = list(allowed)
    if key not in every:
        close = difflib.get_close_matches(key, every, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(every)}"
        raise ConfigurationError(f"{what} {key!r} does not exist; {hint}")


_RULES: Final = {field.name: type(field.default) for field in dataclasses.fields(MarketRules)}
_KINDS: Final[dict[str, type]] = (
    {key: setting.kind.python for key, setting in SETTINGS.items()} | _RULES | {"join": bool}
)
