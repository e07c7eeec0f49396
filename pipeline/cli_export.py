"""The command that writes a release for servers without our code."""

import click

from features.storage.paths import AnyPath
from pipeline.cli_options import PATH, start_tensorflow


@click.command()
@click.option("--workspace", type=PATH, required=True, help="Directory with the release in service.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["saved_model", "onnx", "openvino"]),
    required=True,
    help="For TensorFlow, ONNX Runtime or OpenVINO.",
)
@click.option("--output", type=PATH, required=True, metavar="DIR", help="A new or empty directory.")
@click.option(
    "--release", metavar="NAME", help="A release, or a run whose bundle was kept out; default: in service."
)
@click.option(
    "--check",
    "source",
    metavar="SOURCE",
    help="Compare its decisions with those of categorize on 500 photos of this source; where they differ, "
    "nothing is written.",
)
def export(workspace: AnyPath, kind: str, output: AnyPath, release: str | None, source: str | None) -> None:
    """Writes a release for other servers.

    From photos to decisions in one graph: backbone, head, confidence and thresholds. saved_model takes JPEGs,
    onnx and openvino take pixels. No code of shelfmark is needed to run it; corrections of sellers and the
    checks of photos are not in it.

    \b
    Example:
      shelfmark export --workspace shop --format saved_model --output exported
    """
    from pipeline.arguments import check_export
    from pipeline.job.command_log import command_log, log_of_job
    from pipeline.look.find import find_bundle

    check_export(workspace, kind, output, source)
    bundle = find_bundle(workspace, release)
    with command_log(log_of_job(workspace, "export")):
        start_tensorflow()
        from pipeline.export.export import export
        from pipeline.job.summaries import ExportSummary

        made = export(bundle, kind, output, source)
    for caveat in ExportSummary.of(made).caveats:
        print(f"caveat: {caveat}")
    print(output)
