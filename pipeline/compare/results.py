"""What a comparison found, as its files hold it.

    rows/<row>.json    RowResult, and `made_from`: digest of all that the row depends on
    comparison.json    Comparison
    comparison.csv     of each row the columns COLUMNS

    backbones/<name>-<digest>.json    BackboneResult, and `made_from`; beside it .npz, see Outcomes
    backbones.json                    BackboneComparison
    backbones.csv                     of each backbone the columns BACKBONE_COLUMNS

Precisions and acceptance rates are shares, 0 to 1.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self, cast

COLUMNS = (
    *("row", "features", "classifier", "fine_tuned", "learnt_products", "train_precision"),
    *("val_precision", "val_products", "acceptance_rate_at_target", "target_precision"),
    *("fit_precision", "fit_products", "fit_acceptance_rate_at_target"),
    *("parameters", "seconds", "paper_train", "paper_val", "settings"),
)


class SavedResult:
    """A result that has a file of its own, so that a killed comparison continues after it: a dataclass."""

    fit_precision: float
    fit_acceptance_rate_at_target: float

    @property
    def merit(self) -> tuple[float, float]:
        """What results are sorted by: acceptance rate and precision, both of FIT."""
        return self.fit_acceptance_rate_at_target, self.fit_precision

    def to_json(self, made_from: str) -> bytes:
        """What its file holds."""
        return json.dumps(asdict(cast(Any, self)) | {"made_from": made_from}, indent=1).encode()

    @classmethod
    def from_json(cls, text: str, made_from: str) -> Self | None:
        """Reads what `to_json` returned; None where it was made from something else.

        Raises:
            ValueError: the text is not such a result.
        """
        try:
            values = json.loads(text)
            return cls(**values) if values.pop("made_from") == made_from else None
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a result of a comparison: {error}") from error


@dataclass(frozen=True)
class RowResult(SavedResult):
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

    records: str = ""  # digest of the records that it was measured on

    def to_json(self) -> bytes:
        """What comparison.json holds."""
        return json.dumps(asdict(self), indent=1).encode()

    def to_csv(self) -> bytes:
        """What comparison.csv holds: a line for each row."""
        return _csv(COLUMNS, [asdict(row) for row in self.rows])


@dataclass(frozen=True)
class Interval:
    """A difference or a share, and its 95 % interval."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True)
class BackboneResult(SavedResult):
    """What one backbone gave. The fields are the keys of its JSON, in this order."""

    backbone: str  # as Backbone.name
    weights: str  # what they are called
    own: bool  # it is the run's
    given: str  # as for --backbones; "" of the run's own
    fingerprint: str
    image_size: int  # px
    width: int  # numbers in a bottleneck
    parameters: int  # of the network as far as it runs
    learnt_products: int  # that its head was trained on
    epochs: int  # that FIT chose
    train_precision: float
    val_precision: float  # of CERT, as are the next three
    val_products: int
    levels: Mapping[str, float]  # by level: share of products whose node is the most likely one
    acceptance_rate_at_target: float
    target_precision: float
    fit_precision: float
    fit_products: int
    fit_acceptance_rate_at_target: float
    engine: str
    images_per_second: float  # extraction on this computer, photos read and decoded
    measured_images: int
    peak_memory: int  # bytes, of a process that loads the network and extracts
    store_bytes_per_million: int  # of a million images
    acceptance_interval: Interval | None = None  # these three are computed for all backbones together
    precision_difference: Interval | None = None  # to the run's own backbone, on CERT; None of this itself
    acceptance_difference: Interval | None = None  # likewise

    @property
    def label(self) -> str:
        """Name and weights, for people."""
        return f"{self.backbone} ({self.weights})"


BACKBONE_COLUMNS = tuple(
    field.name
    for field in fields(BackboneResult)
    if field.name not in ("levels", "acceptance_interval", "precision_difference", "acceptance_difference")
)


@dataclass(frozen=True)
class BackboneComparison:
    """All backbones, and what they were measured on. The fields are the keys of backbones.json."""

    rows: Sequence[BackboneResult]
    notes: Sequence[str]  # backbones that failed, and why
    categories: int
    drawn: bool  # the categories are a random draw
    val_products: int  # of CERT
    fit_products: int
    target: float  # precision promised
    best: str  # a sentence: which backbone to use
    command: str  # uses the best one; "" where it is the run's own
    best_row: str | None  # its fingerprint
    records: str  # digest of the records that it was measured on

    def to_json(self) -> bytes:
        """What backbones.json holds."""
        return json.dumps(asdict(self), indent=1).encode()

    def to_csv(self) -> bytes:
        """What backbones.csv holds: a line for each backbone; a column for each level and end of interval."""
        names = list(self.rows[0].levels) if self.rows else []
        rows = []
        for row in self.rows:
            values: dict[str, object] = asdict(row) | dict(row.levels)
            for name in ("precision_difference", "acceptance_difference"):
                interval: Interval | None = getattr(row, name)
                values |= {
                    f"{name}_lower": interval and interval.lower,
                    f"{name}_upper": interval and interval.upper,
                }
                values[name] = interval and interval.value
            rows.append(values)
        differences = [
            f"{name}{end}"
            for name in ("precision_difference", "acceptance_difference")
            for end in ("", "_lower", "_upper")
        ]
        return _csv([*BACKBONE_COLUMNS, *names, *differences], rows)


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()
