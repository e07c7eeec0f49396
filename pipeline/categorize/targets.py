"""Where a batch is written, checked before any work and without heavy imports."""

from collections.abc import Sequence

from features.errors import ShelfmarkError
from features.storage.artifact import find_artifact
from features.storage.databases import is_database
from features.storage.paths import AnyPath, any_path
from pipeline.job.decisions_file import rejects_beside
from pipeline.job.decisions_output import require_output
from pipeline.sources.outside import require_outside
from pipeline.sources.source import Source

PHOTOS = "photos"  # the kind of artifact that --keep-records makes


def require_targets(
    sources: Sequence[Source],
    workspace: AnyPath,
    output: str,
    only_new: str | None,
    records: AnyPath | None,
) -> None:
    """Checks that nothing is written into a source, and that nothing is lost by being overwritten.

    Args:
        sources: opened.
        workspace: of the release.
        output: of the decisions.
        only_new: earlier decisions.
        records: directory for the photos.

    Raises:
        ShelfmarkError: a target is inside a source, would overwrite something, or is refused as such.
    """
    file = None if is_database(output) else any_path(output)
    beside = [] if file is None else [file, rejects_beside(file)]
    for path in (*beside, workspace, *([] if records is None else [records])):
        require_outside(path, sources)
    require_output(output)
    if only_new is not None and file is not None and any_path(only_new) == file:
        raise ShelfmarkError(
            f"{output}: is --only-new and --output, and would lose what it holds; expected two names (a "
            "table of a database may be both); give another --output"
        )
    if records is not None and records.exists():
        found = find_artifact(records)
        if found is None or found.kind != PHOTOS:
            raise ShelfmarkError(
                f"{records}: exists and holds no photos of categorize; expected a new directory; give "
                "another --keep-records"
            )
