"""The actors of a node: how they are started, supervised and stopped.

:mod:`.assembly` starts and stops them; :mod:`.markets` opens markets; :mod:`.leading` moves leadership;
:mod:`.directory` is the node's side of the directory; :mod:`.folder` is its data directory.
"""

from .codec import CODEC

__all__ = ["CODEC"]
