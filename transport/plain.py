"""Text that others chose, made plain: what it does to a terminal, and whether it looks like other text. Pure.

A name that people may mistake for another is refused where it comes in (:func:`fault_of`). Other text from outside is
shown with escapes for everything that is invisible or moves the cursor (:func:`plain`).
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

_INVISIBLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""What is invisible though Unicode's category says otherwise: fillers, joiners of graphemes, variation selectors."""
_USUAL: Final = re.compile(r"[!-~]+(?: [!-~]+)*")
"""Nearly all names match this."""
_DOUBLES: Final = re.compile(
    "[\u01c0-\u01c3\u0251\u0261\u0269\u026a\u02b0-\u02ff\u0307\u0334-\u0338\u1d00-\u1d2b\ua788-\ua78a]"
    "|(?<![\u3041-\u30fe])\u30fc|([\u0300-\u036f])\\1"
)
"""Letters and marks drawn like an ASCII sign, or like another letter's part.

Clicks, phonetic letters and small capitals, modifier letters, a dot above that no composed letter has (``i`` and U+0307
look like ``i``), strokes through a letter, the long vowel of kana elsewhere (a dash), the same mark twice."""
_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ALIKE: Final = frozenset({"ARMENIAN", "CHEROKEE", "COPTIC", "CYRILLIC", "GREEK", "LATIN", "LISU"})
"""Scripts of which many letters look like those of another: the first word of a letter's name in Unicode."""


def plain(text: str) -> str:
    """Return ``text`` as one line that a terminal shows as it is: what is invisible, or moves the cursor, is escaped.

    That is: control and format characters (ANSI sequences, marks of direction, zero width), line and paragraph
    separators, blanks other than the ASCII one, what is unassigned, private or half a surrogate pair.
    """
    if text.isprintable() and (text.isascii() or not _INVISIBLE.search(text)):
        return text
    return "".join([sign if _is_plain(sign) else _escaped(sign) for sign in text])


def plain_lines(text: str) -> str:
    """Return ``text`` as :func:`plain` does, its lines kept: for a traceback, or what this program itself has set."""
    return "\n".join([plain(line.expandtabs()) for line in text.split("\n")])


def fault_of(name: str) -> str | None:
    """Return why ``name`` may be mistaken for another, or cannot be encoded; None if it is fine.

    Whole words in another script that look like a Latin one are not found: no rule of characters can.
    """
    if _USUAL.fullmatch(name):
        return None
    if plain(name) != name:
        return "it has control characters, or invisible ones"
    if not unicodedata.is_normalized("NFKC", name):
        return "it is not in Unicode's normal form NFKC: other characters would look the same"
    if sign := next((sign for sign in name if not sign.isascii() and _is_sign(sign)), None) or _doubled(name):
        return f"U+{ord(sign):04X} in it looks like another sign: beside letters and digits, take those of ASCII"
    if len({ord(sign) - unicodedata.decimal(sign) for sign in name if sign.isdecimal()}) > 1:
        return "it mixes digits of several scripts"
    if len(scripts := _scripts(name)) > 1:
        return f"it mixes letters that look alike, {' and '.join(sorted(scripts))}"
    if name != name.strip() or "  " in name:
        return "it has blanks at an end, or several in a row"
    return None


def _is_sign(sign: str) -> bool:
    """Return whether ``sign`` is a dash, a quote, another punctuation mark or an operator."""
    return unicodedata.category(sign)[0] == "P" or unicodedata.category(sign) in ("Sm", "Sk")


def _doubled(name: str) -> str | None:
    """Return what of ``name`` is drawn like something else, or a mark that no letter carries."""
    if found := _DOUBLES.search(name):
        return found[0][-1]
    before = " "
    for sign in name:
        if unicodedata.combining(sign) and not (before.isalpha() or unicodedata.category(before)[0] == "M"):
            return sign
        before = sign
    return None


def _is_plain(sign: str) -> bool:
    return sign.isprintable() and not _INVISIBLE.match(sign)


def _escaped(sign: str) -> str:
    if sign in _SHORT:
        return _SHORT[sign]
    return f"\\x{ord(sign):02x}" if sign.isascii() else sign.encode("ascii", "backslashreplace").decode()


def _scripts(name: str) -> set[str]:
    """Return those of the look-alike scripts that ``name`` has letters of."""
    return {unicodedata.name(sign, "").partition(" ")[0] for sign in name if sign.isalpha()} & _ALIKE
