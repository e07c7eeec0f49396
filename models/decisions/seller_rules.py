"""Fits how sellers' corrections change decisions, on sellers apart from those that certify.

    validation products with a seller ──► sellers by a hash of their name: FIT sellers, CERT sellers
    each seller's products, by a hash of their id: a stream, replayed as corrections would have come

    FIT sellers   votes (T, α, β, γ) ──► replayed ──► adapted confidence; grid and starts of the chains
    CERT sellers  replayed with these ──► one decision of each ──► certificate

A product of a stream enters the history where a person sees it: where the base confidence is under the base
threshold, or the base category is wrong. Products that adaptation accepted are seen by nobody in practice;
that they are learnt here makes histories a little longer than they would be. What the feedback of all
products changes: docs/experiments/sellers.md.

What is certified are decisions that corrections could make: the history is not empty, and the category
changes or the base confidence is under the base threshold. A seller's decisions are correct or wrong
together, so that one of each counts, of those in CERT: the product with the smallest hash. A picture that
several sellers have counts for one of them. So the promise is about a random adapted decision of a random
seller: with probability 1 - delta over the draw of CERT sellers, at least a share `target` of those accepted
is correct.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from features.product import order_key
from models.decisions.adapted import AdaptedConfidence, adapted_terms
from models.decisions.confidence import DECIMALS, LEAST_OUTCOMES, LEAST_PRODUCTS, PENALTY
from models.decisions.out_of_fold import folds
from models.decisions.thresholds import Certificate, Outcomes, certify
from models.decisions.validation_split import in_fit
from models.sellers.interface import SellerMethod
from models.sellers.votes import Stream, Votes, fit_votes

LEAST_SELLERS = 10  # of FIT, with two products or more; on fewer, votes are not fitted
MOST_NUMBERS = 2**24  # products × categories that votes are fitted on: a minute; 128 MB


@dataclass(frozen=True, eq=False)
class SellerProducts:
    """The n products of one seller whose categories are known, in the order in which they come."""

    seller: str
    product_id: np.ndarray  # (n,) str
    own: np.ndarray  # (n,) bool, of `own_pictures`
    fit: np.ndarray  # (n,) bool, in FIT
    vectors: np.ndarray  # (n, v) float16
    log_probability: np.ndarray  # (n, C) float
    base: np.ndarray  # (n,) int
    base_confidence: np.ndarray  # (n,) float, as decisions have it
    true: np.ndarray  # (n,) int; -1 where the head does not know the category


@dataclass(frozen=True, eq=False)
class Replayed:
    """What adaptation decides about products, each from the corrections before it."""

    seller: np.ndarray  # (n,) str
    product_id: np.ndarray  # (n,) str
    own: np.ndarray  # (n,) bool
    fit: np.ndarray  # (n,) bool
    category: np.ndarray  # (n,) int, the adapted one
    share: np.ndarray  # (n,) float, of the method
    base_confidence: np.ndarray  # (n,) float
    stays: np.ndarray  # (n,) bool, the category is the base's
    corrections: np.ndarray  # (n,) int, behind it
    correct: np.ndarray  # (n,) bool, the adapted category
    base_correct: np.ndarray  # (n,) bool
    adaptable: np.ndarray  # (n,) bool, the decision could be an adapted one

    def only(self, chosen: np.ndarray) -> "Replayed":
        """The chosen products, (n,) bool."""
        return Replayed(*(getattr(self, column.name)[chosen] for column in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence["Replayed"]) -> "Replayed":
        """Those of several sellers, at least one."""
        return cls(*(np.concatenate([getattr(one, column.name) for one in parts]) for column in fields(cls)))


class FittedSellers(NamedTuple):
    """What SellerRules hold of the fit."""

    votes: Votes
    confidence: AdaptedConfidence
    certificate: Certificate
    counts: dict[str, int]  # fit_sellers, cert_sellers, fit_products, cert_products


def own_pictures(group: np.ndarray, seller: np.ndarray, product_id: np.ndarray) -> np.ndarray:
    """Returns (n,) bool: whether the product counts as its seller's, where several sellers have a picture.

    A duplicate group belongs to the seller of the product with the smallest hash of its id.

    Args:
        group: (n,) str, duplicate group of each product.
        seller: (n,) str.
        product_id: (n,) str.

    >>> group, seller = np.array(["a", "a", "b"]), np.array(["s", "t", "t"])
    >>> own_pictures(group, seller, np.array(["p1", "p2", "p3"])).tolist()
    [False, True, True]
    """
    key = np.array([order_key(str(name)) for name in product_id], np.int64)
    table = pd.DataFrame({"group": group, "seller": seller, "key": key, "id": product_id})
    owner = table.sort_values(["key", "id"]).drop_duplicates("group").set_index("group")["seller"]
    own: np.ndarray = table["seller"].to_numpy() == owner.reindex(table["group"]).to_numpy()
    return own


def choose_base_threshold(confidence: np.ndarray, correct: np.ndarray, target: float) -> float:
    """Returns the lowest confidence from which on FIT's products are correct to the share `target`; else 1.

    It only says which decisions count as adapted, so that any number keeps the promise; the certified
    threshold would not, as it depends on CERT.

    Args:
        confidence: (n,) float, of the base, of FIT's products alone.
        correct: (n,) bool, whether its category is correct.
        target: 0 to 1.

    >>> choose_base_threshold(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, True, False, False]), 0.66)
    0.7
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence = confidence[order]
    share = np.cumsum(correct[order]) / np.arange(1, len(order) + 1)
    last = np.append(sorted_confidence[1:] != sorted_confidence[:-1], True)[: len(order)]  # of equal ones
    able = np.flatnonzero(last & (share >= target))
    return float(sorted_confidence[able[-1]]) if len(able) else 1.0


def replay(products: SellerProducts, method: SellerMethod, base_threshold: float) -> Replayed:
    """Decides about each product of a seller from the history before it, then lets a person see it.

    Args:
        products: in the order in which they come.
        method: which makes the seller.
        base_threshold: of `choose_base_threshold`.
    """
    count, vectors = len(products.product_id), products.vectors
    seller = method.seller(vectors[:0], products.base[:0], products.true[:0])
    said = np.empty(count, np.int64)
    share, corrections = np.empty(count), np.empty(count, np.int64)
    doubtful = products.base_confidence < base_threshold
    seen = (doubtful | (products.base != products.true)) & (products.true >= 0)
    for row in range(count):
        choice = seller.predict(vectors[row], products.log_probability[row])
        said[row], share[row], corrections[row] = choice.category, choice.share, choice.corrections
        if seen[row]:
            seller.learn(vectors[row], int(products.base[row]), int(products.true[row]))
    stays = said == products.base
    return Replayed(
        seller=np.full(count, products.seller, dtype=object),
        product_id=products.product_id,
        own=products.own,
        fit=products.fit,
        category=said,
        share=share,
        base_confidence=products.base_confidence,
        stays=stays,
        corrections=corrections,
        correct=said == products.true,
        base_correct=products.base == products.true,
        adaptable=(corrections > 0) & (~stays | doubtful),
    )


def fit_sellers(
    names: Sequence[str],
    read: Callable[[str], SellerProducts],
    method: Callable[[Votes], SellerMethod],
    base_threshold: float,
    *,
    votes: bool,
    target: float,
    delta: float,
    grid: int,
    fit_share: float,
) -> FittedSellers:
    """Fits what SellerRules hold of the sellers, and certifies it.

    Args:
        names: of the sellers, distinct.
        read: name → its products; of one seller at a time, so that one seller's are in memory.
        method: votes → the method; without `votes` the argument is not used.
        base_threshold: of `choose_base_threshold`.
        votes: whether votes are to be fitted.
        target: precision promised.
        delta: probability that the promise fails.
        grid: thresholds tried, at most.
        fit_share: of the sellers for FIT, 0 to 1.
    """
    names = sorted(names)
    is_fit = in_fit(np.array(names, dtype=object), fit_share)
    of_fit = [name for name, here in zip(names, is_fit.tolist(), strict=True) if here]
    of_cert = [name for name, here in zip(names, is_fit.tolist(), strict=True) if not here]
    fitted = _fit_votes(of_fit, read) if votes else Votes()
    made = method(fitted)
    fit = _adaptable(replay(read(name), made, base_threshold) for name in of_fit)
    cert = _adaptable((replay(read(name), made, base_threshold) for name in of_cert), certifies=True)
    model, confidence = fit_adapted_confidence(fit)
    certificate = certify(
        _outcomes(fit, confidence), _outcomes(cert, _confidence(model, cert)),
        target=target, delta=delta, grid=grid,
    )  # fmt: skip
    counts = {
        "fit_sellers": len(of_fit),
        "cert_sellers": len(of_cert),
        "fit_products": len(fit.share),
        "cert_products": len(cert.share),
    }
    if certificate.reason:
        certificate = replace(
            certificate, reason=f"{certificate.reason}; one decision of each seller counts as a product"
        )
    return FittedSellers(fitted, model, certificate, counts)


def _fit_votes(names: Sequence[str], read: Callable[[str], SellerProducts]) -> Votes:
    """The votes of FIT's sellers, in the order of a hash of their names, as many as fit in memory."""
    streams, left = list[Stream](), MOST_NUMBERS
    for name in sorted(names, key=lambda one: (order_key(one), one)):
        products = read(name)
        known = np.flatnonzero(products.true >= 0)
        left -= len(known) * products.log_probability.shape[1]
        if left < 0:
            break
        if len(known) > 1:
            streams.append(
                Stream(products.vectors[known], products.log_probability[known], products.true[known])
            )
    return fit_votes(streams) if len(streams) >= LEAST_SELLERS else Votes()


def _adaptable(sellers: Iterator[Replayed], certifies: bool = False) -> Replayed:
    """The products whose decision could be an adapted one, of pictures that are the seller's own.

    Args:
        sellers: replayed.
        certifies: CERT's products alone.
    """
    parts = [_NONE]
    for one in sellers:
        parts.append(one.only(one.adaptable & one.own & ~(one.fit & certifies)))
    return Replayed.joined(parts)


def fit_adapted_confidence(fit: Replayed) -> tuple[AdaptedConfidence, np.ndarray]:
    """Fits the adapted confidence.

    Args:
        fit: FIT sellers' n products whose decision could be an adapted one.

    Returns:
        The model, and (n,) float, the confidence of each product, out of fold by seller.
    """
    model = _fit(fit)
    confidence = _confidence(model, fit)
    if model.kind == "share":
        return model, confidence
    fold, joined = folds(fit.seller), np.empty(len(confidence))
    for number in np.unique(fold).tolist():
        left_out = fold == number
        one = _fit(fit.only(~left_out))
        if one.kind == "share":  # on another scale
            return model, confidence
        joined[left_out] = _confidence(one, fit.only(left_out))
    return model, joined


def _fit(fit: Replayed) -> AdaptedConfidence:
    from sklearn.linear_model import LogisticRegression

    count, successes = len(fit.correct), int(np.count_nonzero(fit.correct))
    if count < LEAST_PRODUCTS or min(successes, count - successes) < LEAST_OUTCOMES:
        needed = f"expected {LEAST_PRODUCTS}, {LEAST_OUTCOMES} correct, {LEAST_OUTCOMES} wrong"
        reason = f"{count} adaptable products of FIT sellers, {successes} correct; {needed}"
        return AdaptedConfidence("share", count, reason)
    terms = adapted_terms(fit.share, fit.base_confidence, fit.stays, fit.corrections)
    mean = {name: round(float(term.mean()), DECIMALS) for name, term in terms.items()}
    scale = {name: round(float(term.std()), DECIMALS) or 1.0 for name, term in terms.items()}
    standard = np.stack([(term - mean[name]) / scale[name] for name, term in terms.items()], axis=1)
    model = LogisticRegression(C=PENALTY, solver="newton-cholesky", tol=1e-8).fit(standard, fit.correct)
    return AdaptedConfidence(
        kind="logistic",
        products=count,
        intercept=round(float(model.intercept_[0]), DECIMALS),
        coefficient={name: round(float(c), DECIMALS) for name, c in zip(terms, model.coef_[0], strict=True)},
        mean=mean,
        scale=scale,
        most_corrections=int(fit.corrections.max()),
    )


def _confidence(model: AdaptedConfidence, replayed: Replayed) -> np.ndarray:
    return model.confidence(replayed.share, replayed.base_confidence, replayed.stays, replayed.corrections)


def _outcomes(replayed: Replayed, confidence: np.ndarray) -> Outcomes:
    return Outcomes(replayed.product_id, replayed.seller, confidence, replayed.correct)


_NAMES, _FLAGS, _COUNTS = np.empty(0, object), np.empty(0, bool), np.empty(0, np.int64)
_NONE = Replayed(
    seller=_NAMES,
    product_id=_NAMES,
    own=_FLAGS,
    fit=_FLAGS,
    category=_COUNTS,
    share=np.empty(0),
    base_confidence=np.empty(0),
    stays=_FLAGS,
    corrections=_COUNTS,
    correct=_FLAGS,
    base_correct=_FLAGS,
    adaptable=_FLAGS,
)
