"""What is wrong with a taxonomy or a mapping file, before it is used."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from features.delimited import header_name, is_delimited, rows_of, sniff
from features.errors import ShelfmarkError
from features.product import level_columns, tidy_name
from models.mappings import RuleFile, read_rules
from models.taxonomy import is_listing, listed, read_paths
from models.taxonomy_changes import key, rings_of

Row = tuple[str, str, tuple[str, ...]]  # where, id, names from coarse to fine, as they are written


def check(file: Path, most_levels: int | None = None) -> tuple[list[str], list[str]]:
    """Checks a taxonomy (CSV, or a text as Google's) or a mapping (CSV with from,to, YAML, JSON).

    Args:
        file: on the disk.
        most_levels: deeper categories are a fault; None: none is.

    Returns:
        What the file holds, in lines; and its faults, a line each.

    Raises:
        ShelfmarkError: it cannot be read, or is neither.
    """
    if not file.is_file():
        raise ShelfmarkError(f"{file}: no such file; expected a taxonomy or a mapping; check the path")
    if not is_listing(file) and is_delimited(file.name) and not _header(file):
        raise ShelfmarkError(f"{file}: empty; expected a header and a line a category; make the file again")
    if not is_listing(file) and (not is_delimited(file.name) or {"from", "to"} <= set(_header(file))):
        return _check_mapping(read_rules(file))
    rows = list(_rows(file))
    depths = Counter(len([name for name in names if name.strip()]) for _, _, names in rows)
    shown = ", ".join(f"{count:,} of depth {depth}" for depth, count in sorted(depths.items()))
    return [f"{len(rows):,} categories: {shown}"], list(_faults(rows, most_levels))


def _header(file: Path) -> list[str]:
    first = next(rows_of(file, sniff(file, frozenset({"from", "to", "category_id"}), None, None)), None)
    return list(map(header_name, first.cells)) if first else []


def _rows(file: Path) -> Iterator[Row]:
    """The categories as they are written, blanks and empty cells among them."""
    if is_listing(file):
        for number, name, names in listed(file):
            yield f"line {number}", name, names
        return
    rows = rows_of(file, sniff(file, frozenset({"category_id", "category_level1"}), None, None))
    columns = list(map(header_name, next(rows).cells))
    category = next((name for name in ("category_id", "category") if name in columns), None)
    levels = level_columns(columns)
    if category is None or not levels:
        read_paths(file)  # raises, and says what is expected
    positions = [columns.index(name) for name in levels]
    for row in rows:
        cells = [*row.cells, *[""] * (len(columns) - len(row.cells))]
        if row.problem:
            raise ShelfmarkError(f"{file}: {row.problem}; expected a row; correct the file")
        yield f"line {row.line}", cells[columns.index(str(category))], tuple(cells[at] for at in positions)


def _faults(rows: list[Row], most_levels: int | None) -> Iterator[str]:
    """Faults of a taxonomy, by kind."""
    at: dict[str, list[tuple[str, tuple[str, ...]]]] = defaultdict(list)  # id → where, names
    ids_of: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)  # path → id → where
    found: dict[str, list[str]] = defaultdict(list)
    for where, category, names in rows:
        path = tuple(tidy_name(name) for name in names if name.strip())
        if not category.strip():
            found["empty"].append(f"{where}: no category")
        if not path:
            found["empty"].append(f"{where}: {category}: no name at any level")
        elif any(not name.strip() for name in names[: len(path)]):
            found["empty"].append(f"{where}: {category}: an empty level above {path[-1]!r}")
        for text in (category, *names):
            if text.strip() and tidy_name(text) != text:
                found["blanks"].append(f"{where}: {text!r}: blanks too many, or accents in another form")
        if most_levels is not None and len(path) > most_levels:
            found["depth"].append(f"{where}: {category}: depth {len(path)}; at most {most_levels}")
        at[key(category)].append((where, path))
        ids_of[path].setdefault(key(category), where)
    for category, places in at.items():
        paths = dict.fromkeys(path for _, path in places)
        if category and len(paths) > 1:
            shown = " and ".join(" / ".join(path) for path in paths)
            found["parents"].append(f"{places[1][0]}: {category}: several places: {shown}")
        elif category and len(places) > 1:
            found["twice"].append(f"{places[1][0]}: {category}: there already at {places[0][0]}")
    for path, ids in ids_of.items():
        if path and len(ids) > 1:
            shown = ", ".join(f"{category} ({where})" for category, where in list(ids.items())[:3])
            found["path"].append(f"{' / '.join(path)}: is the place of {len(ids):,} categories: {shown}")
    found["case"] += _by_case("categories", at)
    found["case"] += _by_case("names", {name for path in ids_of for name in _nodes(path)})
    for faults in found.values():
        yield from faults


def _nodes(path: tuple[str, ...]) -> Iterator[str]:
    for depth in range(1, len(path) + 1):
        yield " / ".join(path[:depth])


def _by_case(what: str, names: Iterable[str]) -> Iterator[str]:
    """Names that differ in upper and lower case alone."""
    same: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        same[name.casefold()].append(name)
    for several in same.values():
        if len(several) > 1:
            yield f"{what} that differ in upper and lower case alone: {' and '.join(map(repr, several[:3]))}"


def _check_mapping(files: list[RuleFile]) -> tuple[list[str], list[str]]:
    shown, found = [], defaultdict[str, list[str]](list)
    for file in files:
        versions = f", from {file.before} to {file.after}" if file.before else ""
        shown.append(f"{len(file.rules):,} rules{versions}")
        rules: dict[str, list[str]] = defaultdict(list)
        where: dict[tuple[str, tuple[str, ...]], str] = {}
        first: dict[str, str] = {}
        for rule in file.rules:
            if (rule.old, rule.new) in where:
                already = where[rule.old, rule.new]
                found["twice"].append(f"{rule.where}: {rule.old}: the same rule as at {already}")
            elif rule.old in first and (file.before or not rule.new or not rules[rule.old]):
                found["twice"].append(f"{rule.where}: {rule.old}: has another rule at {first[rule.old]}")
            where.setdefault((rule.old, rule.new), rule.where)
            first.setdefault(rule.old, rule.where)
            rules[rule.old].extend(rule.new)
        rings = rings_of({old: tuple(new) for old, new in rules.items()})
        found["cycles"] += [f"{first[old]}: {old}: a cycle: {ring}" for old, ring in rings.items()]
        found["case"] += _by_case("categories", {*rules, *(one for new in rules.values() for one in new)})
    return shown, [fault for faults in found.values() for fault in faults]
