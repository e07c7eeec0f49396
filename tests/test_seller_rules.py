"""Rules of adapted decisions: fitted on sellers apart from those that certify; the promise holds."""

import json
from dataclasses import replace

import numpy as np
import pytest
from drawn_sellers import TARGET, Drawn, Repetition, repetition

from features.product import order_key
from models.decisions import seller_rules
from models.decisions.adapted import AdaptedConfidence, SellerRules
from models.decisions.seller_rules import (
    FittedSellers,
    Replayed,
    SellerProducts,
    choose_base_threshold,
    fit_adapted_confidence,
    fit_sellers,
    own_pictures,
    replay,
)
from models.decisions.suspicion import Suspicion
from models.decisions.thresholds import Certificate, Outcomes
from models.decisions.validation_split import in_fit
from models.sellers.paper import PaperMethod
from models.sellers.styles import Styles
from models.sellers.votes import Votes, VotesMethod

DRAWN = Drawn.of(50, width=6)
VOTES = VotesMethod(Votes())


def drawn_sellers(count: int, seed: int = 0) -> dict[str, SellerProducts]:
    rng = np.random.default_rng(seed)
    return {f"s{n}": DRAWN.seller(f"s{n}", rng, int(rng.integers(2, 40))) for n in range(count)}


def fitted_on(sellers: dict[str, SellerProducts], **numbers: object) -> FittedSellers:
    settings = {"votes": False, "target": TARGET, "delta": 0.1, "grid": 1000, "fit_share": 0.25} | numbers
    return fit_sellers(list(sellers), sellers.__getitem__, VotesMethod, 0.8, **settings)


def allowed(runs: int) -> float:
    """Share of broken promises that delta = 0.1 allows among so many runs."""
    return 0.1 + 3 * (0.1 * 0.9 / runs) ** 0.5


def shares(runs: list[Repetition]) -> dict[str, float]:
    """What is written down in docs/experiments/sellers.md."""
    return {
        "broken": float(np.mean([one.broken for one in runs])),
        "pooled": float(np.mean([one.pooled < TARGET for one in runs])),
        "certified": float(np.mean([one.fitted.certificate.threshold is not None for one in runs])),
        "base": float(np.mean([one.base_acceptance for one in runs])),
        "acceptance": float(np.mean([one.acceptance for one in runs])),
    }


def test_the_promise_of_adapted_decisions_is_kept() -> None:
    found = shares([repetition(DRAWN, seed, 250, fresh=60, votes=False) for seed in range(10)])
    assert found["broken"] <= allowed(10)
    assert found["certified"] >= 0.5, "and it is worth something"
    assert found["acceptance"] > found["base"]


@pytest.mark.statistics
@pytest.mark.timeout(7200)
def test_the_promise_is_kept_in_300_repetitions_with_poisoned_sellers() -> None:
    found = shares([repetition(DRAWN, seed, 150, poisoned=0.03) for seed in range(300)])
    print(found)
    assert found["broken"] <= allowed(300)
    assert found["pooled"] <= allowed(300)
    assert found["acceptance"] > found["base"] + 0.05


def test_all_decisions_of_a_seller_counted_one_by_one_would_break_the_promise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        seller_rules,
        "_outcomes",
        lambda some, confidence: Outcomes(some.product_id, some.product_id, confidence, some.correct),
    )
    found = shares([repetition(DRAWN, seed, 60, fresh=100, votes=False) for seed in range(16)])
    assert found["broken"] > 0.15


def test_sellers_of_cert_choose_nothing() -> None:
    sellers = drawn_sellers(60)
    names = sorted(sellers)
    fit = in_fit(np.array(names, dtype=object), 0.25)
    cert_names = [name for name, here in zip(names, fit, strict=True) if not here]
    before = fitted_on(sellers, votes=True)
    rng = np.random.default_rng(9)
    others = {name: DRAWN.poisoned(sellers[name], "random", rng) for name in cert_names}
    after = fitted_on(sellers | others, votes=True)
    assert (after.votes, after.confidence) == (before.votes, before.confidence)
    assert after.certificate.grid == before.certificate.grid
    assert after.certificate.errors >= before.certificate.errors
    assert before.counts["cert_sellers"] == len(cert_names)
    assert before.certificate.products <= len(cert_names)


def test_products_of_fit_do_not_certify() -> None:
    sellers = drawn_sellers(40)
    all_fit = {name: replace(one, fit=np.ones(len(one.fit), bool)) for name, one in sellers.items()}
    found = fitted_on(all_fit)
    assert (found.certificate.products, found.counts["cert_products"]) == (0, 0)
    assert found.counts["fit_products"] > 0, "they fit, and they are in the history"


def test_pictures_of_another_seller_do_not_count() -> None:
    sellers = drawn_sellers(40)
    foreign = {name: replace(one, own=np.zeros(len(one.own), bool)) for name, one in sellers.items()}
    found = fitted_on(foreign)
    assert (found.counts["fit_products"], found.counts["cert_products"]) == (0, 0)


def test_the_order_of_the_sellers_changes_nothing() -> None:
    sellers = drawn_sellers(40)
    assert fitted_on(dict(reversed(sellers.items())), votes=True) == fitted_on(sellers, votes=True)


def test_without_sellers_nothing_is_certified() -> None:
    found = fitted_on({}, votes=True)
    assert found.votes == Votes()
    assert found.certificate.threshold is None
    assert found.confidence.kind == "share"
    assert found.counts == {"fit_sellers": 0, "cert_sellers": 0, "fit_products": 0, "cert_products": 0}


def test_votes_of_few_sellers_are_the_defaults_and_more_are_fitted_in_bounded_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = drawn_sellers(12)
    assert fitted_on(few, votes=True).votes == Votes()
    many = drawn_sellers(80)
    whole = fitted_on(many, votes=True).votes
    assert whole != Votes()
    names = sorted(many)
    fit = [
        name for name, here in zip(names, in_fit(np.array(names, dtype=object), 0.25), strict=True) if here
    ]
    first = sorted(fit, key=order_key)[:10]
    numbers = sum(len(many[name].true) for name in first) * 50
    monkeypatch.setattr(seller_rules, "MOST_NUMBERS", numbers)
    bounded = fitted_on(many, votes=True).votes
    assert bounded not in (whole, Votes())
    monkeypatch.setattr(seller_rules, "MOST_NUMBERS", numbers - 1)
    assert fitted_on(many, votes=True).votes == Votes(), "nine sellers are too few"


def test_the_base_threshold_is_the_lowest_with_the_target() -> None:
    rng = np.random.default_rng(6)
    for _ in range(50):
        confidence = rng.integers(0, 10, 30) / 10
        correct = rng.random(30) < confidence
        able = [t for t in np.unique(confidence) if correct[confidence >= t].mean() >= 0.8]
        assert choose_base_threshold(confidence, correct, 0.8) == min(able, default=1.0)
    assert choose_base_threshold(np.empty(0), np.empty(0, bool), 0.8) == 1.0


def test_a_picture_of_several_sellers_counts_for_the_first_by_hash() -> None:
    product_id = np.array(["p1", "p2", "p3", "p4", "p5"])
    seller, group = np.array(list("ababc")), np.array(list("ggghi"))
    first = min(["p1", "p2", "p3"], key=order_key)
    expected = [seller[i] == seller[product_id.tolist().index(first)] or i > 2 for i in range(5)]
    assert own_pictures(group, seller, product_id).tolist() == expected


def one_seller() -> SellerProducts:
    """Two categories, A at 0° and B at 90°; the base takes all for A, less and less sure."""
    return SellerProducts(
        seller="s",
        product_id=np.array(["p0", "p1", "p2", "p3", "p4"], dtype=object),
        own=np.ones(5, bool),
        fit=np.zeros(5, bool),
        vectors=np.array([[1, 0], [0, 1], [0, 1], [0, 1], [1, 0]], np.float16),
        log_probability=np.log([[0.95, 0.05], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4], [0.9, 0.1]]),
        base=np.zeros(5, np.int64),
        base_confidence=np.array([0.95, 0.9, 0.6, 0.6, 0.9]),
        true=np.array([0, 1, 1, -1, 0]),
    )


def test_a_stream_is_replayed_as_people_see_it() -> None:
    found = replay(one_seller(), VOTES, 0.7)
    assert found.corrections.tolist() == [0, 0, 1, 2, 2], "sure and correct, or unknown: nothing is learnt"
    assert found.category.tolist() == [0, 0, 1, 1, 0]
    assert found.stays.tolist() == [True, True, False, False, True]
    assert found.correct.tolist() == [True, False, True, False, True]
    assert found.base_correct.tolist() == [True, False, False, False, True]
    assert found.adaptable.tolist() == [False, False, True, True, False]
    assert found.seller.tolist() == ["s"] * 5
    assert replay(one_seller(), VOTES, 0.99).corrections.tolist() == [0, 1, 2, 3, 3]


def test_the_papers_method_is_replayed_too() -> None:
    method = PaperMethod(Styles(np.array([[1, 0], [0, 1]], np.float32), np.array([0, 1, 2])))
    found = replay(one_seller(), method, 0.7)
    assert found.corrections.tolist() == [0, 0, 1, 2, 2]
    assert ((found.share > 0) & (found.share < 1)).all()


def drawn_replayed(count: int, seed: int = 1) -> Replayed:
    """Decisions whose category is correct with the probability share²."""
    rng = np.random.default_rng(seed)
    share = rng.random(count)
    seller = np.array([f"s{number}" for number in rng.integers(0, 30, count)], dtype=object)
    flags, numbers = np.ones(count, bool), rng.integers(1, 9, count)
    correct = rng.random(count) < share**2
    ids = np.array([f"p{number}" for number in range(count)], dtype=object)
    return Replayed(
        seller=seller, product_id=ids, own=flags, fit=flags, category=numbers, share=share,
        base_confidence=rng.random(count), stays=rng.random(count) < 0.5, corrections=numbers,
        correct=correct, base_correct=flags, adaptable=flags,
    )  # fmt: skip


def test_the_adapted_confidence_is_calibrated() -> None:
    model, confidence = fit_adapted_confidence(drawn_replayed(3000))
    assert (model.kind, model.products, model.most_corrections) == ("logistic", 3000, 8)
    fresh = drawn_replayed(3000, seed=2)
    found = model.confidence(fresh.share, fresh.base_confidence, fresh.stays, fresh.corrections)
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        here = (found >= low) & (found < low + 0.2)
        assert abs(found[here].mean() - fresh.correct[here].mean()) < 0.08
    assert confidence.shape == (3000,)
    assert not np.array_equal(confidence, model.confidence(*terms_of(drawn_replayed(3000)))), "out of fold"


def terms_of(some: Replayed) -> tuple[np.ndarray, ...]:
    return some.share, some.base_confidence, some.stays, some.corrections


@pytest.mark.parametrize(("count", "correct"), [(29, 15), (60, 4), (60, 56)])
def test_with_little_evidence_the_share_is_the_confidence(count: int, correct: int) -> None:
    some = replace(drawn_replayed(count), correct=np.arange(count) < correct)
    model, confidence = fit_adapted_confidence(some)
    assert model.kind == "share"
    assert model.reason == (
        f"{count} adaptable products of FIT sellers, {correct} correct; expected 30, 5 correct, 5 wrong"
    )
    np.testing.assert_array_equal(confidence, some.share.round(6))


def test_rules_are_read_as_they_were_written() -> None:
    rules = SellerRules(
        model="m",
        method="votes",
        vectors="hidden",
        votes=Votes(1.5, 0.7, 12.0, 30.0),
        base_threshold=0.75,
        confidence=fit_adapted_confidence(drawn_replayed(200))[0],
        certificate=Certificate(0.9, 0.1, 1000, 50, threshold=0.8, accepted=40, errors=1),
        suspicion=Suspicion((0.5,), ((0.5,) * 5, (1.5,) * 5), 100, 20),
        sellers={"fit_sellers": 10, "cert_sellers": 30},
    )
    read = SellerRules.from_dict(json.loads(json.dumps(rules.to_dict())))
    assert read == rules
    assert isinstance(read.confidence, AdaptedConfidence)
    with pytest.raises(ValueError, match="base_threshold"):
        SellerRules.from_dict(
            {key: value for key, value in rules.to_dict().items() if key != "base_threshold"}
        )
