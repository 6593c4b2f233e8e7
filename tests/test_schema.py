"""Messages of actors: what their annotations allow gets through and back, everything else is refused on both sides."""

from __future__ import annotations

import dataclasses
import doctest
import enum
import pickle
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openoutcry.actors.remote import schema
from openoutcry.actors.remote.schema import MESSAGE_SIZE_MAX, decode_value, encode_value, message, type_of
from openoutcry.transport import codec
from openoutcry.transport.errors import ConfigurationError, MessageRefused, ProtocolError


class Colour(enum.Enum):
    RED = "red"
    BLUE = 2


@message("test.inner")
class Inner:
    number: int


@message("test.all")
class All:
    text: str
    data: bytes
    yes: bool
    number: int
    real: float
    nothing: None
    price: Decimal
    colour: Colour
    side: Literal["buy", "sell", 3]
    maybe: str | None
    many: tuple[int, ...]
    pair: tuple[str, Decimal | None]
    inner: Inner
    inners: tuple[Inner, ...]
    small: Annotated[int, codec.Int(0, 9)]


GOOD = All(
    "ä",
    b"\x00",
    True,
    -(2**63),
    1.5,
    None,
    Decimal("-1.10"),
    Colour.BLUE,
    3,
    None,
    (1, 2),
    ("x", Decimal("1E+3")),
    Inner(1),
    (Inner(2), Inner(3)),
    9,
)

BAD: list[Any] = [
    ("text", b"bytes"),
    ("text", "\ud800"),
    ("text", None),
    ("data", "text"),
    ("yes", 1),
    ("number", True),
    ("number", 2**63),
    ("number", 1.0),
    ("real", float("nan")),
    ("real", float("inf")),
    pytest.param("real", 10**400, id="real-too-large"),
    ("real", "1"),
    ("nothing", 0),
    ("price", Decimal("NaN")),
    ("price", "1.10"),
    ("price", 1.1),
    ("price", Decimal("1" * 65)),
    ("colour", "red"),
    ("side", "hold"),
    ("side", True),
    ("maybe", 1),
    ("many", [1]),
    ("many", (1, "2")),
    ("pair", ("x",)),
    ("inner", (1,)),
    ("inner", Inner("1")),  # type: ignore[arg-type]
    ("inners", (Inner(1), None)),
    ("small", 10),
]


def test_every_kind_of_field_arrives_as_it_was_sent() -> None:
    kind = type_of(GOOD)
    assert kind.key == "test.all/1"
    assert kind.decode(kind.encode(GOOD)) == GOOD
    assert kind.decode(kind.encode(dataclasses.replace(GOOD, real=2))).real == 2.0


@pytest.mark.parametrize(("field", "value"), BAD)
def test_what_an_annotation_does_not_allow_is_refused_before_it_is_sent(field: str, value: Any) -> None:
    with pytest.raises(MessageRefused, match=r"test\.all/1"):
        type_of(GOOD).encode(dataclasses.replace(GOOD, **{field: value}))


WIRE_BAD: list[tuple[int, Any]] = [
    (0, 1), (1, "x"), (2, 1), (3, True), (3, 1.0), (4, float("nan")), (4, None), (5, False), (6, "NaN"), (6, "one"),
    (6, 1), (6, "1" * 65), (7, "RED"), (7, 3), (7, (2,)), (8, "hold"), (8, True), (8, (1,)), (9, 1), (10, (1, "2")),
    (10, 1), (11, ("x",)), (12, 1), (12, (1, 2)), (12, ("1",)), (13, ((1,), None)), (14, 10),
]  # fmt: skip


@pytest.mark.parametrize(("at", "value"), WIRE_BAD)
def test_what_an_annotation_does_not_allow_is_refused_where_it_arrives(at: int, value: Any) -> None:
    kind = type_of(GOOD)
    fields = list(codec.unpack(kind.encode(GOOD)))
    fields[at] = value
    with pytest.raises(ProtocolError):
        kind.decode(codec.pack(fields))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_make_no_message_or_a_valid_one(body: bytes) -> None:
    kind = type_of(Inner)
    try:
        found = kind.decode(body)
    except ProtocolError:
        return
    assert type(found) is Inner
    assert type(found.number) is int


@pytest.mark.parametrize(
    "body", [b"", b"\x91", b"\x92\x01\x02", b"\x90", b"\x81\x01\x01", b"\xc7\x01\x01\x01", b"\x91\x01\x01"]
)
def test_bytes_that_are_not_exactly_the_fields_are_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        type_of(Inner).decode(body)


def test_a_pickle_is_just_bytes() -> None:
    with pytest.raises(ProtocolError):
        type_of(Inner).decode(pickle.dumps(Inner(1)))
    with pytest.raises(ProtocolError):
        decode_value("", pickle.dumps(Inner(1)))


def test_message_beyond_the_limit_is_refused_with_its_size() -> None:
    with pytest.raises(MessageRefused, match=f"the limit of a message is {MESSAGE_SIZE_MAX}") as caught:
        type_of(GOOD).encode(dataclasses.replace(GOOD, data=bytes(MESSAGE_SIZE_MAX)))
    assert caught.value.code == "message_too_large"
    text = "x" * (MESSAGE_SIZE_MAX // 2)
    kind = type_of(GOOD)
    assert kind.decode(kind.encode(dataclasses.replace(GOOD, text=text))).text == text


@pytest.mark.parametrize("value", [None, True, 5, -1.5, "text", b"data", (1, ("two", None)), [1, [2]], Inner(4)])
def test_replies_are_values_or_messages(value: Any) -> None:
    def tupled(of: Any) -> Any:
        return tuple([tupled(item) for item in of]) if isinstance(of, list) else of

    assert decode_value(*encode_value(value)) == tupled(value)


@pytest.mark.parametrize("value", [{"a": 1}, {1}, object(), Decimal(1), 2**64, float("nan"), [[[{}]]], All])
def test_reply_that_is_neither_is_refused(value: Any) -> None:
    with pytest.raises(MessageRefused, match="the reply"):
        encode_value(value)
    nested: Any = ()
    for _ in range(schema.VALUE_DEPTH_MAX + 1):
        nested = (nested,)
    with pytest.raises(MessageRefused, match="nested deeper"):
        encode_value(nested)
    with pytest.raises(ProtocolError, match="is not registered here"):
        decode_value("test.nobody/1", b"\x90")


@pytest.mark.parametrize(
    "annotation", [dict, list[int], set[int], Any, object, int | str, tuple, "Nowhere", Literal[1.5]]
)
def test_annotation_that_cannot_travel_is_an_error_at_registration(annotation: Any) -> None:
    made = type("Bad", (), {"__annotations__": {"field": annotation}, "__module__": __name__})
    with pytest.raises(TypeError, match=r"Bad"):
        message("test.bad")(made)


def test_message_is_a_frozen_value_and_a_class_that_is_not_is_refused() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Inner(1).number = 2  # type: ignore[misc]

    @dataclasses.dataclass
    class Mutable:
        number: int

    with pytest.raises(TypeError, match="frozen"):
        message("test.mutable")(Mutable)
    with pytest.raises(MessageRefused, match="not registered"):
        type_of(Mutable(1))


def test_name_and_version_belong_to_one_class_and_the_signature_tells_others_apart() -> None:
    def define(**fields: Any) -> type:
        made = type("Defined", (), {"__annotations__": fields, "__module__": __name__})
        return message("test.defined", version=2)(made)

    first = define(bid=int, ask=int)
    assert type_of(define(bid=int, ask=int)).signature == type_of(first).signature, "a module that is imported twice"
    with pytest.raises(ConfigurationError) as caught:
        define(ask=int, bid=int)
    assert caught.value.code == "message_registered"
    for wrong in ("", "a/b", "x" * 65):
        with pytest.raises(ConfigurationError):
            message(wrong)


def test_examples_of_the_documentation_run() -> None:
    failed, tried = doctest.testmod(schema)
    assert tried > 0
    assert failed == 0
