"""Where a job may write: never into what it reads, or it would find its own files among the photos."""

from collections.abc import Iterable
from pathlib import Path

from features.errors import ShelfmarkError
from features.storage.paths import AnyPath
from pipeline.sources.source import Source


def require_outside(what: AnyPath, sources: Iterable[Source]) -> None:
    """Checks that a path is neither a source nor inside a source's folder.

    Args:
        what: a file or directory to be written; it need not exist.
        sources: opened. Paths are compared with links and `..` resolved, remote ones by their texts; links
            inside a source's folder that lead elsewhere are not searched for: that would be a second walk
            through millions of files.

    Raises:
        ShelfmarkError: it is one of the sources, or inside one.
    """
    for source in sources:
        if _real(what) == _real(source.path):
            raise ShelfmarkError(
                f"{what}: is the source itself; expected a path outside of all sources; give another one"
            )
        if _is_inside(_real(what), _real(source.path)):
            raise ShelfmarkError(
                f"{what}: inside the source {source.path}, where its files would be taken for products; "
                "expected a path outside of all sources; give another one"
            )


def _real(path: AnyPath) -> AnyPath:
    return path.resolve() if isinstance(path, Path) else path


def _is_inside(what: AnyPath, folder: AnyPath) -> bool:
    if isinstance(what, Path) and isinstance(folder, Path):
        return what.is_relative_to(folder)
    return str(what).startswith(f"{folder}/")
