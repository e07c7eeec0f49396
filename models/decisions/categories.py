"""What can be said of each category and each department, beside the promise for all products (arrays only).

    FIT        predicted, correct by category ─► estimate_precision ─► restrict    which categories are kept
    measured   predicted, accepted by category ─► cumulative          precision and acceptance of the best k
               accepted, correct by category ─► estimate_precision ─► estimate, interval, status
    CERT       accepted, correct by department ─► certify_departments

Products are counted under the category that is predicted, because this is what is known of a new product.
Of 8,000 categories a few hundred at most have the products to be certified one by one. So a promise is made
for all products together, and for a few dozen departments, the nodes of level 1. For a category there are
an estimate, an interval and a status, and none of these is a promise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, betaln, digamma, expit, logit

from models.decisions.metrics import AcceptanceCurve, CategoryCounts, acceptance_rate_at
from models.decisions.thresholds import (
    Certificate,
    Outcomes,
    certify_products,
    lower_bound,
    p_values,
    refuse_settings,
    refuse_shared,
    threshold_grid,
)

AUTOMATIC, WITH_CARE, ALWAYS_REVIEW, TOO_FEW = "automatic", "with care", "always review", "too few"
LEAST_PRODUCTS = 10  # of its own; with fewer, the status of a category would be that of the others
CERTAINTY = 0.9  # of a category's interval: each end is missed with probability 0.05
WEAKEST, STRONGEST = 1.0, 1e6  # products that the other categories count as in an estimate
THRESHOLDS = 1000  # tried for the acceptance of each number of categories


# Estimates


@dataclass(frozen=True, eq=False)
class CategoryEstimates:
    """Precision of each of C categories, shrunken towards that of all, with its interval and status."""

    estimate: np.ndarray  # (C,) float, 0 to 1
    lower: np.ndarray  # (C,) float, the interval
    upper: np.ndarray  # (C,) float
    status: np.ndarray  # (C,) object: AUTOMATIC, WITH_CARE, ALWAYS_REVIEW or TOO_FEW
    mean: float  # precision of a category without products
    strength: float  # products that `mean` counts as: few where categories differ, many where they are alike


def estimate_precision(
    products: np.ndarray, correct: np.ndarray, target: float = 0.9, certainty: float = CERTAINTY
) -> CategoryEstimates:
    """Estimates each category's precision by empirical Bayes: 1 correct of 1 does not make it the best.

    The precision of a category is taken as drawn from a beta distribution, the same for all categories, and
    its correct products as binomial. Mean and strength of the beta distribution are the mode of their
    posterior under the hyperprior of Gelman et al. (Bayesian Data Analysis, 3rd ed., section 5.3); given
    these, a category's posterior is Beta(strength · mean + correct, strength · (1 - mean) + wrong). Its mean
    is the estimate, its quantiles are the interval. With the strength at its least, 1, and a mean of one
    half this is the Jeffreys interval.

    The status is the first that fits:

        too few         fewer than 10 products
        automatic       the interval is at or above the target
        always review   the interval is below the target
        with care       the target is in the interval

    So of the categories that are called automatic about one in twenty at most is below the target, as long as
    the beta distribution fits: it is advice for where to check, and no promise.

    Args:
        products: (C,) int, of each category: the predicted ones, or the accepted ones.
        correct: (C,) int, of these.
        target: precision wanted, 0 to 1.
        certainty: of the interval, 0 to 1.

    Raises:
        ValueError: different lengths, counts that are no whole numbers from 0 on, more correct products than
            products, or a target or certainty out of range.

    >>> found = estimate_precision(np.array([1, 100, 100, 40]), np.array([1, 97, 60, 12]))
    >>> found.estimate.round(2).tolist(), found.status.tolist()
    ([0.78, 0.96, 0.6, 0.31], ['too few', 'automatic', 'always review', 'always review'])
    """
    _refuse_counts(products, correct)
    if not (0 < target < 1 and 0 < certainty < 1):
        raise ValueError(f"target {target}, certainty {certainty}; expected both between 0 and 1")
    mean, strength = _prior(products, correct)
    a = strength * mean + correct
    b = strength * (1 - mean) + products - correct
    lower, upper = betaincinv(a, b, (1 - certainty) / 2), betaincinv(a, b, (1 + certainty) / 2)
    status = np.select(
        [products < LEAST_PRODUCTS, lower >= target, upper < target],
        [TOO_FEW, AUTOMATIC, ALWAYS_REVIEW],
        WITH_CARE,
    )
    return CategoryEstimates(a / (a + b), lower, upper, status.astype(object), mean, strength)


def status(counts: CategoryCounts, target: float = 0.9) -> np.ndarray:
    """(C,) object: the advice for each category, from all its predictions and from the accepted ones.

    `automatic`, `with care` and `too few` are as `estimate_precision` says of all products predicted as the
    category, whatever their confidence. `always review`: the accepted ones are below the target, or all are
    and none is accepted; a category whose accepted products may reach the target needs care alone.

    Args:
        counts: of the measured products.
        target: precision wanted, 0 to 1.
    """
    of_all = estimate_precision(counts.predicted, counts.predicted_right, target).status
    accepted = estimate_precision(counts.accepted, counts.accepted_right, target)
    saved = (of_all == ALWAYS_REVIEW) & (counts.accepted > 0) & (accepted.upper >= target)
    wrong = accepted.status == ALWAYS_REVIEW
    advice: np.ndarray = np.where(wrong, ALWAYS_REVIEW, np.where(saved, WITH_CARE, of_all))
    return advice


def _refuse_counts(products: np.ndarray, correct: np.ndarray) -> None:
    if products.shape != correct.shape or products.ndim != 1:
        raise ValueError(
            f"counts of shape {products.shape} and {correct.shape}; expected one each a category"
        )
    if not all(np.issubdtype(counts.dtype, np.integer) for counts in (products, correct)):
        raise ValueError(f"counts are {products.dtype} and {correct.dtype}; expected integers")
    if ((correct < 0) | (correct > products)).any():
        raise ValueError(
            "a category has more correct products than products, or fewer than 0; expected neither"
        )


def _prior(products: np.ndarray, correct: np.ndarray) -> tuple[float, float]:
    """Mean and strength of the beta distribution that the categories' precisions are taken as drawn from.

    Maximizes the beta-binomial likelihood (Griffiths 1973) times m (1 - m) / sqrt(s), which is the hyperprior
    (a + b) ** -2.5 over logit m and log s. Without it, categories that happen to be alike would be of
    infinite strength, and one category alone would be certain of itself.
    """
    from scipy.optimize import minimize

    some = products > 0
    pairs, weight = np.unique(np.stack([products[some], correct[some]]), axis=1, return_counts=True)
    n, x = pairs.astype(np.float64)

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        m, s = expit(at[0]), np.exp(at[1])
        a, b = m * s, (1 - m) * s
        likelihood = weight @ (betaln(a + x, b + n - x) - betaln(a, b))
        by_s = digamma(s) - digamma(s + n)
        by_a = weight @ (digamma(a + x) - digamma(a) + by_s)
        by_b = weight @ (digamma(b + n - x) - digamma(b) + by_s)
        value = likelihood + np.log(m) + np.log1p(-m) - at[1] / 2
        gradient = np.array([(by_a - by_b) * s * m * (1 - m) + 1 - 2 * m, by_a * a + by_b * b - 0.5])
        return -float(value), -gradient

    middle = float(logit((x @ weight + 1) / (n @ weight + 2)))
    bounds = ((-15.0, 15.0), (np.log(WEAKEST), np.log(STRONGEST)))
    found = [
        minimize(loss, [middle, np.log(start)], jac=True, method="L-BFGS-B", bounds=bounds)
        for start in (2.0, 50.0)
    ]
    best = min(found, key=lambda one: one.fun).x
    return round(float(expit(best[0])), 6), float(f"{np.exp(best[1]):.6g}")  # last bits differ by processor


# Restriction to the best categories


@dataclass(frozen=True, eq=False)
class Restriction:
    """The categories in order of their precision on FIT, and those that are kept."""

    share: float  # of the categories predicted on FIT that is kept
    order: np.ndarray  # (C,) int, from the best category to the worst
    kept: np.ndarray  # (C,) bool
    estimate: np.ndarray  # (C,) float, what they are ordered by


def restrict(predicted: np.ndarray, correct: np.ndarray, share: float = 0.8) -> Restriction:
    """Orders the categories by their shrunken precision, and keeps the best `share` of the predicted ones.

    This is the choice behind figure 7 of Li et al. (hal-01830894). It is to be made on FIT: where it is made
    on the products that it is measured on, lucky categories lead and the gain is overstated. Equal estimates
    are ordered by products, the most first, then by index. A category that FIT does not predict has the mean
    of all as its estimate, and is kept where that is at least the estimate of the last one kept.

    Args:
        predicted: (C,) int, products of FIT predicted as each category.
        correct: (C,) int, of these.
        share: of the predicted categories, above 0 to 1; their number is rounded up.

    Raises:
        ValueError: impossible counts, see `estimate_precision`, or a share out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share {share}; expected above 0 and at most 1")
    estimate = estimate_precision(predicted, correct).estimate
    order = np.lexsort([np.arange(len(predicted)), -predicted, -estimate])
    seen = order[predicted[order] > 0]
    best = seen[: int(np.ceil(round(share * len(seen), 9)))]  # 0.8 * 35 is a little over 28 in floats
    kept = np.zeros(len(predicted), bool)
    kept[best] = True
    kept |= (predicted == 0) & (estimate >= (estimate[best[-1]] if len(best) else -np.inf))
    return Restriction(share, order, kept, estimate)


def certify_inside(
    fit: Outcomes,
    cert: Outcomes,
    fit_inside: np.ndarray,
    cert_inside: np.ndarray,
    *,
    target: float = 0.9,
    delta: float = 0.1,
    grid: int = 1000,
) -> Certificate:
    """The certificate of `certify` for the products that are predicted as a kept category.

    Its products and its acceptance rate are those inside the kept categories; one of each group of CERT is
    chosen as for all products.

    Args:
        fit: products that chose the kept categories.
        cert: products that chose nothing.
        fit_inside: (n,) bool, predicted as a kept category.
        cert_inside: (m,) bool, likewise.
        target: precision promised.
        delta: probability that the promise fails.
        grid: thresholds tried, at most.

    Raises:
        ValueError: as `certify`, or a mask of another length.
    """
    for side, inside in ((fit, fit_inside), (cert, cert_inside)):
        if inside.dtype != bool or len(inside) != len(side.correct):
            raise ValueError(
                f"{len(inside)} {inside.dtype} for {len(side.correct)} products; expected a bool each"
            )
    refuse_settings(target, delta, grid)
    refuse_shared(fit, cert)
    chosen = cert.one_per_group[cert_inside[cert.one_per_group]]
    return certify_products(
        fit.confidence[fit_inside], fit.correct[fit_inside], cert.confidence[chosen], cert.correct[chosen],
        len(chosen) / max(int(fit_inside.sum()), 1), target=target, delta=delta, grid=grid,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Cumulative:
    """Counts of the products predicted as one of the first k categories, k = 1 to m, each (m,) int."""

    category: np.ndarray  # the k-th category; only those that some measured product is predicted as
    predicted: np.ndarray  # products predicted as one of the first k, at least 1
    correct: np.ndarray  # of these
    accepted: np.ndarray  # of the predicted, accepted at the threshold in use
    accepted_correct: np.ndarray  # of these
    products: int  # all measured ones

    @property
    def precision(self) -> np.ndarray:
        """(m,) float, of all products predicted as one of the first k."""
        precision: np.ndarray = self.correct / self.predicted
        return precision

    @property
    def accepted_precision(self) -> np.ndarray:
        """(m,) float, of the accepted ones; nan where none is."""
        precision: np.ndarray = np.where(
            self.accepted > 0, self.accepted_correct / np.maximum(self.accepted, 1), np.nan
        )
        return precision

    @property
    def acceptance_inside(self) -> np.ndarray:
        """(m,) float, share accepted of the products predicted as one of the first k."""
        rate: np.ndarray = self.accepted / self.predicted
        return rate

    @property
    def acceptance_of_all(self) -> np.ndarray:
        """(m,) float, share accepted of all products when only the first k categories are."""
        rate: np.ndarray = self.accepted / max(self.products, 1)
        return rate


def cumulative(order: np.ndarray, counts: CategoryCounts) -> Cumulative:
    """Adds up the measured products over the categories in this order.

    Args:
        order: (C,) int, every category once, from the best to the worst: of `restrict`.
        counts: of the measured products.

    Raises:
        ValueError: the order has not every category once.
    """
    if not np.array_equal(np.sort(order), np.arange(len(counts.predicted))):
        raise ValueError(f"order of {len(order)} categories; expected each of {len(counts.predicted)} once")
    category = order[counts.predicted[order] > 0]
    columns = (counts.predicted, counts.predicted_right, counts.accepted, counts.accepted_right)
    predicted, correct, accepted, accepted_correct = (
        np.cumsum(column[category], dtype=np.int64) for column in columns
    )
    products = int(counts.predicted.sum())
    return Cumulative(category, predicted, correct, accepted, accepted_correct, products)


@dataclass(frozen=True, eq=False)
class AcceptanceByCategories:
    """Acceptance at a measured precision when only the first k categories are accepted, at some k."""

    categories: np.ndarray  # (points,) int, k, ascending; the last is all of them
    predicted: np.ndarray  # (points,) int, products predicted as one of the first k
    accepted: np.ndarray  # (points,) int, of these, at the loosest threshold that reaches the target
    products: int  # all measured ones

    @property
    def inside(self) -> np.ndarray:
        """(points,) float, share accepted of the products predicted as one of the first k."""
        rate: np.ndarray = self.accepted / np.maximum(self.predicted, 1)
        return rate

    @property
    def of_all(self) -> np.ndarray:
        """(points,) float, share accepted of all products."""
        rate: np.ndarray = self.accepted / max(self.products, 1)
        return rate


def acceptance_by_categories(
    order: np.ndarray,
    predicted: np.ndarray,
    confidence: np.ndarray,
    correct: np.ndarray,
    target: float = 0.9,
    points: int = 100,
) -> AcceptanceByCategories:
    """Acceptance rates when only the best k categories are accepted, each k with its own threshold: figure 7.

    Measured, not promised, as `acceptance_rate_at`. For each k the thresholds of a grid of 1,000 are tried:
    exact where there are no more different confidences, else up to a thousandth of the products too low.

    Args:
        order: (m,) int, categories from the best to the worst, each at most once.
        predicted: (n,) int, category of each measured product; products of others count as not accepted.
        confidence: (n,) float, 0 to 1.
        correct: (n,) bool.
        target: precision wanted, 0 to 1.
        points: numbers of categories tried, at most; evenly spread, the last one is all of `order`.

    Raises:
        ValueError: different lengths, a confidence that is not a number, no category, or points below 1.
    """
    if not len(predicted) == len(confidence) == len(correct):
        raise ValueError(
            f"{len(predicted)}, {len(confidence)} and {len(correct)} products; expected one length"
        )
    if np.isnan(confidence).any():
        raise ValueError("a confidence is not a number; expected 0 to 1")
    if len(order) == 0 or points < 1 or len(np.unique(order)) < len(order):
        raise ValueError(f"{len(order)} categories and {points} points; expected 1 or more, categories once")
    at = np.unique(-(-np.arange(1, points + 1) * len(order) // points))  # k, rounded up
    first_k = np.full(max(int(order.max()), int(predicted.max(initial=0))) + 1, len(at))  # of a category:
    first_k[order] = np.searchsorted(at, np.arange(1, len(order) + 1))  # the first point that has it
    thresholds = threshold_grid(confidence, THRESHOLDS)
    passed = np.searchsorted(-thresholds, -confidence)  # the first threshold that a product reaches
    size = (len(at) + 1, len(thresholds) + 1)
    cell = first_k[predicted] * size[1] + passed
    accepted, right = (
        np.bincount(cells, minlength=size[0] * size[1]).reshape(size).cumsum(axis=0).cumsum(axis=1)
        for cells in (cell, cell[correct])
    )
    inside = accepted[:-1, -1]
    best = []
    for row in range(len(at)):
        some = accepted[row, :-1] > 0
        curve = AcceptanceCurve(
            thresholds[some], accepted[row, :-1][some], right[row, :-1][some], int(inside[row])
        )
        best.append(round(acceptance_rate_at(curve, target)[0] * int(inside[row])))
    return AcceptanceByCategories(at, inside, np.array(best, np.int64), len(predicted))


# Departments


@dataclass(frozen=True)
class Department:
    """What CERT says of the products accepted in a department, a node of level 1."""

    node: int  # number of the node at level 1
    name: str
    products: int  # of CERT, one per group, whose predicted category is in the department
    accepted: int  # of these
    errors: int  # of the accepted
    precision: float | None  # of the accepted; None where none is
    lower: float  # one-sided Clopper-Pearson bound, certainty 1 - delta for this department alone
    p_value: float  # P(Bin(accepted, 1 - target) <= errors)
    certified: bool  # with the other certified ones: all of them reach the target with certainty 1 - delta


def certify_departments(
    cert: Outcomes,
    department: np.ndarray,
    names: Sequence[str],
    threshold: float | None,
    *,
    target: float = 0.9,
    delta: float = 0.1,
) -> tuple[Department, ...]:
    """Tests for each department whether what is accepted in it reaches the target, by Holm's procedure.

    The p-values are exact binomial tails. Holm (1979) goes through the departments with accepted products
    from the smallest p-value on, and certifies while it is at most delta / (departments left): with
    probability 1 - delta no department below the target is certified, however they depend on each other.

    The threshold was chosen on CERT too, for all products together. In 1,000 simulated calibrations each of
    six shapes this broke the promise in 0 to 2.8 %, and with one department, where it is the certificate of
    all, in 6.2 % (delta 0.1).

    Args:
        cert: products that certified the threshold; one of each group counts.
        department: (n,) int, node of level 1 of each product's predicted category.
        names: of the nodes.
        threshold: accept where confidence >= threshold; None: nothing is accepted.
        target: precision wanted.
        delta: probability that one of the certified departments is below the target.

    Returns:
        A row for each name, in order. The same for any order of the products.

    Raises:
        ValueError: different lengths, a node without a name, or a target or delta out of range.
    """
    if not (0 < target < 1 and 0 < delta < 1):
        raise ValueError(f"target {target}, delta {delta}; expected both between 0 and 1")
    if len(department) != len(cert.correct):
        raise ValueError(f"{len(department)} departments for {len(cert.correct)} products; expected one each")
    if len(department) and not 0 <= department.min() <= department.max() < len(names):
        raise ValueError(
            f"departments {department.min()} to {department.max()}; expected 0 to {len(names) - 1}"
        )
    chosen = cert.one_per_group
    node, correct = department[chosen], cert.correct[chosen]
    taken = cert.confidence[chosen] >= (np.inf if threshold is None else threshold)
    products, accepted, errors = (
        np.bincount(node[rows], minlength=len(names))
        for rows in (np.ones(len(node), bool), taken, taken & ~correct)
    )
    p = p_values(accepted, errors, round(1 - target, 12))  # 1 - 0.9 is a little under 0.1 in floats
    certified = holm(p, delta, int(np.count_nonzero(accepted)))
    lower = lower_bound(accepted, errors, delta)
    return tuple(
        Department(
            node=at,
            name=str(name),
            products=int(products[at]),
            accepted=int(accepted[at]),
            errors=int(errors[at]),
            precision=int(accepted[at] - errors[at]) / int(accepted[at]) if accepted[at] else None,
            lower=float(lower[at]),
            p_value=float(p[at]),
            certified=bool(certified[at]),
        )
        for at, name in enumerate(names)
    )


def holm(p: np.ndarray, delta: float, tests: int) -> np.ndarray:
    """(m,) bool: which hypotheses Holm's procedure rejects; any wrongly with probability delta at most.

    Args:
        p: (m,) p-values.
        delta: probability of any wrong rejection.
        tests: how many of the hypotheses are tested; the others, with p-value 1, are never rejected.

    >>> holm(np.array([0.03, 0.6, 0.02, 0.05]), 0.1, 4).tolist()
    [True, False, True, True]
    >>> holm(np.array([0.04, 0.6, 0.02, 0.05]), 0.1, 4).tolist()  # 0.04 > 0.1 / 3, and there it stops
    [False, False, True, False]
    """
    rejected = np.zeros(len(p), bool)
    for place, at in enumerate(np.argsort(p, kind="stable")[:tests].tolist()):
        if p[at] > delta / (tests - place):
            break
        rejected[at] = True
    return rejected
