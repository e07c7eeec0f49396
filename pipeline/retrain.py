"""The weekly run, on one page."""

import sys
from collections.abc import Sequence
from dataclasses import asdict

from features.storage.paths import AnyPath
from pipeline.adapt.carry import carry_over
from pipeline.adapt.flags import flag_wrong_sellers
from pipeline.audit.suspects import suspects
from pipeline.extract.extract import extract, require_extractable
from pipeline.ingest.ingest import ingest
from pipeline.job.account import RunAccount, account_of, was_interrupted
from pipeline.job.run import Run
from pipeline.look.maps import maps
from pipeline.release.clean import clean_after
from pipeline.release.feed import guard_feed
from pipeline.release.judge import judge
from pipeline.release.release import pack, release
from pipeline.release.switch import require_undamaged
from pipeline.release.tree import differs_from_service, moved_categories, tree_changes
from pipeline.report.report import report
from pipeline.train.by_seller import by_seller
from pipeline.train.calibrate import calibrate
from pipeline.train.evaluate import evaluate
from pipeline.train.finetune import finetune
from pipeline.train.sellers import seller_rules, styles
from pipeline.train.train import train


def retrain(
    run: Run,
    sources: list[str],
    taxonomy: AnyPath | None = None,
    beam: tuple[str, ...] = (),
    tune: bool = False,
    *,
    accept_feed: bool = False,
    force: bool = False,
    mappings: Sequence[AnyPath] = (),
) -> RunAccount:
    """Trains this week's bundle and releases it if it is better than the one in service.

    Each stage opens what the stages before it have left in the run. A finished one is opened, not made again.

    Args:
        run: opened.
        sources: paths of the catalogue.
        taxonomy: CSV of the tree, for sources that do not hold it.
        beam: Beam's own options.
        tune: fine-tune the backbone first.
        accept_feed: go on with a feed that the guard would stop.
        force: release the bundle whatever the verdict is.
        mappings: files that say what became of categories.

    Returns:
        The account, which is run.json, too: its outcome is "released", "unchanged" or "kept".

    Raises:
        Stopped: the feed is not like that of the release in service.
        ShelfmarkError: the release in service is damaged, and `force` is not given.
    """
    interrupted = was_interrupted(run.path)
    with account_of(run.path, sys.argv, run.config.notify) as account:
        if not force:
            require_undamaged(run.releases)
        require_extractable(run, tune)
        # decodes every image once
        records = ingest(run, sources, taxonomy, beam, mappings, goes_on=interrupted)
        flag_wrong_sellers(run, records)
        tree_changes(run)
        guard_feed(run, records, accept_feed, moved_categories(run), account=account)
        if tune:
            finetune(run)  # longer than all the rest: epochs through the network, on pixels
        extract(run, beam)  # each new image once through the network; images of the weeks before cost nothing
        train(run)  # epochs over bottlenecks in memory: two minutes each for a million images on two cores
        calibrate(run)  # one pass of the head over the validation images
        styles(run)  # one pass of the head over the training images, with sellers.method = paper alone
        seller_rules(run)  # one pass of the head over FIT and the validation images of sellers
        evaluate(run)  # one pass of the head over all images
        if run.config.sellers.method != "none":
            by_seller(run)  # at most 80,000 decisions, about 100 sellers
        suspects(run)  # one pass of the head over validation and test images, unless suspects.folds is set
        candidate = pack(run)  # copies the head and the backbone's weights
        # extracts the test images anew where the two backbones differ
        verdict = judge(run, candidate, force=force, tree_changed=differs_from_service(run))
        account.verdict = asdict(verdict)
        maps(run)  # a few photos once more through the network
        report(run)  # seconds
        release(run, candidate, verdict)
        carry_over(run.workspace, run.config.sellers)  # one pass of the head over what sellers corrected
        clean_after(run)  # where retention.clean says so
    return account
