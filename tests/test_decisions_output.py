"""Where decisions go, part by part: files and folders; tables are in test_decisions_table.py."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from object_store import object_store
from test_decisions import FORMATS, PIECES, WANTED, accepted, rows_of

from features.errors import ShelfmarkError
from features.storage.paths import any_path, sizes
from pipeline.job.decisions_file import (
    FOLDER_MARK,
    SCHEMA,
    decisions_digest,
    read_decisions,
    rejects_beside,
    write_decisions,
)
from pipeline.job.decisions_output import DecisionsOutput, decisions_source, open_output, require_output

PARTS = [pa.Table.from_pandas(piece, SCHEMA, preserve_index=False) for piece in PIECES]
TARGETS = [*FORMATS, "decisions/"]


def write_all(output: DecisionsOutput, parts: list[pa.Table] = PARTS) -> None:
    for number, part in enumerate(parts):
        if number not in output.written():
            output.write(number, part)
    output.finish(len(parts))


def read(target: str, columns: list[str] = SCHEMA.names) -> list[dict[str, Any]]:
    return [row for piece in read_decisions(decisions_source(target), columns) for row in piece.to_pylist()]


def files_below(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in sizes(folder)}


@pytest.mark.parametrize("name", FORMATS)
def test_parts_of_a_file_are_joined_into_what_is_written_at_once(tmp_path: Path, name: str) -> None:
    write_all(open_output(f"{tmp_path}/{name}", "job", tmp_path / "work"))
    write_decisions(PIECES, tmp_path / "at-once" / name)
    assert (tmp_path / name).read_bytes() == (tmp_path / "at-once" / name).read_bytes()
    assert rows_of(tmp_path / name) == WANTED


@pytest.mark.parametrize("name", TARGETS)
def test_a_killed_job_goes_on_and_gives_the_same_bytes(tmp_path: Path, name: str) -> None:
    """Each call opens the target anew, as a process does; parts come in any order."""
    for folder in ("killed", "whole"):
        (tmp_path / folder).mkdir()
    killed = f"{tmp_path}/killed/{name}"
    for number in (2, 0):
        output = open_output(killed, "job", tmp_path / "work")
        output.write(number, PARTS[number])
        assert not any((tmp_path / "killed").iterdir()), "nothing is visible before the end"
    assert open_output(killed, "job", tmp_path / "work").written() == {0, 2}
    write_all(open_output(killed, "job", tmp_path / "work"))
    write_all(open_output(f"{tmp_path}/whole/{name}", "job", tmp_path / "other"))
    assert files_below(tmp_path / "killed") == files_below(tmp_path / "whole")


@pytest.mark.parametrize("name", TARGETS)
def test_finishing_again_changes_nothing(tmp_path: Path, name: str) -> None:
    for _ in range(2):  # killed after the end, before the working directory was removed
        write_all(open_output(f"{tmp_path}/out/{name}", "job", tmp_path / "work"))
        before = files_below(tmp_path / "out")
    assert files_below(tmp_path / "out") == before
    assert read(f"{tmp_path}/out/{name}") == WANTED


@pytest.mark.parametrize("name", TARGETS)
def test_another_job_uses_nothing_of_an_earlier_one(tmp_path: Path, name: str) -> None:
    target = f"{tmp_path}/out/{name}"
    write_all(open_output(target, "last week", tmp_path / "work"))
    output = open_output(target, "this week", tmp_path / "work")
    assert output.written() == frozenset()
    assert read(target) == WANTED, "last week's stay until this week's are finished"
    write_all(output, [PARTS[2]])
    assert [row["product_id"] for row in read(target)] == ["last"]


@pytest.mark.parametrize("name", TARGETS)
def test_a_part_that_is_written_again_is_replaced(tmp_path: Path, name: str) -> None:
    output = open_output(f"{tmp_path}/{name}", "job", tmp_path / "work")
    output.write(0, PARTS[2])
    output.write(0, pa.Table.from_pandas(accepted(["last"]).assign(status="review"), SCHEMA))
    output.finish(1)
    assert [(row["product_id"], row["status"]) for row in read(f"{tmp_path}/{name}")] == [("last", "review")]


@pytest.mark.parametrize("name", TARGETS)
def test_a_missing_part_is_one_error_and_what_was_there_stays(tmp_path: Path, name: str) -> None:
    target = f"{tmp_path}/out/{name}"
    write_all(open_output(target, "last week", tmp_path / "work"))
    before = files_below(tmp_path / "out")
    output = open_output(target, "this week", tmp_path / "work")
    output.write(0, PARTS[0])
    with pytest.raises(ShelfmarkError, match="part 1 is missing; expected parts 0 to 1; run the same"):
        output.finish(2)
    assert files_below(tmp_path / "out") == before


@pytest.mark.parametrize("name", TARGETS)
def test_a_flipped_byte_in_a_part_is_found_and_the_part_is_written_again(tmp_path: Path, name: str) -> None:
    output = open_output(f"{tmp_path}/out/{name}", "job", tmp_path / "work")
    for number, part in enumerate(PARTS):
        output.write(number, part)
    (file,) = (tmp_path / "work").rglob("part-00001.parquet")
    data = bytearray(file.read_bytes())
    data[40] ^= 1  # of a page
    file.write_bytes(data)
    with pytest.raises(ShelfmarkError, match=r"part-00001\.parquet: damaged .* run the same command again"):
        output.finish(3)
    again = open_output(f"{tmp_path}/out/{name}", "job", tmp_path / "work")
    assert again.written() == {0, 2}
    write_all(again)
    assert read(f"{tmp_path}/out/{name}") == WANTED


@pytest.mark.parametrize("name", TARGETS)
def test_no_parts_are_decisions_without_rows(tmp_path: Path, name: str) -> None:
    open_output(f"{tmp_path}/{name}", "job", tmp_path / "work").finish(0)
    assert read(f"{tmp_path}/{name}") == []


def test_parts_and_output_may_be_on_an_object_store() -> None:
    with object_store() as bucket:
        for name in ("d.csv.gz", "decisions/"):
            target, work = f"{bucket}/out/{name}", any_path(f"{bucket}/work/{name}")
            write_all(open_output(target, "job", work))
            assert read(target) == WANTED
            write_all(open_output(target, "next", work), PARTS[:1])
            assert read(target) == WANTED[: len(PARTS[0])]


# Folders


def test_a_folder_is_read_by_what_reads_folders_of_parquet(tmp_path: Path) -> None:
    write_all(open_output(f"{tmp_path}/decisions/", "job", tmp_path / "work"))
    folder = tmp_path / "decisions"
    names = [f"part-0000{number}.parquet" for number in range(3)]
    assert sorted(file.name for file in folder.iterdir()) == [FOLDER_MARK, *names]
    ids = [row["product_id"] for row in WANTED]
    assert pd.read_parquet(folder)["product_id"].tolist() == ids
    assert ds.dataset(folder).to_table()["product_id"].to_pylist() == ids
    assert pq.read_table(folder).to_pylist() == WANTED
    manifest = json.loads((folder / FOLDER_MARK).read_bytes())
    assert manifest["rows"] == len(WANTED) and list(manifest["files"]) == names
    assert manifest["job"] == "job"


def test_a_folder_is_known_without_its_slash(tmp_path: Path) -> None:
    write_all(open_output(f"{tmp_path}/decisions/", "job", tmp_path / "work"))
    write_all(open_output(f"{tmp_path}/decisions", "next", tmp_path / "work"), PARTS[:1])
    assert read(f"{tmp_path}/decisions") == WANTED[: len(PARTS[0])]
    assert [file.name for file in tmp_path.iterdir() if "partial" in file.name] == []


def test_files_that_are_not_ours_are_never_removed(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "part-00000.parquet").write_bytes(b"mine")
    with pytest.raises(ShelfmarkError, match=r"holds part-00000\.parquet, which is not of a folder of"):
        require_output(f"{folder}/")
    write_all(open_output(f"{tmp_path}/ours/", "job", tmp_path / "work"))
    (tmp_path / "ours" / "notes.txt").write_text("mine")
    with pytest.raises(
        ShelfmarkError, match=r"ours: holds notes\.txt, which is not of a folder of decisions"
    ):
        open_output(f"{tmp_path}/ours", "next", tmp_path / "work")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ShelfmarkError, match="a file; expected the name of a folder"):
        require_output(f"{tmp_path}/file/")


def test_a_folder_that_is_half_made_is_not_read(tmp_path: Path) -> None:
    write_all(open_output(f"{tmp_path}/d/", "job", tmp_path / "work"))
    part = tmp_path / "d" / "part-00001.parquet"
    data = part.read_bytes()
    part.write_bytes(data[:-1])
    with pytest.raises(ShelfmarkError, match=r"part-00001\.parquet: [0-9,]+ bytes instead of"):
        read(f"{tmp_path}/d")
    part.unlink()
    with pytest.raises(ShelfmarkError, match=r"part-00001\.parquet: missing; expected a folder that"):
        read(f"{tmp_path}/d")
    (tmp_path / "d" / FOLDER_MARK).write_text("{}")
    with pytest.raises(ShelfmarkError, match="cannot be read; expected a folder that"):
        read(f"{tmp_path}/d")
    (tmp_path / "d" / FOLDER_MARK).unlink()
    with pytest.raises(ShelfmarkError, match=r"d: no _manifest\.json in it; expected a folder that"):
        read(f"{tmp_path}/d")


def test_a_job_that_was_killed_while_it_put_the_folder_together_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at every file that is written, removed or renamed."""
    write_all(open_output(f"{tmp_path}/d/", "last week", tmp_path / "work"))

    class Killed(BaseException):
        pass

    left = [0]

    def counted(method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return method(*args, **kwargs)

        return call

    steps = 0
    while True:
        output = open_output(f"{tmp_path}/d/", "this week", tmp_path / "work")
        for number, part in enumerate(PARTS[:2]):
            output.write(number, part)
        left[0] = steps
        with monkeypatch.context() as patch:
            for name in ("unlink", "rename", "rmdir", "write_bytes"):
                patch.setattr(Path, name, counted(getattr(Path, name)))
            try:
                output.finish(2)
                break
            except Killed:
                steps += 1
        if (tmp_path / "d" / FOLDER_MARK).is_file():
            assert len(read(f"{tmp_path}/d")) in (len(WANTED), len(WANTED) - 1), "whole, or not readable"
    assert steps > 8
    assert read(f"{tmp_path}/d") == WANTED[:-1]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["d", "work"]


# Names


@pytest.mark.parametrize("name", ["decisions.xlsx", "decisions"])
def test_a_target_without_a_format_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ShelfmarkError, match="its suffix is no format; expected"):
        open_output(f"{tmp_path}/{name}", "job", tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_rejects_stand_beside_a_folder(tmp_path: Path) -> None:
    assert rejects_beside(tmp_path / "decisions") == tmp_path / "decisions.rejects.parquet"
    assert rejects_beside(tmp_path / "week.48") == tmp_path / "week.48.rejects.parquet"


def test_digests_change_with_the_decisions(tmp_path: Path) -> None:
    for name in TARGETS:
        digests = []
        for week, parts in enumerate((PARTS, PARTS, PARTS[:2])):
            write_all(open_output(f"{tmp_path}/{week}/{name}", "job", tmp_path / f"work{week}"), parts)
            digests.append(decisions_digest(decisions_source(f"{tmp_path}/{week}/{name}")))
        assert digests[0] == digests[1] != digests[2]
