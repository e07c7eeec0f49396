"""What becomes of each category when the tree changes: by mappings, by ids, then by paths.

    mapping files ── read_mapping (models/mappings.py) ─► Step a file ── compose ─► one Step
    old places, new places, Step ── tree_changes ─► TreeChanges, the ledger:

    unchanged  the same id at the same place                    relabelled: to its one target
    rename     another name or id, the same place               relabelled
    move       another place                                    relabelled
    merge      several old categories have one target           relabelled
    split      several targets                                  for people: nobody knows which one it is
    delete     nothing takes its place                          for people
    dead       no target of the mapping is in the new tree      for people
    cyclic     the mapping leads back to where it began         for people
    add        of the new tree, and nothing of the old one leads to it

Every category of the old tree has exactly one of the first eight kinds. Nothing is guessed: a category is
relabelled only where a mapping says so, its id is still there, or exactly its path is.
"""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from features.errors import ShelfmarkError
from features.product import CategoryPaths, tidy_name
from models.taxonomy import Taxonomy

UNCHANGED, RENAME, MOVE, MERGE = "unchanged", "rename", "move", "merge"
SPLIT, DELETE, DEAD, CYCLIC, ADD = "split", "delete", "dead", "cyclic", "add"
ONE_TARGET = (UNCHANGED, RENAME, MOVE, MERGE)  # labels are carried over
FOR_PEOPLE = (SPLIT, DELETE, DEAD, CYCLIC)  # no label is
KINDS = (*ONE_TARGET, *FOR_PEOPLE, ADD)

PREFIX = "gid://shopify/TaxonomyCategory/"  # which one side of Shopify's mappings writes before an id
SHOWN = 5  # categories of a ring in a reason

Places = Mapping[str, tuple[str, ...]]  # category → its names, from coarse to fine


def key(category: str) -> str:
    """Returns a category as mappings and trees are compared by: tidy, and without Shopify's prefix.

    >>> key("gid://shopify/TaxonomyCategory/el-7-15"), key(" el-7-15")
    ('el-7-15', 'el-7-15')
    """
    return tidy_name(category).removeprefix(PREFIX)


def places_of(tree: Taxonomy) -> Places:
    """The place of each category of a tree."""
    rows = zip(tree.categories.tolist(), tree.names.tolist(), tree.depth.tolist(), strict=True)
    return {category: tuple(map(tidy_name, names[:depth])) for category, names, depth in rows}


def places_in(paths: CategoryPaths) -> Places:
    """The place of each category of a tree that is read from a file; the most common one of several."""
    found: dict[str, tuple[int, tuple[str, ...]]] = {}
    for (category, names), times in sorted(paths.items()):
        if category not in found or times > found[category][0]:
            found[category] = times, names
    return {category: names for category, (_, names) in found.items()}


# Mappings


@dataclass(frozen=True)
class Step:
    """What a mapping says, from one tree to another; categories as `key` gives them."""

    name: str = ""  # of its file, for messages
    rules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # old → new; (): nothing
    splits: frozenset[str] = frozenset()  # old ones that are split although one target is left
    rings: Mapping[str, str] = field(default_factory=dict)  # cyclic old ones, in no rule → how it leads back
    before: str | None = None  # version of the old tree, as shopify/2025-12
    after: str | None = None  # of the new one
    labels: Mapping[str, str] = field(default_factory=dict)  # names of categories, where the file has them

    @cached_property
    def inputs(self) -> frozenset[str]:
        """The old categories that it says something about."""
        return frozenset(self.rules) | frozenset(self.rings)


def followed(
    rules: Mapping[str, tuple[str, ...]],
) -> tuple[dict[str, tuple[str, ...]], set[str], dict[str, str]]:
    """Follows redirects to their ends: rules, splits and rings of a `Step`.

    Args:
        rules: old → new, where a new one may be an old one of another rule. One that leads to itself ends
            there.

    >>> followed({"a": ("b",), "b": ("c",), "x": ("y",), "y": ("x",)})
    ({'a': ('c',), 'b': ('c',)}, set(), {'x': 'x → y → x', 'y': 'y → x → y'})
    """
    rings = rings_of(rules)
    done: dict[str, tuple[str, ...]] = {}
    splits: set[str] = set()
    for first in rules:
        waiting = [first]
        while waiting:
            old = waiting[-1]
            if old in done or old in rings:
                waiting.pop()
                continue
            targets = rules[old]
            further = [new for new in targets if new != old and new in rules]
            if left := [new for new in further if new not in done and new not in rings]:
                waiting += left
                continue
            waiting.pop()
            if into := [new for new in further if new in rings]:
                rings[old] = f"{old} → {rings[into[0]]}"
                continue
            found = [done[new] if new in further else (new,) for new in targets]
            done[old], split = _joined(found, any(new in splits for new in further))
            if split:
                splits.add(old)
    return {old: done[old] for old in rules if old in done}, splits, rings


def rings_of(rules: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """The categories from which rules lead back to them, other than a rule from one to itself; and how."""
    rings: dict[str, str] = {}
    for members in _components(rules):
        if len(members) > 1:
            inside = set(members)
            for old in members:
                rings[old] = _ring(old, rules, inside)
    return {old: rings[old] for old in rules if old in rings}


def _ring(first: str, rules: Mapping[str, tuple[str, ...]], inside: set[str]) -> str:
    """A shortest way from a category back to it, of SHOWN categories at most."""
    came: dict[str, str] = {}
    border = [first]
    while first not in came:
        border = [
            came.setdefault(new, old) and new
            for old in border
            for new in rules[old]
            if new in inside and new != old and new not in came
        ]
    way = [first]
    while (before := came[way[-1]]) != first:
        way.append(before)
    way = [first, *reversed(way[1:])]
    shown = [*way[:SHOWN], "…"] if len(way) > SHOWN else way
    return " → ".join([*shown, first])


def _components(rules: Mapping[str, tuple[str, ...]]) -> list[list[str]]:
    """Strongly connected components of the rules (Tarjan 1972), without recursion: chains may be long."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    found: list[list[str]] = []
    for root in rules:
        if root in number:
            continue
        work = [(root, iter(rules[root]))]
        number[root] = low[root] = len(number)
        stack.append(root)
        on_stack.add(root)
        while work:
            old, targets = work[-1]
            for new in targets:
                if new not in rules:
                    continue
                if new not in number:
                    number[new] = low[new] = len(number)
                    stack.append(new)
                    on_stack.add(new)
                    work.append((new, iter(rules[new])))
                    break
                if new in on_stack:
                    low[old] = min(low[old], number[new])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[old])
                if low[old] == number[old]:
                    members = [stack.pop()]
                    while members[-1] != old:
                        members.append(stack.pop())
                    found.append(members)
                    on_stack.difference_update(members)
    return found


def _joined(found: Sequence[tuple[str, ...]], split: bool) -> tuple[tuple[str, ...], bool]:
    """The targets of several ones, each once; whether it stays a split when only one is left.

    It does where one of several was deleted: that the others take all of its products would be a guess.
    """
    targets = tuple(dict.fromkeys(new for several in found for new in several))
    lost = len(found) > 1 and not all(found)
    return targets, bool(targets) and (split or lost)


def compose(steps: Sequence[Step]) -> Step:
    """One step for several, one after the other: chains A → … → Z.

    Args:
        steps: in the order of their versions, see `in_order`. A category that a step says nothing about
            stays what it is.
    """
    result = Step()
    for step in steps:
        result = _then(result, step) if result.inputs else step
    return result


def _then(first: Step, second: Step) -> Step:
    rules: dict[str, tuple[str, ...]] = {}
    splits: set[str] = set()
    rings = dict(first.rings)
    for old, targets in first.rules.items():
        if into := [new for new in targets if new in second.rings]:
            rings[old] = f"{old} → {second.rings[into[0]]}"
            continue
        split = old in first.splits or any(new in second.splits for new in targets)
        rules[old], split = _joined([second.rules.get(new, (new,)) for new in targets], split)
        if split:
            splits.add(old)
    rules |= {old: targets for old, targets in second.rules.items() if old not in first.inputs}
    rings |= {old: ring for old, ring in second.rings.items() if old not in first.inputs}
    splits |= {old for old in second.splits if old not in first.inputs}
    return Step(
        f"{first.name}, {second.name}", rules, frozenset(splits), rings, first.before, second.after,
        {**first.labels, **second.labels},
    )  # fmt: skip


# Trees


@dataclass(frozen=True)
class Change:
    """What becomes of a category."""

    category: str  # of the old tree; of an `add` of the new one
    kind: str  # of KINDS
    targets: tuple[str, ...] = ()  # in the new tree, as it spells them
    reason: str = ""  # for people; "" where nothing is to be said

    @property
    def target(self) -> str | None:
        """What labels of the category become; None where nobody can know."""
        return self.targets[0] if self.kind in ONE_TARGET else None


@dataclass(frozen=True)
class TreeChanges:
    """The ledger: what becomes of each category of the old tree, and what the new one adds."""

    changes: tuple[Change, ...]  # the old tree's in alphabetical order, then those added
    new: tuple[str, ...] = ()  # the categories of the new tree, where it is known

    def counts(self) -> dict[str, int]:
        """How many categories each kind has, in the order of KINDS."""
        counted = Counter(change.kind for change in self.changes)
        return {kind: counted[kind] for kind in KINDS}

    @property
    def changed(self) -> bool:
        """Whether the trees differ."""
        return any(change.kind != UNCHANGED for change in self.changes)

    @cached_property
    def sources(self) -> dict[str, tuple[str, ...]]:
        """Of each new category the old ones whose labels it takes over."""
        return _by_target(change for change in self.changes if change.kind in ONE_TARGET)

    @cached_property
    def split_sources(self) -> dict[str, tuple[str, ...]]:
        """Of each new category the old ones that were split into it and others."""
        return _by_target(change for change in self.changes if change.kind == SPLIT)

    def unproven(self, withheld: Collection[str] = ()) -> tuple[str, ...]:
        """The categories of the new tree that are new, parts of a split, or come only from withheld ones.

        Args:
            withheld: categories of the old tree that were themselves waiting for evidence.
        """
        waiting = {key(category) for category in withheld}
        return tuple(
            category
            for category in self.new
            if all(key(old) in waiting for old in self.sources.get(category, ()))
        )


def _by_target(changes: Iterable[Change]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = defaultdict(list)
    for change in changes:
        for new in change.targets:
            found[new].append(change.category)
    return {new: tuple(olds) for new, olds in found.items()}


def tree_changes(old: Places, new: Places | None, step: Step | None = None) -> TreeChanges:
    """Returns what becomes of each category of the old tree.

    Args:
        old: categories of the old tree; the place of one may be () where it is not known.
        new: of the new tree; None where it is not known: all that the mapping names is then taken to be in
            it, as is all that it says nothing about.
        step: what the mappings say, composed; None: ids and paths alone are compared.
    """
    ledger = _Ledger(old, new, step or Step())
    changes = [ledger.change_of(category) for category in sorted(old)]
    takers = Counter(change.targets[0] for change in changes if change.kind in ONE_TARGET)
    renamed = _renamed_nodes([(old[one.category], ledger.place(one.targets[0]))
                              for one in changes if one.kind in ONE_TARGET], old, new)  # fmt: skip
    named = [
        _named(change, ledger, renamed, takers) if change.kind in ONE_TARGET else change for change in changes
    ]
    if new is None:
        return TreeChanges(tuple(named))
    reached = {target for change in named for target in change.targets}
    added = [
        Change(category, ADD) for category in sorted(new)
        if category not in reached and key(category) not in ledger.old_spelling
    ]  # fmt: skip
    return TreeChanges((*named, *added), tuple(sorted(new)))


class _Ledger:
    """Finds the targets of categories."""

    def __init__(self, old: Places, new: Places | None, step: Step) -> None:
        self.old, self.new, self.step = old, new, step
        self.old_spelling = {key(category): category for category in sorted(old, reverse=True)}
        self.spelling = {key(category): category for category in sorted(new or (), reverse=True)}
        self.by_path: dict[tuple[str, ...], list[str]] = defaultdict(list)
        self.below: dict[tuple[str, ...], list[str]] = defaultdict(list)  # of each node the new leaves
        for category, place in (new or {}).items():
            if key(category) not in self.old_spelling and place:
                self.by_path[place].append(category)
                for depth in range(1, len(place)):
                    self.below[place[:depth]].append(category)

    def place(self, category: str) -> tuple[str, ...]:
        """The place of a target; () where it is not known."""
        if self.new is not None:
            return self.new[category]
        return self.old.get(self.old_spelling.get(key(category), ""), ())

    def change_of(self, category: str) -> Change:
        """The change of a category of the old tree; one with one target is UNCHANGED for now."""
        short = key(category)
        if short in self.step.rings:
            return Change(category, CYCLIC, reason=f"the mapping leads back: {self.step.rings[short]}")
        if short in self.step.rules:
            return self._mapped(category, self.step.rules[short])
        if self.new is None:
            return Change(category, UNCHANGED, (category,))
        if short in self.spelling:
            return Change(category, UNCHANGED, (self.spelling[short],))
        return self._by_path(category)

    def _mapped(self, category: str, targets: tuple[str, ...]) -> Change:
        alive = [found for target in targets if (found := self._found(target)) is not None]
        dead = [target for target in targets if self._found(target) is None]
        missing = f"{', '.join(dead)} not in the new tree" if dead else ""
        if not targets:
            return Change(category, DELETE, reason="the mapping names nothing in its place")
        if not alive:
            return Change(category, DEAD, reason=f"the mapping leads to {missing}")
        if len(targets) > 1 or key(category) in self.step.splits:
            return Change(category, SPLIT, tuple(alive), missing or "a person has to choose")
        return Change(category, UNCHANGED, tuple(alive))

    def _found(self, target: str) -> str | None:
        if self.new is None:
            return self.old_spelling.get(target, target)
        return self.spelling.get(target)

    def _by_path(self, category: str) -> Change:
        place = self.old[category]
        if len(same := self.by_path.get(place, [])) == 1:
            return Change(category, UNCHANGED, (same[0],), "found by its path")
        if parts := self.below.get(place):
            return Change(category, SPLIT, tuple(sorted(parts)), "it is now a node above these")
        for depth in range(len(place) - 1, 0, -1):
            if len(above := self.by_path.get(place[:depth], [])) == 1:
                return Change(category, UNCHANGED, (above[0],), "the node above it is now a category")
        return Change(category, DELETE, reason="not in the new tree")


_Renamed = Mapping[tuple[str, ...], tuple[str, ...]]


def _named(change: Change, ledger: _Ledger, renamed: _Renamed, takers: Mapping[str, int]) -> Change:
    """A change with one target, with its kind."""
    target = change.targets[0]
    same_id = key(change.category) == key(target)
    old, new = ledger.old[change.category], ledger.place(target)
    if not same_id and takers[target] > 1:
        return Change(change.category, MERGE, change.targets, change.reason)
    if not old or not new or _bare(change.category, old) == _bare(target, new):
        return Change(change.category, UNCHANGED if same_id else RENAME, change.targets, change.reason)
    if old[:-1] == new[:-1]:
        reason = change.reason or f"{old[-1]} is now {new[-1]}"
        return Change(change.category, RENAME, change.targets, reason)
    where = f"from {' / '.join(old[:-1]) or 'the root'} to {' / '.join(new[:-1]) or 'the root'}"
    for depth in range(len(old) - 1, 0, -1):
        if (after := renamed.get(old[:depth])) and (*after, *old[depth:-1]) == new[:-1]:
            return Change(
                change.category, RENAME, change.targets, f"the node above has another name: {where}"
            )
    return Change(change.category, MOVE, change.targets, change.reason or where)


def _bare(category: str, place: tuple[str, ...]) -> tuple[str, ...]:
    """The place without a last name that is the category itself, which a tree may have or not."""
    return place[:-1] if len(place) > 1 and key(place[-1]) == key(category) else place


def _renamed_nodes(
    pairs: Iterable[tuple[tuple[str, ...], tuple[str, ...]]], old: Places, new: Places | None
) -> _Renamed:
    """Nodes that are gone, and whose categories, two or more, are all below one node that is new.

    Args:
        pairs: old and new place of each category that has one target.
        old: all places of the old tree.
        new: of the new one; None where it is not known.
    """
    there, then = (
        {place[:depth] for place in places.values() for depth in range(1, len(place) + 1)}
        for places in (new or {}, old)
    )
    went: dict[tuple[str, ...], Counter[tuple[str, ...]]] = defaultdict(Counter)
    for before, after in pairs:
        for depth in range(1, min(len(before), len(after))):
            went[before[:depth]][after[:depth]] += 1
    return {
        node: after
        for node, afters in went.items()
        if len(afters) == 1
        and afters.total() > 1
        and node not in there
        and (after := next(iter(afters))) not in then
    }


def in_order(steps: Sequence[Step]) -> list[Step]:
    """The steps in the order of their versions, whatever the order in which they were given.

    Those without versions keep their positions; the others share the other positions.

    Raises:
        ShelfmarkError: two begin at the same version, or one ends in another taxonomy than the next begins.
    """
    versioned = sorted((step for step in steps if step.before), key=lambda step: _version(step.before))
    for one, two in itertools.pairwise(versioned):
        if _version(one.before) == _version(two.before):
            raise ShelfmarkError(
                f"{one.name} and {two.name}: both begin at {one.before}; expected one mapping for each "
                "version; give one of them"
            )
        if _taxonomy(one.after) != _taxonomy(two.before):
            raise ShelfmarkError(
                f"{two.name}: begins at {two.before}, but {one.name} ends at {one.after}; expected mappings "
                "of one taxonomy, each to the next version; give those"
            )
    waiting = iter(versioned)
    return [next(waiting) if step.before else step for step in steps]


def gaps(steps: Sequence[Step]) -> list[tuple[str, str]]:
    """Versions between which a mapping is missing: where one ends, and where the next begins."""
    versioned = [step for step in steps if step.before and step.after]
    return [
        (str(one.after), str(two.before))
        for one, two in itertools.pairwise(versioned)
        if _version(one.after) != _version(two.before)
    ]


def _taxonomy(version: str | None) -> str:
    return (version or "").partition("/")[0]


def _version(version: str | None) -> tuple[int, ...]:
    """The numbers of a version; the mark of a candidate does not count.

    >>> _version("shopify/2025-03-rc1"), _version("shopify/2026-02-unstable"), _version("shop/v2")
    ((2025, 3), (2026, 2), (2,))
    """
    parts = (version or "").rpartition("/")[2].split("-")
    numbers = [int(number) for number in re.findall(r"\d+", parts[0])]
    for part in itertools.takewhile(str.isdigit, parts[1:]):
        numbers.append(int(part))
    return tuple(numbers)
