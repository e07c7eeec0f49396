"""Photos by URL: images a second of the first pass of ingest, beside the HTTP client alone.

    .venv/bin/python benchmarks/urls.py [--photos 20000] [--latency 0.05 0.02 0] [--repeats 3]

    server     a process that responds to each request `latency` seconds later, on connections that are kept
    client     aiohttp alone: as many processes as ingest has workers (one a core), in each of them as many
               requests at a time (32); responses are read and thrown away
    ingest     `check_images`, the first pass: fetches, caches, hashes, decodes strictly, writes rows

All on one machine, so server, client and decoder share its cores: without latency they are what is measured,
with the latency of a real server (from 20 ms on) it is fetching. Both are timed without start-up: client from
its first request to its last response, ingest in a process that has checked a tiny source before. They take
turns. Writes results/urls.json.
"""

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ingest import JFIF_END, draw_pictures
from measure import conditions, median, table, verdict

RESULTS = Path(__file__).parent / "results" / "urls.json"
PACKAGES = ("aiohttp", "apache-beam", "simplejpeg", "pyarrow")
TARGET = 0.7  # of the client's images/s, where the server has a latency
PICTURES = 500  # distinct ones; a comment makes them as many photos as are wanted
CONCURRENCY = 32  # requests at a time in a process
TINY = 4  # photos of the source that is checked first


def main() -> None:
    """Runs the subjects in turns, prints a table and verdicts, writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=20_000)
    parser.add_argument("--latency", type=float, nargs="+", default=[0.05, 0.02, 0.0], help="seconds")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--subject", choices=sorted(SUBJECT), help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.subject:
        SUBJECT[options.subject](*options.arguments)
        return
    rows = [measured(latency, options.photos, options.repeats) for latency in options.latency]
    print(shown(rows))
    verdicts = [
        verdict(
            f"latency {row['latency_ms']:.0f} ms, images/s, ingest / client", row["ratio"], TARGET, " ×",
            at_least=True,
        )
        for row in rows
        if row["latency_ms"]
    ]  # fmt: skip
    found = conditions(*PACKAGES) | {"photos": options.photos, "concurrency": CONCURRENCY, "rows": rows}
    RESULTS.write_text(json.dumps(found | {"verdicts": verdicts}, indent=1) + "\n")


def measured(latency: float, photos: int, repeats: int) -> dict[str, Any]:
    """A row of the table: both subjects against one server."""
    client, ingest, load = [], [], []
    with served(latency) as url:
        for _ in range(repeats):
            load.append(os.getloadavg()[0])
            client.append(photos / client_seconds(url, photos))
            ingest.append(photos / ingest_seconds(url, photos))
    return {
        "latency_ms": latency * 1000, "client_images_per_second": [round(rate, 1) for rate in client],
        "ingest_images_per_second": [round(rate, 1) for rate in ingest],
        "ratio": round(median(ours / alone for ours, alone in zip(ingest, client, strict=True)), 3),
        "load_before": [round(one, 2) for one in load],
    }  # fmt: skip


def shown(rows: list[dict[str, Any]]) -> str:
    """The table."""
    cells = [
        [
            f"{row['latency_ms']:.0f} ms", f"{median(row['client_images_per_second']):,.0f}",
            f"{median(row['ingest_images_per_second']):,.0f}", f"{row['ratio']:.2f}",
            f"{max(row['load_before']):.1f}",
        ]
        for row in rows
    ]  # fmt: skip
    return table(["latency", "client images/s", "ingest images/s", "ratio", "load before"], cells)


# The server


@contextlib.contextmanager
def served(latency: float) -> Iterator[str]:
    """The server's URL, while the block lasts."""
    process = _start("server", str(latency))
    assert process.stdout
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


def server(latency: str) -> None:
    """Serves photo N at /N.jpg and prints its port."""
    pictures = draw_pictures(PICTURES, seed=0)

    class PhotoServer(asyncio.Protocol):
        """A connection: requests have no body, so each ends with an empty line."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport, self.waiting = transport, b""

        def data_received(self, data: bytes) -> None:
            *requests, self.waiting = (self.waiting + data).split(b"\r\n\r\n")
            for request in requests:
                number = int(request.split(b" ", 2)[1][1:].removesuffix(b".jpg"))
                body = photo(pictures, number)
                head = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(
                    body
                )
                loop.call_later(float(latency), self.transport.write, head + body)

    async def serve() -> None:
        serving = await loop.create_server(PhotoServer, "127.0.0.1", 0, backlog=1024)
        print(serving.sockets[0].getsockname()[1], flush=True)
        await serving.serve_forever()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(serve())


def photo(pictures: list[bytes], number: int) -> bytes:
    """A picture with the photo's number as a comment."""
    jpeg = pictures[number % len(pictures)]
    return jpeg[:JFIF_END] + b"\xff\xfe\0\x0a" + number.to_bytes(8, "big") + jpeg[JFIF_END:]


# The client alone


def client_seconds(url: str, photos: int) -> float:
    """Seconds from the first request to the last response."""
    processes = [_start("client", url, str(first), str(photos)) for first in range(os.cpu_count() or 1)]
    for process in processes:
        assert process.stdout
        process.stdout.readline()  # ready
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    times = [tuple(map(float, process.communicate()[0].split())) for process in processes]
    return max(end for _, end in times) - min(start for start, _ in times)


def client(url: str, first: str, photos: str) -> None:
    """Fetches this process's share of the photos; prints when it began and ended."""
    import aiohttp

    numbers = iter(range(int(first), int(photos), os.cpu_count() or 1))

    async def one_by_one(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            async with session.get(f"{url}/{number}.jpg") as response:
                response.raise_for_status()
                await response.read()

    async def fetch() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(one_by_one(session) for _ in range(CONCURRENCY)))

    print("ready", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    asyncio.run(fetch())
    print(began, time.monotonic())


# Ingest


def ingest_seconds(url: str, photos: int) -> float:
    """Seconds of the first pass."""
    process = _start("first pass", url, str(photos))
    return float(process.communicate()[0])


def first_pass(url: str, photos: str) -> None:
    """Checks a tiny source, then all photos; prints the seconds of the latter."""
    from pipeline.beam.process_pool import local_workers

    with tempfile.TemporaryDirectory() as folder, local_workers():
        _check(Path(folder, "tiny"), url, TINY)
        began = time.monotonic()
        _check(Path(folder, "all"), url, int(photos))
        print(time.monotonic() - began)


def _check(folder: Path, url: str, photos: int) -> None:
    from pipeline.ingest.check_images import check_images
    from pipeline.job.config import IngestSettings
    from pipeline.sources.source import open_sources

    folder.mkdir()
    manifest = folder / "shop.csv"
    lines = [f"p{number},{url}/{number}.jpg,c{number % 7}\n" for number in range(photos)]
    manifest.write_text("product_id,image,category\n" + "".join(lines))
    units = 2 if photos == TINY else IngestSettings().unit_images  # so that every worker gets one
    settings = IngestSettings(urls="any", url_concurrency=CONCURRENCY, unit_images=units)
    checked = check_images(open_sources([str(manifest)]), settings, folder, (), folder / "fetched")
    index = checked.index()
    if index.images() != photos or index.reasons():
        raise RuntimeError(f"{index.images()} of {photos} photos, rejects {index.reasons()}")


def _start(*subject: str) -> "subprocess.Popen[str]":
    command = [sys.executable, __file__, "--subject", *subject]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


SUBJECT = {"server": server, "client": client, "first pass": first_pass}


if __name__ == "__main__":
    main()
