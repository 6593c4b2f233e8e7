"""Parcels: messages from the actors of one node to those of another. Values only; see :mod:`.actors`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Final

from ...transport import codec
from ...transport.errors import ProtocolError
from .schema import MESSAGE_SIZE_MAX

TELL, ASK, REPLY, FIND, FOUND, WATCH, GONE, CREDIT = range(1, 9)
"""Kinds of a parcel's items: see :mod:`..remote.actors`."""
_ID: Final = codec.Int(1)
_KEY: Final = codec.Str(80)
_BODY: Final = codec.Bytes(MESSAGE_SIZE_MAX)
_ACCEPTED: Final = codec.Array(codec.Tuple((codec.Str(80, 1), codec.Str(12, 12))), 1024)
_ITEM_CHECKS: Final = {
    TELL: codec.Tuple((codec.Int(), _ID, _KEY, _BODY)),
    ASK: codec.Tuple((codec.Int(), _ID, _KEY, _BODY, _ID)),
    REPLY: codec.Tuple((codec.Int(), _ID, codec.Str(64), _KEY, _BODY)),
    FIND: codec.Tuple((codec.Int(), _ID, codec.Str(64, 1))),
    FOUND: codec.Tuple((codec.Int(), _ID, _ID, codec.Str(64, 1), _ACCEPTED)),
    WATCH: codec.Tuple((codec.Int(), _ID)),
    GONE: codec.Tuple((codec.Int(), _ID, codec.Str(20, 1), codec.Str(500))),
    CREDIT: codec.Tuple((codec.Int(), _ID, _ID)),
}


def _items(value: Any, name: str) -> tuple[tuple[Any, ...], ...]:
    if type(value) is not tuple or not value:
        raise ProtocolError(f"{name}: expected items")
    for item in value:
        check = _ITEM_CHECKS.get(item[0]) if type(item) is tuple and item and type(item[0]) is int else None
        if check is None:
            raise ProtocolError(f"{name}: expected an item of a known kind")
        check(item, name)
    return value


@dataclasses.dataclass(frozen=True, slots=True)
class Parcel:
    """Node to node: items from actors to actors, in order, in the sender's life ``session`` of the link."""

    session: Annotated[int, codec.Int(1)]
    items: Annotated[tuple[tuple[Any, ...], ...], _items]


PARCEL_KINDS: Final[dict[int, type]] = {13: Parcel}
"""By the number of its kind on the wire."""
PARCEL_CODEC: Final[codec.Codec[Any]] = codec.Codec(PARCEL_KINDS)
