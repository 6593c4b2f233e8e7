"""The codec of every frame between nodes."""

from __future__ import annotations

from typing import Any, Final

from ...transport import codec
from ...transport.errors import ensure
from ..book.wire import MARKET_KINDS
from ..peers.wire import LINK_KINDS
from ..remote.wire import PARCEL_KINDS

_KINDS: Final = [*LINK_KINDS.items(), *MARKET_KINDS.items(), *PARCEL_KINDS.items()]
CODEC: Final[codec.Codec[Any]] = codec.Codec(dict(_KINDS))
"""Every frame between nodes, as the inbox's reader decodes it."""

ensure(len(dict(_KINDS)) == len(_KINDS), "two kinds of frames between nodes have the same number")
