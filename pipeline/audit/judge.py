"""Plan and judge, in words: how many decisions to check, and what the checked ones prove."""

import math

from features.errors import ShelfmarkError
from features.storage.paths import AnyPath
from models.decisions.audits import Audit, audits_for, judge_audit
from pipeline.job.audits_file import Audits, read_audits

STEPS = (0.01, 0.02, 0.03, 0.04, 0.05, 0.07)  # above the target, for the plan's table
SHOWN = 5  # rows that cannot be used, named one by one
LARGE = 0.05  # share of the stream from which on a sample is said to be a large part of it


def plan(target: float, certainty: float, power: float, expected: list[float]) -> list[str]:
    """Lines that say how many decisions to check.

    Args:
        target: precision promised.
        certainty: that a stream below the target is not called proven.
        power: that a stream of the expected precision is called proven.
        expected: precisions; empty: some above the target.

    Raises:
        ShelfmarkError: an expected precision is not above the target.
    """
    given = expected or [round(target + step, 10) for step in STEPS if target + step < 1]
    given = given or [round((1 + target) / 2, 10)]
    if low := [precision for precision in given if precision <= target]:
        raise ShelfmarkError(
            f"--expected {low[0]:g}: not above the target {target:g}; expected a precision that can prove "
            "it; give a larger one, or a lower --target"
        )
    lines = [
        f"Decisions to check so that a precision of at least {_percent(target)} is proven with certainty "
        f"{_percent(certainty)}, in {_percent(power)} of the audits:"
    ]
    for precision in given:
        checked = audits_for(precision, target, certainty, power)
        number = f"{checked:,}" if checked else "more than a million"
        lines.append(f"  if it is really {_percent(precision):>6}   {number:>9}")
    return lines


def judge(file: AnyPath, target: float, certainty: float) -> tuple[Audit, list[str]]:
    """What a filled file proves, and lines that say it.

    Args:
        file: of `draw`, filled in.
        target: precision promised.
        certainty: of the verdict.

    Raises:
        ShelfmarkError: nothing in it is checked, or more than it was drawn from.
    """
    audits = read_audits(file)
    checked = len(audits.answers)
    if not checked:
        first = f", line {audits.problems[0].line}: {audits.problems[0].text}" if audits.problems else ""
        raise ShelfmarkError(
            f"{file}: no decision is checked ({audits.unchecked:,} rows without an answer, "
            f"{len(audits.problems):,} that cannot be used{first}); expected yes or no in the column "
            "correct; fill it in"
        )
    if audits.drawn_from is not None and audits.drawn_from < checked:
        raise ShelfmarkError(
            f"{file}: {checked:,} checked decisions, drawn from {audits.drawn_from:,}; expected as many at "
            "least in the column drawn_from; correct it, or empty it"
        )
    audit = judge_audit(checked, audits.wrong, target, certainty, audits.drawn_from)
    return audit, [*_read(audits), *_proven(audit), _verdict(audit)]


def _read(audits: Audits) -> list[str]:
    """What was in the file."""
    lines = [f"checked     {len(audits.answers):,} decisions, {audits.wrong:,} wrong"]
    if audits.unchecked:
        lines.append(
            f"not checked {audits.unchecked:,} rows without an answer; the verdict takes them to be like the "
            "others: none may be left out because it is difficult"
        )
    if audits.problems:
        lines.append(
            f"not used    {len(audits.problems):,} rows; where nobody was sure the answer has to be no, else "
            "the verdict is too good:"
        )
        lines += [f"  line {problem.line}: {problem.text}" for problem in audits.problems[:SHOWN]]
        if len(audits.problems) > SHOWN:
            lines.append(f"  and {len(audits.problems) - SHOWN:,} more")
    return lines


def _proven(audit: Audit) -> list[str]:
    """The bounds, rounded away from the estimate: what they say is true."""
    low, high = audit.interval.lower, audit.interval.upper
    lines = [
        f"precision   {100 * audit.precision:.1f}% of the checked",
        f"in all      at least {_down(audit.at_least)} with certainty {_percent(audit.certainty)}; with the "
        f"same certainty from {_down(low)} to {_up(high)}",
    ]
    if audit.stream is None:
        lines.append("stream      size unknown, taken as unlimited: a small one is known better than that")
    elif audit.sampled_share >= LARGE:
        lines.append(
            f"stream      {audit.stream:,} decisions, of which {100 * audit.sampled_share:.0f}% were checked"
            "; the bounds are about these decisions alone, and say less about later ones"
        )
    return lines


def _verdict(audit: Audit) -> str:
    target, certainty = _percent(audit.target), _percent(audit.certainty)
    if audit.verdict == "proven":
        return f"PROVEN: the precision is at least {target}, with certainty {certainty}"
    if audit.verdict == "broken":
        return f"BROKEN: the precision is below {target}, with certainty {certainty}"
    said = f"NOT PROVEN: the precision may be at least {target}, or below"
    if audit.needed is None:
        return f"{said}; the checked ones are not better than {target}: more would hardly prove it"
    return (
        f"{said}; a new sample of about {audit.needed:,} would prove it if the precision is as measured ("
        "draw it with another --seed: a growing sample that is judged again and again weakens the certainty)"
    )


def _percent(share: float) -> str:
    """A share as a percentage, as short as it is exact."""
    return f"{100 * share:.6g}%"


def _down(share: float) -> str:
    return f"{math.floor(round(1000 * share, 6)) / 10:.1f}%"


def _up(share: float) -> str:
    return f"{math.ceil(round(1000 * share, 6)) / 10:.1f}%"
