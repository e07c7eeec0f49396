"""Every setting on one page: defaults, then `--config FILE.toml` over them, then `--set section.name=value`.

A setting that changes a result is part of the digest of the stage that uses it; those marked `speed` are not,
those marked `calibrate` are part of that stage's.
"""

import codecs
import copy
import difflib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from features.errors import ShelfmarkError

Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(ge=1, strict=True)]  # true is not 1


LISTS = {  # settings that are lists, and what they hold
    "hidden": "two numbers, as in [1024,1024]",
    "level_weights": "a number for each level, as in [1,1,2]",
}
ELSEWHERE = {"speed", "calibrate"}  # marks of settings that another stage's digest holds, or none


class Section(BaseModel):
    """A section of settings: frozen, unknown names refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,  # they are the text of docs/settings.md
    )

    def that_matter(self) -> dict[str, Any]:
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


class Ingest(Section):
    """From a source to records."""

    min_products: Positive = 20
    """Products that a category needs; smaller categories are dropped, and counted (20 in the paper). Lower
    it for a small catalogue; raise it when categories with few products are often wrong. Not used where the
    source gives the split."""
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


class Backbone(Section):
    """The frozen network that turns an image into a vector."""

    name: str = "inception_v3"
    """Network, by its name in `keras.applications` in snake case. Choose a smaller one, such as
    `mobilenet`, when
    extraction takes too long, and compare the evaluations of two runs."""
    weights: str = "imagenet"
    """`imagenet` (downloaded by Keras), `random`, or a `.weights.h5` file of the network without its top; a
    path in a TOML file is relative to that file. Name a file when this machine cannot reach Keras' weights;
    `random` only to try the pipeline."""
    image_size: Annotated[int, Field(ge=32, le=1024)] | None = None
    """Width and height in pixels to which images are resized; without it the network's own, 299 for
    Inception v3. Lower it to extract faster, at a cost in accuracy (docs/experiments/extraction.md)."""


class Extract(Section):
    """From records to bottlenecks. More about all of it: docs/extraction.md."""

    engine: Annotated[Literal["auto", "tensorflow", "openvino", "jax"], "speed"] = "auto"
    """Library that runs the backbone. `auto` takes TensorFlow where it sees a GPU, else OpenVINO where it
    is installed, else TensorFlow. Name one to be sure that it, and no other, runs."""
    precision: Annotated[Literal["auto", "fp32", "bf16", "int8"], "speed"] = "auto"
    """Numbers in which the backbone computes. `auto` takes bf16 where the hardware computes in it, else
    fp32. Choose fp32 when small differences matter, int8 (OpenVINO only) for the most images a second on a
    CPU."""
    batch: Annotated[Positive, "speed"] = 32
    """Images in one call of the backbone. Raise it on a GPU; lower it when memory runs out."""
    shard_images: Annotated[Positive, "speed"] = 4096
    """Images in one shard of the store: what a killed extraction loses, and the unit of work on several
    machines. Lower it when there are fewer shards than machines."""
    flip: bool = False
    """Extract the mirrored image, too, as a second view. Set true when accuracy matters more than time: it
    gave 2 points on grocery photos and doubles the work of extraction, also when products are
    categorized."""


class Finetune(Section):
    """From a backbone to one that is tuned on the run's own products. Reasons: docs/finetuning.md."""

    frozen_share: Annotated[float, Field(ge=0, lt=1)] = 0.4
    """Share of the backbone's layers, from the first on, that stay as they are (0.4 in the paper); 0 tunes
    all of them, and a share that leaves no weights to tune is refused. Raise it to tune faster, or when
    there are few products."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Share of the training products to tune on, at least one of each category (0.05 in the paper). Raise
    it for a small catalogue, up to 1; the time grows with it."""
    batch: Positive = 128
    """Images in one step (128 in the paper). Lower it when memory runs out, and the learning rate with
    it."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.05
    """Rate of the first step (0.05 in the paper). Lower it when the loss does not fall from epoch to
    epoch."""
    decay: Annotated[float, Field(ge=0)] = 1e-4
    """How fast the rate falls: learning_rate / (1 + t·decay), t in steps (as in the paper). Seldom worth a
    change: the moving average does the work of a falling rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.75
    """Momentum of the gradient steps; 0: none. The paper names none. Lower it together with more epochs."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Momentum of the moving average of the weights, which is what is kept; 0: no average. Raise it when
    accuracy jumps between epochs."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the target that is spread over all categories. Raise it when many labels are wrong; 0:
    none."""
    epochs: Positive = 30
    """Passes over the drawn products, at most. More epochs kept helping where it was tried; lower it to
    save time."""
    patience: Positive = 10
    """Epochs without a better FIT accuracy before tuning stops. Lower it to save time."""
    crop: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Smallest share of a photo's area that a random crop keeps; 1: no crops. Raise it when the product
    fills the photo and details at its edge tell categories apart."""
    flip: bool = True
    """Mirror half of the photos. Set false when left and right tell categories apart."""
    colour: Annotated[float, Field(ge=0, lt=1)] = 0.4
    """Largest random change of contrast and of each colour, as a share. Lower it when colour tells
    categories apart."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Numbers in which products of matrices are computed; `auto` takes bfloat16 where the machine is faster
    in it. Choose float32 to rule rounding out."""


class Head(Section):
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
    """How the predictions for a product's images become one. `auto` takes what is best on FIT. Name one to
    keep it the same from week to week; every name but set also saves the training of a set head."""

    @model_validator(mode="after")
    def _fits(self) -> "Head":
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


RECIPES: dict[str, dict[str, Any]] = {  # what [train] leaves open, by head.recipe
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


class Train(Section):
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


class Calibration(Section):
    """From confidences to the certified threshold. What it promises: docs/concepts.md."""

    precision: Share = 0.9
    """Precision that is promised for the products that are decided automatically. Raise it when a wrong
    category is expensive: fewer products are then accepted, and more validation products are needed."""
    delta: Share = 0.1
    """Probability that the promise fails, over repeated calibrations. Lower it for a stronger promise; it
    takes more validation products."""
    grid: Positive = 1000
    """Thresholds that are tried, at most. Raise it only for millions of validation products."""
    fit_share: Share = 1 / 3
    """Share of the validation products that selects everything (FIT); the rest certifies (CERT). Lower it
    when the threshold is not certifiable for lack of products; training is made again, too."""


class Compare(Section):
    """What the baselines of `shelfmark compare` learn from; the heads learn from all products."""

    hog_products: Positive = 10_000
    """Products of each part, at most, for the row on HOG, which reads the photos. Lower it to save time."""
    svm_products: Positive = 20_000
    """Training products, at most, for the linear SVMs: one SVM for each category, over all rows each. Raise
    it for several thousand categories, and give it hours."""


class Config(BaseModel):
    """All settings of a run."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of everything random: the order of records and of training images, the first weights. Change it
    to see how far results differ by chance. It does not change the split."""
    ingest: Ingest = Ingest()
    backbone: Backbone = Backbone()
    extract: Extract = Extract()
    finetune: Finetune = Finetune()
    head: Head = Head()
    train: Train = Train()
    calibration: Calibration = Calibration()
    compare: Compare = Compare()

    def training(self) -> dict[str, Any]:
        """The settings of [train], what they leave open as head.recipe says."""
        given = {name: value for name, value in self.train.that_matter().items() if value is not None}
        return RECIPES[self.head.recipe] | given

    def loss(self) -> str:
        """What head.loss means: "auto" is what head.recipe and head.kind say."""
        if self.head.loss != "auto":
            return self.head.loss
        return "summed" if self.head.recipe == "default" and self.head.kind == "flat" else "cross_entropy"

    def of_the_head(self) -> dict[str, Any]:
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

        >>> load_config(sets=("head.hidden=[64, 32]", "seed=7", "extract.engine=jax")).sets()
        ['seed=7', 'head.hidden=[64,32]']
        """
        sets = [] if self.seed == 0 else [f"seed={self.seed}"]
        for section in ("ingest", "backbone", "extract", "finetune", "head", "train", "calibration"):
            own: Section = getattr(self, section)
            for name, field in type(own).model_fields.items():
                value = getattr(own, name)
                if value not in (None, field.default) and "speed" not in field.metadata:
                    sets.append(f"{section}.{name}={_text(value)}")
        return sets

    def of_the_thresholds(self) -> dict[str, Any]:
        """The settings that thresholds depend on, beside the head."""
        return self.calibration.that_matter() | {"aggregation": self.head.aggregation}


def load_config(
    file: Path | None = None,
    sets: tuple[str, ...] = (),
    options: dict[str, Any] | None = None,
    base: dict[str, Any] | None = None,
) -> Config:
    """The settings: defaults, then the TOML file, then options, then `section.name=value` texts.

    They are checked together: what a file says may need what a text says.

    Args:
        file: TOML.
        sets: as given to `--set`; nothing behind the "=" is the default.
        options: full name → value; None where not given.
        base: settings of the run so far, which take the defaults' place.

    Raises:
        ShelfmarkError: the file cannot be read, or a setting is unknown or has a wrong value.
    """
    values: dict[str, Any] = copy.deepcopy(base or {})
    _check(values, {})
    said: dict[str, str] = {}  # name → where
    for section, told in (_read_toml(file) if file else {}).items():
        if section == "backbone" and file:
            told = _with_whole_path(told, file.absolute().parent)
        kept = values.get(section)
        values[section] = kept | told if isinstance(kept, dict) and isinstance(told, dict) else told
        names = [f"{section}.{name}" for name in told] if isinstance(told, dict) else [section]
        said |= dict.fromkeys(names, str(file))
    for name, value in (options or {}).items():
        if value is not None:
            _put(values, name, value)
            said[name] = f"--{name.rpartition('.')[2].replace('_', '-')}"
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals:
            raise ShelfmarkError(
                f"--set {text}: no '='; expected section.name=value, as in --set train.epochs=50"
            )
        name = name.strip()
        _put(values, name, _parse(value.strip()) if value.strip() else _default(name))
        said.pop(name, None)  # the last one is to stand last
        said[name] = f"--set {text}"
    if "backbone" in values:  # what is relative by now comes of the command line
        values["backbone"] = _with_whole_path(values["backbone"], Path.cwd())
    return _check(values, said)


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_text_of(file.read_bytes()))
    except OSError as error:
        raise ShelfmarkError(
            f"{file}: {error.strerror}; expected a TOML file of settings; mend --config"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ShelfmarkError(f"{file}: not TOML: {error}; mend the file") from error


def _text_of(data: bytes) -> str:
    """A text file as editors of Windows save it, too: with a byte order mark, in UTF-8 or UTF-16."""
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if utf16 else "utf-8-sig").replace("\r\n", "\n")


def _with_whole_path(backbone: Any, folder: Path) -> Any:
    """[backbone] with a `weights` file named from the root on: a later stage may run in another directory."""
    weights = backbone.get("weights") if isinstance(backbone, dict) else None
    if not isinstance(weights, str) or weights in ("", "imagenet", "random") or "://" in weights:
        return backbone
    return backbone | {"weights": str(folder / weights)}


def _parse(text: str) -> Any:
    """A value as TOML reads it; a bare word is a text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _text(value: Any) -> str:
    """A value as `_parse` reads it."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    *sections, last = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ShelfmarkError(f"--set {name}: {section!r} is no section; expected section.name=value")
    values[last] = value


def _default(name: str) -> Any:
    """Of a setting by its full name; of one that is not there a text that the check refuses."""
    section, _, last = name.rpartition(".")
    model = type(getattr(Config(), section, None)) if section else Config
    field = getattr(model, "model_fields", {}).get(last)
    return field.default if field else ""


def _check(values: dict[str, Any], said: dict[str, str]) -> Config:
    """The settings; an error tells where the last one it is about was said, else the run's config.json."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        path = ".".join(map(str, problem["loc"][:2]))
        where = [told for name, told in said.items() if f"{name}.".startswith(f"{path}.")]
        where = where or [told for name, told in said.items() if path.startswith(f"{name}.")]
        raise ShelfmarkError(_explain(problem, where[-1] if where else "the run's config.json")) from error


def _explain(problem: ErrorDetails, where: str) -> str:
    """One line: which setting, what is wrong, what was perhaps meant.

    >>> load_config(sets=("train.epoch=9",))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    features.errors.ShelfmarkError: --set train.epoch=9 [train]: unknown setting 'epoch'. Did you mean ...?
    """
    path = [str(part) for part in problem["loc"] if not str(part).startswith("constrained")]
    if problem["type"] == "extra_forbidden":
        model = type(getattr(Config(), path[0])) if len(path) > 1 else Config
        near = difflib.get_close_matches(path[-1], model.model_fields, n=1, cutoff=0.5)
        hint = f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(model.model_fields)}."
        section = f" [{path[0]}]" if len(path) > 1 else ""
        return f"{where}{section}: unknown {'setting' if len(path) > 1 else 'section'} '{path[-1]}'. {hint}"
    if problem["type"] == "value_error":  # of settings that do not go together; the input is all of them
        return f"{where}: {'.'.join(path)}: {problem['ctx']['error']}; mend the setting"
    told = problem["msg"].lower()
    if path[1:2] and path[1] in LISTS and problem["type"] in ("tuple_type", "too_long", "missing"):
        path, told = path[:2], f"expected {LISTS[path[1]]}"
    return f"{where}: {'.'.join(path)} = {problem['input']!r}: {told}; mend the setting"
