"""Cells of tables and documents as text."""

import math

import pyarrow as pa
import pyarrow.compute as pc


def cell_text(value: object) -> str:
    """A value as text without blanks around it; "" where there is none.

    >>> cell_text(5.0), cell_text(" a "), cell_text(None), cell_text(float("nan"))
    ('5', 'a', '', '')
    """
    if isinstance(value, float) and value.is_integer():  # pandas makes 5.0 of an id where one is empty
        value = int(value)
    return "" if value is None or value != value else str(value).strip()


def column_texts(column: pa.Array, names: list[str] | None = None) -> list[str]:
    """A column of a Parquet file as text.

    Args:
        column: of texts, numbers, or what Arrow can write as text.
        names: what the whole numbers of the column stand for; others are "".

    Raises:
        pa.ArrowException: it holds lists, structs, ….
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if names is not None and pa.types.is_integer(column.type):
        codes = column.to_pylist()
        return [names[code] if code is not None and 0 <= code < len(names) else "" for code in codes]
    if pa.types.is_null(column.type):
        return [""] * len(column)
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return [(value or b"").decode(errors="backslashreplace") for value in column.to_pylist()]
    if pa.types.is_floating(column.type):
        return [
            cell_text(value if value is None or math.isfinite(value) else None)
            for value in column.to_pylist()
        ]
    return [text or "" for text in pc.cast(column, pa.string()).to_pylist()]
