"""The types of the command line's numbers: click's own take underscores, blanks and digits of other scripts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ...transport.errors import quoted
from ...transport.numerals import float_of, whole_of


def _written(kind: Any, value: Any, read: Callable[[str], object], param: Any, ctx: Any) -> Any:
    """Return ``value``, a number by the grammar of :mod:`openoutcry.transport.numerals`."""
    if isinstance(value, str) and read(value) is None:
        kind.fail(f"{quoted(value)} is no {kind.name}: write it in digits, as 1000", param, ctx)
    return value


class Whole(click.types.IntParamType):
    """A whole number, in digits."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number; anything else is an error of usage."""
        return super().convert(_written(self, value, whole_of, param, ctx), param, ctx)


class WholeRange(click.IntRange):
    """A whole number within bounds, in digits."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number; anything else is an error of usage."""
        return super().convert(_written(self, value, whole_of, param, ctx), param, ctx)


class Number(click.types.FloatParamType):
    """A number, in digits."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number; anything else is an error of usage."""
        return super().convert(_written(self, value, float_of, param, ctx), param, ctx)


class NumberRange(click.FloatRange):
    """A number within bounds, in digits."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number; anything else is an error of usage."""
        return super().convert(_written(self, value, float_of, param, ctx), param, ctx)
