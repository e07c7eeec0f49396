"""Which photos a product has, by what earlier runs and batches have kept: product_id → image digests.

    WORKSPACE/runs/<run>/bottlenecks/index.parquet  the released run first, then the others, the newest first
    WORKSPACE/categorize/<output>/images.parquet    products that were categorized, the newest batch first

Only the rows of the wanted products are kept in memory; row groups that cannot hold one are not read.
"""

import bisect
import logging
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.storage.paths import MARK, AnyPath, local
from features.storage.store import digests_of
from models.decisions.releases import runs_named

COLUMNS = ["product_id", "image_digest"]
ROWS = 2**16  # read at a time

log = logging.getLogger("shelfmark")


def known_photos(workspace: AnyPath, release: str | None, wanted: set[str]) -> dict[str, list[bytes]]:
    """The photos of products, of each from the first place that knows it.

    Args:
        workspace: of runs and batches.
        release: in service.
        wanted: product_id.
    """
    found: dict[str, list[bytes]] = {}
    left = set(wanted)
    for file in _files(workspace, release):
        if not left:
            break
        try:
            more = _photos_in(file, left)
        except (OSError, pa.ArrowException) as error:  # a job may be writing it, or `clean` removes it
            log.warning("corrections: %s cannot be read: %s", file, str(error).partition("\n")[0])
            continue
        found |= more
        left -= more.keys()
    return found


def _files(workspace: AnyPath, release: str | None) -> Iterator[AnyPath]:
    """The files that name the photos of products, in the order in which they count."""
    indices = {
        file.parent.parent.name: file
        for file in workspace.glob("runs/*/bottlenecks/index.parquet")
        if (file.parent / MARK).is_file()
    }
    for name in runs_named(release) if release else ():
        if name in indices:
            yield indices.pop(name)
    yield from _newest_first(list(indices.values()))
    yield from _newest_first(list(workspace.glob("categorize/*/images.parquet")))


def _newest_first(files: list[AnyPath]) -> list[AnyPath]:
    def time(file: AnyPath) -> int:
        try:
            return int(file.stat().st_mtime_ns)
        except OSError:
            return 0

    return sorted(files, key=time, reverse=True)


def _photos_in(file: AnyPath, wanted: set[str]) -> dict[str, list[bytes]]:
    """The different photos of those wanted products that a file knows, in its order."""
    ids, found = sorted(wanted), dict[str, list[bytes]]()
    value_set = pa.array(ids, pa.string())
    with pq.ParquetFile(local(file)) as opened:
        groups = [group for group in range(opened.num_row_groups) if _may_hold(opened, group, ids)]
        for batch in opened.iter_batches(ROWS, row_groups=groups, columns=COLUMNS) if groups else ():
            rows = pa.table(batch)
            rows = rows.filter(pc.is_in(rows["product_id"].cast(pa.string()), value_set=value_set))
            for product, digest in zip(
                rows["product_id"].to_pylist(), digests_of(rows["image_digest"]), strict=True
            ):
                its = found.setdefault(product, [])
                if digest.tobytes() not in its:
                    its.append(digest.tobytes())
    return found


def _may_hold(file: pq.ParquetFile, group: int, ids: list[str]) -> bool:
    """Whether one of the sorted ids lies between the first and the last of a row group."""
    statistics = file.metadata.row_group(group).column(file.schema_arrow.names.index("product_id")).statistics
    if statistics is None or not statistics.has_min_max:
        return True
    at = bisect.bisect_left(ids, str(statistics.min))
    return at < len(ids) and ids[at] <= str(statistics.max)
