"""Texts of others in lines of a terminal: what would move its cursor or turn its letters is escaped."""

import re

# controls of ASCII and Latin 1, line and paragraph separators, and what changes the direction of writing
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def escaped(text: str, keep: str = "") -> str:
    r"""Returns the text with control characters written as in Python.

    >>> escaped("a\n\x1b[31mb")
    'a\\n\\x1b[31mb'

    Args:
        text: any.
        keep: control characters that stay.
    """
    return CONTROL.sub(lambda found: found[0] if found[0] in keep else repr(found[0])[1:-1], text)
