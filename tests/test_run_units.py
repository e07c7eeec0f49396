"""Units, with Beam and without: each once, none twice, and an error in a worker comes out as what it is."""

import errno
import subprocess
import sys
import traceback
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.errors import ShelfmarkError
from pipeline.beam.run_units import run_units, unit_file, write_table

CORES = ()  # without options, and without Beam
IN_MEMORY = ("--direct_running_mode=in_memory",)


def write_text(unit, file):
    file.write_text(f"{unit}")


def found(folder):
    return {file.name: file.read_text() for file in folder.iterdir()}


@pytest.mark.parametrize("beam", [CORES, IN_MEMORY], ids=["cores", "in_memory"])
def test_every_unit_is_done_whatever_runs_it(tmp_path, beam):
    units = [{"name": "a"}, ("b", 2), None, 4]
    run_units("test", units, write_text, tmp_path / "done", beam)
    wanted = {f"unit-0000{number}.parquet": f"{unit}" for number, unit in enumerate(units)}
    assert found(tmp_path / "done") == wanted


def test_finished_units_are_skipped_and_leftovers_of_an_interruption_count_for_nothing(tmp_path):
    for number in (0, 2):
        unit_file(tmp_path, number).write_text("done before")
    (tmp_path / "unit-00001.parquet.tmp").write_text("half")
    run_units("test", ["a", "b", "c", "d"], write_text, tmp_path, IN_MEMORY)
    assert [unit_file(tmp_path, number).read_text() for number in range(4)] == [
        "done before",
        "b",
        "done before",
        "d",
    ]
    assert len(found(tmp_path)) == 4


def test_without_anything_to_do_no_pipeline_runs(tmp_path, monkeypatch):
    import apache_beam

    monkeypatch.setattr(apache_beam, "Pipeline", None)
    unit_file(tmp_path, 0).write_text("done before")
    run_units("test", ["a"], write_text, tmp_path, IN_MEMORY)
    run_units("test", [], write_text, tmp_path / "new", IN_MEMORY)
    assert found(tmp_path / "new") == {}


def full_disk(unit, file):
    if unit == "b":
        raise OSError(errno.ENOSPC, "No space left on device", '/a disk/it\'s "full".parquet')
    file.write_text(unit)


def bad_input(unit, file):
    if unit == "b":
        try:
            raise FileNotFoundError(errno.ENOENT, "No such file", "a.jpg")
        except OSError as error:
            raise ShelfmarkError('a.jpg: "gone";\tœuvre expected') from error
    file.write_text(unit)


def fault(unit, file):
    if unit == "b":
        raise KeyError("seller")
    file.write_text(unit)


@pytest.mark.parametrize("beam", [CORES, IN_MEMORY], ids=["cores", "in_memory"])
def test_an_error_of_the_system_in_a_worker_comes_out_with_its_file(tmp_path, capfd, beam):
    with pytest.raises(OSError) as caught:
        run_units("test", ["a", "b", "c"], full_disk, tmp_path, beam)
    assert type(caught.value) is OSError and caught.value.errno == errno.ENOSPC
    assert caught.value.strerror == "No space left on device"
    assert caught.value.filename == '/a disk/it\'s "full".parquet'
    assert "Traceback" not in capfd.readouterr().err, "the runner's own report is 500 lines long"
    assert not unit_file(tmp_path, 1).exists()


@pytest.mark.parametrize("beam", [CORES, IN_MEMORY], ids=["cores", "in_memory"])
def test_bad_input_in_a_worker_comes_out_as_it_is(tmp_path, beam):
    with pytest.raises(ShelfmarkError) as caught:
        run_units("test", ["a", "b", "c"], bad_input, tmp_path, beam)
    assert str(caught.value) == 'a.jpg: "gone";\tœuvre expected'


@pytest.mark.parametrize(
    ("beam", "wanted"),
    [(CORES, KeyError("seller")), (IN_MEMORY, RuntimeError("KeyError: 'seller'"))],
    ids=["cores", "in_memory"],
)
def test_another_error_in_a_worker_comes_out_in_one_line_and_its_traceback_can_be_found(
    tmp_path, beam, wanted
):
    with pytest.raises(type(wanted)) as caught:
        run_units("test", ["a", "b", "c"], fault, tmp_path, beam)
    assert str(caught.value) == str(wanted)
    shown = "".join(traceback.format_exception(caught.value))
    assert "in fault" in shown, "with --debug the worker's traceback is shown"


def test_a_runner_that_beam_does_not_know_is_refused(tmp_path):
    with pytest.raises(ShelfmarkError, match=r"Beam refused --runner=Foo \(Unexpected pipeline runner: Foo"):
        run_units("test", ["a"], write_text, tmp_path, ("--runner=Foo",))


def test_beams_worker_processes_are_refused(tmp_path):
    with pytest.raises(ShelfmarkError, match=r"multi_processing: Beam waits for ever .*leave it out"):
        run_units("test", ["a"], write_text, tmp_path, ("--direct_running_mode=multi_processing",))
    assert found(tmp_path) == {}


def test_without_options_beam_is_not_imported(tmp_path):
    code = (
        "import sys; from pathlib import Path; from pipeline.beam.run_units import run_units; "
        "from test_run_units import write_text; "
        f"run_units('test', ['a', 'b', 'c'], write_text, Path({str(tmp_path)!r}), ()); "
        "print({name.partition('.')[0] for name in sys.modules} & {'apache_beam', 'tensorflow'})"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    assert (ran.stdout, ran.stderr) == ("set()\n", ""), ran
    assert len(found(tmp_path)) == 3


def test_an_error_of_the_runner_comes_out_as_it_is(tmp_path):
    unpicklable = (number for number in range(3))
    with pytest.raises(RuntimeError, match="Unable to pickle"):
        run_units("test", ["a"], lambda unit, file: next(unpicklable), tmp_path, IN_MEMORY)


def test_a_table_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_table(pa.table({"a": [1, 2]}), tmp_path / "t.parquet")

    def half(table, file):
        file.write_bytes(b"PAR1")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", half)
    for name in ("t.parquet", "u.parquet"):
        with pytest.raises(OSError):
            write_table(pa.table({"a": [3]}), tmp_path / name)
    assert pq.read_table(tmp_path / "t.parquet").to_pydict() == {"a": [1, 2]}
    assert not (tmp_path / "u.parquet").exists()
