"""Spellings: names that differ only in blanks, or in how accents are written, are one name."""

import logging
from collections import defaultdict
from collections.abc import Mapping

from features.product import tidy_name

log = logging.getLogger("shelfmark")

SHOWN = 3  # names in a log line


def log_merged(what: str, counts: Mapping[str, int]) -> None:
    """Logs the names that have several spellings, and how often each spelling occurs.

    Args:
        what: the names are of, as in "categories".
        counts: spelling → how often it occurs; blank ones are left out.
    """
    spellings: dict[str, list[str]] = defaultdict(list)
    for spelling in sorted(counts):
        if spelling.strip():
            spellings[tidy_name(spelling)].append(spelling)
    merged = [found for found in spellings.values() if len(found) > 1]
    if merged:
        examples = "; ".join(
            " and ".join(f"{spelling!a} ({counts[spelling]:,})" for spelling in found)
            for found in merged[:SHOWN]
        )
        log.info(
            "%s: %s names have several spellings that differ in blanks or in how accents are written, and "
            "each is one name: %s",
            what, f"{len(merged):,}", examples + (" …" if len(merged) > SHOWN else ""),
        )  # fmt: skip
