"""Sellers whose corrections look wrong, found once a week: they are flagged, and a person decides.

    records/  corrected.parquet, duplicates.parquet, products.parquet ─► contradicted by identical pictures
    corrections, the release in service ─► models/corrections/hindsight.py: his own decisions became worse

What a flagged seller has corrected accepts nothing, and is no label of the next run.
"""

import shlex
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.errors import ShelfmarkError, one_line
from features.printable import escaped
from features.storage.artifact import Artifact
from models.corrections.hindsight import worse_sellers
from models.corrections.store import Corrections
from models.decisions.bundle import Bundle
from pipeline.job.corrected import find_corrections
from pipeline.job.progress import log
from pipeline.job.run import Run
from pipeline.release.in_service import current_release

NOTHING: Mapping[str, int] = MappingProxyType({})
LEAST = 3  # contradicted corrections of a seller
ROWS = 2**16  # of a table, in memory at a time


def flag_wrong_sellers(run: Run, records: Artifact) -> None:
    """Flags the sellers of a run's workspace whose corrections look wrong; see `flag_sellers`."""
    corrections = find_corrections(run.workspace, run.config.sellers)
    if corrections is None:
        return
    try:
        bundle = current_release(run.releases)
    except ShelfmarkError as error:  # with --force a run replaces a damaged release
        log.warning("corrections: sellers are not compared with the release in service: %s", one_line(error))
        bundle = None
    try:
        flag_sellers(records, corrections, bundle)
    finally:
        corrections.close()


def flag_sellers(records: Artifact, corrections: Corrections, bundle: Bundle | None) -> dict[str, str]:
    """Flags the sellers whose corrections look wrong; returns those newly flagged, and why.

    Args:
        records: of this week.
        corrections: of the workspace.
        bundle: in service; None before the first release.
    """
    usual = {one.seller: one for one in corrections.sellers() if not (one.flagged or one.set_aside)}
    since = {seller: account.restored for seller, account in usual.items()}
    found = {seller: why for seller, why in contradicted_sellers(records, since).items() if seller in usual}
    if bundle and bundle.adapter:
        left = [account for seller, account in usual.items() if seller not in found]
        found |= worse_sellers(bundle.adapter, corrections, left)
    for seller, why in sorted(found.items()):
        corrections.flag(seller, why)
        log.warning(
            "corrections: seller %s is flagged: %s; his corrections accept nothing, and are no labels of the "
            "next run; `shelfmark corrections set-aside --seller %s --why TEXT` takes them out of use, "
            "`restore` clears the flag",
            escaped(seller), escaped(why), shlex.quote(escaped(seller)),
        )  # fmt: skip
    return found


def contradicted_sellers(records: Artifact, since: Mapping[str, int] = NOTHING) -> dict[str, str]:
    """The sellers whose corrected products mostly have another category where their pictures are identical.

    Compared with the other sellers' products: each has a vote, and the category with the most votes counts;
    where two have as many, neither. A seller is named where LEAST of his products are contradicted, and more
    than half of those that have an identical picture elsewhere.

    Args:
        records: of this week.
        since: seller → the last id of those corrections that a person has checked; later ones are compared.
    """
    if "corrected.parquet" not in records.files:
        return {}
    corrected = pq.read_table(records.file("corrected.parquet")).to_pandas().set_index("product_id")
    pairs = _elsewhere(records, corrected)
    checked = corrected["seller"].map(since).fillna(0) >= corrected["id"]
    pairs = pairs[~pairs["product_id"].isin(corrected.index[checked])]
    if not len(pairs):
        return {}
    votes = pairs.groupby(["product_id", "category"]).size().rename("votes").reset_index()
    most = votes.groupby("product_id")["votes"].transform("max")
    first = votes[votes["votes"] == most]
    decided = first[~first["product_id"].duplicated(keep=False)].set_index("product_id")["category"]
    compared = pd.DataFrame(index=pd.Index(votes["product_id"].unique()))
    compared["seller"], compared["to"] = corrected["seller"], corrected["to"]
    compared["majority"] = decided
    compared["wrong"] = compared["majority"].notna() & (compared["majority"] != compared["to"])
    found = {}
    for seller, its in compared.sort_index().groupby("seller"):
        wrong = its[its["wrong"]]
        if len(wrong) >= LEAST and 2 * len(wrong) > len(its):
            example = wrong.iloc[0]
            found[str(seller)] = (
                f"{len(wrong):,} of his {len(its):,} corrected products with an identical picture of another "
                f"seller have another category there, for example {wrong.index[0]}: {example['to']} by him, "
                f"{example['majority']} there"
            )
    return found


def _elsewhere(records: Artifact, corrected: pd.DataFrame) -> pd.DataFrame:
    """Columns product_id, other, category: other sellers' products with an identical picture, once each.

    Args:
        records: of this week.
        corrected: by product_id.
    """
    found = [pd.DataFrame({"product_id": [], "other": []}, dtype=object)]
    with pq.ParquetFile(records.file("duplicates.parquet")) as file:
        columns = ["products", "placeholder", "corrected"]
        for batch in file.iter_batches(ROWS, columns=columns):
            some = pc.greater(pc.list_value_length(batch["corrected"]), 0)
            rows = pa.table(batch).filter(pc.and_not(some, batch["placeholder"])).to_pandas()
            pairs = rows[["corrected", "products"]].explode("corrected").explode("products")
            found.append(pairs.set_axis(["product_id", "other"], axis=1))
    pairs = pd.concat(found, ignore_index=True).drop_duplicates()
    others = pd.concat(_products(records, pa.array(pairs["other"].unique(), pa.string())))
    others = others.set_index("product_id")
    pairs["category"] = others["category"].reindex(pairs["other"]).to_numpy()
    seller = corrected["seller"].reindex(pairs["product_id"]).to_numpy()
    own = others["seller"].reindex(pairs["other"]).to_numpy() == seller
    own |= corrected["seller"].reindex(pairs["other"]).to_numpy() == seller
    return pairs[~np.asarray(own, bool) & pairs["category"].notna()]


def _products(records: Artifact, ids: pa.Array) -> Iterator[pd.DataFrame]:
    """Category and seller of products, a piece of the file in memory at a time."""
    with pq.ParquetFile(records.file("products.parquet")) as file:
        yield file.schema_arrow.empty_table().select(["product_id", "category", "seller"]).to_pandas()
        for batch in file.iter_batches(ROWS, columns=["product_id", "category", "seller"]):
            rows = pa.table(batch)
            yield rows.filter(pc.is_in(rows["product_id"], value_set=ids)).to_pandas()
