"""Commands as processes: signals, exit statuses, and where lines go."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]
DATE = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
PROGRAM = """
import click, hashlib, logging, os, subprocess, sys, threading, time, warnings
from pathlib import Path
from features.errors import ShelfmarkError, Stopped
from features.output import console, log_to, others_output
from features.process import add_common_options, run_command
log = logging.getLogger("shelfmark")

@click.command()
@click.option("--log")
def command(log=None):
{body}

add_common_options(command)
run_command(command, "try", sys.argv[1:])
"""


def start(
    body: str, *arguments: str, before: tuple[str, ...] = (), **options: object
) -> subprocess.Popen[str]:
    """Starts a command with this body, as a process of its own."""
    text = PROGRAM.format(body=textwrap.indent(textwrap.dedent(body), "    "))
    command = [*before, sys.executable, "-c", text, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    # SIGINT is ignored by what a shell has put into the background, as the tests may be
    pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, env=environment, text=True, **pipes)  # type: ignore[call-overload]


def result(body: str, *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error of a command with this body."""
    process = start(body, *arguments)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def ended(process: subprocess.Popen[str], number: int, file: Path) -> tuple[int, float, str]:
    """Exit status, seconds and standard error of a process that gets a signal when a file is there."""
    wait_for(file, process)
    process.send_signal(number)
    began = time.monotonic()
    _, err = process.communicate(timeout=30)
    return process.returncode, time.monotonic() - began, err


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)


# Signals

WAITS = {
    "sleeping": "time.sleep(60)",
    "in native code": "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)",
    "waiting for a thread": """
        thread = threading.Thread(target=time.sleep, args=(60,))
        thread.start()
        thread.join()
    """,
    "swallowing every exception": """
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass
    """,
}


@pytest.mark.parametrize("waiting", WAITS)
@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGTERM, 143, "term"), (signal.SIGINT, 130, "interr")]
)
def test_a_signal_ends_a_command_within_five_seconds(tmp_path, waiting, number, status, word):
    mark = tmp_path / "began"
    process = start(f"Path({str(mark)!r}).touch()\n" + textwrap.dedent(WAITS[waiting]))
    code, seconds, err = ended(process, number, mark)
    assert (code, seconds < 5) == (status, True)
    assert re.fullmatch(rf"\n?error: {word}\w+; the same command continues the work\n", err)


def test_contexts_are_left_in_order_before_the_end(tmp_path):
    body = f"""
        try:
            Path({str(tmp_path / "began")!r}).touch()
            time.sleep(60)
        finally:
            time.sleep(0.5)
            Path({str(tmp_path / "left")!r}).touch()
    """
    code, seconds, _ = ended(start(body), signal.SIGTERM, tmp_path / "began")
    assert (code, seconds < 5, (tmp_path / "left").exists()) == (143, True, True)


@pytest.mark.parametrize("body", ["time.sleep(60)", "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"])
def test_child_processes_are_gone_with_the_command(tmp_path, body):
    ready = tmp_path / "began"
    children = f"""
        child = subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 60 & touch {ready}; wait"])
        {body}
    """
    process = start(children)
    wait_for(ready, process)
    below = psutil.Process(process.pid).children(recursive=True)
    assert len(below) == 2
    assert ended(process, signal.SIGTERM, ready)[0] == 143
    assert psutil.wait_procs(below, timeout=2)[1] == []


def as_process_one(tmp_path: Path, body: str) -> tuple[int, float]:
    """Exit status and seconds of a command that is process 1, as in a container, and gets SIGTERM."""
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "--pid", "--fork", "true"], capture_output=True).returncode:
        pytest.skip("no process namespaces here")
    mark = tmp_path / "began"
    begin = f"assert os.getpid() == 1\nPath({str(mark)!r}).touch()\n"
    process = start(begin + body, before=(unshare, "--pid", "--fork"))
    wait_for(mark, process)
    (inner,) = psutil.Process(process.pid).children()
    began = time.monotonic()
    inner.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    return process.returncode, time.monotonic() - began


@pytest.mark.parametrize("body", ["time.sleep(60)", "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"])
def test_process_one_of_a_container_ends_with_143_too(tmp_path, body):
    status, seconds = as_process_one(tmp_path, body)
    assert (status, seconds < 5) == (143, True)


def test_an_error_that_another_package_makes_of_the_signal_is_still_the_signal(tmp_path):
    body = f"""
        try:
            Path({str(tmp_path / "began")!r}).touch()
            time.sleep(60)
        except BaseException as error:
            raise RuntimeError("generator failed") from error
    """
    code, _, err = ended(start(body), signal.SIGTERM, tmp_path / "began")
    assert (code, err) == (143, "error: terminated; the same command continues the work\n")


# Exit statuses


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        ("print('done')", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("raise ShelfmarkError('bad')", 1, "error: bad\n"),
        ("raise Stopped('half of it is gone')", 4, "error: half of it is gone\n"),
        (
            "raise OSError(28, 'No space left on device', 'a.csv')",
            1,
            "error: a.csv: No space left on device; ",
        ),
        ("1 / 0", 1, "error: ZeroDivisionError: division by zero; this is a fault of shelfmark"),
        ("raise click.UsageError('no such thing')", 2, "Usage: try"),
    ],
)
def test_exit_statuses(body, status, line):
    code, out, err = result(body)
    assert (code, out) == (status, "done\n" if status == 0 else "")
    assert err.startswith(line) and bool(err) == bool(line)


# Lines

SAYS = """
    with log_to(Path(log)):
        log_ = logging.getLogger("shelfmark")
        log_.info("records: products 12")
        log_.warning("few")
        logging.getLogger("tensorflow").warning("retracing")
        logging.getLogger("absl").info("downloading")
        warnings.warn("old")
        os.write(1, b"native out\\n")
        os.write(2, b"native err 10%\\rnative err 100%\\n")
        subprocess.run(["sh", "-c", "echo worker; echo worse >&2"])
        with others_output():
            print("a bar")
            print("a bar of errors", file=sys.stderr)
        print("result")
        os.write(2, b"the last words")
"""


def test_standard_streams_hold_our_lines_and_the_log_holds_all_with_dates(tmp_path):
    file = tmp_path / "logs" / "run.log"
    code, out, err = result(SAYS, "--log", str(file))
    assert (code, out) == (0, "result\n")
    assert re.sub(DATE, "DATE", err) == "DATE records: products 12\nDATE warning: few\n"
    lines = file.read_text().splitlines()
    assert all(re.match(f"{DATE} [A-Z]+ ", line) for line in lines)
    text = [re.sub(f"^{DATE} ", "", line) for line in lines]
    assert text[0].startswith("INFO command: try --log ")
    assert set(text[1:]) >= {
        "INFO shelfmark: records: products 12", "WARNING shelfmark: few", "WARNING tensorflow: retracing",
        "INFO absl: downloading", "OUTPUT native out", "OUTPUT native err 10%", "OUTPUT native err 100%",
        "OUTPUT worker", "OUTPUT worse", "OUTPUT a bar", "OUTPUT a bar of errors", "OUTPUT the last words",
    }  # fmt: skip
    assert any(line.startswith("WARNING py.warnings: ") and "UserWarning: old" in line for line in text)
    assert "result" not in file.read_text()


def test_a_second_command_appends_to_the_log(tmp_path):
    for _ in range(2):
        assert result(SAYS, "--log", str(tmp_path / "run.log"))[0] == 0
    assert (tmp_path / "run.log").read_text().count(" INFO shelfmark: records") == 2


def test_what_a_crashing_process_writes_last_is_in_the_log(tmp_path):
    body = "with log_to(Path(log)):\n    os.write(2, b'CHECK failed')\n    os.abort()"
    code, _, _ = result(body, "--log", str(tmp_path / "run.log"))
    assert code == -signal.SIGABRT
    deadline = time.monotonic() + 5
    while "OUTPUT CHECK failed" not in (tmp_path / "run.log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_more_than_a_pipe_holds_does_not_stop_the_command(tmp_path):
    body = "with log_to(Path(log)):\n    os.write(1, (b'y' * 79 + b'\\n') * 20000)"
    assert result(body, "--log", str(tmp_path / "run.log"))[0] == 0
    assert (tmp_path / "run.log").read_text().count("y" * 79) == 20000


def test_the_error_is_in_the_log_with_its_traceback_where_it_is_a_fault(tmp_path):
    for body, traceback in (("raise ShelfmarkError('bad')", False), ("1 / 0", True)):
        file = tmp_path / f"{traceback}.log"
        result(f"with log_to(Path(log)):\n    {body}", "--log", str(file))
        assert ("Traceback" in file.read_text()) == traceback
        assert " ERROR shelfmark: " in file.read_text()


def test_control_characters_of_others_are_escaped(tmp_path):
    body = """
        with log_to(Path(log)):
            log_ = logging.getLogger("shelfmark")
            log_.info("seller %s is flagged", "a\\x1b[2Jb\\u202ec\\td")
        raise ShelfmarkError("seller a\\x1b[31m\\nb: no such one")
    """
    code, _, err = result(body, "--log", str(tmp_path / "a.log"))
    line, error = err.splitlines()
    assert code == 1
    assert line.endswith("seller a\\x1b[2Jb\\u202ec\td is flagged")
    assert error == "error: seller a\\x1b[31m\\nb: no such one"
    assert "seller a\\x1b[2Jb" in (tmp_path / "a.log").read_text()


def test_every_line_is_a_json_object_on_demand(tmp_path):
    code, out, err = result(SAYS, "--log", str(tmp_path / "run.log"), "--log-json")
    assert (code, out) == (0, "result\n")
    lines = [json.loads(line) for line in err.splitlines()]
    assert [(line["level"], line["message"]) for line in lines] == [
        ("info", "records: products 12"),
        ("warning", "few"),
    ]
    assert all(re.fullmatch(DATE, line["time"]) for line in lines)
    for body, status in (
        ("raise ShelfmarkError('bad')", 1),
        ("raise click.UsageError('no')", 2),
        ("1 / 0", 1),
    ):
        (line,) = result(body, "--log-json")[2].splitlines()
        assert (json.loads(line)["level"], json.loads(line)["status"]) == ("error", status)


def test_debug_shows_the_lines_of_all_loggers_and_tracebacks():
    body = "logging.getLogger('tensorflow').warning('retracing')\n1 / 0"
    assert "retracing" not in result(body)[2]
    err = result(body, "--debug")[2]
    assert "retracing" in err and "Traceback" in err


def test_closed_standard_streams_do_no_harm(tmp_path):
    text = PROGRAM.format(body=textwrap.indent(textwrap.dedent(SAYS), "    "))
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", text]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "--log", str(tmp_path / "run.log")], env=environment, check=False)
    assert done.returncode == 0
    assert "INFO shelfmark: records" in (tmp_path / "run.log").read_text()


def test_a_full_disk_under_the_log_does_not_fail_the_work():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    assert result(SAYS, "--log", "/dev/full")[:2] == (0, "result\n")


def test_what_cannot_be_written_to_standard_output_is_an_error(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        process = start("print('a line')", stdout=full)
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert err.strip().endswith(
        "error: standard output: No space left on device; expected to write there; check its disk"
    )
