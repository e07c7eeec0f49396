"""Extract: records → bottlenecks of the images that the store lacks, and the run's index into the store.

    bottlenecks/  manifest.json
                  index.parquet   image_digest (32 bytes), product_id, image_index, split, shard, row
                                  and with extract.flip: flip_shard, flip_row
    store/<fingerprint>/          shards, see features/storage/store.py

The index is sorted by product, so that the images of a product stand together.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.engines.backbones import Backbone
from features.errors import ShelfmarkError
from features.records import Piece, read_pieces
from features.storage.artifact import Artifact
from features.storage.paths import Place, writing
from features.storage.store import Digests, Places, Store, StoredRows, digest_array, digests_of
from models.decisions.validation_split import first_of_product
from pipeline.extract.fill_store import RECORD, fill_store, fill_store_on_beam
from pipeline.job.config import Extract
from pipeline.job.stage import stage

VERSION = 3
FLIP = "flip_"  # before the names of the second view
INDEX_ROWS = 2**18  # rows of the index made at a time
READ_ROWS = 2**16  # hex digests decoded at a time; 2**20 of them took 0.5 GB
INDEX = pa.schema(
    [
        ("image_digest", pa.binary(32)),
        ("product_id", pa.string()),
        ("image_index", pa.int32()),
        ("split", pa.string()),
    ]
)


def extract_records(
    records: Artifact,
    backbone: Backbone,
    store: Place,
    out: Place,
    settings: Extract,
    beam: tuple[str, ...] = (),
) -> Artifact:
    """Puts the bottlenecks of all images in `records` into the store and writes the index.

    Args:
        records: of ingest.
        backbone: frozen.
        store: directory of all stores; the backbone's is `store/<fingerprint>`.
        out: the artifact's directory.
        settings: the section [extract].
        beam: Beam's own options; with any of them, its workers extract.

    Raises:
        ShelfmarkError: shards could not be made; the others are kept, the same command goes on.
        OSError: the disk is full, not writable, …
    """
    views = _views(store, backbone.fingerprint, settings.flip)

    def make(work: Place) -> Mapping[str, Any]:
        images = records.file("images.parquet")
        digests = Digests(read_digests(images))
        places = {}
        for name, view in views.items():
            if beam:
                places[name] = fill_store_on_beam(view, digests, records, backbone, settings, beam, work)
            else:
                places[name] = fill_store(view, digests, RecordReader(records), lambda: backbone, settings)
        _write_index(images, digests.values, places, work / "index.parquet")
        return {
            "images": len(digests),
            "fingerprint": backbone.fingerprint,
            "backbone": backbone.name,
            "weights": backbone.weights,
            "views": len(places),
            **{f"{name}engines": found.by_engine() for name, found in places.items()},
        }

    def usable(artifact: Artifact) -> bool:
        return all(shards_of(artifact, name) <= set(view.shards()) for name, view in views.items())

    made_from = {
        "records": records.digest,
        "fingerprint": backbone.fingerprint,
        "settings": settings.that_matter(),
    }
    return stage(
        out, kind="bottlenecks", version=VERSION, made_from=made_from, make=make, usable=usable,
        shared=bool(beam),
    )  # fmt: skip


def _views(store: Place, fingerprint: str, flip: bool) -> dict[str, Store]:
    """The views by what stands before their names in the index."""
    shelf = Store(store / fingerprint)
    return {"": shelf} | ({FLIP: shelf.mirrored()} if flip else {})


def read_digests(images: Path) -> np.ndarray:
    """(n, 32) uint8: the column image_digest of a Parquet file, hex or binary."""
    with pq.ParquetFile(images) as file:
        digests, done = np.empty((file.metadata.num_rows, 32), np.uint8), 0
        for batch in file.iter_batches(READ_ROWS, columns=["image_digest"]):
            digests[done : done + len(batch)] = digests_of(pa.chunked_array([batch.column(0)]))
            done += len(batch)
    return digests


class RecordReader:
    """Reads images by their numbers in images.parquet, which is opened for the first of them."""

    def __init__(self, records: Artifact) -> None:
        self._records = records
        self._rows: pa.Table | None = None

    def __call__(self, numbers: np.ndarray) -> Iterator[Piece]:
        """Pieces of their records, in order."""
        if self._rows is None:
            images = self._records.file("images.parquet")
            self._rows = pq.read_table(images, columns=list(RECORD), read_dictionary=["file"])
        rows = self._rows.take(pa.array(numbers)).to_pandas()
        return read_pieces(self._records.path, rows.astype({"file": str}))


# The index


def _write_index(images: Path, digests: np.ndarray, places: Mapping[str, Places], file: Place) -> None:
    """Writes the index a piece at a time: as one table 20 million rows would take 3 GB."""
    told = pq.read_table(images, columns=["product_id", "image_index", "split"], read_dictionary=["split"])
    told = told.combine_chunks()
    order = pc.sort_indices(told, sort_keys=[("product_id", "ascending"), ("image_index", "ascending")])
    schema = INDEX
    for name in places:
        schema = schema.append(pa.field(f"{name}shard", pa.string()))
        schema = schema.append(pa.field(f"{name}row", pa.int32()))
    with writing(file) as working, pq.ParquetWriter(working, schema) as writer:
        for start in range(0, len(order), INDEX_ROWS):
            chosen = order.slice(start, INDEX_ROWS)
            rows = chosen.to_numpy()
            columns = {name: told[name].take(chosen) for name in told.column_names}
            columns["image_digest"] = digest_array(digests[rows])
            for name, found in places.items():
                columns[f"{name}shard"] = pa.array(found.names, pa.string()).take(pa.array(found.shard[rows]))
                columns[f"{name}row"] = pa.array(found.row[rows])
            writer.write_table(pa.table({name: columns[name] for name in schema.names}).cast(schema))


def shards_of(bottlenecks: Artifact, view: str = "") -> set[str]:
    """Names of the shards that the index refers to; `view` is FLIP for those of the mirrored images."""
    file, column, names = bottlenecks.file("index.parquet"), f"{view}shard", set[str]()
    if column in pq.read_schema(file).names:
        with pq.ParquetFile(file, read_dictionary=[column]) as index:
            for batch in index.iter_batches(INDEX_ROWS, columns=[column]):
                names.update(batch.column(0).unique().to_pylist())
    return names


@dataclass(frozen=True)
class Part:
    """The images of one part of the catalogue, products together, each once in its product.

    With two views each image stands there twice, as it is and then mirrored: to all that comes after, a
    product has twice as many images, and what they say is made one as that of images is.
    """

    product_id: np.ndarray  # (n,) str; the images of a product share one object
    digest: np.ndarray  # (n, 32) uint8
    rows: StoredRows  # (n, d) bottlenecks
    views: int = 1  # of each image: n = views · images

    @property
    def image_digest(self) -> np.ndarray:
        """(n,) str, sha256 hex: 120 bytes an image, made when it is asked for."""
        text = self.digest.tobytes().hex()
        return np.array([text[at : at + 64] for at in range(0, len(text), 64)], dtype=object)

    def only(self, chosen: np.ndarray) -> "Part":
        """The chosen rows, (n,) bool."""
        return Part(self.product_id[chosen], self.digest[chosen], self.rows.only(chosen), self.views)

    def first_view(self) -> "Part":
        """The images as they are, each once."""
        first = np.arange(len(self.product_id)) % self.views == 0
        return replace(self.only(first), views=1)


def open_part(bottlenecks: Artifact, store: Place, split: str) -> Part:
    """The images of a split ("train", "val", "test") with the bottlenecks of every view extracted.

    An image that a product has twice is there once: twice the same photo is no further evidence.
    """
    file = bottlenecks.file("index.parquet")
    names = pq.read_schema(file).names
    views = _views(store, bottlenecks.summary["fingerprint"], f"{FLIP}shard" in names)
    index = pq.read_table(
        file, filters=[("split", "==", split)],
        columns=[name for name in names if name not in ("split", "image_index")],
        read_dictionary=["product_id", *(f"{view}shard" for view in views)],
    )  # fmt: skip
    product_id, product = _coded(index["product_id"])
    digests = digests_of(index["image_digest"])
    first = first_of_product(product, digests)
    if not first.all():
        product, digests = product[first], digests[first]
    ids = np.array(product_id.to_pylist(), dtype=object)[product]
    rows = [_rows(index, name, view).only(first) for name, view in views.items()]
    if len(rows) == 1:
        return Part(ids, digests, rows[0])
    return Part(ids.repeat(2), digests.repeat(2, axis=0), rows[0].beside(rows[1]), views=2)


def _rows(index: pa.Table, name: str, view: Store) -> StoredRows:
    shards, shard = _coded(index[f"{name}shard"])
    return view.rows(shards.to_pylist(), shard, index[f"{name}row"].to_numpy())


def _coded(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """The different values of a dictionary column, and (n,) int32 each row's place among them."""
    whole = column.unify_dictionaries().combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # no chunk at all
        return pa.array([], pa.string()), np.empty(0, np.int32)
    return whole.dictionary, whole.indices.to_numpy()


def views_of(bottlenecks: Artifact) -> str:
    """How many views of each image there are: "1", or "2" with the mirrored one."""
    return str(bottlenecks.summary.get("views", 1))


def require_same_backbone(bottlenecks: Artifact, head: Artifact) -> None:
    """Raises a ShelfmarkError when a head was trained on another backbone's bottlenecks or other views."""
    found, wanted = head.made_from["fingerprint"], bottlenecks.summary["fingerprint"]
    if found != wanted:
        raise ShelfmarkError(
            f"{head.path}: trained on bottlenecks of {found}; expected {wanted}, the backbone of "
            f"{bottlenecks.path}; run `shelfmark train` first"
        )
    trained, views = head.made_from.get("views", "1"), views_of(bottlenecks)
    if trained != views:
        raise ShelfmarkError(
            f"{head.path}: trained on {trained} of each image's views; expected {views}, as in "
            f"{bottlenecks.path}; run `shelfmark train` first"
        )
