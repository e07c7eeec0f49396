"""The guard on the feed: what stops a run, what does not, and what a person reads then."""

from dataclasses import replace

import pytest

from features.errors import ShelfmarkError, Stopped
from features.storage.artifact import find_artifact, seal
from pipeline.job.config import Config, GuardSettings
from pipeline.job.run import Run
from pipeline.release import feed as feed_module
from pipeline.release.feed import Feed, compare_feeds, guard_feed, read_feed, write_feed

FRUIT = {f"Fruit/{name}": 30 + place for place, name in enumerate(("Apple", "Kiwi", "Lemon", "Pear"))}
BEFORE = Feed(products=200, images=300, rejected_images=3, uncategorized_products=74, categories=FRUIT)


def check(now: Feed, moved: tuple[str, ...] = (), **limits: float) -> list[str]:
    """Names of the measures that stop."""
    found = compare_feeds(BEFORE, now, GuardSettings(**limits), "2026-W47", moved)
    assert found.stops == any(measure.stops for measure in found.measures)
    return [measure.name for measure in found.measures if measure.stops]


def half() -> Feed:
    """The feed without the two largest categories."""
    return replace(BEFORE, categories={name: count for name, count in FRUIT.items() if count < 32})


def test_the_same_feed_and_one_that_grows_by_a_tenth_pass() -> None:
    assert check(BEFORE) == []
    grown = {name: round(count * 1.1) for name, count in FRUIT.items()} | {"Fruit/Fig": 12}
    assert check(Feed(220, 330, 4, 80, grown)) == []


def test_a_feed_that_lost_categories_stops_and_names_the_largest_of_them() -> None:
    assert check(half()) == ["categories", "mix"]
    found = compare_feeds(BEFORE, half(), GuardSettings(), "2026-W47")
    assert (
        "2 of 4 categories are gone, with under a tenth of their products left (50%, at most 33% expected): "
        in found.reason
    )
    assert "Fruit/Pear (33 products), Fruit/Lemon (32 products)" in found.reason


def test_a_category_that_wrong_labels_alone_keep_there_is_gone() -> None:
    nearly = replace(BEFORE, categories=half().categories | {"Fruit/Pear": 3, "Fruit/Lemon": 3})
    assert check(nearly) == ["categories"]
    assert check(replace(nearly, categories=nearly.categories | {"Fruit/Lemon": 4})) == []


def test_a_third_of_the_categories_is_the_limit_and_a_quarter_passes() -> None:
    without_apple = {name: count for name, count in FRUIT.items() if name != "Fruit/Apple"}
    assert check(replace(BEFORE, categories=without_apple)) == []
    assert check(replace(BEFORE, categories=without_apple), most_categories_gone=0.2) == ["categories"]


@pytest.mark.parametrize(
    ("now", "stops"),
    [
        (replace(BEFORE, products=100, uncategorized_products=37, images=150), []),  # half is still accepted
        (replace(BEFORE, products=99, uncategorized_products=37, images=150), ["products"]),
        (replace(BEFORE, images=140), ["images_per_product"]),
        (replace(BEFORE, rejected_images=19), ["rejected"]),
        (replace(BEFORE, rejected_images=17), []),
        (replace(BEFORE, uncategorized_products=140), ["uncategorized"]),
        (Feed(0, 0, 0, 0, {}), ["products", "categories", "images_per_product"]),
    ],
)
def test_each_measure_stops_just_beyond_its_limit(now: Feed, stops: list[str]) -> None:
    assert check(now) == stops


def test_a_renumbered_tree_passes_where_the_mapping_says_so() -> None:
    renumbered = {f"{number}": count for number, count in enumerate(FRUIT.values())}
    assert check(replace(BEFORE, categories=renumbered)) == ["categories", "mix"]
    assert check(replace(BEFORE, categories=renumbered), moved=tuple(FRUIT)) == []


def test_a_changed_mix_of_the_same_categories_stops_and_shows_the_shares() -> None:
    shifted = dict(zip(FRUIT, (4, 4, 4, 300), strict=True))
    found = compare_feeds(BEFORE, replace(BEFORE, categories=shifted), GuardSettings(), "2026-W47")
    assert [measure.name for measure in found.measures if measure.stops] == ["mix"]
    # 300 of 312 are pears now, 33 of 126 were: 0.962 - 0.262 have to move
    assert found.measures[-1].now == pytest.approx(300 / 312 - 33 / 126)
    assert "Fruit/Pear 26.2% → 96.2%" in found.reason


def test_the_run_stops_with_status_4_or_goes_on_with_a_warning(tmp_path, monkeypatch, caplog) -> None:
    run = Run(tmp_path, "2026-W48", Config(), "2026-W47")
    bundle = packed(run, BEFORE)
    monkeypatch.setattr(feed_module, "feed_of", lambda records: half())
    with pytest.raises(Stopped, match=r"2 of 4 categories are gone.*release 2026-W47.*--accept-feed") as stop:
        guard_feed(run, bundle)
    assert stop.value.status == 4
    caplog.set_level("WARNING", "shelfmark")
    found = guard_feed(run, bundle, accept=True)
    assert found is not None and found.stops
    assert "feed: accepted as it is: 2 of 4 categories are gone" in caplog.text


def packed(run: Run, feed: Feed | None):
    """A bundle in service that holds a feed, or an earlier one that does not."""
    path = run.releases / str(run.based_on)
    work = path.with_name(path.name + ".partial")
    work.mkdir(parents=True)
    if feed:
        write_feed(feed, work)
    return seal(path, kind="bundle", version=3, made_from={}, summary={})


def test_a_feed_reads_back_as_it_was_written_and_a_damaged_one_is_one_line(tmp_path) -> None:
    run = Run(tmp_path, "2026-W48", Config(), "2026-W47")
    bundle = packed(run, replace(BEFORE, categories={"Café/Thé": 3}))
    assert read_feed(bundle) == replace(BEFORE, categories={"Café/Thé": 3})
    (bundle.path / "feed.json").write_text("{}")
    with pytest.raises(ShelfmarkError, match=r"feed\.json: cannot be read .*roll back to another release"):
        read_feed(bundle)


def test_a_first_run_and_a_release_of_an_earlier_version_have_nothing_to_compare_with(
    tmp_path, caplog, monkeypatch
) -> None:
    monkeypatch.setattr(feed_module, "feed_of", lambda records: BEFORE)
    first = Run(tmp_path, "2026-W47", Config(), None)
    run = Run(tmp_path, "2026-W48", Config(), "2026-W47")
    bundle = packed(run, None)
    assert find_artifact(bundle.path) == bundle
    assert guard_feed(first, bundle) is None and guard_feed(run, bundle) is None
    assert "release 2026-W47 does not say what it was made from" in caplog.text
