"""Extract: records → bottlenecks of the images that the store lacks, and the run's index into the store.

    bottlenecks/  index.parquet  manifest.json   image_digest, product_id, image_index, split, shard, row
    store/<fingerprint>/                         shards, see features/bottlenecks.py

The index is sorted by product, so that the images of a product stand together.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from features.artifact import Artifact
from features.backbones import Backbone
from features.bottlenecks import Store, StoredRows
from features.engines import Calibration, choose_engine, extract
from features.errors import ShelfmarkError
from features.files import Place
from features.records import Piece, read_pieces
from pipeline.config import Extract
from pipeline.stage import Progress, stage
from pipeline.units import write_table

VERSION = 1


def extract_records(
    records: Artifact, backbone: Backbone, store: Place, out: Place, settings: Extract
) -> Artifact:
    """Puts the bottlenecks of all images in `records` into the store and writes the index.

    Args:
        records: of ingest.
        backbone: frozen.
        store: directory of all stores; the backbone's is `store/<fingerprint>`.
        out: the artifact's directory.
        settings: the section [extract].
    """
    shelf = Store(store / backbone.fingerprint)

    def make(work: Path) -> Mapping[str, Any]:
        images = pd.read_parquet(records.file("images.parquet"))

        def read(rows: np.ndarray) -> Iterator[Piece]:
            return read_pieces(records.path, images.iloc[rows])

        fill_store(shelf, images["image_digest"].to_numpy(), read, backbone, settings)
        places = shelf.find(images["image_digest"].to_numpy())
        if (places.row < 0).any():
            raise ShelfmarkError(
                f"{shelf.path}: lacks images that were just extracted; expected a store at rest; run again"
            )
        index = images.assign(shard=places.shard, row=places.row).sort_values(["product_id", "image_index"])
        columns = ["image_digest", "product_id", "image_index", "split", "shard", "row"]
        write_table(pa.Table.from_pandas(index[columns], preserve_index=False), work / "index.parquet")
        return {
            "images": len(images),
            "fingerprint": backbone.fingerprint,
            "backbone": backbone.name,
            "weights": backbone.weights,
        }

    def usable(artifact: Artifact) -> bool:
        shards = pd.read_parquet(artifact.file("index.parquet"), columns=["shard"])["shard"].unique()
        return set(shards) <= set(shelf.shards())

    made_from = {"records": records.digest, "fingerprint": backbone.fingerprint}
    return stage(out, kind="bottlenecks", version=VERSION, made_from=made_from, make=make, usable=usable)


def fill_store(
    store: Store,
    digests: np.ndarray,
    read: Callable[[np.ndarray], Iterator[Piece]],
    backbone: Backbone,
    settings: Extract,
) -> int:
    """Extracts what the store lacks, shard by shard; an identical image once.

    Args:
        store: of the backbone.
        digests: (n,) str.
        read: positions in `digests` → pieces of their strict JPEGs, in order.
        backbone: frozen.
        settings: the section [extract].

    Returns:
        Images added.
    """
    first = ~pd.Series(digests).duplicated().to_numpy()
    missing = np.flatnonzero(first & (store.find(digests).row < 0))
    if not len(missing):
        return 0

    def sample(most: int) -> Iterator[Piece]:
        return read(missing[:: -(-len(missing) // most)])

    calibration = Calibration(store.path, sample)
    engine = choose_engine(backbone, settings.batch, settings.engine, settings.precision, calibration)
    with Progress("extract", len(missing)) as progress:
        for start in range(0, len(missing), settings.shard_images):
            rows = missing[start : start + settings.shard_images]
            seen = _told(read(rows), start, progress)
            store.append(digests[rows], extract(engine, seen, len(rows)), engine=engine.told)
    return len(missing)


def _told(pieces: Iterator[Piece], done: int, progress: Progress) -> Iterator[Piece]:
    for piece in pieces:
        progress.to(done)
        done += len(piece.starts)
        yield piece


@dataclass(frozen=True)
class Part:
    """The images of one part of the catalogue, products together."""

    product_id: np.ndarray  # (images,) str
    image_digest: np.ndarray  # (images,) str
    rows: StoredRows  # (images, d) bottlenecks

    def only(self, chosen: np.ndarray) -> "Part":
        """The chosen images, (images,) bool."""
        return Part(self.product_id[chosen], self.image_digest[chosen], self.rows.only(chosen))


def open_part(bottlenecks: Artifact, store: Place, split: str) -> Part:
    """The images of a split ("train", "val", "test") with their bottlenecks."""
    index = pd.read_parquet(bottlenecks.file("index.parquet"), filters=[("split", "==", split)])
    shelf = Store(store / bottlenecks.summary["fingerprint"])
    rows = shelf.rows(index["shard"].to_numpy(), index["row"].to_numpy())
    return Part(
        index["product_id"].to_numpy(dtype=object), index["image_digest"].to_numpy(dtype=object), rows
    )
