"""Where the lines of a command go: the user's standard error, and the log file.

    standard error    log lines of shelfmark with date and time, and one `error:` line
    log file          the same, the lines of all other loggers, warnings, tracebacks, and what other packages
                      and worker processes write to the descriptors 1 and 2

Times are in UTC, as in 2026-11-28T18:07:09Z.
"""

import contextlib
import datetime
import io
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO, cast

import click

from features.errors import ShelfmarkError, one_line
from features.printable import escaped

log = logging.getLogger("shelfmark")


# Standard error


_stream: TextIO | None = None  # standard error of the user, while a command runs
_as_json = False  # whether its lines are JSON objects
_command = "python"  # the command line, for the log file


def console() -> TextIO:
    """Returns the user's standard error, wherever the descriptor 2 leads at the moment."""
    return _stream or sys.stderr


def show_error(message: str, status: int) -> None:
    """Writes the one line of an error to standard error; with `status` the process ends."""
    if _as_json:
        log.error(message, extra={"status": status})
    else:
        print(f"error: {escaped(message)}", file=console())


def show_wrong_usage(wrong: click.ClickException, status: int) -> None:
    """Writes what is wrong with the arguments to standard error."""
    if _as_json:
        log.error(wrong.format_message(), extra={"status": status})
    else:
        wrong.show()


@contextlib.contextmanager
def own_streams() -> Iterator[None]:
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
    """Date, time and message; every line of it begins with them, and control characters are escaped."""

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
        lines = (escaped(line, keep="\t") for line in text.splitlines() or [""])
        return "\n".join(f"{head} {line}" for line in lines)


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
def shown_lines(shown: Sequence[str], as_json: bool, command: str) -> Iterator[None]:
    """Shows the lines of these loggers on standard error; those of all others nowhere.

    Args:
        shown: names of loggers; "" is the root, for all.
        as_json: each line is a JSON object.
        command: the command line, for the log file.
    """
    global _as_json, _command
    _as_json, _command = as_json, command
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


def note(text: str) -> None:
    """Writes a line into the log file, where there is one, at once and without a lock."""
    if _file:
        _file.note(f"{_now()} {text}\n")


def log_writer() -> int | None:
    """The process that writes what others say into the log file; None where there is no log file."""
    return _file.writer.pid if _file else None


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
