"""What the service counts and measures, for Prometheus: GET /metrics.

    request ─► requests, seconds, in flight                     by app.py
    photo   ─► queue ─► decoded or refused ─► batch ─► head     by the room, through the methods of Watch
    release in service, refused release, readiness              read from the state when somebody asks

Each service has a registry of its own. Labels take few values: a path that is not served counts as "other".
"""

from collections.abc import Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.state import ServiceState

disable_created_metrics()  # type: ignore[no-untyped-call]  # a time beside each counter, which doubles the series

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ROUTES = frozenset(
    ("/v1/categorize", "/v1/corrections", "/v1/release", "/v1/taxonomy", "/healthz", "/readyz", "/metrics")
)
UNDO = "/v1/corrections/{number}"
METHODS = frozenset(("GET", "HEAD", "POST", "DELETE"))
OTHER = "other"
LONG = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)  # s, of a request
SHORT = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)  # s, of a piece of work
SIZES = (1, 2, 4, 8, 16, 32, 64)  # of batches


def route_of(path: str) -> str:
    """Returns the label of a path.

    >>> route_of("/v1/corrections/7"), route_of("/wp-admin")
    ('/v1/corrections/{number}', 'other')
    """
    if path in ROUTES:
        return path
    return UNDO if path.startswith("/v1/corrections/") else OTHER


class Metrics:
    """The figures of one service; all methods may be called by any thread."""

    def __init__(self, state: ServiceState) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._requests = Counter(
            "shelfmark_requests", "Requests that were answered, by route, method and status.",
            ("route", "method", "status"), registry=registry,
        )  # fmt: skip
        self._request_seconds = Histogram(
            "shelfmark_request_seconds", "From the headers of a request to the end of its answer.",
            ("route",), buckets=LONG, registry=registry,
        )  # fmt: skip
        self._connections = Counter(
            "shelfmark_ended_connections", "Connections that the server ended before the service saw a "
            "whole request: too slow (408), too many (503), or not HTTP.",
            ("status",), registry=registry,
        )  # fmt: skip
        self._products = Counter(
            "shelfmark_products", "Products that were decided about, by the status of the decision.",
            ("status",), registry=registry,
        )  # fmt: skip
        self._refused = Counter(
            "shelfmark_refused_photos", "Photos that could not be used, by reason.",
            ("reason",), registry=registry,
        )  # fmt: skip
        self._decode = Histogram(
            "shelfmark_decode_seconds", "Decoding of one photo.", buckets=SHORT, registry=registry
        )
        self._batch = Histogram(
            "shelfmark_batch_photos",
            "Views of photos in a batch of the backbone.",
            buckets=SIZES,
            registry=registry,
        )
        self._backbone = Histogram(
            "shelfmark_backbone_seconds", "The backbone on one batch.", buckets=SHORT, registry=registry
        )
        self._head = Histogram(
            "shelfmark_head_seconds", "The head on the products that are complete, together.",
            buckets=SHORT, registry=registry,
        )  # fmt: skip
        registry.register(_Now(state))
        ProcessCollector(registry=registry)

    def text(self) -> bytes:
        """Returns all figures in Prometheus' text format."""
        return generate_latest(self.registry)

    def request(self, path: str, method: str, status: int, seconds: float) -> None:
        """Counts a finished request."""
        route = route_of(path)
        self._requests.labels(route, method if method in METHODS else OTHER, status).inc()
        self._request_seconds.labels(route).observe(seconds)

    def ended_connection(self, status: int) -> None:
        """Counts a connection that the server has ended."""
        self._connections.labels(status).inc()

    def product(self, status: str) -> None:
        """Counts a decision."""
        self._products.labels(status).inc()

    # Watch

    def decoded(self, seconds: float) -> None:
        """Measures the decoding of a photo."""
        self._decode.observe(seconds)

    def refused(self, reason: str) -> None:
        """Counts a photo that could not be used."""
        self._refused.labels(reason).inc()

    def batch(self, size: int, seconds: float) -> None:
        """Measures a batch of the backbone."""
        self._batch.observe(size)
        self._backbone.observe(seconds)

    def head(self, products: int, seconds: float) -> None:
        """Measures the head on some products."""
        self._head.observe(seconds)

    def queued(self, photos: int) -> None:
        """Does nothing: the queue's length is read when somebody asks."""


class _Now(Collector):
    """What is read from the state when somebody asks."""

    def __init__(self, state: ServiceState) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        """Yields the figures of this moment."""
        state, room = self._state, self._state.room
        yield _gauge("shelfmark_ready", "1: requests are taken.", state.ready and not state.draining)
        yield _gauge("shelfmark_in_flight_requests", "Requests that are not finished.", state.in_flight)
        yield _gauge(
            "shelfmark_queue_photos", "Photos that wait or are at work.", room.pending if room else 0
        )
        release = InfoMetricFamily("shelfmark_release", "The release in service.")
        if room:
            served = room.served
            labels = {"release": served.name, "bundle": served.bundle.digest}
            running = {"engine": served.extractor.engine, "backbone": served.bundle.fingerprint}
            release.add_metric([], labels | running)
        yield release
        refused = GaugeMetricFamily(
            "shelfmark_refused_release", "1: the release that is to be in service could not be used.",
            labels=["release"],
        )  # fmt: skip
        if state.refused_release and state.refused_release[0] is not None:  # None: by `withdraw`
            refused.add_metric([state.refused_release[0]], 1)
        yield refused


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))
