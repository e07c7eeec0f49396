"""What each stage's manifest.json says in its summary: one definition for the stage and for its readers.

The order of the fields is that of the file, on which digests depend.
"""

from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from features.errors import ShelfmarkError
from features.storage.artifact import Artifact
from features.storage.paths import MARK
from features.views import WHOLE, View, parse_view


class Summary(BaseModel):
    """A summary; unknown keys, as a later version may write them, are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @classmethod
    def of(cls, artifact: Artifact) -> Self:
        """The summary of a finished artifact.

        Raises:
            ShelfmarkError: it lacks what every version writes.
        """
        try:
            return cls.model_validate(artifact.summary)
        except ValidationError as error:
            names = ", ".join(str(problem["loc"][0]) for problem in error.errors())
            raise ShelfmarkError(
                f"{artifact.path / MARK}: {names} missing in the summary or of another type; expected what "
                "the stage writes; remove the directory and run the stage again"
            ) from error

    def to_dict(self) -> dict[str, object]:
        """The fields that were given, for the manifest."""
        return self.model_dump(exclude_unset=True)


class RecordsSummary(Summary):
    """records/: where every image and product of the sources went."""

    ignored: int = 0  # files that operating systems leave in folders
    products: int
    images: int
    records: dict[str, int]  # images by part: train, val, test
    rejects: dict[str, int]  # images by reason
    uncategorized_products: int
    uncategorized_images: int
    dropped_products: int  # of unlearnt categories, neither in val nor in test
    dropped_images: int
    dropped_categories: int  # without training products: too small, or held out
    unlearnt_products: int = 0  # of these categories, in val and test
    unlearnt_images: int = 0
    unreadable_products: int
    products_in_two_categories: int = 0
    images_of_several_products: int
    images_in_several_categories: int
    placeholder_images: int
    categories_in_two_places: int = 0
    relabelled: dict[str, int] = {}  # products that have another category by a mapping, by kind of change
    unlabelled: dict[str, int] = {}  # products that have none any more, likewise
    corrected: dict[str, int] = {}  # products whose label is a correction: new, changed or confirmed
    corrections_left_out: dict[str, int] = {}  # corrections that are no label, by reason


class BackboneSummary(Summary):
    """backbone/: the run's own, fine-tuned backbone."""

    fingerprint: str
    backbone: str  # as in keras.applications
    weights: str  # what they are called
    layers: int
    frozen: int  # layers that stay as they are
    products: int  # trained on
    images: int
    epochs: int
    precision: str = ""  # in which it was tuned: float32 or bfloat16; "": of an older version


class BottlenecksSummary(Summary):
    """bottlenecks/: the images, and what computed their bottlenecks."""

    images: int
    fingerprint: str
    backbone: str
    weights: str
    views: int = 1  # of each image
    view_names: tuple[str, ...] = ()  # of these; an older file has one view, or two, the second mirrored
    asked: tuple[str, ...] = ()  # of these, those from which predictions are made; an older file: all
    averaged: bool = False  # an image's views are one row, their mean; else a row each
    engines: dict[str, int]  # images by the engine that computed them, of the first view
    view_engines: dict[str, dict[str, int]] = {}  # likewise, of the other views

    @property
    def extracted(self) -> tuple[View, ...]:
        """The views that there are; training takes all of them."""
        return tuple(map(parse_view, self.view_names or ("whole", "flip")[: self.views]))

    @property
    def predicted_from(self) -> tuple[View, ...]:
        """The views that predictions are made from."""
        return tuple(map(parse_view, self.asked)) or self.extracted

    @property
    def seen(self) -> str:
        """What a head that is trained on these views depends on."""
        names, asked = ([view.name for view in views] for views in (self.extracted, self.predicted_from))
        parts = [" ".join(names), f"asked {' '.join(asked)}" * (asked != names), "averaged" * self.averaged]
        return ", ".join(part for part in parts if part)


def column_of(view: View, name: str) -> str:
    """What the index calls a column of a view, `shard` or `row`.

    >>> column_of(WHOLE, "row"), column_of(View(256), "row")
    ('row', '256_row')
    """
    return name if view == WHOLE else f"{view.name}_{name}"


class HeadSummary(Summary):
    """head/: what the head was trained on."""

    images: int
    left_out: int  # images with suspected labels
    categories: int
    epochs: int
    precision: str = ""  # in which it was trained: float32 or bfloat16; "": of an older version


class ThresholdsSummary(Summary):
    """thresholds/: the certificate in short."""

    aggregation: str
    certified: bool
    threshold: float | None
    certified_products: int
    acceptance_rate: float
    reason: str | None
    levels_certified: int = 0  # of those above the categories
    withheld_categories: int = 0  # new or split ones that wait for evidence


class StylesSummary(Summary):
    """styles/: what styles were found in."""

    styles: int
    products: int
    categories: int
    without_styles: int  # categories


class SellersSummary(Summary):
    """sellers/: the certificate of adapted decisions in short."""

    method: str
    certified: bool
    threshold: float | None
    acceptance_rate: float  # of the decisions that could be adapted, one of each CERT seller
    fit_sellers: int
    cert_sellers: int
    fit_products: int  # whose decision could be an adapted one
    cert_products: int  # likewise
    reason: str | None  # why nothing is accepted


class EvaluationSummary(Summary):
    """evaluation/: the figures in short, on test, or on CERT where there is no test part."""

    graded_on: str
    independent: bool  # measured on test
    products: int
    precision: float | None
    accepted: int
    accepted_precision: float | None


class BySellerSummary(Summary):
    """by_seller/: what corrections bring to sellers, in short."""

    sellers: int  # that the figures are about
    products: int
    base: float | None  # precision
    adapted: float | None
    oracle: float | None
    better: int  # sellers
    same: int
    worse: int
    reason: str | None  # why nothing was measured


class MapsSummary(Summary):
    """maps/: where the network looked."""

    photos: int


class InServiceSummary(Summary):
    """in_service/: what the release that was in service decides about the measured products."""

    release: str
    products: int


class GateSummary(Summary):
    """gate/: the test products that two releases are compared on."""

    release: str  # the one in service
    measured_on: str  # of this week: test, or cert where there is no test part
    products: int
    both: int  # in this week's measured products and in those of the release in service
    new: int  # in this week's alone
    gone: int  # in those of the release in service alone
    unmeasured: int  # in those of the release in service alone, but its records are not there
    unlabelled: int  # left out: its category was split, or a mapping removed it
    trained_on: int  # left out: one of the two was trained on the product
    photo_trained_on: int  # left out: one of the two alone was trained on a photo of it
    missing: str | None  # why the records of the release in service could not be used


class TreeSummary(Summary):
    """tree/: what became of the categories of the release in service; counts of categories."""

    release: str | None  # None before the first one
    unchanged: int
    renamed: int
    moved: int
    merged: int
    split: int
    deleted: int
    dead: int  # the mapping leads to none of the new tree
    cyclic: int  # the mapping leads back
    added: int
    unproven: int = 0  # of this week's, that wait for evidence before they may be accepted
    changed: bool = False  # the categories that a head learns, or their places, are others


class SuspectsSummary(Summary):
    """suspects/: labels in doubt, and how many labels are probably wrong."""

    examined: int  # products whose label was compared with predictions
    suspects: int  # listed
    identical_images: int  # of these, because of an image that is in another category, too
    noise: float  # estimated share of wrong labels, the smaller one of the next two
    noise_of_confident_joint: float  # among the accepted products
    noise_of_most_confident: float  # among the products with the most confident predictions
    target: float  # precision promised
    target_above_ceiling: bool  # the target is above 1 - noise: wrong labels alone break it


class BundleSummary(Summary):
    """bundle/: what everybody who uses it has to know."""

    backbone: str
    weights: str
    fingerprint: str
    independent: bool


class ExportSummary(Summary):
    """Of an export: what a program needs to use it."""

    format: str  # saved_model, onnx or openvino
    release: str
    target_precision: float
    caveats: list[str]
    backbone: str
    weights: str
    image_size: int  # px
    views: list[str]  # that it computes of each image
    inputs: dict[str, str]  # name → shape, type, meaning
    outputs: dict[str, str]
    left_out: list[str]  # of what `categorize` does
    versions: dict[str, str]  # of the packages that wrote it
    check: dict[str, object] | None  # what `--check` found
