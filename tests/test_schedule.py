"""The examples of docs/scheduling.md, each read by its own tool; their commands by the command line."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import click
import pytest
import yaml

from pipeline.cli import shelfmark

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "schedule"
MONDAY = datetime(2026, 11, 23, 2)


def crontab() -> list[tuple[str, str]]:
    """The jobs: when, and the command."""
    lines = [line for line in (EXAMPLES / "crontab").read_text().splitlines() if re.match(r"[\d*]", line)]
    return [(" ".join(fields[:5]), fields[5]) for fields in (line.split(maxsplit=5) for line in lines)]


def unit(name: str) -> dict[str, dict[str, str]]:
    """A systemd unit: section → name → value, the last one of several."""
    found: dict[str, dict[str, str]] = {}
    for line in (EXAMPLES / name).read_text().splitlines():
        if header := re.fullmatch(r"\[(\w+)\]", line):
            section = found.setdefault(header[1], {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section[key] = value
    return found


def cronjob() -> dict:
    return yaml.safe_load((EXAMPLES / "cronjob.yaml").read_text())


def container() -> dict:
    (found,) = cronjob()["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    return found


def commands() -> dict[str, list[str]]:
    """Every command of shelfmark in the examples, by where it stands."""
    found = {
        "service": shlex.split(unit("shelfmark-retrain.service")["Service"]["ExecStart"]),
        "cronjob": container()["args"],
    }
    texts = {f"crontab {number}": job for number, (_, job) in enumerate(crontab())}
    texts["dag"] = (EXAMPLES / "airflow_dag.py").read_text()
    for name, text in texts.items():
        for number, command in enumerate(re.findall(r'\bshelfmark (?:retrain|categorize) [^"}|]*', text)):
            found[f"{name} {number}"] = shlex.split(command.partition(" 2>")[0])
    return found


def test_every_command_of_the_examples_is_one_of_ours():
    found = commands()
    assert len(found) == 6
    for name, (program, *arguments) in found.items():
        assert Path(program).name == "shelfmark", name
        command = shelfmark.commands[arguments[0]]
        assert isinstance(command, click.Command)
        command.make_context(arguments[0], arguments[1:])  # raises where an option is unknown


def test_the_crontab_starts_when_it_says():
    cronsim = pytest.importorskip("cronsim")
    (weekly, _), (daily, _) = crontab()
    starts = cronsim.CronSim(weekly, datetime(2026, 11, 20))
    assert [next(starts), next(starts)] == [MONDAY, datetime(2026, 11, 30, 2)]
    assert next(cronsim.CronSim(daily, datetime(2026, 11, 20))) == datetime(2026, 11, 20, 4)


@pytest.mark.parametrize("status", [0, 3])
def test_a_job_of_the_crontab_prints_one_line_and_the_log_where_the_status_is_not_zero(tmp_path, status):
    _, command = crontab()[0]
    (tmp_path / "shelfmark").write_text(f"#!/bin/sh\necho result\necho log >&2\nexit {status}\n")
    (tmp_path / "shelfmark").chmod(0o755)
    command = command.replace("/srv/shop", str(tmp_path))
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("result\n" if status == 0 else "result\nlog\n", "")


def test_the_page_shows_the_line_of_the_crontab():
    assert crontab()[0][1] in (ROOT / "docs" / "scheduling.md").read_text()


def test_systemd_takes_the_units(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze here")
    for file in EXAMPLES.glob("shelfmark-retrain.*"):
        text = file.read_text().replace("/opt/shelfmark/bin/shelfmark", sys.executable)
        (tmp_path / file.name).write_text(text.replace("User=shelfmark", "User=root"))
    verify = ["systemd-analyze", "verify", "--man=no", *map(str, tmp_path.glob("shelfmark-retrain.*"))]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "shelfmark-retrain" in line]
    assert (done.returncode, ours) == (0, [])
    when = unit("shelfmark-retrain.timer")["Timer"]["OnCalendar"]
    calendar = ["systemd-analyze", "calendar", "--base-time=2026-11-20 00:00:00 UTC", when]
    found = subprocess.run(
        calendar, capture_output=True, text=True, check=True, env={"TZ": "UTC", "PATH": "/usr/bin"}
    )
    assert "Mon 2026-11-23 02:00:00" in found.stdout


def test_the_service_treats_every_exit_status_as_the_page_says():
    service = unit("shelfmark-retrain.service")["Service"]
    assert service["SuccessExitStatus"].split() == ["3"]
    assert service["RestartPreventExitStatus"].split() == ["1", "2", "4"]  # 75, 143 and 137 are tried again
    assert int(service["TimeoutStopSec"]) > 5


def test_kubernetes_takes_the_cronjob():
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    kubernetes_validate.validate(cronjob(), "1.33", strict=True)
    job = cronjob()["spec"]["jobTemplate"]["spec"]
    rules = [
        rule["onExitCodes"]["values"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule
    ]
    assert rules == [[1, 2, 3, 4]]
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy needs it
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] > 5
    assert container()["name"] == job["podFailurePolicy"]["rules"][1]["onExitCodes"]["containerName"]
    wrong = cronjob()
    wrong["spec"]["jobTemplate"]["spec"]["backofLimit"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.33", strict=True)


IMPORT = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
assert bag.import_errors == {}, bag.import_errors
(dag,) = bag.dags.values()
tasks = {task.task_id: task for task in dag.tasks}
json.dump({
    "dag": dag.dag_id,
    "after": sorted(tasks["categorize"].upstream_task_ids),
    "skip": list(tasks["retrain"].skip_on_exit_code),
    "rule": tasks["categorize"].trigger_rule.value,
    "schedule": dag.schedule,
}, open(sys.argv[2], "w"))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_airflow_imports_the_dag(tmp_path):
    uv = Path(sys.executable).with_name("uv")
    uv_or_path = str(uv) if uv.exists() else shutil.which("uv")
    if not uv_or_path:
        pytest.skip("no uv here")
    environment = os.environ | {"UV_SYSTEM_CERTS": "true", "AIRFLOW_HOME": str(tmp_path / "home")}
    environment |= {"AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    if index := os.environ.get("PIP_INDEX_URL"):
        environment.setdefault("UV_DEFAULT_INDEX", index)
    environment.pop("PYTHONPATH", None)
    python = str(tmp_path / "venv" / "bin" / "python")
    for command in (
        [uv_or_path, "venv", "--quiet", "--python", sys.executable, str(tmp_path / "venv")],
        [uv_or_path, "pip", "install", "--quiet", "--python", python, "apache-airflow>=3,<4"],
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"Airflow cannot be had here: {done.stderr.strip()[-300:]}")
    (tmp_path / "dags").mkdir()
    shutil.copy(EXAMPLES / "airflow_dag.py", tmp_path / "dags")
    command = [python, "-c", IMPORT, str(tmp_path / "dags"), str(tmp_path / "found.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert json.loads((tmp_path / "found.json").read_text()) == {
        "dag": "shelfmark_weekly",
        "after": ["retrain"],
        "skip": [3],
        "rule": "all_done",
        "schedule": "0 2 * * 1",
    }
