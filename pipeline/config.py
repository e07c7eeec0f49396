"""Every setting on one page: defaults, then `--config FILE.toml` over them, then `--set section.name=value`.

A setting that changes a result is part of the digest of the stage that uses it; those marked `speed` are not.
"""

import copy
import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from features.errors import ShelfmarkError

Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A section of settings: frozen, unknown names refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def that_matter(self) -> dict[str, Any]:
        """The settings that can change a result, for a stage's digest."""
        fields = type(self).model_fields
        return {
            name: value for name, value in self.model_dump().items() if "speed" not in fields[name].metadata
        }


class Ingest(Section):
    """From a source to records."""

    min_products: Positive = 20  # products; smaller categories are dropped (S1)
    max_rejected: Annotated[float, Field(ge=0, le=1)] = 0.10  # share of the images; more stops the run
    max_pixels: Positive = 50_000_000  # px, declared; larger photos are refused
    placeholder_products: Annotated[int, Field(ge=2)] = 100  # an image of so many is a photo of none of them
    unit_bytes: Positive = 32 * 2**20  # bytes of source images per unit of work and per output shard
    unit_images: Positive = 2000  # images per unit of work, for sources of single files


class Backbone(Section):
    """The frozen network."""

    name: str = "inception_v3"  # as in keras.applications, in snake case
    weights: str = "imagenet"  # imagenet, random, or a .weights.h5 file
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


class Head(Section):
    """The trained part over the bottlenecks: two hidden layers (S1)."""

    hidden: tuple[Positive, Positive] = (1024, 1024)  # neurons
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5  # share, after the first hidden layer


class Train(Section):
    """SGD with inverse-time decay, lr(t) = learning_rate / (1 + t·decay), t in steps (S1)."""

    batch: Positive = 256  # images
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    decay: Annotated[float, Field(ge=0)] = 7e-5  # per step
    epochs: Positive = 200  # at most
    patience: Positive = 30  # epochs without a better FIT accuracy before training stops
    placeholders: bool = True  # learn from placeholder images, too


class Calibration(Section):
    """From confidences to the certified threshold."""

    precision: Share = 0.9  # promised for the accepted products
    delta: Share = 0.1  # probability that the promise fails
    grid: Positive = 1000  # thresholds tried
    fit_share: Share = 1 / 3  # of the validation products selects (FIT); the rest certifies (CERT)


class Config(BaseModel):
    """All settings of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    ingest: Ingest = Ingest()
    backbone: Backbone = Backbone()
    extract: Extract = Extract()
    head: Head = Head()
    train: Train = Train()
    calibration: Calibration = Calibration()

    def of_the_head(self) -> dict[str, Any]:
        """The settings that a head depends on."""
        return {
            "seed": self.seed,
            "head": self.head.that_matter(),
            "train": self.train.that_matter(),
            "fit_share": self.calibration.fit_share,
        }


def load_config(
    file: Path | None = None,
    sets: tuple[str, ...] = (),
    options: dict[str, Any] | None = None,
    base: dict[str, Any] | None = None,
) -> Config:
    """The settings: defaults, then the TOML file, then options, then `section.name=value` texts.

    Args:
        file: TOML.
        sets: as given to `--set`.
        options: full name → value; None where not given.
        base: settings of the run so far, which take the defaults' place.

    Raises:
        ShelfmarkError: the file cannot be read, or a setting is unknown or has a wrong value.
    """
    values: dict[str, Any] = copy.deepcopy(base or {})
    _check(values, "the run's config.json")
    for section, told in (_read_toml(file) if file else {}).items():
        kept = values.get(section)
        values[section] = kept | told if isinstance(kept, dict) and isinstance(told, dict) else told
    _check(values, str(file))
    for name, value in (options or {}).items():
        if value is not None:
            _put(values, name, value)
            _check(values, f"--{name.rpartition('.')[2].replace('_', '-')}")
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals:
            raise ShelfmarkError(
                f"--set {text}: no '='; expected section.name=value, as in --set train.epochs=50"
            )
        _put(values, name.strip(), _parse(value.strip()))
        _check(values, f"--set {text}")
    return _check(values, "settings")


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise ShelfmarkError(
            f"{file}: {error.strerror}; expected a TOML file of settings; mend --config"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ShelfmarkError(f"{file}: not TOML: {error}; mend the file") from error


def _parse(text: str) -> Any:
    """A value as TOML reads it; a bare word is a text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    *sections, last = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ShelfmarkError(f"--set {name}: {section!r} is no section; expected section.name=value")
    values[last] = value


def _check(values: dict[str, Any], where: str) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ShelfmarkError(_explain(error.errors()[0], where)) from error


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
    return f"{where}: {'.'.join(path)} = {problem['input']!r}: {problem['msg'].lower()}; mend the setting"
