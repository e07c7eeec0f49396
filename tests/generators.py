"""Drawn products with known truth: confidences, whether right, and the precision a threshold really has.

G1 has the curve of the source paper's figure 5, G2 are awkward curves, G5 near-duplicates, G6 ties; a
catalogue has logits, from which confidences are still to be made.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
from scipy.special import betainc, expit, softmax, xlogy

from models.decisions.confidence import Evidence
from models.decisions.levels import LevelOutcomes
from models.decisions.predictions import max_logit_pnorm
from models.decisions.thresholds import Outcomes

Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]

A, B = 0.674666, 0.424138  # of G1's Beta distribution


def g1(rng: np.random.Generator, products: int) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated confidences (n,) float ~ Beta(A, B), and (n,) bool right with that probability."""
    confidence = rng.beta(A, B, products)
    return confidence, rng.random(products) < confidence


def g1_precision(threshold: float) -> float:
    """True precision of G1 from the threshold on: A / (A + B) (1 - I_t(A + 1, B)) / (1 - I_t(A, B))."""
    return float(A / (A + B) * (1 - betainc(A + 1, B, threshold)) / (1 - betainc(A, B, threshold)))


def plateau(u: np.ndarray) -> np.ndarray:
    """G2: precision a hair over the target for long."""
    return np.select([u < 0.03, u < 0.15, u < 0.6], [0.97, 0.8787, 0.897], 0.3)


def contaminated(u: np.ndarray) -> np.ndarray:
    """G2: the top two per cent are bad."""
    return np.where(u < 0.02, 0.7, np.clip(1 - 0.75 * np.maximum(u - 0.05, 0) ** 1.3, 0.02, 0.995))


def dip(u: np.ndarray) -> np.ndarray:
    """G2: under the target for a while, then over it again."""
    return np.select([u < 0.05, u < 0.20, u < 0.45], [0.97, 0.84, 0.97], 0.4)


def g2(shape: Callable[[np.ndarray], np.ndarray]) -> Draw:
    """Draws confidences 1 - u, u uniform, right with probability shape(u)."""

    def draw(rng: np.random.Generator, products: int) -> tuple[np.ndarray, np.ndarray]:
        u = rng.random(products)
        return 1 - u, rng.random(products) < shape(u)

    return draw


def g2_precision(shape: Callable[[np.ndarray], np.ndarray]) -> Callable[[float], float]:
    """True precision of G2 from a threshold on, by adding up a fine grid."""
    u = (np.arange(100_000) + 0.5) / 100_000
    mean = np.cumsum(shape(u)) / np.arange(1, len(u) + 1)
    return lambda threshold: float(mean[max(round((1 - threshold) * len(u)) - 1, 0)])


def g5(rng: np.random.Generator, products: int, size: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """G1 in near-duplicates: groups of `size` products share confidence and outcome; also groups (n,) int."""
    confidence, correct = g1(rng, products // size)
    group = np.arange(products // size)
    return np.repeat(confidence, size), np.repeat(correct, size), np.repeat(group, size)


def g6(rng: np.random.Generator, products: int) -> tuple[np.ndarray, np.ndarray]:
    """G1 with confidences rounded to hundredths."""
    confidence, correct = g1(rng, products)
    return confidence.round(2), correct


def g6_precision(threshold: float) -> float:
    """True precision of G6: confidences from half a hundredth below are rounded up to the threshold."""
    return g1_precision(max(threshold - 0.005, 0))


def outcomes(
    confidence: np.ndarray, correct: np.ndarray, name: str = "cert", group: np.ndarray | None = None
) -> Outcomes:
    """Products called `<name>0`, `<name>1`, …, each its own group unless groups (n,) int are given."""
    ids = _names(name, len(correct))
    groups = ids if group is None else _names(f"{name}-group", group.max() + 1)[group]
    return Outcomes(ids, groups, confidence, correct)


@cache
def _names(prefix: str, count: int) -> np.ndarray:
    return np.array([f"{prefix}{i}" for i in range(count)], dtype=object)


@dataclass(frozen=True)
class Catalogue:
    """Drawn products as an overconfident head sees them."""

    logits: np.ndarray  # (n, categories) float32, of the images
    images: np.ndarray  # (p,) int, images of each product
    truth: np.ndarray  # (p,) int, label: one in ten is wrong, more in some categories than in others
    parent: np.ndarray  # (categories,) int
    category_size: np.ndarray  # (categories,) int, training products


def catalogue(rng: np.random.Generator, products: int, categories: int = 200, parents: int = 20) -> Catalogue:
    """Products around drawn centres; large categories are learnt better, some are hard or badly labelled."""
    world = np.random.default_rng(7)  # the same catalogue for every draw
    parent = world.integers(0, parents, categories)
    centre = world.normal(size=(parents, 24))[parent] + 0.75 * world.normal(size=(categories, 24))
    size = np.maximum(20, 20_000 // (np.arange(categories) + 8))
    hard = 1.3 * np.exp(0.35 * world.normal(size=(categories, 1)))
    learnt = centre + world.normal(size=centre.shape) * 4 / np.sqrt(size)[:, None]
    badly_labelled = world.beta(0.5, 4.5, categories)

    truth = rng.choice(categories, products, p=size / size.sum())
    images = rng.integers(1, 5, products)
    of_product = centre[truth] + 0.8 * hard[truth] * rng.normal(size=(products, 24))
    of_image = np.repeat(of_product, images, axis=0)
    of_image += 0.6 * np.repeat(hard[truth], images, axis=0) * rng.normal(size=of_image.shape)
    logits = 1.6 * (of_image @ learnt.T - 0.5 * (learnt**2).sum(axis=1))
    wrong = rng.random(products) < badly_labelled[truth]
    label = np.where(wrong, rng.integers(0, categories, products), truth)
    return Catalogue(logits.astype(np.float32), images, label, parent, size)


def evidence_of(
    probabilities: np.ndarray, images: np.ndarray, parent: np.ndarray, category_size: np.ndarray
) -> Evidence:
    """The evidence in a block of product probabilities.

    Args:
        probabilities: (n, categories) float, two categories at least.
        images: (n,) int, images of each product.
        parent: (categories,) int, parent of each category.
        category_size: (categories,) int, training products of each category.
    """
    category = probabilities.argmax(axis=1)
    second, first = np.partition(probabilities, -2, axis=1)[:, -2:].T
    kin = parent == parent[category][:, None]
    return Evidence(
        p1=first,
        p2=second,
        entropy=-xlogy(probabilities, probabilities).sum(axis=1),
        parent_mass=np.where(kin, probabilities, 0).sum(axis=1),
        max_logit_pnorm=max_logit_pnorm(np.log(np.maximum(probabilities, 1e-30))),
        category=category,
        category_size=category_size[category],
        images=images,
    )


def tree_products(
    rng: np.random.Generator, products: int, strength: tuple[float, ...] = (4.5, 2.5, 0.6)
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidences (n, N) float, correct (n, N) bool, and depth (n,) int of the predicted leaf, 1 to N.

    From the root down, the branch taken at each level is correct with log odds N(strength, 1.6²), of which
    N(0, 1.3²) is shared by the levels of a product; a wrong leaf is often under the correct parent. The
    confidences see these log odds through noise, N(0, 0.7²). A shallow leaf keeps its values at the levels
    below its own.
    """
    levels = len(strength)
    depth = rng.choice(np.arange(1, levels + 1), products, p=np.array([0.15, 0.25, 0.6])[:levels])
    hardness = 1.3 * rng.normal(size=(products, 1))
    log_odds = np.array(strength) + hardness + rng.normal(size=(products, levels))
    correct = np.logical_and.accumulate(rng.random((products, levels)) < expit(log_odds), axis=1)
    confidence = np.cumprod(expit(log_odds + 0.7 * rng.normal(size=(products, levels))), axis=1).round(6)
    column = np.minimum(np.arange(levels), depth[:, None] - 1)
    return np.take_along_axis(confidence, column, 1), np.take_along_axis(correct, column, 1), depth


def level_outcomes(
    confidence: np.ndarray, correct: np.ndarray, depth: np.ndarray, name: str = "cert"
) -> LevelOutcomes:
    """Products called `<name>0`, `<name>1`, …, each its own group."""
    ids = _names(name, len(depth))
    return LevelOutcomes(ids, ids, confidence, correct, depth)


@dataclass(frozen=True)
class Shop:
    """How products of a shop are drawn: categories of Zipf frequency, some of them far easier than others.

    The logit of the true category is N(0, background²) plus the category's strength plus N(0, 1); the others
    are N(0, background²). The strength of a category is N(strength, spread²); of the `strong` most frequent
    ones, it is N(7, 0.5²).
    """

    strength: float = 4.0
    spread: float = 1.8
    noise: float = 0.05  # share of labels that are any category
    background: float = 0.68
    strong: int = 0
    categories: int = 200
    parents: int = 20


SHOPS = {
    "shop": Shop(),
    "noisy labels": Shop(noise=0.08, strength=4.6),
    "few strong": Shop(strength=1.6, spread=0.8, strong=6),
}


def shop_products(rng: np.random.Generator, shop: Shop, products: int) -> tuple[Evidence, np.ndarray]:
    """Evidence of so many products of one catalogue, and (n,) bool, whether the predicted category is right.

    Each call draws a catalogue of its own, that is, the strengths of its categories.
    """
    frequency = 1 / np.arange(1, shop.categories + 1)
    frequency /= frequency.sum()
    strength = rng.normal(shop.strength, shop.spread, shop.categories)
    strength[: shop.strong] = rng.normal(7, 0.5, shop.strong)
    parent = np.arange(shop.categories) % shop.parents
    size = np.maximum(20, 20_000 * frequency).astype(int)
    blocks, right = [], []
    for start in range(0, products, 5000):  # never a products × categories matrix of them all
        count = min(5000, products - start)
        rows, truth = np.arange(count), rng.choice(shop.categories, count, p=frequency)
        logits = shop.background * rng.standard_normal((count, shop.categories), dtype=np.float32)
        logits[rows, truth] += strength[truth] + rng.normal(size=count)
        label = np.where(rng.random(count) < shop.noise, rng.integers(0, shop.categories, count), truth)
        block = evidence_of(softmax(logits, axis=1), np.ones(count, int), parent, size)
        blocks.append(block)
        right.append(block.category == label)
    return joined(blocks), np.concatenate(right)


def g1_evidence(rng: np.random.Generator, products: int) -> tuple[Evidence, np.ndarray]:
    """G1 as the evidence of a head: p1 is the calibrated confidence, and nothing else tells anything."""
    p1, correct = g1(rng, products)
    p1 = np.clip(p1, 1e-6, 1 - 1e-6)
    second, kin = (1 - p1) * rng.uniform(0.1, 0.6, products), rng.uniform(0.1, 0.9, products)
    p2 = np.minimum(second, p1)
    rest = 1 - p1
    entropy = -xlogy(p1, p1) - xlogy(rest, rest) + rest * np.log(10)
    frequency = 1 / np.arange(1, 201)
    category = rng.choice(200, products, p=frequency / frequency.sum())
    size = np.maximum(20, 20_000 * frequency / frequency.sum()).astype(int)[category]
    images = np.ones(products, int)
    stands_out = 1 - p2 / p1  # as max_logit_pnorm: tells nothing that p1 and p2 do not
    return Evidence(p1, p2, entropy, p1 + rest * kin, stands_out, category, size, images), correct


def joined(blocks: list[Evidence]) -> Evidence:
    """The products of several blocks as one."""
    return Evidence(
        *(np.concatenate([getattr(block, column.name) for block in blocks]) for column in fields(Evidence))
    )
