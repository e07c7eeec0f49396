"""Judge: whether the run's bundle replaces the release in service, and why; the verdict is kept in the run.

    runs/<run>/verdict.json    a Verdict

candidate, release in service ─► gate/ (gate_products.py) ─► compare, outcome_of (models/decisions/gate.py)
    ─► the settings [gate] and --force ─► Verdict
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from features.errors import ShelfmarkError
from features.product import tidy_name
from features.storage.artifact import Artifact, find_artifact
from features.storage.paths import write_whole
from models.decisions.bundle import Bundle, open_bundle
from models.decisions.gate import (
    BETTER,
    NOT_TOLD_APART,
    WORSE,
    Comparison,
    Figures,
    Outcome,
    Promise,
    compare,
    outcome_of,
)
from models.decisions.paired import Difference
from models.decisions.releases import in_service, release_digest
from models.taxonomy import Taxonomy
from pipeline.job.account import VERDICT
from pipeline.job.catalogue import TrueCategories
from pipeline.job.config import CalibrationSettings, GateSettings
from pipeline.job.progress import log
from pipeline.job.release_log import history, taken_out
from pipeline.job.run import Run
from pipeline.job.summaries import GateSummary
from pipeline.job.tree import changes_since, is_explained, mapping_of
from pipeline.release.gate_products import decided, gate_products, read_products
from pipeline.release.in_service import current_release, evaluate_in_service

__all__ = ["BETTER", "FIRST", "NOT_COMPARABLE", "NOT_TOLD_APART", "SAME", "WORSE", "Verdict", "judge"]
FIRST, SAME, NOT_COMPARABLE = "first", "same", "not comparable"
NAMED = 100  # names of categories in a verdict, at most


@dataclass(frozen=True)
class Products:
    """The products that were compared, and those that were not."""

    measured_on: str  # of this week: test, or cert where there is no test part
    compared: int
    both: int  # in both weeks
    new: int  # in this week's catalogue alone
    gone: int  # in that of the release in service alone
    unmeasured: int  # of these, not compared: the records are gone
    unlabelled: int  # of these, left out: the category was split, or removed by a mapping
    left_out: int  # one of the two was trained on the product
    photo_left_out: int  # one of the two alone was trained on a photo of it


@dataclass(frozen=True)
class Names:
    """Names of categories."""

    count: int
    names: tuple[str, ...]  # at most 100


@dataclass(frozen=True)
class Floor:
    """A category or branch with a floor in the settings."""

    name: str
    least: float  # share whose most likely category is correct
    products: int  # test products
    share: float | None  # of the candidate; None without products
    known: bool  # the name is in this week's tree or in that of the release in service

    @property
    def kept(self) -> bool:
        """Whether the candidate may be released: it is not below, and the name is known."""
        return self.known and (self.share is None or self.share >= self.least)


@dataclass(frozen=True)
class Verdict:
    """Whether a bundle goes into service, and why."""

    outcome: str  # first, same, better, worse, not told apart, not comparable
    release: bool  # the candidate goes into service
    forced: bool  # because of --force alone
    withdraw: bool  # because the promise of the release in service no longer counts (gate.old_promise)
    sentence: str
    candidate: str  # digest
    current: str | None  # digest of the release in service; None where there is none, or it is lost
    current_name: str | None
    required: Promise  # what the settings require now
    promise: Promise
    current_promise: Promise | None
    tree_changed: bool
    bytes: int  # size of the bundle
    current_bytes: int | None
    products: Products | None
    comparison: Comparison | None
    categories_gone: Names | None  # learnt by the release in service, not in this week's tree
    floors: tuple[Floor, ...]


def judge(run: Run, candidate: Artifact, *, force: bool = False, tree_changed: bool = False) -> Verdict:
    """Compares the run's bundle with the release in service, and writes the verdict into the run.

    Both decide about the same test products: this week's, and those of the week of the release in service
    that are gone since. When a bundle is better: `outcome_of` of models/decisions/gate.py. It is released if
    it is better, or the first one; not distinguished from the one in service, as `gate.when_equal` says; and
    never where a category is below its floor, or a person has taken this very bundle out of service. The
    release in service can be impossible to use, because it is damaged, lost, or of a version that is not read
    any more: then nothing is compared, and `force` decides.

    Args:
        run: with its finished evaluation.
        candidate: the run's bundle.
        force: release it whatever the comparison says.
        tree_changed: the categories differ from those of the release in service.
    """
    verdict = _Judge(run, candidate, force, tree_changed).verdict()
    write_verdict(run, verdict)
    return verdict


def write_verdict(run: Run, verdict: Verdict) -> None:
    """Writes verdict.json; the verdict that put the candidate into service stays when it is judged again."""
    file = run.path / VERDICT
    if verdict.outcome == SAME and file.is_file():
        before = json.loads(file.read_bytes())
        if before.get("candidate") == verdict.candidate and before.get("release"):
            return
    write_whole(file, json.dumps(asdict(verdict), indent=1).encode())


def read_verdict(run: Run) -> Verdict | None:
    """The verdict in the run; None without one.

    Raises:
        ShelfmarkError: it is not what `judge` writes.
    """
    file = run.path / VERDICT
    try:
        return TypeAdapter(Verdict).validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ShelfmarkError(
            f"{file}: not a verdict of this version; expected what judge writes; remove it and run again"
        ) from error


EQUAL = {  # why a bundle that is not told apart is released, by gate.when_equal
    "tree_changed": "it takes its place because the categories have changed (gate.when_equal)",
    "release": "it takes its place as the newer one (gate.when_equal)",
}


class _Judge:
    """What is known while a verdict is made."""

    def __init__(self, run: Run, artifact: Artifact, force: bool, tree_changed: bool) -> None:
        self.run, self.force, self.tree_changed = run, force, tree_changed
        self.settings: GateSettings = run.config.gate
        self.artifact = artifact
        if artifact.made_from["evaluation"] != run.artifact("evaluation", "evaluate").digest:
            raise ShelfmarkError(
                f"{artifact.path}: made from another evaluation; expected the run's; run `shelfmark retrain`"
            )
        self.candidate = open_bundle(artifact.path)
        self.required = _required(run.config.calibration)
        self.promise = _promise(self.candidate)
        self.name = in_service(run.releases)
        self.found = find_artifact(run.releases / self.name) if self.name else None  # None where damaged
        self.trees = list(TrueCategories.of(run.records()).trees)
        self.taken_out = taken_out(history(run.releases), artifact.digest)

    def verdict(self) -> Verdict:
        """The verdict."""
        if self.name is None:
            return self._without_comparison(FIRST, "first: nothing is in service yet")
        if self.found and self.found.digest == self.artifact.digest:
            return self._made(SAME, False, f"same: it is already in service, as {self.name}", ())
        try:
            current = current_release(self.run.releases)
            assert current is not None
            decisions = evaluate_in_service(self.run, current)
        except (ShelfmarkError, ValueError, KeyError, TypeError, FileNotFoundError) as error:
            reason = " ".join(str(error).split())
            text = (
                f"not comparable: release {self.name} cannot decide about this week's products ({reason}); "
                "it stays; put it back, or release this one by --force"
            )
            return self._without_comparison(NOT_COMPARABLE, text)
        return self._compared(current, gate_products(self.run, self.candidate, current, decisions))

    # Without a comparison

    def _without_comparison(self, outcome: str, text: str) -> Verdict:
        """Of the first bundle, and where the release in service cannot be used: floors count all the same."""
        evaluation = self.run.artifact("evaluation", "evaluate")
        names = ["true_category", "true_path", "correct"]
        measured = pd.read_parquet(evaluation.file("measured.parquet"), columns=names)
        floors = self._floors(*(measured[name].to_numpy() for name in names))
        return self._made(outcome, outcome == FIRST, text, floors)

    # With one

    def _compared(self, current: Bundle, gate: Artifact) -> Verdict:
        table, summary, settings = read_products(gate), GateSummary.of(gate), self.settings
        comparison = None
        if len(table):
            comparison = compare(
                decided(table, "before"),
                decided(table, "after"),
                group=table["group"].to_numpy(),
                week=table["week"].to_numpy(),
                category=table["path"].to_numpy(),
                department=table["department"].to_numpy(),
                target=self.required.target,
                certainty=settings.certainty,
                repetitions=settings.repetitions,
                weight=table["weight"].to_numpy() if "weight" in table and table["weight"].any() else None,
            )
        old, withdraw = _promise(current), False
        for_less = old.certified and not old.covers(self.required)
        if for_less and settings.old_promise == "withdraw":
            withdraw = not self.promise.covers(self.required)
        counted = replace(old, certified=False) if withdraw else old
        result = outcome_of(self.required, counted, self.promise, comparison, settings.certainty)
        equal = result.outcome == NOT_TOLD_APART and (
            settings.when_equal == "release" or (settings.when_equal == "tree_changed" and self.tree_changed)
        )
        releases = result.outcome == BETTER or equal
        self.trees.append(current.categorizer.predictor.taxonomy)
        clauses = [self._difference(result, comparison, summary)]
        if for_less:
            clauses.append(
                f"release {self.name} was certified for {_text(old)} only, "
                f"{_text(self.required)} is required now"
            )
        if summary.missing:
            clauses.append(
                f"only this week's products were compared: {summary.missing}"
                + (f" ({summary.unmeasured:,} products)" if summary.unmeasured else "")
            )
        return self._made(
            result.outcome,
            releases or withdraw,
            "; ".join(clauses),
            self._floors(*(table[name].to_numpy() for name in ("category", "path", "after_correct"))),
            if_released="it takes its place and accepts nothing until a bundle is certified "
            "(gate.old_promise)"
            if withdraw
            else EQUAL[settings.when_equal]
            if equal
            else "",
            if_kept=f"{self.name} serves with its old promise (gate.old_promise)" if for_less else "",
            withdraw=withdraw,
            current_promise=old,
            comparison=comparison,
            products=_products(summary),
            categories_gone=self._categories_gone(current),
        )

    def _difference(self, result: Outcome, comparison: Comparison | None, summary: GateSummary) -> str:
        """The first clauses of the sentence, with its numbers."""
        if comparison is None:
            return f"{result.outcome}: {result.because}"
        before, after = comparison.all.before, comparison.all.after
        gone = f" ({summary.gone:,} of them gone this week)" if summary.gone else ""
        certainty = f"{self.settings.certainty:.0%}"
        return (
            f"{result.outcome} than release {self.name}: {result.because}; "
            if result.outcome in (BETTER, WORSE)
            else f"not told apart from release {self.name}: {result.because}; "
        ) + (
            f"of {comparison.products:,} test products{gone} it accepts {after.acceptance_rate:.1%}, before "
            f"{before.acceptance_rate:.1%} ({_points(comparison.acceptance, certainty)}); of the accepted "
            f"{_share(after)} are correct, before {_share(before)}; acceptable at {comparison.target:g}: "
            f"{comparison.achievable.after:.1%}, before {comparison.achievable.before:.1%} "
            f"({_points(comparison.achievable, certainty)})"
        )

    def _categories_gone(self, current: Bundle) -> Names:
        """The categories of the release in service that this week lacks, unless the tree explains it."""
        tree, records = current.categorizer.predictor.taxonomy, self.run.records()
        step = mapping_of(records)
        assert self.found
        moved = [
            one.category for one in changes_since(self.found, records).changes if is_explained(one, step)
        ]
        there = np.any([one.index(tree.categories) >= 0 for one in self.trees[:-1]], axis=0)
        there |= np.isin(tree.categories, moved)
        gone = [tree.label(at) for at in np.flatnonzero(~there).tolist()]
        return Names(len(gone), tuple(sorted(gone)[:NAMED]))

    # Both

    def _floors(self, category: np.ndarray, path: np.ndarray, correct: np.ndarray) -> tuple[Floor, ...]:
        return floors_of(self.settings.floors, self.trees, category, path, correct)

    def _made(
        self,
        outcome: str,
        releases: bool,
        sentence: str,
        floors: tuple[Floor, ...],
        *,
        if_released: str = "",
        if_kept: str = "",
        withdraw: bool = False,
        current_promise: Promise | None = None,
        comparison: Comparison | None = None,
        products: Products | None = None,
        categories_gone: Names | None = None,
    ) -> Verdict:
        """The verdict, by floors and force."""
        broken = [floor for floor in floors if not floor.kept]
        allowed = releases and not broken and self.taken_out is None
        forced = self.force and not allowed and outcome != SAME
        released = allowed or forced
        clauses = [sentence, *(_floor_text(floor) for floor in broken)]
        if last := if_released if released else if_kept:
            clauses.append(last)
        if if_kept and not released:
            log.warning("gate: %s", if_kept)
        if self.taken_out and not released and outcome != SAME:
            clauses.append(
                f"{self.taken_out.who or 'somebody'} has taken this bundle out of service on "
                f"{self.taken_out.when[:10]} ({self.taken_out.why}); --force puts it back"
            )
        for floor in floors:
            if floor.kept and floor.share is None:
                log.warning("gate: no test product of %s; its floor is not checked", floor.name)
        if forced:
            clauses.append("released by --force")
        return Verdict(
            outcome=outcome,
            release=released,
            forced=forced,
            withdraw=withdraw and released,
            sentence="; ".join(clauses),
            candidate=self.artifact.digest,
            current=release_digest(self.run.releases, self.name),
            current_name=self.name,
            required=self.required,
            promise=self.promise,
            current_promise=current_promise,
            tree_changed=self.tree_changed,
            bytes=_bytes(self.artifact),
            current_bytes=_bytes(self.found) if self.found else None,
            products=products,
            comparison=comparison,
            categories_gone=categories_gone,
            floors=floors,
        )


def floors_of(
    least: Mapping[str, float],
    trees: Iterable[Taxonomy],
    category: np.ndarray,
    path: np.ndarray,
    correct: np.ndarray,
) -> tuple[Floor, ...]:
    """The floors of the settings, measured on n products.

    Args:
        least: by name: a category's id or path, or the path of a node above, its names joined by `/`.
        trees: in which the names may be.
        category: (n,) str, of the true categories.
        path: (n,) str, their names joined by " / ".
        correct: (n,) bool, whether the candidate's most likely category is the true one.
    """
    known = {_key(name) for tree in trees for name in tree.categories.tolist()}
    for tree in trees:
        for index in range(len(tree.categories)):
            known |= {_key(tree.label(index, level)) for level in range(1, int(tree.depth[index]) + 1)}
    codes, paths = pd.factorize(path)
    ids, categories = pd.factorize(category)
    own, above = [_key(str(name)) for name in categories], [_key(str(name)) for name in paths]
    found = []
    for name, floor in least.items():
        key = _key(name)
        under = np.array([one == key or one.startswith(f"{key}/") for one in above], bool)
        here = under[codes] | np.array([one == key for one in own], bool)[ids]
        products = int(np.count_nonzero(here))
        share = float(correct[here].mean()) if products else None
        found.append(Floor(name, floor, products, share, key in known))
    return tuple(found)


def _key(name: str) -> str:
    """A path as it is compared: `Food / Fruit` is `Food/Fruit`."""
    return re.sub(r"\s*/\s*", "/", tidy_name(name)).strip("/")


def _floor_text(floor: Floor) -> str:
    if not floor.known:
        return f"gate.floors names {floor.name}, which is in no tree; correct the setting"
    return (
        f"{floor.name} is below its floor: of its {floor.products:,} test products "
        f"{floor.share:.1%} are correct, at least {floor.least:.1%} is set (gate.floors)"
    )


def _required(settings: CalibrationSettings) -> Promise:
    return Promise(settings.precision, settings.delta, True)


def _promise(bundle: Bundle) -> Promise:
    rules = bundle.categorizer.rules
    return Promise(rules.target, rules.delta, rules.certificate.threshold is not None)


def _products(summary: GateSummary) -> Products:
    return Products(
        summary.measured_on, summary.products, summary.both, summary.new, summary.gone, summary.unmeasured,
        summary.unlabelled, summary.trained_on, summary.photo_trained_on,
    )  # fmt: skip


def _bytes(artifact: Artifact) -> int:
    return sum(entry["size"] for entry in artifact.files.values())


def _text(promise: Promise) -> str:
    return f"{promise.target:g} with certainty {1 - promise.delta:g}"


def _share(figures: Figures) -> str:
    return "none" if figures.precision is None else f"{figures.precision:.1%}"


def _points(difference: Difference, certainty: str) -> str:
    """A difference in points with its interval.

    >>> _points(Difference(0.5, 0.512, 0.003, 0.02), "95%")
    '+1.2 points, 95% interval +0.3 to +2.0'
    """
    value, lower, upper = (100 * one for one in (difference.value, difference.lower, difference.upper))
    return f"{value:+.1f} points, {certainty} interval {lower:+.1f} to {upper:+.1f}"
