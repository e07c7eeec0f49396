"""Records are what TensorFlow would write, and what it reads, without TensorFlow."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tf_records import dataset

from features.errors import ShelfmarkError
from features.product import ProductImage
from features.records import (
    Piece,
    feature_spec,
    frame,
    image_of,
    pieces_of,
    read_pieces,
    serialise,
    unframe,
)

SHOE = ProductImage("chaussure-é-鞋", 0, "Fruit/Apple", "train", "", "ab" * 32, b"\xff\xd8 jpeg \x00\xff\xd9")


def example(image: ProductImage) -> tf.train.Example:
    """The record as TensorFlow would build it."""

    def text(value: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    features = {
        name: text(getattr(image, name).encode()) for name in ("product_id", "category", "split", "seller")
    }
    features |= {"image_digest": text(image.image_digest.encode()), "image": text(image.jpeg)}
    features["image_index"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[image.image_index]))
    return tf.train.Example(features=tf.train.Features(feature=features))


images = st.builds(
    ProductImage,
    product_id=st.text(),
    image_index=st.integers(0, 2**31 - 1),
    category=st.text(),
    split=st.sampled_from(["train", "val", "test"]),
    seller=st.text(),
    image_digest=st.text("0123456789abcdef", min_size=64, max_size=64),
    jpeg=st.binary(max_size=400),
)


@settings(max_examples=100, deadline=None)
@given(images)
def test_record_has_tensorflows_bytes_feature_by_feature_in_alphabetical_order(image: ProductImage) -> None:
    whole = example(image)
    assert tf.train.Example.FromString(serialise(image)) == whole
    entries = [
        tf.train.Features(feature={name: feature}).SerializeToString()
        for name, feature in sorted(whole.features.feature.items())
    ]
    assert serialise(image).endswith(b"".join(entries))
    assert len(serialise(image)) == whole.ByteSize()


@pytest.mark.parametrize("index", [0, 1, 127, 128, 300, 2**31 - 1])
def test_image_index_of_any_size_is_parsed_back(index: int) -> None:
    image = dataclasses.replace(SHOE, image_index=index)
    assert tf.train.Example.FromString(serialise(image)) == example(image)
    assert tf.io.parse_single_example(serialise(image), feature_spec())["image_index"].numpy() == index


def test_record_larger_than_a_megabyte_is_tensorflows_too() -> None:
    image = dataclasses.replace(SHOE, jpeg=bytes(3_000_000))
    assert tf.train.Example.FromString(serialise(image)) == example(image)
    assert len(serialise(image)) == example(image).ByteSize()


def test_spec_parses_every_field_of_a_record() -> None:
    parsed = tf.io.parse_example([serialise(SHOE)], feature_spec())
    values = {name: values.numpy()[0] for name, values in parsed.items()}
    expected = dataclasses.asdict(SHOE)
    expected["image"] = expected.pop("jpeg")
    assert values == {
        name: value.encode() if isinstance(value, str) else value for name, value in expected.items()
    }


@pytest.mark.parametrize("data", [b"", b"a", bytes(range(256)) * 300])
def test_shard_is_the_one_that_tensorflow_writes(tmp_path: Path, data: bytes) -> None:
    with tf.io.TFRecordWriter(str(tmp_path / "shard")) as shard:
        shard.write(data)
    assert frame(data) == (tmp_path / "shard").read_bytes()
    assert unframe(frame(data)) == data


def test_tensorflow_reads_the_frames(tmp_path: Path) -> None:
    examples = [serialise(dataclasses.replace(SHOE, image_index=number)) for number in range(5)]
    (tmp_path / "shard").write_bytes(b"".join(map(frame, examples)))
    assert list(tf.data.TFRecordDataset(str(tmp_path / "shard")).as_numpy_iterator()) == examples


def test_every_flipped_bit_is_refused() -> None:
    framed = frame(serialise(SHOE))
    assert unframe(framed) == serialise(SHOE)
    for bit in range(8 * len(framed)):
        torn = bytearray(framed)
        torn[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ShelfmarkError, match="does not match its checksum"):
            unframe(bytes(torn))


def test_every_cut_record_is_refused() -> None:
    framed = frame(serialise(SHOE))
    for length in range(len(framed)):
        with pytest.raises(ShelfmarkError, match="does not match its checksum"):
            unframe(framed[:length])


def write_shards(folder: Path) -> pd.DataFrame:
    """Two shards of four records each and where the records stand."""
    rows = []
    for file in ("train-0.tfrecord", "val-0.tfrecord"):
        offset = 0
        with open(folder / file, "wb") as shard:
            for number in range(4):
                framed = frame(
                    serialise(dataclasses.replace(SHOE, jpeg=f"{file} {number}".encode() * (number + 1)))
                )
                rows.append((file, offset, shard.write(framed), f"{file} {number}".encode() * (number + 1)))
                offset += len(framed)
    return pd.DataFrame(rows, columns=["file", "offset", "length", "jpeg"])


def texts_of(piece: Piece) -> list[bytes]:
    """The Examples or JPEGs of a piece."""
    spans = zip(piece.starts, piece.lengths, strict=True)
    return [piece.data[start : start + length] for start, length in spans]


def jpegs_of(pieces: Iterable[Piece]) -> list[bytes]:
    examples = [tf.train.Example.FromString(text) for piece in pieces for text in texts_of(piece)]
    return [example.features.feature["image"].bytes_list.value[0] for example in examples]


def test_images_are_read_in_the_order_of_the_rows(tmp_path: Path) -> None:
    rows = write_shards(tmp_path)
    for order in ([0, 1, 2, 3, 4, 5, 6, 7], [7, 0, 3, 4, 4, 1], [5], []):
        chosen = rows.iloc[order]
        assert jpegs_of(read_pieces(tmp_path, chosen)) == chosen["jpeg"].tolist()


def test_neighbours_are_read_together_and_nothing_far_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_shards(tmp_path)
    frames = rows["length"].to_list()

    def counts(order: list[int]) -> list[int]:
        return [len(piece.starts) for piece in read_pieces(tmp_path, rows.iloc[order])]

    assert counts([0, 1, 2, 3, 4, 5, 6, 7]) == [4, 4], "a piece a file"
    assert counts([0, 3, 4, 6]) == [2, 2], "over small gaps"
    assert counts([2, 1, 1, 3]) == [1, 1, 2], "not backwards"
    monkeypatch.setattr("features.records.GAP", 0)
    assert counts([0, 1, 3]) == [2, 1]
    monkeypatch.setattr("features.records.PIECE", frames[0] + frames[1] + 1)
    assert counts([0, 1, 2, 3]) == [2, 1, 1], "in pieces of a size"


def test_jpegs_at_hand_become_pieces_of_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    jpegs = [bytes([number]) * (number % 4) for number in range(20)]
    monkeypatch.setattr("features.records.PIECE", 5)
    pieces = list(pieces_of(iter(jpegs), "drawn"))
    assert [text for piece in pieces for text in texts_of(piece)] == jpegs
    assert all(5 <= len(piece.data) < 5 + 3 for piece in pieces[:-1])
    assert list(pieces_of([], "drawn")) == []


def test_reading_from_a_damaged_shard_is_refused(tmp_path: Path) -> None:
    rows = write_shards(tmp_path)
    data = bytearray((tmp_path / "val-0.tfrecord").read_bytes())
    data[rows["offset"].iat[6] + 30] ^= 1
    (tmp_path / "val-0.tfrecord").write_bytes(data)
    assert jpegs_of(read_pieces(tmp_path, rows.iloc[[5, 7]])) == rows["jpeg"].iloc[[5, 7]].tolist()
    with pytest.raises(ShelfmarkError, match="remove the records directory and run again"):
        list(read_pieces(tmp_path, rows.iloc[[5, 6]]))


def test_reading_from_a_cut_shard_is_refused(tmp_path: Path) -> None:
    rows = write_shards(tmp_path)
    file = tmp_path / "val-0.tfrecord"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ShelfmarkError, match="does not match its checksum"):
        list(read_pieces(tmp_path, rows))


def test_dataset_gives_parsed_batches_of_all_files(tmp_path: Path) -> None:
    rows = write_shards(tmp_path)
    batches = list(
        dataset([tmp_path / "train-0.tfrecord", tmp_path / "val-0.tfrecord"], batch=3).as_numpy_iterator()
    )
    assert [len(batch["image"]) for batch in batches] == [3, 3, 2]
    assert np.concatenate([batch["image"] for batch in batches]).tolist() == rows["jpeg"].tolist()
    assert {name for batch in batches for name in batch} == set(feature_spec())
    assert batches[0]["product_id"][0].decode() == "chaussure-é-鞋"


@settings(max_examples=50, deadline=None)
@given(images)
def test_the_image_of_a_record_is_read_without_tensorflow(image: ProductImage) -> None:
    assert image_of(serialise(image)) == image.jpeg
    assert image_of(example(image).SerializeToString()) == image.jpeg


def test_a_record_without_an_image_is_refused() -> None:
    other = example(SHOE)
    del other.features.feature["image"]
    with pytest.raises(ShelfmarkError, match="no image"):
        image_of(other.SerializeToString())
