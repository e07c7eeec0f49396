"""Whether a seller's corrections made his own later decisions worse: a sign test, one after the other.

    for each of his corrections, the oldest first:
        what he had corrected before ─► the adapted category, where it is not the base's
                                        helped: it is what he then said;  hurt: the base's is
        only then it is learnt

    worse    P(X >= hurt) <= LEVEL for X ~ Binomial(helped + hurt, 1/2)

Each correction is judged by those before it alone, so that for a seller whose corrections change nothing for
the worse, a change is as often good as bad, or more often good. At least ten must have hurt. The test is
repeated with every run on a growing history: over many runs it flags an honest seller whose changes are as
often good as bad more often than LEVEL says.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from models.corrections.correction import Missing, SellerAccount
from models.corrections.store import Corrections
from models.decisions.adapted import Adapter, log_probabilities, product_vectors

LEVEL = 0.001
PIECE = 64  # products whose probabilities of all categories are in memory at once
NO_HEAD = ""  # no vector is of it: every correction with bottlenecks lacks its vector


@dataclass(frozen=True)
class Hindsight:
    """How often a seller's earlier corrections changed a category that he corrected or confirmed later."""

    helped: int
    hurt: int

    @property
    def is_worse(self) -> bool:
        """Whether the changes hurt more often than chance explains.

        >>> Hindsight(0, 9).is_worse, Hindsight(0, 10).is_worse, Hindsight(10, 20).is_worse
        (False, True, False)
        """
        from scipy.stats import binom

        return bool(binom.sf(self.hurt - 1, self.helped + self.hurt, 0.5) <= LEVEL)

    def why(self) -> str:
        """Returns the reason for a flag."""
        return (
            f"his earlier corrections changed {self.helped + self.hurt:,} later categories, "
            f"{self.hurt:,} of them from what he then said to another one"
        )


def hindsight_of(adapter: Adapter, rows: Sequence[Missing], after: int = 0) -> Hindsight:
    """Returns the figures of one seller.

    Args:
        adapter: of the release in service.
        rows: all of his corrections with bottlenecks of its backbone, the oldest first. Those of categories
            that the head does not know are left out.
        after: those with ids up to this one are learnt, and not judged.
    """
    categorizer, helped, hurt, count = adapter.categorizer, 0, 0, 0
    true = categorizer.predictor.taxonomy.index(np.array([row.category for row in rows], dtype=object))
    nobody = np.empty(0, np.int64)
    model = None
    for start in range(0, len(rows), PIECE):
        piece = rows[start : start + PIECE]
        bounds = np.concatenate([[0], np.cumsum([len(row.bottlenecks) for row in piece])])
        together = np.concatenate([row.bottlenecks for row in piece])
        vectors = product_vectors(categorizer, adapter.rules.vectors, together, bounds)
        log_probability = log_probabilities(categorizer, together, bounds)
        if model is None:
            model = adapter.method.seller(vectors[:0], nobody, nobody)
        for number, vector in enumerate(vectors):
            said, base = int(true[start + number]), int(log_probability[number].argmax())
            if said < 0:
                continue
            choice = model.predict(vector, log_probability[number])
            if count and choice.category != base and piece[number].id > after:
                helped += choice.category == said
                hurt += base == said
            model.learn(vector, base, said)
            count += 1
    return Hindsight(helped, hurt)


def worse_sellers(
    adapter: Adapter, corrections: Corrections, sellers: Iterable[SellerAccount]
) -> dict[str, str]:
    """Returns the sellers whose corrections hurt their own later decisions, and why.

    Only a seller who confirmed the base ten times, and contradicted it, can be one of them: the others'
    bottlenecks are not read.

    Args:
        adapter: of the release in service.
        corrections: its store.
        sellers: with what they have in use; one who is flagged or set aside already is left out.
    """
    found = {}
    for account in sellers:
        if account.flagged or account.set_aside or not _may_be_worse(adapter, corrections, account):
            continue
        rows = list(_rows_of(adapter, corrections, account.seller))
        figures = hindsight_of(adapter, rows, account.restored)
        if figures.is_worse:
            found[account.seller] = figures.why()
    return found


def _may_be_worse(adapter: Adapter, corrections: Corrections, account: SellerAccount) -> bool:
    if not Hindsight(0, account.corrections).is_worse:
        return False
    history = corrections.history(account.seller, adapter.rules.model)
    confirmed = [
        base == true
        for number, base, true in zip(history.ids.tolist(), history.base, history.true, strict=True)
        if number > account.restored
    ]
    return Hindsight(0, sum(confirmed)).is_worse and history.base != history.true


def _rows_of(adapter: Adapter, corrections: Corrections, seller: str) -> Iterator[Missing]:
    fingerprint = adapter.categorizer.predictor.head.shape.fingerprint
    for batch in corrections.missing(NO_HEAD, fingerprint, sellers=[seller]):
        yield from batch
