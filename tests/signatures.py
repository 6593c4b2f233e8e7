"""What a method can be given, with the options that its ``**options`` stand for."""

import inspect
from collections.abc import Callable
from typing import Any

from openoutcry.actors import OrderOptions, RequestOptions


def parameters_of(method: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters of a method but for ``self``; each option is one."""
    found = []
    for each in list(inspect.signature(method).parameters.values())[1:]:
        if each.kind is not each.VAR_KEYWORD:
            found.append(each)
            continue
        declared = next(kind for kind in (OrderOptions, RequestOptions) if kind.__name__ in str(each.annotation))
        found += [inspect.Parameter(name, each.KEYWORD_ONLY, default=None) for name in declared.__annotations__]
    return found
