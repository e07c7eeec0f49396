"""Jobs of a scheduler: cron's environment, SIGTERM at work, refusals within a second, two jobs at once."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_retrain import digests, retrain_arguments, run_here, shop  # noqa: F401  # a fixture

ROOT = Path(__file__).parents[1]
DATE = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
COMMAND = (sys.executable, "-m", "pipeline.cli")


def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment} | options
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload]


def result(*arguments: object, **options: object) -> tuple[int, list[str], list[str]]:
    """Exit status, and the lines of standard output and standard error."""
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out.splitlines(), err.splitlines()


# The environment of cron


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_jobs_work_in_the_environment_of_cron_and_print_one_line(shop, tmp_path):  # noqa: F811
    folder, _, wanted = shop
    (tmp_path / "empty").mkdir()
    environment = ["env", "-i", f"PATH={os.environ['PATH']}", f"PYTHONPATH={ROOT}", "LC_ALL=C"]
    jobs = {
        "retrain": retrain_arguments(folder, tmp_path / "W"),
        "categorize": [
            *("categorize", str(folder / "catalogue.bson"), "--workspace", str(tmp_path / "W")),
            *("--output", str(tmp_path / "decisions.csv"), "--config", str(folder / "weekly.toml")),
        ],
    }
    for name, arguments in jobs.items():
        job = subprocess.run(
            [*environment, *_without_home(), *COMMAND, *arguments],
            cwd=tmp_path / "empty", stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            start_new_session=True,
        )  # fmt: skip
        assert job.returncode == 0, job.stderr[-2000:]
        assert len(job.stdout.splitlines()) == 1, (name, job.stdout)
        assert all(re.match(f"{DATE} ", line) for line in job.stderr.splitlines()), job.stderr
        assert not re.search("tensorflow|absl|openvino/|CUDA|Warning", job.stderr)
    assert wanted.items() <= digests(tmp_path / "W").items()  # categorize adds to the store
    log = (tmp_path / "W" / "runs" / "week" / "run.log").read_text().splitlines()
    assert all(re.match(f"{DATE} [A-Z]+ ", line) for line in log)
    assert list((tmp_path / "empty").iterdir()) == []


def _without_home() -> list[str]:
    """A prefix of a command that makes the home directory read-only, where that can be done here."""
    prefix = ["unshare", "--mount", "--"]
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    home = str(Path("~").expanduser())
    whole = [*prefix, "sh", "-c", script, home]
    if shutil.which("unshare") and not subprocess.run([*whole, "true"], capture_output=True).returncode:
        return whole
    return []


# SIGTERM


def at_work(job: subprocess.Popen[str], log: Path) -> None:
    """Waits until a job has opened its log."""
    deadline = time.monotonic() + 120
    while not log.is_file():
        assert time.monotonic() < deadline and job.poll() is None
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("beam", [False, True], ids=["pool", "beam"])
def test_sigterm_ends_a_job_at_any_stage_and_the_same_command_continues(shop, tmp_path, beam):  # noqa: F811
    folder, _, wanted = shop
    arguments = retrain_arguments(folder, tmp_path / "W")
    options = ["--", "--direct_num_workers=2"] if beam else []
    log = tmp_path / "W" / "runs" / "week" / "run.log"
    ended = 0
    for later in (0.5, 2, 4, 6, 8, 11, 14, 17):  # s: imports, ingest, extraction, training, report, …
        log.unlink(missing_ok=True)
        job = start(*arguments, *options)
        at_work(job, log)
        time.sleep(later)
        below = psutil.Process(job.pid).children(recursive=True) if job.poll() is None else []
        job.send_signal(signal.SIGTERM)
        began = time.monotonic()
        _, err = job.communicate(timeout=60)
        if job.returncode == 0:
            break  # it came to its end first
        assert (job.returncode, time.monotonic() - began < 5) == (143, True), (later, err)
        ended += 1
        assert err.splitlines()[-1] == "error: terminated; the same command continues the work"
        assert psutil.wait_procs(below, timeout=2)[1] == []
    assert ended > 2
    assert result(*arguments, *options)[0] == 0
    later = {
        "runs/week/verdict.json",
        "runs/week/report/manifest.json",
    }  # run again, the bundle is in service
    found = digests(tmp_path / "W")
    assert found.keys() == wanted.keys()
    assert {name for name in wanted if found[name] != wanted[name]} <= later
    assert not list((tmp_path / "W").rglob("*.partial"))


# Refusals


REFUSED = [
    ("retrain none.bson --workspace X", "none.bson: no such file or folder"),
    ("retrain photos --workspace X --backbone inceptin_v3", "did you mean inceptionv3?"),
    ("retrain photos --workspace X --weights none.weights.h5", "none.weights.h5: no such file"),
    ("retrain photos --workspace X --weights tree.csv", "tree.csv: not a file of weights"),
    ("retrain photos --workspace X --taxonomy none.csv", "none.csv: no such file"),
    ("retrain photos --workspace X --taxonomy tree.csv", "tree.csv: columns a, b; expected category_id"),
    ("retrain photos --workspace tree.csv", "tree.csv: not a directory"),
    ("retrain photos --workspace tree.csv/X", "tree.csv: not a directory"),
    ("retrain photos --workspace photos/X", "inside the source"),
    ("retrain photos --workspace X --run a/b", "--run a/b: not a name for a run"),
    ("retrain photos --workspace X --set train.epoch=3", "unknown setting 'epoch'"),
    ("ingest none.csv --workspace X", "none.csv: no such file or folder"),
    ("train --workspace X", "X: no such directory"),
    ("train --workspace W --run none", "run `shelfmark ingest` first"),
    ("categorize photos --workspace X --output d.csv", "X: no such directory"),
    ("categorize photos --workspace empty --output d.csv", "nothing is in service"),
    ("categorize none --workspace W --output d.csv", "none: no such file or folder"),
    ("categorize photos --workspace W --output d.xls", "its suffix is no format"),
    ("categorize photos --workspace W --output photos/d.csv", "inside the source"),
    ("categorize photos --workspace W --output tree.csv/d.csv", "tree.csv: not a directory"),
    (
        "categorize photos --workspace W --output d.csv --set train.epochs=3",
        "this command does not use it",
    ),
    ("categorize photos --workspace W --output d.csv --set ingest.val_share=0.2", "does not use it"),
    ("monitor --workspace W --decisions d.csv --set train.epochs=3", "this command does not use it"),
]

EACH = """
import contextlib, io, json, sys
from pipeline.cli import main
found = []
for line in json.load(sys.stdin):
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        try:
            main(line.split())
        except SystemExit as stop:
            found.append((stop.code, error.getvalue()))
heavy = {name.partition(".")[0] for name in sys.modules} & {"tensorflow", "keras", "apache_beam"}
json.dump((found, sorted(heavy)), sys.stdout)
"""


def test_wrong_arguments_are_refused_before_heavy_imports_and_leave_nothing(tmp_path, workspace, photo):
    (tmp_path / "photos" / "A").mkdir(parents=True)
    (tmp_path / "photos" / "A" / "1.jpg").write_bytes(photo(1))
    (tmp_path / "tree.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", EACH], input=json.dumps([arguments for arguments, _ in REFUSED]),
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found, heavy = json.loads(done.stdout)
    assert heavy == []
    for (arguments, says), (status, error) in zip(REFUSED, found, strict=True):
        assert (status, error.count("\n")) == (1, 1), arguments
        assert error.startswith("error: ") and says in error, error
    assert sorted(tmp_path.rglob("*")) == before


def test_settings_of_a_file_that_categorize_does_not_use_are_named(tmp_path, caplog):
    from pipeline.cli import CATEGORIZE_LEAVES, CATEGORIZE_USES
    from pipeline.job.load_config import load_config

    caplog.set_level("INFO", logger="shelfmark")
    (tmp_path / "weekly.toml").write_text(
        "seed = 1\n[train]\nepochs = 3\nmixup = 0.1\n[ingest]\nval_share = 0.2\nmax_rejected = 0.2\n"
    )
    load_config(tmp_path / "weekly.toml", used=CATEGORIZE_USES, unused=CATEGORIZE_LEAVES)
    names = "this command does not use its ingest.val_share, seed, train"
    assert caplog.messages == [f"{tmp_path / 'weekly.toml'}: {names}"]


# Locks


def test_a_second_job_ends_at_once_with_75_and_one_line(tmp_path, photo):
    from pipeline.job.lock import only_job

    (tmp_path / "photos" / "A").mkdir(parents=True)
    (tmp_path / "photos" / "A" / "1.jpg").write_bytes(photo(1))
    arguments = ("retrain", tmp_path / "photos", "--workspace", tmp_path / "W", "--run", "r")
    with only_job(tmp_path / "W" / "runs" / "r"):
        status, out, (line,) = result(*arguments)
        assert (status, out) == (75, [])
        assert f"another job is running here (process {os.getpid()} on " in line
        status, _, (line,) = result(*arguments, "--log-json")
        assert (status, json.loads(line)["status"]) == (75, 75)
    assert not (tmp_path / "W").exists()


HOLD = """
import sys, time
from pathlib import Path
from pipeline.job.lock import only_job
with only_job(Path(sys.argv[1])):
    print("holds", flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_killed_process_does_not_block_whatever_its_date(tmp_path):
    from pipeline.job.lock import LOCK, only_job

    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    holder = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert holder.stdout and holder.stdout.readline() == "holds\n"
    holder.kill()
    holder.communicate()
    lock = tmp_path / "run" / LOCK
    assert json.loads(lock.read_text())["process"] == holder.pid
    for day in (0, 2**32 - 1):  # written long ago, and in the future: a clock that went back
        os.utime(lock, (day, day))
        with only_job(tmp_path / "run"):
            assert json.loads(lock.read_text())["process"] == os.getpid()
        lock.parent.mkdir(exist_ok=True)
        lock.touch()


def test_jobs_that_come_and_go_never_hold_the_lock_together(tmp_path):
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom features.errors import Busy\n"
        "from pipeline.job.lock import only_job\n"
        "run, inside, got = Path(sys.argv[1]), Path(sys.argv[2]), 0\n"
        "for _ in range(300):\n"
        "    try:\n"
        "        with only_job(run):\n"
        "            inside.touch(exist_ok=False)\n"
        "            got += 1\n"
        "            inside.unlink()\n"
        "    except Busy:\n"
        "        time.sleep(0.0003)\n"
        "print(got)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "W" / "runs" / "r"), str(tmp_path / "inside")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    jobs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    for job in jobs:
        out, err = job.communicate(timeout=60)
        assert job.returncode == 0, err
        assert int(out) > 0
    assert not list(tmp_path.rglob(".lock"))


def test_a_command_that_fails_leaves_its_log_beside_what_it_has_begun_and_none_alone(tmp_path, photo):
    for number in range(60):
        folder = tmp_path / "photos" / ("Red" if number % 2 else "Blue")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(photo(number))
    options = ("--workspace", str(tmp_path / "W"), "--run", "r")
    assert run_here("ingest", str(tmp_path / "photos"), *options)[0] == 0
    assert run_here("extract", *options, "--weights", "random", "--image-size", "40")[0] == 1
    log = (tmp_path / "W" / "runs" / "r" / "run.log").read_text()
    assert log.count(" INFO command: shelfmark ") == 2
    assert " ERROR shelfmark: weights random: do not fit inceptionv3 at 40 px" in log
