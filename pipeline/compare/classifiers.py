"""The rows of a comparison: the classifiers of table 4 of Li et al. (hal-01830894), and the level heads."""

from dataclasses import dataclass
from typing import Any

from models.heads.architectures import FLAT, MULTITASK, SEPARATE, SET, TAXONNET
from pipeline.job.config import Config

HOG, SVM = "HOG", "linear SVM"
TUNED = "-tuned"  # ends the name of a row on fine-tuned bottlenecks


@dataclass(frozen=True)
class Row:
    """What is trained."""

    name: str  # as in --only
    classifier: str
    features: str = "bottlenecks"
    kind: str = ""  # of the head; "" is no head
    hidden: tuple[int, int] | None = None  # None: as in head.hidden


ROWS = (
    Row("hog-svm", SVM, features=HOG),
    Row("svm", SVM),
    Row("2nn-512", "2NN-512", kind=FLAT, hidden=(256, 256)),
    Row("2nn-2048", "2NN-2048", kind=FLAT, hidden=(1024, 1024)),
    Row("2nn-4096", "2NN-4096", kind=FLAT, hidden=(2048, 2048)),
    Row("separate", "separate levels", kind=SEPARATE),
    Row("multitask", "multi-task levels", kind=MULTITASK),
    Row("taxonnet", "TaxonNet", kind=TAXONNET),
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


def config_of(row: Row, config: Config) -> Config:
    """The settings of a row's head: the run's, its kind and hidden layers aside."""
    if not row.kind:
        return config
    changes: dict[str, Any] = {"kind": row.kind, "loss": "auto"}
    if row.hidden:
        changes["hidden"] = row.hidden
    if row.kind == FLAT:
        changes |= {"level_weights": None, "aggregation": wish(config)}
    return config.model_copy(update={"head": config.head.model_copy(update=changes)})


def settings_of(row: Row, config: Config) -> str:
    """What `--set` takes to have this row as the run's head; "" for a baseline."""
    if not row.kind:
        return ""
    hidden = ",".join(map(str, config.head.hidden))
    return f"--set head.kind={row.kind} --set 'head.hidden=[{hidden}]'"


def wish(config: Config) -> str:
    """`head.aggregation` of a row: a set head, trained beside the others, is no part of the comparison."""
    return "auto" if config.head.aggregation == SET else config.head.aggregation
