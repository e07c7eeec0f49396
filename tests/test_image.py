"""Dockerfile, .dockerignore and compose.yaml: what they name exists, and all of it runs.

always            what the files say, beside the command line, setup.cfg and the locks
make test-image   the steps of the build in a clean directory, without an engine: an unprivileged user then
                  trains and serves with what they have installed; the same in real containers, by Podman
"""

import importlib.metadata
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from functools import cache
from json import loads
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_retrain import SETTINGS

from pipeline.cli import shelfmark
from pipeline.demo.drawn_catalogue import draw_catalogue
from serving.__main__ import serve

ROOT = Path(__file__).parents[1]
NOBODY = 65534
BASE, IMAGE = "localhost/shelfmark-test-base", "localhost/shelfmark-test"
STAGES = ["packages", "code", "jobs", "serve", ""]
LIMIT = 300  # s, until a container is ready: computers that test are busy

# What is written


@cache
def instructions() -> dict[str, list[tuple[str, str]]]:
    """The Dockerfile: stage → its instructions as (keyword, text), in order; before the first FROM: ""."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    found: dict[str, list[tuple[str, str]]] = {"global": []}
    stage = "global"
    for line in filter(str.strip, lines):
        keyword, _, rest = line.strip().partition(" ")
        if keyword == "FROM":
            stage = rest.partition(" AS ")[2]
            found[stage] = []
        found[stage].append((keyword, rest.strip()))
    return found


def texts(stage: str, keyword: str) -> list[str]:
    return [text for found, text in instructions()[stage] if found == keyword]


def environment(*stages: str) -> dict[str, str]:
    """The variables of ENV, and the defaults of ARG."""
    pairs = [
        word.partition("=")
        for stage in stages
        for keyword, text in instructions()[stage]
        if keyword in ("ENV", "ARG")
        for word in shlex.split(text)
    ]
    return {name: value for name, _, value in pairs}


def command(stage: str) -> list[str]:
    (found,) = texts(stage, "CMD")
    return loads(found)


def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


def settings() -> ConfigParser:
    found = ConfigParser()
    found.read(ROOT / "setup.cfg")
    return found


def pins(name: str) -> dict[str, str]:
    """The packages of a lock, with their versions."""
    return dict(re.findall(r"^([a-z0-9.-]+)==([^ ;]+)", (ROOT / name).read_text(), re.MULTILINE))


def parse(words: list[str]) -> None:
    """Reads a command line as the program does; raises where an option is unknown or a value is wrong."""
    program, *arguments = words
    if program == "shelfmark-serve":
        serve.make_context(program, arguments)
    else:
        assert program == "shelfmark"
        found = shelfmark.commands[arguments[0]]
        found.make_context(arguments[0], arguments[1:])


def test_every_command_of_the_image_and_of_compose_is_one_of_ours():
    assert command("jobs") == ["shelfmark", "--help"]
    services = compose()["services"]
    for words in (command("serve"), services["retrain"]["command"], services["serve"]["command"]):
        parse(words)
    with pytest.raises(click.UsageError):
        parse([*command("serve"), "--no-such-option"])


def test_the_image_that_is_built_by_default_has_no_health_check_and_the_service_has_one():
    assert list(instructions()) == ["global", *STAGES]
    assert texts("", "FROM") == ["jobs"]
    assert texts("serve", "FROM")[0].startswith("jobs ")
    assert texts("jobs", "HEALTHCHECK") == []
    (check,) = texts("serve", "HEALTHCHECK")
    port = command("serve")[command("serve").index("--port") + 1]
    assert f"http://127.0.0.1:{port}/readyz" in check
    compile(loads(check.partition("CMD ")[2])[2], "health check", "exec")


def test_processes_start_without_a_shell_and_as_nobody_in_particular():
    assert texts("jobs", "USER") == ["1000:1000"]  # a number: Kubernetes' runAsNonRoot cannot read a name
    assert texts("serve", "USER") == []
    assert all(text.startswith("[") for stage in STAGES for text in texts(stage, "CMD"))
    assert not any(texts(stage, "ENTRYPOINT") for stage in STAGES)


def test_everything_that_is_copied_is_there_and_not_ignored():
    copied = {
        source
        for stage in STAGES
        for text in texts(stage, "COPY")
        if not text.startswith("--from")
        for source in text.split()[:-1]
    }
    kept = {path.name for path in context()}
    assert copied - {"."} <= kept
    assert {"features", "models", "pipeline", "serving", "requirements-gpu.lock"} <= kept
    assert {".git", ".venv", "tests", "docs", "shared", "Dockerfile"} & kept == set()


def test_the_labels_and_extras_are_those_of_the_package():
    metadata = settings()["metadata"]
    labels = dict(shlex.split(label)[0].split("=") for text in texts("jobs", "LABEL")
                  for label in re.findall(r'\S+="[^"]*"', text))  # fmt: skip
    assert environment("jobs")["VERSION"] == metadata["version"]
    assert labels["org.opencontainers.image.licenses"] == metadata["license_expression"]
    assert set(environment("packages")["EXTRAS"].split()) < set(settings()["options.extras_require"])


def test_the_two_locks_together_are_what_tensorflow_needs_for_a_gpu():
    locked, gpu = pins("requirements.lock"), pins("requirements-gpu.lock")
    assert importlib.metadata.version("tensorflow") == locked["tensorflow"]
    needed = {
        canonicalize_name(requirement.name): requirement
        for requirement in map(Requirement, importlib.metadata.requires("tensorflow") or [])
        if requirement.marker and "and-cuda" in str(requirement.marker)
    }
    assert len(needed) > 5
    assert {name for name, requirement in needed.items() if gpu[name] not in requirement.specifier} == set()
    assert {name for name in gpu if not name.startswith("nvidia-")} == set()
    text = (ROOT / "requirements-gpu.lock").read_text()
    assert all(
        f"--hash=sha256:{'0' * 64}" not in text and "--hash" in text.split(f"{name}==")[1] for name in gpu
    )


def test_compose_is_valid_and_its_containers_write_in_their_volumes_alone():
    services = compose()["services"]
    assert set(services) == {"retrain", "serve", "prometheus"}
    for name, service in services.items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["mem_limit"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
    for name in ("retrain", "serve"):
        mounted = dict(volume.split(":")[:2] for volume in services[name]["volumes"])
        assert {mounted["workspace"], mounted["weights"]} == set(loads(texts("jobs", "VOLUME")[0]))
        assert services[name]["tmpfs"] == [environment("jobs")["HOME"]]
    files = [volume.split(":")[0] for volume in services["prometheus"]["volumes"] if volume.startswith("./")]
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_compose_is_as_the_specification_has_it():
    compose_spec = pytest.importorskip("compose_spec")  # the specification's reader in Rust
    compose_spec.PyCompose.from_yaml(yaml.safe_dump(compose())).validate()  # YAML's merged keys, resolved
    wrong = compose()
    wrong["services"]["serve"]["read_onli"] = True
    with pytest.raises(ValueError, match="read_onli"):
        compose_spec.PyCompose.from_yaml(yaml.safe_dump(wrong))


# The steps of the build, without an engine


def context() -> list[Path]:
    """What .dockerignore leaves: files and folders of the root."""
    rules = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert (rules[0], rules[-1]) == ("*", "**/__pycache__")
    assert all(re.fullmatch(r"![\w.-]+", rule) for rule in rules[1:-1])
    return [ROOT / rule[1:] for rule in rules[1:-1]]


def copy_context(names: list[str], target: Path) -> None:
    for path in context():
        if "." not in names and path.name not in names:
            continue
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, target / path.name, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copy(path, target)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A directory that every user may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="shelfmark-image-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def installed(folder: Path) -> Path:
    """/opt/shelfmark as the stages `packages` and `code` make it, from the files of .dockerignore alone."""
    for name in ("opt/shelfmark", "build", "code", "bin"):
        (folder / name).mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(open_python())
    keep = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    if index := keep.get("PIP_INDEX_URL"):
        keep.setdefault("UV_DEFAULT_INDEX", index)
    # hard links into uv's cache: 3 GB that need not be copied
    build = keep | environment("packages") | {"UV_LINK_MODE": "hardlink", "UV_SYSTEM_CERTS": "true"}
    build["PATH"] = f"{folder / 'bin'}:{keep['PATH']}"
    for keyword, text in instructions()["packages"] + instructions()["code"]:
        if keyword == "COPY":
            *names, target = text.split()
            assert target in (".", "./")
            copy_context(names, folder / "build")
        elif keyword == "RUN":
            script = re.sub(r"^(--mount=\S+\s+)*", "", text)
            script = re.sub(r"(?<![\w.-])(?=/(?:opt/shelfmark|build|code|uv)\b)", str(folder), script)
            done = subprocess.run(
                ["sh", "-ec", script],
                cwd=folder / "build",
                env=build,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"RUN {script}\n{done.stderr[-2000:]}"
    for text in texts("jobs", "COPY"):
        assert text in ("--from=packages /opt/shelfmark /opt/shelfmark", "--from=code /code /opt/shelfmark")
    shutil.copytree(folder / "code", folder / "opt" / "shelfmark", dirs_exist_ok=True, symlinks=True)
    shutil.rmtree(folder / "build")  # nothing of it is needed
    shutil.rmtree(folder / "code")
    return folder / "opt" / "shelfmark"


def open_python() -> str:
    """A Python 3.11, or ours, that every user may run."""
    for path in (getattr(sys, "_base_executable", sys.executable), "/usr/bin/python3.11"):
        real = Path(path).resolve()
        if real.is_file() and all(parent.stat().st_mode & 1 for parent in (real, *real.parents)):
            return str(real)
    return sys.executable


class CleanDirectory:
    """The image without an engine: another user, an environment of its own; nobody may write in /opt."""

    def __init__(self, installed: Path, data: Path) -> None:
        self.data, self._port = data, free_port()
        self._environment = environment("jobs") | {
            "PATH": f"{installed / 'bin'}:/usr/bin:/bin",
            "HOME": "/nonexistent",
            "KERAS_HOME": str(data / "keras"),
        }

    def start(self, words: list[str]) -> "subprocess.Popen[str]":
        words = [self._here(word) for word in words]
        words[0] = shutil.which(words[0], path=self._environment["PATH"]) or words[0]
        nobody: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        return subprocess.Popen(
            words, cwd=self.data, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, **(nobody if os.getuid() == 0 else {}),
        )  # fmt: skip

    def beside(self, words: list[str]) -> int:
        """Runs a command beside the one that is started, and returns its exit status."""
        process = self.start(words)
        process.communicate(timeout=LIMIT)
        return process.returncode

    def check(self) -> int:
        """The health check of the image."""
        (found,) = texts("serve", "HEALTHCHECK")
        return self.beside(loads(found.partition("CMD ")[2]))

    def _here(self, word: str) -> str:
        word = re.sub(r"(?<![\w.])/data(?!\w)", str(self.data), word)
        return re.sub(r"\b8000\b", str(self._port), word).replace("0.0.0.0", "127.0.0.1")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


# Real containers

PODMAN = ["podman", "--cgroup-manager=cgroupfs", *(["--runtime=runc"] if shutil.which("runc") else [])]


def podman(*words: str, timeout: float = 1800, **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*PODMAN, *words], capture_output=True, text=True, check=False, timeout=timeout, **options
    )


@pytest.fixture(scope="module")
def images() -> None:
    """The default image as IMAGE, and the stage `serve` as IMAGE-serve; built by Podman on Python's image.

    Where no registry can be reached, on one that debootstrap makes of Debian 12, which has Python 3.11.
    """
    if not shutil.which("podman"):
        pytest.skip("no Podman here: apt install podman runc debootstrap")
    if podman("image", "exists", BASE).returncode:
        if podman("pull", "--quiet", "docker.io/library/python:3.11-slim", timeout=300).returncode == 0:
            podman("tag", "docker.io/library/python:3.11-slim", BASE)
        else:
            debian_with_python()
    for target, name in (([], IMAGE), (["--target=serve"], f"{IMAGE}-serve")):
        built = podman(
            "build", "--isolation=chroot", "--network=host", "--pull=never", "--format=docker", "--layers",
            f"--build-arg=BASE={BASE}", f"--tag={name}", *target, str(ROOT),
        )  # fmt: skip
        assert built.returncode == 0, built.stderr[-2000:]


def debian_with_python() -> None:
    if not shutil.which("debootstrap") or os.getuid():
        pytest.skip("no registry to be reached, and no debootstrap or not root: no base image")
    with tempfile.TemporaryDirectory() as name:
        packages = "--include=python3,python3-venv,ca-certificates"
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", packages, "bookworm", name],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if made.returncode:
            pytest.skip(f"no registry and no mirror of Debian to be reached: {made.stdout[-200:]}")
        Path(name, "usr/bin/python").symlink_to("python3")
        certificates = os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
        shutil.copy(certificates, Path(name, "etc/ssl/certs/ca-certificates.crt"))
        changes = {"PATH": "/usr/local/bin:/usr/bin:/bin", "UV_SYSTEM_CERTS": "true"}
        if index := os.environ.get("PIP_INDEX_URL"):
            changes |= {"PIP_INDEX_URL": index, "UV_DEFAULT_INDEX": index}
        options = [f"--change=ENV {key}={value}" for key, value in changes.items()]
        with subprocess.Popen(["tar", "--create", f"--directory={name}", "."], stdout=subprocess.PIPE) as tar:
            imported = podman("import", *options, "-", BASE, stdin=tar.stdout)
    assert imported.returncode == 0, imported.stderr


class Container:
    """A container with a read-only file system and without a network."""

    def __init__(self, data: Path) -> None:
        self.data, self._name = data, data.name

    def start(self, words: list[str]) -> "subprocess.Popen[str]":
        image = IMAGE if words[0] == "shelfmark" else f"{IMAGE}-serve"
        options = ["--read-only", "--tmpfs=/tmp", "--cap-drop=all", "--security-opt=no-new-privileges"]
        # an engine that runs in a container itself may not raise limits, which Podman does by default
        options += ["--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096"]
        run = [
            "run",
            "--rm",
            "--network=none",
            f"--name={self._name}",
            f"--volume={self.data}:/data",
            *options,
        ]
        return subprocess.Popen(
            [*PODMAN, *run, image, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def beside(self, words: list[str]) -> int:
        return podman("exec", self._name, *words).returncode

    def check(self) -> int:
        return podman("healthcheck", "run", self._name).returncode


# Both


@pytest.fixture(params=["clean_directory", "podman"])
def place(request: pytest.FixtureRequest, folder: Path) -> "CleanDirectory | Container":
    """Where the image runs; its /data is a directory that the image's user may write in."""
    data = Path(tempfile.mkdtemp(prefix="data-", dir=folder))
    data.chmod(0o777)
    if request.param == "clean_directory":
        return CleanDirectory(request.getfixturevalue("installed"), data)
    request.getfixturevalue("images")
    return Container(data)


def output(place: "CleanDirectory | Container", *words: str) -> str:
    process = place.start(list(words))
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err[-2000:]
    return out


def give(path: Path) -> None:
    """Makes a directory everybody's, as a volume is that of the image's user."""
    for found in (path, *path.rglob("*")):
        if not found.is_symlink():
            found.chmod(0o777 if found.is_dir() else 0o666)


INSTALLED = """
import importlib.metadata, json, os, sys, tensorflow as tf
folder = os.path.dirname(tf.__file__)
print(json.dumps({
    "packages": {d.name.lower(): d.version for d in importlib.metadata.distributions(path=[
        path for path in sys.path if path.endswith("site-packages")])},
    "sources": sum(name.endswith(".py") for _, _, names in os.walk(folder) for name in names),
    "compiled": sum(name.endswith(".pyc") for _, _, names in os.walk(folder) for name in names),
    "writable": [path for path in (sys.prefix, folder, "/") if os.access(path, os.W_OK)],
    "user": os.getuid(),
}))
"""


@pytest.mark.image
@pytest.mark.timeout(3600)
def test_the_image_has_both_doors_and_of_the_lock_what_they_need(place):
    assert "retrain" in output(place, *command("jobs"))
    version = settings()["metadata"]["version"]
    for program in ("shelfmark", "shelfmark-serve"):
        assert version in output(place, program, "--version")
    found = loads(output(place, "python", "-c", INSTALLED))
    locked = pins("requirements.lock")
    packages = {str(canonicalize_name(name)): version for name, version in found["packages"].items()}
    assert {name: packages[name] for name in packages if locked.get(name) != packages[name]} == {
        "shelfmark": version
    }
    assert {"tensorflow", "openvino", "nncf", "psycopg", "boto3"} <= set(packages)
    assert {"pip", "uv", "pytest", "ruff"} & set(packages) == set()
    assert found["compiled"] == found["sources"] > 1000  # nothing is compiled at the start
    assert (found["writable"], found["user"] == 0) == ([], False)


@pytest.mark.image
@pytest.mark.timeout(3600)
def test_a_job_trains_and_a_signal_ends_it(place, drawn_weights):
    draw_catalogue(place.data, products=400)
    shutil.copy(drawn_weights, place.data / "drawn.weights.h5")
    (place.data / "weekly.toml").write_text(SETTINGS.format(weights="drawn.weights.h5"))
    give(place.data)
    job = "shelfmark retrain catalogue.bson --taxonomy category_names.csv --config weekly.toml --workspace W"
    output(place, *shlex.split(job), "--run=one")
    assert (place.data / "W" / "releases" / "current").readlink() == Path("one")
    process = place.start([*shlex.split(job), "--run=two"])
    wait_for(lambda: (place.data / "W" / "runs" / "two" / "records").exists() or process.poll() is not None)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143


ASK = r"""
import urllib.request
part = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n'
body = part + open("photo.jpg", "rb").read() + b"\r\n--x--\r\n"
headers = {"Content-Type": "multipart/form-data; boundary=x"}
request = urllib.request.Request("http://127.0.0.1:8000/v1/categorize", body, headers)
with urllib.request.urlopen(request) as answer, open("decision.json", "wb") as file:
    file.write(answer.read())
"""


@pytest.mark.image
@pytest.mark.timeout(3600)
def test_the_service_is_healthy_decides_and_ends_with_a_signal(place, workspace, photo):
    shutil.copytree(workspace / "releases", place.data / "releases", symlinks=True)
    (place.data / "photo.jpg").write_bytes(photo(1))
    give(place.data)
    service = place.start(command("serve"))
    try:
        wait_for(lambda: service.poll() is not None or place.check() == 0)
        assert place.beside(["python", "-c", ASK]) == 0
    finally:
        service.terminate()
        _, log = service.communicate(timeout=60)
    assert service.returncode == 143, log
    assert loads((place.data / "decision.json").read_text())["release"] == "first"


def wait_for(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not ready():
        assert time.monotonic() < end, "it has not become ready"
        time.sleep(0.2)
