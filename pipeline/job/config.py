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

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

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

    min_products: Positive = 20  # products; smaller categories are dropped (S1)
    max_rejected: Annotated[float, Field(ge=0, le=1)] = 0.10  # share of the images; more stops the run
    max_pixels: Positive = 50_000_000  # px, declared; larger photos are refused
    placeholder_products: Annotated[int, Field(ge=2)] = 100  # an image of so many is a photo of none of them
    min_known: Annotated[float, Field(ge=0, le=1)] = (
        0.05  # share of the release's products that has to be known
    )
    csv_delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None  # None: found out
    csv_encoding: Annotated[str, AfterValidator(_known_encoding)] | None = None  # as cp1252; None: found out
    urls: Literal["public", "any"] = (
        "public"  # addresses that photos may be fetched from; any: private ones, too
    )
    url_concurrency: Annotated[Positive, "speed"] = 32  # requests at a time in a worker
    url_timeout: Annotated[float, Field(gt=0), "speed"] = 30.0  # s for one request with its answer
    url_retries: Annotated[int, Field(ge=0, strict=True), "speed"] = 4  # tries after the first
    unit_bytes: Positive = 32 * 2**20  # bytes of source images per unit of work and per output shard
    unit_images: Positive = 2000  # images per unit of work, for sources of single files


class Backbone(Section):
    """The frozen network."""

    name: str = "inception_v3"  # as in keras.applications, in snake case
    weights: str = "imagenet"  # imagenet, random, or a .weights.h5 file; in a TOML file relative to it
    image_size: Annotated[int, Field(ge=32, le=1024)] | None = (
        None  # px; None: the network's own (299 for Inception v3)
    )


class Extract(Section):
    """From records to bottlenecks."""

    # auto: TensorFlow where it sees a GPU, else OpenVINO where it is installed; see docs/extraction.md
    engine: Annotated[Literal["auto", "tensorflow", "openvino", "jax"], "speed"] = "auto"
    # auto: bf16 where the hardware computes in it; int8: OpenVINO only
    precision: Annotated[Literal["auto", "fp32", "bf16", "int8"], "speed"] = "auto"
    batch: Annotated[Positive, "speed"] = 32  # images
    shard_images: Annotated[Positive, "speed"] = 4096  # images per shard of the store
    flip: bool = False  # extract the mirrored images, too, as a second view


class Finetune(Section):
    """From a backbone to one tuned on the run's own products (S1). Reasons: docs/finetuning.md."""

    frozen_share: Annotated[float, Field(ge=0, lt=1)] = 0.4  # of the backbone's layers; 0 tunes all
    share: Annotated[float, Field(gt=0, le=1)] = 0.05  # of the training products
    batch: Positive = 128  # images
    learning_rate: Annotated[float, Field(gt=0)] = 0.05
    decay: Annotated[float, Field(ge=0)] = 1e-4  # lr / (1 + t·decay), t in steps
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.75
    average: Annotated[float, Field(ge=0, lt=1)] = 0.95  # momentum of the weights' moving average; 0: none
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    epochs: Positive = 30  # at most
    patience: Positive = 10  # epochs without a better FIT accuracy before tuning stops
    crop: Annotated[float, Field(gt=0, le=1)] = 0.25  # least share of a photo that stays; 1: no crops
    flip: bool = True  # half of the photos are mirrored
    colour: Annotated[float, Field(ge=0, lt=1)] = 0.4  # most that contrast and colours are off
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 where the machine is faster


class Head(Section):
    """The trained part over the bottlenecks: two hidden layers (S1). Formulas: docs/heads.md."""

    recipe: Literal["default", "paper"] = "default"  # of the training, see RECIPES
    kind: Literal["flat", "separate", "multitask", "taxonnet"] = (
        "flat"  # what has an output: categories, levels
    )
    hidden: tuple[Positive, Positive] = (1024, 1024)  # neurons
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5  # share, after the first hidden layer
    selector: Positive | None = (
        None  # neurons of TaxonNet's feature selectors; None: as the second hidden layer
    )
    level_weights: tuple[Annotated[float, Field(ge=0)], ...] | None = (
        None  # of losses, coarse to fine; None: 1
    )
    # All but the first two: kind flat. Auto: see Config.loss.
    loss: Literal["auto", "cross_entropy", "summed", "soft_tree", "hierarchical"] = "auto"
    soft_beta: Annotated[float, Field(ge=0)] = (
        10.0  # of soft_tree: the larger, the nearer to one category alone
    )
    # How a product's images become one. Auto: what FIT prefers.
    aggregation: Annotated[Literal["auto", "mean", "geometric", "max", "set"], "calibrate"] = "auto"

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
    """Stochastic gradient descent. Formulas, sources and what each setting gave: docs/training.md."""

    batch: Positive = 256  # images
    # None, down to patience: as head.recipe says.
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    schedule: Literal["inverse_time", "cosine"] | None = None
    decay: Annotated[float, Field(ge=0)] | None = None  # inverse_time: lr / (1 + t·decay), t in steps
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None  # an epoch at rate r: weights · exp(-r · decay)
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] | None = None
    mixup: Annotated[float, Field(ge=0)] | None = None  # alpha; 0: none
    standardized: bool | None = None  # every number of a bottleneck by its own mean and deviation
    second_dropout: Annotated[float, Field(ge=0, lt=1)] | None = None  # share, after the second hidden layer
    epochs: Positive | None = None  # at most
    patience: Positive | None = None  # epochs without a better FIT accuracy before training stops
    imbalance: Literal["none", "class_weights", "logit_adjustment", "balanced"] = "none"
    adjustment: Annotated[float, Field(ge=0)] = 1.0  # tau of logit_adjustment
    leave_out_suspects: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # share of the training images
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 where the machine is faster
    memory_gb: Annotated[float, Field(gt=0, le=1e6)] = 2.0  # of bottlenecks that stay in memory, or a GPU's
    placeholders: bool = True  # learn from placeholder images, too
    warm_start: bool = False  # begin with the head of the release that the run is based on: docs/compare.md
    warm_epochs: Positive | None = None  # at most, of a head that did; None: a quarter of epochs


class Calibration(Section):
    """From confidences to the certified threshold."""

    precision: Share = 0.9  # promised for the accepted products
    delta: Share = 0.1  # probability that the promise fails
    grid: Positive = 1000  # thresholds tried
    fit_share: Share = 1 / 3  # of the validation products selects (FIT); the rest certifies (CERT)


class Compare(Section):
    """What the baselines of `shelfmark compare` learn from; the heads learn from all."""

    hog_products: Positive = 10_000  # at most, of each part: HOG is computed from the photos
    svm_products: Positive = 20_000  # training products at most: a machine a category, over all rows each


class Config(BaseModel):
    """All settings of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
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
