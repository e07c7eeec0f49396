"""Evaluate by seller: what each seller's own corrections would have brought, on products that measure.

    by_seller/  by_seller.json  gains.parquet  sellers.parquet  manifest.json

    by_seller.json   SellersFigures of figures.py
    gains            corrections (null: all), sellers that made as many, tests, base, adapted: precision;
                     gain, lower, upper: in shares, with its interval
    sellers          seller, products, tests, and predictions among the tests: base, oracle, correct_0,
                     correct_5, …, correct_all; base_accepted, base_accepted_correct, accepted,
                     accepted_correct, adapted, adapted_correct, changed; flagged: resamples; gain

As Čugurović, Nikolić and Novaković evaluate writers ("Learn the way we write"): a seller's products are
divided 90/10 by category, ten times; nine tenths are corrected in a random order, each with its true
category, and the tenth is judged after 0, 5, 15, 50 and all corrections. The oracle is correct where the base
category or the adapted one is. Intervals are of sellers drawn anew (bootstrap): products of one seller are
alike.

The sellers are those without products in training, where there are ten or more; else all, and by_seller.json
says so. At most SELLERS of them, and PRODUCTS of each, are taken, by a fixed hash of their names and ids; of
a seller's products that share a photo, one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import ShelfmarkError
from features.product import order_key
from features.storage.artifact import Artifact
from features.storage.paths import write_whole
from models.decisions.adapted import Adapter, SellerState, load_adapter
from models.decisions.bundle import THRESHOLDS, load_predictor, read_rules
from models.decisions.categorizer import ACCEPTED, Categorizer
from models.decisions.predictions import product_bounds
from models.decisions.suspicion import LIMIT, add_evidence
from models.decisions.validation_split import duplicate_groups
from models.sellers.resamples import stratified_split
from pipeline.beam.run_units import write_table
from pipeline.job.catalogue import Part, TrueCategories, measured_part
from pipeline.job.progress import log
from pipeline.job.run import Run
from pipeline.job.stage import stage
from pipeline.job.summaries import BottlenecksSummary, BySellerSummary, RecordsSummary
from pipeline.train.evaluated import deciding
from pipeline.train.figures import Accepted, Reason, SellersFigures

VERSION = 1
AFTER = (0, 5, 15, 50)  # corrections, then all
RESAMPLES = 10
SELLERS, PRODUCTS = 100, 200  # at most: 80,000 decisions, five minutes with 5,000 categories on one core
LEAST_PRODUCTS = 10  # of a seller: nine are corrected, one is judged
LEAST_SELLERS = 2  # for an interval
LEAST_APART = 10  # sellers without products in training; with fewer of them all sellers are taken
DRAWS = 2_000  # of sellers, for the intervals
CERTAINTY = 0.95  # of the intervals

CORRECT = (*(f"correct_{after}" for after in AFTER), "correct_all")
COUNTS = (
    *("base", "oracle", *CORRECT),
    *("base_accepted", "base_accepted_correct", "accepted", "accepted_correct", "adapted", "adapted_correct"),
    *("changed", "flagged"),
)
COLUMNS = ("seller", "products", "tests", *COUNTS, "gain")


def by_seller(run: Run) -> Artifact:
    """Measures what corrections bring to sellers of the run's measured products.

    Raises:
        ShelfmarkError: an earlier stage has not run, or sellers.method is none.
    """
    if run.config.sellers.method == "none":
        raise ShelfmarkError(
            "sellers.method is none, so that corrections change no decision; expected votes or paper; "
            "run `shelfmark calibrate --set sellers.method=votes` first"
        )
    records = run.records()
    bottlenecks = run.bottlenecks(records)
    head = run.head(records, bottlenecks)
    thresholds = run.thresholds(head)
    rules, with_styles = run.sellers(), run.styles()
    assert rules is not None
    settings = run.config.calibration

    def make(work: Path) -> Mapping[str, object]:
        part = measured_part(records, bottlenecks, run.store, settings.fit_share)
        categorizer = Categorizer(load_predictor(head.folder()), read_rules(thresholds.file(THRESHOLDS)))
        adapter = load_adapter(rules.folder(), categorizer, with_styles.folder() if with_styles else None)
        assert adapter is not None
        figures = write_by_seller(adapter, part, records, work)
        return summary_of(figures).to_dict()

    made_from = {
        "records": records.digest,
        "fingerprint": BottlenecksSummary.of(bottlenecks).fingerprint,
        "head": head.digest,
        "thresholds": thresholds.digest,
        "sellers": rules.digest,
        "fit_share": settings.fit_share,
    }
    return stage(run.path / "by_seller", kind="by_seller", version=VERSION, made_from=made_from, make=make)


def summary_of(figures: SellersFigures) -> BySellerSummary:
    """The figures in short, for the manifest."""
    shown = ("sellers", "products", "base", "adapted", "oracle", "better", "same", "worse", "reason")
    return BySellerSummary.model_validate({name: getattr(figures, name) for name in shown})


def lines_of(artifact: Artifact) -> list[str]:
    """Returns what the command prints."""
    figures = SellersFigures.model_validate_json(artifact.file("by_seller.json").read_bytes())
    if figures.reason == "no sellers":
        return ["nothing measured: none of the measured products has a seller"]
    if figures.reason:
        return [
            f"nothing measured: {figures.enough:,} of {figures.sellers_there:,} sellers have "
            f"{LEAST_PRODUCTS} measured products with different photos; expected {LEAST_SELLERS} or more"
        ]
    gains = pd.read_parquet(artifact.file("gains.parquet"))
    about = "none had products in training" if figures.apart else "their other products were in training"
    return [
        f"{figures.sellers:,} sellers, {figures.products:,} products of {figures.measured_on}; {about}",
        f"correct: base {figures.base:.2%}, adapted {figures.adapted:.2%}, either {figures.oracle:.2%}",
        f"sellers better {figures.better:,}, same {figures.same:,}, worse {figures.worse:,}",
        *(
            f"after {'all' if pd.isna(one['corrections']) else int(one['corrections'])} corrections: "
            f"{100 * one['gain']:+.2f} points ({100 * one['lower']:+.2f} to {100 * one['upper']:+.2f})"
            for one in gains.to_dict("records")
        ),
        str(artifact.path / "sellers.parquet"),
    ]


# Which sellers


@dataclass(frozen=True)
class Chosen:
    """The sellers that are evaluated, and how many there are."""

    products: Mapping[str, np.ndarray]  # seller → rows of its products among the measured ones
    there: int
    enough: int
    apart_enough: int
    apart: bool

    @property
    def reason(self) -> Reason | None:
        """Why nothing is measured."""
        if not self.there:
            return "no sellers"
        return None if self.products else "few products"


def choose_sellers(
    seller: np.ndarray, product_id: np.ndarray, group: np.ndarray, trained: set[str]
) -> Chosen:
    """Chooses the sellers, and the products of each.

    Args:
        seller: (n,) object, of each measured product; None without one.
        product_id: (n,) str.
        group: (n,) str, the duplicate group of each product.
        trained: sellers with products in training.
    """
    table = pd.DataFrame({"seller": seller, "group": group, "row": np.arange(len(seller))})
    table = table[table["seller"].notna()]
    there = table["seller"].nunique()
    table["key"] = [order_key(str(name)) for name in product_id[table["row"]]]
    table = table.sort_values(["seller", "key", "row"]).drop_duplicates(["seller", "group"])
    sizes = table.groupby("seller").size()
    enough = sizes.index[sizes >= LEAST_PRODUCTS].tolist()
    apart = [name for name in enough if name not in trained]
    some = apart if len(apart) >= LEAST_APART else enough
    some = sorted(some, key=lambda name: (order_key(name), name))[:SELLERS]
    if len(some) < LEAST_SELLERS:
        some = []
    rows = table[table["seller"].isin(some)].groupby("seller")["row"]
    return Chosen(
        {str(name): np.sort(those.to_numpy()[:PRODUCTS]) for name, those in rows},
        there, len(enough), len(apart), len(apart) >= LEAST_APART,
    )  # fmt: skip


def sellers_of(records: Artifact, product_id: np.ndarray) -> tuple[np.ndarray, set[str]]:
    """Returns (n,) object, the seller of each product or None, and the sellers with products in training.

    Args:
        records: of ingest.
        product_id: (n,) str.
    """
    columns = ["product_id", "seller", "split"]
    products = pq.read_table(records.file("products.parquet"), columns=columns)
    products = products.filter(products["seller"].is_valid())
    trained = products.filter(pa.compute.equal(products["split"], "train"))["seller"].unique().to_pylist()
    position = pa.compute.index_in(pa.array(product_id, pa.string()), products["product_id"].combine_chunks())
    return np.array(products["seller"].take(position).to_pylist(), dtype=object), set(trained)


# One seller


@dataclass(frozen=True)
class MeasuredSeller:
    """The products of one seller."""

    seller: str
    product_id: np.ndarray  # (n,) str
    bottlenecks: np.ndarray  # (rows, d) float16, products together; those that decide
    bounds: np.ndarray  # (n + 1,)
    true: np.ndarray  # (n,) str, categories
    again: np.ndarray  # (n,) bool, as `Categorizer.looks_again`

    def taken(self, products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bottlenecks and bounds of products by their positions, which may repeat."""
        images = np.diff(self.bounds)[products]
        rows = [np.arange(self.bounds[at], self.bounds[at + 1]) for at in products.tolist()]
        return self.bottlenecks[np.concatenate(rows)], np.concatenate([[0], np.cumsum(images)])


def adapt_seller(adapter: Adapter, one: MeasuredSeller) -> dict[str, object]:
    """Returns a row of sellers.parquet: what the seller's corrections bring to the products that judge.

    Args:
        adapter: decides with and without corrections.
        one: the seller, with at least two products.
    """
    count = len(one.product_id)
    base = adapter.decide(one.product_id, one.bottlenecks, one.bounds, [None] * count, one.again)
    streams = _streams(adapter, one)
    tests = np.concatenate([judged for _, judged, _ in streams])
    row = dict.fromkeys(COUNTS, 0)
    row["flagged"] = sum(flagged for _, _, flagged in streams)
    base_correct = base["category"].to_numpy() == one.true
    base_accepted = (base["status"] == ACCEPTED).to_numpy()
    row["base"] = row["correct_0"] = int(base_correct[tests].sum())
    row["base_accepted"] = int(base_accepted[tests].sum())
    row["base_accepted_correct"] = int((base_accepted & base_correct)[tests].sum())
    # One call for all states: a product's decision does not depend on the others
    blocks = [(at, state, judged) for states, judged, _ in streams for at, state in states if len(judged)]
    named: dict[str, object] = {"seller": one.seller, "products": count, "tests": len(tests)}
    if not blocks:
        return named | row | {"gain": None}
    rows = np.concatenate([judged for _, _, judged in blocks])
    states = [state for _, state, judged in blocks for _ in judged]
    decided = adapter.decide(one.product_id[rows], *one.taken(rows), states, one.again[rows])
    correct = decided["category"].to_numpy() == one.true[rows]
    accepted = (decided["status"] == ACCEPTED).to_numpy()
    adapted = accepted & decided["adapted"].to_numpy(bool)
    start = 0
    for places, _, judged in blocks:
        here = slice(start, start + len(judged))
        start += len(judged)
        for place in places:
            row[CORRECT[place]] += int(correct[here].sum())
        if len(AFTER) in places:  # all corrections
            row["oracle"] += int((correct[here] | base_correct[judged]).sum())
            row["changed"] += int((decided["category"][here].to_numpy() != base["category"][judged]).sum())
            for name, some in (("accepted", accepted), ("adapted", adapted)):
                row[name] += int(some[here].sum())
                row[f"{name}_correct"] += int((some & correct)[here].sum())
    return named | row | {"gain": (row[CORRECT[-1]] - row["base"]) / len(tests)}


def _streams(
    adapter: Adapter, one: MeasuredSeller
) -> list[tuple[list[tuple[list[int], SellerState | None]], np.ndarray, bool]]:
    """Of each resample: states with the places in CORRECT that they are for; judged products; flagged."""
    encoded = adapter.encode(one.bottlenecks, one.bounds, one.true.tolist())
    vectors = np.stack([each.vector for each in encoded])
    base, evidence = np.array([each.base for each in encoded], object), [each.evidence for each in encoded]
    rng = np.random.default_rng(order_key(one.seller))
    streams = []
    for _ in range(RESAMPLES):
        corrected, judged = stratified_split(one.true, rng)
        flagged = np.maximum.accumulate([False, *_flags([evidence[at] for at in corrected])])
        places: dict[int, list[int]] = {}  # corrections → places; fewer than a place says: all there are
        for place, after in enumerate([*AFTER[1:], len(corrected)], start=1):
            places.setdefault(min(after, len(corrected)), []).append(place)
        states: list[tuple[list[int], SellerState | None]] = []
        for length, own in places.items():
            some = corrected[:length]
            state = adapter.state(
                vectors[some], base[some].tolist(), one.true[some].tolist(), length, bool(flagged[length])
            )
            states.append((own, state if length else None))
        streams.append((states, judged, bool(flagged[-1])))
    return streams


def _flags(evidence: Sequence[float]) -> list[bool]:
    """Whether the sum of evidence reaches the limit at each correction."""
    total, flags = 0.0, []
    for one in evidence:
        total = add_evidence(total, one)
        flags.append(total >= LIMIT)
    return flags


# All sellers


def write_by_seller(adapter: Adapter, part: Part, records: Artifact, work: Path) -> SellersFigures:
    """Measures, and writes the files of the artifact into `work`.

    Args:
        adapter: of the run.
        part: the measured images.
        records: of ingest, with the products' sellers and categories.
        work: directory.
    """
    part, again = deciding(adapter.categorizer, part)
    bounds = product_bounds(part.product_id)
    product_id = part.product_id[bounds[:-1]]
    seller, trained = sellers_of(records, product_id)
    some = np.repeat(seller != None, np.diff(bounds))  # noqa: E711 - element by element
    group = np.full(len(product_id), None, dtype=object)
    if some.any():
        groups = duplicate_groups(part.product_id[some], part.image_digest[some])
        group[seller != None] = groups[product_bounds(part.product_id[some])[:-1]]  # noqa: E711
    chosen = choose_sellers(seller, product_id, group, trained)
    true = TrueCategories.of(records).category
    rows = []
    for number, (name, products) in enumerate(chosen.products.items(), start=1):
        images = np.concatenate([np.arange(bounds[at], bounds[at + 1]) for at in products.tolist()])
        own = MeasuredSeller(
            name,
            product_id[products],
            np.asarray(part.rows[images]),
            np.concatenate([[0], np.cumsum(np.diff(bounds)[products])]),
            true.reindex(product_id[products]).to_numpy(dtype=object),
            again[products],
        )
        rows.append(adapt_seller(adapter, own))
        if number % 20 == 0:
            log.info("by seller: %s of %s sellers", f"{number:,}", f"{len(chosen.products):,}")
    table = pd.DataFrame(rows, columns=[*COLUMNS]).astype(dict.fromkeys(COLUMNS[1:-1], "int64"))
    table = table[table["tests"] > 0].reset_index(drop=True)
    gains = gains_of(table)
    figures = figures_of(table, gains, chosen, adapter, RecordsSummary.of(records).records["test"] > 0)
    write_table(pa.Table.from_pandas(table, preserve_index=False), work / "sellers.parquet")
    write_table(pa.Table.from_pandas(gains, preserve_index=False), work / "gains.parquet")
    write_whole(work / "by_seller.json", figures.model_dump_json(indent=1).encode())
    return figures


def gains_of(table: pd.DataFrame) -> pd.DataFrame:
    """Returns gains.parquet of the rows of sellers.parquet."""
    rows = []
    for after, name in zip([*AFTER, None], CORRECT, strict=True):
        gain, lower, upper = interval((table[name] - table["base"]).to_numpy(), table["tests"].to_numpy())
        tests = int(table["tests"].sum())
        rows.append(
            {
                "corrections": after,
                "sellers": len(table) if after is None else int((0.9 * table["products"] >= after).sum()),
                "tests": tests,
                "base": table["base"].sum() / tests if tests else None,
                "adapted": table[name].sum() / tests if tests else None,
                "gain": gain, "lower": lower, "upper": upper,
            }
        )  # fmt: skip
    return pd.DataFrame(rows).astype({"corrections": "Int32"})


def interval(
    part: np.ndarray, whole: np.ndarray, draws: int = DRAWS, certainty: float = CERTAINTY
) -> tuple[float | None, float | None, float | None]:
    """Returns sum(part) / sum(whole) over sellers, and its bootstrap interval; None where the sum is 0.

    Args:
        part: (s,) float, of each seller.
        whole: (s,) float, at least 0.
        draws: of s sellers each, from a fixed seed; those whose whole is 0 are left out.
        certainty: of the interval, which has as much outside on either side.
    """
    if not whole.sum():
        return None, None, None
    drawn = np.random.default_rng(0).multinomial(len(whole), np.full(len(whole), 1 / len(whole)), draws)
    parts, wholes = drawn @ part, drawn @ whole
    shares = parts[wholes > 0] / wholes[wholes > 0]
    lower, upper = np.quantile(shares, [(1 - certainty) / 2, (1 + certainty) / 2])
    return float(part.sum() / whole.sum()), float(lower), float(upper)


def figures_of(
    table: pd.DataFrame, gains: pd.DataFrame, chosen: Chosen, adapter: Adapter, tested: bool
) -> SellersFigures:
    """Returns by_seller.json.

    Args:
        table: rows of sellers.parquet.
        gains: of these.
        chosen: sellers.
        adapter: of the run.
        tested: measured on test.
    """
    certificate, tests = adapter.rules.certificate, table["tests"]
    figures = SellersFigures(
        measured_on="test" if tested else "cert",
        method=adapter.rules.method,
        reason=chosen.reason,
        sellers_there=chosen.there,
        enough=chosen.enough,
        apart_enough=chosen.apart_enough,
        apart=chosen.apart,
        sellers=len(table),
        products=int(table["products"].sum()),
        resamples=RESAMPLES,
        tests=int(tests.sum()),
        target=certificate.target,
        certified=certificate.threshold is not None,
    )
    if not len(table):
        return figures
    last = gains.iloc[-1]
    return figures.model_copy(
        update={
            "base": float(last["base"]),
            "adapted": float(last["adapted"]),
            "oracle": float(table["oracle"].sum() / tests.sum()),
            "gain": float(last["gain"]),
            "gain_lower": float(last["lower"]),
            "gain_upper": float(last["upper"]),
            "better": int((table["gain"] > 0).sum()),
            "same": int((table["gain"] == 0).sum()),
            "worse": int((table["gain"] < 0).sum()),
            "flagged": int((table["flagged"] > 0).sum()),
            **{
                key: _accepted(table[column], table[f"{column}_correct"], tests)
                for key, column in zip(
                    ("accepted_base", "accepted", "accepted_adapted"),
                    ("base_accepted", "accepted", "adapted"),
                    strict=True,
                )
            },
        }
    )  # fmt: skip


def _accepted(accepted: pd.Series, correct: pd.Series, tests: pd.Series) -> Accepted:
    precision, lower, upper = interval(correct.to_numpy(), accepted.to_numpy())
    return Accepted(rate=float(accepted.sum() / tests.sum()), precision=precision, lower=lower, upper=upper)
