"""The codec of every frame between nodes."""

from __future__ import annotations

from typing import Any, Final

from ...transport import codec
from ..book.wire import MARKET_KINDS
from ..peers.wire import LINK_KINDS
from ..remote.wire import PARCEL_KINDS

CODEC: Final[codec.Codec[Any]] = codec.Codec({**LINK_KINDS, **MARKET_KINDS, **PARCEL_KINDS})
"""Every frame between nodes, as the inbox's reader decodes it."""
