"""Mapping files: what becomes of each category of an old tree, as teams and catalogues write it.

    .csv .tsv (.gz)  from,to[,kind]     a row a target: two rows of one category split it; an empty `to`
                                        deletes it. Redirects: a target that is itself redirected is followed
    .yml .yaml       Shopify's          input_taxonomy: shopify/2025-12
                                        output_taxonomy: shopify/2026-02
                                        rules:
                                        - input: {product_category_id: el-7-15-1-14}
                                          output: {product_category_id: [hb-1-31-1]}
                                        unmapped_product_category_ids: [aa-9]
    .json            Shopify's          {"mappings": [{"input_taxonomy", "output_taxonomy", "rules": [
                                          {"input": {"category": {"id", "full_name"}},
                                           "output": {"category": [{"id", "full_name"}]}}]}]}

Ids are bare or begin with gid://shopify/TaxonomyCategory/. A file of Shopify's holds the changed categories
alone, and leads to the next version only: its rules are applied at once, and files are composed in the order
of their versions (taxonomy_changes.py).
"""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from features.delimited import header_name, is_delimited, rows_of, sniff
from features.errors import ShelfmarkError
from features.product import tidy_name
from models.taxonomy_changes import (
    ADD,
    DELETE,
    KINDS,
    SPLIT,
    Step,
    compose,
    followed,
    gaps,
    in_order,
    key,
    rings_of,
)

log = logging.getLogger("shelfmark")

FORMATS = "expected a mapping: CSV with from,to, or Shopify's YAML or JSON"
GIVEN_KINDS = tuple(kind for kind in KINDS if kind not in ("dead", "cyclic"))  # that a CSV may name
_Loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # every scalar stays text: 1e5, no


@dataclass(frozen=True)
class Rule:
    """A rule as its file has it; categories as `key` gives them."""

    old: str
    new: tuple[str, ...]
    where: str  # in the file, as "line 7"
    kind: str = ""  # that the file names


@dataclass(frozen=True)
class RuleFile:
    """The rules of a mapping file, in its order."""

    name: str
    rules: list[Rule] = field(default_factory=list)
    before: str | None = None  # versions
    after: str | None = None
    labels: dict[str, str] = field(default_factory=dict)


def read_mappings(files: Sequence[Path]) -> Step:
    """Reads mapping files and composes them; those with versions in the order of their versions.

    Args:
        files: on the disk.

    Raises:
        ShelfmarkError: one cannot be read, or they do not follow each other.
    """
    steps = in_order([step_of(rules) for file in files for rules in read_rules(file)])
    for before, after in gaps(steps):
        log.warning(
            "mappings: none leads from %s to %s; ids that changed in between are not found", before, after
        )
    return compose(steps)


def step_of(file: RuleFile) -> Step:
    """The rules of a file as a step.

    Raises:
        ShelfmarkError: two rules of a file with versions are about one category.
    """
    rules: dict[str, tuple[str, ...]] = {}
    where: dict[str, str] = {}
    for rule in file.rules:
        if file.before and rule.old in rules and rules[rule.old] != rule.new:
            raise ShelfmarkError(
                f"{file.name}, {rule.where}: {rule.old} has a rule at {where[rule.old]} already; expected "
                "one rule for each category; remove one"
            )
        rules[rule.old] = tuple(dict.fromkeys((*rules.get(rule.old, ()), *rule.new)))
        where.setdefault(rule.old, rule.where)
    declared = {rule.old for rule in file.rules if rule.kind == SPLIT}
    if file.before:
        rings = rings_of(rules)
        applied, splits = {old: new for old, new in rules.items() if old not in rings}, set[str]()
    else:
        applied, splits, rings = followed(rules)
    splits |= {old for old in declared if len(applied.get(old, ())) == 1}
    return Step(file.name, applied, frozenset(splits), rings, file.before, file.after, file.labels)


def read_rules(file: Path) -> list[RuleFile]:
    """Reads the rules of a mapping file; a JSON file may hold several mappings.

    Raises:
        ShelfmarkError: it cannot be read, or is no mapping; the message names the line or the rule.
    """
    if is_delimited(file.name):
        return [_csv(file)]
    read = {".yml": _yaml, ".yaml": _yaml, ".json": _json}.get(file.suffix.lower())
    if read is None:
        raise ShelfmarkError(f"{file}: its suffix is no format; {FORMATS}; give --mapping another file")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ShelfmarkError(f"{file}: {error.strerror or error}; {FORMATS}; check --mapping") from error
    except UnicodeDecodeError as error:
        raise ShelfmarkError(
            f"{file}: not UTF-8 at byte {error.start}; {FORMATS}; save the file as UTF-8"
        ) from error
    return read(file, text)


def _bad(file: Path, where: str, what: str, expected: str) -> ShelfmarkError:
    return ShelfmarkError(f"{file}, {where}: {what}; expected {expected}; correct the file")


# CSV


def _csv(file: Path) -> RuleFile:
    try:
        rows = rows_of(file, sniff(file, frozenset({"from", "to"}), None, None))
        header = next(rows, None)
        if header is None or header.problem:
            raise ShelfmarkError(f"{file}: empty, or not a table; {FORMATS}; check --mapping")
        columns = list(map(header_name, header.cells))
        if not {"from", "to"} <= set(columns):
            raise ShelfmarkError(
                f"{file}: columns {', '.join(columns)}; expected from,to[,kind]; correct them"
            )
        found = RuleFile(file.name)
        for row in rows:
            if row.problem:
                raise _bad(
                    file, f"line {row.line}", row.problem.partition(": ")[2], "a row of from,to[,kind]"
                )
            cells = dict(zip(columns, map(tidy_name, row.cells), strict=False))
            rule = _csv_rule(file, f"line {row.line}", cells)
            if rule:
                found.rules.append(rule)
    except (OSError, EOFError) as error:
        message = (error.strerror if isinstance(error, OSError) else "") or str(error)
        raise ShelfmarkError(f"{file}: {message}; {FORMATS}; check --mapping") from error
    return found


def _csv_rule(file: Path, where: str, cells: dict[str, str]) -> Rule | None:
    """A row's rule; None of a row that adds a category."""
    old, new, kind = (cells.get(name, "") for name in ("from", "to", "kind"))
    kind = kind.lower()
    if kind and kind not in GIVEN_KINDS:
        raise _bad(file, where, f"kind {kind!r}", ", ".join(GIVEN_KINDS[:-1]) + f" or {ADD}")
    if kind == ADD and new and not old:
        return None
    if not old:
        raise _bad(file, where, "no category in the column from", "one")
    if kind == DELETE and new:
        raise _bad(file, where, f"kind delete, but to is {new!r}", "an empty to")
    if kind and kind != DELETE and not new:
        raise _bad(file, where, f"kind {kind}, but to is empty", "a category in to")
    return Rule(key(old), (key(new),) if new else (), where, kind)


# YAML


def _yaml(file: Path, text: str) -> list[RuleFile]:
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}" if mark else "line 1"
        raise _bad(
            file, where, f"no YAML: {' '.join((error.problem or str(error)).split())}", "Shopify's mapping"
        ) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise _bad(
            file, "line 1", f"no YAML: {' '.join(str(error).split())[:200]}", "Shopify's mapping"
        ) from error
    top = _fields(file, root, "input_taxonomy, output_taxonomy and rules")
    found = RuleFile(
        file.name, before=_version(file, top, "input_taxonomy"), after=_version(file, top, "output_taxonomy")
    )
    if "rules" not in top and "unmapped_product_category_ids" not in top:
        raise _bad(file, _line(root), "no rules", "input_taxonomy, output_taxonomy and rules")
    for node in _items(file, top.get("rules"), "a list of rules"):
        rule = _fields(file, node, "a rule with input and output")
        ids = []
        for side in ("input", "output"):
            if side not in rule:
                raise _bad(file, _line(node), f"a rule without {side}", "input and output")
            inside = _fields(file, rule[side], f"{side} with product_category_id")
            if "product_category_id" not in inside:
                raise _bad(file, _line(rule[side]), f"{side} without product_category_id", "one")
            ids.append(_ids(file, inside["product_category_id"]))
        if len(ids[0]) != 1:
            raise _bad(file, _line(node), f"a rule with {len(ids[0])} categories as its input", "one")
        found.rules.append(Rule(ids[0][0], ids[1], _line(node)))
    for node in _items(file, top.get("unmapped_product_category_ids"), "a list of ids"):
        found.rules.extend(Rule(old, (), _line(node)) for old in _ids(file, node))
    return [found]


def _line(node: yaml.Node | None) -> str:
    return f"line {node.start_mark.line + 1}" if node is not None else "line 1"


def _fields(file: Path, node: yaml.Node | None, expected: str) -> dict[str, yaml.Node]:
    if not isinstance(node, yaml.MappingNode):
        raise _bad(file, _line(node), "not a mapping of names to values", expected)
    fields: dict[str, yaml.Node] = {}
    for name, value in node.value:
        if name.value in fields:
            raise _bad(file, _line(name), f"{name.value} is there twice", "each name once")
        if isinstance(name.value, str):
            fields[name.value] = value
    return fields


def _is_null(node: yaml.Node | None) -> bool:
    return node is None or (
        isinstance(node, yaml.ScalarNode) and node.style is None and node.value in ("", "~", "null")
    )


def _items(file: Path, node: yaml.Node | None, expected: str) -> Iterator[yaml.Node]:
    if _is_null(node):
        return
    if not isinstance(node, yaml.SequenceNode):
        raise _bad(file, _line(node), "not a list", expected)
    yield from node.value


def _ids(file: Path, node: yaml.Node) -> tuple[str, ...]:
    """The ids of a list, or of a single value."""
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [] if _is_null(node) else [node]
    for one in nodes:
        if not isinstance(one, yaml.ScalarNode) or not tidy_name(one.value):
            raise _bad(file, _line(one), "not the id of a category", "an id such as el-7-15")
    return tuple(dict.fromkeys(key(one.value) for one in nodes))


def _version(file: Path, top: dict[str, yaml.Node], name: str) -> str:
    node = top.get(name)
    if not isinstance(node, yaml.ScalarNode) or not node.value.strip():
        raise _bad(file, _line(node), f"no {name}", f"{name}: as in shopify/2025-12")
    return str(node.value).strip()


# JSON


def _json(file: Path, text: str) -> list[RuleFile]:
    try:
        root = json.loads(text, parse_int=str, parse_float=str)  # an id stays what is written
    except json.JSONDecodeError as error:
        raise _bad(file, f"line {error.lineno}", f"no JSON: {error.msg}", "Shopify's mapping") from error
    except RecursionError as error:
        raise _bad(file, "line 1", "nested too deeply", "Shopify's mapping") from error
    mappings = root.get("mappings") if isinstance(root, dict) else None
    if not isinstance(mappings, list) or not mappings:
        raise _bad(file, "at its top", "no list of mappings", '{"mappings": […]}')
    return [_json_mapping(file, f"mappings[{number}]", mapping) for number, mapping in enumerate(mappings)]


def _json_mapping(file: Path, where: str, mapping: Any) -> RuleFile:
    _require(file, where, mapping, dict, "an object with input_taxonomy, output_taxonomy and rules")
    versions = [mapping.get(name) for name in ("input_taxonomy", "output_taxonomy")]
    for name, version in zip(("input_taxonomy", "output_taxonomy"), versions, strict=True):
        if not isinstance(version, str) or not version.strip():
            raise _bad(file, where, f"no {name}", f'"{name}": "shopify/2025-12"')
    found = RuleFile(file.name, before=versions[0].strip(), after=versions[1].strip())
    rules = mapping.get("rules", [])
    _require(file, f"{where}.rules", rules, list, "a list of rules")
    for number, rule in enumerate(rules):
        at = f"{where}.rules[{number}]"
        _require(file, at, rule, dict, "an object with input and output")
        sides = []
        for side in ("input", "output"):
            inside = rule.get(side)
            _require(file, f"{at}.{side}", inside, dict, "an object with category")
            given = inside.get("category")
            categories = given if isinstance(given, list) else [] if given is None else [given]
            sides.append(tuple(_json_ids(file, f"{at}.{side}", categories, found.labels)))
        if len(sides[0]) != 1:
            raise _bad(file, at, f"a rule with {len(sides[0])} categories as its input", "one")
        found.rules.append(Rule(sides[0][0], sides[1], at))
    unmapped = mapping.get("unmapped_product_category_ids") or []
    _require(file, f"{where}.unmapped_product_category_ids", unmapped, list, "a list of ids")
    at = f"{where}.unmapped_product_category_ids"
    found.rules.extend(Rule(old, (), at) for old in _json_ids(file, at, unmapped, found.labels))
    return found


def _require(file: Path, where: str, value: Any, kind: type, expected: str) -> None:
    if not isinstance(value, kind):
        raise _bad(file, where, "missing" if value is None else f"{str(value)[:40]!r}", expected)


def _json_ids(file: Path, where: str, categories: Iterable[Any], labels: dict[str, str]) -> Iterator[str]:
    for category in categories:
        given = category.get("id") if isinstance(category, dict) else category
        if not isinstance(given, str) or not tidy_name(given):
            raise _bad(
                file, where, "a category without an id", '{"id": "gid://shopify/TaxonomyCategory/el-7-15"}'
            )
        if isinstance(category, dict) and isinstance(category.get("full_name"), str):
            labels[key(given)] = category["full_name"]
        yield key(given)
