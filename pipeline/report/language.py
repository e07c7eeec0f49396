"""English and French: numbers as each writes them, and texts by their keys in texts.py.

           en         fr
0.5149     51.5%      51,5 %     (narrow no-break space)
1234567    1,234,567  1 234 567
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from pipeline.report.texts import TEXTS

NARROW = "\u202f"  # narrow no-break space
LANGUAGES = ("en", "fr")


@dataclass(frozen=True)
class Words:
    """Texts and numbers in one language."""

    language: str

    def __call__(self, key: str, **values: object) -> str:
        """The text of a key, with the values in the places that it names.

        >>> Words("fr")("table.rows", shown="25", all="35")
        '25 lignes sur 35'
        """
        text = TEXTS[key][LANGUAGES.index(self.language)]
        text = text.format(**values) if values else text
        return _with_french_spaces(text) if self.language == "fr" else text

    def has(self, key: str) -> bool:
        """Whether there is a text of this key."""
        return key in TEXTS

    @property
    def script(self) -> dict[str, str]:
        """The texts that the page's script uses, without the "js." of their keys."""
        return {key[3:]: self(key) for key in TEXTS if key.startswith("js.")}

    @property
    def marks(self) -> Mapping[str, str]:
        """What stands in numbers: decimal mark, between thousands, before and with the per cent sign."""
        if self.language == "fr":
            return {"decimal": ",", "thousands": NARROW, "percent": f"{NARROW}%", "cells": ";"}
        return {"decimal": ".", "thousands": ",", "percent": "%", "cells": ","}

    def decimal(self, value: float, digits: int) -> str:
        """A number with so many digits behind the decimal mark; halves are rounded up, as browsers do.

        >>> Words("en").decimal(1234.25, 1), Words("fr").decimal(1234.25, 1)
        ('1,234.3', '1\\u202f234,3')
        """
        rounded = Decimal(float(value)).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
        text = f"{rounded:,}".replace("-", "−")
        marks = str.maketrans({",": self.marks["thousands"], ".": self.marks["decimal"]})
        return text.translate(marks)

    def percent(self, value: float | None) -> str:
        """A share in per cent with one decimal; a dash for None.

        >>> words = Words("en")
        >>> words.percent(0.5149), words.percent(0.0001), words.percent(0.99999), words.percent(None)
        ('51.5%', '<0.1%', '>99.9%', '–')
        """
        if value is None:
            return "–"
        sign = self.marks["percent"]
        if 0 < value < 0.0005:
            return f"<{self.decimal(0.1, 1)}{sign}"
        if 0.9995 <= value < 1:
            return f">{self.decimal(99.9, 1)}{sign}"  # never 100 % when something was wrong
        return f"{self.decimal(100 * value, 1)}{sign}"

    def target(self, value: float) -> str:
        """A share in per cent with as many decimals as it has.

        >>> Words("en").target(0.9), Words("fr").target(0.925)
        ('90%', '92,5\\u202f%')
        """
        text = f"{100 * value:.6g}".replace(".", self.marks["decimal"])
        return f"{text}{self.marks['percent']}"

    def points(self, value: float | None) -> str:
        """A difference of shares, in points with its sign.

        >>> Words("en").points(-0.0123)
        '−1.2'
        """
        if value is None:
            return "–"
        return ("+" if value > 0 else "") + self.decimal(100 * value, 1)

    def count(self, value: float | None) -> str:
        """A whole number; a dash for None.

        >>> Words("en").count(1234567)
        '1,234,567'
        """
        return "–" if value is None else self.decimal(value, 0)

    def number(self, value: float | None) -> str:
        """A number with four significant digits, as thresholds are shown; a dash for None.

        >>> Words("fr").number(0.73125)
        '0,7312'
        """
        return "–" if value is None else f"{value:.4g}".replace(".", self.marks["decimal"])

    def signed(self, value: float) -> str:
        """A number with its sign and three digits.

        >>> Words("en").signed(-1.2345)
        '−1.23'
        """
        return f"{value:+.3g}".replace("-", "−").replace(".", self.marks["decimal"])


def _with_french_spaces(text: str) -> str:
    """The text with no-break spaces where French puts a space around marks.

    >>> _with_french_spaces("« Oui » : 90 % ; non")
    '«\\xa0Oui\\xa0»\\xa0: 90\\u202f%\\u202f; non'
    """
    for mark, space in (
        (":", "\u00a0"),
        ("»", "\u00a0"),
        (";", NARROW),
        ("?", NARROW),
        ("!", NARROW),
        ("%", NARROW),
    ):
        text = text.replace(f" {mark}", f"{space}{mark}")
    return text.replace("« ", "«\u00a0")


def language_of(setting: str, environment: Mapping[str, str] = os.environ) -> str:
    """The language that `report.language` means; "auto" is that of the environment's locale.

    >>> language_of("auto", {"LANG": "fr_FR.UTF-8"}), language_of("auto", {"LC_ALL": "C", "LANG": "fr_FR"})
    ('fr', 'en')
    """
    if setting != "auto":
        return setting
    names = (environment.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    locale = next((name for name in names if name), "")
    return "fr" if locale.lower().startswith("fr") else "en"
