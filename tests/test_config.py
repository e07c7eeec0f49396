"""Settings: defaults, the file over them, the command line over both; what is refused, and in which words."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from features.errors import ShelfmarkError
from pipeline.job.config import ExtractSettings
from pipeline.job.load_config import load_config


@pytest.fixture
def weekly(tmp_path):
    def write(text):
        file = tmp_path / "weekly.toml"
        file.write_text(text)
        return file

    return write


def refusal(*args, **options):
    with pytest.raises(ShelfmarkError) as caught:
        load_config(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_recipe_paper_is_that_of_the_paper():
    config = load_config(sets=("head.recipe=paper",))
    found = config.training()
    assert (found["learning_rate"], found["decay"], found["schedule"]) == (0.1, 7e-5, "inverse_time")
    assert [found[name] for name in ("momentum", "weight_decay", "label_smoothing", "mixup")] == [0, 0, 0, 0]
    assert (config.head.hidden, found["batch"], found["imbalance"]) == ((1024, 1024), 256, "none")
    assert (config.head.dropout, found["second_dropout"], config.loss()) == (0.5, 0, "cross_entropy")
    assert (config.calibration.precision, config.ingest.min_products) == (0.9, 20)


def test_a_setting_of_train_is_over_the_recipe_and_the_digest_knows_the_outcome_alone():
    given = load_config(sets=("train.momentum=0.5",))
    assert given.training() == load_config().training() | {"momentum": 0.5}
    momentum = load_config().training()["momentum"]
    assert load_config(sets=(f"train.momentum={momentum}",)).of_the_head() == load_config().of_the_head()
    assert load_config(sets=("head.recipe=paper",)).of_the_head() != load_config().of_the_head()
    assert load_config(sets=("head.loss=summed",)).of_the_head() == load_config().of_the_head()


def test_file_is_over_the_defaults_options_over_the_file_and_set_over_all(weekly):
    file = weekly("seed = 1\n[train]\nepochs = 3\nbatch = 4\n[calibration]\nprecision = 0.8\n")
    options = {"seed": 2, "backbone.image_size": 139, "backbone.name": None}
    config = load_config(file, ("train.epochs=5", "seed = 6"), options)
    assert (config.train.epochs, config.train.batch, config.seed) == (5, 4, 6)
    assert (config.calibration.precision, config.train.patience) == (0.8, None)
    assert (config.backbone.image_size, config.backbone.name) == (139, "inception_v3")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("backbone.weights=random", "random"),
        ("backbone.weights='random'", "random"),
        ("backbone.weights=../my weights=1.weights.h5", str(Path.cwd() / "../my weights=1.weights.h5")),
    ],
)
def test_set_takes_a_bare_word_as_text(text, wanted):
    assert load_config(sets=(text,)).backbone.weights == wanted


def test_weights_in_a_file_are_found_from_the_file_and_elsewhere_from_here(tmp_path, monkeypatch):
    (tmp_path / "weekly.toml").write_text('[backbone]\nweights = "nets/a.weights.h5"\n')
    monkeypatch.chdir(tmp_path.parent)
    assert load_config(tmp_path / "weekly.toml").backbone.weights == str(tmp_path / "nets" / "a.weights.h5")
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("weekly.toml")).backbone.weights == str(tmp_path / "nets" / "a.weights.h5")
    for options in ({"sets": ("backbone.weights=a.h5",)}, {"options": {"backbone.weights": "a.h5"}}):
        assert load_config(**options).backbone.weights == str(tmp_path / "a.h5")
    (tmp_path / "weekly.toml").write_text('[backbone]\nname = "nets/own.onnx@a/b+c"\n')
    assert load_config(tmp_path / "weekly.toml").backbone.name == str(tmp_path / "nets" / "own.onnx@a/b+c")
    for name in ("hub:presets/siglip", "own.onnx", "mobilenet@conv1"):
        kind, path = ("hub:", name[4:]) if name.startswith("hub:") else ("", name)
        wanted = name if name.startswith("mobilenet") else f"{kind}{tmp_path / path}"
        assert load_config(options={"backbone.name": name}).backbone.name == wanted
    table = load_config(sets=('backbone={weights="a.h5", image_size=75}',)).backbone
    assert (table.weights, table.image_size) == (str(tmp_path / "a.h5"), 75)
    for kept in ("imagenet", "random", "s3://bucket/a.h5", "file:///a.h5", "/a.h5"):
        assert load_config(sets=(f"backbone.weights={kept}",)).backbone.weights == kept


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_settings_saved_by_an_editor_of_windows_are_read(tmp_path, encoding):
    (tmp_path / "weekly.toml").write_bytes("# Café\r\n[train]\r\nepochs = 7\r\n".encode(encoding))
    assert load_config(tmp_path / "weekly.toml").train.epochs == 7


def test_set_reads_values_as_toml():
    config = load_config(sets=("head.hidden=[64, 32]", "train.learning_rate=1e-2", "train.epochs=1_000"))
    assert (config.head.hidden, config.train.learning_rate, config.train.epochs) == ((64, 32), 0.01, 1000)


def test_unknown_section_is_reported_with_what_was_probably_meant(weekly):
    file = weekly("[calibraton]\nprecision = 0.8\n")
    assert refusal(file) == f"{file}: unknown section 'calibraton'. Did you mean 'calibration'?"


def test_unknown_setting_is_reported_with_its_section_and_what_was_probably_meant(weekly):
    file = weekly("[calibration]\nprecison = 0.8\n")
    assert refusal(file) == f"{file} [calibration]: unknown setting 'precison'. Did you mean 'precision'?"


def test_unknown_setting_that_is_like_none_is_reported_with_those_known():
    message = refusal(sets=("extract.zzz=1",))
    assert message == "--set extract.zzz=1 [extract]: unknown setting 'zzz'. " + (
        "Known: engine, precision, batch, shard_images, quality, views, flip, asked, combine, cascade."
    )


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("train.epochs=0", "train.epochs = 0"),
        ("train.epochs=1.5", "train.epochs = 1.5"),
        ("train.epochs=true", "train.epochs = True"),
        ("train.epochs=many", "train.epochs = 'many'"),
        ("train.learning_rate=inf", "train.learning_rate = inf"),
        ("train.learning_rate=nan", "train.learning_rate = nan"),
        ("calibration.precision=1", "calibration.precision = 1"),
        ("head.hidden=[1024]", "head.hidden = [1024]"),
        ("backbone.image_size=16", "backbone.image_size = 16"),
        ("ingest.max_rejected=1.1", "ingest.max_rejected = 1.1"),
        ("seed=-1", "seed = -1"),
    ],
)
def test_wrong_values_are_reported_with_the_setting_and_the_reason(text, setting):
    message = refusal(sets=(text,))
    assert message.startswith(f"--set {text}: {setting}: ") and message.endswith("; correct the setting")


@pytest.mark.parametrize(("value", "message"), [("128", "128"), ("[64]", "[64]"), ("[8,8,8]", "[8, 8, 8]")])
def test_one_number_or_three_for_the_two_hidden_layers_get_an_error_that_says_what_was_expected(
    value, message
):
    assert refusal(sets=(f"head.hidden={value}",)) == (
        f"--set head.hidden={value}: head.hidden = {message}: expected two numbers, as in [1024,1024]; "
        "correct the setting"
    )


def test_a_value_for_a_whole_section_is_refused():
    assert refusal(sets=("train=3",)) == (
        "--set train=3: train is a section; expected section.name=value; correct the setting"
    )


def test_settings_that_do_not_go_together_are_reported_without_the_whole_section():
    assert refusal(sets=("head.kind=taxonnet", "head.loss=soft_tree")) == (
        "--set head.loss=soft_tree: head: loss soft_tree is for kind flat; "
        "a taxonnet head has the tree in its outputs; correct the setting"
    )


def test_a_wrong_option_is_reported_by_its_name_on_the_command_line():
    assert refusal(options={"backbone.image_size": 5000}).startswith(
        "--image-size: backbone.image_size = 5000: "
    )


def test_set_without_a_value_or_into_no_section_is_refused():
    assert "no '='; expected section.name=value" in refusal(sets=("train.epochs",))
    assert "'seed' is no section" in refusal(sets=("seed.x=1",), options={"seed": 3})
    assert "unknown section 'a'" in refusal(sets=("a.b.c=1",))


def test_a_file_that_is_not_toml_is_reported_by_name_and_line(weekly):
    file = weekly("[train]\nepochs = = 3\n")
    assert refusal(file).startswith(f"{file}: not TOML: ") and "line 2" in refusal(file)
    file.write_bytes(b"# \xff\n")
    assert refusal(file).startswith(f"{file}: not TOML: ")


def test_a_file_that_is_not_there_is_reported_by_name(tmp_path):
    missing = tmp_path / "weekly.toml"
    assert refusal(missing) == (
        f"{missing}: No such file or directory; expected a TOML file of settings; check --config"
    )
    assert refusal(tmp_path).startswith(f"{tmp_path}: Is a directory; ")


def test_settings_of_the_run_so_far_take_the_place_of_the_defaults(weekly):
    saved = load_config(sets=("train.epochs=3", "head.hidden=[64,32]", "seed=7")).model_dump(mode="json")
    before = load_config(base=saved)
    config = load_config(weekly("[train]\nbatch = 9\n"), ("head.dropout=0.1",), base=saved)
    assert (before.train.epochs, before.head.hidden, before.seed) == (3, (64, 32), 7)
    assert (config.train.epochs, config.train.batch, config.head.hidden) == (3, 9, (64, 32))
    assert load_config(base=saved) == before, "the saved settings were changed in passing"


def test_settings_of_a_run_that_are_unknown_now_are_reported_as_the_runs():
    assert refusal(base={"train": {"epoch": 3}}).startswith("the run's config.json [train]: unknown setting")


def test_a_section_where_the_run_has_a_number_is_refused(weekly):
    assert "seed" in refusal(weekly("[seed]\nx = 1\n"), base={"seed": 3})


def test_settings_are_frozen():
    config = load_config()
    with pytest.raises(ValidationError):
        config.seed = 1
    with pytest.raises(ValidationError):
        config.train.epochs = 1


def test_aggregation_is_a_matter_of_calibration_and_of_training_only_whether_there_is_a_set_head():
    by_default, largest, together = (
        load_config(sets=(f"head.aggregation={name}",)) for name in ("auto", "max", "set")
    )
    assert "aggregation" not in by_default.of_the_head()["head"]
    assert by_default.of_the_head() == together.of_the_head() != largest.of_the_head()
    assert load_config(sets=("head.aggregation=mean",)).of_the_head() == largest.of_the_head()
    assert by_default.of_the_thresholds() != together.of_the_thresholds()


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (("head.kind=fcm",), "head.kind = 'fcm': input should be 'flat', 'separate', 'multitask'"),
        (("head.kind=taxonnet", "head.loss=soft_tree"), "loss soft_tree is for kind flat"),
        (("head.kind=multitask", "head.loss=hierarchical"), "loss hierarchical is for kind flat"),
        (("head.level_weights=[1, 2]",), "level_weights are for heads of several levels"),
        (("head.soft_beta=-1",), "head.soft_beta = -1"),
        (("head.kind=multitask", "head.level_weights=[0,0]"), "level_weights are all 0"),
    ],
)
def test_settings_of_the_head_that_do_not_go_together_are_refused(sets, message):
    assert message in refusal(sets=sets)


@pytest.mark.parametrize("order", [1, -1])
def test_settings_are_checked_together_whatever_their_order(order):
    base = load_config(sets=("head.kind=multitask", "head.level_weights=[1,2]")).model_dump(mode="json")
    sets = ("head.kind=flat", "head.loss=hierarchical", "head.level_weights=")[::order]
    head = load_config(sets=sets, base=base).head
    assert (head.kind, head.loss, head.level_weights) == ("flat", "hierarchical", None)


def test_nothing_behind_the_equals_sign_is_the_default():
    base = load_config(sets=("train.epochs=7", "seed=3", "extract.flip=true")).model_dump(mode="json")
    config = load_config(sets=("train.epochs=", "seed=", "extract.flip= "), base=base)
    assert config == load_config()
    assert config.training()["epochs"] == 150
    assert refusal(sets=("train.epoch=",)).startswith("--set train.epoch= [train]: unknown setting 'epoch'.")
    assert "unknown section 'trian'" in refusal(sets=("trian.epochs=",))


def test_a_conflict_names_the_last_that_was_said(tmp_path):
    file = tmp_path / "weekly.toml"
    file.write_text('[head]\nkind = "multitask"\n')
    assert refusal(file, ("head.loss=hierarchical",)).startswith("--set head.loss=hierarchical: head: loss")
    base = load_config(sets=("head.loss=hierarchical",)).model_dump(mode="json")
    assert refusal(file, base=base).startswith(f"{file}: head: loss hierarchical is for kind flat")
    assert load_config(file, ("head.loss=",), base=base).head.kind == "multitask"


def test_settings_for_speed_alone_do_not_matter_to_the_result():
    assert (
        ExtractSettings(batch=7, engine="jax").that_matter()
        == ExtractSettings().that_matter()
        == {"quality": "fast", "views": None, "flip": None, "asked": (), "combine": "apart"}
    )
    assert load_config().ingest.that_matter() == {
        "min_products": 20, "val_share": 0.1, "test_share": 0.1, "least_test": 10, "sellers_apart": 0.0,
        "max_rejected": 0.1, "max_pixels": 50_000_000, "placeholder_products": 100,
        "unit_bytes": 32 * 2**20, "unit_images": 2000, "min_known": 0.05,
        "csv_delimiter": None, "csv_encoding": None, "urls": "public",
    }  # fmt: skip
