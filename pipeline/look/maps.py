"""Maps: where the network looked in photos of wrong and doubtful products, for the report.

    runs/<run>/maps/  maps.parquet  manifest.json

    maps.parquet    product_id; rows, height of the map in cells; heat, list of rows · columns uint8: what
                    each cell of the product's first photo says for the predicted category, as a share of
                    the cell that says most, times 255

The photos go through the backbone once more: the store has only the means of their maps.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from features.engines.backbones import Backbone
from features.errors import ShelfmarkError
from features.storage.artifact import Artifact
from models.decisions.bundle import THRESHOLDS, load_predictor, read_rules
from models.decisions.categorizer import Categorizer
from models.heads.class_maps import ClassMaps
from pipeline.job.progress import log
from pipeline.job.run import Run
from pipeline.job.stage import stage
from pipeline.job.summaries import BottlenecksSummary, MapsSummary
from pipeline.report.data import load
from pipeline.report.photos import choose, first_jpegs
from pipeline.report.tables import wrong_rows

VERSION = 1
MAPS = "maps.parquet"


def maps(run: Run) -> Artifact | None:
    """Makes the maps of a run whose evaluation is finished.

    Returns:
        None, and a line in the log, where none can be had; None where the settings want none.
    """
    settings = run.config.report
    most = min(settings.maps, settings.thumbnails)
    if not most:
        return None
    records = run.records()
    bottlenecks = run.bottlenecks(records)
    head = run.head(records, bottlenecks)
    thresholds = run.thresholds(head)
    evaluation = run.artifact("evaluation", "evaluate", thresholds=thresholds)
    fingerprint = BottlenecksSummary.of(bottlenecks).fingerprint
    categorizer = Categorizer(load_predictor(head.folder()), read_rules(thresholds.file(THRESHOLDS)))
    try:
        looking = ClassMaps(_backbone(run, fingerprint), categorizer.head)
    except ShelfmarkError as error:
        log.info("maps: none: %s", error)
        return None

    def make(work: Path) -> Mapping[str, object]:
        chosen = _predicted(run, most, settings.thumbnails)
        photos = first_jpegs(records.path, chosen)
        position = {name: at for at, name in enumerate(categorizer.predictor.taxonomy.categories)}
        categories = np.array([position[chosen[product]] for product in photos], int)
        heats = looking.heats(list(photos.values()), categories)
        table = pd.DataFrame(
            {
                "product_id": list(photos),
                "rows": np.array([len(heat) for heat in heats], np.int32),
                "heat": [np.rint(heat.ravel() * 255).astype(np.uint8) for heat in heats],
            }
        )
        table.to_parquet(work / MAPS, index=False)
        return MapsSummary(photos=len(photos)).to_dict()

    made_from = {
        "evaluation": evaluation.digest,
        "records": records.digest,
        "head": head.digest,
        "fingerprint": fingerprint,
        "settings": {"maps": most, "thumbnails": settings.thumbnails},
    }
    return stage(run.path / "maps", kind="maps", version=VERSION, made_from=made_from, make=make)


def _backbone(run: Run, fingerprint: str) -> Backbone:
    """The run's backbone; ShelfmarkError where it is not the one of the bottlenecks, or cannot be had."""
    backbone = run.backbone
    if backbone.fingerprint != fingerprint:
        raise ShelfmarkError(
            f"the settings name backbone {backbone.fingerprint}; expected {fingerprint}, which the head was "
            "trained on; run `shelfmark extract` first"
        )
    return backbone


def _predicted(run: Run, most: int, thumbnails: int) -> dict[str, str]:
    """The predicted category of the products that get a map, by product_id."""
    data = load(run.path)
    choice = choose(data, thumbnails, wrong_rows(data.products), [])
    rows = np.array(choice.mapped(most), int)
    predicted = data.products.predicted.texts(rows)
    return {
        name: category
        for name, category in zip(data.products.ids(rows), predicted, strict=True)
        if category is not None
    }
