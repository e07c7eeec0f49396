"""The feed: what the catalogue delivers in a week, and the guard that compares it with the week in service.

    records/ ─► feed_of ─► Feed ─► feed.json, in the bundle
                           └─ with that of the release in service ─► compare_feeds ─► FeedCheck ─► guard_feed

A shop's export that was cut off halfway looks like a catalogue. Trained on it, a bundle can be good at the
half that is there. So the run stops after ingest, before anything is extracted or trained.
"""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass

import pandas as pd
from pydantic import TypeAdapter

from features.errors import ShelfmarkError, Stopped
from features.storage.artifact import Artifact, find_artifact
from features.storage.paths import AnyPath, read_range, write_whole
from pipeline.job.account import RunAccount
from pipeline.job.config import GuardSettings
from pipeline.job.progress import log
from pipeline.job.run import Run
from pipeline.job.summaries import RecordsSummary

FEED = "feed.json"  # in a bundle
EXAMPLES = 3  # categories that a message names
NEARLY_GONE = 0.1  # with a smaller share of its products a category is gone: wrong labels leave some in each
NO_CATEGORIES: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Feed:
    """What came in."""

    products: int
    images: int  # readable or not
    rejected_images: int
    uncategorized_products: int
    categories: dict[str, int]  # category → products that have it

    @property
    def images_per_product(self) -> float:
        """Images of a product, on average; 0 without products."""
        return self.images / self.products if self.products else 0.0

    @property
    def rejected(self) -> float:
        """Share of the images that were refused."""
        return self.rejected_images / self.images if self.images else 0.0

    @property
    def uncategorized(self) -> float:
        """Share of the products without a category."""
        return self.uncategorized_products / self.products if self.products else 0.0


@dataclass(frozen=True)
class FeedMeasure:
    """A figure of the feed, this week and in the week of the release in service."""

    name: str
    before: float
    now: float
    limit: float  # as in the settings [guard]
    stops: bool
    sentence: str


@dataclass(frozen=True)
class FeedCheck:
    """How this week's feed differs from that of the release in service."""

    against: str  # name of the release
    measures: tuple[FeedMeasure, ...]

    @property
    def stops(self) -> bool:
        """Whether a measure is beyond its limit."""
        return any(measure.stops for measure in self.measures)

    @property
    def reason(self) -> str:
        """The sentences of the measures beyond their limits."""
        return "; ".join(measure.sentence for measure in self.measures if measure.stops)


def feed_of(records: Artifact) -> Feed:
    """The feed that a run's records were made from."""
    summary = RecordsSummary.of(records)
    category = pd.read_parquet(records.file("products.parquet"), columns=["category"])["category"]
    return Feed(
        products=summary.products,
        images=summary.images,
        rejected_images=sum(summary.rejects.values()),
        # but for those whose category a mapping has split: the feed has given them one
        uncategorized_products=summary.uncategorized_products - sum(summary.unlabelled.values()),
        categories={str(name): int(count) for name, count in category.value_counts().sort_index().items()},
    )


def write_feed(feed: Feed, folder: AnyPath) -> None:
    """Writes feed.json into a directory."""
    write_whole(folder / FEED, json.dumps(asdict(feed), ensure_ascii=False, indent=1).encode())


def read_feed(bundle: Artifact) -> Feed | None:
    """The feed that a bundle was made from; None for a bundle of an earlier version, which does not say.

    Raises:
        ShelfmarkError: feed.json is not what `write_feed` writes.
    """
    if FEED not in bundle.files:
        return None
    try:
        return TypeAdapter(Feed).validate_json(read_range(bundle.path / FEED))
    except ValueError as error:
        raise ShelfmarkError(
            f"{bundle.path / FEED}: cannot be read ({str(error).splitlines()[0]}); expected what the release "
            "was made from; roll back to another release"
        ) from error


def compare_feeds(
    before: Feed, now: Feed, limits: GuardSettings, against: str, moved: Collection[str] = NO_CATEGORIES
) -> FeedCheck:
    """Compares this week's feed with that of the release in service.

    Args:
        before: of the release.
        now: of this week.
        limits: the section [guard].
        against: name of the release.
        moved: categories of `before` that have another name this week: they are not missing.

    Returns:
        Six measures, each with whether it is beyond its limit.
    """
    gone = {
        name: count
        for name, count in before.categories.items()
        if name not in moved and now.categories.get(name, 0) < NEARLY_GONE * count
    }
    examples = sorted(gone, key=lambda name: (-gone[name], name))[:EXAMPLES]
    named = ", ".join(f"{name} ({gone[name]:,} products)" for name in examples)
    gone_share = len(gone) / len(before.categories) if before.categories else 0.0
    left = now.products / before.products if before.products else 1.0
    ratio = now.images_per_product / before.images_per_product if before.images_per_product else 1.0
    mix, most = _mix(before, now, moved)
    return FeedCheck(against, (
        FeedMeasure(
            "products", before.products, now.products, limits.least_products, left < limits.least_products,
            f"{now.products:,} products, {before.products:,} before ({left:.0%}, at least "
            f"{limits.least_products:.0%} expected)",
        ),
        FeedMeasure(
            "categories", len(before.categories), len(now.categories), limits.most_categories_gone,
            gone_share > limits.most_categories_gone,
            f"{len(gone):,} of {len(before.categories):,} categories are gone, with under a tenth of their "
            f"products left ({gone_share:.0%}, at most {limits.most_categories_gone:.0%} expected)"
            f"{': ' if named else ''}{named}",
        ),
        FeedMeasure(
            "images_per_product", before.images_per_product, now.images_per_product, limits.least_images,
            ratio < limits.least_images,
            f"{now.images_per_product:.2f} images a product, {before.images_per_product:.2f} before "
            f"({ratio:.0%}, at least {limits.least_images:.0%} expected)",
        ),
        _share(
            "rejected", "of the images rejected", before.rejected, now.rejected, limits.most_rejected_more
        ),
        _share(
            "uncategorized", "of the products without a category", before.uncategorized, now.uncategorized,
            limits.most_uncategorized_more,
        ),
        FeedMeasure(
            "mix", 0.0, mix, limits.most_mix, mix > limits.most_mix,
            f"{mix:.0%} of the categorized products would have to change their category for the mix of "
            f"before (at most {limits.most_mix:.0%} expected){': ' if most else ''}{most}",
        ),
    ))  # fmt: skip


def _share(name: str, what: str, before: float, now: float, limit: float) -> FeedMeasure:
    """A share that may rise by so many points."""
    sentence = f"{now:.1%} {what}, {before:.1%} before (at most {100 * limit:g} points more expected)"
    return FeedMeasure(name, before, now, limit, now - before > limit, sentence)


def _mix(before: Feed, now: Feed, moved: Collection[str]) -> tuple[float, str]:
    """Total variation distance of the shares of the categories, and those that changed most.

    Categories of another name this week count together, before and now.
    """
    if not before.categories or not now.categories:
        return 0.0, ""  # another measure says so
    then, here = pd.Series(before.categories), pd.Series(now.categories)
    then = then.rename({name: "" for name in moved})
    here = here.rename({name: "" for name in here.index.difference(then.index)}) if len(moved) else here
    shares = [counts.groupby(level=0).sum() / counts.sum() for counts in (then, here)]
    change = shares[1].sub(shares[0], fill_value=0.0)
    most = change.drop("", errors="ignore").abs().sort_values(ascending=False, kind="stable").index[:EXAMPLES]
    examples = ", ".join(
        f"{name} {shares[0].get(name, 0):.1%} → {shares[1].get(name, 0):.1%}" for name in most
    )
    return float(change.abs().sum()) / 2, examples


def guard_feed(
    run: Run,
    records: Artifact,
    accept: bool = False,
    moved: Collection[str] = NO_CATEGORIES,
    account: RunAccount | None = None,
) -> FeedCheck | None:
    """Stops the run where its feed is not like that of the release in service.

    Args:
        run: opened.
        records: of the run.
        accept: go on all the same.
        moved: see `compare_feeds`.
        account: gets the feed and the comparison, also where the run is stopped.

    Returns:
        The comparison; None where there is nothing to compare with.

    Raises:
        Stopped: the feed is beyond a limit of [guard], and is not accepted.
    """
    before = _feed_in_service(run)
    if before is None and account is None:
        return None
    now = feed_of(records)
    check = compare_feeds(before, now, run.config.guard, str(run.based_on), moved) if before else None
    if account:
        account.feed = _figures(now, check)
    if check is None:
        return None
    if check.stops and not accept:
        raise Stopped(
            f"feed: {check.reason}; expected a catalogue like that of release {check.against}, which stays "
            "in service; correct the feed and run again; give --accept-feed when this is the catalogue now"
        )
    if check.stops:
        log.warning("feed: accepted as it is: %s", check.reason)
    return check


def _figures(feed: Feed, check: FeedCheck | None) -> dict[str, object]:
    """The feed and what changed, for run.json."""
    return asdict(feed) | {
        "categories": len(feed.categories),
        "against": check.against if check else None,
        "changes": [asdict(measure) for measure in check.measures] if check else [],
    }


def _feed_in_service(run: Run) -> Feed | None:
    """The feed of the release that the run is based on."""
    bundle = find_artifact(run.releases / run.based_on) if run.based_on else None
    feed = read_feed(bundle) if bundle else None
    if run.based_on and feed is None:
        log.warning(
            "feed: release %s does not say what it was made from; nothing to compare with", run.based_on
        )
    return feed
