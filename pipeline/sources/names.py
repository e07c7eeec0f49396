"""Names of categories and levels: which spellings are one name, and which are nearly one."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from features.errors import ShelfmarkError
from pipeline.job.progress import log

Renamed = Mapping[tuple[str, tuple[str, ...]], str]  # category and its path → what it is called instead
AS_NAMED: Renamed = MappingProxyType({})
SHOWN = 3  # of each kind in a log line


def log_case_pairs(what: str, names: Iterable[str]) -> None:
    """Logs names that differ by case alone: they stay different, and are often a mistake."""
    same: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        same[name.casefold()].append(name)
    pairs = [" and ".join(map(repr, found)) for found in same.values() if len(found) > 1]
    if pairs:
        log.warning(
            "%s: %s names differ by upper and lower case alone and stay different: %s",
            what, f"{len(pairs):,}", "; ".join(pairs[:SHOWN]) + (" …" if len(pairs) > SHOWN else ""),
        )  # fmt: skip


def nonblank(names: Iterable[str]) -> Counter[str]:
    """How often each name that is not blank occurs."""
    return Counter(name for name in names if name.strip())


def ambiguous(category: str, source: str) -> ShelfmarkError:
    """The error about a name with several parents, where a product does not say which."""
    return ShelfmarkError(
        f"{source}: category {category!r} has several parents, and a product in it does not say which; "
        "expected level columns in each of its rows; add them, or give such categories names of their own"
    )
