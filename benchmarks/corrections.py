"""A million corrections of 10,000 sellers: look-ups with prediction, adding, and readers beside writers.

    .venv/bin/python benchmarks/corrections.py [--width 1024] [--only lookups,adding]

    store      SQLite, corrections with vectors of `--width` numbers (1,024: the hidden layer of the default
               head). All sellers have equally many, without bottlenecks; with `--shape zipf` seller
               number r has a share of them that is proportional to 1/r, and each has bottlenecks of 2,048
    opening    the store, in a new process, after its imports
    look-ups   Histories.state and VotesSeller.predict with 1,000 categories, from an empty memory on. Sellers
               come as often as they have corrections (zipf), or all equally often; with the default budget
               of memory and with a larger one
    paper      the same for the paper's method, which learns the history again at each change
    adding     one correction after the other, with vector and bottlenecks; sellers by zipf
    together   20 readers in 4 processes, 2 writers and one who adds thousands, each a process; beside it the
               same readers alone. Each reads or adds ten times a second

The p99 of look-ups counts all of them, those from memory and those from the store, as they come. Writes
results/corrections.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
from measure import MB, conditions, run, table, verdict

from models.corrections import database, sqlite_file
from models.corrections.correction import Correction
from models.corrections.histories import BUDGET, Histories
from models.corrections.store import Corrections
from models.decisions.adapted import Adapter, Encoded
from models.sellers.paper import PaperMethod
from models.sellers.styles import Styles
from models.sellers.votes import Votes, VotesMethod
from models.taxonomy import Taxonomy

RESULTS = Path(__file__).parent / "results" / "corrections.json"
CATEGORIES = 1000
HEAD, FINGERPRINT = "c0" * 32, "f0" * 32
BOTTLENECK = 2048  # numbers
POOL = 4096  # different vectors; what they are changes no time
READERS, READER_PROCESSES, WRITERS = 20, 4, 2
PACE = 0.1  # s from one read or write to the next
SECONDS = 30.0  # of readers beside writers
READY = "ready\n"


def main() -> None:
    """Measures, prints a table, writes the results."""
    options = _options()
    if options.subject:
        print(json.dumps(SUBJECTS[options.subject](options)))
        return
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        options.file = options.file or str(Path(folder) / "corrections.sqlite")
        if not Path(options.file).exists():
            figures["store"] = _measured(options, "fill")
        for name, subject, more in STEPS:
            if not options.only or name.split()[0] in options.only.split(","):
                figures[name] = _measured(options, subject, *more)
    times = {
        f"{step}: {name}": one
        for step, found in figures.items()
        for name, one in found.items()
        if isinstance(one, dict)
    }
    single = {
        step: {k: v for k, v in found.items() if not isinstance(v, dict)} for step, found in figures.items()
    }
    print(table(["ms", *next(iter(times.values()))], [[name, *one.values()] for name, one in times.items()]))
    written = conditions("sqlalchemy", "numpy") | {
        "load average": round(os.getloadavg()[2]),  # of 15 minutes: what else the computer did
        "corrections": options.corrections,
        "sellers": options.sellers,
        "corrections of sellers": options.shape,
        "numbers in a vector": options.width,
        "ms": times,
        "beside": single,
        "verdicts": _verdicts(figures),
    }
    Path(options.json).write_text(json.dumps(written, indent=1) + "\n")


def _verdicts(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """What was aimed at; by processor time, too, as the clock counts what else the computer did."""
    aims = (
        ("lookups zipf", "all", "look-up with prediction, p99", 2.0),
        ("lookups zipf", "all, processor time", "look-up with prediction, p99 of processor time", 2.0),
        ("lookups equal", "all, processor time", "sellers equally often, p99 of processor time", 2.0),
        ("adding", "one", "adding one, p99", 10.0),
        ("adding", "one, processor time", "adding one, p99 of processor time", 10.0),
        ("together", "readers beside writers", "reader beside two writers, p99", 50.0),
        ("together", "writers wait for the lock", "wait for another writer, p99", 50.0),
        ("together", "they wait for the lock", "wait for one who adds thousands, p99", 50.0),
    )
    return [
        verdict(what, figures[step][name]["p99"], target, " ms")
        for step, name, what, target in aims
        if name in figures.get(step, {})
    ] + ([verdict("corrections lost", figures["together"]["lost"], 0, "")] if "together" in figures else [])


STEPS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("opening", "opening", ()),
    ("lookups zipf", "lookups", ()),
    ("lookups zipf, 1 GiB", "lookups", (f"--budget={2**30}",)),
    ("lookups equal", "lookups", ("--traffic=equal",)),
    ("paper zipf", "lookups", ("--method=paper", "--reads=2000")),
    ("adding", "adding", ()),
    ("together", "together", ()),
)


def _measured(options: argparse.Namespace, subject: str, *more: str) -> dict[str, Any]:
    """What a process of its own prints, and its peak memory."""
    names = ("corrections", "sellers", "shape", "width", "file", "seconds")
    command = [f"--{name}={getattr(options, name)}" for name in names]
    done = run([sys.executable, __file__, f"--subject={subject}", *command, *more])
    found: dict[str, Any] = json.loads(done.output.splitlines()[-1])
    print(subject, *more, found, f"{done.seconds:.0f} s", flush=True)
    return found | {"peak_mb": round(done.peak / MB)}


# What is measured, each in a process of its own


def fill(options: argparse.Namespace) -> dict[str, Any]:
    """Fills the store, seller by seller, in large transactions: nobody else is there."""
    database.AT_ONCE, database.REST = 1024, 0.0
    drawn, store = _Drawn(options), _opened(options)
    began = time.monotonic()
    for seller, count in enumerate(drawn.counts.tolist()):
        for start in range(0, count, 1024):
            store.add([drawn.row(seller, f"{n:06d}") for n in range(start, min(start + 1024, count))])
    seconds = time.monotonic() - began
    store.close()
    size = os.stat(options.file).st_size
    return {"corrections/s": round(options.corrections / seconds), "gb": round(size / 1e9, 2)}


def opening(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds until the store is open, and until the first look-up is done."""
    drawn = _Drawn(options)
    began = time.perf_counter()
    store = _opened(options)
    opened = time.perf_counter()
    Histories(_adapter(options), store).state(drawn.name(options.sellers // 2))
    return {"open": _ms(opened - began), "first look-up": _ms(time.perf_counter() - opened)}


def lookups(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of look-ups with prediction."""
    drawn, store = _Drawn(options), _opened(options)
    adapter = _adapter(options)
    made: list[int] = []
    state = adapter.state
    adapter.state = lambda *given: (made.append(len(given[0])), state(*given))[1]  # type: ignore[method-assign]
    histories = Histories(adapter, store, options.budget)
    times, cold, phases, used = [], [], [], []
    before = psutil.Process().memory_info().rss
    for seller in drawn.traffic(options.reads, options.traffic):
        vector, logits = drawn.vector().astype(np.float32), drawn.logits()
        count = len(made)
        processor, began = time.thread_time(), time.perf_counter()
        known = histories.state(drawn.name(seller))
        middle = time.perf_counter()
        known.model.predict(vector, logits)
        times.append(time.perf_counter() - began)
        used.append(time.thread_time() - processor)
        phases.append(time.perf_counter() - middle)
        cold.append(len(made) > count)
    rss = psutil.Process().memory_info().rss - before
    chosen, was_cold = np.array(times), np.array(cold)
    return {
        "all": _quantiles(chosen),
        "all, processor time": _quantiles(np.array(used)),
        "in memory": _quantiles(chosen[~was_cold]),
        "from the store": _quantiles(chosen[was_cold]),
        "prediction alone": _quantiles(np.array(phases)),
        "share from the store": round(float(was_cold.mean()), 3),
        "budget_mb": round(options.budget / MB),
        "grown_mb": round(rss / MB),
    }


def adding(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of adding one correction; of each, and of the look-up after it."""
    drawn, store = _Drawn(options), _opened(options)
    histories = Histories(_adapter(options), store, options.budget)
    times, after, used = [], [], []
    for number, seller in enumerate(drawn.traffic(1000, "zipf")):
        row = drawn.row(seller, f"{os.getpid()}-{number}")
        processor, began = time.thread_time(), time.perf_counter()
        store.add([row])
        times.append(time.perf_counter() - began)
        used.append(time.thread_time() - processor)
        began = time.perf_counter()
        histories.state(drawn.name(seller))
        after.append(time.perf_counter() - began)
    store.close()
    return {
        "one": _quantiles(np.array(times)),
        "one, processor time": _quantiles(np.array(used)),
        "look-up after it": _quantiles(np.array(after)),
    }


def together(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of readers alone, then beside writers; ms of the writers. All that was added is there."""
    alone = _crowd(options, ["reader"] * READER_PROCESSES)
    before = _count(options)
    beside = _crowd(options, ["reader"] * READER_PROCESSES + ["writer"] * WRITERS)
    bulk = _crowd(options, ["reader"] * READER_PROCESSES + ["writer"] * WRITERS + ["bulk"])
    added = sum(found["added"] for found in (beside, bulk))
    lost = before + added - _count(options)
    return {
        "readers alone": alone["reads"],
        "readers beside writers": beside["reads"],
        "writers": beside["writes"],
        "writers wait for the lock": beside["waits"],
        "readers beside writers and a bulk": bulk["reads"],
        "writers beside a bulk": bulk["writes"],
        "they wait for the lock": bulk["waits"],
        "bulk, corrections/s": bulk["bulk"],
        "added": added,
        "lost": lost,
    }


def _crowd(options: argparse.Namespace, kinds: list[str]) -> dict[str, Any]:
    """Runs processes at the same time; gathers their times."""
    names = ("corrections", "sellers", "shape", "width", "file", "seconds")
    command = [sys.executable, __file__, *(f"--{name}={getattr(options, name)}" for name in names)]
    running = [
        subprocess.Popen(
            [*command, f"--subject={kind}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for kind in kinds
    ]
    for process in running:  # all have done their imports and first look-ups
        assert process.stdout and process.stdout.readline() == READY
    start = f"{time.time() + 0.5}\n"
    for process in running:
        assert process.stdin
        process.stdin.write(start)
        process.stdin.flush()
    found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]
    gathered: dict[str, list[float]] = {"reads": [], "writes": [], "waits": []}
    for kind, one in zip(kinds, found, strict=True):
        gathered["reads" if kind == "reader" else "writes"] += one.get("times", [])
        gathered["waits"] += one.get("waits", [])
    return {
        **{name: _quantiles(np.array(times)) for name, times in gathered.items() if times},
        "added": sum(one.get("added", 0) for one in found),
        "bulk": sum(one.get("rate", 0) for one in found),
    }


def reader(options: argparse.Namespace) -> dict[str, Any]:
    """Some threads that look sellers up."""
    drawn, store = _Drawn(options), _opened(options)
    histories = Histories(_adapter(options), store, options.budget)
    times: list[float] = []

    def read(own: _Drawn, sellers: list[int]) -> None:
        for seller in _paced(options, sellers):
            began = time.perf_counter()
            histories.state(own.name(seller)).model.predict(own.vector().astype(np.float32), own.logits())
            times.append(time.perf_counter() - began)

    owns = [_Drawn(options, number) for number in range(READERS // READER_PROCESSES)]
    threads = [threading.Thread(target=read, args=(own, own.traffic(100_000, "zipf"))) for own in owns]
    for seller in dict.fromkeys(drawn.traffic(2000, "zipf")):  # as a service that runs already
        histories.state(drawn.name(seller))
    options.start = _start_of_all()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"times": times}


def writer(options: argparse.Namespace) -> dict[str, Any]:
    """One who adds one correction after the other."""
    drawn, store = _Drawn(options), _opened(options)
    times, waits = [], []
    patiently = sqlite_file.patiently

    def timed(work: Callable[[], object]) -> None:
        began = time.perf_counter()
        patiently(work)
        waits.append(time.perf_counter() - began)

    sqlite_file.patiently = timed
    sellers = drawn.traffic(100_000, "zipf")
    options.start = _start_of_all()
    for seller in _paced(options, sellers):
        row = drawn.row(seller, f"{os.getpid()}-{len(times)}")
        began = time.perf_counter()
        store.add([row])
        times.append(time.perf_counter() - began)
    store.close()
    return {"times": times, "waits": waits, "added": len(times)}


def bulk(options: argparse.Namespace) -> dict[str, Any]:
    """One who adds thousands at once."""
    drawn, store = _Drawn(options), _opened(options)
    added = 0
    options.start = _start_of_all()
    time.sleep(max(options.start - time.time(), 0))
    while time.time() < options.start + options.seconds:
        sellers = drawn.traffic(2000, "zipf")
        store.add([drawn.row(seller, f"bulk-{os.getpid()}-{added + n}") for n, seller in enumerate(sellers)])
        added += 2000
    rate = added / (time.time() - options.start)
    store.close()
    return {"added": added, "rate": round(rate)}


SUBJECTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    one.__name__: one for one in (fill, opening, lookups, adding, together, reader, writer, bulk)
}


# What is drawn


class _Drawn:
    """Sellers, corrections and products."""

    def __init__(self, options: argparse.Namespace, seed: int | None = None) -> None:
        self.random = np.random.default_rng(os.getpid() if seed is None else (os.getpid(), seed))
        self.equal = options.shape == "equal"
        shares = np.ones(options.sellers) if self.equal else 1 / np.arange(1, options.sellers + 1)
        self.shares = shares / shares.sum()
        counts = np.maximum(np.floor(self.shares * options.corrections), 1).astype(int)
        counts[: options.corrections - counts.sum()] += 1
        self.counts = counts
        pool = np.abs(np.random.default_rng(20).standard_normal((POOL, options.width)))
        self._vectors = pool.astype(np.float16)
        self._bottlenecks = (
            np.random.default_rng(21).random((POOL, 1, BOTTLENECK), np.float32).astype(np.float16)
        )

    def name(self, seller: int) -> str:
        """Names are in no order of size."""
        return f"seller {seller * 7919 % 1_000_003:07d}"

    def traffic(self, count: int, kind: str) -> list[int]:
        """Sellers, one after the other."""
        shares = self.shares if kind == "zipf" else None
        sellers: list[int] = self.random.choice(len(self.shares), count, p=shares).tolist()
        return sellers

    def row(self, seller: int, product: str) -> tuple[Correction, Encoded]:
        """A correction and what the head sees of it."""
        at, base, true = (int(n) for n in self.random.integers(0, (POOL, CATEGORIES, CATEGORIES)))
        correction = Correction(
            self.name(seller), product, f"category {true:04d}", who="person", release="2026-W47",
            images=(f"{at:064x}",), fingerprint=FINGERPRINT,
            bottlenecks=None if self.equal else self._bottlenecks[at],
        )  # fmt: skip
        return correction, Encoded(HEAD, f"category {base:04d}", self._vectors[at], 0.0)

    def vector(self) -> np.ndarray:
        """(width,) float16."""
        vector: np.ndarray = self._vectors[self.random.integers(POOL)]
        return vector

    def logits(self) -> np.ndarray:
        """(CATEGORIES,) float64."""
        return self.random.standard_normal(CATEGORIES)


def _adapter(options: argparse.Namespace) -> Adapter:
    """An adapter that makes states; there is no head, as nothing is encoded here."""
    names = np.array([f"category {number:04d}" for number in range(CATEGORIES)], dtype=object)
    taxonomy = Taxonomy(names, names[:, None])
    categorizer: Any = SimpleNamespace(predictor=SimpleNamespace(model=HEAD, taxonomy=taxonomy))
    rules: Any = SimpleNamespace(model=HEAD)
    if options.method == "votes":
        return Adapter(categorizer, rules, VotesMethod(Votes()))
    random = np.random.default_rng(22)
    centroids = np.abs(random.standard_normal((5 * CATEGORIES, options.width))).astype(np.float32)
    styles = Styles(centroids, np.arange(0, 5 * CATEGORIES + 1, 5))
    return Adapter(categorizer, rules, PaperMethod(styles))


def _opened(options: argparse.Namespace) -> Corrections:
    return Corrections.open(f"sqlite:///{options.file}")


def _count(options: argparse.Namespace) -> int:
    store = _opened(options)
    count = sum(one.corrections for one in store.sellers())
    store.close()
    return count


def _paced(options: argparse.Namespace, sellers: list[int]) -> Iterator[int]:
    """The sellers, one every PACE, from the start on for so many seconds."""
    at = options.start + PACE * np.random.default_rng().random()
    for seller in sellers:
        time.sleep(max(at - time.time(), 0))
        if time.time() > options.start + options.seconds:
            return
        yield seller
        at += PACE


def _start_of_all() -> float:
    """Says that this process is ready; returns the time when all of them start."""
    print(READY, end="", flush=True)
    return float(sys.stdin.readline())


def _quantiles(seconds: np.ndarray) -> dict[str, float]:
    """ms, and how many."""
    if not len(seconds):
        return {"count": 0}
    quantiles = np.percentile(seconds, [50, 90, 99, 100])
    names = ("p50", "p90", "p99", "most")
    return {"count": len(seconds)} | {name: _ms(value) for name, value in zip(names, quantiles, strict=True)}


def _ms(seconds: float) -> float:
    return round(1000 * float(seconds), 2)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corrections", type=int, default=1_000_000)
    parser.add_argument("--sellers", type=int, default=10_000)
    parser.add_argument("--shape", choices=("zipf", "equal"), default="equal", help="corrections of sellers")
    parser.add_argument("--width", type=int, default=1024, help="numbers in a vector")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of readers beside writers")
    parser.add_argument("--only", help="which steps, by their first words")
    parser.add_argument("--scratch", type=Path, help="a directory with room for 10 GB")
    parser.add_argument("--file", help="a store that is kept, and filled where it is missing")
    parser.add_argument("--json", default=str(RESULTS), help="where the results are written")
    parser.add_argument("--subject", help=argparse.SUPPRESS)
    parser.add_argument("--budget", type=int, default=BUDGET, help=argparse.SUPPRESS)
    parser.add_argument("--method", default="votes", help=argparse.SUPPRESS)
    parser.add_argument("--traffic", default="zipf", help=argparse.SUPPRESS)
    parser.add_argument("--reads", type=int, default=20_000, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
