"""What tests of sellers' corrections share: an adapter with drawn rules, and stores of corrections."""

from pathlib import Path
from typing import Literal

import numpy as np

from models.corrections.correction import Correction
from models.corrections.database import corrections_url
from models.corrections.histories import Histories
from models.corrections.store import Corrections
from models.decisions.adapted import AdaptedConfidence, Adapter, SellerRules, vector_width
from models.decisions.categorizer import Categorizer
from models.decisions.suspicion import Suspicion
from models.decisions.thresholds import Certificate
from models.sellers.paper import PaperMethod
from models.sellers.styles import Styles
from models.sellers.votes import Votes, VotesMethod

Method = Literal["votes", "paper"]
HONEST = Suspicion((0.5,), ((-0.1,) * 5, (0.1,) * 5), 100, 20)  # flags nobody after a few corrections


def rules_of(
    model: str, method: Method = "votes", threshold: float | None = 0.5, suspicion: Suspicion = HONEST
) -> SellerRules:
    """Rules by which nearly every decision of a corrected seller may be adapted; confidence = share."""
    return SellerRules(
        model=model,
        method=method,
        vectors="hidden" if method == "votes" else "bottlenecks",
        votes=Votes(),
        base_threshold=2.0,
        confidence=AdaptedConfidence("share", 0, "drawn"),
        certificate=Certificate(target=0.9, delta=0.1, grid=1000, products=0, threshold=threshold),
        suspicion=suspicion,
        sellers={"fit_sellers": 0, "cert_sellers": 0, "fit_products": 0, "cert_products": 0},
    )


def adapter_of(
    categorizer: Categorizer,
    method: Method = "votes",
    threshold: float | None = 0.5,
    suspicion: Suspicion = HONEST,
) -> Adapter:
    """An adapter of a drawn head; the paper's method has two drawn styles of every category."""
    rules = rules_of(categorizer.predictor.model, method, threshold, suspicion)
    if method == "votes":
        return Adapter(categorizer, rules, VotesMethod(rules.votes))
    categories = len(categorizer.predictor.taxonomy.categories)
    width = vector_width(categorizer, rules.vectors)
    centroids = np.random.default_rng(3).uniform(0, 255, (2 * categories, width)).astype(np.float32)
    return Adapter(categorizer, rules, PaperMethod(Styles(centroids, np.arange(0, 2 * categories + 1, 2))))


def store_of(workspace: Path) -> Corrections:
    """The store of a workspace, in its file."""
    workspace.mkdir(parents=True, exist_ok=True)
    return Corrections.open(corrections_url(workspace, ""))


def learn(
    corrections: Corrections, adapter: Adapter, seller: str, rows: dict[str, tuple[str, np.ndarray]]
) -> list[int]:
    """Makes corrections, product_id → category and (k, d) float16 bottlenecks; returns their ids."""
    fingerprint = adapter.categorizer.predictor.head.shape.fingerprint
    made = [
        Correction(seller, product, category, fingerprint=fingerprint, bottlenecks=bottlenecks)
        for product, (category, bottlenecks) in rows.items()
    ]
    return [one.id for one in Histories(adapter, corrections).learn(made)]
