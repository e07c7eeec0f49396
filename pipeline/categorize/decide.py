"""Part by part: bottlenecks from the store, predictions, decisions; images, rejects and counts of each part.

_done/part-00000.parquet   REJECTS, and `row`, by which they are in the sources' order
_done/part-00000.images.parquet   IMAGES of keep_images.py
_done/part-00000.json      counts: products by status, images, and those of batch_statistics.py; written last
"""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.errors import ShelfmarkError
from features.storage.paths import AnyPath, write_whole, writing
from features.storage.store import Store, digests_of
from models.decisions.adapted import unadapted
from models.decisions.bundle import Bundle
from models.decisions.cascade import joined_views
from models.decisions.categorizer import Categorizer, unreadable
from models.decisions.predictions import product_bounds
from models.decisions.validation_split import first_of_product
from pipeline.beam.run_units import write_table
from pipeline.categorize.digest_index import DigestIndex, halves
from pipeline.categorize.keep_images import write_images
from pipeline.categorize.known import LOCATION, unpacked
from pipeline.categorize.read_units import view_name
from pipeline.categorize.sellers import KeptSellers
from pipeline.categorize.sort_rows import SortedRows
from pipeline.ingest.check_images import without_roots
from pipeline.ingest.index import NO_IMAGE, image_indices
from pipeline.ingest.rejects import REJECTS
from pipeline.job.decisions_file import SCHEMA, WITH_ADAPTED
from pipeline.job.decisions_output import DecisionsOutput
from pipeline.job.progress import Progress
from pipeline.monitor.batch_statistics import BatchStatistics, PartImages
from pipeline.sources.listing import LEFT_OUT

DONE, IMAGES_END = "_done", ".images.parquet"
PART_REJECTS = pa.schema([*REJECTS, ("row", pa.int64())])


class Bottlenecks:
    """What a categorizer predicts from, by the digests of images, from the stores of its views."""

    def __init__(
        self, known: AnyPath, views: list[tuple[Store, list[str]]], categorizer: Categorizer
    ) -> None:
        """Opens the indices in `known`, of each view and the names of its shards."""
        self._categorizer = categorizer
        self._views = [
            (store, names, DigestIndex(known, view_name(view), list(LOCATION)))
            for view, (store, names) in enumerate(views)
        ]

    def deciding(self, digests: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows that decide about p products (rows, d) float16, their bounds, and as `looks_again` (p,).

        Args:
            digests: (n, 32) of their photos, products together.
            bounds: (p + 1,) of the photos.

        Raises:
            ShelfmarkError: a view of one is gone, or damaged.
        """
        categorizer, photos = self._categorizer, np.diff(bounds)
        if categorizer.rules.cascade is None:
            every = categorizer.rows([self._of_view(*view, digests) for view in self._views])
            return every, bounds * categorizer.rows_of_image, np.ones(len(photos), bool)
        first = self._of_view(*self._views[0], digests)
        again = categorizer.looks_again(first, bounds)
        of_photo = np.repeat(again, photos)
        others = [self._of_view(*view, digests[of_photo]) for view in self._views[1:]]
        count = photos * np.where(again, len(self._views), 1)
        return joined_views(first, of_photo, others), np.concatenate([[0], np.cumsum(count)]), again

    def looks_again(self, digests: np.ndarray, product: np.ndarray) -> np.ndarray:
        """(n,) bool: the photos of products that all views decide about.

        Args:
            digests: (n, 32) of photos, products together.
            product: (n,) int, of each photo.

        Raises:
            ShelfmarkError: the first view of one is gone, or damaged.
        """
        bounds = product_bounds(product)
        again = self._categorizer.looks_again(self._of_view(*self._views[0], digests), bounds)
        return np.repeat(again, np.diff(bounds))

    def lacks_others(self, digests: np.ndarray) -> np.ndarray:
        """(n,) bool: the photos (n, 32) that a view other than the first does not have."""
        lacks: np.ndarray = np.any([index.find(digests) < 0 for _, _, index in self._views[1:]], axis=0)
        return lacks

    @staticmethod
    def _of_view(store: Store, names: list[str], index: DigestIndex, digests: np.ndarray) -> np.ndarray:
        at = index.find(digests)
        if (at < 0).any():
            raise ShelfmarkError(
                f"{store.path}: lacks {np.count_nonzero(at < 0):,} images that were there; expected no other "
                "job to remove shards; run the command again"
            )
        shard, row, summed = unpacked(index.take("place", at))
        return store.gather(names, shard, row, index.take("sum", at), summed)


@dataclass(frozen=True)
class SortedPart:
    """Rows of a part with what is asked of each."""

    rows: pa.Table  # SORTED
    product: np.ndarray  # (n,) int, position among the part's products; -1 where the source gives no id
    product_id: np.ndarray  # (p,) object
    left_out: np.ndarray  # (p,) bool
    image_index: np.ndarray  # (n,) int32
    good: np.ndarray  # (n,) bool, readable; of products that are not left out
    refused: np.ndarray  # (n,) bool
    passed: int  # readable images of products left out: rows that name another seller were read

    @classmethod
    def of(cls, rows: pa.Table) -> "SortedPart":
        """Of rows of SORTED, whole products together."""
        ids = rows["product_id"].to_numpy()
        named = ids != ""
        bounds = product_bounds(ids[named])
        product = np.full(len(rows), -1, np.int64)
        product[named] = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
        reason = rows["reason"]
        left_out = np.zeros(len(bounds) - 1, bool)
        left_out[product[pc.equal(reason, LEFT_OUT).to_numpy() & named]] = True
        good = pc.equal(reason, "").to_numpy() & named
        passed = good.copy()
        passed[good] = left_out[product[good]]
        refused = pc.invert(pc.is_in(reason, pa.array(["", NO_IMAGE, LEFT_OUT]))).to_numpy()
        return cls(
            rows, product, ids[named][bounds[:-1]], left_out, image_indices(product), good & ~passed, refused,
            int(passed.sum()),
        )  # fmt: skip

    def photos(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The readable photos, each once in its product: product (k,) int, digests (k, 32), rows (k,) int."""
        rows = np.flatnonzero(self.good)
        product, digests = self.product[rows], digests_of(self.rows["image_digest"])[rows]
        first = first_of_product(product, digests)
        return product[first], digests[first], rows[first]


@dataclass(frozen=True)
class Outcomes:
    """What became of the products and images."""

    statuses: Counter[str]
    left_out: int  # products
    decided: int  # images
    repeated: int  # images that their product has more than once
    rejected: int  # images
    passed: int  # readable images of products left out
    adapted: int  # products decided by their sellers' corrections
    statistics: BatchStatistics | None

    def to_dict(self) -> dict[str, Any]:
        """What the file of a part holds."""
        statistics = self.statistics.to_dict() if self.statistics else None
        return {**self.__dict__, "statuses": dict(sorted(self.statuses.items())), "statistics": statistics}

    @classmethod
    def together(cls, parts: list[dict[str, Any]]) -> "Outcomes":
        """The sum of what files of parts hold."""
        statuses = Counter[str]()
        for part in parts:
            statuses.update(part["statuses"])
        found = [BatchStatistics.from_dict(part["statistics"]) for part in parts if part["statistics"]]
        counts = {
            name: sum(part[name] for part in parts)
            for name in ("left_out", "decided", "repeated", "rejected", "passed", "adapted")
        }
        return cls(statuses, **counts, statistics=BatchStatistics.together(found) if found else None)


def decide_parts(
    rows: SortedRows,
    bottlenecks: Bottlenecks,
    bundle: Bundle,
    sellers: KeptSellers | None,
    output: DecisionsOutput,
    statistics: PartImages | None,
    roots: list[str],
    work: AnyPath,
) -> Outcomes:
    """Decides about the products of all parts that are not written yet.

    Args:
        rows: sorted.
        bottlenecks: of all their readable images.
        bundle: decides.
        sellers: decide about their products; None: no corrections count.
        output: takes the decisions.
        statistics: counts the photos of a part; None where the bundle has no reference.
        roots: what is above the sources.
        work: working directory.
    """
    written, done = output.written(), work / DONE
    done.mkdir(parents=True, exist_ok=True)
    found = []
    with Progress("decide", rows.account.rows) as progress:
        seen = 0
        for number in range(rows.parts):
            file = _part_file(work, number, ".json")
            if number not in written or not file.is_file():
                part = SortedPart.of(rows.part(number))
                decisions, outcomes = _decided(
                    part, rows, bottlenecks, bundle, sellers, statistics, _part_file(work, number, IMAGES_END)
                )
                write_rejects(part, roots, _part_file(work, number, ".parquet"))
                write_whole(file, json.dumps(outcomes.to_dict()).encode())
                output.write(number, decisions)
                seen += len(part.rows)
            else:
                seen += rows.account.rows // rows.parts
            progress.to(min(seen, rows.account.rows))
            found.append(json.loads(file.read_bytes()))
    return Outcomes.together(found)


def _decided(
    part: SortedPart,
    rows: SortedRows,
    bottlenecks: Bottlenecks,
    bundle: Bundle,
    sellers: KeptSellers | None,
    statistics: PartImages | None,
    images: AnyPath,
) -> tuple[pa.Table, Outcomes]:
    """Decisions about the products of a part, sorted by product, and what became of them.

    The images that they are made from are written to `images`.
    """
    categorizer = bundle.categorizer
    product, digests, _ = part.photos()
    own = product_bounds(product)
    readable = np.zeros(len(part.product_id), bool)
    readable[product] = True
    pieces = list[pd.DataFrame]()
    matrix = np.empty((0, 0), np.float16)
    if len(digests):
        matrix, own, again = bottlenecks.deciding(digests, own)
        predictions = categorizer.predict(matrix, own, again)
        ids = part.product_id[readable]
        if sellers:
            seller = sellers.of_products(part.rows, part.product, len(readable))[readable]
            pieces += sellers.decide(ids, matrix, own, predictions, seller)
        else:
            pieces.append(categorizer.decide(ids, predictions))
    silent = unreadable(part.product_id[~readable & ~part.left_out], categorizer.release)
    pieces.append(unadapted(silent) if sellers else silent)
    write_images(part.product_id[product], digests, images)
    table = pd.concat([one for one in pieces if len(one)] or pieces[:1])
    table = table.sort_values("product_id", ignore_index=True)
    counted = None
    if statistics:
        placeholder = part.good & np.isin(halves(digests_of(part.rows["image_digest"]))[0], rows.placeholders)
        counted = statistics.count(
            part.rows, part.product, part.image_index, part.good, placeholder, matrix, own[:-1]
        )
    outcomes = Outcomes(
        statuses=Counter(table["status"].tolist()),
        left_out=int(part.left_out.sum()),
        decided=len(digests),
        repeated=int(part.good.sum()) - len(digests),
        rejected=int(part.refused.sum()),
        passed=part.passed,
        adapted=int(table["adapted"].sum()) if sellers else 0,
        statistics=counted,
    )
    schema = WITH_ADAPTED if sellers else SCHEMA
    return pa.Table.from_pandas(table, schema, preserve_index=False), outcomes


# Rejects


def write_rejects(part: SortedPart, roots: list[str], file: AnyPath) -> None:
    """Writes the refused images of a part."""
    rows = part.rows.append_column("image_index", pa.array(part.image_index))
    rows = rows.filter(pa.array(part.refused))
    rows = rows.append_column("source", without_roots(rows["file"], roots))
    rows = rows.take(pc.sort_indices(rows["row"]))
    write_table(rows.select(PART_REJECTS.names).cast(PART_REJECTS), file)


def write_all_rejects(rows: SortedRows, roots: list[str], work: AnyPath) -> None:
    """Writes the refused images of all parts, before anything is decided."""
    for number in range(rows.parts):
        write_rejects(SortedPart.of(rows.part(number)), roots, _part_file(work, number, ".parquet"))


def images_of_parts(parts: int, work: AnyPath) -> list[AnyPath]:
    """The files of the images of all parts, in the order of the products."""
    return [_part_file(work, number, IMAGES_END) for number in range(parts)]


def _part_file(work: AnyPath, number: int, ending: str) -> AnyPath:
    return work / DONE / f"part-{number:05d}{ending}"


def join_rejects(parts: int, work: AnyPath, file: AnyPath) -> None:
    """Writes the table of the refused images, part by part, each in the sources' order."""
    with writing(file) as working, pq.ParquetWriter(working, REJECTS) as writer:
        for number in range(parts):
            with _part_file(work, number, ".parquet").open("rb") as opened:
                table = pq.read_table(opened, columns=REJECTS.names)
            if len(table):
                writer.write_table(table)
