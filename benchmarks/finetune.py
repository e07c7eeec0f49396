"""Fine-tuning on real photos: validation accuracy with the frozen backbone and with the tuned one.

    .venv/bin/python benchmarks/finetune.py [--data ../shared] [--image-size 224] [--seeds 3]
        [--set finetune.epochs=8] [--workspace DIR]

Photos: the Grocery Store Dataset (Klasson, Zhang, Kjellström, WACV 2019) as
`<data>/data/grocery/manifest.csv`, with an ImageNet-trained MobileNet in `<data>/weights`, all training
products (finetune.share = 1). Accuracy on all 296 validation photos, and on CERT, those of them that
select nothing; mean over heads of several seeds on the frozen and on the one tuned backbone. With --workspace
a killed command continues where it was. Without the photos nothing is measured, and a line says so.
Takes three quarters of an hour on two cores. Writes benchmarks/results/finetune.json.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
from grocery import add_data, find_grocery
from heads import accuracies, mean_of

RESULTS = Path(__file__).parent / "results" / "finetune.json"
TARGET = 12  # points that the leaf gains, at least


def main() -> None:
    """Measures, prints a table, writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data(parser)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--seeds", type=int, default=3, help="heads on either backbone")
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument("--workspace", type=Path, help="kept; default: a scratch directory")
    options = parser.parse_args()
    found = find_grocery(options.data)
    if found is None:
        return
    manifest, weights = found
    with tempfile.TemporaryDirectory() as scratch:
        results = compare(manifest, weights, options, options.workspace or Path(scratch))
    levels = list(results["frozen"]["val"])
    rows = [
        [backbone, part, *(f"{results[backbone][part][level]:.3f}" for level in levels)]
        for backbone in ("frozen", "tuned")
        for part in ("val", "cert")
    ]
    print(measure.table(["backbone", "photos", *levels], rows))
    leaf = levels[-1]
    gains = {
        part: 100 * (results["tuned"][part][leaf] - results["frozen"][part][leaf]) for part in ("cert", "val")
    }
    results["verdicts"] = [
        measure.verdict(f"leaf, tuned over frozen, {part}", gain, TARGET, " points", at_least=True)
        for part, gain in gains.items()
    ]
    results["conditions"] = measure.conditions("tensorflow", "keras")
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def compare(manifest: Path, weights: Path, options: argparse.Namespace, workspace: Path) -> dict[str, Any]:
    """Accuracies of heads on frozen and on tuned bottlenecks, with seconds and the settings."""
    from features.engines.backbones import start_tensorflow

    start_tensorflow()
    from pipeline.extract.extract import extract_records
    from pipeline.ingest.ingest import make_records
    from pipeline.job.load_config import load_config
    from pipeline.job.run import begin_run
    from pipeline.train.finetune import finetune_backbone
    from pipeline.train.train import train_head

    names = {"name": "mobilenet", "weights": str(weights), "image_size": options.image_size}
    backbone_options = {f"backbone.{name}": value for name, value in names.items()}
    config = load_config(None, ("finetune.share=1.0", *options.sets), backbone_options)
    run = begin_run(workspace, "bench", config)
    records = make_records([str(manifest)], run.path / "records", config.ingest, seed=config.seed)
    results: dict[str, Any] = {"settings": config.finetune.model_dump()}
    results |= {"image_size": options.image_size, "seeds": options.seeds}
    base = run.untuned_backbone()
    for name in ("frozen", "tuned"):
        backbone = base
        if name == "tuned":
            fresh, began = not (run.path / "backbone").exists(), time.monotonic()
            tuned = finetune_backbone(records, base, run.store, run.path / "backbone", config)
            seconds = round(time.monotonic() - began) if fresh else None  # an earlier command tuned it
            results |= {"seconds": seconds, "summary": dict(tuned.summary)}
            backbone = run.backbone
        bottlenecks = extract_records(
            records, backbone, run.store, run.path / f"bottlenecks-{name}", config.extract
        )
        of_seeds = []
        for seed in range(options.seeds):
            seeded = config.model_copy(update={"seed": seed})
            head = train_head(records, bottlenecks, run.store, run.path / f"head-{name}-{seed}", seeded)
            of_seeds.append(accuracies(records, bottlenecks, head, run.store, config.calibration.fit_share))
        results[name] = mean_of(of_seeds) | {"of_seeds": of_seeds}
    return results


if __name__ == "__main__":
    main()
