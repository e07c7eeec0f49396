"""How a command runs as a process: its exit status, its signals, and where its lines go.

    standard output   results
    standard error    log lines of shelfmark with date and time, and one `error:` line
    log file          the same, the lines of all other loggers, warnings, tracebacks, and what other packages
                      and worker processes write to the descriptors 1 and 2

Times are in UTC, as in 2026-11-28T18:07:09Z.
"""

import atexit
import contextlib
import datetime
import io
import json
import logging
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TextIO, cast

import click

from features.errors import ShelfmarkError, one_line

log = logging.getLogger("shelfmark")

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM  # exit statuses
SECRET = re.compile(r"(?i)(notify\.url|[\w.-]*(?:secret|password|token|key)[\w.-]*)=.+")
USER = re.compile(r"(://)[^/@\s]+@")
ENDED = {INTERRUPTED: "interrupted", TERMINATED: "terminated"}
_command = "python"  # the command line, for the log
_began: float | None = None  # when it began, by time.monotonic
GRACE = 3.0  # s, for an orderly end after a signal; then the process ends itself


COMMON = (  # options of every command, which `run_command` finds among the arguments
    click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        help="Show tracebacks, and the lines of all loggers.",
    ),
    click.Option(
        ["--log-json"], is_flag=True, expose_value=False, help="Log lines as JSON objects, one a line."
    ),
)


def add_common_options(command: click.Command) -> None:
    """Adds the options of every command to a command, or to all those of a group, where they lack them."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            add_common_options(inner)
        return
    there = {option for parameter in command.params for option in parameter.opts}
    command.params += [option for option in COMMON if not there & set(option.opts)]


class Terminated(BaseException):
    """SIGTERM has come: the command ends, as with KeyboardInterrupt."""

    status = TERMINATED

    def __str__(self) -> str:
        return f"{ENDED[TERMINATED]}; the same command continues the work"


def run_command(
    command: click.Command,
    name: str,
    arguments: list[str],
    obj: object = None,
    shown: Sequence[str] = ("shelfmark",),
) -> None:
    """Runs a command and leaves with its exit status: 0 done, 2 wrong usage, else one `error:` line.

    SIGINT ends it with 130 and SIGTERM with 143, also as process 1 of a container. Contexts are left in
    order, for at most GRACE seconds; child processes are killed.

    Args:
        command: of click.
        name: the program's.
        arguments: after the program's name; `--debug` among them shows tracebacks and the lines of all
            loggers, `--log-json` makes every line on standard error a JSON object.
        obj: for the command's context.
        shown: loggers whose lines are on standard error; "" is the root, for all.
    """
    # Arrow's own allocator keeps what is freed: ingest's peak was 556 MB with it, 460 with the system's
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    global _command, _began
    _command, _began = shlex.join(without_secrets([name, *arguments])), time.monotonic()
    debug, as_json = "--debug" in arguments, "--log-json" in arguments
    with _own_streams(), _console(("",) if debug else shown, as_json), _Signals() as signals:
        status = _status_of(command, name, arguments, obj, debug, signals)
        status = _flushed(status)
        if signals.received:
            atexit._run_exitfuncs()
            _end_children()
            os._exit(128 + signals.received)  # threads of Beam or of TensorFlow could wait for ever
    _began = None
    if status is not None:
        sys.exit(status)


def seconds_of_command() -> float:
    """Seconds since this process began its command, loading of packages included; 0 outside of one."""
    return 0.0 if _began is None else time.monotonic() - _began


def _flushed(status: int | None) -> int | None:
    """Writes what is left for both streams; 1 instead of None where standard output cannot be written."""
    try:
        sys.stdout.flush()
    except (BrokenPipeError, ValueError):
        pass  # nobody reads any more
    except OSError as error:
        if status is None:
            status = 1
            _show_error(f"standard output: {error.strerror}; expected to write there; check its disk", status)
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    return status


def _status_of(
    command: click.Command, name: str, arguments: list[str], obj: object, debug: bool, signals: "_Signals"
) -> int | None:
    """Runs the command; returns its exit status, None when it came to its end."""
    try:
        command.main(args=arguments, prog_name=name, standalone_mode=False, obj=obj)
        return signals.status
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        raise
    except click.ClickException as wrong:
        if _as_json:
            log.error(wrong.format_message(), extra={"status": 2})
        else:
            wrong.show()
        return 2
    except (KeyboardInterrupt, click.Abort, Terminated):
        status = signals.status or INTERRUPTED
        _show_error(f"{ENDED[status]}; the same command continues the work", status)
        return status
    except Exception as error:
        if signals.status:  # TensorFlow and others make an error of their own of what a signal raises
            _show_error(f"{ENDED[signals.status]}; the same command continues the work", signals.status)
            return signals.status
        if debug:
            traceback.print_exc(file=console())
        status = error.status if isinstance(error, ShelfmarkError) else 1
        _show_error(one_line(error), status)
        return status


def _show_error(message: str, status: int) -> None:
    """Writes the one line of an error to standard error."""
    if _as_json:
        log.error(message, extra={"status": status})
    else:
        print(f"error: {message}", file=console())


def without_secrets(command: Sequence[str]) -> list[str]:
    """A command without passwords, keys and the address that is notified.

    >>> without_secrets(["shelfmark", "--set", "notify.url=https://x/y", "--s3_secret_access_key=z", "http://a:b@c"])
    ['shelfmark', '--set', 'notify.url=…', '--s3_secret_access_key=…', 'http://…@c']
    """
    return [USER.sub(r"\1…@", SECRET.sub(r"\1=…", argument)) for argument in command]


# Signals


class _Signals:
    """SIGINT and SIGTERM of the main thread, while a command runs.

    A second thread wakes up with the signal and ends the process when the main thread does not, because it is
    inside TensorFlow or waits for something.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, object] = {}

    @property
    def status(self) -> int | None:
        """The exit status for the signal that has come."""
        return 128 + self.received if self.received else None

    def __enter__(self) -> "_Signals":
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may handle signals
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.getsignal(number)
            if number == signal.SIGTERM or before is not signal.SIG_IGN:  # as in the background of a shell
                self._before[number] = signal.signal(number, self._handle)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self._before:
            return
        signal.set_wakeup_fd(self._wakeup)
        for number, before in self._before.items():
            signal.signal(number, before)  # type: ignore[arg-type]  # what signal.signal returned
        os.write(self._write, b"\0")
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Raises in the main thread, once: what follows would disturb the orderly end."""
        if self.received is None:
            self.received = number
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def _watch(self) -> None:
        """Ends the process GRACE seconds after the first signal, at once after a second SIGINT."""
        first, deadline = 0, 0.0
        while True:
            number = _read_byte(self._read, deadline - time.monotonic() if first else None)
            if number == 0:
                return
            if number is None or (number == signal.SIGINT and first):
                _end_at_once(128 + first)
            elif number in self._before and not first:
                first, deadline = number, time.monotonic() + GRACE


def _read_byte(descriptor: int, seconds: float | None) -> int | None:
    """The next byte; None when there is none within so many seconds."""
    import select

    ready, _, _ = select.select([descriptor], [], [], None if seconds is None else max(seconds, 0))
    return os.read(descriptor, 1)[0] if ready else None


def _end_at_once(status: int) -> None:
    """Ends the process and its children; takes no lock that the main thread may hold."""
    line = f"error: {ENDED[status]}; the same command continues the work\n"
    with contextlib.suppress(OSError, ValueError):
        os.write(console().fileno(), line.encode())
    if _file:
        _file.note(f"{_now()} ERROR {ENDED[status]} in the middle of its work\n")
    _end_children()
    os._exit(status)


def _end_children() -> None:
    """Kills all processes below this one, except the one that writes the log."""
    writer = _file.writer.pid if _file else None
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):  # where there is none, workers end when their stdin closes
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(stat.parent.name))
    below = list(parents.get(os.getpid(), []))
    for process in below:
        below += parents.get(process, [])
    for process in below:
        if process != writer:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)


# Standard error


_stream: TextIO | None = None  # standard error of the user, while a command runs
_as_json = False  # whether its lines are JSON objects


def console() -> TextIO:
    """Returns the user's standard error, wherever the descriptor 2 leads at the moment."""
    return _stream or sys.stderr


@contextlib.contextmanager
def _own_streams() -> Iterator[None]:
    """Puts sys.stdout and sys.stderr on descriptors of their own, so that 1 and 2 can be other packages'."""
    global _stream
    for number in (0, 1, 2):  # a closed one would be the next opened file
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_moved(stream, number) for number, stream in enumerate(before, start=1))
    _stream = sys.stderr
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = before
        _stream = None


def _moved(stream: TextIO | None, number: int) -> TextIO:
    """The stream on a copy of its descriptor; itself, when it is on another one, as in tests."""
    if stream is None:
        return open(os.devnull, "w")
    try:
        if stream.fileno() != number:
            return stream
    except (OSError, ValueError):
        return stream
    stream.flush()
    line_buffering = number == 2 or cast(io.TextIOWrapper, stream).line_buffering
    return open(
        os.dup(number), "w", buffering=1 if line_buffering else -1, encoding=stream.encoding,
        errors=stream.errors,
    )  # fmt: skip


def _now() -> str:
    return _text_of(time.time())


def _text_of(seconds: float) -> str:
    """Formats a time in seconds since 1970.

    >>> _text_of(0)
    '1970-01-01T00:00:00Z'
    """
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


class _Lines(logging.Formatter):
    """Date, time and message; every line of it begins with them."""

    def __init__(self, levels: bool) -> None:
        super().__init__()
        self._levels = levels  # whether level and logger are in the line

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        head = _text_of(record.created)
        if self._levels:
            head += f" {record.levelname} {record.name}:"
        elif record.levelno >= logging.WARNING:
            head += f" {record.levelname.lower()}:"
        return "\n".join(f"{head} {line}" for line in text.splitlines() or [""])


class _Json(logging.Formatter):
    """{"time", "level", "logger", "message"}, for an error with its exit status."""

    def format(self, record: logging.LogRecord) -> str:
        values: dict[str, object] = {
            "time": _text_of(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if hasattr(record, "status"):
            values["status"] = record.status
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return json.dumps(values, ensure_ascii=False)


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]  # of any text stream
    """Writes lines; a full disk or a closed pipe under the log does not fail the work."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Does nothing."""


@contextlib.contextmanager
def _console(shown: Sequence[str], as_json: bool) -> Iterator[None]:
    """Shows the lines of these loggers on standard error; those of all others nowhere."""
    global _as_json
    _as_json = as_json
    handler = _Handler(console())
    handler.setFormatter(_Json() if as_json else _Lines(levels=False))
    nowhere = logging.NullHandler()  # else Python would write warnings of unknown loggers to standard error
    root = logging.getLogger()
    loggers = [logging.getLogger(name) for name in shown]
    root.addHandler(nowhere)
    for logger in loggers:
        logger.addHandler(handler)
    before = log.level
    log.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        _as_json = False
        logging.captureWarnings(False)
        log.setLevel(before)
        for logger in loggers:
            logger.removeHandler(handler)
        root.removeHandler(nowhere)


# The log file

# Reads lines from its standard input and writes them with their time to its standard output, until the last
# process that writes to it is gone. A process, not a thread: a package that writes more than a pipe holds
# while it holds Python's lock would wait for ever, and what a crashing process writes last would be lost.
WRITER = """
import os, re, signal, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
rest = b""
while True:
    piece = os.read(0, 65536)
    *lines, rest = re.split(rb"[\\r\\n]+", rest + piece)
    if not piece:
        lines, rest = [rest], b""
    head = time.strftime("%Y-%m-%dT%H:%M:%SZ OUTPUT ", time.gmtime()).encode()
    text = b"".join(head + line + b"\\n" for line in lines if line.strip())
    try:
        os.write(1, text)
    except OSError:
        pass
    if not piece:
        break
"""


def _text_stream(descriptor: int) -> TextIO:
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace")


class _LogFile:
    """The log of a command: a handler for all loggers, and a process for what descriptors 1 and 2 get."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self.writer = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", WRITER], stdin=subprocess.PIPE, stdout=self._descriptor
        )
        self.handler = _Handler(_text_stream(self._descriptor))
        self.handler.setFormatter(_Lines(levels=True))
        assert self.writer.stdin
        self._kept = os.dup(1), os.dup(2)
        for number in (1, 2):
            os.dup2(self.writer.stdin.fileno(), number)
        self.writer.stdin.close()
        self.output = _text_stream(os.dup(1))

    def note(self, line: str) -> None:
        """Writes a line at once, without a lock."""
        with contextlib.suppress(OSError):
            os.write(self._descriptor, line.encode(errors="backslashreplace"))

    def close(self) -> None:
        """Gives the descriptors 1 and 2 back; waits until what was written to them is in the file."""
        with contextlib.suppress(OSError):
            self.output.close()
        for number, kept in enumerate(self._kept, start=1):
            os.dup2(kept, number)
            os.close(kept)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a child process may still hold the pipe
            self.writer.wait(timeout=1)
        with contextlib.suppress(OSError):
            self.handler.stream.close()


_file: _LogFile | None = None


@contextlib.contextmanager
def log_to(file: Path) -> Iterator[None]:
    """Appends to a log file everything that the command says, and what all others say meanwhile.

    Args:
        file: on a disk; its directory is made.

    Raises:
        OSError: the file cannot be opened.
    """
    global _file
    if _file:  # of the command that calls this one
        yield
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0")
    _file = _LogFile(file)
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(_file.handler)
    root.setLevel(logging.INFO)
    _file.note(f"{_now()} INFO command: {_command}; process {os.getpid()} on {socket.gethostname()}\n")
    try:
        yield
    except BaseException as error:
        _log_end(error, _file)
        raise
    finally:
        root.setLevel(level)
        root.removeHandler(_file.handler)
        _file.close()
        _file = None


def _log_end(error: BaseException, file: _LogFile) -> None:
    """Writes the error that ends a command into the log file, with its traceback where it is a fault."""
    if isinstance(error, SystemExit | click.exceptions.Exit):
        return
    expected = isinstance(error, ShelfmarkError | click.ClickException)
    message = one_line(error) if isinstance(error, Exception) else type(error).__name__
    where = None if expected else (type(error), error, error.__traceback__)
    file.handler.handle(logging.LogRecord("shelfmark", logging.ERROR, "", 0, message, None, where))


def log_is_open() -> bool:
    """Whether the descriptors 1 and 2 lead into a log file."""
    return _file is not None


@contextlib.contextmanager
def others_output() -> Iterator[None]:
    """Sends what is printed meanwhile to the log file, where there is one: other packages' progress bars."""
    if _file is None:
        yield
        return
    with contextlib.redirect_stdout(_file.output), contextlib.redirect_stderr(_file.output):
        yield
