"""What the report shows about a run, read from the run's files.

runs/<run>/config.json                  run, code_version, based_on, settings
           records/manifest.json        summary: where every image went
           head/head.json               the views of each photo that it predicts from
           head/history.csv             epoch, loss, accuracy, and of FIT val_loss, val_accuracy
           thresholds/thresholds.json   temperature, confidence, cascade; certificates of levels, targets
           evaluation/metrics.json      train, val, cert, test; graded_on, independent, weights, backbone
           evaluation/*.parquet         curves, categories, confusions, ladder, unlearnt; decisions, measured
           tree/changes.csv             categories that are not what they were in the release in service
           in_service/*.parquet         decisions and measured of the release in service, where there was one
           suspects/                    labels in doubt and how many are wrong, where they were looked for
           maps/maps.parquet            where the network looked in some photos: pipeline/look/maps.py
           by_seller/                   what corrections bring to sellers: pipeline/train/by_seller.py
    └─ load ─► ReportData
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from features.errors import ShelfmarkError
from features.storage.paths import AnyPath, local
from models.decisions.categorizer import DecisionRules
from models.heads.architectures import HeadShape
from pipeline.job.account import VERDICT
from pipeline.job.run import SavedRun
from pipeline.job.summaries import RecordsSummary
from pipeline.train.figures import Metrics, PartFigures, SellersFigures

COLUMNS = {
    "evaluation/curve.parquet": ("threshold", "acceptance_rate", "precision", "precision_lower"),
    "evaluation/level_curves.parquet": ("level", "threshold", "acceptance_rate", "precision"),
    "evaluation/categories.parquet": (
        *("category", "name", "department", "train_products", "products", "right"),
        *("predicted", "predicted_right", "accepted", "accepted_right"),
        *("fit_predicted", "fit_right", "estimate", "lower", "upper", "status", "kept"),
    ),
    "evaluation/confusions.parquet": ("category", "category_name", "predicted", "predicted_name", "products"),
    "evaluation/ladder.parquet": (
        *("target", "certified", "threshold", "cert_acceptance", "accepted", "precision", "precision_lower"),
        *("more_products_needed", "at_best"),
    ),
    "evaluation/unlearnt.parquet": ("category", "name", "products", "measured", "accepted", "parent_right"),
    "head/history.csv": ("epoch", "loss", "accuracy"),  # and val_loss, val_accuracy where FIT has products
}
SUSPECTS = "suspects/suspects.parquet"
TREE = "tree/changes.csv"
CHANGE = ("category", "kind", "targets", "products_before", "products_now", "withheld")
IN_SERVICE = "in_service/measured.parquet"
MAPS = "maps/maps.parquet"
MAP = ("product_id", "rows", "heat")
NOISE = "suspects/manifest.json"
BY_SELLER = "by_seller/by_seller.json"
GAINS = ("corrections", "sellers", "base", "adapted", "gain", "lower", "upper")
SELLER = ("seller", "products", "tests", "base", "correct_all", "gain")
SUSPECT = (
    *("product_id", "category", "category_path", "proposed", "proposed_path"),
    *("confidence", "reason", "part", "image_digest"),
)
DECIDED = ("product_id", "category", "category_path", "confidence", "status", "node_level")
MEASURED = ("product_id", "true_category", "true_path", "learnt", "unseen", "correct")
STAGES = {
    **{"evaluation": "evaluate", "in_service": "retrain", "thresholds": "calibrate", "head": "train"},
    "suspects": "audit suspects",
    "tree": "retrain",
    "maps": "evaluate",
    "by_seller": "evaluate --by seller",
}

Content = TypeVar("Content")


@dataclass(frozen=True, eq=False)
class Coded:
    """Texts as positions in a list of the distinct ones; -1 where there is none."""

    values: np.ndarray  # (k,) object
    code: np.ndarray  # (n,) int32

    def texts(self, rows: np.ndarray | slice) -> list[str | None]:
        """The texts of some rows."""
        return [None if code < 0 else str(self.values[code]) for code in self.code[rows].tolist()]


@dataclass(frozen=True, eq=False)
class Products:
    """The measured products with what was decided about them, in the order of the files."""

    product_id: pa.ChunkedArray  # (n,) string
    predicted: Coded  # category
    predicted_path: Coded
    true: Coded  # category
    true_path: Coded
    confidence: np.ndarray  # (n,) float64
    accepted: np.ndarray  # (n,) bool
    learnt: np.ndarray  # (n,) bool: the true category is one that the head knows
    correct: np.ndarray  # (n,) bool

    def __len__(self) -> int:
        return len(self.confidence)

    def ids(self, rows: np.ndarray) -> list[str]:
        """The product_id of some rows."""
        ids: list[str] = self.product_id.take(pa.array(rows, pa.int64())).to_pylist()
        return ids


@dataclass(frozen=True, eq=False)
class BySeller:
    """What sellers' corrections bring; the tables have no rows where nothing was measured."""

    figures: SellersFigures
    gains: pd.DataFrame  # one row for each number of corrections
    sellers: pd.DataFrame


@dataclass(frozen=True, eq=False)
class ReportData:
    """What the report shows about a run; the columns of the tables are in COLUMNS."""

    run: str
    code_version: str
    based_on: str | None  # the release that was in service
    settings: Mapping[str, object]
    metrics: Metrics
    rules: DecisionRules  # in use, and what is certified beside them
    head: HeadShape
    records: RecordsSummary
    history: pd.DataFrame  # one row for each epoch
    curve: pd.DataFrame  # of the measured part, by descending threshold
    level_curves: pd.DataFrame
    categories: pd.DataFrame  # counts on the measured part
    confusions: pd.DataFrame  # the most frequent first
    ladder: pd.DataFrame
    unlearnt: pd.DataFrame
    products: Products  # the measured ones
    in_service: Products | None  # the same products by the release in service
    suspects: pd.DataFrame | None  # the most suspicious first
    tree: pd.DataFrame | None  # changed categories; None where the trees were not compared
    noise: float | None  # estimated share of wrong labels; None where they were not looked for
    verdict: str | None  # why the bundle is released or not, in English; None before it was judged
    maps: Mapping[str, np.ndarray]  # (h, w) 0..1, by product_id; of none where they were not made
    by_seller: BySeller | None  # None where it was not evaluated

    @property
    def measured(self) -> PartFigures | None:
        """The figures of the measured part: test, else CERT; None where neither has products."""
        return self.metrics.measured

    @cached_property
    def department(self) -> dict[str, str]:
        """The name of the department of each category, learnt or not."""
        names = dict(zip(self.categories["category"], self.categories["department"], strict=True))
        for category, path in zip(self.unlearnt["category"], self.unlearnt["name"], strict=True):
            names[category] = path.split(" / ")[0]
        return names


def worst_first(categories: pd.DataFrame) -> pd.DataFrame:
    """The categories with the most errors first, then those the most products; with a column `errors`."""
    counted = categories.assign(errors=categories["products"] - categories["right"])
    return counted.sort_values(
        ["errors", "products", "name", "category"], ascending=[False, False, True, True]
    )


class _RecordsManifest(BaseModel):
    """What the report shows of records/manifest.json."""

    model_config = ConfigDict(extra="ignore")

    summary: RecordsSummary


def load(run: AnyPath) -> ReportData:
    """Reads what the report needs of a run's directory.

    Raises:
        ShelfmarkError: a file is missing, damaged or of another version; the message names the stage that
            makes it.
    """
    metrics = _read(run, "evaluation/metrics.json", Metrics.model_validate_json)
    tables = {Path(name).stem: _read_table(run, name, columns) for name, columns in COLUMNS.items()}
    config = _read(run, "config.json", _parse_run)
    return ReportData(
        run=config.run,
        code_version=config.code_version,
        based_on=config.based_on,
        settings=config.settings,
        metrics=metrics,
        rules=_read(
            run, "thresholds/thresholds.json", lambda data: DecisionRules.from_dict(json.loads(data))
        ),
        head=_read(run, "head/head.json", lambda data: HeadShape.from_json(data.decode())),
        records=_read(run, "records/manifest.json", _RecordsManifest.model_validate_json).summary,
        products=_read_products(run, "evaluation"),
        in_service=_read_products(run, "in_service") if (run / IN_SERVICE).is_file() else None,
        suspects=_read_table(run, SUSPECTS, SUSPECT) if (run / SUSPECTS).is_file() else None,
        tree=_read_table(run, TREE, CHANGE) if (run / TREE).is_file() else None,
        noise=_read(run, NOISE, _parse_noise) if (run / NOISE).is_file() else None,
        verdict=_read(run, VERDICT, _parse_verdict) if (run / VERDICT).is_file() else None,
        maps=_read_maps(run) if (run / MAPS).is_file() else {},
        by_seller=_read_by_seller(run) if (run / BY_SELLER).is_file() else None,
        **tables,
    )


def _read_by_seller(run: AnyPath) -> BySeller:
    return BySeller(
        _read(run, BY_SELLER, SellersFigures.model_validate_json),
        _read_table(run, "by_seller/gains.parquet", GAINS),
        _read_table(run, "by_seller/sellers.parquet", SELLER),
    )


# JSON


def _parse_run(data: bytes) -> SavedRun:
    saved = SavedRun.model_validate_json(data)
    missing = {"run", "code_version", "settings"} - saved.model_fields_set
    if missing:
        raise ValueError(f"missing: {', '.join(sorted(missing))}")
    return saved


def _parse_noise(data: bytes) -> float:
    return float(json.loads(data)["summary"]["noise"])


def _parse_verdict(data: bytes) -> str:
    return str(json.loads(data)["sentence"])


def _read(run: AnyPath, name: str, parse: Callable[[bytes], Content]) -> Content:
    try:
        return parse((run / name).read_bytes())
    except ValidationError as error:
        keys = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors())
        reason = f"missing or of another type: {keys}" if keys else error.errors()[0]["msg"]
        raise _unusable(run, name, reason) from error
    except KeyError as error:
        raise _unusable(run, name, f"missing: {error.args[0]}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _unusable(run, name, error) from error


# Tables


def _read_table(run: AnyPath, name: str, columns: Sequence[str]) -> pd.DataFrame:
    try:
        file = local(run / name)
        texts = dict.fromkeys(("category", "targets"), str)  # ids may be digits
        table = (
            pd.read_csv(file, dtype=texts, keep_default_na=False, na_values=[""])
            if name.endswith(".csv")
            else pd.read_parquet(file)
        )
    except (OSError, ValueError) as error:
        raise _unusable(run, name, error) from error
    missing = [column for column in columns if column not in table]
    if missing:
        raise _unusable(run, name, f"no column {', '.join(missing)}")
    return table


def _read_maps(run: AnyPath) -> dict[str, np.ndarray]:
    table = _read_table(run, MAPS, MAP)
    try:
        return {
            name: np.asarray(heat, np.float64).reshape(rows, -1) / 255
            for name, rows, heat in zip(*(table[column] for column in MAP), strict=True)
        }
    except (ValueError, TypeError) as error:
        raise _unusable(run, MAPS, error) from error


def _read_products(run: AnyPath, folder: str) -> Products:
    """Decisions and truth of the measured products; of 2 M products a few columns, 200 MB."""
    decided = _read_columns(run, f"{folder}/decisions.parquet", DECIDED)
    measured = _read_columns(run, f"{folder}/measured.parquet", MEASURED)
    if not decided["product_id"].equals(measured["product_id"]):
        raise _unusable(run, f"{folder}/measured.parquet", "other products than in decisions.parquet")
    return Products(
        product_id=measured["product_id"],
        predicted=_coded(decided["category"]),
        predicted_path=_coded(decided["category_path"]),
        true=_coded(measured["true_category"]),
        true_path=_coded(measured["true_path"]),
        confidence=decided["confidence"].to_numpy(),
        accepted=pc.fill_null(pc.equal(decided["status"].cast(pa.string()), "accepted"), False).to_numpy(),
        learnt=measured["learnt"].to_numpy(),
        correct=measured["correct"].to_numpy(),
    )


def _read_columns(run: AnyPath, name: str, columns: tuple[str, ...]) -> pa.Table:
    few = [column for column in columns if column in ("category", "category_path", "status", "true_category")]
    few += [column for column in columns if column == "true_path"]
    try:
        with pq.ParquetFile(local(run / name), read_dictionary=few) as file:
            missing = [column for column in columns if column not in file.schema_arrow.names]
            if missing:
                raise _unusable(run, name, f"no column {', '.join(missing)}")
            return file.read(list(columns))
    except (OSError, ValueError) as error:
        raise _unusable(run, name, error) from error


def _coded(column: pa.ChunkedArray) -> Coded:
    if column.num_chunks == 0:
        return Coded(np.empty(0, object), np.empty(0, np.int32))
    whole = column.unify_dictionaries().combine_chunks()
    whole = whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
    code = pc.fill_null(whole.indices, -1).to_numpy(zero_copy_only=False).astype(np.int32)
    return Coded(whole.dictionary.to_numpy(zero_copy_only=False), code)


def _unusable(run: AnyPath, name: str, why: Exception | str) -> ShelfmarkError:
    folder = Path(name).parts[0]
    command = STAGES.get(folder, "ingest")
    if isinstance(why, FileNotFoundError):
        state, advice = "missing", f"run `shelfmark {command}` first"
    else:  # a stage opens what has its size; damage that keeps the size has to be removed
        state = f"not usable ({str(why).splitlines()[0]})"
        advice = f"remove {run / folder} and run `shelfmark {command}` again"
    return ShelfmarkError(f"{run / name}: {state}; expected a file that this version writes; {advice}")
