"""Draw: a simple random sample of a batch's decisions, for a person to check.

    decisions ─► sample ─┬─► FILE.csv     to be filled in: job/audits_file.py
                         └─► PAGE.html    the same with photos from the source, and buttons: page.py

The sample is in the order of a hash of seed and product, so it depends on neither the format nor the order of
the decisions, and the first n of a larger sample are the sample of n. Checked from the top, an audit that is
not finished is a random sample, too.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.errors import ShelfmarkError
from features.product import order_key
from features.storage.paths import AnyPath
from pipeline.audit.page import write_page
from pipeline.job.audits_file import COLUMNS, write_audits
from pipeline.job.config import IngestSettings
from pipeline.job.decisions_file import SCHEMA, StoredDecisions, read_decisions

READ = [name for name in COLUMNS if name in SCHEMA.names]


@dataclass(frozen=True)
class Sample:
    """Drawn decisions."""

    decisions: pa.Table  # columns READ, in the order of drawing
    drawn_from: int  # decisions of that status in the file


def draw(
    decisions: AnyPath | StoredDecisions,
    products: int,
    output: AnyPath,
    *,
    seed: int = 0,
    status: str = "accepted",
    page: AnyPath | None = None,
    photos: list[str] | None = None,
    settings: IngestSettings | None = None,
) -> Sample:
    """Draws decisions and writes them to be checked.

    Args:
        decisions: as `categorize` writes them.
        products: how many; all where there are fewer.
        output: a CSV that does not exist yet: what people have filled in is never written over.
        seed: another one gives another sample.
        status: of the decisions to draw from.
        page: HTML file with photos; None: no page.
        photos: sources in which the photos are.
        settings: section [ingest], for these sources.

    Raises:
        ShelfmarkError: the output is there already or no CSV, or there is no decision to draw.
    """
    for file, ending in ((output, ".csv"), *([(page, ".html")] if page else [])):
        if not file.name.lower().endswith(ending):
            raise ShelfmarkError(f"{file}: expected a name that ends in {ending}; give another one")
    if output.exists():
        raise ShelfmarkError(
            f"{output}: already there, and perhaps filled in; expected a new file; give another --output, or "
            "remove it"
        )
    sample = sample_of(decisions, products, seed, status)
    if page is not None:
        write_page(sample.decisions, sample.drawn_from, output.name, page, photos or [], settings)
    write_audits(sample.decisions, sample.drawn_from, output)
    return sample


def sample_of(
    decisions: AnyPath | StoredDecisions, products: int, seed: int = 0, status: str = "accepted"
) -> Sample:
    """A simple random sample of the decisions with a status; the file is read once, piece by piece.

    Raises:
        ShelfmarkError: there is none.
    """
    kept, keys, drawn_from = SCHEMA.empty_table().select(READ), np.empty(0, np.int64), 0
    for piece in read_decisions(decisions, READ):
        rows = piece.filter(pc.equal(piece["status"], status))
        drawn_from += len(rows)
        key = np.array([order_key(f"{seed} {name}") for name in rows["product_id"].to_pylist()], np.int64)
        both = np.concatenate([keys, key])
        first = np.argsort(both, kind="stable")[:products]
        kept, keys = pa.concat_tables([kept, rows]).take(pa.array(first)), both[first]
    if not drawn_from:
        raise ShelfmarkError(
            f"{decisions}: no decision with status {status}; expected some to check; give another file, or "
            "another --status"
        )
    return Sample(kept, drawn_from)
