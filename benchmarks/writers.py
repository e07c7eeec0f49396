"""Adapting to writers that training has not seen: the paper's method and ours, on strokes and drawn hands.

    .venv/bin/python benchmarks/writers.py [--strokes FILE] [--fonts DIR] [--epochs 20,10,5] [--json FILE]

Strokes: UNIPEN text, `<data>/data/writers/pendigits-train.unipen.gz` (30 writers) unless given. Fonts: TTF
and OTF files of a folder; one face = one writer, with a slant, weight and noise of the writer's own; without
--fonts nothing is drawn. Whole writers apart, drawn writers by families of fonts:

    network writers ──► base network, styles      tuning writers ──► the four numbers of the better method
    other writers   ──► base vectors and logits ──► a stream of corrections each, 90/10, resampled

Controls: "shuffled" learns a writer whom the base network was trained on, so that nothing is learnt but what
the base knows already; "another" learns another of the evaluated writers, who may write alike; "wrong" learns
another category by chance for a fifth of the characters.

Strokes are evaluated in folds, so that each writer is once among the others. Ours at another size or with
fewer epochs: --network-writers, --other-writers, …. With --scratch DIR the vectors and logits of the base
networks are kept there and used again.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import measure
import numpy as np
import written
from grocery import add_data

from models.sellers.interface import SellerModel
from models.sellers.paper import PaperSeller
from models.sellers.resamples import stratified_split
from models.sellers.styles import fit_styles
from models.sellers.votes import Stream, VotesSeller, fit_votes

RESULTS = Path(__file__).parent / "results" / "writers.json"
STROKES = Path("data/writers/pendigits-train.unipen.gz")
BATCHES = (64, 128, 256)  # images, one after the other; the paper gives the epochs of its three sizes
RATE = 0.001  # Adam
AFTER = (0, 5, 15, 50)  # corrections
EXAMPLES = (1, 5, 10)  # of each category
PUBLISHED = {  # Čugurović, Nikolić, Novaković: %, %, %, writers that improve, that get worse, all
    "NIST SD19, as published": (87.24, 89.60, 91.42, 167, 24, 200),
    "Deepwriting, as published": (82.05, 84.77, 86.38, None, None, None),
}


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


FIELDS = tuple(field.name for field in fields(Group))
PARTS = tuple(field.name for field in fields(Collection))


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
    """Returns faces for each part, no family in two parts, of as many families as there are.

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
    # Evaluated writers first: a family each where there are enough, else a share of the families, or more
    few = np.minimum(wanted, np.maximum(len(names) * wanted // wanted.sum(), 1))
    sizes = np.array([(families == name).sum() for name in names])
    others = _enough(sizes, few[2], wanted[2])
    tuning = others + _enough(sizes[others:], few[1], wanted[1])
    of_parts = [names[tuning:], names[others:tuning], names[:others]]
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


def _enough(sizes: np.ndarray, least: int, faces: int) -> int:
    """How many of the first families, at least `least`, have so many faces."""
    return max(least, int(np.searchsorted(np.cumsum(sizes), faces)) + 1)


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


def kept(file: Path | None, make: Callable[[], Collection]) -> Collection:
    """Returns what `make` returns, read from the file if there is one, else kept in it."""
    if file is not None and file.exists():
        with np.load(file) as arrays:
            return Collection(*(Group(*(arrays[f"{part}.{name}"] for name in FIELDS)) for part in PARTS))
    made = make()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            file,
            **{f"{part}.{name}": getattr(getattr(made, part), name) for part in PARTS for name in FIELDS},
        )
    return made


# Adapting


@dataclass(frozen=True)
class Adapted:
    """What a method did for one writer; sums over the resamples."""

    tests: int  # predictions
    base: int  # errors of the base network
    after: tuple[int, ...]  # errors after AFTER corrections, and after all
    oracle: int  # predictions for which no candidate was correct


Maker = Callable[[], SellerModel]


def makers(collection: Collection, seed: int) -> tuple[dict[str, Maker], dict[str, float]]:
    """Returns the methods, each as a function that makes a new writer, and the numbers of the better one."""
    network, tuning = collection.network, collection.tuning
    width, classes = network.vectors.shape[1], network.logits.shape[1]
    styles = fit_styles(lambda category: network.vectors[network.true == category], classes, width, seed)
    rng = np.random.default_rng(seed)
    streams = []
    for writer in np.unique(tuning.writer):
        order = rng.permutation(np.flatnonzero(tuning.writer == writer))
        streams.append(Stream(tuning.vectors[order], tuning.logits[order], tuning.true[order]))
    votes = fit_votes(streams)
    return {"paper": lambda: PaperSeller(styles), "better": lambda: VotesSeller(votes)}, vars(votes)


def with_wrong(group: Group, share: float, seed: int) -> np.ndarray:
    """(n,) int: the categories that the writers say, a share of them another one by chance."""
    rng = np.random.default_rng(seed)
    other = (group.true + rng.integers(1, group.logits.shape[1], len(group.true))) % group.logits.shape[1]
    return np.where(rng.random(len(group.true)) < share, other, group.true)


def adapt(
    make: Maker, group: Group, said: np.ndarray, resamples: int, seed: int, learnt: Group | None = None
) -> list[Adapted]:
    """Streams of each writer: nine tenths in, one tenth judged.

    Args:
        make: makes a writer's model.
        group: characters of the writers.
        said: (n,) int, the categories that are learnt.
        resamples: how often.
        seed: of the splits and orders.
        learnt: the control: what is learnt are the true categories of one of these writers, at each resample
            of another one, and never of the judged writer.
    """
    results = []
    writers = np.unique(group.writer)
    for place, writer in enumerate(writers):
        of_writer = np.flatnonzero(group.writer == writer)
        errors = np.zeros(len(AFTER) + 1, int)
        tests = base = oracle = 0
        for resample in range(resamples):
            rng = np.random.default_rng((seed, int(writer), resample))
            learn, test = stratified_split(group.true[of_writer], rng)
            stream, teacher, categories = of_writer[learn], group, said
            if learnt is not None:
                strangers = np.setdiff1d(learnt.writer, [writer])
                stranger = strangers[(place + resample) % len(strangers)]
                rng = np.random.default_rng((seed, int(stranger), resample))
                stream = rng.permutation(np.flatnonzero(learnt.writer == stranger))
                teacher, categories = learnt, learnt.true
            # A short stream has all of its corrections where more are wanted
            seller, stops = make(), [min(after, len(stream)) for after in (*AFTER, len(stream))]
            for number in range(len(stream) + 1):
                for stop in [at for at, after in enumerate(stops) if after == number]:
                    errors[stop] += wrong_of(seller, group, of_writer[test])
                if number < len(stream):
                    row = stream[number]
                    seller.learn(teacher.vectors[row], base_of(teacher, row), int(categories[row]))
            tests += len(test)
            base += int((group.logits[of_writer[test]].argmax(1) != group.true[of_writer[test]]).sum())
            oracle += sum(none_correct(seller, group, row) for row in of_writer[test])
        results.append(Adapted(tests, base, tuple(errors.tolist()), oracle))
    return results


def wrong_of(seller: SellerModel, group: Group, rows: np.ndarray) -> int:
    """Errors of a writer's model."""
    return sum(
        seller.predict(group.vectors[row], group.logits[row]).category != group.true[row] for row in rows
    )


def base_of(group: Group, row: int) -> int:
    """The base classifier's category for a product."""
    return int(group.logits[row].argmax())


def none_correct(seller: SellerModel, group: Group, row: int) -> bool:
    """Whether no candidate is correct: for the paper base and kNN, for ours base and adapted."""
    if isinstance(seller, PaperSeller):
        found = seller.candidates(group.vectors[row], base_of(group, row))
    else:
        choice = seller.predict(group.vectors[row], group.logits[row])
        found = [choice.base, choice.category]
    return group.true[row] not in found


def enrolled(make: Maker, group: Group, each: int, resamples: int, seed: int) -> dict[str, Any]:
    """Each writer gives `each` examples of a category; all others are judged.

    A writer is over 1 point worse where the lower 95 % bound of the loss is above 1 point: mean of the
    products' losses (averaged over resamples, as they repeat) less 1.645 standard errors.
    """
    base = adapted = 0
    losses = []
    for writer in np.unique(group.writer):
        of_writer = np.flatnonzero(group.writer == writer)
        true = group.true[of_writer]
        wrong_base = group.logits[of_writer].argmax(1) != true
        loss, judged = np.zeros(len(true)), np.zeros(len(true))
        for resample in range(resamples):
            rng = np.random.default_rng((seed, int(writer), resample, each))
            learn = np.concatenate(
                [rng.permutation(np.flatnonzero(true == category))[:each] for category in np.unique(true)]
            )
            seller = make()
            for at in rng.permutation(learn):
                row = of_writer[at]
                seller.learn(group.vectors[row], base_of(group, row), int(true[at]))
            for at in np.setdiff1d(np.arange(len(true)), learn):
                row = of_writer[at]
                wrong = seller.predict(group.vectors[row], group.logits[row]).category != true[at]
                base, adapted = base + int(wrong_base[at]), adapted + int(wrong)
                loss[at] += float(wrong) - float(wrong_base[at])
                judged[at] += 1
        of_products = loss[judged > 0] / judged[judged > 0]
        error = of_products.std(ddof=1) / np.sqrt(len(of_products))
        losses.append((100 * of_products.mean(), 100 * (of_products.mean() - 1.645 * error)))
    return {
        "examples": each,
        "base_errors": base,
        "errors": adapted,
        "fewer": round(1 - adapted / base, 4),
        "worst_writer": round(max(mean for mean, _ in losses), 3),
        "worst_bound": round(max(bound for _, bound in losses), 3),
    }


def summary(results: Sequence[Adapted]) -> dict[str, Any]:
    """Percentages over all writers, each writer by the number of its tests; gains in points."""
    tests = sum(one.tests for one in results)
    share = [round(100 * sum(one.after[at] for one in results) / tests, 3) for at in range(len(AFTER) + 1)]
    gains = gains_of(results)
    return {
        "writers": len(results),
        "base": round(100 - 100 * sum(one.base for one in results) / tests, 3),
        "adapted": round(100 - share[-1], 3),
        "oracle": round(100 - 100 * sum(one.oracle for one in results) / tests, 3),
        "gain": round(float(gains.mean()), 3),
        "gain_error": round(float(gains.std(ddof=1) / np.sqrt(len(gains))), 3),
        "better": int((gains > 0).sum()),
        "same": int((gains == 0).sum()),
        "worse": int((gains < 0).sum()),
        "worst": round(float(gains.min()), 3),
        "errors_after": dict(zip([*map(str, AFTER), "all"], share, strict=True)),
    }


def gains_of(results: Sequence[Adapted]) -> np.ndarray:
    """(writers,) float, points that each writer gains by all corrections."""
    return np.array([100 * (one.base - one.after[-1]) / one.tests for one in results])


def own_gain(results: dict[str, list[Adapted]], name: str) -> dict[str, float]:
    """What a writer's own corrections gain beyond those of another writer; mean and its standard error."""
    if f"{name}, another" not in results:
        return {}
    beyond = gains_of(results[name]) - gains_of(results[f"{name}, another"])
    error = beyond.std(ddof=1) / np.sqrt(len(beyond))
    return {"gain": round(float(beyond.mean()), 3), "gain_error": round(float(error), 3)}


def measured(
    collections: Sequence[Collection],
    resamples: int,
    variants: Sequence[str] = ("as it is", "shuffled", "another", "wrong"),
) -> dict[str, Any]:
    """Both methods on all folds of a collection, with the controls."""
    results: dict[str, list[Adapted]] = {}
    few: dict[str, list[dict[str, Any]]] = {}
    numbers = []
    for fold, collection in enumerate(collections):
        methods, votes = makers(collection, fold)
        numbers.append({name: round(value, 3) for name, value in votes.items()})
        others = collection.others
        for name, make in methods.items():
            for variant in variants:
                said = with_wrong(others, 0.2, fold) if variant == "wrong" else others.true
                key = name if variant == "as it is" else f"{name}, {variant}"
                learnt = {"shuffled": collection.network, "another": others}.get(variant)
                results.setdefault(key, []).extend(adapt(make, others, said, resamples, fold, learnt))
                print(f"fold {fold}, {key}: {summary(results[key])}", flush=True)
            for each in EXAMPLES:
                if np.bincount(others.true[others.writer == others.writer[0]]).min() > each:
                    few.setdefault(f"{name}, {each}", []).append(
                        enrolled(make, others, each, resamples, fold)
                    )
    return {
        "numbers": numbers,
        "methods": {key: summary(of_key) for key, of_key in results.items()},
        "own": {name: own_gain(results, name) for name in ("paper", "better")},
        "examples": {key: together(of_key) for key, of_key in few.items()},
    }


def together(folds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of `enrolled` over folds."""
    base, errors = (sum(one[name] for one in folds) for name in ("base_errors", "errors"))
    return {
        "examples": folds[0]["examples"],
        "base_errors": base,
        "errors": errors,
        "fewer": round(1 - errors / base, 4),
        "worst_writer": max(one["worst_writer"] for one in folds),
        "worst_bound": max(one["worst_bound"] for one in folds),
    }


# The command


def main() -> None:
    """Measures, prints tables and verdicts, writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data(parser)
    parser.add_argument("--strokes", type=Path, help="UNIPEN text; default: that of the data")
    parser.add_argument("--fonts", type=Path, help="folder with TTF and OTF files")
    parser.add_argument("--epochs", default="20,10,5", help="at batches of 64, 128 and 256")
    parser.add_argument("--folds", type=int, default=3, help="of the strokes' writers")
    parser.add_argument("--network-writers", type=int, default=100, help="drawn, of the base network")
    parser.add_argument("--tuning-writers", type=int, default=20)
    parser.add_argument("--other-writers", type=int, default=30)
    parser.add_argument(
        "--network-each", type=int, default=2, help="pictures of a character by a network writer"
    )
    parser.add_argument("--each", type=int, default=12, help="the same by the tuning and the other writers")
    parser.add_argument("--resamples", type=int, default=10, help="of the strokes")
    parser.add_argument("--drawn-resamples", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="folder for the outputs of the base networks")
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    epochs = tuple(int(count) for count in options.epochs.split(","))
    found: dict[str, Any] = {}
    strokes = options.strokes or options.data / STROKES
    if strokes.exists():
        folds = [
            kept(
                scratch_file(options.scratch, f"strokes-{fold}-{options.folds}-{options.epochs}"),
                lambda fold=fold: digits(strokes, fold, options.folds, epochs),  # type: ignore[misc]
            )
            for fold in range(options.folds)
        ]
        found["strokes"] = measured(folds, options.resamples)
    else:
        print(f"no strokes: {strokes} is not there")
    if options.fonts is not None:
        counts = (options.network_writers, options.tuning_writers, options.other_writers)
        each = (options.network_each, options.each, options.each)
        name = "-".join(map(str, ["drawn", *counts, *each, options.epochs]))
        faces = kept(
            scratch_file(options.scratch, name), lambda: drawn(options.fonts, counts, each, epochs, 0)
        )
        found["drawn"] = measured([faces], options.drawn_resamples)
    if not found:
        print("nothing measured; give --strokes FILE or --fonts DIR")
        return
    print_tables(found)
    results: dict[str, Any] = {
        "epochs": options.epochs,
        "resamples": {"strokes": options.resamples, "drawn": options.drawn_resamples},
    }
    for what, of_what in found.items():  # rows, of which docs/scripts/pages.py makes tables
        results[what] = [{"method": name} | row for name, row in of_what["methods"].items()]
        results[f"{what}, by examples"] = [
            {"method": name} | row for name, row in of_what["examples"].items()
        ]
        results[f"{what}, own"] = [{"method": name} | row for name, row in of_what["own"].items()]
        results[f"{what}, votes"] = of_what["numbers"]
    results["verdicts"] = verdicts(found)
    results["conditions"] = measure.conditions("tensorflow", "keras", "numpy", "scikit-learn", "pillow")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=1))


def scratch_file(folder: Path | None, name: str) -> Path | None:
    """Returns where the outputs of one base network are kept."""
    return None if folder is None else folder / f"{name}.npz"


def print_tables(found: dict[str, Any]) -> None:
    """Prints the paper's table 3 beside ours, errors by corrections, and errors by examples."""
    rows = [
        [
            name,
            base,
            adapted,
            f"{adapted - base:.2f}",
            oracle,
            *(("–",) * 3 if up is None else (up, all_ - up - down, down)),
        ]
        for name, (base, adapted, oracle, up, down, all_) in PUBLISHED.items()
    ]
    rows += [
        [f"{what}: {method}", *(f"{one[key]:.2f}" for key in ("base", "adapted", "gain", "oracle")),
         one["better"], one["same"], one["worse"]]
        for what, of_what in found.items()
        for method, one in of_what["methods"].items()
    ]  # fmt: skip
    print(measure.table(["%", "base", "adapted", "gain", "oracle", "better", "same", "worse"], rows))
    rows = [
        [f"{what}: {method}", *(f"{error:.2f}" for error in one["errors_after"].values())]
        for what, of_what in found.items()
        for method, one in of_what["methods"].items()
    ]
    print(measure.table(["errors, %, after corrections", *map(str, AFTER), "all"], rows))
    rows = [
        [f"{what}: {method}", one["base_errors"], one["errors"], f"{100 * one['fewer']:.1f}",
         f"{one['worst_writer']:.2f}", f"{one['worst_bound']:.2f}"]
        for what, of_what in found.items()
        for method, one in of_what["examples"].items()
    ]  # fmt: skip
    header = ["examples of a category", "base errors", "errors", "fewer, %", "worst writer", "its bound"]
    print(measure.table(header, rows))


def verdicts(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Compares the figures with what is aimed at."""
    judged = []
    if "drawn" in found:
        paper = found["drawn"]["methods"]["paper"]
        judged += [
            measure.verdict("drawn, paper: gain", paper["gain"], 2, " points", at_least=True),
            measure.verdict(
                "drawn, paper: share of writers that improve", paper["better"] / paper["writers"], 5 / 6, "",
                at_least=True,
            ),
            measure.verdict(
                "drawn, paper: gain of the worst writer", paper["worst"], -0.5, " points", at_least=True
            ),
        ]  # fmt: skip
    if five := found.get("strokes", {}).get("examples", {}).get("better, 5"):  # none where digits are few
        judged += [
            measure.verdict(
                "strokes, better, 5 a digit: fewer errors", five["fewer"], 0.25, "", at_least=True
            ),
            measure.verdict(
                "strokes, better, 5 a digit: worst writer's bound", five["worst_bound"], 1, " points"
            ),
        ]
    for what, of_what in found.items():
        for method in ("paper", "better"):
            mixed, wrong = (of_what["methods"][f"{method}, {control}"] for control in ("shuffled", "wrong"))
            lower = mixed["gain"] - 1.645 * mixed["gain_error"]
            own = of_what["own"][method]
            judged += [
                measure.verdict(f"{what}, {method}, shuffled: lower bound of the gain", lower, 0, " points"),
                measure.verdict(
                    f"{what}, {method}, own corrections beyond another's: lower bound",
                    own["gain"] - 1.645 * own["gain_error"], 0, " points", at_least=True,
                ),
                measure.verdict(
                    f"{what}, {method}, a fifth wrong: gain", wrong["gain"], 0, " points", at_least=True
                ),
            ]  # fmt: skip
    return judged


if __name__ == "__main__":
    main()
