"""Look: the best categories of photos with their probabilities, the decision, and where the network looked.

    photo ─► normalise ─► bottleneck ─► decision, probabilities of all categories ─► the best ones
                     └──► last map ───► evidence for the best category ─► OUTPUT/<photo>.png

Each photo is a product of its own. The decision is that of `shelfmark categorize`.
"""

import io
from collections.abc import Sequence

import numpy as np
import pandas as pd
from PIL import Image

from features.engines.backbones import Backbone
from features.engines.choose import engines_of_views
from features.errors import ShelfmarkError
from features.images.normalise import normalise
from features.images.refusal import LIMITS, Refused
from features.storage.paths import AnyPath, write_whole
from models.decisions.bundle import Bundle, open_bundle
from models.decisions.categorizer import UNREADABLE
from models.decisions.confidence import DECIMALS
from models.heads.class_maps import ClassMaps
from pipeline.look.find import name_of
from pipeline.look.picture import draw_picture, png
from pipeline.look.results import LookResult, PhotoResult, ScoredCategory

BATCH = 8  # photos at a time


def look(path: AnyPath, photos: Sequence[AnyPath], top: int, output: AnyPath) -> LookResult:
    """Looks at photos, and writes a picture of each to `output`.

    Args:
        path: of the bundle.
        photos: files; one that cannot be used is listed with its reason.
        top: categories of each photo.
        output: directory of the pictures, made if need be.

    Raises:
        ShelfmarkError: no photo can be used, or the bundle is damaged.
    """
    bundle = open_bundle(path)
    read = [_read(photo) for photo in photos]
    jpegs = [one for one in read if isinstance(one, bytes)]
    if not jpegs:
        others = f", and none of the other {len(photos) - 1} can be" if len(photos) > 1 else ""
        raise ShelfmarkError(
            f"{photos[0]}: cannot be used ({read[0]!s}){others}; expected photos; give other files"
        )
    backbone = bundle.backbone()
    best, decided = _decide(bundle, backbone, jpegs, top)
    heats, note = _heats(bundle, backbone, jpegs, np.array([row[0][0] for row in best]))
    names = _file_names([photo for photo, one in zip(photos, read, strict=True) if isinstance(one, bytes)])
    paths = bundle.categorizer.predictor.paths
    categories = bundle.categorizer.predictor.taxonomy.categories
    found, at = [], 0
    for photo, one in zip(photos, read, strict=True):
        if isinstance(one, Refused):
            found.append(
                PhotoResult(
                    photo=str(photo), refused=str(one), status=UNREADABLE, confidence=0.0, decision=None
                )
            )
            continue
        scored = tuple(
            ScoredCategory(category=str(categories[c]), path=str(paths[c]), probability=round(p, DECIMALS))
            for c, p in best[at]
        )
        title = f"{scored[0].path}  {scored[0].probability:.1%}"
        with Image.open(io.BytesIO(one)) as opened:
            picture = draw_picture(opened.convert("RGB"), None if heats is None else heats[at], title)
        write_whole(output / names[at], png(picture))
        row = decided.iloc[at]
        found.append(
            PhotoResult(
                photo=str(photo),
                refused=None,
                status=row["status"],
                confidence=float(row["confidence"]),
                decision=row["node_path"],
                best=scored,
                picture=str(output / names[at]),
            )
        )
        at += 1
    return LookResult(release=name_of(path), note=note, photos=tuple(found))


def _read(photo: AnyPath) -> bytes | Refused:
    """The photo as a strict JPEG, by the guards of ingest, or why it is refused."""
    try:
        return normalise(photo.read_bytes(), LIMITS).jpeg
    except Refused as refused:
        return refused
    except IsADirectoryError:
        return Refused("missing", f"a directory; give its photos: {photo}/*.jpg")
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        return Refused("missing", "no such file" if missing else str(error).splitlines()[0])


def _decide(
    bundle: Bundle, backbone: Backbone, jpegs: Sequence[bytes], top: int
) -> tuple[list[list[tuple[int, float]]], pd.DataFrame]:
    """For each photo the best categories with their probabilities, and the decisions as rows of a table."""
    categorizer, count = bundle.categorizer, len(jpegs)
    engines = engines_of_views(backbone, categorizer.views, BATCH)
    every = categorizer.bottlenecks(engines, jpegs, "photo")
    chosen, bounds, again = categorizer.deciding(every, np.arange(count + 1) * categorizer.rows_of_image)
    rows = every[chosen]
    probability = categorizer.probabilities(rows, bounds)
    order = np.argsort(-probability, axis=1, kind="stable")[:, :top]
    best = [
        [(int(category), float(probability[row, category])) for category in order[row]]
        for row in range(count)
    ]
    products = np.array([str(number) for number in range(count)], dtype=object)
    return best, categorizer.decide(products, categorizer.predict(rows, bounds, again))


def _heats(
    bundle: Bundle, backbone: Backbone, jpegs: Sequence[bytes], category: np.ndarray
) -> tuple[list[np.ndarray] | None, str | None]:
    """(h, w) 0..1 of each photo, of its category; or None and the reason."""
    try:
        maps = ClassMaps(backbone, bundle.categorizer.head)
    except ShelfmarkError as error:
        return None, f"no maps: {error}"
    return maps.heats(jpegs, category), None


def _file_names(photos: Sequence[AnyPath]) -> list[str]:
    """A name for each picture: the photo's, with a number where two have the same one."""
    names: list[str] = []
    for photo in photos:
        stem = photo.name.rpartition(".")[0] or photo.name
        number = 1
        while (name := f"{stem}{'' if number == 1 else f'-{number}'}.png") in names:
            number += 1
        names.append(name)
    return names
