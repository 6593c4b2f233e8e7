"""msgpack frames: encode, decode, validate, limit. Pure: no sockets, no clocks.

A frame is ``version byte | kind byte | msgpack array of the message's fields, in order``. A message class is a
frozen dataclass whose fields are ``Annotated`` with the checks below; a :class:`Codec` knows a closed set of
them. Decoding refuses everything that the annotations do not allow: wrong types (``bool`` is not an int, NaN is
not a number), out of range, too long, too many fields or too few, trailing bytes. There are no maps on the wire.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, TypeVar

import msgpack

from .errors import ProtocolError
from .plain import fault_of

VERSION: Final = 1
"""The protocol's version: the first byte of every frame."""

FRAME_SIZE_MAX: Final = 4 * 1024 * 1024
"""Largest frame, in bytes, that any socket of this project accepts."""

NAME_LENGTH_MAX: Final = 64
"""Most characters of the name of a market, node, account, actor or message."""
INT64_MAX: Final = 2**63 - 1
ITEMS_MAX: Final = 65_536
"""Most items of any one array in a frame."""

Check = Callable[[Any, str], Any]
"""Takes a decoded value and the field's name; returns the value to use, or raises ProtocolError."""

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, slots=True)
class Int:
    """An integer in ``[minimum, maximum]``; never a bool, never a float."""

    minimum: int = 0
    maximum: int = INT64_MAX

    def __call__(self, value: Any, name: str) -> int:
        if type(value) is not int or not self.minimum <= value <= self.maximum:
            raise ProtocolError(f"{name}: expected an integer in [{self.minimum}, {self.maximum}], got {_shown(value)}")
        return value


@dataclasses.dataclass(frozen=True, slots=True)
class Str:
    """A string of ``length_min`` to ``length_max`` characters."""

    length_max: int = 255
    length_min: int = 0

    def __call__(self, value: Any, name: str) -> str:
        if type(value) is not str or not self.length_min <= len(value) <= self.length_max:
            raise ProtocolError(
                f"{name}: expected a string of {self.length_min} to {self.length_max} characters, got {_shown(value)}"
            )
        return value


ADDRESS: Final = Str(255, 1)
"""An address of nng."""


@dataclasses.dataclass(frozen=True, slots=True)
class Name(Str):
    """A :class:`Str` that cannot be mistaken for another name; see :func:`.plain.fault_of`."""

    def __call__(self, value: Any, name: str) -> str:
        found = Str.__call__(self, value, name)
        if fault := fault_of(found):
            raise ProtocolError(f"{name}: {_shown(value)} is not a name: {fault}")
        return found


@dataclasses.dataclass(frozen=True, slots=True)
class Bytes:
    """A byte string of ``length_min`` to ``length_max`` bytes."""

    length_max: int = FRAME_SIZE_MAX
    length_min: int = 0

    def __call__(self, value: Any, name: str) -> bytes:
        if type(value) is not bytes or not self.length_min <= len(value) <= self.length_max:
            raise ProtocolError(f"{name}: expected {self.length_min} to {self.length_max} bytes, got {_shown(value)}")
        return value


@dataclasses.dataclass(frozen=True, slots=True)
class Bool:
    """A boolean; never 0 or 1."""

    def __call__(self, value: Any, name: str) -> bool:
        if type(value) is not bool:
            raise ProtocolError(f"{name}: expected a boolean, got {_shown(value)}")
        return value


@dataclasses.dataclass(frozen=True, slots=True)
class Optional:
    """None, or what ``check`` allows."""

    check: Check

    def __call__(self, value: Any, name: str) -> Any:
        return None if value is None else self.check(value, name)


@dataclasses.dataclass(frozen=True, slots=True)
class Array:
    """A tuple of at most ``length_max`` items, each of which passes ``check``."""

    check: Check
    length_max: int = ITEMS_MAX

    def __call__(self, value: Any, name: str) -> tuple[Any, ...]:
        if type(value) is not tuple or len(value) > self.length_max:
            raise ProtocolError(f"{name}: expected an array of at most {self.length_max} items, got {_shown(value)}")
        check = self.check
        return tuple([check(item, name) for item in value])


@dataclasses.dataclass(frozen=True, slots=True)
class Tuple:
    """A tuple of fixed length whose items pass ``checks`` one by one; ``make`` turns it into the field's value."""

    checks: tuple[Check, ...]
    make: Callable[..., Any] | None = None

    def __call__(self, value: Any, name: str) -> Any:
        if type(value) is not tuple or len(value) != len(self.checks):
            raise ProtocolError(f"{name}: expected an array of {len(self.checks)} items, got {_shown(value)}")
        items = tuple([check(item, name) for check, item in zip(self.checks, value, strict=True)])
        return self.make(*items) if self.make is not None else items


def pack(value: object) -> bytes:
    """Return ``value`` (nested tuples, lists, str, bytes, int, bool, None) as msgpack.

    Raises:
        ProtocolError: msgpack cannot carry it, for example an integer beyond 64 bits.
    """
    try:
        packed: bytes = msgpack.packb(value, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"cannot encode: {error}") from error
    return packed


def pack_header(length: int) -> bytes:
    """Return how msgpack begins an array of ``length`` items, which :func:`pack_items` continues."""
    header: bytes = msgpack.Packer().pack_array_header(length)
    return header


def pack_items(items: list[Any]) -> bytes:
    """Return ``items``, at most 65,535, as msgpack has them within an array."""
    return pack(items)[1 if len(items) < 16 else 3 :]


def unpack(data: bytes | memoryview, *, size_max: int = FRAME_SIZE_MAX, str_size_max: int = 4096) -> Any:
    """Return what msgpack ``data`` holds, arrays as tuples, with every limit of msgpack set.

    Raises:
        ProtocolError: not msgpack, too large, trailing bytes, maps or extension types.
    """
    if len(data) > size_max:
        raise ProtocolError(f"{len(data)} bytes exceed the limit of {size_max}")
    try:
        return msgpack.unpackb(
            data,
            use_list=False,
            raw=False,
            max_array_len=ITEMS_MAX,
            max_map_len=0,
            max_str_len=str_size_max,
            max_bin_len=size_max,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"not a valid msgpack body: {error or type(error).__name__}") from error


class Codec(Generic[_T]):
    """Encodes and decodes a closed set of message classes, each under its kind byte."""

    def __init__(self, kinds: Mapping[int, type[_T]]) -> None:
        self._kind_of: dict[type[_T], int] = {}
        self._decoders: dict[int, tuple[type[_T], list[tuple[str, Check]]]] = {}
        self._fields_of: dict[type[_T], tuple[str, ...]] = {}
        for kind, message_type in kinds.items():
            hints = typing.get_type_hints(message_type, include_extras=True)
            names = [field.name for field in dataclasses.fields(message_type)]  # type: ignore[arg-type]
            checks = [(name, _check_of(hints[name], message_type, name)) for name in names]
            self._kind_of[message_type] = kind
            self._decoders[kind] = (message_type, checks)
            self._fields_of[message_type] = tuple(name for name, _ in checks)

    def encode(self, message: _T) -> bytes:
        """Return the frame of ``message``. Sender and receiver share the class, so values are not checked again.

        Raises:
            ProtocolError: a value cannot be carried, or the frame would exceed ``FRAME_SIZE_MAX``.
        """
        message_type = type(message)
        body = pack([getattr(message, name) for name in self._fields_of[message_type]])
        if len(body) + 2 > FRAME_SIZE_MAX:
            raise ProtocolError(
                f"{message_type.__name__} takes {len(body)} bytes; the limit of a frame is {FRAME_SIZE_MAX}",
                code="frame_too_large",
            )
        return bytes((VERSION, self._kind_of[message_type])) + body

    def decode(self, frame: bytes) -> _T:
        """Return the message in ``frame``.

        Raises:
            ProtocolError: the frame is not exactly one well-formed message of this codec's set.
        """
        if len(frame) < 3:
            raise ProtocolError(f"a frame of {len(frame)} bytes is too short to be a message")
        if frame[0] != VERSION:
            raise ProtocolError(f"protocol version {frame[0]} is not supported; this node speaks version {VERSION}")
        decoder = self._decoders.get(frame[1])
        if decoder is None:
            raise ProtocolError(f"unknown kind of message: {frame[1]}")
        message_type, checks = decoder
        values = unpack(memoryview(frame)[2:])
        if type(values) is not tuple or len(values) != len(checks):
            raise ProtocolError(f"{message_type.__name__}: expected {len(checks)} fields, got {_shown(values)}")
        return message_type(*[check(value, name) for (name, check), value in zip(checks, values, strict=True)])


def _check_of(hint: Any, message_type: type, name: str) -> Check:
    for extra in getattr(hint, "__metadata__", ()):
        if callable(extra):
            check: Check = extra
            return check
    raise TypeError(f"{message_type.__name__}.{name} has no check in its annotation")


def _shown(value: Any) -> str:
    if isinstance(value, (tuple, str, bytes)):
        return f"{type(value).__name__} of length {len(value)}"
    return repr(value)[:40]


def unpack_trusted(data: bytes) -> Any:
    """Return what msgpack ``data`` of our own making holds (a snapshot): no limits but those of memory.

    Raises:
        ProtocolError: not msgpack, or trailing bytes.
    """
    try:
        return msgpack.unpackb(data, use_list=False, raw=False, strict_map_key=True)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"not a valid msgpack body: {error or type(error).__name__}") from error
