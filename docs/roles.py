"""Turns what the docstrings have from reStructuredText, roles and literal blocks, into Markdown for the site."""

from __future__ import annotations

import re
from typing import Any, Final

from griffe import Docstring, Extension, Object

ROLE: Final = re.compile(r":\w+:`(?:[^`<]*<)?[~.]*([\w.]+)>?`")
LITERAL: Final = re.compile(r"^\.\. code-block:: *\w*\n", re.MULTILINE)
BORDERED: Final = re.compile(r"^(=+(?: +=+)+)\n.*?\n\1\n.*?\n\1$", re.MULTILINE | re.DOTALL)


def to_markdown(text: str) -> str:
    """Return a docstring as Markdown."""
    text = BORDERED.sub(lambda found: "```text\n" + found[0] + "\n```", LITERAL.sub("", text))
    text = ROLE.sub(lambda found: f"`{found[1].rpartition('.')[2] or found[1]}`", text)
    return re.sub(r"``([^`\n]+)``", r"`\1`", text).replace("::\n", ":\n")


class Roles(Extension):
    """Rewrites every docstring that is loaded."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite one object's."""
        if isinstance(obj.docstring, Docstring):
            obj.docstring.value = to_markdown(obj.docstring.value)
