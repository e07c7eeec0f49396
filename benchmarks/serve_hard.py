"""The service under hostile bodies, switches of its release, overload and signals: whether it holds.

    .venv/bin/python benchmarks/serve_hard.py [--only hostile,switches,overload,kill] [--bodies 10000]
                                              [--switches 200] [--seconds 120]

    hostile    mutated requests and the odd pictures of the tests, four at a time: statuses, seconds, memory
    switches   releases/current moves again and again under load, every tenth time to a damaged bundle: each
               answer must be the decision of the release that it names
    overload   requests at four times the rate that the service carries, whether it answers or not
    kill       SIGKILL and SIGTERM under load: what is lost

A drawn MobileNet of 224 px and five heads; the service is the command in a process of its own, the clients
are in this one, on the same cores. Memory is that of the service and its decode processes without what they
share with others (USS). Writes results/serve_hard.json, at full size only.
"""

import argparse
import asyncio
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from measure import MB, conditions, table, verdict

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "serve_hard.json"
sys.path.insert(0, str(ROOT / "tests"))
SUBJECTS = ("hostile", "switches", "overload", "kill")
NAMES = "abcde"  # of releases
TREE = {f"category {number:02d}": f"department {number % 5}" for number in range(40)}
SIDE = 224  # px
AT_ONCE = 4  # hostile requests
EDGE = b"edge"
CLOSE, RESET, SILENT = "closed", "reset", "no answer"  # in place of a status
PATIENCE = 60.0  # s


def main() -> None:
    """Measures, prints tables, writes the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default=",".join(SUBJECTS))
    parser.add_argument("--bodies", type=int, default=10_000)
    parser.add_argument("--switches", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120.0, help="Of overload.")
    parser.add_argument("--side", type=int, default=SIDE, help="Pixels a side of the backbone.")
    parser.add_argument("--scratch", help="Directory for the workspace.")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        workspace = Path(folder) / "shop"
        subprocess.run([sys.executable, __file__, "--make", str(workspace), str(options.side)], check=True)
        for subject in options.only.split(","):
            print(f"\n{subject}")
            results[subject] = MEASURED[subject](workspace, options)
            for name, value in results[subject].items():
                if name != "verdicts":
                    print(f"  {name}: {value}")
    results["conditions"] = conditions("uvicorn", "h11", "openvino", "tensorflow")
    full = parser.parse_args([])
    if all(
        getattr(options, name) == getattr(full, name) for name in ("bodies", "switches", "seconds", "side")
    ):
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    rows = [
        (subject, one["what"], one["value"], one["target"], "reached" if one["passed"] else "missed")
        for subject in SUBJECTS
        for one in results.get(subject, {}).get("verdicts", [])
    ]
    print("\n" + table(("subject", "figure", "value", "target", "verdict"), rows))


# The workspace, in a process of its own: TensorFlow's memory and threads are not this one's


def make_workspace(workspace: Path, side: int) -> None:
    """Releases with one backbone and heads of their own; a is in service."""
    import conftest
    import keras

    from features.engines.backbones import load_backbone, start_tensorflow

    start_tensorflow()
    workspace.mkdir(parents=True)
    weights = workspace / "drawn.weights.h5"
    conftest.drawn_backbone(1, side).save_weights(weights)
    backbone = load_backbone("mobilenet", str(weights), side)
    for seed, name in enumerate(NAMES):
        keras.utils.set_random_seed(seed)
        conftest.make_bundle(workspace / "releases" / name, backbone, 0.5, tree=TREE, scale=500.0)
    (workspace / "releases" / "current").symlink_to("a")


# The service


class Service:
    """The running command."""

    def __init__(self, workspace: Path) -> None:
        self.releases = workspace / "releases"
        move(self.releases, "a")
        command = [sys.executable, "-m", "serving", "--workspace", str(workspace), "--port", "0"]
        self.log = workspace / "serve.log"
        began = time.monotonic()
        with self.log.open("w") as log:
            self.process = psutil.Popen(command, cwd=ROOT, stderr=log)
        while not (found := re.search(r"is served at http://127.0.0.1:(\d+)", self.lines())):
            if self.process.poll() is not None or time.monotonic() - began > 300:
                raise RuntimeError(self.lines()[-2000:])
            time.sleep(0.1)
        self.seconds = time.monotonic() - began
        self.port = int(found[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def lines(self) -> str:
        """All that it has logged."""
        return self.log.read_text(errors="replace")

    def memory(self) -> int:
        """Bytes that the service and its decode processes have for themselves."""
        total = 0
        for process in self.tree():
            try:
                total += process.memory_full_info().uss
            except psutil.Error:
                continue
        return total

    def tree(self) -> list[psutil.Process]:
        """The service and its processes."""
        try:
            return [self.process, *self.process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def readiness(self) -> dict[str, Any]:
        """The body of /readyz."""
        found: dict[str, Any] = httpx.get(self.url + "/readyz", timeout=PATIENCE).json()
        return found

    def end(self) -> None:
        """Ends it, however."""
        for process in self.tree():
            try:
                process.kill()
            except psutil.Error:
                continue
        self.process.wait()


@contextmanager
def service(workspace: Path) -> Iterator[Service]:
    """The running command, which is ended."""
    one = Service(workspace)
    try:
        yield one
    finally:
        one.end()


def move(releases: Path, name: str) -> None:
    """Makes releases/current point to a release, in one step."""
    (releases / "next").unlink(missing_ok=True)
    (releases / "next").symlink_to(name)
    os.replace(releases / "next", releases / "current")


# Requests, as bytes: the mutated ones are none that a library sends


@dataclass(frozen=True)
class Outcome:
    """What came of a request."""

    status: int | str  # or CLOSE, RESET, SILENT
    seconds: float
    began: float
    body: bytes = b""


def form(files: list[bytes], product_id: str = "p") -> bytes:
    """The multipart body of one product."""
    parts = [
        b'--edge\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n' + data + b"\r\n"
        for data in files
    ]
    text = b'--edge\r\nContent-Disposition: form-data; name="product_id"\r\n\r\n'
    return text + product_id.encode() + b"\r\n" + b"".join(parts) + b"--edge--\r\n"


def head(length: int, edge: bytes = EDGE, more: bytes = b"") -> bytes:
    """The headers of a request."""
    return (
        b"POST /v1/categorize HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        b"Content-Type: multipart/form-data; boundary=" + edge + b"\r\n" + more
        + b"Content-Length: " + str(length).encode() + b"\r\n\r\n"
    )  # fmt: skip


def request_of(files: list[bytes]) -> bytes:
    """A whole request."""
    body = form(files)
    return head(len(body)) + body


async def send(port: int, data: bytes, half: bool = False) -> Outcome:
    """Sends bytes on a connection of their own and reads the answer; `half`: then the client hangs up."""
    began = time.perf_counter()

    def outcome(status: int | str, body: bytes = b"") -> Outcome:
        return Outcome(status, time.perf_counter() - began, began, body)

    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return outcome("refused")
    answer = b""
    try:
        try:
            writer.write(data)
            await writer.drain()
            if half:
                writer.write_eof()
        except OSError:
            pass  # an answer may have come before the end of the request
        answer = await asyncio.wait_for(reader.read(-1), PATIENCE)
    except TimeoutError:
        return outcome(SILENT)
    except OSError:
        return outcome(RESET)
    finally:
        writer.transport.abort()
    if not answer:
        return outcome(CLOSE)
    try:
        return outcome(int(answer[9:12]), answer.partition(b"\r\n\r\n")[2])
    except ValueError:
        return outcome("no HTTP")


async def closed_loop(
    clients: int, ended: Callable[[], bool], one: Callable[[int], Awaitable[Outcome]]
) -> list[Outcome]:
    """Some clients, each sending one request after the other."""
    found: list[Outcome] = []

    async def client(number: int) -> None:
        while not ended():
            found.append(await one(number))

    await asyncio.gather(*(client(number) for number in range(clients)))
    return found


def ends_at(seconds: float) -> Callable[[], bool]:
    """Whether so many seconds are over."""
    deadline = time.perf_counter() + seconds
    return lambda: time.perf_counter() > deadline


def photos() -> list[bytes]:
    """Eight photos of a usual size."""
    from catalogues import drawn_image, encoded

    return [encoded(drawn_image(seed, 400, 300, (6, 7), "RGB"), "JPEG", quality=90) for seed in range(8)]


def percentile(values: list[float], share: float) -> float:
    """Of seconds; 0 where there are none."""
    return float(np.quantile(values, share)) if values else 0.0


def statuses(found: list[Outcome]) -> dict[str, int]:
    """How often each."""
    counts = Counter(str(one.status) for one in found)
    return dict(sorted(counts.items()))


# Hostile


def odd_pictures() -> list[bytes]:
    """Those of the tests of images: hostile, rare, and of every format."""
    import test_hostile_images as hostile
    import test_images as images

    made = [
        make() for name, (_, make) in images.HOSTILE.items() if name != "items" or "AVIF" in hostile.FORMATS
    ]
    seeds = [data for group in hostile.seeds_by_format().values() for data in group]
    rare = [*made, *(data for _, data in hostile.MORE.values()), *images.many_formats().values(), *seeds]
    fields = list(hostile.fuzzed_headers(hostile.HEAD, whole=False))
    return list(dict.fromkeys([*rare, *(data for _, data in fields[:: len(fields) // 200])]))


def mutated_requests(count: int, pictures: list[bytes]) -> Iterator[tuple[str, bytes, bool]]:
    """Kind, bytes, and whether the client hangs up after them."""
    from test_images import mutated

    random = np.random.default_rng(21)
    usual = [*photos(), *(one for one in pictures if len(one) < 100_000)]

    def some() -> list[bytes]:
        return [usual[random.integers(len(usual))] for _ in range(random.integers(1, 5))]

    kinds = ("photos", "bits", "cut", "hung up", "boundary", "header", "numbers", "pieces")
    for number in range(count):
        kind = kinds[number % len(kinds)]
        body, half = form(some()), False
        if kind == "photos":
            body = form([mutated(one, random) for one in some()])
            data = head(len(body)) + body
        elif kind == "bits":
            array = np.frombuffer(body, np.uint8).copy()
            for at in random.integers(len(array), size=random.integers(1, 20)):
                array[at] ^= 1 << random.integers(8)
            data = head(len(body)) + array.tobytes()
        elif kind == "cut":
            body = body[: random.integers(len(body))]
            data = head(len(body)) + body
        elif kind == "hung up":
            data, half = (head(len(body)) + body)[: random.integers(1, len(body))], True
        elif kind == "boundary":
            edge = [b"", b"edg", b"edge--", b'"edge', b"x" * 71, b"e" * 5000, b"\xff\xfe", b"edge; edge=x"]
            data = head(len(body), edge[random.integers(len(edge))]) + body
        elif kind == "header":
            first = np.frombuffer(head(len(body)), np.uint8).copy()
            first[random.integers(len(first))] = random.integers(256)
            data, half = first.tobytes() + body, True
        elif kind == "numbers":
            data, half = _numbers(random, body), True
        else:
            pieces = body.split(b"--edge")
            random.shuffle(pieces)
            body = b"--edge".join([*pieces, *pieces[: random.integers(3)]])
            data = head(len(body)) + body
        yield kind, data, half


def _numbers(random: np.random.Generator, body: bytes) -> bytes:
    """A request with a number that nobody expects."""
    number = [b"0", b"-1", b"1e308", b"9" * 20, b"9" * 400, b"nan", b"0x10", str(2**31).encode(), b" 7"]
    one = number[random.integers(len(number))]
    kind = random.integers(4)
    if kind == 0:
        return head(len(body)).replace(b"Content-Length: ", b"Content-Length: " + one) + body
    if kind == 1:
        return head(len(body), more=b"X-Request-Timeout: " + one + b"\r\n") + body
    if kind == 2:
        numbered = body.replace(b'name="images"', b'name="images.' + one + b'"')
        return head(len(numbered)) + numbered
    chunked = re.sub(rb"Content-Length: \d+", b"Transfer-Encoding: chunked", head(0))
    return chunked + one + b"\r\n" + body + b"\r\n0\r\n\r\n"


def measure_hostile(workspace: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Mutated requests and odd pictures, four at a time."""
    pictures = odd_pictures()
    waiting = iter(
        [
            *(("picture", request_of([one]), False) for one in pictures),
            *mutated_requests(options.bodies, pictures),
        ]
    )
    found: dict[str, list[Outcome]] = defaultdict(list)
    usual = [request_of([one]) for one in photos()]
    with service(workspace) as one, sampled(one.memory) as samples:
        asyncio.run(closed_loop(AT_ONCE, ends_at(10), lambda _: send(one.port, usual[0])))
        time.sleep(3)
        idle, worst = one.memory(), []
        samples.clear()

        async def client() -> None:
            for kind, data, half in waiting:
                outcome = await send(one.port, data, half)
                found[kind].append(outcome)
                if outcome.seconds > 5 or (isinstance(outcome.status, int) and outcome.status >= 500):
                    worst.append(
                        (kind, outcome.status, round(outcome.seconds, 2), outcome.body[:300].decode())
                    )

        async def all_clients() -> None:
            await asyncio.gather(*(client() for _ in range(AT_ONCE)))

        began = time.monotonic()
        asyncio.run(all_clients())
        seconds, peak = time.monotonic() - began, max(samples)
        asyncio.run(closed_loop(AT_ONCE, ends_at(5), lambda number: send(one.port, usual[number])))
        after = _settled(one.memory, 1.1 * idle)
        last = asyncio.run(send(one.port, usual[0]))
        errors = one.lines().count("Traceback")
    every = [outcome for outcomes in found.values() for outcome in outcomes]
    failed = [one for one in every if isinstance(one.status, int) and one.status >= 500]
    silent = [one for one in every if one.status in (SILENT, RESET)]
    return {
        "requests": {kind: statuses(outcomes) for kind, outcomes in found.items()},
        "odd pictures": len(pictures),
        "seconds of all": round(seconds, 1),
        "idle mb": round(idle / MB),
        "peak mb": round(peak / MB),
        "after mb": round(after / MB),
        "tracebacks in the log": errors,
        "worst": worst[:10],
        "verdicts": [
            verdict("answers 5xx", len(failed), 0, ""),
            verdict("requests without an answer", len(silent), 0, ""),
            verdict("slowest answer", max(one.seconds for one in every), 5, " s"),
            verdict("memory above idle", (peak - idle) / MB, 1000, " MB"),
            verdict("memory afterwards", after / idle, 1.1, " x idle"),
            verdict("tracebacks in the log", errors, 0, ""),
            verdict("a usual request afterwards", float(last.status == 200), 1, "", at_least=True),
        ],
    }


@contextmanager
def sampled(value: Callable[[], int]) -> Iterator[list[int]]:
    """Samples of a value, five a second, in a thread."""
    samples, ended = [value()], threading.Event()

    def sample() -> None:
        while not ended.wait(0.2):
            samples.append(value())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def _settled(value: Callable[[], int], target: float) -> int:
    """A value once it is below a target, or after 20 s."""
    deadline = time.monotonic() + 20
    while (found := value()) > target and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


# Switches


def measure_switches(workspace: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Switches under load, and the same load without."""
    usual = photos()
    requests = [request_of([one]) for one in usual]
    with service(workspace) as one:
        expected = {}
        for name in [*NAMES[1:], "a"]:
            _switch(one, name)
            answers = [json.loads(asyncio.run(send(one.port, data)).body) for data in requests]
            assert all(answer["release"] == name for answer in answers)
            expected[name] = answers
        found: dict[str, list[tuple[int, Outcome]]] = {}
        ended = threading.Event()

        def load(phase: str) -> None:
            found[phase] = []
            counter = iter(range(10**9))

            async def ask(_: int) -> Outcome:
                at = next(counter) % len(requests)
                outcome = await send(one.port, requests[at])
                found[phase].append((at, outcome))
                return outcome

            asyncio.run(closed_loop(2, ended.is_set, ask))

        @contextmanager
        def under_load(phase: str) -> Iterator[None]:
            ended.clear()
            thread = threading.Thread(target=load, args=(phase,))
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()

        with under_load("warm"):
            time.sleep(10)
        memory, refused, took = {}, 0, []
        began = time.monotonic()
        with under_load("switches"):
            for number in range(1, options.switches + 1):
                before = time.monotonic()
                if number % 10 == 0:
                    refused += _refuse(one, f"bad-{number}")
                else:
                    _switch(one, NAMES[number % len(NAMES)])
                    took.append(time.monotonic() - before)
                if number in (max(1, options.switches // 10), options.switches):
                    time.sleep(5)
                    memory[number] = one.memory()
        seconds = time.monotonic() - began
        with under_load("steady"):
            time.sleep(min(seconds, 120))
    mixed = lost = 0
    for at, outcome in found["switches"]:
        if outcome.status != 200:
            lost += 1
            continue
        answer = json.loads(outcome.body)
        right = expected[answer["release"]][at]
        same = answer["top_categories"] == right["top_categories"]
        close = np.allclose(answer["top_probabilities"], right["top_probabilities"], atol=1e-3)
        mixed += not (close and (same or answer["category"] == right["category"]))
    times = {phase: [one.seconds for _, one in outcomes] for phase, outcomes in found.items()}
    p99 = {phase: percentile(values, 0.99) for phase, values in times.items()}
    early, late = memory[max(1, options.switches // 10)], memory[options.switches]
    return {
        "answers": {phase: len(values) for phase, values in times.items()},
        "p50 ms": {phase: round(1000 * percentile(values, 0.5), 1) for phase, values in times.items()},
        "p99 ms": {phase: round(1000 * value, 1) for phase, value in p99.items()},
        "s from the move to the take-over, median": round(percentile(took, 0.5), 2),
        "memory mb": {str(number): round(value / MB) for number, value in memory.items()},
        "verdicts": [
            verdict("lost answers", lost, 0, ""),
            verdict("answers of mixed releases", mixed, 0, ""),
            verdict("damaged bundles refused", refused, options.switches // 10, "", at_least=True),
            verdict("p99 while switching", p99["switches"] / p99["steady"], 2, " x steady"),
            verdict("memory after the last switch", late / early, 1.05, " x that after a tenth of them"),
        ],
    }


def _switch(one: Service, name: str) -> None:
    move(one.releases, name)
    deadline = time.monotonic() + PATIENCE
    while one.readiness()["release"] != name:
        assert time.monotonic() < deadline, f"{name} is not served"
        time.sleep(0.05)


def _refuse(one: Service, name: str) -> bool:
    """Whether a damaged bundle is refused."""
    shutil.copytree(one.releases / "b", one.releases / name)
    file = one.releases / name / "head.weights.h5"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    move(one.releases, name)
    deadline = time.monotonic() + PATIENCE
    while not (found := one.readiness()["refused_release"]) or found["release"] != name:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    shutil.rmtree(one.releases / name)
    return True


# Overload


def measure_overload(workspace: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Four times the rate that it carries."""
    requests = [request_of([one]) for one in photos()]
    with service(workspace) as one:
        counter = iter(range(10**9))

        def ask(_: int) -> Awaitable[Outcome]:
            return send(one.port, requests[next(counter) % len(requests)])

        asyncio.run(closed_loop(8, ends_at(10), ask))
        carried = asyncio.run(closed_loop(8, ends_at(15), ask))
        rate = len(carried) / 15
        alone = percentile([one.seconds for one in asyncio.run(closed_loop(1, ends_at(5), ask))], 0.5)

        async def flood() -> tuple[list[Outcome], float, list[Outcome]]:
            tasks, began = [], time.perf_counter()
            for number in range(int(4 * rate * options.seconds)):
                wait = began + number / (4 * rate) - time.perf_counter()
                if wait > 0:
                    await asyncio.sleep(wait)
                tasks.append(asyncio.create_task(send(one.port, requests[number % len(requests)])))
            ended = time.perf_counter()
            after = []
            while True:
                after.append(await send(one.port, requests[0]))
                usual = after[-1].status == 200 and after[-1].seconds < max(2 * alone, 0.1)
                if usual or time.perf_counter() - ended > 60:
                    break
                await asyncio.sleep(0.1)
            recovered = time.perf_counter() - ended
            return list(await asyncio.gather(*tasks)), recovered, after

        gc.disable()  # this process' own collections: they would count as the service's pauses
        found, recovered, after = asyncio.run(flood())
        gc.enable()
        tracebacks = one.lines().count("Traceback")
    full = [one.seconds for one in found if one.status == 429]
    served = [one.seconds for one in found if one.status == 200]
    others = [one for one in found if one.status not in (200, 429)]
    return {
        "requests a second that it carries": round(rate, 1),
        "statuses": statuses(found),
        "429 ms": {str(q): round(1000 * percentile(full, q), 1) for q in (0.5, 0.99, 1)},
        "200 s": {str(q): round(percentile(served, q), 2) for q in (0.5, 0.99, 1)},
        "served a second": round(len(served) / options.seconds, 1),
        "s until a request is answered as before": round(recovered, 2),
        "statuses afterwards": statuses(after),
        "verdicts": [
            verdict("429 within, p99", 1000 * percentile(full, 0.99), 50, " ms"),
            verdict("slowest served", max(served, default=0), 30, " s"),
            verdict("neither served nor 429", len(others), 0, ""),
            verdict("served", len(served) / options.seconds / rate, 0.8, " x carried", at_least=True),
            verdict("recovers within", recovered, 5, " s"),
            verdict("tracebacks in the log", tracebacks, 0, ""),
        ],
    }


# Kill


def measure_kill(workspace: Path, options: argparse.Namespace) -> dict[str, Any]:
    """SIGKILL and SIGTERM under load."""
    killed, in_flight, orphans, _, _ = _signalled(workspace, signal.SIGKILL)
    ended, _, _, status, seconds = _signalled(workspace, signal.SIGTERM)
    last = (workspace / "serve.log").read_text().splitlines()[-1]
    lost = [one for one in killed if one.status not in (200, "refused")]
    dropped = [one for one in ended if one.status not in (200, 503, "refused")]
    with service(workspace) as one:
        again = asyncio.run(send(one.port, request_of(photos()[:1])))
    return {
        "the log of SIGTERM": last,
        "after SIGKILL": statuses(killed),
        "after SIGTERM": statuses(ended),
        "s from SIGTERM to the end": round(seconds, 2),
        "exit status of SIGTERM": status,
        "verdicts": [
            verdict("SIGKILL: lost beside what was in flight", max(0, len(lost) - in_flight), 0, ""),
            verdict("SIGKILL: processes left behind", orphans, 0, ""),
            verdict("SIGKILL: served again", float(again.status == 200), 1, "", at_least=True),
            verdict("SIGTERM: accepted and lost", len(dropped), 0, ""),
            verdict("SIGTERM: ends with 143", float(status == 143), 1, "", at_least=True),
        ],
    }


def _signalled(workspace: Path, number: int) -> tuple[list[Outcome], int, int, int, float]:
    """Outcomes, requests in flight at the signal, processes left, exit status, seconds to the end."""
    data = request_of(photos()[:1])
    with service(workspace) as one:
        open_requests, at_signal = 0, 0

        async def ask(_: int) -> Outcome:
            nonlocal open_requests
            open_requests += 1
            outcome = await send(one.port, data)
            open_requests -= 1
            return outcome

        async def load() -> list[Outcome]:
            nonlocal at_signal
            stop = False
            clients = asyncio.create_task(closed_loop(16, lambda: stop, ask))
            await asyncio.sleep(5)
            at_signal = open_requests
            os.kill(one.process.pid, number)
            await asyncio.sleep(3)
            stop = True
            return await clients

        tree = one.tree()
        found = asyncio.run(load())
        began = time.monotonic() - 3
        status = one.process.wait(PATIENCE)
        _, left = psutil.wait_procs(tree[1:], 5)
        return found, at_signal, len(left), status, time.monotonic() - began


MEASURED = {
    "hostile": measure_hostile,
    "switches": measure_switches,
    "overload": measure_overload,
    "kill": measure_kill,
}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        make_workspace(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
