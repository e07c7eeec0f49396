"""decisions.parquet: one row a product, the same from batch and from evaluation."""

import pandas as pd
import pyarrow as pa

from features.files import Place
from pipeline.units import write_table

SCHEMA = pa.schema(
    [
        ("product_id", pa.string()),
        ("category", pa.string()),  # the most likely one; null when unreadable
        ("confidence", pa.float64()),  # calibrated probability that it is right
        ("status", pa.string()),  # accepted, review, unreadable
        ("node", pa.string()),  # what was decided; null unless accepted
        ("node_level", pa.int32()),  # its level, 1 = coarsest
        ("top_categories", pa.list_(pa.string())),  # five, most likely first
        ("top_confidences", pa.list_(pa.float64())),  # their probabilities
    ]
)


def write_decisions(decisions: pd.DataFrame, file: Place) -> None:
    """Writes decisions, whole or not at all."""
    write_table(pa.Table.from_pandas(decisions, SCHEMA, preserve_index=False), file)
