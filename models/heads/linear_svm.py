"""The weights of linear support vector machines (SVMs), one category against the rest, for many at once.

    rows (n, d), labels (n,) ─► for each penalty: weights (d + 1, k), the last line is the intercepts

For each category, with y = 1 for its rows and -1 for the others, and a row x that ends in a 1, this is the
minimum over w of

    ½ |w|² + C Σ max(0, 1 - y w·x)²

the problem that liblinear and scikit-learn's LinearSVC solve (Fan et al., JMLR 2008). It has one solution,
whatever the method. liblinear solves one category after the other, on one core; here Newton's method (Keerthi
and DeCoste, JMLR 2005) works on many categories together, with its linear systems solved by preconditioned
conjugate gradients. All it does is multiply large matrices, which uses all cores.

Measured beside LinearSVC: docs/compare.md.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from scipy.linalg import cho_factor, cho_solve

# Length of the gradient at the end. The function curves by 1 at least in every direction, so this is also the
# largest distance between the weights found and the solution.
TOLERANCE = 1e-5
MOST_STEPS = 200  # of Newton's method; the data of the benchmarks need 10
MOST_INNER = 500  # steps of conjugate gradients in one of them; likewise 90
TOGETHER = 64  # categories at most: more are no quicker, and progress shows less often
NUMBERS = 2**23  # rows × categories at most: six arrays of 64 MB

Cholesky = tuple[np.ndarray, bool]  # as of SciPy's cho_factor


def solve_svms(
    rows: np.ndarray,
    labels: np.ndarray,
    penalties: Sequence[float],
    solved: Callable[[int], object] = lambda count: None,
) -> list[np.ndarray]:
    """Computes the weights of the SVMs of all categories, for each penalty.

    Args:
        rows: (n, d) float, standardized.
        labels: (n,) int, 0 to k - 1; each has a row.
        penalties: C, in rising order: each starts from the solution of the one before.
        solved: called with the number of SVMs finished so far, of k · penalties.

    Returns:
        For each penalty (d + 1, k) float64.

    Raises:
        ArithmeticError: the rows hold numbers that are not finite.
    """
    data = np.hstack([rows, np.ones((len(rows), 1), rows.dtype)]).astype(np.float64)
    if not np.isfinite(data).all():
        raise ArithmeticError("rows that are not finite; expected numbers")
    count = int(labels.max()) + 1
    gram = data.T @ data
    factors = [cho_factor(2 * penalty * gram + np.eye(len(gram))) for penalty in penalties]
    weights = [np.zeros((data.shape[1], count)) for _ in penalties]
    done = 0
    for some in _blocks(count, max(1, min(TOGETHER, NUMBERS // len(data)))):
        target = np.where(labels[:, None] == some, 1.0, -1.0)
        here = np.zeros((data.shape[1], len(some)))
        for penalty, factor, found in zip(penalties, factors, weights, strict=True):
            finished = functools.partial(_add, solved, done)
            here = found[:, some] = _newton(data, target, penalty, factor, here, finished)
            done += len(some)
    return weights


def _add(solved: Callable[[int], object], done: int, more: int) -> None:
    solved(done + more)


def _blocks(count: int, size: int) -> list[np.ndarray]:
    """0 to count - 1 in ranges of about equal length, at most `size`."""
    return np.array_split(np.arange(count), -(-count // size))


def _newton(
    data: np.ndarray,
    target: np.ndarray,
    penalty: float,
    factor: Cholesky,
    start: np.ndarray,
    finished: Callable[[int], object],
) -> np.ndarray:
    """(d, k) float64: the weights of k SVMs, by Newton's method for all together.

    Args:
        data: (n, d) float64.
        target: (n, k) float64, 1 or -1.
        penalty: C.
        factor: of 2 C · dataᵀ data + 1.
        start: (d, k) float64, weights to start from.
        finished: called with the number of finished SVMs after each step.

    Raises:
        ArithmeticError: it does not converge.
    """
    weights, values, unfinished = start.copy(), data @ start, np.arange(target.shape[1])
    for _ in range(MOST_STEPS):
        y, value, w = target[:, unfinished], values[:, unfinished], weights[:, unfinished]
        violates = y * value < 1
        gradient = w + 2 * penalty * (data.T @ np.where(violates, value - y, 0))
        length = np.linalg.norm(gradient, axis=0)
        left = length > TOLERANCE
        unfinished = unfinished[left]
        finished(target.shape[1] - len(unfinished))
        if not len(unfinished):
            return weights
        y, value, w, violates = y[:, left], value[:, left], w[:, left], violates[:, left]
        gradient, length = gradient[:, left], length[left]
        # Coarse far from the solution, where the next step changes everything; exact at last
        exact = np.maximum(np.minimum(0.1, np.sqrt(length / len(data))) * length, TOLERANCE / 3)
        step, change = _direction(data, violates, penalty, factor, gradient, exact)
        size = _step_size(y, value, w, penalty, step, change, gradient)
        weights[:, unfinished] = w + size * step
        values[:, unfinished] = value + size * change
    raise ArithmeticError(f"{len(unfinished)} SVMs of C = {penalty:g} do not converge; expected finite rows")


def _direction(
    data: np.ndarray,
    violates: np.ndarray,
    penalty: float,
    factor: Cholesky,
    gradient: np.ndarray,
    exact: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Newton's steps of k SVMs by conjugate gradients: hessian · step = -gradient.

    The hessian of an SVM is 2 C · dataᵀ data + 1 over the rows that violate its margin. Over all rows it is
    the same for all SVMs: the preconditioner.

    Args:
        data: (n, d) float64.
        violates: (n, k) bool.
        penalty: C.
        factor: of the preconditioner.
        gradient: (d, k) float64.
        exact: (k,) float64, length of the residual at which an SVM's step is exact enough.

    Returns:
        (d, k) steps; (n, k) data @ steps.
    """
    step, change = np.zeros_like(gradient), np.zeros(violates.shape)
    residual = -gradient
    scaled = cho_solve(factor, residual)
    direction, product = scaled.copy(), (residual * scaled).sum(axis=0)
    working = np.ones(gradient.shape[1], bool)
    for _ in range(MOST_INNER):
        moved = data @ direction
        curved = direction + 2 * penalty * (data.T @ (violates * moved))
        share = _divide(product, (direction * curved).sum(axis=0), working)
        step += share * direction
        change += share * moved
        residual -= share * curved
        working &= np.linalg.norm(residual, axis=0) > exact
        if not working.any():
            break
        scaled = cho_solve(factor, residual)
        before, product = product, (residual * scaled).sum(axis=0)
        direction = scaled + _divide(product, before, working) * direction
    return step, change


def _divide(above: np.ndarray, below: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Above / below; 0 elsewhere, and where `below` is 0."""
    shares: np.ndarray = np.divide(above, below, out=np.zeros_like(above), where=where & (below != 0))
    return shares


def _step_size(
    y: np.ndarray,
    value: np.ndarray,
    w: np.ndarray,
    penalty: float,
    step: np.ndarray,
    change: np.ndarray,
    gradient: np.ndarray,
) -> np.ndarray:
    """(k,) float64: 1, or the first of ½, ¼, … with which each SVM's function falls enough (Armijo).

    Without it the set of violating rows can alternate for ever.
    """

    def function(size: np.ndarray) -> np.ndarray:
        violation = np.maximum(0, 1 - y * (value + size * change))
        total: np.ndarray = 0.5 * ((w + size * step) ** 2).sum(axis=0) + penalty * (violation**2).sum(axis=0)
        return total

    size = np.ones(y.shape[1])
    before, slope = function(np.zeros_like(size)), (gradient * step).sum(axis=0)
    for _ in range(30):
        # The last term: what rounding may do to the function at its minimum
        too_far = function(size) > before + 1e-4 * size * slope + 1e-12 * before
        if not too_far.any():
            break
        size[too_far] /= 2
    return size
