"""The cascade: the first view decides where it is certain; the promise is about the cascade as a whole."""

import itertools
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from drawn_categorizers import KINDS, draw_categorizer
from hypothesis import given
from hypothesis import strategies as st
from test_categorizer import Echo
from test_decision_graph import drawn_rows
from test_unlearnt import Drawn

from models.decisions import cascade as cascade_module
from models.decisions.adapted import AdaptedConfidence, Adapter, SellerRules
from models.decisions.cascade import certainty, fit_cascade, joined_views, rows_that_decide
from models.decisions.categorizer import Categorizer, Predictor
from models.decisions.suspicion import EDGES, RANKS, Suspicion
from models.decisions.thresholds import Certificate
from models.sellers.votes import Votes, VotesMethod
from models.taxonomy import Taxonomy
from pipeline.job.catalogue import Part, TrueCategories, divide
from pipeline.job.config import Config
from pipeline.train.calibrate import decision_rules
from pipeline.train.evaluated import evaluate_part

HALF, PRODUCTS = 0.5, 4000


def test_certainty_is_the_largest_probability_of_the_mean_of_the_photos() -> None:
    logits = np.log(np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]]))
    found = certainty(Echo(), logits.astype(np.float32), np.array([0, 2, 3]))
    assert found.tolist() == [0.55, 0.7]


def test_certainty_does_not_depend_on_the_size_of_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    bounds = np.array([0, 3, 4, 20, 21, 50])
    whole = certainty(Echo(), logits, bounds)
    monkeypatch.setattr(cascade_module, "PIECE", 2)
    assert certainty(Echo(), logits, bounds).tolist() == whole.tolist()


@given(st.lists(st.sampled_from([0.25, 0.5, 0.75, 1.0]), max_size=12), st.floats(0.01, 0.99))
def test_at_most_the_share_is_looked_at_again_and_equal_ones_alike(values: list[float], share: float) -> None:
    found = fit_cascade(np.array(values), share)
    again = sum(value < found.limit for value in values)
    assert again <= share * len(values) if values else found.share == 1
    assert not values or found.share == pytest.approx(again / len(values))
    # with the next larger limit there would be more than the share
    larger = [value for value in values if value > found.limit]
    if larger:
        assert sum(value < min(larger) for value in values) > share * len(values) - 1


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=6), st.integers(2, 4))
def test_rows_that_decide_are_those_that_a_batch_puts_together(
    products: list[tuple[int, bool]], views: int
) -> None:
    photos = sum(count for count, _ in products)
    again = np.array([looks for _, looks in products], bool)
    every = np.arange(photos * views).reshape(photos, views, 1)
    bounds = np.cumsum([0, *(count * views for count, _ in products)])
    rows, own = rows_that_decide(bounds, again, views)
    of_photo = np.repeat(again, [count for count, _ in products])
    others = [every[of_photo, view] for view in range(1, views)]
    assert joined_views(every[:, 0], of_photo, others).ravel().tolist() == rows.tolist()
    expected = [count * (views if looks else 1) for count, looks in products]
    assert np.diff(own).tolist() == expected and own[0] == 0


# Calibration


class Logits(Echo):
    """A head whose logits are its bottlenecks, of two views of each photo."""

    shape = SimpleNamespace(views=("whole", "flip"), rows_of_image=2)

    def logits(self, bottlenecks: np.ndarray) -> np.ndarray:
        return bottlenecks.astype(np.float32)


@dataclass(frozen=True)
class Calibrated:
    """Drawn products whose second view says more than the first."""

    part: Part
    true: TrueCategories
    categorizer: Categorizer

    def of(self, side: str) -> Any:
        """What the categorizer decides about FIT or CERT."""
        division = divide(self.part.product_id, self.part.image_digest, HALF)
        return evaluate_part(self.categorizer, self.part.only(getattr(division, side)), self.true, set())


def calibrated(share: float) -> Calibrated:
    rng = np.random.default_rng(7)
    names = np.array([["a", "b", "c", "d"][number] for number in range(4)], object)
    tree = Taxonomy(names, np.stack([names], axis=1))
    category = rng.integers(0, 4, PRODUCTS)
    truth = 4.0 * np.eye(4)[category]
    rows = np.stack(
        [truth + 2.2 * rng.normal(size=truth.shape), truth + rng.normal(size=truth.shape)], axis=1
    )
    ids = np.array([f"p{number:05}" for number in range(PRODUCTS)], object)
    digest = np.arange(4 * PRODUCTS, dtype=np.uint64).reshape(-1, 4).view(np.uint8)
    part = Part(
        ids.repeat(2), digest.repeat(2, axis=0), rows.reshape(-1, 4).astype(np.float32).view(Drawn), 2
    )  # type: ignore[arg-type]
    true = TrueCategories(pd.Series(names[category], index=ids), (tree,))
    predictor = Predictor(Logits(), tree, np.full(4, 50), "head", "tree")  # type: ignore[arg-type]
    config = Config(calibration={"fit_share": HALF}, extract={"cascade": share})
    rules = decision_rules(predictor, part, true, divide(part.product_id, part.image_digest, HALF), config)
    return Calibrated(part, true, Categorizer(predictor, rules))


@pytest.fixture(scope="module")
def third() -> Calibrated:
    return calibrated(0.3)


def test_the_share_that_is_looked_at_again_is_that_of_fit(third: Calibrated) -> None:
    cascade = third.categorizer.rules.cascade
    assert cascade and cascade.share == pytest.approx(0.3, abs=1e-3)
    assert third.of("fit").predictions.again.mean() == cascade.share
    assert third.of("cert").predictions.again.mean() == pytest.approx(0.3, abs=0.04)


def test_the_certificate_is_about_what_the_cascade_decides_on_cert(third: Calibrated) -> None:
    certificate, cert = third.categorizer.rules.certificate, third.of("cert")
    assert certificate.products == len(cert.product_id)
    assert certificate.accepted == cert.accepted.sum() > 100
    assert certificate.errors == (cert.accepted & ~cert.correct).sum()


def test_products_looked_at_again_are_those_whose_first_view_is_least_certain(third: Calibrated) -> None:
    fit = third.of("fit")
    rows = third.part.only(divide(third.part.product_id, third.part.image_digest, HALF).fit).rows
    certain = certainty(Logits(), np.asarray(rows)[::2], np.arange(len(fit.product_id) + 1))
    again = fit.predictions.again
    assert certain[again].max() < third.categorizer.rules.cascade.limit <= certain[~again].min()
    assert fit.predictions.images[again].tolist() == [2] * again.sum()
    assert fit.predictions.images[~again].tolist() == [1] * (~again).sum()


def test_a_cascade_gains_most_of_what_all_views_do(third: Calibrated) -> None:
    first, whole = calibrated(0.001), calibrated(0.0)
    assert whole.categorizer.rules.cascade is None and whole.of("cert").predictions.again.all()
    precisions = [one.of("cert").correct.mean() for one in (first, third, whole)]
    assert precisions[0] + 0.03 < precisions[2]
    assert precisions[1] - precisions[0] > 0.7 * (precisions[2] - precisions[0])


# Decisions


@pytest.fixture(scope="module")
def drawn(quiet_tensorflow: None) -> tuple[Categorizer, np.ndarray, np.ndarray]:
    images = np.random.default_rng(1).integers(1, 4, 80)
    rows, bounds = drawn_rows(images * 2, 2), np.concatenate([[0], np.cumsum(2 * images)])
    return draw_categorizer(KINDS["cascade, mirrored"], rows, bounds), rows, bounds


def test_predictions_of_a_cascade_need_to_know_which_views_there_are(drawn: Any) -> None:
    categorizer, rows, bounds = drawn
    with pytest.raises(ValueError, match="no `again`; expected that of `deciding`"):
        categorizer.predict(rows, bounds)


def test_each_decision_names_the_views_and_is_that_of_its_rows_alone(drawn: Any) -> None:
    categorizer, rows, bounds = drawn
    ids = np.arange(80).astype(str)
    table = categorizer.decide(ids, categorizer.predict_all(rows, bounds))
    assert table["views"].value_counts().to_dict() == {"whole": 40, "whole,flip": 40}
    plain = replace(categorizer, rules=replace(categorizer.rules, cascade=None))
    for number, (start, stop) in enumerate(itertools.pairwise(bounds.tolist())):
        step = 2 if table["views"][number] == "whole" else 1
        own = rows[start:stop:step]
        alone = plain.decide(ids[:1], plain.predict(own, np.array([0, len(own)]))).iloc[0]
        assert (alone["category"], alone["status"]) == (table["category"][number], table["status"][number])
        assert alone["confidence"] == pytest.approx(table["confidence"][number], abs=2e-6)


def test_with_corrections_the_same_views_decide(drawn: Any) -> None:
    categorizer, rows, bounds = drawn
    rules = SellerRules(
        model="drawn", method="votes", vectors="hidden", votes=Votes(), base_threshold=0.9,
        confidence=AdaptedConfidence("share", 0), certificate=Certificate(0.9, 0.1, 10, 10, reason="drawn"),
        suspicion=Suspicion(EDGES, ((0.0,) * len(RANKS),) * (len(EDGES) + 1), 0, 0), sellers={},
    )  # fmt: skip
    adapter = Adapter(categorizer, rules, VotesMethod(rules.votes))
    chosen, own, again = categorizer.deciding(rows, bounds)
    ids, few = np.arange(80).astype(str), rows[chosen]
    base = categorizer.decide(ids, categorizer.predict(few, own, again))
    vector = adapter.encode(few[: own[1]], own[:2], ["pear"])[0].vector
    state = adapter.state(vector[None], ["beer"], ["pear"], 1, False)
    for states in ([None] * 80, [state] * 80):
        assert adapter.decide(ids, few, own, states, again)["views"].tolist() == base["views"].tolist()


def test_the_cascade_of_thresholds_is_read_as_it_was_written(drawn: Any) -> None:
    rules = drawn[0].rules
    assert type(rules).from_dict(rules.to_dict()) == rules and rules.cascade is not None
    older = {name: value for name, value in rules.to_dict().items() if name != "cascade"}
    assert type(rules).from_dict(older).cascade is None
