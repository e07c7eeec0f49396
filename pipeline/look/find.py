"""Which bundle is looked with. Nothing here imports TensorFlow."""

from features.errors import ShelfmarkError
from features.storage.artifact import find_artifact
from features.storage.paths import AnyPath
from models.decisions.releases import release_names, require_in_service


def find_bundle(workspace: AnyPath, name: str | None) -> AnyPath:
    """Where the bundle is: of a release, or of a run that was kept out; None: of the release in service.

    Raises:
        ShelfmarkError: there is none of this name.
    """
    name = require_in_service(workspace) if name is None else name
    for path in (workspace / "releases" / name, workspace / "runs" / name / "bundle"):
        if find_artifact(path) is not None:
            return path
    known = ", ".join(release_names(workspace / "releases")) or "none so far"
    raise ShelfmarkError(
        f"--release {name}: neither a release nor a run with a bundle; expected one of {known}, or such a "
        "run; correct --release"
    )


def name_of(bundle: AnyPath) -> str:
    """Name of the release, or of the run, that the path of a bundle says."""
    return bundle.parent.name if bundle.name == "bundle" else bundle.name
