"""What the service says of the release in service: its bodies are made once for each release, as bytes."""

import hashlib
import json
from typing import TYPE_CHECKING

from serving.schemas import Cascade, Health, Level, Release

if TYPE_CHECKING:
    from serving.served import Served


class Descriptions:
    """The bodies about the release that was asked about last; it keeps nothing of the release itself."""

    def __init__(self) -> None:
        self._bodies: dict[tuple[str, str, str], bytes] = {}  # by body, release and digest

    def health(self, served: "Served | None") -> bytes:
        """Returns the body of /healthz; None: before a release is loaded."""
        if served is None:
            return (
                Health(status="ok", release=None, bundle=None, backbone=None, threshold=None)
                .model_dump_json()
                .encode()
            )
        return self._body("health", served)

    def release(self, served: "Served") -> bytes:
        """Returns the body of /v1/release."""
        return self._body("release", served)

    def tree(self, served: "Served") -> tuple[bytes, str]:
        """Returns the body of /v1/taxonomy, and its ETag."""
        body = self._body("tree", served)
        return body, f'"{hashlib.sha256(body).hexdigest()[:32]}"'

    def _body(self, name: str, served: "Served") -> bytes:
        key = name, served.name, served.bundle.digest
        body = self._bodies.get(key)
        if body is None:
            make = {"health": _health, "release": _release, "tree": _tree}[name]
            body = make(served)
            self._bodies = {one: kept for one, kept in self._bodies.items() if one[1:] == key[1:]}
            self._bodies[key] = body
        return body


def _health(served: "Served") -> bytes:
    bundle = served.bundle
    return Health(
        status="ok",
        release=served.name,
        bundle=bundle.digest,
        backbone=bundle.fingerprint,
        threshold=bundle.categorizer.rules.certificate.threshold,
    ).model_dump_json().encode()  # fmt: skip


def _release(served: "Served") -> bytes:
    bundle, extractor = served.bundle, served.extractor
    rules, taxonomy = bundle.categorizer.rules, bundle.categorizer.predictor.taxonomy
    thresholds = {name: rule.certificate.threshold for name, rule in rules.levels.items()}
    return Release(
        release=served.name,
        bundle=bundle.digest,
        backbone=bundle.fingerprint,
        image_size=extractor.size,
        engine=extractor.engine,
        views=[view.name for view in extractor.views],
        averaged=extractor.is_averaged,
        cascade=Cascade(limit=rules.cascade.limit, share=rules.cascade.share) if rules.cascade else None,
        threshold=rules.certificate.threshold,
        target_precision=rules.target,
        delta=rules.delta,
        caveats=list(bundle.caveats),
        levels=[
            Level(level=level, threshold=thresholds.get(f"level{level}"))
            for level in range(1, taxonomy.levels)
        ],
        categories=len(taxonomy.categories),
        aggregation=rules.aggregation,
        sellers_method=bundle.adapter.rules.method if bundle.adapter else None,
    ).model_dump_json().encode()  # fmt: skip


def _tree(served: "Served") -> bytes:
    taxonomy = served.bundle.categorizer.predictor.taxonomy
    rows = zip(taxonomy.categories.tolist(), taxonomy.names.tolist(), taxonomy.depth.tolist(), strict=True)
    categories = [{"category": category, "names": names[:depth]} for category, names, depth in rows]
    body = {"release": served.name, "levels": int(taxonomy.depth.max()), "categories": categories}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
