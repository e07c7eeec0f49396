"""Known splits: the part of the split, train, val or test, that each product keeps.

    releases/<name>/splits.parquet   product_id, split: of the release's products, and of those known before
                                └─► runs/<run>/known_splits.parquet   those of all releases, for ingest

**What is guaranteed.** A product keeps the part that a release gave it as long as that release is there, or
one that was made after it. So a product is in the same part when it comes back into the catalogue; after a
rollback also the products that only the release that was rolled back has seen; and when nothing is in
service. Where two releases gave a product different parts (two runs began before either was released, or the
bundle of a run that was kept out was put into service by hand), the part of the release that the run is based
on counts, then that of the one put into service last: no product of the new test part was trained on by the
release in service. What runs that were never released gave does not count.

The file of a run is made from the releases that are there when it begins, and kept from then on: what is
released or removed meanwhile changes nothing in the run.
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.product import PARTS
from features.storage.artifact import Artifact, find_artifact
from features.storage.paths import AnyPath, local, writing
from models.decisions.releases import SPLITS
from pipeline.job.progress import log
from pipeline.job.release_log import history, newest_first

KNOWN = "known_splits.parquet"
COVERS = b"covers"  # in a file's metadata: JSON list of the digests of releases whose products are all in it
SCHEMA = pa.schema([("product_id", pa.large_string()), ("split", pa.string())])


def gather_splits(releases: AnyPath, based_on: str | None, file: AnyPath) -> None:
    """Writes the parts that products keep; a file without rows where there is no release.

    Args:
        releases: their directory.
        based_on: the release whose parts count first, which is whole; None: nothing is in service.
        file: to be written, product_id and split.
    """
    order = newest_first(releases, history(releases))
    if based_on is not None:
        order = [based_on, *(name for name in order if name != based_on)]
    known, covered = SCHEMA.empty_table(), set[str]()
    for name in order:
        release = find_artifact(releases / name)
        if release is None or SPLITS not in release.files:
            log.warning(
                "split: %s is damaged; products that only it knows may get another part", releases / name
            )
        elif release.digest not in covered:
            splits = pq.read_table(release.file(SPLITS))
            covered |= {release.digest, *json.loads((splits.schema.metadata or {}).get(COVERS, b"[]"))}
            known = _joined(known, splits)
    _write(known, covered, file)


def write_splits(records: Artifact, known: Path | None, file: Path) -> None:
    """Writes a bundle's splits.parquet: the products of the records, and those known from before."""
    products = pq.read_table(records.file("products.parquet"), columns=SCHEMA.names)
    own = products.filter(pc.is_in(products["split"], value_set=pa.array(PARTS)))
    before = pq.read_table(known) if known else SCHEMA.empty_table()
    covered = set(json.loads((before.schema.metadata or {}).get(COVERS, b"[]")))
    _write(_joined(_joined(SCHEMA.empty_table(), own), before), covered, file)


def _joined(first: pa.Table, more: pa.Table) -> pa.Table:
    """The rows of the first table, then those of the products that only the second one has."""
    more = more.select(SCHEMA.names).cast(SCHEMA)
    new = pc.invert(pc.is_in(more["product_id"], value_set=first["product_id"].combine_chunks()))
    return pa.concat_tables([first, more.filter(new)]).replace_schema_metadata(None)


def _write(table: pa.Table, covered: set[str], file: AnyPath) -> None:
    with writing(file) as working:
        pq.write_table(table.replace_schema_metadata({COVERS: json.dumps(sorted(covered))}), working)


def kept_splits(file: AnyPath) -> Path | None:
    """The local file that `gather_splits` wrote; None where it has no rows."""
    here = local(file)
    return here if pq.read_metadata(here).num_rows else None
