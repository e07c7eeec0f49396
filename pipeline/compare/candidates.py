"""The backbones that `compare --backbones` is called with, checked before anything heavy is imported.

NAME or NAME=WEIGHTS, separated by commas      mobilenet,inception_v3@mixed5=inception.weights.h5
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from features.engines.backbone_names import is_file_name, parse_name, require_backbone
from features.errors import ShelfmarkError
from features.storage.paths import any_path, local
from pipeline.job.config import BackboneSettings, Config

if TYPE_CHECKING:
    from features.engines.backbones import Backbone
    from pipeline.job.run import Run


@dataclass(frozen=True)
class Candidate:
    """A backbone to compare."""

    given: str  # its name as for --backbone; of a file with the whole path
    name: str  # its name as Backbone.name
    weights: str  # imagenet, random, or a whole path; imagenet of a file, which has its own

    @property
    def item(self) -> str:
        """What --backbones takes for it."""
        return self.given if is_file_name(self.given) else f"{self.given}={self.weights}"

    def settings(self, config: Config) -> BackboneSettings:
        """The settings [backbone] of a run with this backbone."""
        return config.backbone.model_copy(update={"name": self.given, "weights": self.weights})

    def load(self, run: "Run") -> "Backbone":
        """The backbone, with the other settings of the run.

        Raises:
            ShelfmarkError: it cannot be loaded.
        """
        config = run.config.model_copy(update={"backbone": self.settings(run.config)})
        return replace(run, config=config).untuned_backbone()

    def identity(self, config: Config) -> dict[str, object]:
        """What its bottlenecks depend on, as far as it is known without loading it."""
        settings = self.settings(config)
        found: dict[str, object] = {
            "name": self.name,
            "weights": self.weights,
            "image_size": settings.image_size,
        }
        if self.weights == "random":
            found["seed"] = config.seed
        if is_file_name(self.given):
            found |= {"file": _content(parse_name(self.given).path)}
            found |= {"encoder": [settings.layout, settings.scaling, settings.pooling]}
        return found | {"content": _content(self.weights)}


def parse_candidates(text: str) -> tuple[Candidate, ...]:
    """Reads the value of --backbones.

    Raises:
        ShelfmarkError: an unknown network, a missing file of weights, or the same backbone twice.
    """
    found: list[Candidate] = []
    for item in map(str.strip, text.split(",")):
        given, equals, weights = map(str.strip, item.partition("="))
        if not given or (equals and not weights):
            raise ShelfmarkError(
                f"--backbones {text}: {item or 'nothing'!r} between commas; expected NAME or NAME=WEIGHTS, "
                "as in mobilenet,inception_v3@mixed5; correct the list"
            )
        try:
            parsed = parse_name(given)
            require_backbone(given, weights or "imagenet")
        except ShelfmarkError as error:
            raise ShelfmarkError(f"--backbones {item}: {error}") from error
        whole = parsed.with_folder(Path.cwd()) if is_file_name(given) else given
        candidate = Candidate(whole, str(parsed), _whole_path(weights or "imagenet"))
        if any(_same(candidate, other) for other in found):
            raise ShelfmarkError(
                f"--backbones {text}: {item} is there twice; expected each once; leave one out"
            )
        found.append(candidate)
    return tuple(found)


def _same(one: Candidate, other: Candidate) -> bool:
    is_file = is_file_name(one.given)  # two folders may have files of one name
    return (one.name, one.weights) == (other.name, other.weights) and (
        not is_file or one.given == other.given
    )


def _whole_path(weights: str) -> str:
    if weights in ("imagenet", "random") or "://" in weights:
        return weights
    return str(Path(weights).absolute())


def _content(path: str) -> str:
    """sha256 of a file; of a directory, of its files; "" where there is neither."""
    if path in ("imagenet", "random"):
        return ""
    whole = any_path(path)
    if whole.is_file():
        return _sha256(local(whole))
    if isinstance(whole, Path) and whole.is_dir():
        files = sorted(file for file in whole.rglob("*") if file.is_file())
        lines = (f"{file.relative_to(whole)} {_sha256(file)}" for file in files)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return ""


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
