"""Turns what the docstrings have from reStructuredText (roles, literal blocks, tables, doctests) into Markdown."""

from __future__ import annotations

import re
from typing import Any, Final

from griffe import Docstring, Extension, Object

ROLE: Final = re.compile(r":\w+:`(?:[^`<]*<)?[~.]*([\w.]+)>?`")
LITERAL: Final = re.compile(r"^\.\. code-block:: *\w*\n", re.MULTILINE)
BORDERED: Final = re.compile(r"^(=+(?: +=+)+)\n.*?\n\1\n.*?\n\1$", re.MULTILINE | re.DOTALL)
DOCTEST: Final = re.compile(r"^>>> .*?(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)
FENCED: Final = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def to_markdown(text: str) -> str:
    """Return a docstring as Markdown."""
    text = DOCTEST.sub(lambda found: "```pycon\n" + found[0].replace("  # doctest: +SKIP", "") + "\n```", text)
    text = BORDERED.sub(lambda found: "```text\n" + found[0] + "\n```", LITERAL.sub("", text))
    return "".join([part if part.startswith("```") else _inline(part) for part in FENCED.split(text)])


def _inline(text: str) -> str:
    text = ROLE.sub(lambda found: f"`{found[1].rpartition('.')[2] or found[1]}`", text)
    return re.sub(r"``([^`\n]+)``", r"`\1`", text).replace("::\n", ":\n")


class Roles(Extension):
    """Rewrites every docstring that is loaded."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite one object's."""
        if isinstance(obj.docstring, Docstring):
            obj.docstring.value = to_markdown(obj.docstring.value)
