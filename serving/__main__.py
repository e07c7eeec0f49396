"""The command `shelfmark-serve`: the bundle in service, behind HTTP.

    an address, or a socket file ─► bound ─► listens: /healthz responds, the rest with 503
                                               └─► Loading, in a thread ─► ready

Exit status, as for the other commands: 0 done, 1 failed with one `error:` line, 2 wrong usage. TensorFlow and
FastAPI are imported inside functions: they take seconds, `--help` must not.
"""

import ipaddress
import logging
import math
import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from features.errors import ShelfmarkError
from features.process import add_common_options, run_command
from features.storage.paths import STORE_OPTIONS, all_begin, any_path, use_beam_options

SOCKET_MODE = 0o660  # owner and group

log = logging.getLogger("shelfmark")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command and leaves with its exit status; options after -- are for Beam's object stores."""
    logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    arguments = sys.argv[1:] if arguments is None else arguments
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)  # of other packages
    try:
        run_command(serve, "shelfmark-serve", arguments[:cut], obj=tuple(arguments[cut + 1 :]), shown=("",))
    finally:
        root.setLevel(before)


class _Seconds(click.FloatRange):
    """A number within a range; click lets NaN pass, which is neither below nor above a limit."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value} is no number of seconds; expected one {self._describe_range()}", param, ctx)
        return seconds


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--workspace", required=True, help="Directory with the release in service.")
@click.option(
    "--host", default="127.0.0.1", help="Address to listen at; default: 127.0.0.1, for this computer only."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="Default: 8000; 0: any free one.")
@click.option(
    "--uds",
    metavar="PATH",
    help="Unix domain socket to listen at, in place of an address; for its owner and group.",
)
@click.option(
    "--timeout",
    type=_Seconds(0, 3600, min_open=True),
    default=30.0,
    help="Seconds that a request waits for its decisions; default: 30. X-Request-Timeout asks for less.",
)
@click.option(
    "--drain",
    type=_Seconds(0, 3600),
    default=30.0,
    help="Seconds within which SIGTERM or SIGINT finishes what was accepted; default: 30.",
)
@click.option(
    "--tokens",
    metavar="FILE",
    help="Who may use the service: a line `SHA256 [NAME]` for each bearer token; default: everybody.",
)
@click.option("--protect-metrics", is_flag=True, help="With --tokens: /metrics needs a token, too.")
@click.option(
    "--corrections",
    envvar="SHELFMARK_CORRECTIONS",
    show_envvar=True,
    metavar="URL",
    help="Database of sellers' corrections: postgresql://USER@HOST/DATABASE or sqlite:///FILE; default: "
    "that of sellers.database when the release was trained, else corrections.sqlite in the workspace.",
)
@click.version_option(package_name="shelfmark")
@click.pass_context
def serve(
    context: click.Context,
    workspace: str,
    host: str,
    port: int,
    uds: str | None,
    timeout: float,
    drain: float,
    tokens: str | None,
    protect_metrics: bool,
    corrections: str | None,
) -> None:
    """Decides over HTTP about products from their photos, with the bundle in service.

    POST /v1/categorize takes the photos of one product in the multipart field images, or of several
    products in images.0, images.1, …; POST /v1/corrections takes what a seller corrects. GET /readyz says
    whether requests are taken, GET /metrics has figures for Prometheus; /docs describes the rest.

    Another release is served as soon as releases/current names it, without a restart. SIGTERM finishes what
    was accepted and ends with status 143, SIGINT with 130; a second signal ends at once.

    \b
    Example:
      shelfmark-serve --workspace shop --port 8080
    """
    beam: tuple[str, ...] = context.obj
    if beam and not all_begin(beam, STORE_OPTIONS):
        raise click.UsageError(
            "expected after -- nothing but Beam's options of object stores, as --s3_endpoint_url=…"
        )
    given = [
        name for name in ("host", "port") if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    ]
    if uds and given:
        raise click.UsageError(f"--uds beside --{given[0]}; expected one place to listen at; leave one out")
    if protect_metrics and not tokens:
        raise click.UsageError("--protect-metrics without --tokens; expected a file of tokens; give it")
    with _listener(host, port, uds) as listener:
        if beam:
            use_beam_options(beam)  # before the workspace is read
        from models.decisions.releases import require_in_service
        from serving.access import Access, Tokens

        path = any_path(workspace)
        if isinstance(path, Path) and not path.is_dir():
            raise ShelfmarkError(
                f"{workspace}: no such directory; expected a workspace with a release in service; "
                "give another --workspace"
            )
        release = require_in_service(path)
        access = Access(Tokens(Path(tokens)) if tokens else None, not protect_metrics)
        from serving.app import create_app
        from serving.loading import Loading
        from serving.metrics import Metrics
        from serving.server import DEFAULT_LIMITS, Server
        from serving.state import ServiceState

        state = ServiceState()
        metrics = Metrics(state)
        app = create_app(state, metrics, access, timeout)
        with _expect_free(host, port, uds):  # another server may have taken it since it was bound
            listener.listen()
        _warn_of_strangers(listener, access.tokens is not None)
        server = Server(app, state, DEFAULT_LIMITS, drain, metrics.ended_connection)

        def end() -> None:
            server.should_exit = True

        loading = Loading(path, release, corrections, state, metrics, timeout)
        loading.start(at=_place(listener), failed=end)
        try:
            server.run([listener])
        finally:
            loading.close()
        if loading.error:
            raise loading.error
        if server.lost:
            raise ShelfmarkError(
                f"{server.lost} accepted requests were not finished; expected them to be within {drain:g} s; "
                "give a longer --drain"
            )
        if server.received:
            sys.exit(128 + server.received)  # as every command that a signal ends


add_common_options(serve)


# Where it listens


@contextmanager
def _listener(host: str, port: int, uds: str | None) -> Iterator[socket.socket]:
    """A bound socket; before anything is loaded, so that a place in use is reported at once."""
    with _expect_free(host, port, uds):
        if uds:
            _remove_stale(uds)
            family, kind, protocol, address = socket.AF_UNIX, socket.SOCK_STREAM, 0, uds
        else:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, kind, protocol, _, address = found[0]  # type: ignore[assignment]
        listener = socket.socket(family, kind, protocol)
    with listener:
        with _expect_free(host, port, uds):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            before = os.umask(0o777 & ~SOCKET_MODE)  # of a socket file, from its first moment on
            try:
                listener.bind(address)
            finally:
                os.umask(before)
        made = os.stat(uds) if uds else None
        try:
            yield listener
        finally:
            with suppress(OSError):
                if uds and made and os.path.samestat(os.stat(uds), made):
                    os.unlink(uds)


def _remove_stale(path: str) -> None:
    """Removes the socket file of a server that has ended; one that is in use stays, as any other file."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return  # binding says that the place is taken
    except OSError:
        return
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)


@contextmanager
def _expect_free(host: str, port: int, uds: str | None) -> Iterator[None]:
    """Turns an OSError into a ShelfmarkError that names the place."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if uds:
            raise ShelfmarkError(
                f"{uds}: {reason}; expected a path in a directory that may be written to, of at most 107 "
                "bytes, where no file and no other server is; give another --uds"
            ) from error
        raise ShelfmarkError(
            f"{host}:{port}: {reason}; expected a free address of this computer; "
            "give another --host or --port"
        ) from error


def _place(listener: socket.socket) -> str:
    """Where the service is, for people."""
    if listener.family is socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _warn_of_strangers(listener: socket.socket, has_tokens: bool) -> None:
    """Warns where other computers may use the service, whoever they are."""
    if listener.family is socket.AF_UNIX or has_tokens:
        return
    host = listener.getsockname()[0]
    if not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        log.warning(
            "%s: other computers can use the service without a token; expected --tokens, or a proxy in front "
            "that lets nobody else in; see docs/serving.md",
            _place(listener),
        )


if __name__ == "__main__":
    main()
