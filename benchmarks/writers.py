"""Adapting to writers nobody saw in training: the paper's method and ours, on pen strokes and on drawn hands.

    .venv/bin/python benchmarks/writers.py [--strokes FILE] [--fonts DIR] [--epochs 20,10,5] [--json FILE]

Strokes: UNIPEN text, `<data>/data/writers/pendigits-train.unipen.gz` (30 writers) unless given. Fonts: TTF and
OTF files of a folder; one face = one writer, with slant, weight and noise of his own; nothing is drawn without
--fonts. Whole writers apart, drawn writers by families of fonts:

    network writers ──► base network, styles      tuning writers ──► hyper-parameters of the better method
    other writers   ──► base vectors and logits ──► a stream of corrections each, 90/10, ten resamples

With --scratch DIR the vectors and logits of the base networks are kept there and used again. Writes
benchmarks/results/writers.json.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import numpy as np
import written

RESULTS = Path(__file__).parent / "results" / "writers.json"
STROKES = Path("data/writers/pendigits-train.unipen.gz")
BATCHES = (64, 128, 256)  # images, one after the other; the paper gives the epochs of its three sizes
RATE = 0.001  # Adam


@dataclass(frozen=True)
class Group:
    """Characters of some writers, as the base network gives them."""

    vectors: np.ndarray  # (n, d) float32, the last hidden layer
    logits: np.ndarray  # (n, C) float32
    true: np.ndarray  # (n,) int, category
    writer: np.ndarray  # (n,) int


@dataclass(frozen=True)
class Collection:
    """One trained base network, and what it says."""

    network: Group  # of the writers that it was trained on
    tuning: Group
    others: Group


def digits(file: Path, fold: int, folds: int, epochs: Sequence[int]) -> Collection:
    """Returns the outputs for real strokes; every `folds`-th writer is among the others, a sixth tunes."""
    characters = written.read_strokes(file)
    pictures = np.stack([written.prepared(written.draw_strokes(one.strokes)) for one in characters])
    _, true = np.unique([one.character for one in characters], return_inverse=True)
    names, writer = np.unique([one.writer for one in characters], return_inverse=True)
    turn = np.random.default_rng(0).permutation(len(names))[writer]  # place of the writer in a drawn order
    other = turn % folds == fold
    tuning = ~other & (turn // folds % 4 == 0)
    return trained(pictures, true, writer, [~other & ~tuning, tuning, other], epochs, fold)


def drawn(
    fonts: Path, counts: Sequence[int], each: Sequence[int], epochs: Sequence[int], seed: int
) -> Collection:
    """Returns the outputs for drawn writers.

    Args:
        fonts: folder with faces.
        counts: of network, tuning and other writers.
        each: pictures of a character by a writer of these three.
        epochs: of training.
        seed: of the choice of faces, and of the hands.
    """
    rng = np.random.default_rng(seed)
    faces = chosen_faces(*written.readable_faces(fonts), counts, rng)
    parts = []
    writer = 0
    for part, (those, count) in enumerate(zip(faces, each, strict=True)):
        for face in those:
            pictures = written.draw_characters(written.drawn_hand(face, rng), count, rng)
            labels = np.repeat(np.arange(len(written.CHARACTERS)), count)
            parts.append((pictures, labels, np.full(len(labels), writer), np.full(len(labels), part)))
            writer += 1
    pictures, true, writers, part_of = (np.concatenate(column) for column in zip(*parts, strict=True))
    return trained(pictures, true, writers, [part_of == part for part in range(3)], epochs, seed)


def chosen_faces(
    faces: list[Path], families: np.ndarray, counts: Sequence[int], rng: np.random.Generator
) -> list[list[Path]]:
    """Returns faces for each part, no family in two parts, as different from each other as there are families.

    Raises:
        ValueError: fewer faces or families than writers need.
    """
    names = rng.permutation(np.unique(families))
    wanted = np.array(counts)
    if len(names) < 3 or len(faces) < wanted.sum():
        raise ValueError(
            f"{len(faces)} readable faces of {len(names)} families; expected {wanted.sum()} faces for the "
            "writers; give a folder with more fonts, or fewer writers"
        )
    # Evaluated writers first: a family each where there are enough, else a share of the families
    few = np.minimum(wanted, np.maximum(len(names) * wanted // wanted.sum(), 1))
    bounds = np.cumsum([few[2], few[1]])
    of_parts = [names[bounds[1] :], names[bounds[0] : bounds[1]], names[: bounds[0]]]
    found = []
    for family_names, count in zip(of_parts, counts, strict=True):
        queues = [list(rng.permutation(np.flatnonzero(families == name))) for name in family_names]
        rounds = [
            queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)
        ]
        if len(rounds) < count:
            raise ValueError(
                f"{len(rounds)} faces in the {len(family_names)} families of a part; expected {count}; "
                "give a folder with more fonts, or fewer writers"
            )
        found.append([faces[index] for index in rounds[:count]])
    return found


def trained(
    pictures: np.ndarray,
    true: np.ndarray,
    writer: np.ndarray,
    parts: Sequence[np.ndarray],
    epochs: Sequence[int],
    seed: int,
) -> Collection:
    """Trains the handwriting network on the first part; returns what it says about all three."""
    import keras

    from features.networks.family import build_network, preprocess

    keras.utils.set_random_seed(seed)
    classes = int(true.max()) + 1
    network = build_network("handwriting", written.SIZE, classes)

    def scaled(chosen: np.ndarray) -> np.ndarray:
        colours = np.repeat(pictures[chosen][..., None], 3, axis=3).astype(np.float32)
        return np.asarray(preprocess("handwriting", colours))

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(RATE), loss, metrics=["accuracy"], jit_compile=False)
    inputs = scaled(parts[0])
    for batch, count in zip(BATCHES, epochs, strict=True):
        network.fit(inputs, true[parts[0]], batch_size=batch, epochs=count, verbose=2)
    both = keras.Model(network.input, [network.get_layer("fc4").output, network.output])
    groups = []
    for part in parts:
        vectors, logits = both.predict(scaled(part), batch_size=256, verbose=0)
        groups.append(Group(vectors, logits, true[part], writer[part]))
    return Collection(*groups)


def kept(file: Path | None, make: Any) -> Collection:
    """Returns what `make` returns, read from the file if there is one, else kept in it."""
    fields = [
        f"{part}.{name}" for part in Collection.__dataclass_fields__ for name in Group.__dataclass_fields__
    ]
    if file is not None and file.exists():
        with np.load(file) as arrays:
            values = [arrays[name] for name in fields]
        width = len(Group.__dataclass_fields__)
        return Collection(*(Group(*values[at : at + width]) for at in range(0, len(values), width)))
    made: Collection = make()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **{name: _field(made, name) for name in fields})
    return made


def _field(made: Collection, name: str) -> np.ndarray:
    part, field = name.split(".")
    array: np.ndarray = getattr(getattr(made, part), field)
    return array
