"""The bundle: everything that categorizing needs, in one directory.

    bundle/  head.json  head.weights.h5  (set.json  set.weights.h5)  sizes.npy  taxonomy.csv  thresholds.json
             backbone.json  backbone.weights.h5 (or backbone.onnx)  splits.parquet  reference.json
             centroids.npy  measured.parquet  feed.json  trace.json  manifest.json
             (sellers.json  styles.centroids.npy  styles.bounds.npy)

trace.json says what the bundle was made from (pipeline/release/trace.py), feed.json what came in that week.
reference.json and centroids.npy are what new batches are compared with (pipeline/monitor/reference_files.py).
measured.parquet holds the measured products, on which a later bundle is compared with this one.
splits.parquet (product_id, split) keeps every product in its part of the split in the weeks to come.
sellers.json says how a seller's corrections change decisions (adapted.py); the method "paper" needs styles.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from features.engines.backbones import (
    BACKBONE,
    Backbone,
    BackboneDescription,
    read_backbone,
    start_tensorflow,
)
from features.engines.choose import engines_for
from features.engines.engine import Engine
from features.errors import ShelfmarkError
from features.storage.artifact import damaged_file, digest_of, file_digest, open_artifact
from features.storage.paths import AnyPath
from features.storage.store import Store
from features.views import View
from models.decisions.adapted import Adapter, load_adapter
from models.decisions.categorizer import Categorizer, DecisionRules, Predictor
from models.heads.architectures import SET_FILES, STRUCTURE, WEIGHTS, load_head
from models.taxonomy import read_taxonomy

HEAD_FILES = (STRUCTURE, WEIGHTS, "sizes.npy", "taxonomy.csv")
THRESHOLDS = "thresholds.json"
VERSION = 7  # of the bundles that this code writes; it reads these and earlier ones


@dataclass(frozen=True)
class Bundle:
    """An opened bundle; its backbone is loaded only when photos have to be read."""

    path: Path
    digest: str
    categorizer: Categorizer
    fingerprint: str  # of the backbone
    caveats: tuple[str, ...]  # warnings that everybody who uses its decisions must see
    adapter: Adapter | None = None  # decides for sellers with corrections; None where the bundle has no rules

    def backbone(self) -> Backbone:
        """The bundle's backbone, with the weights it was extracted with; starts TensorFlow."""
        start_tensorflow()
        return read_backbone(self.path, self.fingerprint)

    @cached_property
    def described(self) -> BackboneDescription:
        """What is known of its backbone without loading it."""
        return BackboneDescription.read(self.path / BACKBONE)

    def engines(
        self, batches: Mapping[View, Sequence[int]], store: AnyPath | None
    ) -> dict[View, dict[int, Engine]]:
        """The fastest engine of each network for each size of batches.

        Where OpenVINO is the fastest and has its network kept, TensorFlow and Keras are not imported.

        Args:
            batches: by View.network of the views that are to be computed, sizes, images.
            store: directory of all stores, WORKSPACE/store; a converted network is kept there, beside the
                bottlenecks of its view. None: it is not kept.

        Raises:
            ShelfmarkError: no engine can run it here, or the backbone cannot have such a view.
        """
        width = self.categorizer.predictor.head.shape.width
        home = Store(store / self.fingerprint) if store is not None else None
        loaded = cache(self.backbone)  # once for all networks

        def engines(network: View, sizes: Sequence[int]) -> dict[int, Engine]:
            kept = home.view(network).path if home else None
            return engines_for(lambda: loaded().for_view(network), self.described, width, sizes, kept)

        return {network: engines(network, sizes) for network, sizes in batches.items()}


def load_predictor(folder: Path) -> Predictor:
    """Reads the head of a head/ or bundle/ directory."""
    of_a_set = [name for name in SET_FILES if (folder / name).exists()]
    model = digest_of({name: file_digest(folder / name) for name in (*HEAD_FILES, *of_a_set)})
    return Predictor(
        head=load_head(folder),
        taxonomy=read_taxonomy(folder / "taxonomy.csv"),
        sizes=np.load(folder / "sizes.npy"),
        model=model,
        labels=file_digest(folder / "taxonomy.csv"),
        set_head=load_head(folder, SET_FILES) if of_a_set else None,
    )


def read_rules(file: Path) -> DecisionRules:
    """Reads thresholds.json.

    Raises:
        ShelfmarkError: it cannot be read.
    """
    try:
        return DecisionRules.from_dict(json.loads(file.read_text()))
    except ValueError as error:
        raise ShelfmarkError(
            f"{file}: cannot be read ({str(error).splitlines()[0]}); expected thresholds with a certificate; "
            f"remove {file.parent.name}/ and run again"
        ) from error


def open_bundle(path: AnyPath) -> Bundle:
    """Opens a bundle.

    Raises:
        ShelfmarkError: no finished bundle is there, or its parts do not belong together.
    """
    artifact = open_artifact(path, "bundle")
    if artifact.version > VERSION:
        raise ShelfmarkError(
            f"{path}: a bundle of version {artifact.version}, of a newer shelfmark; expected version "
            f"{VERSION} at most; install the shelfmark that made it, or put another release into service"
        )
    folder = artifact.folder()
    if name := damaged_file(artifact, folder):
        raise ShelfmarkError(
            f"{folder / name}: damaged; expected the digest that the manifest gives; "
            "put another release into service, or train again"
        )
    predictor = load_predictor(folder)
    categorizer = Categorizer(predictor, read_rules(folder / THRESHOLDS), path.name)
    caveats = _caveats(artifact.summary)
    return Bundle(
        path=folder,
        digest=artifact.digest,
        categorizer=categorizer,
        fingerprint=predictor.head.shape.fingerprint,
        caveats=caveats,
        adapter=load_adapter(folder, categorizer),
    )


def _caveats(summary: Mapping[str, object]) -> tuple[str, ...]:
    caveats = {
        "precision was not independently measured: its run had no test part": summary["independent"] is False,
        "the weights of its backbone are random: its decisions are a demonstration": summary["weights"]
        == "random",
    }
    return tuple(caveat for caveat, applies in caveats.items() if applies)
