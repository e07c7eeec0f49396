"""What calibrate says beside the rules in use, for planning: other targets, departments, the best categories.

None of it decides anything, so trying many costs nothing: each certificate holds by itself. As in the rules
in use, no product of a withheld category is accepted.
"""

from dataclasses import replace

import numpy as np

from models.decisions.categories import Department, certify_departments, certify_inside, restrict
from models.decisions.categorizer import KeptCategories
from models.decisions.thresholds import Certificate, Outcomes, certify_ladder
from models.taxonomy import Taxonomy
from pipeline.job.config import CalibrationSettings

TARGETS = (0.8, 0.85, 0.9, 0.93, 0.95, 0.97)
KEPT_SHARE = 0.8  # of the categories predicted on FIT, as in figure 7 of the paper


def ladder(
    fit: Outcomes,
    cert: Outcomes,
    fit_open: np.ndarray,
    cert_open: np.ndarray,
    delta: float,
    settings: CalibrationSettings,
) -> tuple[Certificate, ...]:
    """The certificates of TARGETS and of the target in use, ascending.

    Args:
        fit: products of FIT.
        cert: products of CERT.
        fit_open: (n,) bool, those of FIT whose predicted category is not withheld.
        cert_open: (m,) bool, of CERT's.
        delta: that of the categories.
        settings: section [calibration].
    """
    targets = sorted({*TARGETS, settings.precision})
    found = certify_ladder(fit.only(fit_open), cert.only(cert_open), targets, delta=delta, grid=settings.grid)
    if cert_open.all():
        return found
    products = len(cert.one_per_group)
    return tuple(replace(one, products=products, acceptance_rate=one.accepted / products) for one in found)


def departments(
    cert: Outcomes,
    is_open: np.ndarray,
    predicted: np.ndarray,
    taxonomy: Taxonomy,
    threshold: float | None,
    settings: CalibrationSettings,
) -> tuple[Department, ...]:
    """The nodes of level 1 at the threshold in use.

    Args:
        cert: products of CERT.
        is_open: (n,) bool, those whose most likely category is not withheld.
        predicted: (n,) int, their most likely categories.
        taxonomy: of the categories.
        threshold: of the categories; None where nothing is accepted.
        settings: section [calibration].
    """
    nodes = taxonomy.nodes[0]
    _, first = np.unique(nodes, return_index=True)
    names = [taxonomy.label(index, 1) for index in first.tolist()]
    if not is_open.all():
        cert = replace(cert, confidence=np.where(is_open, cert.confidence, 0.0))
    return certify_departments(
        cert, nodes[predicted], names, threshold, target=settings.precision, delta=settings.delta
    )


def restriction(
    fit: Outcomes,
    cert: Outcomes,
    fit_predicted: np.ndarray,
    cert_predicted: np.ndarray,
    taxonomy: Taxonomy,
    settings: CalibrationSettings,
    withheld: np.ndarray,
) -> KeptCategories:
    """The best categories by their precision on FIT, and what could be certified inside them.

    Args:
        fit: products of FIT.
        cert: products of CERT.
        fit_predicted: (n,) int, the most likely categories of FIT's.
        cert_predicted: (m,) int, of CERT's.
        taxonomy: of the categories.
        settings: section [calibration].
        withheld: (C,) bool, categories that are not accepted.
    """
    predicted, correct = (
        np.bincount(category, minlength=len(taxonomy.categories))
        for category in (fit_predicted, fit_predicted[fit.correct])
    )
    kept = restrict(predicted, correct, KEPT_SHARE).kept & ~withheld
    certificate = certify_inside(
        fit, cert, kept[fit_predicted], kept[cert_predicted],
        target=settings.precision, delta=settings.delta, grid=settings.grid,
    )  # fmt: skip
    return KeptCategories(
        KEPT_SHARE, tuple(taxonomy.categories[kept].tolist()), int((~kept).sum()), certificate
    )
