"""The settings of a node, each declared once: its name, type, meaning, default and check. Starts nothing.

Everything else follows from the declaration: the keyword of :class:`~.node.ExchangeNode` and its check, the flag
of ``openoutcry node``, the variable ``OPENOUTCRY_NAME``, the key of ``[node]`` in the file, the line of
``openoutcry config show``, and the row of the reference.
"""

import dataclasses
import difflib
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypedDict, TypeVar, cast, get_args

from ..transport.codec import INT64_MAX
from ..transport.coordinator import Coordinator
from ..transport.errors import ConfigurationError, quoted
from ..transport.etcd import is_etcd
from ..transport.files import checked_path
from ..transport.identity import SCHEME
from ..transport.sockets import checked_address
from ..transport.survey import TTL_MS_MAX, TTL_MS_MIN
from .book.wire import IN_SYNC_MAX
from .market.border import TIMEOUT_S_MAX
from .peers.clocks import BOUND_MS
from .peers.wire import checked_node_name
from .telemetry.health import endpoint
from .telemetry.logs import FORMATS, LEVELS

if TYPE_CHECKING:
    from ..transport.certificates import Identity

Check = Callable[[str, Any], Any]
"""Takes a value's name for errors, and the value; returns the value to use, or raises ConfigurationError."""
_Init = TypeVar("_Init", bound=Callable[..., None])

LISTEN_DEFAULT: Final = "tcp://127.0.0.1:0"
DIRECTORY_DEFAULT: Final = "tcp://127.0.0.1:7400"
CLOCK_BOUND_MS_MIN: Final = 50
"""Lowest bound for clocks, in milliseconds: below, the round trip of a busy network would count as a wrong clock."""


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """The kind of a setting's values."""

    check: Check
    python: type = str
    """How to read text as a value, and the form of its flag: str, int, float, bool, Path, or tuple for a list."""
    metavar: str | None = None
    choices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """One setting: the annotation of a key below."""

    help: str
    """What it does, in sentences; the first is the flag's help."""
    default: Any
    kind: Kind
    otherwise: str = "none"
    """The meaning of a default of None, or of an empty list, in ``openoutcry node``."""

    @property
    def default_text(self) -> str:
        """The default of ``openoutcry node``, as written in the file."""
        return self.otherwise if self.default in (None, ()) else as_text(self.default)


def as_text(value: Any) -> str:
    """Return a value for people: booleans as in TOML, lists with commas, and ``-`` for nothing."""
    if isinstance(value, bool):
        return str(value).lower()
    return "-" if value in (None, ()) else ", ".join(value) if isinstance(value, tuple) else str(value)


def with_tls(address: str) -> str:
    """Return a default address for a node with an identity."""
    return address.replace("tcp", SCHEME, 1)


def _that(allowed: Callable[[Any], bool], words: str) -> Check:
    """Return a check that values are ``allowed``; ``words`` describes the allowed ones."""

    def check(what: str, value: Any) -> Any:
        if not allowed(value):
            raise ConfigurationError(f"{what} is {words}, not {quoted(value, 60)}")
        return value

    return check


_text: Final = _that(lambda value: isinstance(value, str) and value != "", "a text")


def _text_that(check: Callable[[str], Any]) -> Check:
    """Return a check for texts for which ``check`` raises no ConfigurationError."""

    def check_text(what: str, value: Any) -> str:
        found: str = _text(what, value).strip()
        try:
            check(found)
        except ConfigurationError as error:
            raise ConfigurationError(f"{what}: {error.message}", code=error.code) from error
        return found

    return check_text


def _list_of(check: Check, words: str) -> Check:
    several = _that(lambda value: isinstance(value, Iterable) and not isinstance(value, (bytes, Mapping)), words)

    def check_each(what: str, value: Any) -> tuple[Any, ...]:
        return tuple([check(what, each) for each in ([value] if isinstance(value, str) else several(what, value))])

    return check_each


def _path(what: str, value: Any) -> Path:
    return checked_path(value, what)


def _path_or(found: Callable[[Any], bool], words: str) -> Check:
    """Return a check for what is found to be something else, and for paths."""

    def check(what: str, value: Any) -> Any:
        if found(value):
            return value
        return checked_path(_that(lambda value: isinstance(value, (str, PathLike)), words)(what, value), what)

    return check


def _whole(minimum: int = 1, maximum: int = INT64_MAX) -> Kind:
    words = f"of at least {minimum}" if maximum == INT64_MAX else f"from {minimum} to {maximum}"
    return Kind(_that(lambda value: type(value) is int and minimum <= value <= maximum, f"a whole number {words}"), int)


def _seconds(what: str, value: Any) -> float:
    words = f"a number of seconds above 0 and up to {TIMEOUT_S_MAX:.0f}"
    return float(_that(lambda value: type(value) in (int, float) and 0 < value <= TIMEOUT_S_MAX, words)(what, value))


def _one_of(allowed: tuple[str, ...]) -> Kind:
    return Kind(_that(lambda value: value in allowed, f"one of {', '.join(allowed)}"), choices=allowed)


_NODE_NAME: Final = Kind(_text_that(checked_node_name))
_DIALLED: Final = Kind(_text_that(checked_address), metavar="ADDRESS")
_LISTENED_AT: Final = Kind(_text_that(lambda address: checked_address(address, to_listen=True)), metavar="ADDRESS")
_ADDRESSES: Final = Kind(_list_of(_DIALLED.check, "an address or a list of addresses"), tuple, "ADDRESS")
_ENDPOINT: Final = Kind(_text_that(endpoint), metavar="HOST:PORT")
_SWITCH: Final = Kind(_that(lambda value: type(value) is bool, "true or false"), bool)
_PATH: Final = Kind(_path, Path)
_STORE: Final = Kind(
    _path_or(lambda value: is_etcd(value) or hasattr(value, "read_all"), "a path, an address or a Coordinator")
)
_IDENTITY: Final = Kind(_path_or(lambda value: hasattr(value, "member"), "a path or an Identity"), Path)
_NAMES: Final = Kind(_list_of(_text, "a market's name or a list of names"), tuple, "NAME")
checked_names: Final = _NAMES.check


class _Named(TypedDict, total=False):
    name: Annotated[str, Setting("What people call the node; the default account of its orders.", "node", _NODE_NAME)]


class NodeOptions(TypedDict, total=False):
    """Arguments of :class:`~.node.ExchangeNode` besides its name and its markets. Each key is a setting."""

    data_dir: Annotated[
        str | Path | None,
        Setting(
            "The folder of the node's journals, its own. In a program None is a temporary one, gone when it is closed.",
            None,
            _PATH,
            "$OPENOUTCRY_HOME/nodes/NAME",
        ),
    ]
    coordinator: Annotated[
        str | Path | Coordinator | None,
        Setting(
            "The store that all nodes share: an SQLite file, or etcd://HOST:PORT,…/PREFIX. A file is for nodes of one "
            "machine; with TLS etcd is etcds://…. In a program it may be an object; None is `coordinator.sqlite` in "
            "the data directory, for a node that stands alone (no directory).",
            None,
            _STORE,
            "$OPENOUTCRY_HOME/coordinator.sqlite",
        ),
    ]
    directory: Annotated[
        str | Sequence[str],
        Setting(
            "Addresses of the rendezvous by which nodes find each other. With an identity all addresses begin with "
            "tls+tcp://, also those that are defaults.",
            (),
            _ADDRESSES,
            DIRECTORY_DEFAULT,
        ),
    ]
    serve_directory: Annotated[str | None, Setting("Be a rendezvous too, at this address.", None, _LISTENED_AT)]
    listen: Annotated[
        str | None,
        Setting("Where other nodes reach this one; port 0 = any free port.", None, _LISTENED_AT, LISTEN_DEFAULT),
    ]
    advertise: Annotated[str | None, Setting("The address to announce, where it differs from listen.", None, _DIALLED)]
    identity: Annotated[
        "str | Path | Identity | None",
        Setting(
            "The file of the node's key and certificate: links then use TLS. Only members of the exchange can connect, "
            "and each acts for its own accounts only. All nodes of an exchange have one, or none: then anyone who "
            "can reach a node may link to it, and act for any account.",
            None,
            _IDENTITY,
        ),
    ]
    ttl_ms: Annotated[
        int, Setting("Milliseconds that the directory remembers a silent node.", 2000, _whole(TTL_MS_MIN, TTL_MS_MAX))
    ]
    lease_ms: Annotated[
        int, Setting("Milliseconds that a silent node keeps what it leads (etcd: whole seconds).", 2000, _whole())
    ]
    min_in_sync: Annotated[
        int, Setting("Replicas that hold a command durably before it is answered.", 1, _whole(1, IN_SYNC_MAX))
    ]
    clock_bound_ms: Annotated[
        int,
        Setting(
            "Milliseconds that a clock may be from most others' until it counts as off. A market's time may be so far "
            "from what is expected of it until the clocks vote.",
            BOUND_MS,
            _whole(CLOCK_BOUND_MS_MIN),
        ),
    ]
    timeout: Annotated[float, Setting("The default bound of a request, in seconds.", 5.0, Kind(_seconds, float))]
    join_all: Annotated[bool, Setting("Join every market, also those created later.", False, _SWITCH)]
    observe: Annotated[
        str | Sequence[str], Setting("Markets to follow for reads, outside their in-sync sets.", (), _NAMES)
    ]
    balance: Annotated[
        bool,
        Setting(
            "Hand markets over to nodes that lead at least two fewer. One that was handed over to this node stays for "
            "half a minute.",
            True,
            _SWITCH,
        ),
    ]
    snapshot_every: Annotated[
        int, Setting("Commands between snapshots; the log before the older of two is pruned.", 250_000, _whole())
    ]
    metrics: Annotated[
        str | None,
        Setting("Serve /metrics, /healthz and /readyz over HTTP here; port 0 = any free port.", None, _ENDPOINT),
    ]


class LogOptions(TypedDict, total=False):
    """How the process of a node logs. Each key is a setting."""

    log_format: Annotated[str, Setting("How the log is written.", FORMATS[0], _one_of(FORMATS))]
    log_level: Annotated[str, Setting("The least serious events that are logged.", "info", _one_of(LEVELS))]
    log_file: Annotated[Path | None, Setting("The log's file; it is opened again on SIGHUP.", None, _PATH, "stderr")]


class ProcessOptions(_Named, NodeOptions, LogOptions, total=False):
    """Options of ``openoutcry node`` besides its markets. Each key is a setting."""


def _declared(options: type) -> dict[str, Setting]:
    return {name: get_args(hint)[1] for name, hint in options.__annotations__.items()}


NODE: Final = _declared(NodeOptions)
LOG: Final = _declared(LogOptions)
SETTINGS: Final = _declared(ProcessOptions)


def checked_options(given: Mapping[str, Any]) -> NodeOptions:
    """Return every option of a node, checked: the given value, else the default.

    Raises:
        TypeError: there is no such option.
        ConfigurationError: a value is not allowed.
    """
    found = {name: setting.default for name, setting in NODE.items()}
    for name, value in given.items():
        if name not in NODE:
            close = difflib.get_close_matches(name, NODE, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"ExchangeNode got an unexpected keyword argument {name!r}{hint}")
        if value is not None or NODE[name].default is not None:
            found[name] = NODE[name].kind.check(name, value)
    return cast("NodeOptions", found)


def node_options(options: ProcessOptions) -> NodeOptions:
    """Return the options of the process that the node takes."""
    return cast("NodeOptions", {name: value for name, value in options.items() if name in NODE})


def spelt_out(init: _Init) -> _Init:
    """Show each of the options of a constructor with ``**options`` in its signature and docstring, for ``help()``."""
    parameters = {name: each for name, each in inspect.signature(init).parameters.items() if name != "options"}
    lines = []
    for name, setting in NODE.items():
        hint = get_args(NodeOptions.__annotations__[name])[0]
        parameters[name] = inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=setting.default, annotation=hint
        )
        lines.append(textwrap.fill(f"{name}: {setting.help}", 112, subsequent_indent=" " * 16))
    found: Any = init
    found.__signature__ = inspect.Signature([*parameters.values()], return_annotation=None)
    marked = "options: see :class:`~.settings.NodeOptions`."
    found.__doc__ = (init.__doc__ or "").replace(marked, f"\n{' ' * 12}".join(lines))
    return init
