"""Names that occur twice or in two arrays, against dictionaries and sets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.decisions.names import Names

texts = st.lists(st.sampled_from(["", "a", "b", "ab", "ä", "1", "2"]), max_size=12)
numbers = st.lists(st.integers(-3, 3), max_size=12)


def of(names: list[str] | list[int], kind: str) -> np.ndarray:
    if kind == "objects":
        return np.array(names, dtype=object)
    return np.array(names) if names else np.array(names, dtype=int)


@settings(max_examples=100, deadline=None)
@given(texts | numbers, st.sampled_from(["objects", "of NumPy"]))
def test_repeated_names_are_those_counted_twice(names: list[str] | list[int], kind: str) -> None:
    expected: dict[str | int, list[int]] = {}
    for row, name in enumerate(names):
        expected.setdefault(name, []).append(row)
    assert Names(of(names, kind)).repeated == {name: rows for name, rows in expected.items() if len(rows) > 1}


@settings(max_examples=100, deadline=None)
@given(st.tuples(texts, texts) | st.tuples(numbers, numbers), st.sampled_from(["objects", "of NumPy"]))
def test_names_in_both_are_those_of_two_sets(
    both: tuple[list[str], list[str]] | tuple[list[int], list[int]], kind: str
) -> None:
    one, other = both
    assert Names(of(one, kind)).shared_with(Names(of(other, kind))) == set(one) & set(other)


def test_names_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Names, "hashes", property(lambda self: np.zeros(len(self.names), np.int64)))
    names = Names(np.array(["a", "b", "c", "b"], dtype=object))
    assert names.repeated == {"b": [1, 3]}
    assert names.shared_with(Names(np.array(["c", "d"], dtype=object))) == {"c"}
