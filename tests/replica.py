"""A drawn catalogue of 1,000 categories with 10 % wrong labels, of which the true posterior is known.

So many of 40,000 products are accepted at precision 0.9 in the order of these scores: largest probability
0.556, its lead over the second 0.602, true posterior 0.785.
"""

from dataclasses import dataclass, fields
from functools import cache

import numpy as np
from generators import evidence_of
from scipy.special import softmax

from models.decisions.confidence import Evidence, fit_temperature, product_probabilities

CATEGORIES, PARENTS, WIDTH = 1000, 100, 24
PRODUCTS = 2000  # whose logits are in memory at once
WRONG_LABELS = 1.25  # times the ambiguity of a product: then one label in ten is wrong


@dataclass(frozen=True)
class World:
    """Categories as clouds of points under parents: large ones are learnt better, some are wide."""

    parent: np.ndarray  # (C,) int
    centre: np.ndarray  # (C, 24) float
    learnt: np.ndarray  # (C, 24) float, what the head believes the centre to be
    width: np.ndarray  # (C,) float
    carelessness: np.ndarray  # (C,) float, mean 1; how often its products are wrongly labelled
    size: np.ndarray  # (C,) int, training products


@cache
def world() -> World:
    """The same for every draw."""
    rng = np.random.default_rng(7)
    parent = rng.integers(0, PARENTS, CATEGORIES)
    centre = rng.normal(size=(PARENTS, WIDTH))[parent] + 0.75 * rng.normal(size=(CATEGORIES, WIDTH))
    size = np.maximum(20, 20_000 // (np.arange(CATEGORIES) + 8))
    width = 1.05 * np.exp(0.35 * rng.normal(size=CATEGORIES))
    learnt = centre + rng.normal(size=centre.shape) * 4 / np.sqrt(size)[:, None]
    return World(parent, centre, learnt, width, rng.gamma(2, 0.5, CATEGORIES), size)


@dataclass(frozen=True)
class Block:
    """Drawn products."""

    logits: np.ndarray  # (images, C) float32, of an overconfident head
    images: np.ndarray  # (p,) int, 1 to 4 of each product
    label: np.ndarray  # (p,) int
    wrong: np.ndarray  # (p,) bool, whether the label is not the category that the product was drawn from
    posterior: np.ndarray  # (p, C) float, probability of each label, given the images


def draw_block(rng: np.random.Generator, products: int) -> Block:
    """Products whose labels are wrong where the images are ambiguous, and in careless categories."""
    w = world()
    truth = rng.choice(CATEGORIES, products, p=w.size / w.size.sum())
    images = rng.integers(1, 5, products)
    width = w.width[truth][:, None]
    of_product = w.centre[truth] + 0.8 * width * rng.normal(size=(products, WIDTH))
    of_image = np.repeat(of_product, images, axis=0)
    of_image += 0.6 * np.repeat(width, images, axis=0) * rng.normal(size=of_image.shape)
    bayes = _category_posterior(of_image, images)
    ambiguity = WRONG_LABELS * (1.02 - bayes.max(axis=1))
    wrong_of = np.minimum(ambiguity[:, None] * w.carelessness, 0.9)  # (p, C) of a product of each category
    wrong = rng.random(products) < wrong_of[np.arange(products), truth]
    label = np.where(wrong, rng.integers(0, CATEGORIES, products), truth)
    logits = 1.6 * (of_image @ w.learnt.T - 0.5 * (w.learnt**2).sum(axis=1))
    posterior = bayes * (1 - wrong_of) + (bayes * wrong_of).sum(axis=1, keepdims=True) / CATEGORIES
    return Block(logits.astype(np.float32), images, label, wrong, posterior)


def _category_posterior(of_image: np.ndarray, images: np.ndarray) -> np.ndarray:
    """(p, C) float64, probability of each category by Bayes' rule, from (images, 24) points of p products.

    A product's images have a mean, of variance width² (0.64 + 0.36 / images), and are spread around it with
    variance 0.36 width².
    """
    w, first = world(), np.cumsum(images) - images
    mean = np.add.reduceat(of_image, first, axis=0) / images[:, None]
    spread = np.add.reduceat(((of_image - np.repeat(mean, images, axis=0)) ** 2).sum(axis=1), first)
    distance = (mean**2).sum(axis=1)[:, None] - 2 * mean @ w.centre.T + (w.centre**2).sum(axis=1)
    of_mean, within = w.width**2 * (0.64 + 0.36 / images[:, None]), 0.36 * w.width**2
    log_likelihood = -0.5 * (distance / of_mean + WIDTH * np.log(of_mean))
    log_likelihood -= 0.5 * (spread[:, None] / within + WIDTH * (images[:, None] - 1) * np.log(within))
    posterior: np.ndarray = softmax(log_likelihood + np.log(w.size), axis=1)
    return posterior


@dataclass(frozen=True)
class Drawn:
    """Products as a confidence sees them."""

    evidence: Evidence
    correct: np.ndarray  # (p,) bool, whether the predicted category is the label
    posterior: np.ndarray  # (p,) float, the true probability of it
    wrong: np.ndarray  # (p,) bool, whether the label is


@cache
def draw(seed: int, products: int) -> Drawn:
    """Products at the temperature of a thousand others."""
    w, other = world(), draw_block(np.random.default_rng(0), 1000)
    temperature = fit_temperature(other.logits, other.images, other.label)
    parts = []
    for start in range(0, products, PRODUCTS):
        some = draw_block(np.random.default_rng([seed, start]), min(PRODUCTS, products - start))
        probabilities = product_probabilities(some.logits, some.images, temperature)
        evidence = evidence_of(probabilities, some.images, w.parent, w.size)
        posterior = some.posterior[np.arange(len(some.label)), evidence.category]
        parts.append(Drawn(evidence, evidence.category == some.label, posterior, some.wrong))
    columns = {
        column.name: np.concatenate([getattr(part.evidence, column.name) for part in parts])
        for column in fields(Evidence)
    }
    others = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("correct", "posterior", "wrong")
    )
    return Drawn(Evidence(**columns), *others)
