"""Every setting on one page, with its default and when to change it. Reading them: load_config.py.

A setting that changes a result is part of the digest of the stage that uses it; those marked `speed` are not,
those marked `calibrate` or `ingest` are part of that stage's.
"""

import json
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    field_validator,
    model_validator,
)

from features.views import find_view

# the names of features/engines/onnx_input.py
Scaling = (
    Literal["0..255", "0..1", "-1..1", "imagenet", "clip"]
    | tuple[float, float, float, PositiveFloat, PositiveFloat, PositiveFloat]
)
Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(ge=1, strict=True)]  # true is not 1


ELSEWHERE = {"speed", "calibrate", "ingest"}  # marks of settings that another stage's digest holds, or none
# sections that can change a release
SETS = ("ingest", "backbone", "extract", "finetune", "head", "train", "calibration", "sellers")


def _view_name(name: str) -> str:
    """The name of a view of a photo."""
    if find_view(name) is None:
        raise ValueError(
            f"no view {name!r}; expected names such as whole, flip, 256, 256-flip, 256-center, 256-max"
        )
    return name


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of which none is there twice."""
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{twice} is there more than once; expected each view once")
    return names


ViewName = Annotated[str, AfterValidator(_view_name)]


class Section(BaseModel):
    """A section of settings: frozen, unknown names refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,  # they are the text of docs/settings.md
    )

    def that_matter(self) -> dict[str, object]:
        """The settings that can change the section's own stage, for its digest."""
        fields = type(self).model_fields
        return {
            name: value
            for name, value in self.model_dump().items()
            if not set(fields[name].metadata) & ELSEWHERE
        }


def _known_encoding(name: str) -> str:
    """The name of a text encoding that Python has."""
    try:
        "".encode(name)
    except LookupError as error:
        raise ValueError(f"{error}; expected one as utf-8, cp1252 or utf-16") from error
    return name


def _web_address(url: str) -> str:
    """The address of a web server, or "" for none."""
    if url and not re.match(r"https?://[^/\s]+\S*$", url):
        raise ValueError("not a web address; expected http://… or https://…")
    return url


def _postgresql(url: str) -> str:
    """The URL of a PostgreSQL database without a password, or "" for none."""
    if not url:
        return url
    if not re.match(r"postgres(ql(\+psycopg)?)?://\S+$", url):
        raise ValueError("not a PostgreSQL database; expected postgresql://USER@HOST/NAME")
    if re.search(r"(?i)^[^/]*//[^/@]*:.*@|[?&][^=&#]*password=", url):
        raise ValueError(
            "it holds a password, and config.json would keep it; expected the URL with its password in the "
            "variable SHELFMARK_CORRECTIONS, or a file ~/.pgpass"
        )
    return url


class IngestSettings(Section):
    """From a source to records."""

    min_products: Positive = 20
    """Products that a category needs to be learnt (20 in the paper); those of smaller categories count as
    wrong. Lower it for a small catalogue; raise it when categories with few products are often wrong. Not
    used where the source gives the split."""
    val_share: Share = 0.1
    """Share of each category's products for validation, at least one product. It selects (FIT) and certifies
    (CERT). Raise it, to 0.2 for instance, when the threshold is not certifiable for lack of products.
    Products of the release in service keep their part: it works at once only in a new workspace."""
    test_share: Share = 0.1
    """Share of each category's products for the test, which measures the result. Raise it when the report's
    intervals are too wide."""
    least_test: Annotated[int, Field(ge=0, strict=True)] = 10
    """Products of each category in the test, at least, as long as one is left to train (10 in the paper).
    Lower it, to 2 for instance, when most categories are small: one with 20 products trains on 8 only."""
    sellers_apart: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the sellers, drawn by their names, whose new products all go to the test: `shelfmark evaluate
    --by seller` then measures what corrections bring to sellers that training has not seen. Set 0.1 where
    you have hundreds of sellers and want to know. Products of the release in service keep their part, and
    the test then has more products of these sellers than your catalogue."""
    max_rejected: Annotated[float, Field(ge=0, le=1)] = 0.10
    """Largest share of the images that may be rejected; above it the run stops and names the three most
    common reasons. Raise it only when you know why so many images cannot be read: a high share usually
    means a wrong path or a failed export."""
    max_pixels: Positive = 50_000_000
    """Largest image in pixels, width times height as the file declares it; larger ones are rejected as
    `too_large`. Lower it to bound memory and time for each image; raise it for photos from cameras above 50
    megapixels."""
    placeholder_products: Annotated[int, Field(ge=2)] = 100
    """An image that this many products share is marked as a placeholder ("no photo yet") instead of a
    photo. Lower it when your shop's placeholder image is used by fewer products; raise it when many
    products rightly share one photo."""
    min_known: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Smallest share of the products of the release in service that must be found in the catalogue again.
    Below it the job stops, because a changed column of ids would move training products into the test part.
    Set 0 once, when the catalogue really is another one."""
    csv_delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """Character between the cells of a CSV manifest; without it, it is detected. Set it when the log names
    a wrong one."""
    csv_encoding: Annotated[str, AfterValidator(_known_encoding)] | None = None
    """Text encoding of a CSV manifest, as in `cp1252`; without it, it is detected. Set it when the log
    names a wrong one, or when names of categories show wrong letters."""
    urls: Literal["public", "any"] = "public"
    """Addresses that photos may be fetched from. `any` also allows this machine and private networks:
    choose it when your image server is internal and you trust whoever wrote the manifest."""
    url_concurrency: Annotated[Positive, "speed"] = 32
    """Requests at a time in each worker. Raise it for a fast server that is far away; lower it for a small
    one."""
    url_timeout: Annotated[float, Field(gt=0), "speed"] = 30.0
    """Seconds for one request with its whole answer. Raise it for large photos over a slow line."""
    url_retries: Annotated[int, Field(ge=0, strict=True), "speed"] = 4
    """Tries after the first one that failed. Raise it for a server that is often busy; lower it so that
    dead addresses cost less time."""
    unit_bytes: Positive = 32 * 2**20
    """Bytes of source images in one unit of work and in one output shard. Lower it to spread a BSON file
    over more workers than about one for 32 MB of it. It cuts the records differently, so they get another
    digest."""
    unit_images: Positive = 2000
    """Images in one unit of work, for sources of single files. Lower it to spread a small catalogue over
    more workers. It cuts the records differently, so they get another digest."""

    @model_validator(mode="after")
    def _leaves_some_to_train(self) -> "IngestSettings":
        if self.val_share + self.test_share >= 1:
            raise ValueError(
                f"val_share {self.val_share:g} and test_share {self.test_share:g} leave nothing to train on; "
                "expected a sum under 1"
            )
        return self


class BackboneSettings(Section):
    """The frozen network that turns an image into a vector."""

    name: str = "inception_v3"
    """Network, by its name in `keras.applications` in snake case; with `@` and names of its layers, joined
    by `+`, it ends there: `inception_v3@mixed5`. Choose a smaller one, such as `mobilenet`, when extraction
    takes too long; `shelfmark compare --backbones` shows which is best on your catalogue. An encoder of
    one's own: `FILE.onnx`, with `@` and the name of an output or inner tensor where it is not the only
    output, or `hub:DIRECTORY`, a preset of KerasHub (docs/encoders.md); a path in a TOML file is relative to
    that file."""
    weights: str = "imagenet"
    """`imagenet` (downloaded by Keras), `random`, or a `.weights.h5` file of the network without its top; a
    path in a TOML file is relative to that file. Name a file when this machine cannot reach Keras' weights;
    `random` only to try the pipeline."""
    image_size: Annotated[int, Field(ge=32, le=1024)] | None = None
    """Width and height in pixels to which images are resized; without it the network's own, 299 for
    Inception v3. Lower it to extract faster, at a cost in accuracy (docs/experiments/extraction.md)."""
    layout: Literal["auto", "nchw", "nhwc"] = "auto"
    """Order of the axes of a photo in `FILE.onnx`: `nchw` has the colours before height and width, `nhwc`
    behind them. `auto` takes the axis of 3; set it when the file does not say which axis that is."""
    scaling: Scaling | None = None
    """How `FILE.onnx` wants the colours: `0..255`, `0..1`, `-1..1`, `imagenet`, `clip`, or six numbers, mean
    and deviation of red, green and blue in units of 0 to 1. Without it the file's metadata say it, or a
    `preprocessor_config.json` of Hugging Face beside it; set it when neither does."""
    pooling: Literal["auto", "mean", "first"] = "auto"
    """How tokens, an output (n, tokens, d) of `FILE.onnx`, become one vector: their `mean`, or the `first`
    one, the class token of many encoders. Set it when the output that you chose holds tokens."""


class ExtractSettings(Section):
    """From records to bottlenecks. More about all of it: docs/extraction.md."""

    engine: Annotated[Literal["auto", "tensorflow", "openvino", "onnxruntime", "jax"], "speed"] = "auto"
    """Library that runs the backbone. `auto` takes TensorFlow where it sees a GPU, else OpenVINO where it
    is installed, else TensorFlow; `FILE.onnx` is run by OpenVINO, else by ONNX Runtime. Name one to be sure
    that it, and no other, runs."""
    precision: Annotated[Literal["auto", "fp32", "bf16", "int8"], "speed"] = "auto"
    """Numbers in which the backbone computes. `auto` takes bf16 where the hardware computes in it, else
    fp32. Choose fp32 when small differences matter, int8 (OpenVINO only) for the most images a second on a
    CPU."""
    batch: Annotated[Positive, "speed"] = 32
    """Images in one call of the backbone. Raise it on a GPU; lower it when memory runs out."""
    shard_images: Annotated[Positive, "speed"] = 4096
    """Images in one shard of the store: what a killed extraction loses, and the unit of work on several
    machines. Lower it when there are fewer shards than machines."""
    quality: Literal["fast", "best", "auto"] = "fast"
    """Which `views` are taken where that setting is open: `fast` looks at each photo once, `best` several
    times; `auto` takes best for a small catalogue, else fast, and keeps to the views of the release in
    service; the log says which and why. Set best when accuracy matters more than the time that extraction
    and categorizing take (docs/extraction.md)."""
    views: Annotated[tuple[ViewName, ...], Field(min_length=1), AfterValidator(_distinct)] | None = None
    """Views of each photo: `whole`, or its size in pixels when that is not the backbone's own, then a crop
    (center, top-left, top-right, bottom-left, bottom-right), `max` and `flip`, as in
    `["whole","256","288-center-flip"]`. Each is extracted once, and training takes all of them. Without it
    they are those of `quality`. Set them when `shelfmark evaluate` shows that they are worth their time on
    your photos."""
    flip: bool | None = None
    """Extract the mirrored image of each view, too. Without it as `quality` says: for best, to train on them
    alone; not for fast, nor with `views`. Set true when accuracy matters more than time: it gave 2 points on
    grocery photos and doubles the work of extraction, also when products are categorized."""
    asked: Annotated[tuple[ViewName, ...], AfterValidator(_distinct)] = ()
    """Views, of those that are trained on, that predictions are made from: when thresholds are calibrated,
    when products are categorized, and by the service. Without it all of them, but the mirrored ones that
    quality best adds. Name fewer to categorize faster than you train."""
    combine: Literal["apart", "averaged"] = "apart"
    """What becomes of a photo's views: `apart`, each is predicted from as if it were a photo of its own;
    `averaged`, their mean is one bottleneck. Choose averaged when the head must not take longer than with one
    view."""
    cascade: Annotated[float, Field(ge=0, lt=1), "calibrate"] = 0.0
    """Share of FIT's products that are looked at in all views: those about which the first view
    is least certain. The first view decides about the others, whose other views are not extracted when
    products are categorized, nor by the service. 0: all views decide about every product. Set 0.3 when
    several views are worth their time for hard products alone (docs/extraction.md)."""


class FinetuneSettings(Section):
    """From a backbone to one that is tuned on the run's own products. Reasons: docs/finetuning.md."""

    frozen_share: Annotated[float, Field(ge=0, lt=1)] = 0.4
    """Share of the backbone's layers, from the first on, that stay as they are (0.4 in the paper); 0 tunes
    all of them, and a share that leaves no weights to tune is refused. Raise it to tune faster, or when
    there are few products."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Share of the training products to tune on, at least one of each category (0.05 in the paper). Raise
    it for a small catalogue, up to 1; the time grows with it."""
    batch: Positive = 32
    """Images in one step (128 in the paper). Lower it when memory runs out, and the learning rate with
    it."""
    image_size: Positive | None = None
    """Height and width of the photos while tuning, in px; without it five sevenths of the backbone's, to the
    nearest multiple of 32, where the network takes such photos. The tuned backbone has its own size as
    before. Raise it up to that size when details distinguish categories; the time grows with its square."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.02
    """Rate of the first step (0.05 in the paper, for its batches of 128). Lower it when the loss does not
    fall from epoch to epoch."""
    schedule: Literal["inverse_time", "cosine"] = "cosine"
    """How the rate falls: inverse_time is learning_rate / (1 + t·decay), t in steps (as in the paper);
    cosine falls to 0 at the last epoch. Choose inverse_time with an average when tuning may end early."""
    decay: Annotated[float, Field(ge=0)] = 1e-4
    """Of the inverse_time schedule (as in the paper). Seldom worth a change."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of the gradient steps; 0: none. The paper names none. Lower it together with more epochs."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum of the moving average of the weights, which is what is kept; 0: no average. Try 0.95 with the
    schedule inverse_time: the average does the work of a falling rate."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the target that is spread over all categories. Raise it when many labels are wrong; 0:
    none."""
    epochs: Positive = 16
    """Passes over the drawn products, at most. More epochs kept helping where it was tried; lower it to
    save time."""
    patience: Positive = 16
    """Epochs without a better FIT accuracy before tuning stops. Lower it to save time with the schedule
    inverse_time; a cosine needs all of its epochs."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of the Beta distribution from which the weights of mixup are drawn: photos and labels are blended
    in pairs; 0: none. With cutmix, too, each batch has one of them. Try 0.2 with several times the epochs."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """Likewise of CutMix: a box of one photo is pasted into another; 0: none. Try 1 with several times the
    epochs, where a part of the product shows what it is."""
    crop: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Smallest share of a photo's area that a random crop keeps; 1: no crops. Raise it when the product
    fills the photo and details at its edge distinguish categories."""
    flip: bool = True
    """Mirror half of the photos. Set false when left and right distinguish categories."""
    colour: Annotated[float, Field(ge=0, lt=1)] = 0.4
    """Largest random change of contrast and of each colour, as a share. Lower it when colour distinguishes
    categories."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Numbers in which products of matrices are computed; `auto` takes bfloat16 where the machine is faster
    in it. Choose float32 to rule rounding out."""


class HeadSettings(Section):
    """The trained part over the bottlenecks: two hidden layers, as in the paper. Formulas: docs/heads.md."""

    recipe: Literal["default", "paper"] = "default"
    """Defaults of [train] and of `loss`: ours, or those of the paper (Li et al., APIA 2018). Choose `paper`
    to compare with its figures."""
    kind: Literal["flat", "separate", "multitask", "taxonnet"] = "flat"
    """Architecture: what has an output. `flat` has one for each category; the others have one for each node
    of every level. Try the others by `shelfmark compare` when the coarser levels matter to you by
    themselves."""
    hidden: tuple[Positive, Positive] = (1024, 1024)
    """Neurons of the two hidden layers. Lower them for a few dozen categories (and set train.second_dropout
    = 0); raise them for many thousands, where memory and time allow it."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the first hidden layer's neurons that is dropped in each step of training. Lower it with
    narrow layers, or when accuracy on the training products stays low."""
    selector: Positive | None = None
    """Neurons of each of TaxonNet's feature selectors; without it as many as in the second hidden layer.
    Only for kind taxonnet; lower it to make the head smaller."""
    level_weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """Weight of each level's loss, from coarse to fine, as in [1,1,2]; without it 1 each. Only for kinds
    with several levels; raise the last one when the finest level matters most."""
    loss: Literal["auto", "cross_entropy", "summed", "soft_tree", "hierarchical"] = "auto"
    """What training minimizes. `auto` is summed for a flat head by the default recipe, else cross_entropy.
    The last three use the tree and are only for kind flat. Choose cross_entropy when only the category
    counts and its levels do not. Measured differences: docs/experiments/training.md."""
    soft_beta: Annotated[float, Field(ge=0)] = 10.0
    """How sharp the targets of soft_tree are: the larger, the nearer to one category alone. Lower it when
    near misses in the tree should cost less than far ones."""
    aggregation: Annotated[Literal["auto", "mean", "geometric", "max", "set"], "calibrate"] = "auto"
    """How the predictions for a product's images are aggregated. `auto` takes what is best on FIT. Name one
    to keep it the same from week to week; every name but set also saves the training of a set head."""

    @model_validator(mode="after")
    def _fits(self) -> "HeadSettings":
        if self.loss not in ("auto", "cross_entropy") and self.kind != "flat":
            raise ValueError(
                f"loss {self.loss} is for kind flat; a {self.kind} head has the tree in its outputs"
            )
        if self.level_weights is not None and not any(self.level_weights):
            raise ValueError("level_weights are all 0, and nothing would be learnt; expected one that is not")
        if self.level_weights is not None and self.kind == "flat":
            raise ValueError(
                "level_weights are for heads of several levels; expected none for kind flat, as by "
                "--set head.level_weights="
            )
        return self


RECIPES: dict[str, dict[str, object]] = {  # what [train] leaves open, by head.recipe
    "paper": {  # S1, hal-01830894
        "learning_rate": 0.1, "schedule": "inverse_time", "decay": 7e-5, "momentum": 0.0,
        "weight_decay": 0.0, "label_smoothing": 0.0, "mixup": 0.0, "standardized": False, "epochs": 200,
        "second_dropout": 0.0, "patience": 30,
    },
    "default": {  # chosen on grocery photos and drawn catalogues, docs/training.md
        "learning_rate": 0.05, "schedule": "cosine", "decay": 7e-5, "momentum": 0.9,
        "weight_decay": 0.2, "label_smoothing": 0.0, "mixup": 1.0, "standardized": True, "epochs": 150,
        "second_dropout": 0.3, "patience": 150,
    },
}  # fmt: skip


class TrainSettings(Section):
    """Stochastic gradient descent. Formulas and sources: docs/training.md.

    A setting without a default here takes the value that `head.recipe` names.
    """

    batch: Positive = 256
    """Images in one step (256 in the paper). Lower it for a catalogue of a few thousand images, so that an
    epoch has enough steps."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Rate of the first step. Lower it when the loss jumps or grows; raise it together with the batch."""
    schedule: Literal["inverse_time", "cosine"] | None = None
    """How the rate falls: inverse_time is learning_rate / (1 + t·decay), t in steps; cosine falls to 0 at
    the last of `epochs`. Choose inverse_time when you do not know how many epochs are enough: there
    `epochs` is a limit, with cosine it is a plan."""
    decay: Annotated[float, Field(ge=0)] | None = None
    """How fast the rate of inverse_time falls, for each step t; not used by cosine. Raise it when accuracy
    still jumps at the end."""
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Momentum of the gradient steps; 0: none. Lower it when training is unstable."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """How fast weights shrink: an epoch at rate r multiplies them by exp(-r · weight_decay). Raise it when
    training products are nearly all right and validation products are not."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the target that is spread over all categories. Set it (to 0.1, say) when mixup is 0; both
    together were no better than mixup."""
    mixup: Annotated[float, Field(ge=0)] | None = None
    """Alpha of mixup, which trains on weighted pairs of images; 0: none. Lower it with very few categories
    or when training accuracy stays low."""
    standardized: bool | None = None
    """Subtract each number's mean over the training images and divide by its deviation. Set false only to
    repeat the paper."""
    second_dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the second hidden layer's neurons that is dropped in each step. Set 0 with small
    `head.hidden`: with layers of 256 it cost 2.5 points."""
    epochs: Positive | None = None
    """Passes over the training images: all of them with cosine, at most so many with inverse_time. Lower it
    to save time; raise it for a small catalogue."""
    patience: Positive | None = None
    """Epochs without a better FIT accuracy before training stops. Lower it with inverse_time to save time;
    cosine needs its last epochs."""
    imbalance: Literal["none", "class_weights", "logit_adjustment", "balanced"] = "none"
    """What is done about categories of very different size. Choose logit_adjustment (with adjustment = 0.5)
    when small categories matter as much as large ones; all of them cost accuracy over all products."""
    adjustment: Annotated[float, Field(ge=0)] = 1.0
    """Strength (tau) of logit_adjustment. Lower it to 0.5 to give most of the gain to small categories for
    a small part of the cost."""
    leave_out_suspects: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of the training images that is left out because the label is probably wrong. Set it to your
    share of wrong labels or half of it; twice as much harms small categories. It trains two more heads."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Numbers in which products of matrices are computed; `auto` takes bfloat16 where the machine is faster
    in it. Choose float32 to rule rounding out."""
    memory_gb: Annotated[float, Field(gt=0, le=1e6)] = 2.0
    """GB of bottlenecks that stay in memory, or in a GPU's; a larger catalogue is read from the disk in
    every epoch. Raise it to what the machine can spare: 1 million images take 4 GB."""
    placeholders: bool = True
    """Learn from placeholder images, too. Set false when many products have no photo of their own yet."""
    warm_start: bool = False
    """Begin with the head of the release that the run is based on, where it fits (docs/compare.md). Set
    true where training takes hours."""
    warm_epochs: Positive | None = None
    """Passes over the training images, at most, for a head that started warm; without it a quarter of
    `epochs`. Raise it when the warm head is less accurate than a fresh one."""


class CalibrationSettings(Section):
    """From confidences to the certified threshold. What it promises: docs/concepts.md."""

    precision: Share = 0.9
    """Precision that is promised for the products that are decided automatically. Raise it when a wrong
    category is expensive: fewer products are then accepted, and more validation products are needed."""
    delta: Share = 0.1
    """Probability that the promise fails, over repeated calibrations. Lower it for a stronger promise; it
    takes more validation products."""
    grid: Positive = 1000
    """Thresholds that are tried, at most. Raise it only for millions of validation products."""
    model: Literal["logistic", "boosting"] = "logistic"
    """How confidence is computed from the evidence. Choose boosting (60 small trees) for a catalogue with
    tens of thousands of validation products: it accepts up to a point more there. With too few products the
    logistic model is taken, and thresholds.json says so."""
    fit_share: Share = 0.25
    """Share of the validation products that selects everything (FIT); the rest certifies (CERT). A quarter
    was best, or nearly, for 200 to 6,000 products (docs/experiments/calibration.md). Raise it when FIT has
    fewer than 60 products; training is made again, too."""
    new_category_products: Annotated[int, Field(ge=0, strict=True)] = 50
    """Products, in training and FIT together, that a new category, or a part of a split one, needs before its
    products are accepted; until then they go to a person or stop at a level above. Raise it when new
    categories are often wrong; 0 withholds none. The first release withholds none."""


class SellersSettings(Section):
    """What a seller's corrections change without training. Formulas and measurements: docs/sellers.md."""

    method: Literal["votes", "paper", "none"] = "votes"
    """How a seller's corrections change his next decisions: by `votes` of his similar products, by the method
    of the `paper` (Čugurović, Nikolić, Novaković), or not at all. Choose `paper` to compare with its figures,
    `none` where no decision may depend on the seller."""
    vectors: Literal["hidden", "bottlenecks"] = "hidden"
    """What two products are compared by: the head's last `hidden` layer, or the backbone's `bottlenecks`.
    Choose bottlenecks when sellers correct to categories that the head distinguishes badly; their corrections
    then take more memory."""
    labels: Annotated[bool, "ingest"] = True
    """Corrections are labels of the next run: they replace the category that the sources give, unless these
    name another seller of the product. Set false when your catalogue takes the corrections over by itself."""
    database: Annotated[str, "speed", AfterValidator(_postgresql)] = ""
    """Where corrections are kept: "" for corrections.sqlite in the workspace, or postgresql://USER@HOST/NAME.
    Set a database when several computers write. The variable SHELFMARK_CORRECTIONS comes before it, and may
    hold the password, which no file of the workspace keeps."""


class SuspectsSettings(Section):
    """Labels in doubt, which `shelfmark audit suspects` lists. How they are found: docs/audits.md."""

    folds: Annotated[int, Field(ge=0, le=20)] = 0
    """Parts into which the training products are divided to examine their labels, too: each part by a head
    that is trained on the others, so that 5 take about five times as long as training. 0 examines validation
    and test products alone. Set 2 or more when labels are to be corrected in the whole catalogue."""

    @field_validator("folds")
    @classmethod
    def _several(cls, folds: int) -> int:
        """One fold would have nothing to train on."""
        if folds == 1:
            raise ValueError("1 leaves nothing to train on; expected 0, or 2 and more")
        return folds


class ReportSettings(Section):
    """The page for people. These settings change no result."""

    language: Literal["auto", "en", "fr"] = "auto"
    """Language of the page: English or French. `auto` takes French where the environment's locale (LC_ALL,
    LC_MESSAGES, LANG) is French, else English. Name one for jobs on machines without a locale."""
    minutes_per_product: Annotated[float, Field(gt=0)] = 1.0
    """Minutes that a person needs to put one product into its category. Set what you measure in your
    shop; the hours that the page counts as saved are proportional to it."""
    wage: Annotated[float, Field(ge=0)] = 25.0
    """Cost of one hour of this work. Set your own; 0 leaves the costs out."""
    currency: Annotated[str, Field(min_length=1, max_length=8)] = "€"
    """What stands behind amounts of money. Set it together with `wage`."""
    thumbnails: Annotated[int, Field(ge=0, le=300)] = 300
    """Photos in the page, at most, as small WebP pictures of about 3 kB each. Lower it for a smaller file;
    0 for a page without photos."""
    maps: Annotated[int, Field(ge=0, le=100)] = 30
    """Photos of wrong and doubtful products with a map of where the network looked, at most. Each goes
    through the backbone once more, in retrain and evaluate. Lower it for a slow backbone; 0 for none."""


class CompareSettings(Section):
    """What the baselines of `shelfmark compare` are trained on; the heads are trained on all products."""

    hog_products: Positive = 10_000
    """Products of each part, at most, for the row on HOG, which reads the photos. Lower it to save time."""
    svm_products: Positive = 20_000
    """Training products, at most, for the linear SVMs: one SVM for each category, over all rows each. Raise
    it for several thousand categories, and give it hours."""


class RetentionSettings(Section):
    """What `shelfmark clean` leaves in a workspace. What always stays: docs/operations.md."""

    clean: Annotated[bool, "speed"] = False
    """Clean at the end of each successful `retrain`. Set true when nobody watches the disk, together with
    `runs` and `releases`."""
    runs: Annotated[Positive | None, "speed"] = None
    """Number of runs that stay, those used last; without it and `runs_days` all stay. Set 8 for two months of
    weekly runs."""
    runs_days: Annotated[Annotated[float, Field(ge=0)] | None, "speed"] = None
    """Days for which a run stays after its last command, whatever their number. Set it where runs have to be
    kept for a time."""
    releases: Annotated[Positive | None, "speed"] = None
    """Number of releases that stay, those put into service last; without it and `releases_days` all stay. Set
    it together with `runs`: a release stays while a run is there that is based on it."""
    releases_days: Annotated[Annotated[float, Field(ge=0)] | None, "speed"] = None
    """Days for which a release stays after another one has replaced it. Set it to the time for which
    decisions have to be explained."""
    decisions: Annotated[Positive | None, "speed"] = None
    """Number of outputs of `categorize` in WORKSPACE/decisions that stay, the newest; without it and
    `decisions_days` all stay. Outputs elsewhere are never touched. Set it where a database has them, too."""
    decisions_days: Annotated[Annotated[float, Field(ge=0)] | None, "speed"] = None
    """Days for which these outputs stay, whatever their number. Set it to the time for which decisions have
    to be explained."""
    store_days: Annotated[float, Field(ge=0), "speed"] = 1.0
    """Days for which bottlenecks that no run refers to stay, and working files of interrupted jobs. Set 30
    when `categorize` gets the same products again and again: it need not extract them anew."""
    logs_days: Annotated[float, Field(ge=0), "speed"] = 30.0
    """Days for which logs in WORKSPACE/logs stay; the log of a run goes with the run. Raise it where logs
    have to be kept."""


class GateSettings(Section):
    """When a new bundle replaces the release in service. What is compared, and how: docs/gate.md."""

    when_equal: Literal["keep", "tree_changed", "release"] = "tree_changed"
    """What happens to a bundle that cannot be distinguished from the release in service. `tree_changed`
    releases it only when the categories have changed, so that new ones are decided about. Choose `release`
    to have the newest one always; `keep` for the fewest changes."""
    old_promise: Literal["keep", "withdraw"] = "keep"
    """What happens to a release that was certified for a lower precision, or with less certainty, than
    [calibration] requires now, when the new bundle cannot be certified for that either. `keep`: it stays in
    service, and every output says for which promise. `withdraw`: the new bundle replaces it, and every
    product goes to a person until one is certified; choose it when the old promise is not good enough."""
    floors: dict[str, Share] = {}
    """Least share of the test products of a category, or of a branch of the tree, whose most likely category
    is correct, as in `{"Food/Fruit" = 0.9}`. A bundle below one of them is never released. Name those in
    which mistakes are expensive, and only such with dozens of test products."""
    certainty: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    """Certainty of the intervals and tests: a difference beyond them is no chance. Raise it to replace the
    release less often; lower it for a small catalogue where nothing is ever distinguished."""
    repetitions: Annotated[Positive, Field(ge=100)] = 1000
    """Samples of the bootstrap that the intervals are made from. Raise it for steadier last digits."""


class MonitorSettings(Section):
    """When `shelfmark monitor` raises an alarm. What is watched, and how: docs/monitoring.md."""

    precision: Annotated[Share, "speed"] = 0.02
    """Least fall of the estimated accepted precision that is an alarm; 0.02 is 2 points. Raise it when
    alarms come for changes that you would not act upon; lower it when wrong categories are expensive."""
    acceptance: Annotated[Share, "speed"] = 0.05
    """Least change of the acceptance rate, up or down, that is an alarm; 0.05 is 5 points. Lower it when
    the work of the people who review has to be known early."""
    false_alarms: Annotated[Share, "speed"] = 0.01
    """Chance that chance alone exceeds a limit in a year of batches without change. Raise it to see smaller
    changes in small batches."""
    batches_per_year: Annotated[Positive, "speed"] = 52
    """Batches that are monitored in a year. Set 365 when you categorize every day."""


class GuardSettings(Section):
    """When `retrain` stops because the feed is unlike that of the release in service: docs/operations.md."""

    least_products: Annotated[float, Field(ge=0, le=1), "speed"] = 0.5
    """Least number of products, as a share of those of the release. Raise it when your catalogue never
    shrinks; 0: any number is accepted."""
    most_categories_gone: Annotated[float, Field(ge=0, le=1), "speed"] = 0.33
    """Largest share of the release's categories that may have lost over nine tenths of their products. Lower
    it when your tree seldom changes; a tree that was renumbered needs `--mapping`, not a higher limit."""
    least_images: Annotated[float, Field(ge=0, le=1), "speed"] = 0.5
    """Least number of images a product, as a share of the release's. Raise it when photos are seldom
    removed."""
    most_rejected_more: Annotated[float, Field(ge=0, le=1), "speed"] = 0.05
    """Largest rise of the share of rejected images; 0.05 is 5 points. `ingest.max_rejected` bounds the share
    itself. Lower it when your photos are always readable."""
    most_uncategorized_more: Annotated[float, Field(ge=0, le=1), "speed"] = 0.3
    """Largest rise of the share of products without a category; 0.3 is 30 points. Raise it when new products
    arrive in large deliveries."""
    most_mix: Annotated[float, Field(ge=0, le=1), "speed"] = 0.5
    """Largest share of the categorized products that would have to change their category for the mix of the
    release. Raise it for a shop whose assortment changes with the season."""


class NotifySettings(Section):
    """Who is notified when `retrain` ends: the account of the run, run.json, is posted."""

    url: Annotated[str, "speed", Field(exclude=True), AfterValidator(_web_address)] = ""
    """Address, http:// or https://, that gets run.json by POST when `retrain` ends, however it ends; ""
    notifies nobody. No file of the workspace keeps it. Set it to a webhook of your chat or monitoring."""
    timeout: Annotated[float, "speed", Field(gt=0, le=60)] = 10.0
    """Seconds that each of three tries waits for the server. Raise it for a slow one."""


class Config(BaseModel):
    """All settings of a run."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of everything random: the order of records and of training images, the first weights. Change it
    to see how far results differ by chance. It does not change the split."""
    ingest: IngestSettings = IngestSettings()
    backbone: BackboneSettings = BackboneSettings()
    extract: ExtractSettings = ExtractSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    head: HeadSettings = HeadSettings()
    train: TrainSettings = TrainSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    sellers: SellersSettings = SellersSettings()
    suspects: SuspectsSettings = SuspectsSettings()
    report: ReportSettings = ReportSettings()
    compare: CompareSettings = CompareSettings()
    retention: RetentionSettings = RetentionSettings()
    gate: GateSettings = GateSettings()
    monitor: MonitorSettings = MonitorSettings()
    guard: GuardSettings = GuardSettings()
    notify: NotifySettings = NotifySettings()

    def training(self) -> dict[str, Any]:
        """The settings of [train], what they leave open as head.recipe says."""
        given = {name: value for name, value in self.train.that_matter().items() if value is not None}
        return RECIPES[self.head.recipe] | given

    def loss(self) -> str:
        """What head.loss means: "auto" is what head.recipe and head.kind say."""
        if self.head.loss != "auto":
            return self.head.loss
        return "summed" if self.head.recipe == "default" and self.head.kind == "flat" else "cross_entropy"

    def of_the_head(self) -> dict[str, object]:
        """The settings that a head depends on."""
        return {
            "seed": self.seed,
            "head": self.head.that_matter() | {"recipe": None, "loss": self.loss()},  # recipe: in "train"
            "set_head": self.head.aggregation in ("auto", "set"),
            "train": self.training(),
            "fit_share": self.calibration.fit_share,
        }

    def sets(self) -> list[str]:
        """What `--set` takes to have these settings from the defaults, as far as they can change a release.

        >>> Config(head={"hidden": [64, 32]}, seed=7, extract={"engine": "jax"}).sets()
        ['seed=7', 'head.hidden=[64,32]']
        """
        sets = [] if self.seed == 0 else [f"seed={self.seed}"]
        for section in (
            "ingest",
            "backbone",
            "extract",
            "finetune",
            "head",
            "train",
            "calibration",
            "sellers",
        ):
            own: Section = getattr(self, section)
            for name, field in type(own).model_fields.items():
                value = getattr(own, name)
                if value not in (None, field.default) and "speed" not in field.metadata:
                    sets.append(f"{section}.{name}={_as_text(value)}")
        return sets

    def of_the_thresholds(self) -> dict[str, object]:
        """The settings that thresholds depend on, beside the head."""
        cascade = {"cascade": self.extract.cascade} if self.extract.cascade else {}
        return self.calibration.that_matter() | {"aggregation": self.head.aggregation} | cascade


def _as_text(value: object) -> str:
    """A value as `--set` takes it."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
