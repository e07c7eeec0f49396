"""The e-process: evidence from audited decisions that the accepted ones are not as precise as promised.

    each week   n audited, of them e wrong ──► factor (1 + λ (1 - α))^e (1 - λ α)^(n - e) of each λ
    evidence    mean over λ of the products of the weeks' factors; restarted at 1 when it falls below 1
    alarm       evidence >= 1,000

While the precision is at least 1 - α, the evidence is expected to fall, so it may be read every week for
years (Shafer 2021; Ramdas et al. 2023). A test at 5 %, repeated weekly, would give a false alarm in nine
years of ten.
"""

from dataclasses import dataclass

import numpy as np

ALARM = 1000.0
# λ for α = 0.1; scaled for another α, so that λ α stays. With these a drop to 0.87 is seen in 5 weeks of 400
# audits, or 16 weeks of 100 (medians); with {0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 5} in 5 and 19.
BETS = np.array([0.25, 0.5, 1.0, 2.0, 5.0]) * 0.1


@dataclass(frozen=True)
class Audited:
    """Audited decisions of one week."""

    products: int
    errors: int


def evidence_of(weeks: list[Audited], target: float) -> list[float]:
    """The evidence after each week that the precision is below the target.

    Args:
        weeks: in the order of time.
        target: precision promised, 1 - α.

    >>> weeks = [Audited(100, 10), Audited(100, 20), Audited(100, 20)]
    >>> [round(value, 1) for value in evidence_of(weeks, 0.9)]
    [1.0, 26.6, 1564.0]
    """
    alpha = 1 - target
    bets, log, evidence = BETS / alpha, np.zeros(len(BETS)), []
    for week in weeks:
        log = log + week.errors * np.log1p(bets * (1 - alpha))
        log += (week.products - week.errors) * np.log1p(-bets * alpha)
        most = log.max()
        mixture = most + np.log(np.exp(log - most).mean())
        if mixture < 0:  # evidence for the promise: the next drop must not have to make up for it
            log, mixture = np.zeros(len(BETS)), 0.0
        evidence.append(float(np.exp(min(mixture, 700.0))))  # exp(710) has no float
    return evidence
