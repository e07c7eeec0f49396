"""Extract: records → bottlenecks of the images that the store lacks, and the run's index into the store.

bottlenecks/  manifest.json
              index.parquet   where each image's bottleneck is in the store, see index.py
store/<fingerprint>/          shards, see features/storage/store.py
"""

from collections.abc import Mapping

from features.engines.backbones import Backbone
from features.storage.artifact import Artifact
from features.storage.paths import AnyPath
from features.storage.store import Digests, Store
from models.heads.architectures import HeadShape, load_head
from pipeline.extract.beam_worker import fill_store_on_beam
from pipeline.extract.chosen_views import choose_views, require_views
from pipeline.extract.fill_store import RecordReader, fill_store
from pipeline.extract.index import read_digests, shards_of, write_index
from pipeline.job.config import ExtractSettings
from pipeline.job.run import Run
from pipeline.job.stage import stage
from pipeline.job.summaries import BottlenecksSummary, RecordsSummary

VERSION = 3


def extract(run: Run, beam: tuple[str, ...] = ()) -> Artifact:
    """Extracts the bottlenecks of the run's images, by Beam's workers when there are options for Beam.

    Raises:
        ShelfmarkError: see `extract_records`.
    """
    out, settings = run.path / "bottlenecks", run.config.extract
    return extract_records(run.records(), run.backbone, run.store, out, settings, beam, _shape_before(run))


def require_extractable(run: Run, tune: bool) -> None:
    """Checks the backbone and its views before hours of ingest.

    Args:
        run: opened.
        tune: the backbone will be tuned first.

    Raises:
        ShelfmarkError: as `Run.require_backbone` and `choose_views`.
    """
    if backbone := run.require_backbone(tune):
        before = None if tune else _shape_before(run)  # the tuned one is another one than that in service
        require_views(run.config.extract, backbone, before)


def _shape_before(run: Run) -> HeadShape | None:
    """Of the head in service, where `quality = auto` may keep to its views."""
    released = run.release_before() if run.config.extract.quality == "auto" else None
    return load_head(released.folder()).shape if released else None


def extract_records(
    records: Artifact,
    backbone: Backbone,
    store: AnyPath,
    out: AnyPath,
    settings: ExtractSettings,
    beam: tuple[str, ...] = (),
    before: HeadShape | None = None,
) -> Artifact:
    """Puts the bottlenecks of all images in `records` into the store and writes the index.

    Args:
        records: of ingest.
        backbone: frozen.
        store: directory of all stores; the backbone's is `store/<fingerprint>`.
        out: the artifact's directory.
        settings: the section [extract].
        beam: Beam's own options; with any of them, its workers extract.
        before: of the head in service, whose views `quality = auto` keeps to; None: there is none.

    Raises:
        ShelfmarkError: the backbone cannot have a view; or shards could not be made; the others are kept,
            and the same command continues.
        OSError: the disk is full, not writable, …
    """
    chosen = choose_views(settings, backbone, sum(RecordsSummary.of(records).records.values()), before)
    main, new = Store(store / backbone.fingerprint), list[int]()

    def make(work: AnyPath) -> Mapping[str, object]:
        images = records.file("images.parquet")
        digests = Digests(read_digests(images))
        views = [main.view(view) for view in chosen.views]
        if beam:
            locations = fill_store_on_beam(views, digests, records, backbone, settings, beam, work)
        else:
            locations = fill_store(views, digests, RecordReader(records), lambda: backbone, settings)
        new.append(max(found.new for found in locations.values()))
        write_index(images, digests.values, locations, work / "index.parquet")
        return BottlenecksSummary(
            images=len(digests),
            fingerprint=backbone.fingerprint,
            backbone=backbone.name,
            weights=backbone.weights,
            views=len(chosen.views),
            view_names=tuple(view.name for view in chosen.views),
            asked=tuple(view.name for view in chosen.asked),
            averaged=chosen.averaged,
            engines=locations[chosen.views[0]].by_engine(),
            view_engines={view.name: locations[view].by_engine() for view in chosen.views[1:]},
        ).to_dict()

    def usable(artifact: Artifact) -> bool:
        return all(shards_of(artifact, view) <= set(main.view(view).shards()) for view in chosen.views)

    made_from = {
        "records": records.digest,
        "fingerprint": backbone.fingerprint,
        "settings": chosen.that_matter(),
    }
    return stage(
        out, kind="bottlenecks", version=VERSION, made_from=made_from,
        make=make, usable=usable, shared=bool(beam), noted=lambda: {"new_images": f"{new[0]:,}"},
    )  # fmt: skip
