"""What a comparison found, as its files hold it.

    rows/<row>.json    RowResult, and `made_from`: digest of all that the row depends on
    comparison.json    Comparison
    comparison.csv     of each row the columns COLUMNS

Precisions and acceptance rates are shares, 0 to 1.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

COLUMNS = (
    *("row", "features", "classifier", "fine_tuned", "learnt_products", "train_precision"),
    *("val_precision", "val_products", "acceptance_rate_at_target", "target_precision"),
    *("fit_precision", "fit_products", "fit_acceptance_rate_at_target"),
    *("parameters", "seconds", "paper_train", "paper_val", "settings"),
)


@dataclass(frozen=True)
class RowResult:
    """What one row gave. The fields are the keys of its JSON, in this order."""

    row: str  # name, as in --only
    features: str
    classifier: str  # for people
    fine_tuned: bool
    learnt_products: int  # trained on
    train_precision: float
    val_precision: float  # of CERT, as are the next two
    val_products: int
    acceptance_rate_at_target: float
    fit_precision: float  # 0 where FIT has no products, as is its acceptance rate
    fit_products: int
    fit_acceptance_rate_at_target: float
    target_precision: float
    parameters: int
    seconds: float  # of training
    paper_train: float | None  # precision published for the paper's catalogue
    paper_val: float | None
    settings: str  # `--set` options of a head; "" of a baseline
    chosen: Mapping[str, float]  # by FIT: "epochs" of a head, "C" of an SVM

    @property
    def merit(self) -> tuple[float, float]:
        """What rows are sorted by: acceptance rate and precision, both of FIT."""
        return self.fit_acceptance_rate_at_target, self.fit_precision

    def to_json(self, made_from: str) -> bytes:
        """What the row's file holds."""
        return json.dumps(asdict(self) | {"made_from": made_from}, indent=1).encode()

    @classmethod
    def from_json(cls, text: str, made_from: str) -> "RowResult | None":
        """Reads what `to_json` returned; None where it was made from something else.

        Raises:
            ValueError: the text is not such a row.
        """
        try:
            values = json.loads(text)
            return cls(**values) if values.pop("made_from") == made_from else None
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a row of a comparison: {error}") from error


@dataclass(frozen=True)
class Comparison:
    """All rows, and what they were measured on. The fields are the keys of comparison.json, in this order."""

    rows: Sequence[RowResult]
    notes: Sequence[str]  # rows that were left out, and why
    categories: int
    drawn: bool  # the categories are a random draw
    val_products: int  # of CERT
    fit_products: int
    target: float  # precision promised
    recipe: str  # setting head.recipe
    best: str  # a sentence: which row to use
    commands: str  # releases the best head; "" where there is none
    best_row: str | None  # its name

    def to_json(self) -> bytes:
        """What comparison.json holds."""
        return json.dumps(asdict(self), indent=1).encode()

    def to_csv(self) -> bytes:
        """What comparison.csv holds: a line for each row."""
        file = io.StringIO()
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in self.rows)
        return file.getvalue().encode()
