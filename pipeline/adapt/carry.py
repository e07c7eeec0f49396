"""After a release: what sellers have corrected is encoded for the head that decides from now on."""

import json
from dataclasses import dataclass

from features.errors import ShelfmarkError, one_line
from features.storage.paths import AnyPath
from models.corrections.histories import Histories
from models.corrections.store import Corrections
from models.decisions.adapted import SELLERS_FILE
from models.decisions.bundle import Bundle
from models.decisions.releases import release_names
from pipeline.job.config import SellersSettings
from pipeline.job.corrected import find_corrections
from pipeline.job.progress import log
from pipeline.release.in_service import current_release


@dataclass(frozen=True)
class CarriedOver:
    """What became of the corrections in use."""

    encoded: int  # now, from kept bottlenecks
    left: int  # without a vector of this head: they stay labels


def carry_over(workspace: AnyPath, settings: SellersSettings) -> CarriedOver | None:
    """Encodes all corrections for the release in service; None where there is nothing to do.

    Vectors for heads whose release is not there any more are deleted. A store that cannot be used is a
    warning: the release serves, and the next `retrain` tries again.
    """
    try:
        corrections = find_corrections(workspace, settings)
    except ShelfmarkError as error:
        log.warning("corrections: not carried over to the release: %s", one_line(error))
        return None
    if corrections is None:
        return None
    try:
        bundle = current_release(workspace / "releases")
        return _carry(corrections, bundle, workspace) if bundle else None
    except ShelfmarkError as error:
        log.warning("corrections: not carried over to the release: %s", one_line(error))
        return None
    finally:
        corrections.close()


def _carry(corrections: Corrections, bundle: Bundle, workspace: AnyPath) -> CarriedOver | None:
    accounts = [one for one in corrections.sellers() if one.corrections]
    if not accounts:
        return None
    if bundle.adapter is None:
        log.info(
            "corrections: release %s uses none: %s corrections, of %s sellers, are labels at most",
            bundle.path.name, f"{sum(one.corrections for one in accounts):,}", f"{len(accounts):,}",
        )  # fmt: skip
        return None
    encoded = Histories(bundle.adapter, corrections).carry()
    head = bundle.adapter.rules.model
    left = sum(corrections.history(one.seller, head).missing for one in accounts)
    log.info(
        "corrections: %s encoded for release %s; %s have no bottlenecks of its backbone: labels at most",
        f"{encoded:,}", bundle.path.name, f"{left:,}",
    )  # fmt: skip
    releases = workspace / "releases"
    corrections.forget_vectors({head, *(_head_of(releases / name) for name in release_names(releases))})
    return CarriedOver(encoded, left)


def _head_of(release: AnyPath) -> str:
    """Digest of the head that a release uses corrections with; "" where it uses none."""
    try:
        return str(json.loads((release / SELLERS_FILE).read_bytes())["model"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
