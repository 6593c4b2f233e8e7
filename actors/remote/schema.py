"""Messages of application actors: frozen dataclasses with a name and a version, checked on both sides. Pure.

:func:`message` registers a type. It compiles the annotations, and raises an error if one cannot travel. A message
travels as the msgpack array of its fields, under the type's key ``name/version``: nothing is pickled, and a frame can
only create registered types whose fields have the declared types.

==============================  ===============================================================================
annotation                      travels as
==============================  ===============================================================================
``str bytes bool None``         itself
``int``, ``float``              64 bits; a float is finite, and may be given as an int
``Decimal``, an ``Enum``        its text; the member's value (an int or a string)
``Literal[…]``                  one of the strings, ints and bools that it names
``X | None``                    None, or as X
``tuple[X, …]``, ``tuple[X, Y]``  an array
a registered message            the array of its fields
``Annotated[X, check]``         as X, after ``check(value, name)``, for example ``codec.Int(0, 100)``
==============================  ===============================================================================
"""

from __future__ import annotations

import dataclasses
import decimal
import enum
import hashlib
import math
import sys
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, TypeVar

from ...transport import codec
from ...transport.codec import NAME_LENGTH_MAX
from ...transport.errors import ConfigurationError, MessageRefused, ProtocolError, text_of
from ...transport.numerals import unbounded_of

MESSAGE_SIZE_MAX: Final = 256 * 1024
"""Most bytes of one message, encoded."""
VALUE_DEPTH_MAX: Final = 16
"""How deep tuples may be nested in a reply that is no registered message."""
_TEXT_MAX: Final = 300

_T = TypeVar("_T")
_Check = codec.Check


@dataclasses.dataclass(frozen=True, slots=True)
class _Shape:
    """How values of one annotation travel. Both functions take the value and the field's name."""

    text: str
    """The same on all machines and versions of Python: part of the type's signature."""
    to_wire: _Check
    from_wire: _Check


class MessageType:
    """One registered type: its key, its signature, and how its messages are encoded."""

    def __init__(self, key: str, made: type) -> None:
        self.key = key
        """``name/version``."""
        self.made = made
        try:
            hints = typing.get_type_hints(made, include_extras=True)
        except NameError as error:
            raise TypeError(
                f"{made.__qualname__}: {error}; a message's types are defined before it, in a module"
            ) from None
        self._fields = [
            (field.name, _shape_of(hints[field.name], f"{made.__qualname__}.{field.name}"))
            for field in dataclasses.fields(made)
        ]
        text = ",".join([f"{name}:{shape.text}" for name, shape in self._fields])
        self.signature = hashlib.sha256(text.encode()).hexdigest()[:12]
        """Differs if names, order or types of the fields differ."""

    def to_wire(self, value: Any, name: str) -> tuple[Any, ...]:
        """Return the fields of a message as msgpack can carry them."""
        if type(value) is not self.made:
            raise ProtocolError(f"{name}: expected a {self.made.__qualname__}, got a {type(value).__qualname__}")
        return tuple([shape.to_wire(getattr(value, field), field) for field, shape in self._fields])

    def from_wire(self, value: Any, name: str) -> Any:
        """Return the message that these fields make."""
        if type(value) is not tuple or len(value) != len(self._fields):
            raise ProtocolError(f"{name}: expected the {len(self._fields)} fields of {self.key}")
        return self.made(
            *[shape.from_wire(item, field) for (field, shape), item in zip(self._fields, value, strict=True)]
        )

    def encode(self, value: Any) -> bytes:
        """Return a message's bytes.

        Raises:
            MessageRefused: a field holds what its annotation does not allow, or the whole is too large (code
                ``message_too_large``).
        """
        try:
            body = codec.pack(self.to_wire(value, self.key))
        except ProtocolError as error:
            raise MessageRefused(f"{self.key}: {error.message}") from None
        except Exception as error:  # of a check of the class's own
            raise MessageRefused(f"{self.key}: {text_of(error):.{_TEXT_MAX}}") from error
        return _sized(body, self.key)

    def decode(self, body: bytes) -> Any:
        """Return the message in ``body``; raises ProtocolError if it holds anything else, or cannot be made here."""
        try:
            return self.from_wire(_unpacked(body), self.key)
        except ProtocolError:
            raise
        except Exception as error:  # from the class's own checks, which may depend on this machine
            raise ProtocolError(f"{self.key} cannot be made here: {text_of(error):.{_TEXT_MAX}}") from error


@typing.dataclass_transform(frozen_default=True)
def message(name: str, *, version: int = 1) -> Callable[[type[_T]], type[_T]]:
    """Register a class as a message that actors may send to other processes.

    >>> @message("example.tick")
    ... class Tick:
    ...     symbol: str
    ...     price: decimal.Decimal
    >>> Tick("ACME", decimal.Decimal("20.10")).symbol
    'ACME'

    The class is made a frozen, slotted dataclass, unless it is a frozen dataclass already. Sender and receiver each
    define it: the same ``name`` and ``version`` with other fields is refused, so a changed message gets a new version.

    Raises:
        TypeError: a field's annotation cannot travel; see the table in :mod:`openoutcry.actors.remote.schema`.
        ConfigurationError: another class has that name and version already (code ``message_registered``).
    """
    if not 1 <= len(name) <= NAME_LENGTH_MAX or "/" in name or version < 1:
        raise ConfigurationError(
            f"a message's name has 1 to {NAME_LENGTH_MAX} characters, none of them '/', and its version is 1 or more"
        )

    def register(given: type[_T]) -> type[_T]:
        made: Any = given if dataclasses.is_dataclass(given) else dataclasses.dataclass(frozen=True, slots=True)(given)
        if not made.__dataclass_params__.frozen:
            raise TypeError(f"{made.__qualname__}: a message is a value; make its dataclass frozen")
        found = MessageType(f"{name}/{version}", made)
        known = _by_key.get(found.key)
        if known is not None and (known.made.__qualname__, known.signature) != (made.__qualname__, found.signature):
            raise ConfigurationError(
                f"{found.key} is {known.made.__qualname__} already; give the changed message another version",
                code="message_registered",
            )
        _by_key[found.key] = _by_type[made] = found
        return typing.cast("type[_T]", made)

    return register


def type_of(value: object) -> MessageType:
    """Return the registered type of a message or of a message class.

    Raises:
        MessageRefused: its class is not registered.
    """
    kind = value if isinstance(value, type) else type(value)
    found = _by_type.get(kind)
    if found is None:
        raise MessageRefused(f"{kind.__qualname__} is not registered: decorate it with @message(…) to send it")
    return found


def encode_value(value: object) -> tuple[str, bytes]:
    """Return key and bytes of a reply: a registered message, or None, bools, ints, floats, strings, bytes, and tuples.

    Raises:
        MessageRefused: it is, or holds, anything else, or is too large.
    """
    found = _by_type.get(type(value))
    if found is not None:
        return found.key, found.encode(value)
    try:
        return "", _sized(codec.pack(_plain(value, 0)), "the reply")
    except ProtocolError as error:
        raise MessageRefused(f"the reply: {error.message}") from None


def decode_value(key: str, body: bytes) -> Any:
    """Return what :func:`encode_value` encoded; raises ProtocolError if the type is not registered here, or differs."""
    if not key:
        return _plain(_unpacked(body), 0)
    found = _by_key.get(key)
    if found is None:
        raise ProtocolError(f"{key} is not registered here")
    return found.decode(body)


# -- what annotations mean ------------------------------------------------------------------------------------------


def _float(value: Any, name: str) -> float:
    if type(value) is int and abs(value) <= sys.float_info.max:
        value = float(value)
    if type(value) is not float or not math.isfinite(value):
        raise ProtocolError(f"{name}: expected a finite number, got {value!r:.40}")
    return value


def _none(value: Any, name: str) -> None:
    if value is not None:
        raise ProtocolError(f"{name}: expected None, got {value!r:.40}")


def _decimal_to_wire(value: Any, name: str) -> str:
    if not isinstance(value, decimal.Decimal) or not value.is_finite():
        raise ProtocolError(f"{name}: expected a finite Decimal, got {value!r:.40}")
    # With an exponent if need be: it must arrive with the same digits, in 64 characters.
    return _decimal_text(decimal.Decimal.__str__(value), name)


_decimal_text = codec.Str(64, 1)


def _decimal_from_wire(value: Any, name: str) -> decimal.Decimal:
    found = unbounded_of(_decimal_text(value, name))
    if found is None:
        raise ProtocolError(f"{name}: expected a decimal number, got {value!r:.40}")
    return found


_PLAIN: Final[dict[Any, tuple[str, _Check, _Check]]] = {
    str: ("str", codec.Str(MESSAGE_SIZE_MAX), codec.Str(MESSAGE_SIZE_MAX)),
    bytes: ("bytes", codec.Bytes(MESSAGE_SIZE_MAX), codec.Bytes(MESSAGE_SIZE_MAX)),
    bool: ("bool", codec.Bool(), codec.Bool()),
    int: ("int", codec.Int(-(2**63)), codec.Int(-(2**63))),
    float: ("float", _float, _float),
    type(None): ("None", _none, _none),
    decimal.Decimal: ("decimal", _decimal_to_wire, _decimal_from_wire),
}


def _shape_of(hint: Any, where: str) -> _Shape:
    if hint in _PLAIN:
        return _Shape(*_PLAIN[hint])
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _annotated(_shape_of(arguments[0], where), [extra for extra in arguments[1:] if callable(extra)])
    if origin in (typing.Union, types.UnionType) and len(arguments) == 2 and type(None) in arguments:
        (other,) = [argument for argument in arguments if argument is not type(None)]
        shape = _shape_of(other, where)
        return _Shape(f"{shape.text}|None", codec.Optional(shape.to_wire), codec.Optional(shape.from_wire))
    if origin is tuple and arguments:
        return _tuple(arguments, where)
    if origin is Literal:
        return _literal(arguments, where)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum(hint, where)
    if isinstance(hint, type) and hint in _by_type:
        nested = _by_type[hint]
        return _Shape(f"{nested.key}:{nested.signature}", nested.to_wire, nested.from_wire)
    raise TypeError(f"{where}: {hint} cannot travel; see the table in openoutcry.actors.schema for what can")


def _annotated(shape: _Shape, checks: list[Any]) -> _Shape:
    def to_wire(value: Any, name: str) -> Any:
        for check in checks:
            value = check(value, name)
        return shape.to_wire(value, name)

    def from_wire(value: Any, name: str) -> Any:
        value = shape.from_wire(value, name)
        for check in checks:
            value = check(value, name)
        return value

    return _Shape(shape.text, to_wire, from_wire)


def _tuple(arguments: tuple[Any, ...], where: str) -> _Shape:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        item = _shape_of(arguments[0], where)
        return _Shape(f"({item.text},…)", codec.Array(item.to_wire), codec.Array(item.from_wire))
    items = [_shape_of(argument, where) for argument in arguments]
    return _Shape(
        f"({','.join([item.text for item in items])})",
        codec.Tuple(tuple([item.to_wire for item in items])),
        codec.Tuple(tuple([item.from_wire for item in items])),
    )


def _literal(allowed: tuple[Any, ...], where: str) -> _Shape:
    if not all(type(value) in (str, int, bool) for value in allowed):
        raise TypeError(f"{where}: a Literal that travels names strings, ints and bools")
    kinds = {(type(value), value) for value in allowed}

    def check(value: Any, name: str) -> Any:
        if type(value) not in (str, int, bool) or (type(value), value) not in kinds:
            raise ProtocolError(f"{name}: expected one of {allowed}, got {value!r:.40}")
        return value

    return _Shape(f"literal{sorted(map(repr, allowed))}", check, check)


def _enum(kind: type[enum.Enum], where: str) -> _Shape:
    members = {(type(member.value), member.value): member for member in kind}
    if not all(of in (str, int) for of, _ in members):
        raise TypeError(f"{where}: an Enum that travels has strings or ints for values")

    def to_wire(value: Any, name: str) -> Any:
        if type(value) is not kind:
            raise ProtocolError(f"{name}: expected a {kind.__qualname__}, got {value!r:.40}")
        return value.value

    def from_wire(value: Any, name: str) -> enum.Enum:
        if type(value) not in (str, int) or (type(value), value) not in members:
            raise ProtocolError(f"{name}: expected the value of a {kind.__qualname__}, got {value!r:.40}")
        return members[type(value), value]

    return _Shape(f"enum{sorted(repr(value) for _, value in members)}", to_wire, from_wire)


def _plain(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind in (tuple, list):
        if depth >= VALUE_DEPTH_MAX:
            raise ProtocolError(f"nested deeper than {VALUE_DEPTH_MAX}")
        return tuple([_plain(item, depth + 1) for item in value])
    if value is None or kind in (bool, int, str, bytes):
        return value
    if kind is float:
        return _float(value, "a float")
    raise ProtocolError(f"a {kind.__qualname__} cannot travel; answer with a registered message")


def _sized(body: bytes, what: str) -> bytes:
    if len(body) > MESSAGE_SIZE_MAX:
        raise MessageRefused(
            f"{what} takes {len(body)} bytes; the limit of a message is {MESSAGE_SIZE_MAX}", code="message_too_large"
        )
    return body


def _unpacked(body: bytes) -> Any:
    return codec.unpack(body, size_max=MESSAGE_SIZE_MAX, str_size_max=MESSAGE_SIZE_MAX)


_by_key: Final[dict[str, MessageType]] = {}
_by_type: Final[dict[type, MessageType]] = {}
