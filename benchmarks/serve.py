"""The service beside the bare engine and beside TensorFlow under a plain FastAPI application.

    .venv/bin/python benchmarks/serve.py [--images 512] [--repeats 3] [--only load,services,memory]

    throughput   shelfmark-serve over loopback, 16 connections, products of one photo of 180 px; beside the
                 engine alone on as many photos that are decoded and in memory, and beside a peer: FastAPI,
                 TensorFlow decodes, resizes and runs the network, one photo a call
    half load    requests that arrive by chance (Poisson) at half that rate: median and 99th percentile
    single       one request after the other, beside the engine's own time for one photo
    services     one service on all cores, one on each core: photos a second, latencies, memory
    memory       of the service's processes after so many requests, MobileNet at 32 px

Random weights: they cost the same. The service, the engine and the peer take turns; ratios are of the same
turn. Client, service and engine share the cores. Writes results/serve.json.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from measure import MB, conditions, median, table, verdict

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "serve.json"
PACKAGES = ("tensorflow", "keras", "openvino", "fastapi", "uvicorn", "numpy", "simplejpeg")
BACKBONES = {"inception_v3": 299, "mobilenet": 224}
CONNECTIONS, SINGLES, PICTURES = 16, 40, 64
EDGE = "shelfmarkedge"
READY_S = 300.0
IDLE_S = 3.0  # the service closes idle connections after 5 s


def main() -> None:
    """Runs everything, prints tables and verdicts, writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=512, help="of a turn")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs="+", default=[1000, 50_000], help="requests")
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    parser.add_argument("--only", default="load,services,memory", help="the other results stay")
    parser.add_argument("--peer", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        run_peer(options.peer[0], int(options.peer[1]))
        return
    from features.engines.backbones import start_tensorflow

    start_tensorflow()
    measured: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "load": lambda: [measure_load(name, BACKBONES[name], options) for name in options.backbones],
        "services": lambda: measure_services(options),
        "memory": lambda: measure_memory(options.memory),
    }
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in options.only.split(","):
        rows = results[name] = measured[name]()
        print(table([name, *rows[0]], [["", *row.values()] for row in rows]), flush=True)
    results["verdicts"] = list(_verdicts(results))
    RESULTS.write_text(json.dumps(results | conditions(*PACKAGES), indent=1) + "\n")


def _verdicts(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for row in results.get("load", ()):
        name = row["backbone"]
        yield verdict(f"{name}: share of the bare engine's rate", row["ratio"], 0.8, "", at_least=True)
        p50, p99 = row["half_p50_ms"], row["half_p99_ms"]
        yield verdict(f"{name}: 99th percentile of the median at half load", p99 / p50, 3, " times")
        limit = 1.5 * row["engine_single_ms"] + 15
        yield verdict(f"{name}: one photo", row["single_ms"], round(limit, 1), " ms")
    if memory := results.get("memory"):
        what = f"memory after {memory[-1]['requests']:,} requests, of that after {memory[0]['requests']:,}"
        yield verdict(what, memory[-1]["resident_mb"] / memory[0]["resident_mb"], 1.05, " times")


# The subjects


def measure_load(name: str, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Throughput, latencies and peers of one backbone."""
    from features.engines.backbones import load_backbone
    from features.engines.choose import choose_engine

    backbone, pictures = load_backbone(name, "random", size), drawn_pictures()
    engines = {batch: choose_engine(backbone, batch) for batch in (1, 8)}
    pixels = decoded_pixels(pictures, size)
    count = options.images // 8 * 8
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(make_workspace(Path(folder), backbone)) as service,
        peer_of(name, size) as peer,
    ):
        own, bodies = service.port, [form_of([picture]) for picture in pictures]
        rates: dict[str, list[float]] = {"service": [], "engine": [], "peer": []}
        for turn in range(options.repeats + 1):
            wanted = count if turn else 64  # the first turn warms up
            before = bare_rate(engines[8], pixels, wanted)
            found = {
                "service": wanted / asyncio.run(send_all(own, "/v1/categorize", bodies, wanted)),
                "engine": (before + bare_rate(engines[8], pixels, wanted)) / 2,
                "peer": wanted / asyncio.run(send_all(peer.port, "/v1/categorize", bodies, wanted)),
            }
            for subject, rate in found.items() if turn else ():
                rates[subject].append(rate)
        rate = median(rates["service"])
        half = asyncio.run(send_by_chance(own, bodies, rate / 2, count))
        singles, alone = [], []
        for number in range(SINGLES):
            began = time.perf_counter()
            engines[1].fill([pixels[number % len(pixels)][None]], np.empty((1, engines[1].width), np.float16))
            alone.append(time.perf_counter() - began)
            singles.append(asyncio.run(send_all(own, "/v1/categorize", bodies[number : number + 1], 1)))
        single_peer = [
            asyncio.run(send_all(peer.port, "/v1/categorize", bodies[:1], 1)) for _ in range(SINGLES)
        ]
    ratios = [one / bare for one, bare in zip(rates["service"], rates["engine"], strict=True)]
    return {
        "backbone": name, "engine": engines[8].name, "photos": count,
        **{f"{subject}_photos_s": round(median(found), 1) for subject, found in rates.items()},
        "ratio": round(median(ratios), 3),
        "half_p50_ms": ms(np.percentile(half, 50)), "half_p99_ms": ms(np.percentile(half, 99)),
        "single_ms": ms(median(singles)), "engine_single_ms": ms(median(alone)),
        "peer_single_ms": ms(median(single_peer)),
    }  # fmt: skip


def measure_services(options: argparse.Namespace) -> list[dict[str, Any]]:
    """MobileNet: a service on all cores beside one on each core, which a client asks in turn."""
    from features.engines.backbones import load_backbone

    cores = sorted(os.sched_getaffinity(0))
    bodies, rows = [form_of([picture]) for picture in drawn_pictures()], []
    with tempfile.TemporaryDirectory() as folder:
        workspace = make_workspace(Path(folder), load_backbone("mobilenet", "random", 224))
        for own in ([cores], [[core] for core in cores]):
            with ExitStack() as stack:
                services = [stack.enter_context(serving(workspace, these)) for these in own]
                rows.append({"services": len(services), **_loaded(services, bodies, options)})
    return rows


def _loaded(services: "list[Running]", bodies: list[bytes], options: argparse.Namespace) -> dict[str, Any]:
    """Photos a second and latencies of services that share the requests."""
    each = options.images // len(services)

    async def all_of(rate: float) -> list[float]:
        runs = [
            send_by_chance(one.port, bodies, rate / len(services), each, number)
            if rate
            else send_all(one.port, "/v1/categorize", bodies, each, CONNECTIONS // len(services))
            for number, one in enumerate(services)
        ]
        found = await asyncio.gather(*runs)
        return [seconds for one in found for seconds in (one if rate else [one])]

    rates = [each * len(services) / max(asyncio.run(all_of(0))) for _ in range(options.repeats + 1)][1:]
    half = asyncio.run(all_of(median(rates) / 2))
    return {
        "photos_s": round(median(rates), 1),
        "half_p50_ms": ms(np.percentile(half, 50)), "half_p99_ms": ms(np.percentile(half, 99)),
        "resident_mb": round(sum(one.resident() for one in services) / MB),
    }  # fmt: skip


def measure_memory(requests: Sequence[int]) -> list[dict[str, Any]]:
    """Resident bytes of the service's processes after so many requests in all."""
    from features.engines.backbones import load_backbone

    bodies, rows, sent = [form_of([picture]) for picture in drawn_pictures()], [], 0
    backbone = load_backbone("mobilenet", "random", 32)
    with tempfile.TemporaryDirectory() as folder, serving(make_workspace(Path(folder), backbone)) as service:
        for count in sorted(requests):
            asyncio.run(send_all(service.port, "/v1/categorize", bodies, count - sent))
            sent = count
            rows.append({"requests": count, "resident_mb": round(service.resident() / MB)})
            print(rows[-1], flush=True)
    return rows


def ms(seconds: float) -> float:
    """Milliseconds."""
    return round(1000 * float(seconds), 1)


def bare_rate(engine: Any, pixels: np.ndarray, count: int) -> float:
    """Photos a second of the engine alone."""
    rows = np.empty((count, engine.width), np.float16)
    began = time.perf_counter()
    engine.fill((pixels[start % len(pixels) :][:8] for start in range(0, count, 8)), rows)
    return count / (time.perf_counter() - began)


# What is served


def drawn_pictures() -> list[bytes]:
    """JPEGs of 180 px."""
    from ingest import draw_pictures

    pictures: list[bytes] = draw_pictures(PICTURES, seed=0)
    return pictures


def decoded_pixels(pictures: Sequence[bytes], size: int) -> np.ndarray:
    """(n, size, size, 3) uint8."""
    from features.engines.decoded import decoded
    from features.images.normalise import normalise

    return np.concatenate([decoded(normalise(picture).jpeg, [size]) for picture in pictures])


def make_workspace(folder: Path, backbone: Any) -> Path:
    """A workspace with a drawn head of 1,000 categories in service."""
    from categorize import make_bundle

    make_bundle(folder / "releases" / "first", backbone)
    (folder / "releases" / "current").symlink_to("first")
    return folder


class Running:
    """A server in a process of its own."""

    def __init__(self, process: psutil.Popen, port: int) -> None:
        self.process, self.port = process, port

    def resident(self) -> int:
        """Bytes of its processes."""
        tree = [self.process, *self.process.children(recursive=True)]
        return sum(one.memory_info().rss for one in tree)


@contextmanager
def serving(workspace: Path, cores: Sequence[int] = ()) -> Iterator[Running]:
    """shelfmark-serve, on some cores or all."""
    pinned = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
    command = [
        *pinned,
        sys.executable,
        "-m",
        "serving.__main__",
        "--workspace",
        str(workspace),
        "--port",
        "0",
    ]
    with started(command, rb"is served at http://127\.0\.0\.1:(\d+)") as running:
        yield running


@contextmanager
def peer_of(name: str, size: int) -> Iterator[Running]:
    """The peer."""
    with started([sys.executable, __file__, "--peer", name, str(size)], rb"peer at (\d+)") as running:
        yield running


@contextmanager
def started(command: Sequence[str], says: bytes) -> Iterator[Running]:
    """A server that writes its port to stderr when it is ready."""
    with tempfile.TemporaryFile("w+b") as out:
        process = psutil.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + READY_S
            while not (found := re.search(says, _written(out))):
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{command[1:3]} does not start: {_written(out)[-2000:].decode()}")
                time.sleep(0.1)
            yield Running(process, int(found[1]))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _written(out: Any) -> bytes:
    return os.pread(out.fileno(), 1 << 20, 0)


def run_peer(name: str, size: int) -> None:
    """TensorFlow under FastAPI: a photo a call, in FastAPI's threads."""
    from features.engines.backbones import KerasBackbone, load_backbone, start_tensorflow

    start_tensorflow()
    import socket
    from typing import Annotated

    import tensorflow as tf
    import uvicorn
    from fastapi import FastAPI, File

    backbone = load_backbone(name, "random", size)
    assert isinstance(backbone, KerasBackbone)
    head = tf.random.normal((backbone.width, 1000))

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def predict(jpeg: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels = tf.io.decode_jpeg(jpeg, channels=3)
        resized = tf.image.resize(pixels, (size, size))[None]
        return tf.math.top_k(tf.nn.softmax(backbone.model(resized, training=False) @ head), 5)

    app = FastAPI()

    @app.post("/v1/categorize")
    def categorize(images: Annotated[bytes, File()]) -> dict[str, list[float]]:
        values, top = predict(tf.constant(images))
        return {"probabilities": values[0].numpy().tolist(), "categories": top[0].numpy().tolist()}

    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        predict(tf.constant(drawn_pictures()[0]))
        print(f"peer at {listener.getsockname()[1]}", file=sys.stderr, flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="error")).run([listener])


# The client: little more than a socket, because it runs on the same cores


def form_of(photos: Sequence[bytes]) -> bytes:
    """The body of a request."""
    disposition = 'Content-Disposition: form-data; name="images"; filename="photo"'
    parts = [f"--{EDGE}\r\n{disposition}\r\n\r\n".encode() + photo + b"\r\n" for photo in photos]
    return b"".join(parts) + f"--{EDGE}--\r\n".encode()


class Client:
    """One connection, kept alive; a new one after IDLE_S, before the service closes it."""

    def __init__(self, port: int, path: str) -> None:
        self._port, self._path = port, path
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._used = 0.0

    async def send(self, body: bytes) -> None:
        """Sends a request and reads its response.

        Raises:
            RuntimeError: its status is not 200.
        """
        if self._streams and time.perf_counter() - self._used > IDLE_S:
            self.close()
            self._streams = None
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        head = (
            f"POST {self._path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            f"Content-Type: multipart/form-data; boundary={EDGE}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", answer)
        assert length
        text = await reader.readexactly(int(length[1]))
        self._used = time.perf_counter()
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{answer[:100]!r}: {text[:500]!r}")

    def close(self) -> None:
        """Closes the connection."""
        if self._streams:
            self._streams[1].close()


async def send_all(
    port: int, path: str, bodies: Sequence[bytes], count: int, connections: int = CONNECTIONS
) -> float:
    """Sends so many requests over so many connections; returns the seconds."""
    numbers = iter(range(count))

    async def work() -> None:
        client = Client(port, path)
        for number in numbers:
            await client.send(bodies[number % len(bodies)])
        client.close()

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(min(connections, count))))
    return time.perf_counter() - began


async def send_by_chance(
    port: int, bodies: Sequence[bytes], rate: float, count: int, seed: int = 0
) -> np.ndarray:
    """Sends requests at times drawn for a rate; returns the seconds of each from the time it was due."""
    due = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))
    idle: list[Client] = []
    began = time.perf_counter()

    async def one(number: int) -> float:
        client = idle.pop() if idle else Client(port, "/v1/categorize")
        await client.send(bodies[number % len(bodies)])
        idle.append(client)
        return time.perf_counter() - began - float(due[number])

    tasks = []
    for number in range(count):
        await asyncio.sleep(max(0.0, began + float(due[number]) - time.perf_counter()))
        tasks.append(asyncio.create_task(one(number)))
    seconds = np.array(await asyncio.gather(*tasks))
    for client in idle:
        client.close()
    return seconds


if __name__ == "__main__":
    main()
