"""A batch: the same counts as those of the reference, of products without labels.

batch counts + reference ──► estimates of the accepted precision: `estimate`
                         ──► changes, each with its limit:         `compare`
                         ──► alarm, or none:                       `judge`
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from models.decisions.drift.label_shift import mix_by_em, posterior_of
from models.decisions.drift.limits import Watched, limit_of, moved_along, moved_share
from models.decisions.drift.reference import MAX_CONDITION, Histogram, Reference

MOST_MOVED = 5  # bins named with a change
LEAST_ACCEPTED = 20  # accepted products; of fewer no precision is estimated


@dataclass(frozen=True, eq=False)
class Batch:
    """Counts of a batch, in the reference's branches, bins and categories."""

    unreadable: int
    cells: np.ndarray  # (B, K) int, readable products by branch of the prediction and bin of confidence
    confidence_sum: float  # of the accepted
    above_atc: int  # accepted products with at least the reference's `atc`
    categories: np.ndarray  # (k,) int, as the reference's
    images: Mapping[str, np.ndarray]  # (k,) int each, as the reference's

    @classmethod
    def count(
        cls,
        reference: Reference,
        branch: np.ndarray,
        category: np.ndarray,
        confidence: np.ndarray,
        unreadable: int = 0,
        images: Mapping[str, np.ndarray] | None = None,
    ) -> "Batch":
        """Counts the n readable products of a batch, or of a part of one.

        Args:
            reference: of the release that decided.
            branch: (n,) int of the prediction, as `Reference.branch_of` numbers them.
            category: (n,) int of the prediction: position in `reference.categories`.
            confidence: (n,) float.
            unreadable: products beside these without a readable image.
            images: counts of histograms of images.
        """
        shape = reference.cells.shape
        bins = np.searchsorted(reference.edges, confidence, side="right")
        accepted = confidence[bins >= reference.first_accepted]
        least = np.inf if reference.atc is None else reference.atc
        return cls(
            unreadable=unreadable,
            cells=np.bincount(branch * shape[1] + bins, minlength=shape[0] * shape[1]).reshape(shape),
            confidence_sum=float(accepted.sum()),
            above_atc=int((accepted >= least).sum()),
            categories=np.bincount(category, minlength=len(reference.categories.counts)),
            images=images or {},
        )

    @classmethod
    def together(cls, parts: Iterable["Batch"], images: Mapping[str, np.ndarray]) -> "Batch":
        """The counts of all parts, at least one; `images` are the whole batch's."""
        parts = list(parts)
        return cls(
            unreadable=sum(part.unreadable for part in parts),
            cells=np.sum([part.cells for part in parts], axis=0),
            confidence_sum=sum(part.confidence_sum for part in parts),
            above_atc=sum(part.above_atc for part in parts),
            categories=np.sum([part.categories for part in parts], axis=0),
            images=images,
        )

    @property
    def readable(self) -> int:
        """Products with a readable image."""
        return int(self.cells.sum())


# Precision without labels


@dataclass(frozen=True)
class Estimates:
    """The accepted precision of a batch, estimated without labels; None: not estimated."""

    mean_confidence: float | None  # of the accepted
    difference: float | None  # DoC
    label_shift: float | None
    above_threshold: float | None  # ATC
    refused: str | None  # why the label shift was not estimated
    mix: tuple[float, ...] | None  # (B,) of true branches

    @property
    def lowest(self) -> float | None:
        """The lower of the two estimates that an alarm counts: `difference` and `label_shift`."""
        counted = [value for value in (self.difference, self.label_shift) if value is not None]
        return min(counted, default=None)


def estimate(reference: Reference, batch: Batch) -> Estimates:
    """Estimates how precise the accepted decisions of a batch are.

    - mean_confidence: mean confidence of the accepted. Right where confidences are calibrated for this batch.
    - difference (DoC, Guillory et al. 2021): the reference's precision, plus the change of that mean.
    - label_shift: the mix of true branches by EM (Saerens et al. 2002); then, in each branch, the share right
      of the accepted under that mix.
    - above_threshold (ATC, Garg et al. 2022): share of the accepted above the confidence above which, in the
      reference, as many lay as were right.
    """
    first = reference.first_accepted
    accepted = batch.cells[:, first:].sum(axis=1)
    count, precision, before = int(accepted.sum()), reference.precision, reference.mean_confidence
    if count < LEAST_ACCEPTED or precision is None or before is None:
        return Estimates(
            None, None, None, None, f"{count} products accepted; expected {LEAST_ACCEPTED}", None
        )
    mean = batch.confidence_sum / count
    shifted, mix, refused = _label_shift(reference, batch, accepted)
    return Estimates(
        mean_confidence=mean,
        difference=float(np.clip(precision + mean - before, 0, 1)),
        label_shift=shifted,
        above_threshold=batch.above_atc / count,
        refused=refused,
        mix=mix,
    )


def _label_shift(
    reference: Reference, batch: Batch, accepted: np.ndarray
) -> tuple[float | None, tuple[float, ...] | None, str | None]:
    """The precision and the mix; or why there is none."""
    if reference.condition > MAX_CONDITION:
        reason = f"condition number {reference.condition:.3g}, above {MAX_CONDITION:g}"
        return None, None, f"the branches cannot be distinguished ({reason})"
    present = reference.classes > 0
    confusion, right = (
        reference.confusion[:, :, present],
        reference.right[present, reference.first_accepted :],
    )
    cells = np.stack([batch.cells.sum(axis=1) - accepted, accepted], axis=1).reshape(-1)
    prior = reference.classes[present] / reference.products
    mix = mix_by_em(posterior_of(confusion.reshape(len(cells), -1)), prior, cells)
    weight = mix / prior
    share = np.full(len(accepted), reference.precision)  # right of the accepted, by branch of the prediction
    there = confusion[present, 1] @ weight  # accepted of each branch under the mix
    share[present] = np.where(
        there > 0, right.sum(axis=1) * weight / np.maximum(there, 1e-12), share[present]
    )
    whole = np.zeros(len(present))
    whole[present] = mix
    return float(share @ accepted / accepted.sum()), tuple(whole.tolist()), None


# Changes


@dataclass(frozen=True)
class Change:
    """A watched number: how far the batch is from the reference."""

    name: str
    before: float | None  # a share or mean of the reference; None for a distribution
    after: float | None
    difference: float  # at least 0: of shares or means, or the share of the products that moved
    limit: float  # by chance alone, at the batch's size
    moved: tuple[tuple[str, float], ...] = ()  # the bins whose share changed most, and by how much

    @property
    def significant(self) -> bool:
        """Whether chance alone does not explain it."""
        return self.difference > self.limit


def watched_numbers(reference: Reference) -> dict[str, Watched]:
    """What is watched: the shares and distributions of the reference."""
    confidence, first = reference.cells.sum(axis=0), reference.first_accepted
    unreadable, products = reference.unreadable
    numbers = {
        "acceptance": Watched("acceptance", _two(reference.accepted, reference.products), moved_share),
        "confidence": Watched("confidence", confidence, moved_along),
        "branches": Watched("branches", reference.cells.sum(axis=1), moved_share),
        "categories": Watched("categories", reference.categories.counts, moved_share),
    }
    if reference.accepted:
        numbers["accepted_confidence"] = Watched.mean(
            "accepted_confidence", confidence[first:], reference.bin_means[first:]
        )
    if products:
        numbers["unreadable"] = Watched("unreadable", _two(unreadable, products), moved_share)
    for name, histogram in reference.images.items():
        difference = moved_along if histogram.names is None else moved_share
        numbers[name] = Watched(name, histogram.counts, difference)
    return {name: number for name, number in numbers.items() if number.reference.sum()}


def _two(some: int, all_of_them: int) -> np.ndarray:
    return np.array([some, all_of_them - some])


def _counts_of(reference: Reference, batch: Batch) -> dict[str, np.ndarray]:
    confidence, first = batch.cells.sum(axis=0), reference.first_accepted
    return {
        "acceptance": _two(int(confidence[first:].sum()), batch.readable),
        "confidence": confidence,
        "branches": batch.cells.sum(axis=1),
        "categories": batch.categories,
        "accepted_confidence": confidence[first:],
        "unreadable": _two(batch.unreadable, batch.readable + batch.unreadable),
        **batch.images,
    }


Limits = dict[str, float]


def limits_of(reference: Reference, batch: Batch, false_alarms: float, batches: int) -> Limits:
    """The limit of every watched number that the batch has, at the batch's own size.

    Args:
        reference: of the release.
        batch: of it only the numbers of products are used.
        false_alarms: probability that a year without change exceeds any of the limits; likewise, that the
            reference is so unlucky that this does not hold. Both are divided evenly over the watched numbers,
            the first one over the batches, too (Bonferroni).
        batches: in a year.
    """
    counts, numbers = _counts_of(reference, batch), watched_numbers(reference)
    level = false_alarms / len(numbers)
    return {
        name: limit_of(number, int(counts[name].sum()), level, level / batches)
        for name, number in numbers.items()
        if name in counts and counts[name].sum()
    }


def compare(reference: Reference, batch: Batch, limits: Limits) -> list[Change]:
    """The watched numbers of a batch that have a limit: see `limits_of`."""
    counts, names = _counts_of(reference, batch), _names_of(reference)
    changes = []
    for name, number in watched_numbers(reference).items():
        if name not in limits:
            continue
        before, after = number.reference, counts[name]
        share = after / after.sum() - before / max(before.sum(), 1)
        most = np.argsort(-np.abs(share), kind="stable")[:MOST_MOVED]
        bins = names.get(name)
        changes.append(
            Change(
                name,
                *_summaries(reference, name, before, after),
                difference=float(number.difference(before, after)),
                limit=limits[name],
                moved=tuple((bins[at], float(share[at])) for at in most if share[at]) if bins else (),
            )
        )
    return changes


def _names_of(reference: Reference) -> dict[str, tuple[str, ...]]:
    named = {name: one.names for name, one in reference.images.items() if one.names and len(one.names) > 2}
    return {"branches": reference.branches, "categories": reference.categories.names or (), **named}


def _summaries(
    reference: Reference, name: str, before: np.ndarray, after: np.ndarray
) -> tuple[float | None, float | None]:
    """What a person reads of a share (of its first bin) or a mean; None of other distributions."""
    means = reference.bin_means
    if name == "confidence":
        return _mean(before, means), _mean(after, means)
    if name == "accepted_confidence":
        accepted = means[reference.first_accepted :]
        return _mean(before, accepted), _mean(after, accepted)
    if len(before) == 2:
        return float(before[0] / max(before.sum(), 1)), float(after[0] / after.sum())
    edges = reference.images[name].edges if name in reference.images else None
    if edges is not None and len(edges):
        return _median(before, edges), _median(after, edges)
    return None, None


def _mean(counts: np.ndarray, values: np.ndarray) -> float:
    return float(counts @ values / max(counts.sum(), 1))


def _median(counts: np.ndarray, edges: np.ndarray) -> float:
    """The edge that is nearest to the middle product."""
    at = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))
    return float(edges[min(at, len(edges) - 1)])


# Alarm


@dataclass(frozen=True)
class Effect:
    """What a change means for the decisions."""

    acceptance_before: float
    acceptance_after: float
    precision_before: float | None
    precision_after: float | None  # the lowest estimate that an alarm counts

    @property
    def acceptance(self) -> float:
        """Change of the acceptance rate."""
        return self.acceptance_after - self.acceptance_before

    @property
    def precision(self) -> float:
        """Change of the estimated accepted precision; 0 where it is not estimated."""
        if self.precision_before is None or self.precision_after is None:
            return 0.0
        return self.precision_after - self.precision_before


def effect_of(reference: Reference, batch: Batch, estimates: Estimates) -> Effect:
    """The change of the acceptance rate and of the estimated accepted precision."""
    accepted = batch.cells[:, reference.first_accepted :].sum()
    return Effect(
        acceptance_before=reference.accepted / max(reference.products, 1),
        acceptance_after=float(accepted / max(batch.readable, 1)),
        precision_before=reference.precision,
        precision_after=estimates.lowest,
    )


def is_alarm(changes: list[Change], effect: Effect, *, precision: float, acceptance: float) -> bool:
    """Whether a change is beyond chance, and matters: the precision falls, or the acceptance rate moves.

    Args:
        changes: of the watched numbers.
        effect: of the batch.
        precision: least fall of the estimated accepted precision that matters, 0 to 1.
        acceptance: least change of the acceptance rate that matters, up or down, 0 to 1.
    """
    matters = effect.precision <= -precision or abs(effect.acceptance) >= acceptance
    return matters and any(change.significant for change in changes)


def histogram_counts(histogram: Histogram, names: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(k,) int, products by name; names that the histogram lacks go to its last bin, OTHERS.

    Args:
        histogram: with names.
        names: (m,) str.
        counts: (m,) int, products of each.
    """
    position = {name: at for at, name in enumerate(histogram.names or ())}
    at = np.array([position.get(str(name), len(position) - 1) for name in names], np.int64)
    return np.bincount(at, counts, minlength=len(position)).astype(np.int64)
