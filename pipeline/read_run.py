"""A run for notebooks: its figures, tables and photos as pandas frames.

    from pipeline.read_run import read_run

    run = read_run("W/runs/2026-W47")          # or of an object store: s3://bucket/W/runs/2026-W47
    run.evaluation                             # a row for each part: train, val, cert, test
    run.decisions                              # the measured products: decided and true category
    run.table("decisions", ["status", "correct"])   # only these columns are read
    run.describe("decisions")                  # what the columns mean
    run.photo("1234")                          # the product's first photo, a PIL image

A table is read when it is used for the first time, and kept. The measured products are those of test, or of
CERT where there is no test part.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import get_args

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image
from pydantic import ValidationError

from features.errors import ShelfmarkError
from features.records import image_of, unframe
from features.storage.paths import MARK, AnyPath, any_path, local, read_range
from pipeline.job.run import saved_run
from pipeline.train.figures import Metrics, PartFigures, PrecisionFigures

_CURVE = {
    "threshold": "accept where the confidence is at least this",
    "acceptance_rate": "share of the measured products accepted",
    "precision": "share of the accepted ones that is correct",
    "precision_lower": "its one-sided lower bound for this threshold alone, no promise",
}
_PRODUCTS = {
    "product_id": "of the source",
    "category": "most likely category",
    "category_path": "its names from coarse to fine",
    "confidence": "probability that the most likely category is correct, 0 to 1",
    "status": "accepted (the category), parent (a node above it), review (a person decides)",
    "node": "what was decided; missing where a person decides",
    "node_path": "its names from coarse to fine",
    "node_level": "its level, 1 = coarsest",
    "top_categories": "up to five categories, most likely first",
    "top_probabilities": "probabilities of these, by the head",
    "views": "views of its photos that decided, joined by commas",
    "release": "name of the release that decided; missing in an evaluation",
}
_MEASURED = {
    "true_category": "category in the source",
    "true_path": "its names from coarse to fine",
    "learnt": "whether the head was trained on the true category",
    "unseen": "whether no image of the product was trained on",
    "weight": "of the source's column weight; 1 where it has none",
    "images": "images that the prediction is made from",
    "correct": "whether the most likely category is the true one",
    "node_correct": "whether the node decided is correct; missing where a person decides",
}
_CATEGORIES = {
    "category": "as in the source",
    "name": "its names from coarse to fine",
    "department": "its node of level 1",
    "train_products": "trained on",
    "products": "measured ones whose true category it is",
    "right": "of these, predicted correctly",
    "predicted": "measured ones predicted as it",
    "predicted_right": "of these, correctly",
    "accepted": "predicted as it and accepted",
    "accepted_right": "of these, correctly",
    "fit_predicted": "products of FIT predicted as it",
    "fit_right": "of these, correctly",
    "estimate": "precision of the products predicted as it, shrunken towards that of all; no promise",
    "lower": "lower end of the 90 % interval of the estimate",
    "upper": "its upper end",
    "status": "automatic, with care, always review, too few (to say)",
    "kept": "whether it is among the best categories, chosen on FIT",
}


@dataclass(frozen=True)
class _Table:
    """A table of a run."""

    stage: str  # directory in the run
    command: str  # that makes it
    files: dict[str, dict[str, str]]  # file → column → what it means; all files have the same rows


TABLES = {
    "curve": _Table("evaluation", "evaluate", {"curve": _CURVE}),
    "level_curves": _Table(
        "evaluation",
        "evaluate",
        {"level_curves": {"level": "of the tree, 1 = coarsest; each by itself"} | _CURVE},
    ),
    "ladder": _Table(
        "evaluation",
        "evaluate",
        {
            "ladder": {
                "target": "precision promised",
                "certified": "whether CERT certifies a threshold for it",
                "threshold": "the certified threshold",
                "cert_acceptance": "share of CERT accepted at it",
                "accepted": "measured products accepted at it",
                "precision": "of these, share that is correct",
                "precision_lower": "its one-sided lower bound",
                "more_products_needed": "in CERT, about; missing when certified or when more do not help",
                "at_best": "whether that number is a lower limit",
            }
        },
    ),
    "categories": _Table("evaluation", "evaluate", {"categories": _CATEGORIES}),
    "unlearnt": _Table(
        "evaluation",
        "evaluate",
        {
            "unlearnt": {
                "category": "that the head was not trained on",
                "name": "its names from coarse to fine",
                "products": "in the catalogue",
                "measured": "among the measured ones",
                "accepted": "of these, into another category",
                "parent_right": "of these, put under a correct node above",
            }
        },
    ),
    "confusions": _Table(
        "evaluation",
        "evaluate",
        {
            "confusions": {
                "category": "true one",
                "category_name": "its names from coarse to fine",
                "predicted": "category predicted instead",
                "predicted_name": "its names from coarse to fine",
                "products": "measured ones with this pair",
            }
        },
    ),
    "decisions": _Table("evaluation", "evaluate", {"decisions": _PRODUCTS, "measured": _MEASURED}),
    "suspects": _Table(
        "suspects",
        "audit suspects",
        {
            "suspects": {
                "product_id": "of the source",
                "category": "given in the source",
                "category_path": "its names from coarse to fine",
                "proposed": "category that the product more probably has",
                "proposed_path": "its names from coarse to fine",
                "confidence": "probability that the proposed one is correct",
                "label_wrong": "probability that the given one is wrong",
                "reason": "prediction, identical image, or both",
                "part": "train, val or test",
                "image_digest": "of the photo to look at",
            }
        },
    ),
}


def read_run(path: str | Path) -> "RunTables":
    """Opens a run to read it; nothing is read but its config.json.

    Args:
        path: the run's directory, WORKSPACE/runs/<run>, or the URL of one.

    Raises:
        ShelfmarkError: there is no run.
    """
    run = any_path(str(path))
    if saved_run(run) is None:
        known = sorted(found.parent.name for found in run.glob("runs/*/config.json"))
        advice = f"give one of its runs: {', '.join(known)}" if known else "check the path"
        raise ShelfmarkError(
            f"{run}: no config.json; expected the directory of a run, WORKSPACE/runs/<run>; {advice}"
        )
    return RunTables(run)


@dataclass(frozen=True)
class RunTables:
    """A run's tables as pandas frames; `describe` says what their columns mean."""

    path: AnyPath

    def table(self, name: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """One of TABLES, or only some of its columns, which alone are read.

        Args:
            name: curve, level_curves, ladder, categories, unlearnt, confusions, decisions or suspects.
            columns: in their order; None: all.

        Raises:
            ShelfmarkError: the run has not got this far, was made by another version, or a name is unknown.
        """
        table = _known(name)
        known = [column for columns_of in table.files.values() for column in columns_of]
        wanted = known if columns is None else list(columns)
        if unknown := [column for column in wanted if column not in known]:
            raise ShelfmarkError(
                f"{name}: no column {', '.join(unknown)}; expected some of {', '.join(known)}; correct it"
            )
        parts = []
        for file, of_file in table.files.items():
            own = [column for column in wanted if column in of_file]
            if own:
                parts.append(self._read(table, f"{file}.parquet", own))
        frame = pd.concat(parts, axis=1) if parts else pd.DataFrame()
        return frame[wanted]

    def _read(self, table: _Table, file: str, columns: list[str]) -> pd.DataFrame:
        self._require(table.stage, table.command)
        path = self.path / table.stage / file
        if not path.is_file():
            raise self._other_version(path, "missing", table.command)
        try:
            lacking = set(columns) - set(pq.read_schema(local(path)).names)
            read = pq.read_table(local(path), columns=sorted(set(columns) - lacking))
        except pa.ArrowException as error:
            raise self._other_version(path, "damaged", table.command) from error
        if lacking:
            raise self._other_version(path, f"no column {', '.join(sorted(lacking))}", table.command)
        frame: pd.DataFrame = read.to_pandas()
        return frame

    def _require(self, stage: str, command: str) -> None:
        if not (self.path / stage / MARK).is_file():
            raise ShelfmarkError(
                f"{self.path / stage}: missing; expected the run's finished {stage}; "
                f"run `shelfmark {command}` first"
            )

    @staticmethod
    def _other_version(path: AnyPath, what: str, command: str) -> ShelfmarkError:
        return ShelfmarkError(
            f"{path}: {what}; expected what this version writes; run `shelfmark {command}` again"
        )

    @staticmethod
    def describe(name: str) -> pd.DataFrame:
        """The columns of one of TABLES, and what they mean."""
        rows = [row for columns in _known(name).files.values() for row in columns.items()]
        return pd.DataFrame(rows, columns=["column", "meaning"]).set_index("column")

    @cached_property
    def evaluation(self) -> pd.DataFrame:
        """The figures of metrics.json: a row for each part that has products, and for each figure a column.

        Figures within figures have both names: learnt.precision, levels.level1.top1, decided.level1.products.
        """
        self._require("evaluation", "evaluate")
        path = self.path / "evaluation" / "metrics.json"
        try:
            metrics = Metrics.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise self._other_version(path, "not usable", "evaluate") from error
        figures = {part: getattr(metrics, part) for part in ("train", "val", "cert", "test")}
        rows = {part: of_part.model_dump() for part, of_part in figures.items() if of_part is not None}
        frame = pd.json_normalize(list(rows.values()))
        within = [
            name
            for name, field in PartFigures.model_fields.items()
            if PrecisionFigures in get_args(field.annotation)  # a part without them has a null in their place
        ]
        return frame.set_index(pd.Index(rows, name="part")).drop(columns=within, errors="ignore")

    @cached_property
    def curve(self) -> pd.DataFrame:
        """Acceptance rate and precision of the categories at each threshold, the strictest first."""
        return self.table("curve")

    @cached_property
    def level_curves(self) -> pd.DataFrame:
        """The curves of all levels."""
        return self.table("level_curves")

    @cached_property
    def ladder(self) -> pd.DataFrame:
        """Targets, and what each would cost in acceptance."""
        return self.table("ladder")

    @cached_property
    def categories(self) -> pd.DataFrame:
        """Counts, estimate and status of each category that the head was trained on."""
        return self.table("categories")

    @cached_property
    def unlearnt(self) -> pd.DataFrame:
        """The categories that the head was not trained on."""
        return self.table("unlearnt")

    @cached_property
    def confusions(self) -> pd.DataFrame:
        """The most frequent pairs of true and predicted category that differ."""
        return self.table("confusions")

    @cached_property
    def decisions(self) -> pd.DataFrame:
        """The measured products: what was decided about each, and what is true."""
        return self.table("decisions")

    @cached_property
    def suspects(self) -> pd.DataFrame:
        """Products whose given category is probably wrong, the most probable first."""
        return self.table("suspects")

    def images(self, product_ids: Sequence[str]) -> pd.DataFrame:
        """Where the photos of products are: product_id, image_index, image_digest, file, offset, length.

        The file is one of records/; offset and length are those of the record in it, in bytes. Products that
        are not in the records, because no stage needs their photos, have no row.
        """
        self._require("records", "ingest")
        columns = ["product_id", "image_index", "image_digest", "file", "offset", "length"]
        wanted = pc.field("product_id").isin(pa.array(list(map(str, product_ids)), pa.string()))
        file = local(self.path / "records" / "images.parquet")
        rows: pd.DataFrame = pq.read_table(file, columns=columns, filters=wanted).to_pandas()
        return rows.sort_values(["product_id", "image_index"], ignore_index=True)

    def photos(self, product_id: str) -> list[Image.Image]:
        """The photos of a product, RGB or grey, in the source's order.

        Raises:
            ShelfmarkError: the records do not hold the product.
        """
        rows = self.images([product_id])
        if rows.empty:
            raise ShelfmarkError(
                f"product {product_id}: not in {self.path / 'records'}; expected a product of train, val or "
                "test with a readable image; check its split in products.parquet"
            )
        return [
            self._photo(file, offset, length)
            for file, offset, length in rows[["file", "offset", "length"]].itertuples(index=False, name=None)
        ]

    def photo(self, product_id: str) -> Image.Image:
        """The first photo of a product; errors as for `photos`."""
        return self.photos(product_id)[0]

    def _photo(self, file: str, offset: int, length: int) -> Image.Image:
        framed = read_range(self.path / "records" / file, int(offset), int(length))
        return Image.open(io.BytesIO(image_of(unframe(framed))))

    def __repr__(self) -> str:
        """The run and the names of its tables."""
        return f"<run {self.path}: evaluation, {', '.join(TABLES)}; describe(table), photo(product_id)>"


def _known(name: str) -> _Table:
    if name not in TABLES:
        raise ShelfmarkError(f"{name!r}: no table; expected one of {', '.join(TABLES)}; correct the name")
    return TABLES[name]
