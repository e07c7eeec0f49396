"""What the one worker thread does: it decides about products, and looks at those that corrections are about.

photos ─► bottlenecks ─┬─► head ─► confidence ─► Decision
                       ├─► with a seller: his corrections in use ─► Decision with three more fields
                       └─► RecentProducts: a correction may follow
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import pandas as pd
import simplejpeg

from features.engines.choose import choose_engine
from features.errors import ShelfmarkError
from features.images.refusal import LIMITS, Refused
from models.decisions.adapted import Adapter, Encoded, unadapted
from models.decisions.bundle import Bundle
from models.decisions.categorizer import ReadPhotos, categorize_photos, decide_read, read_photos
from serving.refusals import STORE, unavailable
from serving.schemas import Decision, decision_of

if TYPE_CHECKING:
    from models.corrections.histories import Histories
    from models.corrections.store import Corrections  # SQLAlchemy takes half a second

BATCH = 4  # photos a step of the backbone: products have one to four, so most cost one step
RECENT_BYTES = 64 * 2**20  # of bottlenecks


@dataclass(frozen=True)
class SeenProduct:
    """The readable photos of a product, as the backbone sees them."""

    digests: tuple[str, ...]  # sha256 (hex)
    bottlenecks: np.ndarray  # (rows, d) float16, all views


class RecentProducts:
    """The products that were decided about lately, by their ids, within a number of bytes; thread-safe."""

    def __init__(self, budget_bytes: int = RECENT_BYTES) -> None:
        self._budget, self._bytes = budget_bytes, 0
        self._lock = threading.Lock()
        self._products: OrderedDict[str, SeenProduct] = OrderedDict()

    def put(self, product_id: str, seen: SeenProduct) -> None:
        """Keeps a product in place of what was known of it; the oldest ones go."""
        with self._lock:
            self._take(product_id)
            self._products[product_id] = seen
            self._bytes += seen.bottlenecks.nbytes
            while self._bytes > self._budget:
                self._take(next(iter(self._products)))

    def get(self, product_id: str) -> SeenProduct | None:
        """Returns a product; None where it is not among them."""
        with self._lock:
            return self._products.get(product_id)

    def _take(self, product_id: str) -> None:
        if known := self._products.pop(product_id, None):
            self._bytes -= known.bottlenecks.nbytes


class Decider:
    """One bundle with its backbone loaded and warm; all but `recent` and `histories` is for one thread."""

    def __init__(self, bundle: Bundle, corrections: "Corrections | None") -> None:
        """Loads the backbone, and decides about a black photo as a try.

        Raises:
            ShelfmarkError: the backbone does not belong to the bundle.
        """
        self._categorizer, self._adapter = bundle.categorizer, bundle.adapter
        self._engine = choose_engine(bundle.backbone(), BATCH)
        self._histories = None
        self.recent = RecentProducts()
        black = BytesIO(simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8)))
        self.decide(None, None, [black])
        if corrections and bundle.adapter:
            from models.corrections.histories import Histories

            self._histories = Histories(bundle.adapter, corrections)

    def decide(
        self, product_id: str | None, seller: str | None, files: Sequence[BinaryIO]
    ) -> tuple[Decision, list[Refused | None]]:
        """Decides about one product; says for each photo why it was refused, or None.

        Args:
            product_id: as given in the request.
            seller: whose corrections count; None: nobody's.
            files: of the photos.

        Raises:
            HTTPException: 503, the corrections cannot be read.
        """
        photos = [file.read() for file in files]  # here: waiting products keep large photos on disk
        categorizer, name = self._categorizer, product_id or ""
        if self._histories is None or self._adapter is None:
            table, refusals = categorize_photos(categorizer, self._engine, name, photos, LIMITS)
            return decision_of(unadapted(table) if seller else table, product_id), refusals
        read = read_photos(categorizer, self._engine, name, photos, LIMITS)
        if product_id and read.digests:
            self.recent.put(product_id, SeenProduct(read.digests, read.bottlenecks))
        if seller and read.digests:
            table = self._adapted(self._adapter, name, seller, read)
        else:
            table = decide_read(categorizer, name, read)
            table = unadapted(table) if seller else table
        return decision_of(table, product_id), read.refusals

    def _adapted(self, adapter: Adapter, product_id: str, seller: str, read: ReadPhotos) -> pd.DataFrame:
        assert self._histories is not None
        try:
            state = self._histories.state(seller)
        except ShelfmarkError as error:
            raise unavailable(error, {self._histories.corrections.shown: STORE}) from error
        bounds = np.array([0, len(read.bottlenecks)])
        return adapter.decide(np.array([product_id], dtype=object), read.bottlenecks, bounds, [state])

    def see(
        self, product_id: str, files: Sequence[BinaryIO]
    ) -> tuple[SeenProduct | None, list[Refused | None]]:
        """Returns what the photos of a product show, None where none can be read; and each one's refusal."""
        photos = [file.read() for file in files]
        read = read_photos(self._categorizer, self._engine, product_id, photos, LIMITS)
        return (SeenProduct(read.digests, read.bottlenecks) if read.digests else None), read.refusals

    @property
    def histories(self) -> "Histories | None":
        """Of the sellers; None where no corrections count."""
        return self._histories

    def encode(self, seen: SeenProduct, category: str) -> Encoded:
        """Returns a correction as the adapter's head sees it."""
        assert self._adapter is not None
        [encoded] = self._adapter.encode(seen.bottlenecks, np.array([0, len(seen.bottlenecks)]), [category])
        return encoded
