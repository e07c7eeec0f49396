"""Calibration at size: certificates, curves and tables of 2 M products in 8,000 categories of three levels.

    .venv/bin/python benchmarks/calibrate.py [--products 2000000] [--images 6000]
        [--measure certify peer tables whole]

Draws predictions, seeded, and stores them: confidences of three levels, each calibrated, the categories
predicted, the true ones, ids and groups. Each part then runs in a process of its own, on two cores:

    certify   from the stored predictions: certificates of all levels, the ladder of targets, departments,
              restriction to the best categories, curves of all levels with their bounds, cumulative curves,
              estimates of all categories
    peer      MAPIE's BinaryClassificationController beside our `certify` of the categories alone, on the same
              products, for one target; MAPIE tries the 100 thresholds that it has by default, ours 1,000,
              with which MAPIE takes more than 17 GB
    tables    every table of an evaluation of these products
    whole     calibrate and evaluate with their predictions, from a store of drawn bottlenecks
              (2048-1024-1024-8000), beside NumPy's matrix products of the same images alone

Aims are held against seconds of the processor: but for matrix products one thread computes, and on a computer
that does nothing else the seconds on the wall are the same. Writes benchmarks/results/calibrate.json.
"""

import argparse
import itertools
import json
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measure import MB, conditions, run, table, verdict

RESULTS = Path(__file__).parent / "results" / "calibrate.json"
CATEGORIES, IN_PARENT, IN_DEPARTMENT = 8000, 16, 160  # 500 parents, 50 departments
LADDER = (0.80, 0.85, 0.90, 0.93, 0.95, 0.97, 0.99)
FIT_SHARE = 1 / 3
SIZES = (2048, 1024, 1024, CATEGORIES)
PARTS = ("certify", "peer", "tables", "whole")


def main() -> None:
    """Draws the predictions, measures every part, prints tables and verdicts, writes the results."""
    options = _options()
    if options.part:
        subject = {"certify": certified, "mapie": mapie, "leaf": leaf, "tables": tables, "whole": whole}
        print(json.dumps(subject[options.part](options)))
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    results["conditions"] = conditions("numpy", "scipy", "mapie", "pyarrow", "keras")
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        options.folder = Path(folder)
        if set(options.measure) - {"whole"}:
            draw_predictions(options.products, options.folder / "predictions")
        for part in options.measure:
            results[part] = {
                "certify": measured_certify, "peer": measured_peer, "tables": measured_tables,
                "whole": measured_whole,
            }[part](options)  # fmt: skip
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--products", type=int, default=2_000_000)
    parser.add_argument("--images", type=int, default=6_000, help="of each of train, val and test")
    parser.add_argument("--measure", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--scratch", type=Path, help="a directory with room for 1 GB")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _measured(part: str, options: argparse.Namespace) -> tuple[dict[str, Any], float]:
    """What a part prints, and its peak memory in MB."""
    command = [sys.executable, __file__, "--part", part, "--folder", str(options.folder)]
    done = run([*command, "--products", str(options.products), "--images", str(options.images)])
    return json.loads(done.output.splitlines()[-1]), round(done.peak / MB, 1)


def measured_certify(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every step, and the peak memory."""
    found, peak = _measured("certify", options)
    print(
        table(
            ["step", "seconds", "CPU s", "peak MB so far"],
            [(name, *step.values()) for name, step in found.items()],
        )
    )
    verdicts = [
        verdict("certificates, ladder, curves and bounds", _cpu_seconds(found), 5, " s"),
        verdict("their peak memory", peak, 1000, " MB"),
    ]
    return {"steps": found, "products": options.products, "peak_mb": peak, "verdicts": verdicts}


def _cpu_seconds(steps: dict[str, dict[str, float]]) -> float:
    """Of the steps but the first, which reads the stored predictions."""
    return sum(step["cpu_seconds"] for name, step in steps.items() if name != "read")


def measured_peer(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and memory of MAPIE and of ours."""
    rows = {}
    for name, part in (("mapie", "mapie"), ("shelfmark", "leaf")):
        found, peak = _measured(part, options)
        rows[name] = found | {"peak_mb": peak}
    columns = ("seconds", "cpu_seconds", "peak_mb", "threshold")
    print(table(["", *columns], [(name, *(row[c] for c in columns)) for name, row in rows.items()]))
    ratio = rows["mapie"]["cpu_seconds"] / rows["shelfmark"]["cpu_seconds"]
    return {"rows": rows, "verdicts": [verdict("MAPIE's time, of ours", ratio, 4, " x", at_least=True)]}


def measured_tables(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the evaluation's tables, and the peak memory."""
    found, peak = _measured("tables", options)
    print(
        table(
            ["table", "seconds", "CPU s", "peak MB so far"],
            [(name, *step.values()) for name, step in found.items()],
        )
    )
    verdicts = [
        verdict("tables of an evaluation", _cpu_seconds(found), 30, " s"),
        verdict("their peak memory", peak, 1500, " MB"),
    ]
    return {"steps": found, "products": options.products, "peak_mb": peak, "verdicts": verdicts}


def measured_whole(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the stages and of the bare products."""
    found, peak = _measured("whole", options)
    print(table(["", "seconds", "CPU s", "peak MB so far"], [(n, *s.values()) for n, s in found.items()]))
    cpu = {name: step["cpu_seconds"] for name, step in found.items()}
    share = cpu["bare products"] / (cpu["calibrate"] + cpu["evaluate"])
    print(f"bare matrix products: {share:.0%} of calibrate and evaluate")
    of_all = {"images": 3 * options.images, "share_of_bare_products": round(share, 3), "peak_mb": peak}
    return of_all | {"steps": found}


@contextmanager
def _step(name: str, steps: dict[str, dict[str, float]]) -> Iterator[None]:
    """Seconds of a step, on the wall and of the processor, and the process's peak memory up to its end."""
    began, cpu = time.monotonic(), time.process_time()
    yield
    spent = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    steps[name] = {what: round(value, 2) for what, value in spent.items()} | {"peak_mb": round(peak / MB)}


# The predictions


def draw_predictions(products: int, folder: Path) -> None:
    """Writes drawn predictions: numbers as .npy files, ids and groups as Parquet."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    leaf = rng.beta(0.674666, 0.424138, products)  # the source paper's figure 5
    confidence = np.stack([leaf + (1 - leaf) * 0.85, leaf + (1 - leaf) * 0.6, leaf], axis=1).round(6)
    correct = rng.random(products)[:, None] < confidence  # a correct category has correct nodes above it
    predicted = np.minimum(rng.geometric(3 / CATEGORIES, products) - 1, CATEGORIES - 1)
    np.save(folder / "confidence.npy", confidence)
    np.save(folder / "correct.npy", correct)
    np.save(folder / "predicted.npy", predicted.astype(np.int32))
    np.save(folder / "truth.npy", _truth(rng, predicted, correct).astype(np.int32))
    group = rng.integers(0, 2**63, products) if products else np.zeros(0, int)
    twin = rng.random(products) < 0.02  # products that share their images with another one
    group[twin] = group[rng.integers(0, products, twin.sum())]
    texts = {
        "product_id": pa.array([f"{number:08d}" for number in range(products)]),
        "group": pa.array([f"{number:064x}" for number in group.tolist()]),
    }
    pq.write_table(pa.table(texts), folder / "ids.parquet", row_group_size=2**17)


def _truth(rng: np.random.Generator, predicted: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """(n,) int: a category whose nodes agree with the predicted ones exactly where `correct` says so."""

    def other(place: np.ndarray, count: int) -> np.ndarray:
        return (place + rng.integers(1, count, len(place))) % count

    department, parent = predicted // IN_DEPARTMENT, predicted // IN_PARENT
    sibling = parent * IN_PARENT + other(predicted % IN_PARENT, IN_PARENT)
    parents = IN_DEPARTMENT // IN_PARENT
    cousin = (department * parents + other(parent % parents, parents)) * IN_PARENT
    stranger = other(department, CATEGORIES // IN_DEPARTMENT) * IN_DEPARTMENT
    return np.select([correct[:, 2], correct[:, 1], correct[:, 0]], [predicted, sibling, cousin], stranger)


def taxonomy() -> Any:
    """The tree of the 8,000 categories."""
    from models.taxonomy import Taxonomy

    paths = [[f"{n // IN_DEPARTMENT:02d}", f"{n // IN_PARENT:03d}", f"{n:04d}"] for n in range(CATEGORIES)]
    return Taxonomy(np.array([path[-1] for path in paths], dtype=object), np.array(paths, dtype=object))


class Stored:
    """The stored predictions."""

    def __init__(self, folder: Path) -> None:
        for name in ("confidence", "correct", "predicted", "truth"):
            setattr(self, name, np.load(folder / f"{name}.npy"))
        self.product_id, self.group = (
            _texts(folder / "ids.parquet", name) for name in ("product_id", "group")
        )

    confidence: np.ndarray  # (n, 3) float64, coarse to fine
    correct: np.ndarray  # (n, 3) bool
    predicted: np.ndarray  # (n,) int32, the category
    truth: np.ndarray  # (n,) int32, likewise

    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        """(n,) bool, FIT and CERT: by group."""
        fit = np.fromiter((int(name[-8:], 16) < FIT_SHARE * 2**32 for name in self.group), bool)
        return fit, ~fit


def _texts(file: Path, column: str) -> np.ndarray:
    """(n,) object, a column of texts; a row group at a time, so that Arrow's copy is small."""
    with pq.ParquetFile(file) as opened:
        texts = np.empty(opened.metadata.num_rows, dtype=object)
        start = 0
        for batch in opened.iter_batches(columns=[column]):
            texts[start : start + len(batch)] = batch.column(0).to_pylist()
            start += len(batch)
    return texts


# The subjects


def certified(options: argparse.Namespace) -> dict[str, Any]:
    """From predictions to certificates, curves and estimates."""
    from models.decisions.categories import (
        acceptance_by_categories,
        certify_departments,
        certify_inside,
        cumulative,
        estimate_precision,
        restrict,
    )
    from models.decisions.levels import LevelOutcomes, certify_levels
    from models.decisions.metrics import acceptance_curve, acceptance_rate_at, per_category
    from models.decisions.thresholds import certify_ladder, lower_bound

    steps: dict[str, dict[str, float]] = {}
    with _step("read", steps):
        stored = Stored(options.folder / "predictions")
        sides = stored.sides()
    with _step("outcomes", steps):
        depth = np.full(len(stored.predicted), 3, np.int32)
        fit, cert = (
            LevelOutcomes(
                stored.product_id[side], stored.group[side], stored.confidence[side], stored.correct[side],
                depth[side],
            )
            for side in sides
        )  # fmt: skip
        fit_leaf, cert_leaf = fit.leaf(), cert.leaf()
    with _step("certificates of the levels", steps):
        certificates = certify_levels(fit, cert)
    with _step("ladder", steps):
        certify_ladder(fit_leaf, cert_leaf, LADDER)
    threshold = certificates[-1].threshold
    assert threshold is not None, "the drawn predictions certify"
    predicted = stored.predicted
    with _step("departments", steps):
        names = [f"{number:02d}" for number in range(CATEGORIES // IN_DEPARTMENT)]
        certify_departments(cert_leaf, predicted[sides[1]] // IN_DEPARTMENT, names, threshold)
    with _step("restriction", steps):
        on_fit = per_category(
            stored.truth[sides[0]], predicted[sides[0]], np.zeros(len(fit.depth), bool), CATEGORIES
        )
        restriction = restrict(on_fit.predicted, on_fit.predicted_right)
        inside = restriction.kept[predicted]
        certify_inside(fit_leaf, cert_leaf, inside[sides[0]], inside[sides[1]])
    with _step("curves and bounds of the levels", steps):
        for level in range(3):
            curve = acceptance_curve(stored.confidence[:, level], stored.correct[:, level])
            acceptance_rate_at(curve, 0.9)
            thin = curve.thinned(10_000)
            lower_bound(thin.accepted, thin.accepted - thin.correct, 0.1)
    with _step("categories", steps):
        accepted = stored.confidence[:, -1] >= threshold
        counts = per_category(stored.truth, predicted, accepted, CATEGORIES)
        estimate_precision(counts.accepted, counts.accepted_right)
        cumulative(restriction.order, counts)
        acceptance_by_categories(
            restriction.order, predicted, stored.confidence[:, -1], stored.correct[:, -1]
        )
    return steps


def leaf(options: argparse.Namespace) -> dict[str, Any]:
    """Our certificate of the categories, groups and checks of the input included."""
    from models.decisions.thresholds import Outcomes, certify

    stored, spent = Stored(options.folder / "predictions"), dict[str, dict[str, float]]()
    sides = stored.sides()
    with _step("certify", spent):
        fit, cert = (
            Outcomes(stored.product_id[s], stored.group[s], stored.confidence[s, -1], stored.correct[s, -1])
            for s in sides
        )
        threshold = certify(fit, cert).threshold
    return spent["certify"] | {"threshold": threshold}


def mapie(options: argparse.Namespace) -> dict[str, Any]:
    """MAPIE's certificate on the same products; it needs no FIT, since its thresholds are fixed."""
    from mapie.risk_control import BinaryClassificationController

    stored, spent = Stored(options.folder / "predictions"), dict[str, dict[str, float]]()
    confidence, correct = stored.confidence[:, -1].copy(), stored.correct[:, -1].astype(int)
    with _step("calibrate", spent):
        controller = BinaryClassificationController(
            predict_function=lambda s: np.column_stack([1 - s, s]), risk="precision", target_level=0.9,
            confidence_level=0.9,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # precision is not monotone, as MAPIE remarks
            controller.calibrate(confidence, correct)
    return spent["calibrate"] | {"threshold": float(controller.best_predict_param)}


def tables(options: argparse.Namespace) -> dict[str, Any]:
    """Every table of an evaluation of the stored products."""
    from pipeline.train.tables import write_tables

    steps: dict[str, dict[str, float]] = {}
    with _step("read", steps):
        evaluated, fit, categorizer, true = evaluation_of(Stored(options.folder / "predictions"))
    with _step("tables", steps):
        write_tables(evaluated, fit, categorizer, true, options.folder)
    return steps


def evaluation_of(stored: Stored) -> tuple[Any, Any, Any, Any]:
    """The stored products after evaluate's predictions, those of FIT, categorizer and true categories."""
    import pandas as pd

    from models.decisions.categorizer import Categorizer, DecisionRules, LevelRule, Predictor
    from models.decisions.confidence import ConfidenceModel
    from models.decisions.thresholds import Certificate
    from pipeline.job.catalogue import TrueCategories
    from pipeline.train.evaluated import Evaluated

    tree, products = taxonomy(), len(stored.predicted)
    certificate = Certificate(0.9, 0.1, 1000, products, threshold=0.68)
    model = ConfidenceModel("probability", products)
    rules = DecisionRules(
        model="",
        labels="",
        temperature=1.0,
        confidence=model,
        certificate=certificate,
        target=0.9,
        delta=0.1,
        fit={"products": products},
        levels={f"level{n}": LevelRule(model, certificate) for n in (1, 2)},
        ladder=(certificate,) * len(LADDER),
    )
    sizes = np.full(CATEGORIES, 100, np.int32)
    categorizer = Categorizer(Predictor(None, tree, sizes, "", ""), rules)  # type: ignore[arg-type]
    predictions = _predictions(stored, tree)
    evaluated = Evaluated(
        product_id=stored.product_id,
        nodes=tree.nodes.T[stored.truth],
        predictions=predictions,
        confidences=stored.confidence,
        correct_nodes=stored.correct,
        unseen=np.zeros(products, bool),
        weight=None,
        stop=categorizer.stops(predictions, stored.confidence),
    )
    category = pd.Series(tree.categories[stored.truth], index=stored.product_id)
    fit = evaluated.only(np.arange(products) % 3 == 0)
    return evaluated, fit, categorizer, TrueCategories(category, (tree,))


def _predictions(stored: Stored, tree: Any) -> Any:
    """What a head that predicts these categories with these confidences would say."""
    from models.decisions.predictions import Predictions

    products, levels = stored.confidence.shape
    top = (stored.predicted[:, None] + np.arange(5, dtype=np.int32)) % CATEGORIES
    probability = stored.confidence.astype(np.float32)
    return Predictions(
        top=top,
        top_probability=np.repeat(probability[:, -1:], 5, axis=1),
        level_top=np.repeat(tree.nodes.T[stored.predicted][:, :, None], 5, axis=2),
        own_top=np.zeros((products, 0, 5), np.int32),
        entropy=np.ones(products, np.float32),
        level_mass=probability,
        level_rival=np.zeros((products, levels), np.float32),
        max_logit_pnorm=np.zeros(products, np.float32),
        images=np.ones(products, np.int32),
        again=np.ones(products, bool),
    )


def whole(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of calibrate and evaluate on drawn bottlenecks, and of the matrix products they need."""
    from features.engines.backbones import start_tensorflow

    start_tensorflow()
    from pipeline.job.load_config import load_config
    from pipeline.train.calibrate import calibrate_head
    from pipeline.train.evaluate import evaluate_head

    folder, config = options.folder / "whole", load_config()
    records, bottlenecks, head, store = draw_run(folder, options.images)
    steps: dict[str, dict[str, float]] = {}
    with _step("calibrate", steps):
        thresholds = calibrate_head(records, bottlenecks, head, store, folder / "thresholds", config)
    with _step("evaluate", steps):
        evaluate_head(
            records, bottlenecks, head, thresholds, store, folder / "evaluation", config.calibration
        )
    with _step("bare products", steps):  # calibrate predicts val, evaluate all three parts
        _bare_products(4 * options.images)
    return steps


def _bare_products(images: int, batch: int = 1024) -> None:
    """The forward products of the head alone, by NumPy in float32."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((batch, SIZES[0]), np.float32)
    weights = [rng.standard_normal(layer, np.float32) for layer in itertools.pairwise(SIZES)]
    for _ in range(-(-images // batch)):
        at = values
        for weight in weights:
            at = at @ weight


def draw_run(folder: Path, images: int) -> tuple[Any, Any, Any, Path]:
    """Records, bottlenecks and head of a run with `images` products of one image in each part, and the store.

    Seven products of ten have the category that the head finds most likely.
    """
    from features.storage.artifact import begin, partial_of, seal
    from features.storage.store import Digests, Store
    from models.heads.architectures import Head, HeadShape, build_head
    from models.taxonomy import write_taxonomy
    from pipeline.extract.index import write_index

    tree, rng = taxonomy(), np.random.default_rng(0)
    head = begin(partial_of(folder / "head"), {"fingerprint": "drawn"})
    shape = HeadShape(SIZES[0], CATEGORIES, SIZES[1:-1], 0.5, 1.0, "drawn")
    model = Head.of(shape, build_head(shape))
    model.save(head)
    write_taxonomy(tree, head / "taxonomy.csv")
    np.save(head / "sizes.npy", np.full(CATEGORIES, 100, np.int32))

    digests = rng.integers(0, 256, (3 * images, 32), np.uint8)
    store, likely = Store(folder / "store" / "drawn"), []
    for start in range(0, 3 * images, 4096):
        here = digests[start : start + 4096]
        rows = np.maximum(rng.standard_normal((len(here), SIZES[0]), np.float32), 0).astype(np.float16)
        store.append(here, rows, "drawn")
        likely.append(model.logits(rows).argmax(axis=1))
    category = np.where(
        rng.random(3 * images) < 0.7, np.concatenate(likely), rng.integers(0, CATEGORIES, 3 * images)
    )
    table = {
        "product_id": [f"{number:08d}" for number in range(3 * images)],
        "category": tree.categories[category],
        "split": np.repeat(["train", "val", "test"], images),
    }
    records = begin(partial_of(folder / "records"), {})
    pq.write_table(pa.table(table), records / "products.parquet")
    write_taxonomy(tree, records / "taxonomy.csv")
    images_file = folder / "images.parquet"
    pq.write_table(pa.table(table | {"image_index": np.zeros(3 * images, np.int32)}), images_file)
    bottlenecks = begin(partial_of(folder / "bottlenecks"), {})
    write_index(images_file, digests, {"": store.find(Digests(digests))}, bottlenecks / "index.parquet")
    of = {
        "records": {},
        "bottlenecks": {
            "images": 3 * images,
            "fingerprint": "drawn",
            "backbone": "drawn",
            "weights": "random",
            "engines": {},
        },
        "head": {},
    }
    made = (seal(folder / kind, kind=kind, version=1, made_from={}, summary=of[kind]) for kind in of)
    return *made, folder / "store"


if __name__ == "__main__":
    main()
