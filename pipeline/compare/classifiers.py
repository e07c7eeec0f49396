"""What a comparison trains: the classifiers of table 4 of Li et al. (hal-01830894), and the level heads.

ClassifierSpec × (frozen, fine-tuned backbone) ─► Variant, a row of the comparison: "2nn-512-tuned"
"""

from dataclasses import dataclass

from models.heads.architectures import FLAT, MULTITASK, SEPARATE, SET, TAXONNET
from pipeline.job.config import Config

HOG, SVM = "HOG", "linear SVM"
TUNED = "-tuned"  # ends the name of a row on fine-tuned bottlenecks


@dataclass(frozen=True)
class ClassifierSpec:
    """A classifier to train."""

    name: str  # as in --only
    classifier: str  # for people
    features: str = "bottlenecks"
    architecture: str = ""  # of the head, as in head.kind; "" is no head
    hidden: tuple[int, int] | None = None  # None: as in head.hidden


CLASSIFIERS = (
    ClassifierSpec("hog-svm", SVM, features=HOG),
    ClassifierSpec("svm", SVM),
    ClassifierSpec("2nn-512", "2NN-512", architecture=FLAT, hidden=(256, 256)),
    ClassifierSpec("2nn-2048", "2NN-2048", architecture=FLAT, hidden=(1024, 1024)),
    ClassifierSpec("2nn-4096", "2NN-4096", architecture=FLAT, hidden=(2048, 2048)),
    ClassifierSpec("separate", "separate levels", architecture=SEPARATE),
    ClassifierSpec("multitask", "multi-task levels", architecture=MULTITASK),
    ClassifierSpec("taxonnet", "TaxonNet", architecture=TAXONNET),
)


@dataclass(frozen=True)
class Variant:
    """A classifier, and whether its bottlenecks are of a fine-tuned backbone: a row of the comparison."""

    spec: ClassifierSpec
    fine_tuned: bool

    @property
    def name(self) -> str:
        """As in --only."""
        return self.spec.name + TUNED * self.fine_tuned


VARIANTS = tuple(  # HOG vectors depend on no backbone
    Variant(spec, fine_tuned)
    for fine_tuned in (False, True)
    for spec in CLASSIFIERS
    if not (fine_tuned and spec.features == HOG)
)
# Table 4 of Li et al., APIA 2018, hal-01830894: precision on training and validation, by row.
PAPER = {
    "hog-svm": (0.266, 0.100),
    "svm": (0.608, 0.533),
    "2nn-512": (0.544, 0.551),
    "2nn-4096": (0.716, 0.598),
    "2nn-4096-tuned": (0.725, 0.614),
    "2nn-2048-tuned": (0.773, 0.726),
}


def config_of(spec: ClassifierSpec, config: Config) -> Config:
    """The settings of a classifier's head: the run's, with its own architecture and hidden layers."""
    if not spec.architecture:
        return config
    changes: dict[str, object] = {"kind": spec.architecture, "loss": "auto"}
    if spec.hidden:
        changes["hidden"] = spec.hidden
    if spec.architecture == FLAT:
        changes |= {"level_weights": None, "aggregation": wanted_aggregation(config)}
    return config.model_copy(update={"head": config.head.model_copy(update=changes)})


def settings_of(spec: ClassifierSpec, config: Config) -> str:
    """The `--set` options with which the run's head is this classifier; "" for a baseline."""
    if not spec.architecture:
        return ""
    hidden = ",".join(map(str, config.head.hidden))
    return f"--set head.kind={spec.architecture} --set 'head.hidden=[{hidden}]'"


def wanted_aggregation(config: Config) -> str:
    """`head.aggregation` for the comparison: "auto" for "set", since set heads are not compared."""
    return "auto" if config.head.aggregation == SET else config.head.aggregation
