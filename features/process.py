"""How a command runs as a process: its exit status, and its signals. Where its lines go: output.py."""

import atexit
import contextlib
import logging
import os
import re
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import click

from features.errors import ShelfmarkError, one_line
from features.output import (
    console,
    log_writer,
    note,
    own_streams,
    show_error,
    show_wrong_usage,
    shown_lines,
)

log = logging.getLogger("shelfmark")

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM  # exit statuses
SECRET = re.compile(r"(?i)(notify\.url|[\w.-]*(?:secret|password|token|key)[\w.-]*)=.+")
USER = re.compile(r"(://)[^/@\s]+@")
ENDED = {INTERRUPTED: "interrupted", TERMINATED: "terminated"}
_began: float | None = None  # when the command began, by time.monotonic
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
    global _began
    _began = time.monotonic()
    debug, as_json = "--debug" in arguments, "--log-json" in arguments
    line = shlex.join(without_secrets([name, *arguments]))
    with own_streams(), shown_lines(("",) if debug else shown, as_json, line), _Signals() as signals:
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
            show_error(f"standard output: {error.strerror}; expected to write there; check its disk", status)
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
        show_wrong_usage(wrong, 2)
        return 2
    except (KeyboardInterrupt, click.Abort, Terminated):
        status = signals.status or INTERRUPTED
        show_error(f"{ENDED[status]}; the same command continues the work", status)
        return status
    except Exception as error:
        if signals.status:  # TensorFlow and others make an error of their own of what a signal raises
            show_error(f"{ENDED[signals.status]}; the same command continues the work", signals.status)
            return signals.status
        if debug:
            traceback.print_exc(file=console())
        status = error.status if isinstance(error, ShelfmarkError) else 1
        show_error(one_line(error), status)
        return status


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
                end_at_once(128 + first, f"{ENDED[128 + first]}; the same command continues the work")
            elif number in self._before and not first:
                first, deadline = number, time.monotonic() + GRACE


def _read_byte(descriptor: int, seconds: float | None) -> int | None:
    """The next byte; None when there is none within so many seconds."""
    import select

    ready, _, _ = select.select([descriptor], [], [], None if seconds is None else max(seconds, 0))
    return os.read(descriptor, 1)[0] if ready else None


def end_at_once(status: int, message: str) -> None:
    """Ends the process and its children; takes no lock that the main thread may hold.

    Args:
        status: of the process.
        message: of the `error:` line.
    """
    with contextlib.suppress(OSError, ValueError):
        os.write(console().fileno(), f"error: {message}\n".encode())
    note(f"ERROR {ENDED[status]} in the middle of its work")
    _end_children()
    os._exit(status)


def _end_children() -> None:
    """Kills all processes below this one, except the one that writes the log."""
    writer = log_writer()
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
