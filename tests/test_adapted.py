"""Adapted decisions: the four rules, what a correction is for a head, and the adapter of a bundle."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.errors import ShelfmarkError
from models.decisions.adapted import (
    ADAPTED_COLUMNS,
    SELLERS_FILE,
    STYLES,
    STYLES_FILES,
    AdaptedConfidence,
    Adapter,
    SellerRules,
    SellerState,
    adapted_terms,
    load_adapter,
    product_vectors,
    vector_width,
)
from models.decisions.bundle import open_bundle
from models.decisions.categorizer import ACCEPTED, COLUMNS, PARENT, REVIEW, Categorizer, LevelRule
from models.decisions.suspicion import Suspicion
from models.decisions.thresholds import Certificate
from models.heads.architectures import SET, Head, build_head, set_logits
from models.sellers.interface import Choice, SellerModel
from models.sellers.paper import PaperMethod
from models.sellers.styles import Styles
from models.sellers.votes import Votes, VotesMethod

IMAGES = 12
BOUNDS = np.array([0, 2, 3, 6, 7, 9, 12])  # of six products
IDS = np.array([f"p{number}" for number in range(6)], dtype=object)
EDGES = (0.5,)
TABLE = ((-1.0, -0.5, 0.5, 1.0, 1.5), (2.0, 2.1, 2.2, 2.3, 2.4))  # below and above 0.5 × rank


@pytest.fixture
def bottlenecks() -> np.ndarray:
    return np.random.default_rng(3).normal(0, 3, (IMAGES, 1024)).astype(np.float16)


@pytest.fixture(scope="module")
def categorizer(bundle_path: Path) -> Categorizer:
    return open_bundle(bundle_path).categorizer


def rules_for(categorizer: Categorizer, **fields: object) -> SellerRules:
    rules = SellerRules(
        model=categorizer.predictor.model,
        method="votes",
        vectors="hidden",
        votes=Votes(),
        base_threshold=0.6,
        confidence=AdaptedConfidence("share", 0, "drawn"),
        certificate=Certificate(0.9, 0.1, 1000, 50, threshold=0.8),
        suspicion=Suspicion(EDGES, TABLE, 100, 20),
        sellers={},
    )
    return replace(rules, **fields)


def adapter_of(categorizer: Categorizer, **fields: object) -> Adapter:
    return Adapter(categorizer, rules_for(categorizer, **fields), VotesMethod(Votes()))


def withholding(categorizer: Categorizer, *names: str) -> Categorizer:
    return replace(categorizer, rules=replace(categorizer.rules, withheld=names))


@dataclass(frozen=True)
class Says:
    """A SellerModel that always gives the same choice; `category` None: the base's."""

    category: int | None
    share: float
    corrections: int = 4

    def predict(self, vector: np.ndarray, logits: np.ndarray) -> Choice:
        base = int(np.argmax(logits))
        return Choice(base if self.category is None else self.category, self.share, base, self.corrections)

    def copy(self) -> SellerModel:
        return self

    def learn(self, vector: np.ndarray, base: int, true: int) -> None:
        raise AssertionError("deciding never learns")


def decided(
    categorizer: Categorizer, bottlenecks: np.ndarray, says: Says, flagged: bool = False, **rules: object
) -> tuple[pd.Series, pd.Series]:
    """The decision about the first product as the seller's model says, and the base's."""
    adapter = adapter_of(categorizer, **rules)
    state = SellerState(says, 7, flagged)
    table = adapter.decide(IDS[:1], bottlenecks[:2], BOUNDS[:2], [state])
    base = categorizer.decide(IDS[:1], categorizer.predict(bottlenecks[:2], BOUNDS[:2]))
    return table.iloc[0], base.iloc[0]


def other_than(categorizer: Categorizer, base: pd.Series) -> int:
    """A category that the base does not say."""
    return int(np.flatnonzero(categorizer.predictor.taxonomy.categories != base["category"])[0])


def test_without_states_decisions_are_those_of_the_categorizer_bit_for_bit(
    categorizer: Categorizer, bottlenecks: np.ndarray
) -> None:
    table = adapter_of(categorizer).decide(IDS, bottlenecks, BOUNDS, [None] * 6)
    base = categorizer.decide(IDS, categorizer.predict(bottlenecks, BOUNDS))
    assert tuple(table.columns) == COLUMNS + ADAPTED_COLUMNS
    pd.testing.assert_frame_equal(table[list(COLUMNS)], base, check_exact=True)
    assert table["adapted"].tolist() == [False] * 6
    assert table["base_category"].tolist() == [None] * 6
    assert table["corrections"].tolist() == [0] * 6


def test_a_confident_base_category_that_stays_is_not_adapted(
    categorizer: Categorizer, bottlenecks: np.ndarray
) -> None:
    row, base = decided(categorizer, bottlenecks, Says(None, 0.99), base_threshold=0.0)
    assert row[list(COLUMNS)].to_dict() == base.to_dict()
    assert (row["adapted"], row["base_category"], row["corrections"]) == (False, base["category"], 7)


@pytest.mark.parametrize("stays", [True, False])
def test_a_certified_adapted_category_is_accepted(
    categorizer: Categorizer, bottlenecks: np.ndarray, stays: bool
) -> None:
    _, base = decided(categorizer, bottlenecks, Says(None, 0.5))
    category = None if stays else other_than(categorizer, base)
    row, _ = decided(categorizer, bottlenecks, Says(category, 0.8), base_threshold=1.0)
    taxonomy = categorizer.predictor.taxonomy
    name = base["category"] if stays else taxonomy.categories[category]
    assert (row["status"], row["adapted"], row["base_category"]) == (ACCEPTED, True, base["category"])
    assert row["category"] == row["node"] == name
    assert row["category_path"] == row["node_path"]
    assert row["node_path"].endswith(name)
    assert (row["confidence"], row["node_level"], row["corrections"]) == (0.8, 2, 7)
    assert row["top_categories"] == base["top_categories"], "those stay the head's"


@pytest.mark.parametrize(
    ("share", "flagged", "withheld", "threshold"),
    [
        (0.799999, False, False, 0.8),
        (0.99, True, False, 0.8),
        (0.99, False, True, 0.8),
        (0.99, False, True, 0.0),
        (0.99, False, False, None),
    ],
)
def test_another_category_that_is_not_certified_waits_for_a_person(
    categorizer: Categorizer,
    bottlenecks: np.ndarray,
    share: float,
    flagged: bool,
    withheld: bool,
    threshold: float | None,
) -> None:
    _, base = decided(categorizer, bottlenecks, Says(None, 0.5))
    category = other_than(categorizer, base)
    name = categorizer.predictor.taxonomy.categories[category]
    careful = withholding(categorizer, name) if withheld else categorizer
    row, _ = decided(
        careful, bottlenecks, Says(category, share), flagged,
        base_threshold=0.0, certificate=Certificate(0.9, 0.1, 1000, 50, threshold=threshold),
    )  # fmt: skip
    assert (row["status"], row["adapted"], row["category"]) == (REVIEW, True, name)
    assert row["confidence"] == (0.0 if withheld else share)
    assert [row["node"], row["node_path"]] == [None, None]
    assert row["node_level"] is pd.NA


def test_a_node_above_both_categories_stays_decided(
    categorizer: Categorizer, bottlenecks: np.ndarray
) -> None:
    """The base is sure of level 1 alone: a category of the same branch keeps it, one of another does not."""
    certain = LevelRule(replace(categorizer.rules.confidence), Certificate(0.9, 0.1, 1000, 50, threshold=0.0))
    rules = replace(
        categorizer.rules, certificate=replace(categorizer.rules.certificate, threshold=None),
        levels={"level1": certain},
    )  # fmt: skip
    coarse = replace(categorizer, rules=rules)
    taxonomy = categorizer.predictor.taxonomy
    _, base = decided(coarse, bottlenecks, Says(None, 0.5))
    assert base["status"] == PARENT
    (at,) = np.flatnonzero(taxonomy.categories == base["category"])
    same = taxonomy.nodes[0] == taxonomy.nodes[0][at]
    same[at] = False
    beside, elsewhere = np.flatnonzero(same)[0], np.flatnonzero(taxonomy.nodes[0] != taxonomy.nodes[0][at])[0]
    row, _ = decided(coarse, bottlenecks, Says(int(beside), 0.5))
    node = ["status", "node", "node_path", "node_level"]
    assert row[node].tolist() == base[node].tolist()
    assert (row["category"], row["confidence"], row["adapted"]) == (taxonomy.categories[beside], 0.5, True)
    row, _ = decided(coarse, bottlenecks, Says(int(elsewhere), 0.5))
    assert (row["status"], row["node"], row["adapted"]) == (REVIEW, None, True)


@pytest.mark.parametrize(("share", "flagged"), [(0.5, False), (0.99, True)])
def test_where_the_category_stays_and_nothing_is_certified_the_base_decides(
    categorizer: Categorizer, bottlenecks: np.ndarray, share: float, flagged: bool
) -> None:
    row, base = decided(categorizer, bottlenecks, Says(None, share), flagged, base_threshold=1.0)
    assert row[list(COLUMNS)].to_dict() == base.to_dict()
    assert (row["adapted"], row["base_category"], row["corrections"]) == (False, base["category"], 7)


def test_where_nothing_was_learnt_the_base_decides(categorizer: Categorizer, bottlenecks: np.ndarray) -> None:
    row, base = decided(categorizer, bottlenecks, Says(None, 0.99, corrections=0), base_threshold=1.0)
    assert row[list(COLUMNS)].to_dict() == base.to_dict()
    assert (row["adapted"], row["base_category"], row["corrections"]) == (False, base["category"], 7)


def test_the_base_confidence_of_a_withheld_category_counts_as_nothing(
    categorizer: Categorizer, bottlenecks: np.ndarray
) -> None:
    _, base = decided(categorizer, bottlenecks, Says(None, 0.5))
    careful = withholding(categorizer, base["category"])
    other = other_than(categorizer, base)
    row, _ = decided(careful, bottlenecks, Says(other, 0.9), base_threshold=0.01)
    assert (row["status"], row["adapted"]) == (ACCEPTED, True), (
        "what sellers correct away from it is certified"
    )


def with_flip(categorizer: Categorizer) -> Categorizer:
    head = categorizer.predictor.head
    flipped = Head(replace(head.shape, views=("whole", "flip")), head.weights)
    return replace(categorizer, predictor=replace(categorizer.predictor, head=flipped))


def with_set_head(categorizer: Categorizer) -> Categorizer:
    shape = replace(categorizer.head.shape, kind=SET, images=2, parents=())
    predictor = replace(categorizer.predictor, set_head=Head.of(shape, build_head(shape)))
    return replace(categorizer, predictor=predictor, rules=replace(categorizer.rules, aggregation=SET))


@pytest.mark.parametrize("changed", [lambda same: same, with_flip, with_set_head])
@pytest.mark.parametrize("vectors", ["hidden", "bottlenecks"])
def test_a_decision_does_not_depend_on_the_other_products(
    categorizer: Categorizer,
    bottlenecks: np.ndarray,
    vectors: str,
    changed: Callable[[Categorizer], Categorizer],
) -> None:
    adapter = adapter_of(changed(categorizer), vectors=vectors, base_threshold=1.0)
    encoded = adapter.encode(bottlenecks, BOUNDS, ["apple", "leek", "milk", "oats", "pear", "soap"])
    seller = adapter.state(
        np.stack([one.vector for one in encoded]),
        [one.base for one in encoded],
        ["apple", "leek", "milk", "oats", "pear", "soap"],
        6,
        False,
    )
    sellers = [seller, None, seller, None, seller, seller]
    together = adapter.decide(IDS, bottlenecks, BOUNDS, sellers)
    assert together["adapted"].any()
    for row in range(6):
        own = slice(BOUNDS[row], BOUNDS[row + 1])
        alone = adapter.decide(
            IDS[row : row + 1], bottlenecks[own], BOUNDS[[row, row + 1]] - BOUNDS[row], sellers[row : row + 1]
        )
        pd.testing.assert_frame_equal(
            alone, together.iloc[row : row + 1].reset_index(drop=True), check_exact=True
        )


def test_more_products_than_a_piece_are_decided_alike(
    categorizer: Categorizer, bottlenecks: np.ndarray
) -> None:
    many = np.tile(bottlenecks, (60, 1))
    bounds = np.concatenate([BOUNDS[:-1] + 12 * time for time in range(60)] + [[720]])
    adapter, state = adapter_of(categorizer, base_threshold=1.0), SellerState(Says(2, 0.9), 1, False)
    table = adapter.decide(np.tile(IDS, 60), many, bounds, [state, None] * 180)
    first = adapter.decide(IDS, bottlenecks, BOUNDS, [state, None] * 3)
    expected = pd.concat([first] * 60, ignore_index=True)
    pd.testing.assert_frame_equal(table, expected, check_exact=True)


def test_vectors_are_means_over_all_rows_of_a_product(
    categorizer: Categorizer, bottlenecks: np.ndarray
) -> None:
    hidden = product_vectors(categorizer, "hidden", bottlenecks, BOUNDS)
    own = product_vectors(categorizer, "bottlenecks", bottlenecks, BOUNDS)
    layer = categorizer.head.hidden(bottlenecks)
    for row, (first, stop) in enumerate(pairwise(BOUNDS)):
        expected = layer[first:stop].astype(float).mean(axis=0).astype(np.float16)
        np.testing.assert_array_equal(hidden[row], expected)
        expected = bottlenecks[first:stop].astype(float).mean(axis=0).astype(np.float16)
        np.testing.assert_array_equal(own[row], expected)
    assert hidden.dtype == own.dtype == np.float16
    assert (vector_width(categorizer, "hidden"), vector_width(categorizer, "bottlenecks")) == (8, 1024)
    assert product_vectors(categorizer, "hidden", bottlenecks[:0], BOUNDS[:1]).shape == (0, 8)


def test_a_set_head_gives_the_hidden_layer_of_the_product(
    categorizer: Categorizer, bottlenecks: np.ndarray
) -> None:
    together = with_set_head(categorizer)
    vectors = product_vectors(together, "hidden", bottlenecks, BOUNDS)
    kernel, bias = together.head.model.get_layer("logits").get_weights()
    logits = set_logits(together.head, bottlenecks, BOUNDS)
    np.testing.assert_allclose(vectors.astype(float) @ kernel + bias, logits, atol=0.05)
    assert vector_width(together, "hidden") == vectors.shape[1]


def test_numbers_that_float16_cannot_hold_become_its_largest(categorizer: Categorizer) -> None:
    large = np.full((1, 1024), 1e9)
    assert product_vectors(categorizer, "bottlenecks", large, np.array([0, 1])).max() == 65504


def test_evidence_is_that_of_the_confidence_and_the_rank(
    categorizer: Categorizer, bottlenecks: np.ndarray
) -> None:
    rows, bounds = np.tile(bottlenecks[:2], (8, 1)), 2 * np.arange(9)
    probability = categorizer.probabilities(bottlenecks[:2], np.array([0, 2]))[0]
    order = categorizer.predictor.taxonomy.categories[np.argsort(-probability)].tolist()
    encoded = adapter_of(categorizer).encode(rows, bounds, [*order, "quince", " " + order[1]])
    row = TABLE[int(probability.max() >= 0.5)]
    assert [one.evidence for one in encoded] == [0.0, *row, 0.0, row[0]], "confirmed, ranks 2 to 6, unknown"
    assert {one.base for one in encoded} == {order[0]}
    assert {one.head for one in encoded} == {categorizer.predictor.model}
    certain = rules_for(categorizer, suspicion=Suspicion((0.0,), TABLE, 100, 20))
    of_certain = Adapter(withholding(categorizer, order[0]), certain, VotesMethod(Votes()))
    assert of_certain.encode(rows[:2], bounds[:2], order[1:2])[0].evidence == TABLE[1][0], (
        "a withheld category has its confidence there"
    )


def test_corrections_to_unknown_categories_are_left_out(
    categorizer: Categorizer, bottlenecks: np.ndarray
) -> None:
    adapter = adapter_of(categorizer)
    encoded = adapter.encode(bottlenecks, BOUNDS, ["soap"] * 6)
    vectors, base = np.stack([one.vector for one in encoded]), [one.base for one in encoded]
    known = adapter.state(vectors[1::2], base[1::2], ["soap"] * 3, 6, True)
    mixed = adapter.state(vectors, base, ["quince", "soap"] * 3, 6, True)
    logits = np.log(categorizer.probabilities(bottlenecks, BOUNDS))
    for vector, row in zip(vectors, logits, strict=True):
        assert mixed.model.predict(vector, row) == known.model.predict(vector, row)
    assert (mixed.corrections, mixed.flagged) == (6, True)
    none = adapter.state(vectors[:0], [], [], 3, False)
    assert none.model.predict(vectors[0], logits[0]).corrections == 0


def test_the_logistic_confidence_is_its_formula() -> None:
    model = AdaptedConfidence(
        "logistic", 40, None, 0.3,
        {"logit_share": 1.5, "log_corrections": -0.4}, {"logit_share": 0.2, "log_corrections": 1.0},
        {"logit_share": 2.0, "log_corrections": 0.5}, most_corrections=9,
    )  # fmt: skip
    share, base, stays, corrections = (
        np.array(values) for values in ([0.7, 0.7, 1.0], [0.4, 0.4, 0.0], [True, False, False], [3, 9, 500])
    )
    found = model.confidence(share, base, stays, corrections)
    for at, (one, count) in enumerate(zip([0.7, 0.7, 1 - 1e-6], [3, 9, 9], strict=True)):
        odds = 0.3 + 1.5 * (np.log(one / (1 - one)) - 0.2) / 2 - 0.4 * (np.log(1 + count) - 1) / 0.5
        assert found[at] == round(1 / (1 + np.exp(-odds)), 6)
    terms = adapted_terms(share, base, stays, corrections)
    assert list(terms) == ["logit_share", "logit_base_confidence", "stays", "log_corrections"]
    assert terms["stays"].tolist() == [1.0, 0.0, 0.0]
    assert terms["logit_base_confidence"][0] == pytest.approx(np.log(0.4 / 0.6))


def test_rules_of_another_head_are_refused(categorizer: Categorizer) -> None:
    with pytest.raises(ShelfmarkError, match=r"sellers\.json: rules of another head; .* run calibrate again"):
        adapter_of(categorizer, model="another")


def test_not_one_for_each_product_is_refused(categorizer: Categorizer, bottlenecks: np.ndarray) -> None:
    adapter = adapter_of(categorizer)
    with pytest.raises(ValueError, match="5 sellers of 6 products; expected one each"):
        adapter.decide(IDS, bottlenecks, BOUNDS, [None] * 5)
    with pytest.raises(ValueError, match="1 categories of 6 products; expected one each"):
        adapter.encode(bottlenecks, BOUNDS, ["apple"])


@pytest.fixture
def folder(bundle_path: Path, tmp_path: Path) -> Path:
    """A bundle of the test's own."""
    return shutil.copytree(bundle_path, tmp_path / "bundle")


def test_a_bundle_without_rules_has_no_adapter(folder: Path, categorizer: Categorizer) -> None:
    assert load_adapter(folder, categorizer) is None
    assert open_bundle(folder).adapter is None


def test_an_adapter_reads_what_was_written(folder: Path, categorizer: Categorizer) -> None:
    rules = rules_for(categorizer)
    (folder / SELLERS_FILE).write_text(json.dumps(rules.to_dict()))
    found = load_adapter(folder, categorizer)
    assert found
    assert found.rules == rules
    assert found.method == VotesMethod(Votes())


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"model": "m"}'])
def test_rules_that_cannot_be_read_are_refused(folder: Path, categorizer: Categorizer, text: str) -> None:
    (folder / SELLERS_FILE).write_text(text)
    with pytest.raises(
        ShelfmarkError, match=r"sellers\.json: cannot be read .*; remove bundle/ and run again"
    ):
        load_adapter(folder, categorizer)


def write_paper(folder: Path, categorizer: Categorizer, categories: int = 6, width: int = 8) -> Styles:
    """Rules of the paper's method, with a style for each category."""
    (folder / SELLERS_FILE).write_text(json.dumps(rules_for(categorizer, method="paper").to_dict()))
    styles = Styles(np.ones((categories, width), np.float32), np.arange(categories + 1))
    for name, array in styles.arrays().items():
        np.save(folder / f"{STYLES}{name}.npy", array)
    return styles


def test_the_papers_method_reads_its_styles(folder: Path, categorizer: Categorizer) -> None:
    styles = write_paper(folder, categorizer)
    found = load_adapter(folder, categorizer)
    assert found
    assert isinstance(found.method, PaperMethod)
    np.testing.assert_array_equal(found.method.styles.centroids, styles.centroids)
    assert isinstance(found.method.styles.centroids, np.memmap), (
        "thousands of categories are not read at once"
    )


@pytest.mark.parametrize("broken", ["missing", "empty", "not rising"])
@pytest.mark.parametrize("name", STYLES_FILES)
def test_styles_that_cannot_be_read_are_refused(
    folder: Path, categorizer: Categorizer, name: str, broken: str
) -> None:
    write_paper(folder, categorizer)
    file = folder / f"{STYLES}{name}"
    if broken == "missing":
        file.unlink()
    elif broken == "empty":
        file.write_bytes(b"")
    else:
        np.save(file, np.array([0, 3, 1, 6]))
    with pytest.raises(
        ShelfmarkError, match=r"styles cannot be read .*; expected styles\.centroids\.npy and "
    ):
        load_adapter(folder, categorizer)


@pytest.mark.parametrize(("categories", "width"), [(5, 8), (6, 1024)])
def test_styles_of_another_head_are_refused(
    folder: Path, categorizer: Categorizer, categories: int, width: int
) -> None:
    write_paper(folder, categorizer, categories, width)
    with pytest.raises(
        ShelfmarkError, match=f"styles of {categories} categories and {width} numbers; expected 6"
    ):
        load_adapter(folder, categorizer)
