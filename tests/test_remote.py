"""Sources and workspaces on an object store: the same records, releases and decisions as on the disk."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
from catalogues import documents, draw_products, manifest_rows, photo, write_bson, write_files, write_manifest
from object_store import object_store
from test_retrain import SETTINGS, run_here

from features.storage import object_stores
from features.storage.artifact import find_artifact
from features.storage.paths import AnyPath, any_path, copy_tree, local, read_range, sizes, write_whole
from models.decisions.releases import in_service
from pipeline.cli import main
from pipeline.demo.drawn_catalogue import draw_catalogue
from pipeline.ingest import ingest as ingest_module
from pipeline.ingest.ingest import make_records
from pipeline.job.config import IngestSettings

SMALL = IngestSettings(unit_bytes=16_000, unit_images=25)
PRODUCTS = draw_products({"1": 30, "2": 25, "": 3})


@pytest.fixture(scope="module")
def bucket():
    with object_store() as text:
        yield text


def draw(folder):
    """The same products as a BSON file, a manifest and a folder."""
    write_bson(folder / "a.bson", documents(PRODUCTS))
    write_manifest(folder / "shop" / "b.csv", manifest_rows(folder / "shop", PRODUCTS))
    write_files(folder / "photos", {f"{k}/{n} #é.jpg": photo(50 * k + n) for k in (1, 2) for n in range(22)})
    return folder


@pytest.fixture(scope="module")
def shop(tmp_path_factory, bucket):
    """The sources on the disk, and the same on the object store."""
    here = draw(tmp_path_factory.mktemp("shop"))
    there = any_path(bucket) / "sources"
    copy_tree(here, there)
    return here, there


def contents(records):
    """Digests of the files; not of the inputs, which hold a file's time."""
    return {name: found["sha256"] for name, found in records.files.items()}


@pytest.mark.parametrize("name", ["a.bson", "shop/b.csv", "photos"])
def test_a_remote_source_gives_the_records_that_it_gives_on_the_disk(shop, tmp_path, name):
    here, there = ([str(root / name)] for root in shop)
    wanted = make_records(here, tmp_path / "here", SMALL)
    found = make_records(there, tmp_path / "there", SMALL)
    assert contents(found) == contents(wanted) and found.summary == wanted.summary


def test_a_remote_workspace_holds_the_records_that_a_local_one_holds(shop, tmp_path, bucket):
    source = [str(shop[0] / "a.bson")]
    wanted = make_records(source, tmp_path / "records", SMALL)
    out = any_path(bucket) / "W" / "runs" / "week" / "records"
    found = make_records(source, out, SMALL)
    assert found.digest == wanted.digest and find_artifact(out) == found
    assert sizes(out).keys() == {*wanted.files, "manifest.json"}, "working files are gone"
    assert found.file("products.parquet").read_bytes() == wanted.file("products.parquet").read_bytes()


def test_an_interrupted_remote_ingest_goes_on_and_is_finished_by_its_manifest(
    shop, tmp_path, bucket, monkeypatch
):
    source, out = [str(shop[1] / "a.bson")], any_path(bucket) / "W" / "killed" / "records"
    wanted = make_records(source, tmp_path / "records", SMALL)
    real = ingest_module.write_shards

    def stop(number: int, done: AnyPath, **options):
        if number == 2:
            raise OSError(28, "No space left on device", str(done))
        real(number, done, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ingest_module, "write_shards", stop)
        with pytest.raises(OSError, match="No space left"):
            make_records(source, out, SMALL, beam=("--direct_running_mode=in_memory",))
    assert find_artifact(out) is None
    checked = [name for name in sizes(out) if name.startswith("_look/unit-")]
    assert len(checked) > 3
    first = local(out / checked[0]).read_bytes()
    write_whole(out / "_look" / "unit-99999.parquet", b"stray")
    assert make_records(source, out, SMALL).digest == wanted.digest
    assert not [name for name in sizes(out) if "_look" in name] and first


def test_a_remote_source_has_another_digest_when_a_file_of_it_changes(bucket):
    from pipeline.sources.source import open_source

    folder = any_path(bucket) / "found"
    write_whole(folder / "A" / "1.jpg", photo(1))
    first = open_source(str(folder)).digest()
    assert open_source(str(folder)).digest() == first
    write_whole(folder / "A" / "1.jpg", photo(2) + b"x")
    assert open_source(str(folder)).digest() != first


@pytest.fixture
def behind(bucket, monkeypatch):
    """The options that name the server, behind two dashes; nothing in the environment does."""
    names = {"AWS_ENDPOINT_URL": "endpoint_url", "AWS_ACCESS_KEY_ID": "access_key_id"}
    names |= {"AWS_SECRET_ACCESS_KEY": "secret_access_key", "AWS_DEFAULT_REGION": "region_name"}
    options = [f"--s3_{name}={os.environ[variable]}" for variable, name in names.items()]
    for variable in names:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    return ["--", *options]


def command(*arguments, main="pipeline.cli"):
    """A command in a process of its own, as a user has it: status, standard output, standard error."""
    found = subprocess.run(
        [sys.executable, "-m", main, *arguments], capture_output=True, text=True, check=False
    )
    return found.returncode, found.stdout, found.stderr.splitlines()


def test_an_object_store_of_ones_own_is_named_behind_two_dashes(bucket, shop, tmp_path, behind):
    """Ingest reads and writes there with all its processes; a later stage and clean look there, too."""
    workspace = f"{bucket}/named"
    small = ("--set", "ingest.unit_images=8")
    found = command(
        "ingest", str(shop[1] / "photos"), "--workspace", workspace, "--run", "r", *small, *behind
    )
    assert found[0] == 0, found
    assert any("Z records: products 44, images 44" in line for line in found[2]), found
    status, _, errors = command("report", "--workspace", workspace, "--run", "r", *behind)
    assert (status, errors) == (
        1,
        [
            f"error: {workspace}/runs/r/thresholds: missing; expected the run's finished thresholds; "
            "run `shelfmark calibrate` first"
        ],
    )
    status, output, _ = command("clean", "--workspace", workspace, *behind)
    assert (status, output) == (0, f"{workspace}: 0.0 MB removed\n")
    status, _, errors = command("clean", "--workspace", workspace)
    assert status == 1 and "Unable to locate credentials" in errors[-1], "without the options it is unknown"


def test_the_service_looks_into_the_store_that_is_named_behind_two_dashes(bucket, behind):
    empty = f"{bucket}/nothing"
    at = ("--workspace", empty, "--port", "0")
    status, _, errors = command(*at, *behind, main="serving")
    assert status == 1 and errors[-1].startswith(f"error: {empty}: nothing is in service")
    status, _, errors = command(*at, "--", "--runner=FlinkRunner", main="serving")
    assert status == 2 and "nothing but Beam's options of object stores" in errors[-1]


@pytest.mark.parametrize(
    ("name", "options", "status", "says"),
    [
        ("clean", ["--runner=FlinkRunner"], 2, "'clean' runs nothing on Beam; expected after -- only"),
        ("train", ["stray", "--s3_endpoint_url=x"], 2, "'train' runs nothing on Beam"),
        ("demo", ["--s3_endpoint_url=http://127.0.0.1:1"], 2, "'demo' takes no Beam options"),
        ("clean", ["--s3_endpont_url=http://127.0.0.1:1"], 1, "did you mean --s3_endpoint_url?"),
        ("train", ["--s3_endpoint_url"], 1, "(argument --s3_endpoint_url: expected one argument)"),
        ("clean", ["--s3_endpoint_url=shop"], 1, "Invalid endpoint: shop; expected the store's own address"),
        ("clean", ["--s3_endpoint_url", "http://127.0.0.1:1"], 1, "no answer"),
    ],
)
def test_options_that_cannot_be_are_one_line(
    bucket, behind, capsys, monkeypatch, name, options, status, says
):
    monkeypatch.setattr(object_stores, "_settings", {})
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "else")
    with pytest.raises(SystemExit) as stop:
        main([name, *(["--workspace", f"{bucket}/named"] if name != "demo" else []), "--", *options])
    lines = [line for line in capsys.readouterr().err.splitlines() if "rror: " in line]
    assert stop.value.code == status and len(lines) == 1 and says in lines[0], lines


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_weekly_run_on_an_object_store_gives_the_digests_that_it_gives_on_the_disk(
    bucket, drawn_weights, tmp_path
):
    drawn = draw_catalogue(tmp_path, products=400)
    (tmp_path / "weekly.toml").write_text(SETTINGS.format(weights=drawn_weights))
    common = ["--taxonomy", str(drawn.taxonomy), "--config", str(tmp_path / "weekly.toml"), "--run", "week"]
    digests, decisions = [], []
    for workspace in (tmp_path / "W", any_path(f"{bucket}/weekly")):
        found = ["--workspace", str(workspace)]
        for _ in range(2):  # run again, it finds everything done
            assert run_here("retrain", str(drawn.catalogue), *found, *common)[0] == 0
        assert in_service(workspace / "releases") == "week"
        run = workspace / "runs" / "week"
        kinds = ("records", "bottlenecks", "head", "thresholds", "evaluation", "report", "bundle")
        digests.append({kind: find_artifact(run / kind).digest for kind in kinds})
        assert json.loads(read_range(run / "verdict.json"))["release"]
        output = workspace / "decisions.parquet"
        assert run_here("categorize", str(drawn.catalogue), *found, "--output", str(output))[0] == 0
        decisions.append(pd.read_parquet(local(output)))
    assert digests[0] == digests[1]
    pd.testing.assert_frame_equal(*decisions)
