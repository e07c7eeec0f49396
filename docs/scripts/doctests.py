"""An extension of griffe: examples (`>>> …`) in docstrings are code; Markdown takes them for quotations."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^(?:>>> .*\n?)(?:.+\n?)*", re.MULTILINE)


class Doctests(griffe.Extension):
    """Puts fences around every example, up to the blank line after it."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(
                lambda m: f"```pycon\n{m[0].rstrip()}\n```\n", obj.docstring.value
            )
