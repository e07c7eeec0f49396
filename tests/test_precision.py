"""The precision of training: what a trial shows, and that a training ends in the one in which it began."""

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from test_once import CONFIG, extracted, records_of

from features.storage.artifact import Artifact
from models.heads import checkpoints
from models.heads import precision as trial
from models.heads.architectures import HeadShape
from models.heads.precision import faster, faster_for_head, faster_for_network, products
from pipeline.job.config import Config
from pipeline.train import from_settings
from pipeline.train.from_settings import PRECISION, precision_of
from pipeline.train.train import train_head

pytestmark = pytest.mark.usefixtures("quiet_tensorflow")
WIDE = HeadShape(width=600, categories=300, hidden=(500, 400), dropout=0.0, scale=1.0, fingerprint="")


def busy(milliseconds: float) -> None:
    """Takes so much processor time, however loaded the machine is."""
    until = time.process_time() + milliseconds / 1000
    while time.process_time() < until:
        pass


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "shelfmark")
    return caplog


@pytest.fixture(autouse=True)
def _without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without one, and before any trial."""
    monkeypatch.setattr(trial, "_of_gpu", lambda: None)
    trial._faster_products.cache_clear()


@pytest.mark.parametrize(
    ("float32", "bfloat16", "chosen"),
    [(15, 5, "bfloat16"), (15, 10, "bfloat16"), (11, 10, "float32"), (10, 15, "float32")],
)
def test_bfloat16_is_chosen_where_it_takes_clearly_less_processor_time(
    float32: float, bfloat16: float, chosen: str, log: pytest.LogCaptureFixture
) -> None:
    took = {"float32": float32, "bfloat16": bfloat16}
    assert faster("the head is trained", lambda precision: lambda: busy(took[precision])) == chosen
    line = log.records[-1].getMessage()
    assert line.startswith(f"the head is trained in {chosen}: on trial a step takes ")
    said = [float(number) for number in re.findall(r"(\d+\.\d) ms", line)]
    assert said == pytest.approx([float32, bfloat16], abs=1)


def test_time_in_which_other_programs_run_does_not_count() -> None:
    def step_in(precision: str) -> Callable[[], None]:
        return lambda: busy(8) if precision == "float32" else (busy(4), time.sleep(0.02))[0]

    assert faster("the head is trained", step_in) == "bfloat16"


def test_the_trial_ends_after_one_round_where_bfloat16_takes_more_than_twice_as_long() -> None:
    steps = []

    def step_in(precision: str) -> Callable[[], None]:
        return lambda: (steps.append(precision), busy(2 if precision == "float32" else 6))[1]

    assert faster("the head is trained", step_in) == "float32"
    assert steps == ["float32", "bfloat16"] * 2, "one more time to make the graphs"


def test_a_head_is_tried_once_in_a_process(log: pytest.LogCaptureFixture) -> None:
    found = [faster_for_head(WIDE, batch=256) for _ in range(2)]
    assert found[0] == found[1] in ("float32", "bfloat16")
    lines = [record.getMessage() for record in log.records]
    assert len(lines) == 1
    assert lines[0].startswith(f"the head is trained in {found[0]}: on trial a step takes")


def test_a_head_of_few_products_is_trained_in_float32_without_a_trial(log: pytest.LogCaptureFixture) -> None:
    assert faster_for_head(WIDE, batch=8) == "float32"
    assert not log.records


def test_the_products_on_trial_are_those_of_the_dense_layers() -> None:
    assert products(WIDE, 256) == ((256, 600, 500), (256, 500, 400), (256, 400, 300))
    together = HeadShape(600, 300, (500, 400), 0.0, 1.0, "", kind="set", images=3)
    assert products(together, 256) == ((3 * 256, 600, 500), (256, 500, 300))
    tree = HeadShape(600, 4, (500, 400), 0.0, 1.0, "", kind="separate", parents=((0, 0), (0, 0, 1, 1)))
    two = ((64, 600, 500), (64, 500, 400))
    assert sorted(products(tree, 64)) == sorted((*two, (64, 400, 2), *two, (64, 400, 4)))


def test_a_network_on_trial_stays_as_it_is(log: pytest.LogCaptureFixture) -> None:
    layers = [
        keras.layers.Rescaling(1 / 255),
        keras.layers.Conv2D(8, 3),
        keras.layers.BatchNormalization(),
        keras.layers.GlobalAveragePooling2D(),
    ]
    network = keras.Sequential([keras.Input((16, 16, 3)), *layers])
    before = [weight.copy() for weight in network.get_weights()]
    found = faster_for_network(network)
    assert f"the network is tuned in {found}: on trial a step takes" in log.text
    for was, now in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)
    assert {layer.compute_dtype for layer in network.layers} == {"float32"}


def never() -> str:
    raise AssertionError("a trial")


def test_a_given_precision_needs_no_trial(tmp_path: Path) -> None:
    assert [precision_of(name, never, tmp_path) for name in ("float32", "bfloat16")] == [
        "float32",
        "bfloat16",
    ]
    assert not list(tmp_path.iterdir())


def test_auto_is_what_it_was_when_the_work_began(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    assert precision_of("auto", lambda: "bfloat16", tmp_path / "work") == "bfloat16"
    assert precision_of("auto", never, tmp_path / "work") == "bfloat16"
    assert "the precision is that in which the work began: bfloat16" in log.text
    assert precision_of("auto", lambda: "float32", tmp_path / "other work") == "float32"


class Killed(Exception):
    pass


def test_a_training_killed_in_bfloat16_ends_in_it_where_float32_is_faster_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = records_of(tmp_path, 1)
    bottlenecks = extracted(records, tmp_path)
    sections = CONFIG.model_dump(mode="json")
    sections["train"]["epochs"], sections["head"]["aggregation"] = 4, "mean"  # mean: no second head
    config = Config.model_validate(sections)

    def trained(name: str, fastest: str) -> Artifact:
        monkeypatch.setattr(from_settings, "faster_for_head", lambda shape, batch: fastest)
        return train_head(records, bottlenecks, tmp_path / "store", tmp_path / name, config)

    wanted = trained("wanted", "bfloat16")
    write = checkpoints.Epochs._write

    def write_and_die(self: checkpoints.Epochs, file: Path) -> None:
        write(self, file)
        raise Killed

    with monkeypatch.context() as killing, pytest.raises(Killed):
        killing.setattr(checkpoints.Epochs, "_write", write_and_die)
        trained("found", "bfloat16")
    found = trained("found", "float32")
    assert found.digest == wanted.digest, "the same head, bit for bit"
    assert found.summary["precision"] == "bfloat16"
    assert PRECISION not in found.files
