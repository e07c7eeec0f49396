"""The account of a weekly run: what a scheduler and a person need of it, in one file and one line.

    runs/<run>/run.json   RunAccount, written when `retrain` ends, however it ends

`account_of` collects it: the stages report to it, the weekly run fills in feed and verdict. The file of an
earlier end is removed when the run goes on, so where there is none, `retrain` is at work or was killed.
"""

import contextlib
import functools
import importlib.metadata
import logging
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, cast

import click
from pydantic import BaseModel, ConfigDict, ValidationError

from features.errors import ShelfmarkError, Stopped, one_line
from features.process import INTERRUPTED, TERMINATED, seconds_of_command, without_secrets
from features.storage.artifact import digest_of
from features.storage.paths import AnyPath, write_whole
from models.decisions.releases import in_service
from pipeline.job.config import NotifySettings
from pipeline.job.memory import Peak, PeakMemory
from pipeline.job.notify import notify
from pipeline.job.progress import log
from pipeline.job.times import utc

ACCOUNT, VERDICT = "run.json", "verdict.json"  # in a run
REPORT = "report/index.html"
KEPT = 3  # exit status: finished, and the old release stays
MOST_WARNINGS = 100
PACKAGES = ("tensorflow", "keras", "apache-beam", "numpy", "pandas")

Outcome = Literal["released", "unchanged", "kept", "stopped", "failed"]
Summaries = Mapping[str, object]


class StageAccount(BaseModel):
    """What a stage took."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    """Its directory, below the run's."""
    made: bool
    """False: it was opened as an earlier command had made it, or it did not finish."""
    finished: bool
    seconds: float
    peak_memory_bytes: int
    """Largest sum of the resident memory of this process and its children, see pipeline/job/memory.py."""


class RunAccount(BaseModel):
    """What came in, was learnt and was promised, the verdict, and what it took."""

    model_config = ConfigDict(extra="ignore", validate_assignment=True, use_attribute_docstrings=True)

    run: str
    outcome: Outcome
    """unchanged: there was nothing new; kept: finished, and the old release stays; stopped: by a guard."""
    exit_status: int
    sentence: str
    """Why: the verdict's sentence, or the error."""
    started: str
    """ISO 8601, UTC."""
    ended: str
    seconds: float
    command: list[str]
    """As given; secrets are left out."""
    feed: dict[str, object] | None = None
    """Figures of the catalogue, the release that it was compared with, and what changed."""
    records: Summaries | None = None
    """The summary of the manifest, as of the next ones; null where the command did not come so far."""
    head: Summaries | None = None
    thresholds: Summaries | None = None
    evaluation: Summaries | None = None
    suspects: Summaries | None = None
    tree: Summaries | None = None
    verdict: dict[str, object] | None = None
    """As in verdict.json."""
    release_before: str | None = None
    """Name of the release in service when the command began."""
    release_now: str | None = None
    stages: list[StageAccount] = []
    """In the order in which they ended."""
    new_images: int | None = None
    """Images whose bottlenecks this command computed; null where it did not come so far."""
    versions: dict[str, str] = {}
    """Of shelfmark, Python and the packages that results depend on; `packages`: digest of the names and
    versions of all that are installed."""
    warnings: list[str] = []
    earlier: dict[str, object] | None = None
    """The account of the command that did the work, where this one found nothing new."""


SUMMARIES = (
    "records",
    "head",
    "thresholds",
    "evaluation",
    "suspects",
    "tree",
)  # fields, and kinds of artifacts


class _Collector:
    """The account that is being collected, and where its stages are."""

    def __init__(self, run: AnyPath, account: RunAccount, memory: PeakMemory) -> None:
        self.run, self.account, self.memory = run, account, memory
        self.failed_in: str | None = None  # name of a stage

    def name_of(self, path: AnyPath) -> str:
        """A stage's name: its path, below the run's directory where it is there."""
        return str(path).removeprefix(f"{self.run}/")


_collectors: list[_Collector] = []  # of this process: none, or one


class StageResult:
    """What a stage says about itself when it is finished."""

    def __init__(self) -> None:
        self.made = False
        self.summary: Summaries | None = None  # None: it did not finish


@contextlib.contextmanager
def stage_account(path: AnyPath) -> Iterator[StageResult]:
    """Puts a stage into the account of this process, where there is one; the block fills in the result.

    Args:
        path: of the stage's artifact.
    """
    result = StageResult()
    if not _collectors:
        yield result
        return
    collector, started, peak = _collectors[-1], time.monotonic(), Peak()
    name = collector.name_of(path)
    try:
        with collector.memory.measured() as peak:
            yield result
    except BaseException:
        collector.failed_in = collector.failed_in or name
        raise
    finally:
        account, finished = collector.account, result.summary is not None
        account.stages.append(
            StageAccount(
                name=name,
                made=result.made,
                finished=finished,
                seconds=round(time.monotonic() - started, 3),
                peak_memory_bytes=peak.bytes,
            )
        )
        if finished and name in SUMMARIES:
            setattr(account, name, result.summary)
        if finished and name == "bottlenecks":
            count_new_images(0)


def count_new_images(number: int) -> None:
    """Adds to the account's number of images whose bottlenecks were computed."""
    for collector in _collectors:
        collector.account.new_images = (collector.account.new_images or 0) + number


@contextlib.contextmanager
def account_of(
    run: AnyPath, command: Sequence[str], settings: NotifySettings | None = None
) -> Iterator[RunAccount]:
    """Collects the account of a run; at the end writes run.json, prints one line and notifies.

    Nothing of this hides an error of the block, or fails a run that succeeded: an account that cannot be
    written is a warning.

    Args:
        run: the run's directory. The caller holds its lock.
        command: program and arguments, for the file.
        settings: the section [notify].

    Yields:
        The account; the block sets `feed` and `verdict`.
    """
    before_us = seconds_of_command()  # that TensorFlow took to load, for the most part
    began, releases, earlier = time.monotonic() - before_us, run.parent.parent / "releases", _earlier(run)
    (run / ACCOUNT).unlink(missing_ok=True)
    before = in_service(releases)
    account = RunAccount(
        run=run.name, outcome="failed", exit_status=1, sentence="", started=utc(time.time() - before_us),
        ended="", seconds=0, command=without_secrets(command),
        release_before=before, release_now=before, versions=versions(),
    )  # fmt: skip
    with PeakMemory() as memory, _warnings_into(account):
        collector = _Collector(run, account, memory)
        _collectors.append(collector)
        error: BaseException | None = None
        try:
            yield account
        except BaseException as raised:
            error = raised
            raise
        finally:
            _collectors.remove(collector)
            _end(account, error)
            if account.outcome == "unchanged":
                account.earlier = earlier
            account.ended, account.seconds = utc(), round(time.monotonic() - began, 3)
            with contextlib.suppress(Exception):  # of releases/current: it is the block's, too
                account.release_now = in_service(releases)
            written = _written(run, account)
            with contextlib.suppress(OSError, ValueError):  # standard output is closed
                print(summary_line(run, account, collector.failed_in), flush=True)
            if settings and settings.url:
                short = account.exit_status > 128  # a signal's: the process has to end
                notify(settings, written, attempts=1 if short else 3, limit=1.5 if short else 60)


def _earlier(run: AnyPath) -> dict[str, object] | None:
    """The account that the run has, or the one within it; None without one, and for a failed command's."""
    try:
        account = read_account(run)
    except (ShelfmarkError, OSError):
        return None
    if account is None or account.outcome not in ("released", "unchanged"):
        return None
    return account.earlier if account.outcome == "unchanged" else account.model_dump(mode="json")


def _end(account: RunAccount, error: BaseException | None) -> None:
    """Fills in how the run has ended."""
    if error is not None:
        account.outcome, account.exit_status, account.sentence = _failure(error)
        return
    verdict = account.verdict or {}
    account.sentence = str(verdict.get("sentence", ""))
    if verdict.get("release"):
        account.outcome, account.exit_status = "released", 0
    elif verdict.get("outcome") == "same" or not verdict:
        account.outcome, account.exit_status = "unchanged", 0
    else:
        account.outcome, account.exit_status = "kept", KEPT


def _failure(error: BaseException) -> tuple[Outcome, int, str]:
    """Outcome, exit status and sentence of an error, as features/errors.py ends with it."""
    ended = _end_of_process(error)
    if isinstance(ended, SystemExit):
        return "failed", ended.code if isinstance(ended.code, int) else 1, f"ended with {ended.code}"
    if isinstance(ended, KeyboardInterrupt | click.Abort):
        return "failed", INTERRUPTED, "interrupted; the same command continues the work"
    if ended is not None:
        return "failed", TERMINATED, "terminated; the same command continues the work"
    status = error.status if isinstance(error, ShelfmarkError) else 1
    return "stopped" if isinstance(error, Stopped) else "failed", status, one_line(cast(Exception, error))


def _end_of_process(error: BaseException) -> BaseException | None:
    """The error, or the one that it was made of, by which a process ends: no Exception, or click's Abort.

    Keras and others make an error of their own of what a signal raises.
    """
    found: BaseException | None = error
    while found is not None and isinstance(found, Exception) and not isinstance(found, click.Abort):
        found = found.__cause__ or found.__context__
    return found


def _written(run: AnyPath, account: RunAccount) -> bytes:
    """The bytes of run.json, which are written where that is possible."""
    text = account.model_dump_json(indent=1).encode()
    try:
        write_whole(run / ACCOUNT, text)
    except Exception as error:
        log.warning("%s: not written: %s", run / ACCOUNT, one_line(error))
    return text


def read_account(run: AnyPath) -> RunAccount | None:
    """The account in a run's directory; None where there is none: it is at work, was killed, or is older.

    Raises:
        ShelfmarkError: run.json is not an account.
    """
    try:
        return RunAccount.model_validate_json((run / ACCOUNT).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ShelfmarkError(
            f"{run / ACCOUNT}: not the account of a run; expected what `retrain` "
            "writes at its end; remove the file"
        ) from error


def was_interrupted(run: AnyPath) -> bool:
    """Whether the last `retrain` of a run was killed, failed or was stopped, or there was none."""
    try:
        account = read_account(run)
    except ShelfmarkError:
        return True
    return account is None or account.outcome in ("failed", "stopped")


def summary_line(run: AnyPath, account: RunAccount, failed_in: str | None = None) -> str:
    """The account in one line, for standard output.

    Args:
        run: the run's directory.
        account: finished.
        failed_in: the stage that was at work when the run failed.
    """
    now = account.release_now
    service = f"{now} stays in service" if now else "nothing is in service"
    parts = {
        "released": ["released" if now == account.run else f"released as {now}"],
        "unchanged": [f"nothing new, {service}"],
        "kept": [f"not released, {service}"],
        "stopped": [f"stopped by a guard, {service}"],
        "failed": [f"failed{f' in {failed_in}' if failed_in else ''}, {service}"],
    }[account.outcome]
    if account.exit_status in (0, KEPT):
        parts += _promise(account)
    if account.records is not None:
        new = "" if account.new_images is None else f", {account.new_images:,} new"
        parts.append(f"{account.records.get('images', 0):,} images{new}")
    page = run / (REPORT if account.exit_status in (0, KEPT) else ACCOUNT)
    return f"{account.run}: {'; '.join([*parts, duration(account.seconds), str(page)])}"


def _promise(account: RunAccount) -> list[str]:
    """What the new bundle promises and accepts, in words; nothing where the command did not come so far.

    The rate of the release before is on the same products; without one, the rate is that of `evaluate`.
    """
    verdict, evaluation = account.verdict or {}, account.evaluation or {}
    promise, comparison = verdict.get("promise"), verdict.get("comparison")
    products, accepted = evaluation.get("products"), evaluation.get("accepted")
    parts = []
    if isinstance(promise, dict):
        parts.append(
            f"{'certified' if promise['certified'] else 'not certified for'} {promise['target']:.2f}"
        )
    on = "test" if evaluation.get("graded_on") == "test" else "validation"
    if isinstance(comparison, dict):
        rate = comparison["acceptance"]
        parts.append(f"accepts {rate['after']:.1%} of the {on} products (before {rate['before']:.1%})")
    elif isinstance(products, int) and isinstance(accepted, int):
        parts.append(f"accepts {accepted / max(1, products):.1%} of the {on} products")
    return [", ".join(parts)] if parts else []


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(252.4), duration(3.21), duration(7325)
    ('4 min 12 s', '3.2 s', '2 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@functools.cache
def versions() -> dict[str, str]:
    """Versions of shelfmark, Python and main packages, and the digest of all that are installed."""
    installed = {
        one.name.lower().replace("_", "-"): one.version for one in importlib.metadata.distributions()
    }
    found = {name: installed[name] for name in ("shelfmark", *PACKAGES) if name in installed}
    return found | {"python": platform.python_version(), "packages": digest_of(installed)}


@contextlib.contextmanager
def _warnings_into(account: RunAccount) -> Iterator[None]:
    """Collects the warnings that are logged, each once."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            if message not in account.warnings and len(account.warnings) < MOST_WARNINGS:
                account.warnings.append(message)

    handler = Handler(logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
