"""Settings of the command line: what goes before what, and that nothing misspelt is ignored."""

from __future__ import annotations

from pathlib import Path

import pytest
from openoutcry.actors import ConfigurationError, MarketRules
from openoutcry.actors.settings import DIRECTORY_DEFAULT, LISTEN_DEFAULT
from openoutcry.actors.tools.config import (
    NodeConfig,
    home_folder,
    load_config,
    parse_market,
    settings,
)


def load(
    home: Path, text: str = "", *markets: str, environment: dict[str, str] | None = None, **flags: object
) -> NodeConfig:
    if text:
        (home / "openoutcry.toml").write_text(text)
    return load_config(
        environment={"OPENOUTCRY_HOME": str(home), **(environment or {})}, flags=flags, market_flags=markets
    )


def given(config: NodeConfig) -> dict[str, object]:
    """Return the options that are not there by default."""
    return {key: value for key, value in config.options.items() if key in config.sources}


def test_without_any_setting_the_defaults_lie_below_the_home_folder(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert given(config) == {}
    assert config.options["name"] == "node"
    assert config.options["data_dir"] == tmp_path / "nodes" / "node"
    assert config.options["coordinator"] == tmp_path / "coordinator.sqlite"
    assert config.options["listen"] == LISTEN_DEFAULT
    assert config.options["directory"] == (DIRECTORY_DEFAULT,)
    assert config.options["ttl_ms"] == 2000
    assert home_folder({}) == Path.home() / ".local" / "state" / "openoutcry"


def test_flag_goes_before_environment_before_file_before_default(tmp_path: Path) -> None:
    text = '[node]\nname = "of-file"\nttl_ms = 1000\nmin_in_sync = 2\n'
    environment = {"OPENOUTCRY_NAME": "of-environment", "OPENOUTCRY_TTL_MS": "1500"}

    config = load(tmp_path, text, environment=environment, name="of-flag", ttl_ms=None)

    assert given(config) == {"name": "of-flag", "ttl_ms": 1500, "min_in_sync": 2}
    assert config.options["data_dir"] == tmp_path / "nodes" / "of-flag"


def test_file_says_all_that_a_node_takes(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
        [node]
        name = "alice"
        data_dir = "data/alice"
        listen = "tcp://0.0.0.0:7500"
        advertise = "tcp://10.0.0.2:7500"
        directory = ["tcp://10.0.0.1:7400", "tcp://10.0.0.2:7400"]
        serve_directory = "tcp://0.0.0.0:7400"
        coordinator = "/srv/coordinator.sqlite"
        ttl_ms = 3000
        min_in_sync = 2
        timeout = 2
        join_all = true
        balance = false

        [markets.BTC-USD]
        tick_size = "0.01"
        lot_size = "0.001"
        amend_keeps_priority = false

        [markets.ETH-USD]
        join = true
        """,
    )
    assert given(config) == {
        "name": "alice",
        "data_dir": tmp_path / "data" / "alice",
        "listen": "tcp://0.0.0.0:7500",
        "advertise": "tcp://10.0.0.2:7500",
        "directory": ("tcp://10.0.0.1:7400", "tcp://10.0.0.2:7400"),
        "serve_directory": "tcp://0.0.0.0:7400",
        "coordinator": Path("/srv/coordinator.sqlite"),
        "ttl_ms": 3000,
        "min_in_sync": 2,
        "timeout": 2.0,
        "join_all": True,
        "balance": False,
    }
    assert config.markets == {
        "BTC-USD": MarketRules(tick_size="0.01", lot_size="0.001", amend_keeps_priority=False),
        "ETH-USD": None,
    }


def test_environment_carries_lists_and_numbers(tmp_path: Path) -> None:
    environment = {
        "OPENOUTCRY_DIRECTORY": "tcp://a:1, tcp://b:2",
        "OPENOUTCRY_TIMEOUT": "0.5",
        "OPENOUTCRY_SHARED": "of another program",
        "OPENOUTCRY_LISTEN": "",
        "OPENOUTCRY_JOIN_ALL": "true",
    }
    config = load(tmp_path, environment=environment)
    assert given(config) == {"directory": ("tcp://a:1", "tcp://b:2"), "timeout": 0.5, "join_all": True}


def test_market_flag_takes_rules_or_those_of_the_file(tmp_path: Path) -> None:
    text = '[markets.A]\ntick_size = "0.5"\n[markets.B]\ntick_size = "0.5"\n'
    config = load(tmp_path, text, "A", "B:tick_size=0.25,quantity_max_lots=10", "C", "D:join=true")
    assert config.markets == {
        "A": MarketRules(tick_size="0.5"),
        "B": MarketRules(tick_size="0.25", quantity_max_lots=10),
        "C": MarketRules(),
        "D": None,
    }
    assert parse_market("A:amend_keeps_priority=false") == ("A", {"amend_keeps_priority": False})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[nodes]\n", "section 'nodes' does not exist; did you mean node?"),
        ("node = 1\n", r"node is a section: write \[node\]"),
        ('[node]\nnmae = "a"\n', "key 'nmae' does not exist; did you mean name?"),
        ("[node]\nxyz = 1\n", "key 'xyz' does not exist; there are: name, data_dir"),
        ("[node]\nname = 1\n", "node: name is a text, not 1"),
        ('[node]\nttl_ms = "1"\n', "node: ttl_ms is a whole number"),
        ("[node]\nmin_in_sync = true\n", "min_in_sync is a whole number"),
        ("[node]\ntimeout = nan\n", "timeout is a number of seconds"),
        ("[node]\ndirectory = 1\n", "directory is an address or a list"),
        (
            '[node]\nname = "../zz"\n',
            "node: name: a node's name has 1 to 64 characters that can be seen, none of them '/'",
        ),
        ('[node]\nname = ".."\n', "is not . or .."),
        ('[node]\nname = "a\\nb"\n', "control characters"),
        ('[node]\nmetrics = "nonsense"\n', "node: metrics: metrics are served at HOST:PORT"),
        ('[node]\nlisten = "foo"\n', "node: listen: 'foo' is not an address to listen at"),
        ('[node]\nlisten = "tcp://10.0.0.1:70000"\n', "is not an address to listen at"),
        ('[node]\nadvertise = "tcp://10.0.0.1:0"\n', "node: advertise: .* is not an address to dial"),
        ('[node]\ndirectory = ["tcp://h:1", "bar"]\n', "node: directory: 'bar' is not an address to dial"),
        ('[node]\nserve_directory = "zzz"\n', "node: serve_directory: 'zzz' is not an address to listen at"),
        ("[node]\njoin_all = 1\n", "join_all is true or false"),
        ("[markets]\nA = 1\n", r"market A is a section: write \[markets.A\]"),
        ("[markets.A]\ntick_sise = 1\n", "market A: key 'tick_sise' does not exist; did you mean tick_size?"),
        ("[markets.A]\ntick_size = 0.01\n", "market A: tick_size must be a positive decimal string"),
        ('[markets.A]\njoin = true\ntick_size = "1"\n', "join = true stands alone"),
        ("[node\n", r"openoutcry.toml: "),
    ],
)
def test_slip_in_the_file_is_an_error_that_names_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        load(tmp_path, text)
    assert str(tmp_path / "openoutcry.toml") in str(caught.value)


def test_slip_in_the_environment_or_a_flag_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="OPENOUTCRY_DATADIR is no setting; did you mean OPENOUTCRY_DATA_DIR"):
        load(tmp_path, environment={"OPENOUTCRY_DATADIR": "/x"})
    with pytest.raises(ConfigurationError, match=r"OPENOUTCRY_TTL_MS: ttl_ms is a whole number .* not 'soon'"):
        load(tmp_path, environment={"OPENOUTCRY_TTL_MS": "soon"})
    with pytest.raises(ConfigurationError, match=r"expected key=value, not '0\.01'"):
        load(tmp_path, "", "A:0.01")
    with pytest.raises(ConfigurationError, match="a market has a name"):
        load(tmp_path, "", ":tick_size=1")


def test_file_that_was_asked_for_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"other.toml does not exist"):
        load_config(file=tmp_path / "other.toml", environment={}, flags={})
    with pytest.raises(ConfigurationError, match=r"other.toml does not exist"):
        load(tmp_path, environment={"OPENOUTCRY_CONFIG": str(tmp_path / "other.toml")})


def test_settings_say_where_each_comes_from_and_show_no_password(tmp_path: Path) -> None:
    text = '[node]\nlog_format = "json"\nlog_file = "node.log"\n[markets.A]\njoin = true\n'
    address = "etcds://h:1/x?ca=/ca&user=u&password=hush"
    environment = {"OPENOUTCRY_COORDINATOR": address, "OPENOUTCRY_LOG_LEVEL": "debug"}

    config = load(tmp_path, text, "B:tick_size=0.5", environment=environment, min_in_sync=2)

    assert str(config.options["coordinator"]) == address
    found = {key: (value, source) for key, value, source in settings(config)}
    file = str(tmp_path / "openoutcry.toml")
    assert found["coordinator"] == (address.replace("hush", "***"), "OPENOUTCRY_COORDINATOR")
    assert found["log_format"] == ("json", file)
    assert found["log_file"] == (str(tmp_path / "node.log"), file)
    assert found["log_level"] == ("debug", "OPENOUTCRY_LOG_LEVEL")
    assert found["min_in_sync"] == (2, "--min-in-sync")
    assert found["ttl_ms"] == (2000, "default")
    assert found["markets.A"] == ({"join": True}, file)
    assert found["markets.B"][1] == "--market"
    with pytest.raises(ConfigurationError, match="log_format is one of console, json"):
        load(tmp_path, log_format="xml")
