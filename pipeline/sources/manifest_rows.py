"""The rows of a manifest as those of a listing: ids, split, categories and weights in one form."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from features.errors import ShelfmarkError
from features.product import PARTS, part_named, tidy_name
from features.storage.paths import AnyPath
from pipeline.sources.image import path_text
from pipeline.sources.listing import TEXTS, listing
from pipeline.sources.names import Renamed, ambiguous
from pipeline.sources.tables import Columns

USED = ("product_id", "image", "category", "split", "seller", "weight")


@dataclass
class IgnoredWeights:
    """Weights of a manifest that are no numbers from 0 on: their rows count as rows without a weight."""

    rows: int = 0
    example: str = ""

    def weight(self, text: str) -> float | None:
        """The weight that a cell gives; None where it is blank or no number from 0 on."""
        if not (text := text.strip()):
            return None
        try:
            weight = math.nan if "_" in text else float(text)
        except ValueError:
            weight = math.nan
        if 0 <= weight < math.inf:
            return weight
        self.rows += 1
        self.example = self.example or text
        return None


@dataclass(frozen=True)
class ManifestRows:
    """How the rows of a manifest are converted."""

    path: AnyPath
    levels: list[str]  # columns
    whole_ids: bool  # every id ends in .0
    renamed: Renamed
    ignored_weights: IgnoredWeights = field(default_factory=IgnoredWeights)

    def tables(self, rows: Iterator[Columns]) -> Iterator[pa.Table]:
        """The rows as tables of LISTING."""
        several = {category for category, _ in self.renamed}
        for batch in rows:
            columns = {name: batch[name] for name in TEXTS if name in batch}
            columns["product_id"] = list(map(self._product_id, batch["product_id"]))
            columns["image"] = list(map(str.strip, batch["image"]))
            columns["seller"] = list(map(str.strip, batch.get("seller", [""] * len(batch["problem"]))))
            if "split" in batch:
                columns["split"] = list(map(self._part, batch["split"]))
            if several and "category" in batch:
                columns["category"] = self._apart(batch, several)
            self._note_problems(columns)
            weight = list(map(self.ignored_weights.weight, batch["weight"])) if "weight" in batch else None
            yield listing(columns, weight)

    def _product_id(self, text: str) -> str:
        text = text.strip()
        return text[:-2] if self.whole_ids and text else text

    def _part(self, text: str) -> str:
        part = part_named(text)
        if part is None:
            raise ShelfmarkError(
                f"{self.path}: split {text!r}; expected {', '.join(PARTS)} or nothing; correct the file"
            )
        return part

    def _apart(self, rows: Columns, several: set[str]) -> list[str]:
        """The categories; where one name has several parents, the paths instead."""
        cells = [list(map(tidy_name, rows[name])) for name in self.levels]
        paths = zip(*cells, strict=True) if cells else itertools.repeat(())
        categories = []
        for name, path in zip(rows["category"], paths, strict=False):
            tidied = tidy_name(name)
            new = self.renamed.get((tidied, tuple(filter(None, path))), name)
            if tidied in several and new == name:
                raise ambiguous(tidied, str(self.path))
            categories.append(new)
        return categories

    def _note_problems(self, columns: Columns) -> None:
        """Notes that a row without an id cannot be used; such a row names the manifest as its image."""
        for row, (product_id, problem) in enumerate(
            zip(columns["product_id"], columns["problem"], strict=True)
        ):
            if not product_id and not problem:
                columns["problem"][row] = f"no product_id, image {columns['image'][row]!r}"
            if not product_id:
                columns["image"][row] = path_text(self.path)


def take(tables: Iterator[pa.Table], count: int) -> pa.Table:
    """The next tables, with `count` rows together."""
    taken = [listing({name: [] for name in TEXTS})]
    while sum(map(len, taken)) < count:
        taken.append(next(tables))
    return pa.concat_tables(taken)
