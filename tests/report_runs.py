"""Run directories for the tests of the report, with the files that the stages write, of any size.

draw_run(folder, categories=5270, products=2_000_000) takes half a minute; a small one, a second.
"""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from features.product import ProductImage
from features.records import frame, serialise
from models.decisions.confidence import ConfidenceModel
from models.decisions.thresholds import Certificate, lower_bound
from pipeline.train.by_seller import Chosen, figures_of, gains_of

HOSTILE = "<script>alert(1)</script>"
TARGETS = (0.80, 0.85, 0.90, 0.93, 0.95, 0.97)
FIRST = ("Épicerie", "Maison", "Jardin", "Sport", "Mode", "Jeux", "Auto", "Hi-fi", "Animaux", "Bébé")
SECOND = ("thé", "café", "vélo", "lampe", "robe", "table", "pneu", "casque", "laisse", "tapis", "bol", "pull")


def names_of(categories: int) -> list[str]:
    """Paths of three names; the second one is hostile, the third has quotation marks."""
    names = []
    for number in range(categories):
        first = FIRST[number % len(FIRST)]
        second = f"{first} {number // len(FIRST) % 12 + 1}"
        names.append(f"{first} / {second} / {SECOND[number % len(SECOND)]} {number}")
    names[1], names[2] = f"{FIRST[1]} / {HOSTILE} / 日本茶", f'{FIRST[2]} / {FIRST[2]} 1 / Tea "green"'
    return names


class Drawn:
    """Measured products with predictions of a head that knows `categories` of categories + unlearnt."""

    def __init__(self, categories: int, products: int, unlearnt: int, seed: int, skill: float) -> None:
        truth_of, random = np.random.default_rng(7), np.random.default_rng(seed)
        share = 1 / np.arange(1, categories + unlearnt + 1) ** 0.7
        order = truth_of.permutation(categories + unlearnt)
        self.truth = order[truth_of.choice(len(share), products, p=share / share.sum())]
        known = self.truth < categories
        strength = truth_of.normal(skill, 0.9, len(share))[self.truth] + random.normal(0, 1, products)
        probability = 1 / (1 + np.exp(-strength))
        self.correct = (random.random(products) < probability) & known
        near = (self.truth + len(FIRST) * random.integers(1, 3, products)) % categories
        far = random.integers(0, categories, products)
        wrong = np.where(random.random(products) < 0.7, near, far)
        wrong = np.where(wrong == self.truth, (wrong + 1) % categories, wrong)
        self.predicted = np.where(self.correct, self.truth, wrong)
        self.confidence = np.round(np.where(known, probability, probability * 0.7), 6)
        self.unseen = truth_of.random(products) < 0.6


def certificate(drawn: Drawn, target: float) -> Certificate:
    """What a generous search would certify: the lowest threshold whose lower bound reaches the target."""
    order = np.argsort(-drawn.confidence, kind="stable")
    confidence = drawn.confidence[order]
    last = np.flatnonzero(np.append(confidence[1:] != confidence[:-1], True))
    at = last[np.unique(np.linspace(0, len(last) - 1, 1000).astype(int))]
    accepted, errors, n = at + 1, np.cumsum(~drawn.correct[order])[at], len(order)
    good = np.flatnonzero(lower_bound(accepted, errors, 0.1) >= target)
    if not len(good):
        needed, why = max(1, n // 3), "it does not show"
        return Certificate(target, 0.1, 1000, n, more_products_needed=needed, reason=why)
    m, k = int(accepted[good[-1]]), int(errors[good[-1]])
    return Certificate(
        **{"target": target, "delta": 0.1, "grid": 1000, "products": n, "accepted": m, "errors": k},
        **{"threshold": float(confidence[m - 1]), "acceptance_rate": m / n, "precision": 1 - k / m},
        **{"precision_lower": float(lower_bound(m, k, 0.1)), "chain": "main"},
    )


def shares(products: int, precision: float, rate: float) -> dict[str, Any]:
    return {"products": products, "precision": precision, "acceptance_rate_at_target": rate}


def part(**changes: Any) -> dict[str, Any]:
    """The figures of a part in metrics.json."""
    figures = {
        **shares(2000, 0.614, 0.515),
        **{"target_precision": 0.9, "threshold": 0.7312, "accepted": 966, "accepted_precision": 0.9161},
        "levels": {"level1": {"top1": 0.81, "top5": 0.93}, "level2": {"top1": 0.614, "top5": 0.8}},
        "hierarchy": {
            **{"own_outputs": False, "precision": 0.702, "recall": 0.698, "f1": 0.7},
            "summed": {"level1": {"top1": 0.79, "top5": 0.92}, "level2": {"top1": 0.614, "top5": 0.8}},
            "consistency": {"level1": 0.953, "level2": 1.0},
        },
        "unseen": shares(1234, 0.58, 0.44),
        "learnt": shares(1900, 0.646, 0.55),
        **{"weighted": None, "unlearnt_products": 100},
        "decided": {
            "level1": {"products": 400, "precision": 0.93},
            "level2": {"products": 966, "precision": 0.9161},
        },
        "review": 634,
    }
    return figures | changes


def draw_run(
    run: Path,
    categories: int = 35,
    products: int = 2000,
    unlearnt: int = 5,
    *,
    seed: int = 0,
    skill: float = 1.4,
    in_service: bool = True,
    suspects: int = 60,
    sellers: int = 40,
    photos: bool = True,
) -> Path:
    """A certified run with a test part; tests change one file."""
    for name in ("records", "head", "thresholds", "evaluation"):
        (run / name).mkdir(parents=True)
    drawn = Drawn(categories, products, unlearnt, seed, skill)
    names, ids = names_of(categories + unlearnt), np.array([f"p{number}" for number in range(products)])
    used = certificate(drawn, 0.9)
    _write_products(run / "evaluation", drawn, names, ids, categories, used.threshold)
    if in_service:
        old = Drawn(categories, products, unlearnt, seed + 1, skill - 0.3)
        _write_products(run / "in_service", old, names, ids, categories - 2, certificate(old, 0.9).threshold)
    tables = _tables(drawn, names, categories, used)
    for name, columns in tables.items():
        pd.DataFrame(columns).to_parquet(run / "evaluation" / f"{name}.parquet")
    _write_jsons(run, drawn, names, used, tables)
    _write_history(run)
    if sellers:
        write_by_seller(run, sellers)
    if suspects:
        _write_suspects(run, drawn, names, ids, suspects)
    if photos:
        _write_photos(run, drawn, ids[: min(products, 2000)])
    return run


def _write_products(
    folder: Path, drawn: Drawn, names: list[str], ids: np.ndarray, learnt: int, threshold: float | None
) -> None:
    folder.mkdir(exist_ok=True)
    accepted = drawn.confidence >= (2.0 if threshold is None else threshold)
    parent = ~accepted & (drawn.confidence > 0.6)
    status = np.where(accepted, "accepted", np.where(parent, "parent", "review"))
    path, category = np.array(names, object), np.array([f"c{n}" for n in range(len(names))], object)
    level = pd.array(np.where(accepted, 3, np.where(parent, 2, 0)), "Int32").astype("Int32")
    level[status == "review"] = pd.NA
    decisions = pa.table(
        {
            "product_id": ids, "category": category[drawn.predicted], "category_path": path[drawn.predicted],
            "confidence": drawn.confidence, "status": status, "node_level": level,
            "release": np.full(len(ids), "2026-W46"),
        }
    )  # fmt: skip
    pq.write_table(decisions, folder / "decisions.parquet")
    measured = pa.table(
        {
            "product_id": ids, "true_category": category[drawn.truth], "true_path": path[drawn.truth],
            "learnt": drawn.truth < learnt, "unseen": drawn.unseen, "weight": np.ones(len(ids)),
            "images": np.ones(len(ids), int), "correct": drawn.correct, "node_correct": drawn.correct,
        }
    )  # fmt: skip
    pq.write_table(measured, folder / "measured.parquet")


def _tables(drawn: Drawn, names: list[str], categories: int, used: Certificate) -> dict[str, dict[str, Any]]:
    order = np.argsort(-drawn.confidence, kind="stable")
    accepted, correct = np.arange(1, len(order) + 1), np.cumsum(drawn.correct[order])
    some = np.unique(np.linspace(0, len(order) - 1, 10_000).astype(int))
    last = np.append(drawn.confidence[order][1:] != drawn.confidence[order][:-1], True)
    some = some[last[some]]
    curve = {
        "threshold": drawn.confidence[order][some],
        "acceptance_rate": accepted[some] / len(order),
        "precision": correct[some] / accepted[some],
        "precision_lower": lower_bound(accepted[some], accepted[some] - correct[some], 0.1),
    }
    coarse = {name: values.copy() for name, values in curve.items()}
    coarse["precision"] = coarse["precision"] + (1 - coarse["precision"]) * 0.6
    levels = [pd.DataFrame(table) for table in (coarse, curve)]
    level_curves = pd.concat([table.assign(level=level) for level, table in enumerate(levels, 1)]).to_dict(
        "list"
    )
    return {
        "curve": curve,
        "level_curves": level_curves,
        "categories": _categories(drawn, names, categories, used),
        "confusions": _confusions(drawn, names),
        "ladder": _ladder(drawn),
        "unlearnt": _unlearnt(drawn, names, categories, used),
    }


def _categories(drawn: Drawn, names: list[str], categories: int, used: Certificate) -> dict[str, Any]:
    def count(code: np.ndarray, chosen: Any = slice(None)) -> np.ndarray:
        return np.bincount(code[chosen], minlength=len(names))[:categories]

    accepted = drawn.confidence >= (2 if used.threshold is None else used.threshold)
    predicted, correct = count(drawn.predicted), count(drawn.predicted, drawn.correct)
    estimate = (correct + 6) / (predicted + 9)
    half = 1.5 * np.sqrt(estimate * (1 - estimate) / (predicted + 9))
    status = np.select(
        [predicted < 5, estimate - half > 0.8, estimate > 0.6],
        ["too few", "automatic", "with care"],
        "always review",
    )
    return {
        "category": [f"c{number}" for number in range(categories)],
        "name": names[:categories],
        "department": [name.split(" / ")[0] for name in names[:categories]],
        "train_products": 9 * count(drawn.truth) + 3,
        "products": count(drawn.truth),
        "right": count(drawn.truth, drawn.correct),
        "predicted": predicted,
        "predicted_right": correct,
        "accepted": count(drawn.predicted, accepted),
        "accepted_right": count(drawn.predicted, accepted & drawn.correct),
        "fit_predicted": predicted // 2,
        "fit_right": correct // 2,
        "estimate": estimate,
        "lower": np.clip(estimate - half, 0, 1),
        "upper": np.clip(estimate + half, 0, 1),
        "status": status,
        "kept": estimate > np.quantile(estimate, 0.2),
    }


def _confusions(drawn: Drawn, names: list[str]) -> dict[str, Any]:
    wrong = ~drawn.correct
    pairs, products = np.unique(drawn.truth[wrong] * len(names) + drawn.predicted[wrong], return_counts=True)
    top = np.argsort(-products, kind="stable")[:200]
    truth, predicted = np.divmod(pairs[top], len(names))
    return {
        "category": [f"c{number}" for number in truth],
        "category_name": [names[number] for number in truth],
        "predicted": [f"c{number}" for number in predicted],
        "predicted_name": [names[number] for number in predicted],
        "products": products[top],
    }


def _ladder(drawn: Drawn) -> dict[str, Any]:
    found = [certificate(drawn, target) for target in TARGETS]
    return {
        "target": [one.target for one in found],
        "certified": [one.threshold is not None for one in found],
        "threshold": [one.threshold for one in found],
        "cert_acceptance": [one.acceptance_rate for one in found],
        "accepted": [one.accepted for one in found],
        "precision": [one.precision for one in found],
        "precision_lower": [one.precision_lower for one in found],
        "more_products_needed": pd.array([one.more_products_needed for one in found], "Int64"),
        "at_best": [one.at_best for one in found],
    }


def _unlearnt(drawn: Drawn, names: list[str], categories: int, used: Certificate) -> dict[str, Any]:
    accepted = drawn.confidence >= (2 if used.threshold is None else used.threshold)
    rows = range(categories, len(names))
    return {
        "category": [f"c{number}" for number in rows],
        "name": [names[number] for number in rows],
        "products": [10 + number % 7 for number in rows],
        "measured": [int(np.sum(drawn.truth == number)) for number in rows],
        "accepted": [int(np.sum((drawn.truth == number) & accepted)) for number in rows],
        "parent_right": [int(np.sum(drawn.truth == number)) // 2 for number in rows],
    }


def _figures(drawn: Drawn, used: Certificate, curve: dict[str, Any], categories: int) -> dict[str, Any]:
    """The figures of the test part that agree with the tables."""
    reached = curve["precision"] >= 0.9
    rate = float(curve["acceptance_rate"][reached].max()) if reached.any() else 0.0
    known = drawn.truth < categories
    figures = {
        **shares(len(drawn.truth), float(drawn.correct.mean()), rate),
        **{"threshold": used.threshold, "accepted": used.accepted, "accepted_precision": used.precision},
        "learnt": shares(int(known.sum()), float(drawn.correct[known].mean()), min(1.0, rate * 1.05)),
        "decided": {
            "level1": {"products": len(drawn.truth) // 20, "precision": 0.94},
            "level2": {"products": used.accepted, "precision": used.precision},
        },
        "unlearnt_products": int((~known).sum()),
        "review": len(drawn.truth) - used.accepted - len(drawn.truth) // 20,
    }
    return part(**figures)


def _write_jsons(
    run: Path, drawn: Drawn, names: list[str], used: Certificate, tables: dict[str, dict[str, Any]]
) -> None:
    table = pd.DataFrame(tables["categories"])
    coefficient = {"entropy": -0.4123, "logit_p1": 1.31}
    logistic = ConfidenceModel("logistic", 600, intercept=0.7, coefficient=coefficient, effect_spread=0.4)
    kept = table["category"][table["kept"]].tolist()
    jsons: dict[str, Any] = {
        "evaluation/metrics.json": {
            "test": _figures(drawn, used, tables["curve"], len(table)),
            **{"train": part(precision=0.8), "val": part(), "cert": part(products=1200)},
            **{"graded_on": "test", "independent": True, "weights": "imagenet", "backbone": "inception_v3"},
        },
        "thresholds/thresholds.json": {
            **{"target": 0.9, "delta": 0.1, "temperature": 1.25, "fit": {"products": 600}},
            **{"model": "of the head", "labels": "of the taxonomy", "aggregation": "mean"},
            **{"confidence": logistic.to_dict(), "certificate": used.to_dict()},
            "levels": {
                "level1": {
                    "confidence": logistic.to_dict(),
                    "certificate": certificate(drawn, 0.85).to_dict(),
                }
            },
            "ladder": [certificate(drawn, target).to_dict() for target in TARGETS],
            "departments": _departments(table, used.delta),
            "restriction": {
                **{"share": 0.8, "kept": kept, "dropped": len(table) - len(kept)},
                "certificate": certificate(drawn, 0.9).to_dict(),
            },
        },
        "head/head.json": {
            **{"width": 8, "categories": len(table), "hidden": [512, 512], "dropout": 0.5, "scale": 1.0},
            **{"fingerprint": "inception_v3-299", "views": ["whole"]},
        },
        "records/manifest.json": {"kind": "records", "summary": SUMMARY},
        "config.json": {
            **{"run": "2026-W47", "code_version": "0.1.0", "based_on": "2026-W46"},
            "settings": {"seed": 0, "head": {"hidden": [512, 512]}, "backbone": {"weights": "/data/w.h5"}},
        },
    }
    for name, values in jsons.items():
        (run / name).write_text(json.dumps(values, sort_keys=True))


SUMMARY = {
    **{"products": 21500, "images": 34567, "unreadable_products": 2, "categories_in_two_places": 0},
    **{
        "records": {"train": 27000, "val": 3400, "test": 3300},
        "rejects": {"truncated": 3, "not_an_image": 1},
    },
    **{"uncategorized_images": 823, "uncategorized_products": 500, "dropped_images": 40},
    **{"dropped_products": 30, "dropped_categories": 4, "unlearnt_products": 20},
    **{"images_of_several_products": 1500, "images_in_several_categories": 60, "placeholder_images": 7},
}


def _departments(table: pd.DataFrame, delta: float) -> list[dict[str, Any]]:
    rows = []
    for node, (name, group) in enumerate(table.groupby("department", sort=True)):
        accepted, correct = int(group["accepted"].sum()), int(group["accepted_right"].sum())
        lower = float(lower_bound(accepted, accepted - correct, delta / 10))
        rows.append(
            {
                **{
                    "node": node,
                    "name": name,
                    "products": int(group["products"].sum()),
                    "accepted": accepted,
                },
                **{"errors": accepted - correct, "precision": correct / accepted if accepted else None},
                **{"lower": lower, "p_value": 0.01 if lower >= 0.9 else 0.4, "certified": lower >= 0.9},
            }
        )
    return rows


def _write_history(run: Path) -> None:
    epochs = np.arange(40)
    rising = 0.75 - 0.6 * np.exp(-epochs / 8)
    zigzag = rising + np.where(epochs % 3 == 0, -0.25, 0.1)
    history = {"epoch": epochs, "loss": 3 - 2 * rising, "accuracy": zigzag.clip(0.05)}
    selected = {"val_loss": 3 - 2.5 * rising, "val_accuracy": rising - 0.02}
    pd.DataFrame(history | selected).to_csv(run / "head" / "history.csv", index=False)


def _write_suspects(run: Path, drawn: Drawn, names: list[str], ids: np.ndarray, most: int) -> None:
    (run / "suspects").mkdir()
    rows = np.flatnonzero(~drawn.correct)
    rows = rows[np.argsort(-drawn.confidence[rows], kind="stable")][:most]
    pd.DataFrame(
        {
            "product_id": ids[rows],
            "category": [f"c{drawn.truth[row]}" for row in rows],
            "category_path": [names[drawn.truth[row]] for row in rows],
            "proposed": [f"c{drawn.predicted[row]}" for row in rows],
            "proposed_path": [names[drawn.predicted[row]] for row in rows],
            "label_wrong": np.append(drawn.confidence[rows][:-1], np.nan),
            "confidence": drawn.confidence[rows],
            "reason": np.array(["prediction", "identical image", "prediction, identical image"])[rows % 3],
            "part": "test",
            "image_digest": [f"{row:064x}" for row in rows],
        }
    ).to_parquet(run / "suspects" / "suspects.parquet")
    (run / "suspects" / "manifest.json").write_text(json.dumps({"summary": {"noise": 0.062}}))


def _write_photos(run: Path, drawn: Drawn, ids: np.ndarray) -> None:
    """Records with a photo of each product: a shape in the colour of its category."""
    rows, offset = [], 0
    with open(run / "records" / "test-00000-of-00001.tfrecord", "wb") as shard:
        for row, name in enumerate(ids):
            record = frame(serialise(_product_image(str(name), row, int(drawn.truth[row]))))
            shard.write(record)
            rows.append(
                {
                    **{"product_id": name, "split": "test", "image_digest": f"{row:064x}", "image_index": 0},
                    **{"file": "test-00000-of-00001.tfrecord", "offset": offset, "length": len(record)},
                    "placeholder": False,
                }
            )
            offset += len(record)
    pd.DataFrame(rows).to_parquet(run / "records" / "images.parquet")


def write_by_seller(run: Path, sellers: int) -> None:
    """Sellers of 20 to 200 products; three of four gain with their corrections, some lose."""
    (run / "by_seller").mkdir()
    random = np.random.default_rng(3)
    tests = random.integers(20, 200, sellers)
    base = np.round(tests * random.uniform(0.5, 0.8, sellers)).astype(int)
    most = np.minimum(base + np.round(tests * random.normal(0.08, 0.09, sellers)).astype(int), tests)
    correct = {
        f"correct_{name}": base + np.round((most - base) * share).astype(int)
        for name, share in (("0", 0), ("5", 0.2), ("15", 0.5), ("50", 0.8), ("all", 1))
    }
    table = pd.DataFrame(
        {
            "seller": [HOSTILE, "Épices & Cie", *(f"shop-{number:03}" for number in range(2, sellers))],
            **{"products": tests, "tests": tests, "base": base, "oracle": np.maximum(base, most), **correct},
            **{"base_accepted": tests // 2, "base_accepted_correct": tests // 2 - tests // 40},
            **{
                "accepted": tests // 2 + tests // 8,
                "accepted_correct": tests // 2 + tests // 8 - tests // 30,
            },
            **{"adapted": tests // 6, "adapted_correct": tests // 6 - tests // 90, "changed": tests // 5},
            **{"flagged": (np.arange(sellers) == 7).astype(int), "gain": (most - base) / tests},
        }
    )
    gains = gains_of(table)
    chosen = Chosen(dict.fromkeys(table["seller"], tests), sellers + 25, sellers, sellers, sellers >= 10)
    certified = Certificate(0.9, 0.1, 100, 400, threshold=0.8)
    adapter: Any = SimpleNamespace(rules=SimpleNamespace(method="votes", certificate=certified))
    figures = figures_of(table, gains, chosen, adapter, tested=True)
    (run / "by_seller/by_seller.json").write_text(figures.model_dump_json())
    table.to_parquet(run / "by_seller/sellers.parquet")
    gains.to_parquet(run / "by_seller/gains.parquet")


def write_maps(run: Path, product_ids: list[str]) -> None:
    """Maps of two rows and three columns, as pipeline/look/maps.py writes them: light at the upper right."""
    (run / "maps").mkdir()
    heat = np.array([0, 0, 255, 0, 0, 51], np.uint8)
    rows = [{"product_id": name, "rows": np.int32(2), "heat": heat} for name in product_ids]
    pd.DataFrame(rows).to_parquet(run / "maps" / "maps.parquet", index=False)


def _product_image(product_id: str, row: int, category: int) -> ProductImage:
    picture = Image.new("RGB", (160, 120), (240, 240, 240))
    draw = ImageDraw.Draw(picture)
    colour = (37 * category % 200, 91 * category % 200, 53 * category % 200)
    box = (20 + row % 17, 15 + row % 11, 130, 100)
    (draw.ellipse if category % 2 else draw.rectangle)(box, fill=colour)
    draw.line((0, row % 120, 160, 120 - row % 120), fill=(90, 90, 90), width=2)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return ProductImage(
        product_id=product_id, category=f"c{category}", split="test", seller="", image_digest=f"{row:064x}",
        jpeg=buffer.getvalue(), image_index=0,
    )  # fmt: skip
