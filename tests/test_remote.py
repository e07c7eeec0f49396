"""Sources and workspaces on an object store: the same records, releases and decisions as on the disk."""

import json
import os
import subprocess
import sys
from unittest import mock

import pandas as pd
import pytest
from catalogues import documents, draw_products, manifest_rows, photo, write_bson, write_files, write_manifest
from object_store import object_store
from test_retrain import SETTINGS, run_here

from features.artifact import find_artifact
from features.files import Place, copy_tree, local, place, read_range, sizes, write_whole
from models.releases import in_service
from pipeline import ingest as ingest_module
from pipeline.config import Ingest
from pipeline.drawing import draw_catalogue
from pipeline.ingest import ingest

SMALL = Ingest(unit_bytes=16_000, unit_images=25)
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
    there = place(bucket) / "sources"
    copy_tree(here, there)
    return here, there


def contents(records):
    """Digests of the files; not of the inputs, which tell a file's time."""
    return {name: told["sha256"] for name, told in records.files.items()}


@pytest.mark.parametrize("name", ["a.bson", "shop/b.csv", "photos"])
def test_a_remote_source_gives_the_records_that_it_gives_on_the_disk(shop, tmp_path, name):
    here, there = ([str(root / name)] for root in shop)
    wanted = ingest(here, tmp_path / "here", SMALL)
    found = ingest(there, tmp_path / "there", SMALL)
    assert contents(found) == contents(wanted) and found.summary == wanted.summary


def test_a_remote_workspace_holds_the_records_that_a_local_one_holds(shop, tmp_path, bucket):
    source = [str(shop[0] / "a.bson")]
    wanted = ingest(source, tmp_path / "records", SMALL)
    out = place(bucket) / "W" / "runs" / "week" / "records"
    found = ingest(source, out, SMALL)
    assert found.digest == wanted.digest and find_artifact(out) == found
    assert sizes(out).keys() == {*wanted.files, "manifest.json"}, "working files are gone"
    assert found.file("products.parquet").read_bytes() == wanted.file("products.parquet").read_bytes()


def test_an_interrupted_remote_ingest_goes_on_and_is_finished_by_its_manifest(
    shop, tmp_path, bucket, monkeypatch
):
    source, out = [str(shop[1] / "a.bson")], place(bucket) / "W" / "killed" / "records"
    wanted = ingest(source, tmp_path / "records", SMALL)
    real = ingest_module.write_unit

    def stop(number: int, done: Place, **options):
        if number == 2:
            raise OSError(28, "No space left on device", str(done))
        real(number, done, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ingest_module, "write_unit", stop)
        with pytest.raises(OSError, match="No space left"):
            ingest(source, out, SMALL, beam=("--direct_running_mode=in_memory",))
    assert find_artifact(out) is None
    looked = [name for name in sizes(out) if name.startswith("_look/unit-")]
    assert len(looked) > 3
    first = local(out / looked[0]).read_bytes()
    write_whole(out / "_look" / "unit-99999.parquet", b"stray")
    assert ingest(source, out, SMALL).digest == wanted.digest
    assert not [name for name in sizes(out) if "_look" in name] and first


def test_a_remote_source_is_told_otherwise_when_a_file_of_it_changes(bucket):
    from pipeline.sources.source import open_source

    folder = place(bucket) / "told"
    write_whole(folder / "A" / "1.jpg", photo(1))
    first = open_source(str(folder)).digest()
    assert open_source(str(folder)).digest() == first
    write_whole(folder / "A" / "1.jpg", photo(2) + b"x")
    assert open_source(str(folder)).digest() != first


def test_an_object_store_of_ones_own_is_named_behind_two_dashes(bucket, shop, tmp_path):
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    with mock.patch.dict(os.environ, {"AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1"}):
        options = [f"--s3_endpoint_url={endpoint}", "--s3_region_name=us-east-1"]
        options += [
            f"--s3_access_key_id={os.environ[keys[0]]}",
            f"--s3_secret_access_key={os.environ[keys[1]]}",
        ]
        for name in ("AWS_ENDPOINT_URL", *keys):
            del os.environ[name]
        workspace = ["--workspace", f"{bucket}/named", "--run", "r"]

        def shelfmark(*arguments, behind=options):
            code = "import sys; from pipeline.cli import main; main(sys.argv[1:])"
            command = [
                sys.executable,
                "-c",
                code,
                *arguments,
                *workspace[: 2 if arguments[0] == "clean" else 4],
            ]
            return subprocess.run([*command, "--", *behind], capture_output=True, text=True, check=False)

        ingested = shelfmark("ingest", str(shop[1] / "photos"))
        assert ingested.returncode == 0, ingested.stderr
        assert "train" in ingested.stderr
        for command in ("report", "clean"):  # one that needs more than there is, one that does not
            found = shelfmark(command)
            assert "missing; expected the run's finished" in found.stderr or found.returncode == 0, (
                found.stderr
            )
        refused = shelfmark("clean", behind=["--runner=FlinkRunner"])
        assert refused.returncode == 2 and "'clean' runs nothing on Beam" in refused.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_weekly_run_on_an_object_store_gives_the_digests_that_it_gives_on_the_disk(
    bucket, tmp_path
):
    drawn = draw_catalogue(tmp_path, products=400)
    (tmp_path / "weekly.toml").write_text(SETTINGS)
    common = ["--taxonomy", str(drawn.taxonomy), "--config", str(tmp_path / "weekly.toml"), "--run", "week"]
    digests, decisions = [], []
    for workspace in (tmp_path / "W", place(f"{bucket}/weekly")):
        told = ["--workspace", str(workspace)]
        for _ in range(2):  # run again, it finds everything done
            assert run_here("retrain", str(drawn.catalogue), *told, *common)[0] == 0
        assert in_service(workspace / "releases") == "week"
        run = workspace / "runs" / "week"
        kinds = ("records", "bottlenecks", "head", "thresholds", "evaluation", "report", "bundle")
        digests.append({kind: find_artifact(run / kind).digest for kind in kinds})
        assert json.loads(read_range(run / "verdict.json"))["better"]
        output = workspace / "decisions.parquet"
        assert run_here("categorize", str(drawn.catalogue), *told, "--output", str(output))[0] == 0
        decisions.append(pd.read_parquet(local(output)))
    assert digests[0] == digests[1]
    pd.testing.assert_frame_equal(*decisions)
