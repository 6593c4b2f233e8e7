"""Numbers as text: the one grammar of what comes in, and the one form of what goes out. Pure.

A number comes in as ASCII digits: ``-?DIGITS`` where a whole number is expected, else ``-?DIGITS[.DIGITS][e±DIGITS]``.
Nothing else counts as one: no digits of other scripts, no underscores or blanks, no leading zero or plus sign, nothing
missing before or after the point, no minus zero, no NaN or infinity. An exponent is understood because other programs
write small numbers so; none is ever written.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

DIGITS_MAX: Final = 40
"""Most characters of a number that comes in as text, and most digits before or after its point."""
_DECIMAL: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,4})?")
"""A number, whole or not."""
_WHOLE: Final = re.compile(r"0|-?[1-9][0-9]*")
_PORT: Final = re.compile(r"0|[1-9][0-9]{0,4}")
_HEXADECIMAL: Final = re.compile(r"[0-9A-Fa-f]{1,40}")


def whole_of(text: str) -> int | None:
    """Return the whole number that ``text`` is, None if it is none."""
    return int(text) if len(text) <= DIGITS_MAX and _WHOLE.fullmatch(text) else None


def decimal_of(text: str) -> Decimal | None:
    """Return the number that ``text`` is, None if it is none or has too many digits."""
    found = unbounded_of(text) if len(text) <= DIGITS_MAX else None
    return None if found is None or is_huge(found) or (text[0] == "-" and not found) else found


def unbounded_of(text: str) -> Decimal | None:
    """Return the number that ``text`` is, as :func:`decimal_of`, but of any size, and minus zero is one."""
    return Decimal(text) if _DECIMAL.fullmatch(text) else None


def float_of(text: str) -> float | None:
    """Return the number that ``text`` is as a float, None if it is none."""
    found = decimal_of(text)
    return None if found is None else float(found)


def hexadecimal_of(text: str) -> int | None:
    """Return the number that ``text`` is in hexadecimal digits, None if it is none."""
    return int(text, 16) if _HEXADECIMAL.fullmatch(text) else None


def port_of(text: str) -> int | None:
    """Return the port of an address, 0 to 65535, None if ``text`` is none."""
    return int(text) if _PORT.fullmatch(text) and int(text) <= 65535 else None


def is_huge(value: Decimal) -> bool:
    """Return whether ``value`` is not finite, or takes more than ``DIGITS_MAX`` digits before or after its point."""
    return not value.is_finite() or abs(value.adjusted()) > DIGITS_MAX


class PlainDecimal(Decimal):
    """A Decimal whose text never has an exponent."""

    __slots__ = ()

    def __str__(self) -> str:
        return Decimal.__format__(self, "f")

    def __repr__(self) -> str:
        return f"Decimal('{self}')"

    def __format__(self, spec: str, /) -> str:  # type: ignore[override]
        # A width or a fill alone would give the scientific form; "f" without a precision keeps the digits as they are.
        return Decimal.__format__(self, spec if "." in spec or spec[-1:] in tuple("eEfFgGn%") else f"{spec}f")


def written(value: float | Decimal, digits: int | None = 6) -> str:
    """Return a number as text without an exponent; of a float at most ``digits`` significant digits, None: all."""
    if isinstance(value, float) and math.isfinite(value):
        value = Decimal(float.__repr__(value) if digits is None else f"{float(value):.{digits}g}")
    if isinstance(value, Decimal) and value.is_finite():
        return (
            f"a number of more than {DIGITS_MAX} digits" if value and is_huge(value) else Decimal.__format__(value, "f")
        )
    return str(value)


def in_json(value: float) -> float:
    """Return ``value`` so that JSON writes it without an exponent: values below 0.0001 are rounded to that or to 0."""
    if not math.isfinite(value) or "e" not in repr(value):
        return value
    return round(value, 4) if abs(value) < 1 else int(value)


def time_text(time_ns: int) -> str:
    """Return nanoseconds since the Unix epoch as ISO 8601, in UTC."""
    seconds, rest_ns = divmod(time_ns, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest_ns:09}Z"


def times_in_json(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``fields`` with each time in nanoseconds, ``NAME_ns``, as a string, and as ISO 8601 under ``NAME``.

    Few readers of JSON keep whole numbers beyond 2**53. 0 is no time: both are None then.
    """
    found: dict[str, Any] = {}
    for key, value in fields.items():
        found[key] = value
        if key.endswith("_ns") and type(value) is int:
            found[key] = str(value) if value else None
            found[key.removesuffix("_ns")] = time_text(value) if value else None
    return found
