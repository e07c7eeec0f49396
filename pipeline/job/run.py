"""A run: one week's directory under WORKSPACE/runs, and what the stages share.

    config.json   {"run", "code_version", "based_on", "settings"}

`based_on` is the release in service when the run began. It does not change when the run continues after its
own release, or another one's. Which part of the split products keep: known_splits.py.
"""

import datetime
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from features.engines.backbone_names import parse_name
from features.engines.backbones import (
    BACKBONE,
    TUNED,
    Backbone,
    BackboneDescription,
    load_backbone,
    read_backbone,
)
from features.engines.onnx_input import EncoderOptions
from features.errors import ShelfmarkError
from features.storage.artifact import Artifact, digest_of, find_artifact, open_artifact
from features.storage.paths import MARK, AnyPath, any_path, local, write_whole
from models.decisions.releases import in_service, require_whole
from pipeline.job.config import Config
from pipeline.job.progress import log
from pipeline.job.summaries import BackboneSummary, BottlenecksSummary

OLD_VIEWS = {"1": "whole", "2": "whole flip"}  # what manifests of older heads say


class SavedRun(BaseModel):
    """config.json."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    run: str = ""
    code_version: str = ""
    based_on: str | None = None  # name of a release
    settings: dict[str, object] = {}


@dataclass(frozen=True)
class Run:
    """A run: where its files are, and its finished artifacts."""

    workspace: AnyPath
    name: str
    config: Config
    based_on: str | None  # name of a release

    @property
    def path(self) -> AnyPath:
        """The run's directory."""
        return self.workspace / "runs" / self.name

    @property
    def store(self) -> AnyPath:
        """Bottlenecks of all runs."""
        return self.workspace / "store"

    @property
    def releases(self) -> AnyPath:
        """Bundles that are or were in service."""
        return self.workspace / "releases"

    def records(self) -> Artifact:
        """The finished records of the run."""
        return self.artifact("records", "ingest")

    def bottlenecks(self, records: Artifact) -> Artifact:
        """The finished bottlenecks of these records, of the run's own backbone where it has one."""
        found = self.artifact("bottlenecks", "extract", records=records)
        own, fingerprint = self.own_backbone(), BottlenecksSummary.of(found).fingerprint
        if own and (expected := BackboneSummary.of(own).fingerprint) != fingerprint:
            raise ShelfmarkError(
                f"{found.path}: of backbone {fingerprint}; expected the run's own, {expected}; "
                "run `shelfmark extract` first"
            )
        return found

    def head(self, records: Artifact, bottlenecks: Artifact) -> Artifact:
        """The finished head of the run, trained on these bottlenecks of the records."""
        head = self.artifact("head", "train", records=records)
        extracted = BottlenecksSummary.of(bottlenecks)
        if head.made_from["fingerprint"] != extracted.fingerprint:
            raise ShelfmarkError(
                f"{head.path}: trained on bottlenecks of {head.made_from['fingerprint']}; expected "
                f"{extracted.fingerprint}, the backbone of {bottlenecks.path}; run `shelfmark train` first"
            )
        trained = head.made_from.get("views", "1")
        if (trained := OLD_VIEWS.get(trained, trained)) != extracted.seen:
            raise ShelfmarkError(
                f"{head.path}: trained on the views {trained}; expected {extracted.seen}, as in "
                f"{bottlenecks.path}; run `shelfmark train` first"
            )
        return head

    def thresholds(self, head: Artifact) -> Artifact:
        """The finished thresholds of this head."""
        return self.artifact("thresholds", "calibrate", head=head)

    def styles(self) -> Artifact | None:
        """The finished styles of the categories; None where sellers.method has none."""
        if self.config.sellers.method != "paper":
            return None
        records = self.records()
        head = self.head(records, self.bottlenecks(records))
        return self.artifact("styles", "calibrate", records=records, head=head)

    def sellers(self) -> Artifact | None:
        """The finished rules of adapted decisions for the run's head; None with sellers.method = none."""
        if self.config.sellers.method == "none":
            return None
        records = self.records()
        head = self.head(records, self.bottlenecks(records))
        return self.artifact("sellers", "calibrate", head=head, thresholds=self.thresholds(head))

    def known_splits(self) -> Path | None:
        """product_id and split of the products that keep their part; None where no release knows any."""
        from pipeline.job.known_splits import KNOWN, gather_splits, kept_splits  # pyarrow takes a second

        file = self.path / KNOWN
        if not (file.is_file() and (self.path / "records" / MARK).is_file()):
            self.release_before()  # where it is lost, its products could get other parts
            gather_splits(self.releases, self.based_on, file)
        return kept_splits(file)

    def release_before(self) -> Artifact | None:
        """The release that the run is based on; None where nothing was in service.

        Raises:
            ShelfmarkError: it is lost or damaged.
        """
        if self.based_on is None:
            return None
        next_step = (
            "put its files back, or put another one into service by `shelfmark rollback` or `shelfmark "
            "release`, then run the same command with another --run"
        )
        return require_whole(self.releases, self.based_on, next_step)

    def bundle_before(self) -> Artifact | None:
        """The bundle that the run is based on; None without train.warm_start."""
        if self.based_on is None or not self.config.train.warm_start:
            return None
        found = find_artifact(self.releases / self.based_on)
        if found is None:
            raise ShelfmarkError(
                f"{self.releases / self.based_on}: missing or damaged; expected the release that run "
                f"{self.name} starts from; put it back, or start fresh with --set train.warm_start=false"
            )
        return found

    def untuned_backbone(self) -> Backbone:
        """The frozen network of the settings."""
        settings = self.config.backbone
        weights = (
            settings.weights if "://" not in settings.weights else str(local(any_path(settings.weights)))
        )
        encoder = EncoderOptions(settings.layout, settings.scaling, settings.pooling)
        return load_backbone(settings.name, weights, settings.image_size, self.config.seed, encoder)

    def require_backbone(self, tune: bool) -> Backbone | None:
        """Loads the run's backbone, before hours of ingest; if it is to be tuned, the one to start from.

        Returns:
            The backbone; None where this run has tuned its own, after its ingest.

        Raises:
            ShelfmarkError: the network, its layers or its weights cannot be had, or do not fit.
        """
        if not tune and (self.path / "backbone" / MARK).is_file():
            return None
        return self.untuned_backbone() if tune else self.backbone  # which is kept for the stages

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen network that this run's bottlenecks are of, loaded once.

        The run's own, fine-tuned; else that of the release it is based on, when this was fine-tuned from the
        one of the settings; else the one of the settings.
        """
        if own := self.own_backbone():
            return _opened(own)
        released = self.release_before()
        if released and self._tuned_here(released):
            log.info("backbone: the fine-tuned one of release %s", self.based_on)
            return _opened(released)
        return self.untuned_backbone()

    def own_backbone(self) -> Artifact | None:
        """The run's backbone/, if it has one: tuned on its records, from the backbone of the settings."""
        if not (self.path / "backbone" / MARK).is_file():
            return None
        own = self.artifact("backbone", "finetune", records=self.records())
        if not self._tuned_here(own):
            settings = self.config.backbone
            raise ShelfmarkError(
                f"{own.path}: tuned from another backbone; expected {settings.name} with weights "
                f"{settings.weights}, as the settings say; run `shelfmark finetune` first, or remove it"
            )
        return own

    def _tuned_here(self, artifact: Artifact) -> bool:
        """Whether a backbone/ or bundle/ holds a backbone that was tuned from the one of the settings."""
        settings = self.config.backbone
        name = parse_name(settings.name)
        size, weights = name.image_size(settings.image_size), TUNED + Path(settings.weights).name
        expected = BackboneDescription(str(name), size, weights)
        return BackboneDescription.read(artifact.file(BACKBONE)) == expected

    def artifact(self, kind: str, command: str, **made_from: Artifact) -> Artifact:
        """A finished artifact of the run, made from these; ShelfmarkError names the command that makes it."""
        next_step = f"run `shelfmark {command}` first"
        try:
            artifact = open_artifact(self.path / kind, kind)
        except ShelfmarkError as error:
            lost = "damaged" if (self.path / kind / MARK).is_file() else "missing"
            raise ShelfmarkError(
                f"{self.path / kind}: {lost}; expected the run's finished {kind}; {next_step}"
            ) from error
        for name, source in made_from.items():
            if artifact.made_from.get(name) != source.digest:
                raise ShelfmarkError(
                    f"{self.path / kind}: made from other {name}; expected the run's {name}; {next_step}"
                )
        return artifact

    def require_settings(self, kind: str, command: str, settings: Mapping[str, object]) -> Artifact:
        """A finished artifact of the run; ShelfmarkError when it was made with other settings."""
        artifact = self.artifact(kind, command)
        if artifact.made_from["settings"] != digest_of(settings):
            raise ShelfmarkError(
                f"{self.path / kind}: made with other settings; expected those of config.json; "
                f"run `shelfmark {command}` first"
            )
        return artifact


def _opened(artifact: Artifact) -> Backbone:
    """The backbone in a backbone/ or bundle/."""
    return read_backbone(artifact.path, str(artifact.summary["fingerprint"]))


def default_name(today: datetime.date) -> str:
    """The ISO week, as in 2026-W47.

    >>> default_name(datetime.date(2026, 11, 20))
    '2026-W47'
    """
    year, week, _ = today.isocalendar()
    return f"{year}-W{week:02d}"


def saved_settings(workspace: AnyPath, name: str) -> dict[str, object]:
    """Settings that the run was last used with; empty for a new run."""
    saved = saved_run(workspace / "runs" / name)
    return saved.settings if saved else {}


def begin_run(workspace: AnyPath, name: str, config: Config) -> Run:
    """Opens the run, or makes it, and keeps its settings. The caller holds the run's lock."""
    path = workspace / "runs" / name
    saved = saved_run(path)
    based_on = saved.based_on if saved else in_service(workspace / "releases")
    opened = SavedRun(
        run=name,
        code_version=importlib.metadata.version("shelfmark"),
        based_on=based_on,
        settings=config.model_dump(mode="json"),
    )
    write_whole(path / "config.json", json.dumps(opened.model_dump(), indent=1).encode())
    return Run(workspace, name, config, based_on)


@contextmanager
def settings_on_trial(workspace: AnyPath, name: str) -> Iterator[None]:
    """Restores config.json when a command fails before it has finished anything in the run."""
    path = workspace / "runs" / name
    file = path / "config.json"
    before, finished = file.read_bytes() if file.is_file() else None, _marks(path)
    try:
        yield
    except Exception:
        if _marks(path) == finished:
            file.unlink(missing_ok=True)
            if before is not None:
                write_whole(file, before)
        raise


def _marks(path: AnyPath) -> dict[str, bytes]:
    """The manifests of a run's finished artifacts."""
    return {str(file): file.read_bytes() for file in path.rglob(MARK)}


def saved_run(path: AnyPath) -> SavedRun | None:
    """What config.json of a run's directory holds; None for a new run.

    Raises:
        ShelfmarkError: it is not what a command writes.
    """
    try:
        return SavedRun.model_validate_json((path / "config.json").read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ShelfmarkError(
            f"{path}/config.json: not the settings of a run; expected what a command wrote there; remove the "
            "file to begin anew"
        ) from error
