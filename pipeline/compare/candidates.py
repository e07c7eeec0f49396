"""The backbones that `compare --backbones` is called with, checked before anything heavy is imported.

NAME or NAME=WEIGHTS, separated by commas      mobilenet,inception_v3@mixed5=inception.weights.h5
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from features.engines.backbone_names import parse_name, require_backbone
from features.errors import ShelfmarkError
from features.storage.paths import any_path, local


@dataclass(frozen=True)
class Candidate:
    """A backbone to compare."""

    given: str  # its name as given, for `load_backbone`
    name: str  # its name as Backbone.name
    weights: str  # imagenet, random, or a path

    def identity(self, seed: int) -> list[object]:
        """What its bottlenecks depend on beside the image size, known without loading it."""
        own = parse_name(self.given).path  # of an ONNX file or a preset
        parts: list[object] = [self.name, self.weights, _content(self.weights), _content(own)]
        return [*parts, seed] if self.weights == "random" else parts


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
            name = str(parse_name(given))
            require_backbone(given, weights or "imagenet")
        except ShelfmarkError as error:
            raise ShelfmarkError(f"--backbones {item}: {error}") from error
        candidate = Candidate(given, name, _whole_path(weights or "imagenet"))
        if (candidate.name, candidate.weights) in ((one.name, one.weights) for one in found):
            raise ShelfmarkError(
                f"--backbones {text}: {item} is there twice; expected each once; leave one out"
            )
        found.append(candidate)
    return tuple(found)


def _whole_path(weights: str) -> str:
    if weights in ("imagenet", "random") or "://" in weights:
        return weights
    return str(Path(weights).absolute())


def _content(path: str) -> str:
    """sha256 of a file; of a directory, of its files; "" where there is neither."""
    if path in ("", "imagenet", "random"):
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
