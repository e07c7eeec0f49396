"""The command `shelfmark-serve`: the bundle in service, behind HTTP.

Exit status, as for the other commands: 0 done, 1 failed with one `error:` line, 2 wrong usage. TensorFlow and
FastAPI are imported inside the function: they take seconds, `--help` must not.
"""

import logging
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from features.errors import ShelfmarkError
from features.process import add_common_options, run_command
from features.storage.paths import STORE_OPTIONS, all_begin, any_path, use_beam_options

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


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--workspace",
    required=True,
    help="Directory with the release in service.",
)
@click.option(
    "--host", default="127.0.0.1", help="Address to listen at; default: 127.0.0.1, for this computer only."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="Default: 8000; 0: any free one.")
@click.option(
    "--corrections",
    envvar="SHELFMARK_CORRECTIONS",
    show_envvar=True,
    metavar="URL",
    help="Database of sellers' corrections: postgresql://USER@HOST/DATABASE or sqlite:///FILE; default: "
    "that of sellers.database when the release was trained, else corrections.sqlite in the workspace.",
)
@click.version_option(package_name="shelfmark")
@click.pass_obj
def serve(beam: tuple[str, ...], workspace: str, host: str, port: int, corrections: str | None) -> None:
    """Decides over HTTP about products from their photos, with the bundle in service.

    POST /v1/categorize takes the photos of one product in the multipart field images; POST
    /v1/corrections takes what a seller corrects; GET /healthz returns which bundle is loaded; /docs
    describes the rest. A later release is served after a restart, a correction counts at once.

    \b
    Example:
      shelfmark-serve --workspace shop --port 8080
    """
    if beam and not all_begin(beam, STORE_OPTIONS):
        raise click.UsageError(
            "expected after -- nothing but Beam's options of object stores, as --s3_endpoint_url=…"
        )
    with _bind(host, port) as listener:
        if beam:
            use_beam_options(beam)  # before the workspace is read
        from models.decisions.releases import require_in_service, settings_of_run

        release = require_in_service(
            any_path(workspace)
        )  # before TensorFlow is imported, which takes seconds
        from features.engines.backbones import start_tensorflow

        start_tensorflow()
        import uvicorn

        from models.decisions.bundle import open_bundle
        from serving.app import create_app
        from serving.corrections import open_store

        bundle = open_bundle(any_path(workspace) / "releases" / release)
        database = corrections or settings_of_run(any_path(workspace), release, "sellers").get("database")
        store = open_store(any_path(workspace), str(database or "") or None, bundle.adapter is not None)
        app = create_app(bundle, store, any_path(workspace))
        if bundle.adapter and store is None:
            log.warning(
                "%s: sellers' corrections do not count; expected a workspace on a disk that may be "
                "written to, or a database; give --corrections", release,
            )  # fmt: skip
        with _expect_free(host, port):  # another server may have taken it while this one was loading
            listener.listen()  # only now: until then connections are refused rather than kept waiting
        at, port = listener.getsockname()[:2]
        for caveat in bundle.caveats:
            log.warning("%s: %s", release, caveat)
        log.info("%s is served at http://%s:%d", release, f"[{at}]" if ":" in at else at, port)
        uvicorn.Server(uvicorn.Config(app, log_config=None)).run([listener])


add_common_options(serve)


def _bind(host: str, port: int) -> socket.socket:
    """Returns a bound socket; before anything is loaded, so that a port in use is reported at once."""
    with _expect_free(host, port):
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    return listener


@contextmanager
def _expect_free(host: str, port: int) -> Iterator[None]:
    """Turns an OSError into a ShelfmarkError that names the address."""
    try:
        yield
    except OSError as error:
        raise ShelfmarkError(
            f"{host}:{port}: {error.strerror}; expected a free address of this computer; "
            "give another --host or --port"
        ) from error


if __name__ == "__main__":
    main()
