"""The runners: whatever Beam runs, records and bottlenecks are the same; called as a user does, as a command.

threads, in_memory   FnApiRunner in one process        always
loopback, external   the portable local job service    always; external: workers of a pool
prism                Prism                             PRISM=FILE, or prism on the PATH
flink                Flink with two task slots         Java 17; FLINK_JOB_SERVER=FILE.jar, or Maven Central's
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import psutil
import pytest
from catalogues import HTML, documents, draw_products, write_bson

from features.storage.artifact import file_digest
from pipeline.cli import main

pytestmark = pytest.mark.runners  # minutes: each command starts Python, and a runner

CATEGORIES = ("1000000001", "1000000002", "1000000003")
FINISHES = 180  # s at most for a command; Flink takes 20, of which 15 to start

# For a mirror of Maven Central that lacks the job server of Beam 2.77 itself: an older one, put together from
# its parts, which understands Beam 2.77, too.
OLDER = """<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>shelfmark</groupId><artifactId>job-server</artifactId><version>1</version><dependencies>
<dependency><groupId>org.apache.beam</groupId><artifactId>beam-runners-flink-1.19</artifactId><version>2.62.0</version></dependency>
<dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.30</version></dependency>
</dependencies></project>"""


# A catalogue, and the command


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with catalogue.bson: 180 products in 9 units, three bad images, 30 products uncategorized."""
    folder = tmp_path_factory.mktemp("drawn")
    products = draw_products({**dict.fromkeys(CATEGORIES, 50), "": 30})
    products[3] = replace(products[3], pictures=(HTML,))
    products[40] = replace(
        products[40], pictures=(products[40].pictures[0][:200], *products[40].pictures[1:])
    )
    products[90] = replace(products[90], pictures=(None,))
    write_bson(folder / "catalogue.bson", documents(products))
    return folder


def arguments(folder: Path, workspace: Path, unit_bytes: int = 30_000) -> list[str]:
    settings = f"ingest.unit_bytes={unit_bytes}"
    return [
        "ingest",
        str(folder / "catalogue.bson"),
        "--workspace",
        str(workspace),
        "--run",
        "r",
        "--set",
        settings,
    ]


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A command in a process group of its own, as from a shell; nothing of the group is left after it."""
    job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield job
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()


def shelfmark(*words: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli", *words]


def end(job: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and what was said, when the job has ended and none of its processes is left."""
    said = job.communicate(timeout=FINISHES)[1]
    for _ in range(100):
        left = [process for process in psutil.process_iter() if group_of(process) == job.pid]
        if not left:
            return job.returncode, said
        time.sleep(0.1)
    raise AssertionError(f"left running: {left}")


def group_of(process: psutil.Process) -> int:
    with contextlib.suppress(ProcessLookupError):
        if process.status() != psutil.STATUS_ZOMBIE:
            return os.getpgid(process.pid)
    return 0


def ingest(folder: Path, workspace: Path, beam: tuple[str, ...]) -> tuple[int, str]:
    with started(shelfmark(*arguments(folder, workspace), "--", *beam)) as job:
        return end(job)


def digest(workspace: Path) -> str:
    return file_digest(workspace / "runs/r/records/manifest.json")


@pytest.fixture(scope="module")
def wanted(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the records that are made without Beam."""
    workspace = tmp_path_factory.mktemp("wanted")
    assert ingest(drawn, workspace, ())[0] == 0
    manifest = json.loads((workspace / "runs/r/records/manifest.json").read_text())
    counts = manifest["summary"]
    assert counts["rejects"] == {"missing": 1, "not_an_image": 1, "truncated": 1}
    assert counts["uncategorized_products"] == 30
    assert len([name for name in manifest["files"] if name.startswith("train-")]) == 9
    return digest(workspace)


# Runners


@pytest.fixture
def in_memory() -> tuple[str, ...]:
    return ("--runner=FnApiRunner", "--direct_running_mode=in_memory", "--direct_num_workers=1")


@pytest.fixture
def threads() -> tuple[str, ...]:
    return ("--runner=FnApiRunner", "--direct_running_mode=multi_threading", "--direct_num_workers=2")


def free_port() -> int:
    from apache_beam.utils.subprocess_server import pick_port

    return pick_port(None)[0]


@contextlib.contextmanager
def service(module: str, option: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A service of Beam's on a port of its own."""
    import grpc

    port = free_port()
    # a pool starts its workers by the name `python`
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", f"apache_beam.runners.{module}", f"{option}={port}"]
    running = subprocess.Popen(
        command, env=os.environ | {"PATH": path}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        grpc.channel_ready_future(grpc.insecure_channel(f"localhost:{port}")).result(timeout=60)
        yield port, running
    finally:
        children = psutil.Process(running.pid).children(recursive=True)
        for process in (running, *children):
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.kill()
        running.wait()


@pytest.fixture
def job_service() -> Iterator[tuple[str, ...]]:
    with service("portability.local_job_service_main", "--port") as (port, _):
        yield ("--runner=PortableRunner", f"--job_endpoint=localhost:{port}")


@pytest.fixture
def loopback(job_service: tuple[str, ...]) -> tuple[str, ...]:
    return (*job_service, "--environment_type=LOOPBACK")


@pytest.fixture
def pool() -> Iterator[tuple[tuple[str, ...], subprocess.Popen[bytes]]]:
    with service("worker.worker_pool_main", "--service_port") as (port, running):
        yield ("--environment_type=EXTERNAL", f"--environment_config=localhost:{port}"), running


@pytest.fixture
def external(job_service: tuple[str, ...], pool: tuple[tuple[str, ...], object]) -> tuple[str, ...]:
    return (*job_service, *pool[0])


@pytest.fixture
def prism() -> tuple[str, ...]:
    binary = os.environ.get("PRISM") or shutil.which("prism")
    if not binary:
        pytest.skip(
            "no Prism; go install github.com/apache/beam/sdks/v2/go/cmd/prism@v2.77.0, PRISM=~/go/bin/prism"
        )
    return ("--runner=PrismRunner", f"--prism_location={binary}")


@pytest.fixture(scope="module")
def job_server(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The jar of Beam's job server for Flink: the one named, else Beam's own way, else the older one."""
    from apache_beam.utils.subprocess_server import JavaJarServer

    missing = pytest.fail if os.environ.get("REQUIRE_RUNNERS") == "1" else pytest.skip
    if not shutil.which("java"):
        missing("no Java; install a Java 17 (on Debian: apt install openjdk-17-jre-headless)")
    if named := os.environ.get("FLINK_JOB_SERVER"):
        return named
    with contextlib.suppress(RuntimeError):
        return JavaJarServer.local_jar(
            JavaJarServer.path_to_beam_jar(":runners:flink:1.20:job-server:shadowJar")
        )
    if not shutil.which("mvn"):
        missing("no Flink job server to be had; FLINK_JOB_SERVER=FILE.jar, or install Maven")
    return older_job_server(tmp_path_factory.mktemp("job-server"))


def older_job_server(folder: Path) -> str:
    (folder / "pom.xml").write_text(OLDER)
    command = [
        "mvn",
        "-q",
        "-B",
        "dependency:copy-dependencies",
        "-DincludeScope=runtime",
        "-DoutputDirectory=jars",
    ]
    subprocess.run(command, cwd=folder, check=True, timeout=900)
    jars = " ".join(sorted(f"jars/{jar.name}" for jar in (folder / "jars").iterdir()))
    path = f"Class-Path: {jars}"
    lines = "\n ".join(path[start : start + 70] for start in range(0, len(path), 70))  # as manifests are
    with zipfile.ZipFile(folder / "job-server.jar", "w") as jar:
        start = "Manifest-Version: 1.0\nMain-Class: org.apache.beam.runners.flink.FlinkJobServerDriver\n"
        jar.writestr("META-INF/MANIFEST.MF", f"{start}{lines}\n\n")
    return str(folder / "job-server.jar")


@pytest.fixture
def flink(job_server: str) -> tuple[str, ...]:
    return (
        "--runner=FlinkRunner",
        "--flink_master=[local]",
        "--parallelism=2",
        f"--flink_job_server_jar={job_server}",
    )


@pytest.fixture
def flink_pool(flink: tuple[str, ...], pool: tuple[tuple[str, ...], object]) -> tuple[str, ...]:
    return (*flink, *pool[0])


RUNNERS = ["in_memory", "threads", "loopback", "external", "prism", "flink", "flink_pool"]


# The same records


@pytest.mark.parametrize("runner", RUNNERS)
def test_the_records_are_those_made_without_beam(drawn, tmp_path, wanted, runner, request):
    status, said = ingest(drawn, tmp_path, request.getfixturevalue(runner))
    assert (status, digest(tmp_path)) == (0, wanted), said


# The same bottlenecks


@pytest.fixture(scope="module")
def ingested(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with records, and the bottlenecks that one process has extracted from them."""
    workspace = tmp_path_factory.mktemp("ingested")
    assert ingest(drawn, workspace, ())[0] == 0
    with started(shelfmark(*extract_arguments(workspace))) as job:
        assert end(job)[0] == 0
    assert len(shards_of(workspace)) == 2 * 2 * 6, "two files, two views"
    return workspace


def extract_arguments(workspace: Path) -> list[str]:
    options = {
        "workspace": workspace,
        "run": "r",
        "backbone": "inception_v3",
        "weights": "random",
        "image-size": 75,
    }
    sets = ("extract.shard_images=50", "extract.batch=8", "extract.flip=true")
    values = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return ["extract", *values, *(text for name in sets for text in ("--set", name))]


def shards_of(workspace: Path) -> dict[str, bytes]:
    """The shards of all views; not the networks that OpenVINO keeps beside them."""
    files = [file for kind in ("npy", "parquet") for file in workspace.glob(f"store/**/*.{kind}")]
    return {str(file.relative_to(workspace)): file.read_bytes() for file in files}


@pytest.mark.timeout(900)  # each worker process loads TensorFlow and a network, beside Flink's own start
@pytest.mark.parametrize("runner", RUNNERS)
def test_the_bottlenecks_are_those_of_one_process(ingested, tmp_path, runner, request):
    records = "runs/r/records"
    shutil.copytree(ingested / records, tmp_path / records)
    beam = request.getfixturevalue(runner)
    with started(shelfmark(*extract_arguments(tmp_path), "--", *beam)) as job:
        status, said = end(job)
    assert status == 0, said
    manifest = "runs/r/bottlenecks/manifest.json"
    assert (tmp_path / manifest).read_text() == (ingested / manifest).read_text()
    assert shards_of(tmp_path) == shards_of(ingested)


# The same decisions


def decide(drawn: Path, workspace: Path, output: Path, beam: tuple[str, ...]) -> tuple[int, str]:
    words = ["categorize", str(drawn / "catalogue.bson"), "--workspace", str(workspace), "--output"]
    sets = ("ingest.unit_bytes=30000", "extract.shard_images=50")
    command = [*words, str(output), *(text for name in sets for text in ("--set", name))]
    with started(shelfmark(*command, "--", *beam)) as job:
        return end(job)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("runner", RUNNERS)
def test_the_decisions_are_those_made_without_beam(drawn, tmp_path, workspace, runner, request):
    shutil.copytree(workspace, tmp_path / "alone", symlinks=True)
    status, said = decide(drawn, tmp_path / "alone", tmp_path / "alone.parquet", ())
    assert status == 0, said
    beam = request.getfixturevalue(runner)
    status, said = decide(drawn, workspace, tmp_path / "on_beam.parquet", beam)
    assert status == 0, said
    decided = pd.read_parquet(tmp_path / "on_beam.parquet")
    assert len(decided) == 180 and set(decided["status"]) == {"review", "unreadable"}
    for ending in (".parquet", ".rejects.parquet", ".statistics.json"):
        files = [tmp_path / f"{name}{ending}" for name in ("alone", "on_beam")]
        assert files[0].exists() == files[1].exists()
        assert not files[0].exists() or files[0].read_bytes() == files[1].read_bytes()


# Errors and ends


@pytest.fixture(scope="module")
def changed(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a catalogue that changed, unseen, after its images were checked, and the workspace/."""
    folder = tmp_path_factory.mktemp("changed")
    catalogue = Path(shutil.copy(drawn / "catalogue.bson", folder))
    before = catalogue.stat()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("pipeline.ingest.ingest.refuse_flood", stop)
        main(arguments(folder, folder / "workspace"))
    data = bytearray(catalogue.read_bytes())
    data[data.index(b"\xff\xd9", 100_000) - 10] ^= 1  # in the pixels of a photo
    catalogue.write_bytes(data)
    os.utime(catalogue, ns=(before.st_atime_ns, before.st_mtime_ns))
    return folder


@pytest.mark.parametrize("runner", ["in_memory", "loopback", "prism", "flink"])
def test_a_units_error_is_one_error_line(changed, tmp_path, runner, request):
    shutil.copytree(changed / "workspace", tmp_path / "workspace")
    status, said = ingest(changed, tmp_path / "workspace", request.getfixturevalue(runner))
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    wanted = (
        f"error: {changed}/catalogue.bson: changed while it was read; "
        "expected a file that no program writes to; run the command again"
    )
    assert (status, errors) == (1, [wanted])
    if runner != "prism":  # whose other bundle may still be failing as the command ends
        assert said == wanted + "\n"


# Kills


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with catalogue.bson of 12,000 images, a hundred units: long enough to be killed in."""
    folder = tmp_path_factory.mktemp("larger")
    few = draw_products(dict.fromkeys(CATEGORIES, 30))
    many = [replace(few[number % len(few)], id=str(number)) for number in range(6000)]
    write_bson(folder / "catalogue.bson", documents(many))
    return folder


@pytest.fixture(scope="module")
def larger_wanted(larger: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    workspace = tmp_path_factory.mktemp("larger-wanted")
    with started(shelfmark(*arguments(larger, workspace, 100_000))) as job:
        assert end(job)[0] == 0
    return digest(workspace)


def finished(workspace: Path) -> dict[str, int]:
    """The units that are done, and when each was."""
    files = workspace.glob("runs/r/records.partial/_look/unit-*.parquet")
    return {file.name: file.stat().st_mtime_ns for file in files}


def workers_of(job: int, what: str) -> list[psutil.Process]:
    found = psutil.Process(job).children(recursive=True)
    return [process for process in found if process.name() != "sh" and what in " ".join(process.cmdline())]


def wait_for(what: Callable[[], object]) -> None:
    limit = time.monotonic() + 100
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_when_the_worker_of_a_pool_is_killed_the_command_ends_and_the_same_one_continues(
    larger, larger_wanted, tmp_path, job_service, pool
):
    environment, running = pool
    command = shelfmark(*arguments(larger, tmp_path, 100_000), "--", *job_service, *environment)
    with started(command) as job:
        wait_for(lambda: len(finished(tmp_path)) > 3)
        workers_of(running.pid, "SdkHarness")[0].kill()
        status, said = end(job)
    assert status == 1
    assert [line[:20] for line in said.splitlines()] == ["error: RuntimeError:"]
    before = finished(tmp_path)
    assert before
    with started(command) as job:
        wait_for(lambda: len(finished(tmp_path)) > len(before))
        after = finished(tmp_path)
        status, said = end(job)
    assert {name: after[name] for name in before} == before, "what was done is not done again"
    assert (status, digest(tmp_path)) == (0, larger_wanted), said


@pytest.mark.parametrize("runner", ["threads", "loopback", "prism", "flink"])
def test_an_interrupted_job_leaves_no_process_behind_and_continues(
    larger, larger_wanted, tmp_path, runner, request
):
    beam = request.getfixturevalue(runner)
    with started(shelfmark(*arguments(larger, tmp_path, 100_000), "--", *beam)) as job:
        wait_for(lambda: finished(tmp_path))
        job.send_signal(signal.SIGINT)  # to the command alone, not as a terminal does to all of them
        status, said = end(job)
    assert status == 130, said
    assert said.splitlines()[-1] == "error: interrupted; the same command continues the work"
    with started(shelfmark(*arguments(larger, tmp_path, 100_000))) as job:
        assert end(job)[0] == 0
    assert digest(tmp_path) == larger_wanted
