"""A real S3 server for tests, in a process of its own: worker processes reach it, too."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

BUCKET = "shelf"
SECONDS = 60  # for the server to answer
MINIO = "SHELFMARK_MINIO"  # a variable with the path of a `minio` program, to be used instead of moto


@contextmanager
def object_store(server: str | None = None) -> Iterator[str]:
    """Starts the server, makes a bucket, points the environment to it; yields `s3://<bucket>`.

    Args:
        server: the `minio` program; None asks $SHELFMARK_MINIO, and takes moto's server where it is not set.
    """
    port = _free_port()
    minio = server or os.environ.get(MINIO)
    keys = ("shelfmark", "shelfmark-secret")
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": keys[0],
        "AWS_SECRET_ACCESS_KEY": keys[1],
        "AWS_DEFAULT_REGION": "us-east-1",
        **{"MINIO_ROOT_USER": keys[0], "MINIO_ROOT_PASSWORD": keys[1], "MINIO_BROWSER": "off"},
    }
    with tempfile.TemporaryDirectory() as data, mock.patch.dict(os.environ, environment):
        moto = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        command = [minio, "server", data, "--address", f"127.0.0.1:{port}"] if minio else moto
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=_end_with_the_tests
        )
        try:
            _wait_for(process, port)
            client().create_bucket(Bucket=BUCKET)
            yield f"s3://{BUCKET}"
        finally:
            process.kill()
            process.wait()


def client() -> Any:
    """A boto3 client of its own, past the code under test."""
    import boto3

    return boto3.session.Session().client("s3")


def _end_with_the_tests() -> None:
    """Even where they are killed, and no `finally` is reached: prctl(PR_SET_PDEATHSIG, SIGKILL)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(process: "subprocess.Popen[bytes]", port: int) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the object store ended with status {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"the object store did not answer within {SECONDS} s")
